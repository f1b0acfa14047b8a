"""Opens an adapter by its path: a folder of PEFT, or a GGUF file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from ..checks import expand_home
from ..errors import BadModelFile, BadRequest, Unsupported, shown
from ..files.input_file import InputFile, read_json
from ..files.opening import open_gguf
from ..files.safetensors import read_header
from ..files.stored import FLOAT_TYPES, SourceTensor
from .change import Adapter, Factor, LowRank
from .complaints import bad, refuse
from .peft_config import read_peft_config
from .places import KNOWN, Module, Shapes, module_of

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_HASHED_BYTES = 4 << 20
_PIECES = (".safetensors", ".json", ".bin")

_KEY = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight$")
_PERMUTED = re.compile(r"v\.blk\.\d+\.attn_(?:q|k|qkv)\.weight$")
_KV_B = re.compile(r"^(blk\.\d+\.)attn_kv_b\.weight$")
_OTHERS = (
    ("lora_magnitude_vector", "DoRA"),
    ("lora_embedding_", "a LoRA of the embeddings"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("vera_", "VeRA"),
    ("ia3_", "IA3"),
    ("oft_", "OFT"),
    (".modules_to_save", "a whole module trained beside the adapter"),
)


def open_adapter(path: str | os.PathLike[str], shapes: Shapes, scale: float = 1.0, projector: object = None) -> Adapter:
    """An adapter for a model with tensors of `shapes`. scale: over the adapter's own. projector: what the vision file
    calls itself; one of the kind kimik25 has the tower's queries and keys in another order, so their change is refused.

    Raises BadModelFile ("lora.module", "lora.shape", "lora.pair", "lora.config", "lora.empty", …), Unsupported
    "lora.unsupported" for what cannot be applied exactly, BadRequest "lora.path".
    """
    where = Path(expand_home(os.fsdecode(path)))
    adapter = _open(where, shapes, scale)
    if projector == "kimik25" and any(map(_PERMUTED.match, adapter.changes)):
        adapter.close()
        refuse(where, "it changes queries and keys of the vision tower, whose order is another in this file (kimik25)")
    return adapter


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Whether the path looks like an adapter's, sound or not: a folder with its configuration, a file in it, or a GGUF
    file of that type. Raises BadModelFile for a GGUF file that cannot be read."""
    where = Path(expand_home(os.fsdecode(path)))
    if where.is_dir():
        return (where / CONFIG_NAME).exists()
    if where.suffix in _PIECES:
        return (where.parent / CONFIG_NAME).exists()
    return bool(open_gguf(where).get("general.type") == "adapter")


def _open(where: Path, shapes: Shapes, scale: float) -> Adapter:
    if where.is_dir():
        return _open_folder(where, shapes, scale)
    if where.suffix in _PIECES and where.is_file():
        raise BadRequest(f"{where}: is one file of an adapter: give its folder {where.parent}", "lora.path")
    if not os.path.lexists(where):
        raise BadModelFile(f"{where}: there is no such adapter: give a PEFT folder or a GGUF file", "lora.missing")
    return _open_gguf(where, shapes, scale)


def _open_folder(folder: Path, shapes: Shapes, scale: float) -> Adapter:
    raw, config_file = read_json(folder / CONFIG_NAME, CONFIG_NAME)
    config = read_peft_config(raw, folder / CONFIG_NAME)
    if not (folder / WEIGHTS_NAME).exists() and (folder / "adapter_model.bin").exists():
        raise Unsupported(
            f"{folder}: holds adapter_model.bin only, which can run code when it is read: save the adapter as "
            "safetensors (save_pretrained does)",
            "lora.pickle",
        )
    file = InputFile(folder / WEIGHTS_NAME, "adapter")
    try:
        factors: dict[str, dict[str, SourceTensor]] = {}
        for tensor in read_header(file):
            module, side = _module_and_side(tensor)
            if factors.setdefault(module, {}).setdefault(side, tensor) is not tensor:
                bad(file.path, f"{module} has two factors {side}: it holds more than one adapter", "pair")
        changes: dict[str, list[LowRank]] = {}
        for name, found in factors.items():
            module_here = module_of(name, shapes)
            if module_here is None:
                _unknown(file.path, name)
            a, b = _pair(file.path, name, found, module_here, config.rank_of(name))
            for target, change in _split(module_here, a, b, scale * config.scale_of(name)):
                changes.setdefault(target, []).append(change)
        return _adapter(folder, scale, config.base, (config_file, file), file, changes)
    except BaseException:
        file.close()
        raise


def _module_and_side(tensor: SourceTensor) -> tuple[str, str]:
    for mark, what in _OTHERS:
        if mark in tensor.name:
            refuse(tensor.file.path, f"tensor {shown(tensor.name)} is of {what}")
    found = _KEY.match(tensor.name)
    if found is None:
        refuse(tensor.file.path, f"tensor {shown(tensor.name)} is no factor of a LoRA (lora_A.weight, lora_B.weight)")
    if tensor.type not in FLOAT_TYPES or len(tensor.shape) != 2:
        refuse(
            tensor.file.path,
            f"tensor {shown(tensor.name)} is {tensor.type} of shape {list(tensor.shape)}, expected a matrix of one of "
            f"{', '.join(FLOAT_TYPES)}",
        )
    return found["module"], found["side"]


