"""Rows of floats into the blocks of a type, and how many bytes that takes. The encoders are the C++ core's."""

from __future__ import annotations

from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kimi_vl_cpp import _core
from kimi_vl_cpp.files.stored import Rows


@cache
def blocks() -> dict[str, tuple[int, int]]:
    """Type -> (elements, bytes) of a block, of all types that can be read."""
    return {row["name"]: (int(row["block_elems"]), int(row["block_bytes"])) for row in _core.formats()}


@cache
def writable() -> tuple[str, ...]:
    """The types that can be written."""
    return tuple(row["name"] for row in _core.formats() if row["writable"])


def fits(type_name: str, n_cols: int) -> bool:
    """Whether rows of `n_cols` are whole blocks."""
    return n_cols % blocks()[type_name][0] == 0


def n_bytes(type_name: str, n_elems: int) -> int:
    """Of `n_elems` in whole blocks."""
    elems, size = blocks()[type_name]
    return n_elems // elems * size


class Importance(Protocol):
    """What an error in each column of a tensor weighs."""

    def rows(self, name: str) -> NDArray[np.float32] | None:
        """float32 [n_cols], or [n_matrices, n_cols] for a stack of matrices. None: nothing is known about it."""


def encode(
    type_name: str, rows: Rows, n_threads: int, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """uint8 [n_rows, row bytes]; the same bytes for any `n_threads` (0: automatic). importance: [n_cols].

    Raises BadRequest: "quant.not_finite", "quant.overflow", with row and column.
    """
    return _core.quantize_rows(type_name, np.ascontiguousarray(rows), importance, n_threads)


def decode(type_name: str, raw: NDArray[np.uint8], n_elems: int) -> NDArray[np.float32]:
    """float32 [n_elems]."""
    return _core.decode(type_name, raw, n_elems)
