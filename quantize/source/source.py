"""What a source of weights is, to the rest of this room: named tensors whose rows can be read in pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kimi_vl_cpp.files.input_file import InputFile
from kimi_vl_cpp.files.stored import SourceTensor


class Source(Protocol):
    """Tensors by name, and the files they come from."""

    @property
    def name(self) -> str: ...
    @property
    def tensors(self) -> Mapping[str, SourceTensor]: ...
    @property
    def inputs(self) -> Sequence[InputFile]: ...
    def close(self) -> None: ...