def _pair(
    path: Path, name: str, found: Mapping[str, SourceTensor], module: Module, rank: int
) -> tuple[SourceTensor, SourceTensor]:
    if found.keys() != {"A", "B"}:
        bad(path, f"{name} has lora_{next(iter(found))} alone, expected lora_A and lora_B", "pair")
    for side, want in (("A", (rank, module.n_in)), ("B", (module.n_out, rank))):
        if found[side].shape != want:
            bad(
                path,
                f"{name}: lora_{side} has shape {list(found[side].shape)}, expected {list(want)} from the model and "
                f"{CONFIG_NAME}",
                "shape",
            )
    return found["A"], found["B"]


def _split(module: Module, a: SourceTensor, b: SourceTensor, scale: float) -> Iterator[tuple[str, LowRank]]:
    """A module's change as changes of the tensors that its rows lie in."""
    whole_a = Factor(a, 0, a.shape[0])
    for place in module.places:
        rows = Factor(b, place.b_first, place.b_rows, place.transposed)
        if place.transposed:  # (b a)ᵀ = aᵀ bᵀ
            across = Factor(a, 0, a.shape[0], transposed=True)
            yield place.name, LowRank(place.row0, place.n_rows, rows, across, scale)
        else:
            yield place.name, LowRank(place.row0, place.n_rows, whole_a, rows, scale)


def _open_gguf(path: Path, shapes: Shapes, scale: float) -> Adapter:
    gguf = open_gguf(path)
    for key, want in (("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", "deepseek2")):
        if gguf.get(key) != want:
            bad(
                path,
                f"{key} is {shown(gguf.get(key))}, expected {want!r}: it is not a LoRA of Kimi-VL",
                "config",
            )
    if gguf.get("adapter.alora.invocation_tokens") is not None:
        refuse(path, "it is an activated LoRA (aLoRA), which begins at certain tokens")
    alpha = gguf.get("adapter.lora.alpha")
    if not isinstance(alpha, float):
        bad(path, f"adapter.lora.alpha is {shown(alpha)}, expected a number", "config")
    file = InputFile(path, "adapter")
    try:
        factors: dict[str, dict[str, SourceTensor]] = {}
        for info in gguf.tensors:
            name, _, side = info.name.rpartition(".lora_")
            if side not in ("a", "b") or info.type not in FLOAT_TYPES:
                refuse(path, f"tensor {info.name} of type {info.type} is no factor of a LoRA of floats")
            stored = SourceTensor(info.name, info.type, tuple(info.shape), file, info.offset, info.n_bytes)
            factors.setdefault(name, {})[side] = stored
        changes: dict[str, list[LowRank]] = {}
        for name, found in factors.items():
            if found.keys() != {"a", "b"}:
                bad(path, f"{name} has lora_{next(iter(found))} alone, expected lora_a and lora_b", "pair")
            for target, change in _gguf_changes(path, name, found["a"], found["b"], shapes, scale * alpha):
                changes.setdefault(target, []).append(change)
        base = gguf.get("general.base_model.0.name")
        return _adapter(path, scale, base if isinstance(base, str) else None, (file,), file, changes)
    except BaseException:
        file.close()
        raise


def _gguf_changes(
    path: Path, name: str, a: SourceTensor, b: SourceTensor, shapes: Shapes, alpha: float
) -> Iterator[tuple[str, LowRank]]:
    """llama.cpp's factors are of its own tensors: a [stack…, rank, in], b [stack…, out, rank]."""
    rank = a.shape[-2] if len(a.shape) > 1 else 0
    legacy = _KV_B.match(name)
    if legacy and name not in shapes:
        module = module_of(f"layers.{legacy[1].split('.')[1]}.self_attn.kv_b_proj", shapes)
        if module is None:
            _unknown(path, name)
        if (a.shape, b.shape) != ((rank, module.n_in), (module.n_out, rank)):
            bad(path, f"{name}: factors of shapes {list(a.shape)} and {list(b.shape)} do not fit the model", "shape")
        yield from _split(module, a, b, alpha / rank)
        return
    shape = shapes.get(name, ())
    if len(shape) < 2 or name == "token_embd.weight":
        _unknown(path, name)
    *stack, n_out, n_in = shape
    if not rank or a.shape != (*stack, rank, n_in) or b.shape != (*stack, n_out, rank):
        bad(
            path,
            f"{name}: factors of shapes {list(a.shape)} and {list(b.shape)}, expected "
            f"{[*stack, 'rank', n_in]} and {[*stack, n_out, 'rank']} for a matrix of shape {list(shape)}",
            "shape",
        )
    for i in range(stack[0] if stack else 1):
        factors = Factor(a, i * rank, rank), Factor(b, i * n_out, n_out)
        yield name, LowRank(i * n_out, n_out, *factors, alpha / rank)


def _adapter(
    path: Path,
    scale: float,
    base: str | None,
    files: tuple[InputFile, ...],
    weights: InputFile,
    changes: dict[str, list[LowRank]],
) -> Adapter:
    if not changes:
        bad(path, "holds no factors: nothing was trained, or only the configuration was saved", "empty")
    digest = hashlib.sha256()
    for at in range(0, weights.n_bytes, _HASHED_BYTES):
        digest.update(weights.read(at, min(_HASHED_BYTES, weights.n_bytes - at)).data)
    return Adapter(path, scale, base, digest.hexdigest(), files, changes)


def _unknown(path: Path, name: str) -> NoReturn:
    bad(path, f"{shown(name)} is not a linear module of this model, expected one of {KNOWN}", "module")
