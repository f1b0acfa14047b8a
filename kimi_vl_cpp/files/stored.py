"""A tensor as a file stores it: where its bytes lie, and its rows when it is made of floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .input_file import InputFile

FLOAT_TYPES = ("F32", "F16", "BF16")

Rows = NDArray[Any]
"""[n_rows, n_cols] of float32, float16, or uint16: the bits of bfloat16."""

_NUMPY_OF: dict[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a file. type: a name of FLOAT_TYPES or of a block format. shape: NumPy order.

    offset: bytes from the beginning of `file`.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    file: InputFile
    offset: int
    n_bytes: int

    @property
    def n_elems(self) -> int:
        n = 1
        for side in self.shape:
            n *= side
        return n


def read_rows(tensor: SourceTensor, first: int, n_rows: int, n_cols: int) -> Rows:
    """Rows `first` to `first + n_rows` of a float tensor seen as rows of `n_cols`, as they are stored."""
    dtype = _NUMPY_OF[tensor.type]
    row_bytes = n_cols * dtype.itemsize
    raw = tensor.file.read(tensor.offset + first * row_bytes, n_rows * row_bytes)
    rows: Rows = raw.view(dtype).reshape(n_rows, n_cols)
    return rows
