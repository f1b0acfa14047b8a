"""Importance matrices as files: what every column of a weight matrix was multiplied with, and what it therefore weighs.

The file is GGUF in the layout that llama.cpp's tools write and read: `general.type` is "imatrix", and for a tensor NAME
there are NAME.in_sum2, the sums of squares of its inputs [n_matrices, n_cols], and NAME.counts, how many inputs each of
its matrices had [n_matrices, 1]; both F32, shapes in NumPy's order. A matrix of a stack (an expert, a head) has a row.

From sums to weights. The weight of column j of a matrix that saw n inputs with sums S is

    w[j] = (S[j] + level * (PRIOR_TOKENS * profile[j] + 1)) / (n + PRIOR_TOKENS + 1)

level: the mean over columns of S / n; the stack's when n is 0, and 1 when that is 0 too. profile: what the stack as a
whole says about its columns, of mean 1; a single matrix has none (PRIOR_TOKENS counts as 0). So a matrix that saw few
inputs leans on its stack, one that saw none follows it, and one that saw thousands stands for itself. The 1 is one more
input in which all columns are equal: a column that was silent in n inputs may still be as strong as once in n; no
weight is zero.

Experts read the same vector, so their gate and up projections have columns in common and the profile is the mean over
experts; so have the values of heads. The inputs of a down projection are the expert's own inner activations, and those
of attn_k_b a head's own queries: column j of one has nothing to do with column j of another, and the profile is flat.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from kimi_vl_cpp._core import GGUFFile
from kimi_vl_cpp.errors import BadModelFile, KimiVLError, shown

PRIOR_TOKENS = 16.0
"""How many inputs of its own outweigh what its stack says of a matrix. On the built-in model, weights from 6 and 20
prompts came nearest to those from 155 prompts with 8 to 32 (docs/imatrix.md)."""

SUMS, COUNTS = ".in_sum2", ".counts"
KEY_TYPE, TYPE = "general.type", "imatrix"
KEY_DATASETS = "imatrix.datasets"
KEY_CHUNK_COUNT, KEY_CHUNK_SIZE = "imatrix.chunk_count", "imatrix.chunk_size"
KEY_MODEL = "kimi_vl.imatrix.model"
KEY_TOKENS = "kimi_vl.imatrix.tokens"
KEY_TEXT_COUNTS = "kimi_vl.imatrix.text_counts"

_COMMON_COLUMNS = re.compile(r"\.(ffn_gate_exps|ffn_up_exps|ffn_gate_up_exps|attn_v_b)\.")
_LARGEST_COUNT = float(1 << 62)

Sums = Mapping[str, tuple[NDArray[np.float64], NDArray[np.int64]]]
"""Tensor name -> sums of squares [n_matrices, n_cols], counts [n_matrices]."""


@dataclass(frozen=True)
class Imatrix:
    """What a file of an importance matrix holds.

    sums: by tensor name, sums of squares float32 [n_matrices, n_cols] and counts int64 [n_matrices].
    datasets: names of what it was made from. n_prompts, prompt_tokens: how many prompts, and of how many tokens texts
    were. model: what the model called itself, "" when unknown. tokens: how many tokens of texts, pictures and answers
    were seen, None when unknown. text_counts: for every stack of experts the tokens of text (not of pictures and
    answers) that each saw, int64 [n_experts]; empty when unknown.
    """

    sums: dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]] = field(repr=False)
    datasets: tuple[str, ...] = ()
    n_prompts: int = 0
    prompt_tokens: int = 0
    model: str = ""
    tokens: tuple[int, int, int] | None = None
    text_counts: dict[str, NDArray[np.int64]] = field(default_factory=dict, repr=False)


class ImportanceMatrix:
    """What each column of each matrix weighs: the weights that encoders take."""

    def __init__(self, imatrix: Imatrix) -> None:
        self.imatrix = imatrix
        self._last: tuple[str, NDArray[np.float32]] | None = None

    def rows(self, name: str) -> NDArray[np.float32] | None:
        """float32 [n_cols], or [n_matrices, n_cols] for a stack; finite and above zero. None: the file says nothing
        about a tensor of this name."""
        if self._last is not None and self._last[0] == name:  # asked for piece by piece
            return self._last[1]
        found = self.imatrix.sums.get(name)
        if found is None:
            return None
        weights = column_weights(name, *found)
        weights = weights[0] if len(weights) == 1 else weights
        self._last = name, weights
        return weights


def read_importance(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """The weights of a file. Raises like `read_imatrix`."""
    return ImportanceMatrix(read_imatrix(path))


def column_weights(name: str, sums: NDArray[np.floating], counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32 [n_matrices, n_cols]: the formula above. sums: [n_matrices, n_cols]; counts: [n_matrices]."""
    s, n = np.asarray(sums, np.float64), counts.astype(np.float64)[:, None]
    n_cols = s.shape[1]
    total = s.sum(0)
    stack_level = total.mean() / n.sum() if n.sum() > 0 else 0.0
    level = np.where(n > 0, s.mean(1, keepdims=True) / np.maximum(n, 1), stack_level)
    level = np.where(level > 0, level, stack_level if stack_level > 0 else 1.0)
    prior = PRIOR_TOKENS if len(s) > 1 else 0.0
    profile = np.ones(n_cols)
    if _COMMON_COLUMNS.search(name) and stack_level > 0:
        profile = total / total.mean()
    weights = (s + level * (prior * profile + 1)) / (n + prior + 1)
    # Encoders get ratios within a matrix; a float32 can hold them whatever the unit.
    return np.clip(weights, np.finfo(np.float32).tiny, np.finfo(np.float32).max).astype(np.float32)


