"""What can be compared about two files without running them: vocabulary, size, and the error of every weight.

Weights are read in pieces of `PIECE_ELEMS`, so that memory does not grow with the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kimi_vl_cpp._core import GGUFFile
from kimi_vl_cpp.errors import BadRequest, shown
from kimi_vl_cpp.files.stored import FLOAT_TYPES, SourceTensor, read_rows

from ..blocks import blocks, decode
from ..source.gguf import GGUFSource
from ..source.tensor_map import Part, Target

PIECE_ELEMS = 1 << 20
_LAYER = re.compile(r"^(v\.blk|blk)\.(\d+)\.")
_IDS = ("bos", "eos", "eot", "eom", "padding", "unknown")


@dataclass(frozen=True)
class TensorError:
    """How far a tensor is from the reference's. squared, reference: sums of squares of the error and of the reference's
    weights. layer: None outside of layers. role: the name without its layer."""

    name: str
    role: str
    layer: int | None
    is_vision: bool
    n_elems: int
    type_a: str
    type_b: str
    squared: float
    reference: float

    @property
    def relative(self) -> float:
        """|error| / |reference|, Frobenius norms."""
        return relative([self])


@dataclass(frozen=True)
class FileFacts:
    """n_bytes: of all files of a model. n_elems, tensor_bytes: of its tensors."""

    n_bytes: int
    n_elems: int
    tensor_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.tensor_bytes / max(self.n_elems, 1)


def relative(tensors: Iterable[TensorError]) -> float:
    """The relative error of several tensors taken together; infinity where the reference is zero and the other is
    not."""
    squared = reference = 0.0
    for tensor in tensors:
        squared, reference = squared + tensor.squared, reference + tensor.reference
    if squared == 0:
        return 0.0
    return math.sqrt(squared / reference) if reference > 0 else math.inf


def file_facts(source: GGUFSource) -> FileFacts:
    """Of an opened source."""
    tensors = source.tensors.values()
    return FileFacts(
        sum(file.n_bytes for file in source.inputs), sum(t.n_elems for t in tensors), sum(t.n_bytes for t in tensors)
    )


def check_same_vocabulary(a: Path, b: Path) -> None:
    """Raises BadRequest "compare.vocabulary" that says where the vocabularies of two files part."""
    one, two = GGUFFile(str(a)), GGUFFile(str(b))

    def bad(what: str) -> BadRequest:
        return BadRequest(
            f"{a} and {b} have different vocabularies, so that their predictions cannot be compared: {what}: compare "
            "files of one model",
            "compare.vocabulary",
        )

    for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre"):
        if one.get(key) != two.get(key):
            raise bad(f"{key} is {shown(one.get(key))} and {shown(two.get(key))}")
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        left, right = one.get_bytes_list(key) or [], two.get_bytes_list(key) or []
        if left == right:
            continue
        if len(left) != len(right):
            raise bad(f"{key} has {len(left)} and {len(right)} entries")
        at = next(i for i, (x, y) in enumerate(zip(left, right, strict=True)) if x != y)
        raise bad(f"{key}[{at}] is {shown(left[at])} and {shown(right[at])}")
    if (one.get("tokenizer.ggml.token_type") or []) != (two.get("tokenizer.ggml.token_type") or []):
        raise bad("tokenizer.ggml.token_type differs")
    for name in _IDS:
        key = f"tokenizer.ggml.{name}_token_id"
        if name in ("bos", "eos", "eot") and one.get(key) != two.get(key):
            raise bad(f"{key} is {shown(one.get(key))} and {shown(two.get(key))}")


@dataclass(frozen=True)
class WeightErrors:
    """tensors: of both files, in the reference's order. unmatched: names that only one has, or with other shapes."""

    tensors: tuple[TensorError, ...]
    unmatched: tuple[str, ...]

    def by_role(self) -> dict[str, float]:
        """Role -> relative error of its tensors together, worst first."""
        return _grouped(self.tensors, lambda tensor: tensor.role)

    def by_layer(self, is_vision: bool) -> dict[int, float]:
        """Layer -> relative error of its tensors together, in order."""
        inside = [t for t in self.tensors if t.layer is not None and t.is_vision is is_vision]
        found = _grouped(inside, lambda tensor: tensor.layer)
        return {layer: found[layer] for layer in sorted(found)}


def _grouped(tensors: Iterable[TensorError], key: Callable[[TensorError], Any]) -> dict[Any, float]:
    groups: dict[Any, list[TensorError]] = {}
    for tensor in tensors:
        groups.setdefault(key(tensor), []).append(tensor)
    found = {name: relative(group) for name, group in groups.items()}
    return dict(sorted(found.items(), key=lambda item: (-item[1], str(item[0]))))


def weight_errors(a: GGUFSource, b: GGUFSource, advance: Callable[[int], None]) -> WeightErrors:
    """Of every tensor that both have. advance(elements) is called after every piece; what it raises goes through."""
    found, unmatched = [], sorted(a.tensors.keys() ^ b.tensors.keys())
    for target in a.targets():
        other = b.tensors.get(target.name)
        mine = a.tensors[target.name]
        if other is None or other.shape != mine.shape:
            if other is not None:
                unmatched.append(target.name)
            advance(mine.n_elems)
            continue
        found.append(_error(target, mine, other, advance))
    return WeightErrors(tuple(found), tuple(unmatched))


def _error(target: Target, a: SourceTensor, b: SourceTensor, advance: Callable[[int], None]) -> TensorError:
    squared = reference = 0.0
    for part in target.parts:
        for piece in part.pieces(PIECE_ELEMS):
            x = floats(a, piece)
            reference += float((x * x).sum(dtype=np.float64))
            y = floats(b, piece)
            y -= x
            squared += float((y * y).sum(dtype=np.float64))
            advance(piece.n_rows * piece.n_cols)
    layer = _LAYER.match(target.name)
    role = _LAYER.sub(lambda match: f"{match[1]}.*.", target.name).removesuffix(".weight")
    return TensorError(
        name=target.name,
        role=role,
        layer=int(layer[2]) if layer else None,
        is_vision=target.is_vision,
        n_elems=target.n_elems,
        type_a=a.type,
        type_b=b.type,
        squared=squared,
        reference=reference,
    )


def floats(tensor: SourceTensor, part: Part) -> NDArray[np.float32]:
    """Rows of a tensor of any type: float32 [n_rows, n_cols], a new array."""
    if tensor.type not in FLOAT_TYPES:
        elems, size = blocks()[tensor.type]
        row_bytes = part.n_cols // elems * size
        raw = tensor.file.read(tensor.offset + part.first * row_bytes, part.n_rows * row_bytes)
        return decode(tensor.type, raw, part.n_rows * part.n_cols).reshape(part.n_rows, part.n_cols)
    rows = read_rows(tensor, part.first, part.n_rows, part.n_cols)
    if rows.dtype == np.uint16:
        wide: NDArray[np.float32] = (rows.astype(np.uint32) << 16).view(np.float32)
        return wide
    return rows.astype(np.float32)
