"""A GGUF model as a source: its directory by the core's hardened reader, its rows by position."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import prod
from pathlib import Path

from kimi_vl_cpp._core import GGUFFile
from kimi_vl_cpp.errors import BadModelFile, Unsupported, shown
from kimi_vl_cpp.files import model_files
from kimi_vl_cpp.files.input_file import InputFile
from kimi_vl_cpp.files.rules import TEXT_ARCHITECTURE
from kimi_vl_cpp.files.stored import SourceTensor

from ..blocks import blocks
from .tensor_map import Part, Target

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class GGUFSource:
    """The tensors of a model's text file (all shards) and of its vision file.

    path: the text file. mmproj: the vision file, None for the one inside `path` or beside it, found as KimiVL finds
    it. Raises BadModelFile, Unsupported.
    """

    def __init__(self, path: Path, mmproj: Path | None) -> None:
        files = model_files.resolve(path, mmproj)
        self.text = GGUFFile(str(files.text))
        self.vision = None if files.mmproj is None else GGUFFile(str(files.mmproj))
        self.why_no_vision = files.why_no_mmproj
        architecture = self.text.get("general.architecture")
        if architecture != TEXT_ARCHITECTURE:
            raise BadModelFile(
                f"{path}: general.architecture is {shown(architecture)}, expected "
                f"{TEXT_ARCHITECTURE!r}: this is not a Kimi-VL model",
                "checkpoint.not_kimi_vl",
            )
        name = self.text.get("general.name")
        self.name = name if isinstance(name, str) and name else files.text.stem
        n_layers = self.text.get_int(f"{architecture}.block_count")
        if n_layers is None or not 0 < n_layers <= 1024:
            raise BadModelFile(f"{path}: {architecture}.block_count is {n_layers}, expected 1 to 1024", "model.layers")
        self.n_layers = n_layers
        self.inputs: list[InputFile] = []
        self.tensors: dict[str, SourceTensor] = {}
        try:
            self._add(self.text)
            if self.vision is not None:
                self._add(self.vision)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        for file in self.inputs:
            file.close()

    def _add(self, gguf: GGUFFile) -> None:
        shards = [InputFile(shard, "GGUF file") for shard in shard_paths(gguf)]
        self.inputs += shards
        for tensor in gguf.tensors:
            if not tensor.supported:
                raise Unsupported(
                    f"{gguf.path}: tensor {tensor.name}: type {tensor.type} cannot be read: use a file of other types",
                    "unsupported.tensor_type",
                )
            if tensor.name in self.tensors:
                raise BadModelFile(
                    f"{gguf.path}: tensor {tensor.name} is also in {self.text.path}: the vision file is a text model",
                    "checkpoint.duplicate_tensor",
                )
            shape = tuple(tensor.shape)
            self.tensors[tensor.name] = SourceTensor(
                tensor.name, tensor.type, shape, shards[tensor.shard], tensor.offset, tensor.n_bytes
            )

    def targets(self) -> list[Target]:
        """Every tensor as it is, text before vision, in the order of the files."""
        names: Iterable[str] = self.tensors
        found = [_target(self.tensors[name]) for name in names]
        return sorted(found, key=lambda target: target.is_vision)


def _target(tensor: SourceTensor) -> Target:
    shape = tensor.shape
    n_parts = shape[0] if len(shape) == 3 else 1  # one for each of a stack of matrices
    n_rows = prod(shape[:-1]) // n_parts
    parts = tuple(Part(tensor.name, i * n_rows, n_rows, shape[-1]) for i in range(n_parts))
    return Target(tensor.name, shape, parts, tensor.name.startswith(("v.", "mm.")))


def shard_paths(gguf: GGUFFile) -> list[Path]:
    """The files behind a GGUFFile, in order."""
    path = Path(gguf.path)
    if gguf.n_shards == 1:
        return [path]
    stem = _SHARD.sub("", path.name)
    return [path.with_name(f"{stem}-{i + 1:05d}-of-{gguf.n_shards:05d}.gguf") for i in range(gguf.n_shards)]


def quantized_types(tensors: Iterable[SourceTensor]) -> dict[str, int]:
    """Block format -> number of tensors stored in it."""
    found: dict[str, int] = {}
    for tensor in tensors:
        if blocks()[tensor.type][0] > 1:
            found[tensor.type] = found.get(tensor.type, 0) + 1
    return dict(sorted(found.items()))