# Reading


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """A file of this tool or of llama.cpp's. Raises BadModelFile: of reading GGUF, and with codes under "imatrix."."""
    where = os.fspath(path)
    try:
        gguf = GGUFFile(path)
    except BadModelFile as error:
        if error.code != "gguf.magic":
            raise
        raise BadModelFile(
            f"{where}: is not a GGUF file, as importance matrices are: make one with `kimi-vl imatrix` (the older .dat "
            "files of llama.cpp are not read)",
            "imatrix.not_gguf",
        ) from None
    kind = gguf.get(KEY_TYPE)
    if kind != TYPE:
        what = (
            f"a model ({shown(gguf.get('general.architecture'))})" if kind in (None, "model", "mmproj") else shown(kind)
        )
        raise BadModelFile(
            f"{where}: {KEY_TYPE} says that this is {what}, expected {TYPE!r}: give the file that "
            "`kimi-vl imatrix` wrote",
            "imatrix.not_an_imatrix",
        )
    tensors = {tensor.name: tensor for tensor in gguf.tensors}
    names = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
    lone = [name for name in tensors if name.endswith(COUNTS) and name.removesuffix(COUNTS) + SUMS not in tensors]
    if lone:
        _bad(where, lone[0], f"there is no {lone[0].removesuffix(COUNTS)}{SUMS} with it", "missing")
    if not names:
        raise BadModelFile(f"{where}: holds no sums (tensors NAME{SUMS}): make it again", "imatrix.empty")
    sums = {}
    for name in names:
        if name + COUNTS not in tensors:
            _bad(where, name + SUMS, f"there is no {name}{COUNTS} with it", "missing")
        for part in (name + SUMS, name + COUNTS):
            if tensors[part].type != "F32":
                _bad(where, part, f"has type {tensors[part].type}, expected F32", "type")
        sums[name] = _checked(where, name, gguf.tensor_f32(name + SUMS), gguf.tensor_f32(name + COUNTS))
    return Imatrix(
        sums=sums,
        datasets=tuple(_texts(gguf, KEY_DATASETS)),
        n_prompts=_number(gguf, KEY_CHUNK_COUNT),
        prompt_tokens=_number(gguf, KEY_CHUNK_SIZE),
        model=str(gguf.get(KEY_MODEL) or ""),
        tokens=_tokens(gguf),
        text_counts=_text_counts(gguf, sums),
    )


