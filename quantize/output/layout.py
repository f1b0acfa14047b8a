"""What an output file will be, byte for byte but for its weights: metadata, tensor directory, offsets.

The header is packed by the `gguf` package; the weights are written by write.py at the offsets given here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.gguf_writer import WriterState

from ..blocks import n_bytes
from ..source.tensor_map import Target
from .metadata import KEY_CHECKSUMS, Metadata, array

ALIGNMENT = 32


@dataclass(frozen=True)
class PlannedTensor:
    """A target with its type and place. offset: bytes from the beginning of the file."""

    target: Target
    type: str
    source_types: tuple[str, ...]
    n_bytes: int
    offset: int


@dataclass(frozen=True)
class Layout:
    """One output file. blank_header: the header with zeros for checksums; the weights begin after it."""

    path: Path
    metadata: Metadata
    tensors: tuple[PlannedTensor, ...]
    blank_header: bytes
    n_bytes: int

    def header(self, checksums: Sequence[int]) -> bytes:
        """The header with the CRC-32 of every tensor, in order; as long as `blank_header`."""
        return _header(self.metadata, [(t.target, t.type) for t in self.tensors], checksums)


def plan_layout(path: Path, metadata: Metadata, chosen: Sequence[tuple[Target, str, tuple[str, ...]]]) -> Layout:
    """chosen: (target, type, types of its sources), in file order."""
    header = _header(metadata, [(target, kind) for target, kind, _ in chosen], [0] * len(chosen))
    at = len(header)
    tensors = []
    for target, kind, source_types in chosen:
        size = n_bytes(kind, target.n_elems)
        tensors.append(PlannedTensor(target, kind, source_types, size, at))
        at += -(-size // ALIGNMENT) * ALIGNMENT
    return Layout(path, metadata, tuple(tensors), header, at)


def _header(metadata: Metadata, tensors: Sequence[tuple[Target, str]], checksums: Sequence[int]) -> bytes:
    writer = GGUFWriter(None, "")
    writer.kv_data[0].clear()  # the architecture is among the metadata
    keys = {**metadata, KEY_CHECKSUMS: array(GGUFValueType.UINT32, list(checksums))}
    for key, value in keys.items():
        writer.add_key_value(key, value.value, value.kind, value.element)
    for target, kind in tensors:
        dtype = np.dtype(np.float32)  # says nothing beside raw_dtype
        size = n_bytes(kind, target.n_elems)
        writer.add_tensor_info(target.name, target.shape, dtype, size, GGMLQuantizationType[kind])
    buffer: Any = io.BytesIO()
    writer.fout, writer.state = [buffer], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_padding(buffer, buffer.tell())
    return bytes(buffer.getvalue())