def _checked(
    where: str, name: str, values: NDArray[np.float32], raw_counts: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """[n_matrices, n_cols] and [n_matrices], or BadModelFile."""
    n_matrices = raw_counts.size
    expected_counts = raw_counts.ndim == 1 or raw_counts.shape[1:] == (1,)
    if n_matrices == 0 or not (expected_counts and (raw_counts.ndim > 1 or n_matrices == 1)):
        _bad(where, name + COUNTS, f"has shape {list(raw_counts.shape)}, expected [n_matrices, 1]", "shape")
    stacked = values.reshape(1, -1) if values.ndim == 1 else values
    if stacked.ndim != 2 or len(stacked) != n_matrices or stacked.size == 0:
        _bad(
            where,
            name + SUMS,
            f"has shape {list(values.shape)}, expected [{n_matrices}, n_cols] as {name}{COUNTS} has {n_matrices}",
            "shape",
        )
    wrong = ~np.isfinite(raw_counts) | (raw_counts < 0) | (raw_counts != np.floor(raw_counts))
    if wrong.any() or float(raw_counts.max()) > _LARGEST_COUNT:
        at = int(np.flatnonzero(wrong.reshape(-1))[0]) if wrong.any() else int(raw_counts.argmax())
        _bad(where, name + COUNTS, f"holds {raw_counts.reshape(-1)[at]} at {at}, expected a number of tokens", "value")
    wrong = ~np.isfinite(stacked) | (stacked < 0)
    if wrong.any():
        row, col = (int(i[0]) for i in np.nonzero(wrong))
        _bad(
            where,
            name + SUMS,
            f"holds {stacked[row, col]} at [{row}, {col}], expected a sum of squares, a finite number "
            "that is not negative",
            "value",
        )
    counts = raw_counts.reshape(-1).astype(np.int64)
    lying = (counts == 0) & (stacked > 0).any(1)
    if lying.any():
        at = int(np.flatnonzero(lying)[0])
        _bad(where, name + SUMS, f"has sums for matrix {at}, which saw 0 tokens by {name}{COUNTS}", "value")
    return stacked, counts


def _bad(where: str, tensor: str, problem: str, code: str) -> NoReturn:
    raise BadModelFile(
        f"{where}: tensor {shown(tensor)}: {problem}: make the importance matrix again", f"imatrix.{code}"
    )


def _texts(gguf: GGUFFile, key: str) -> list[str]:
    value = gguf.get(key)
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _number(gguf: GGUFFile, key: str) -> int:
    value = gguf.get(key)
    return value if isinstance(value, int) and value >= 0 else 0


def _tokens(gguf: GGUFFile) -> tuple[int, int, int] | None:
    value = gguf.get(KEY_TOKENS)
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(n, int) and n >= 0 for n in value):
        return None
    return value[0], value[1], value[2]


def _text_counts(
    gguf: GGUFFile, sums: Mapping[str, tuple[NDArray[np.float32], NDArray[np.int64]]]
) -> dict[str, NDArray[np.int64]]:
    """One list for all stacks of experts in order; {} when it is absent or does not fit."""
    value = gguf.get(KEY_TEXT_COUNTS)
    stacks = expert_stacks(sums)
    sizes = [len(sums[name][1]) for name in stacks]
    if not isinstance(value, list) or len(value) != sum(sizes) or not all(isinstance(n, int) and n >= 0 for n in value):
        return {}
    parts = np.split(np.asarray(value, np.int64), np.cumsum(sizes)[:-1])
    return dict(zip(stacks, parts, strict=True))


def expert_stacks(names: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Of every layer with experts the tensor whose counts say which expert saw how many tokens, by layer."""
    found: dict[int, str] = {}
    for name in names:
        match = re.fullmatch(r"blk\.(\d{1,4})\.ffn_(?:gate|gate_up)_exps\.weight", name)
        if match:
            found[int(match[1])] = name
    return [found[layer] for layer in sorted(found)]


# Writing


def write_imatrix(path: Path, imatrix: Imatrix) -> int:
    """Writes the file whole or not at all, over what is there; returns its size in bytes.

    Raises KimiVLError "imatrix.io" when the disk does not take it.
    """
    partial = path.with_name(path.name + ".kimi-vl-partial")
    writer = GGUFWriter(None, "")
    writer.kv_data[0].clear()  # this file has no architecture
    writer.add_string(KEY_TYPE, TYPE)
    writer.add_array(KEY_DATASETS, [name or "-" for name in imatrix.datasets] or ["-"])
    writer.add_uint32(KEY_CHUNK_COUNT, imatrix.n_prompts)
    writer.add_uint32(KEY_CHUNK_SIZE, imatrix.prompt_tokens)
    if imatrix.model:
        writer.add_string(KEY_MODEL, imatrix.model)
    if imatrix.tokens is not None:
        writer.add_array(KEY_TOKENS, list(imatrix.tokens))
    stacks = expert_stacks(imatrix.sums)
    if stacks and all(name in imatrix.text_counts for name in stacks):
        writer.add_array(KEY_TEXT_COUNTS, np.concatenate([imatrix.text_counts[name] for name in stacks]).tolist())
    for name in sorted(imatrix.sums):
        sums, counts = imatrix.sums[name]
        writer.add_tensor(name + SUMS, np.ascontiguousarray(sums, np.float32))
        writer.add_tensor(name + COUNTS, counts.astype(np.float32).reshape(-1, 1))
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _sync(partial, os.O_RDONLY)
        n_bytes = partial.stat().st_size
        os.replace(partial, path)
        _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KimiVLError(f"{path}: {error.strerror}: the importance matrix was not written", "imatrix.io") from None
    finally:
        with contextlib.suppress(OSError):
            writer.close()
        with contextlib.suppress(OSError):
            partial.unlink()
    return n_bytes


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
