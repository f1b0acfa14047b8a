"""Parts: what `logits` and `generate` take, checked and in the core's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadRequest, ContextFull, shown

Part = Sequence[int] | NDArray[Any]
"""Token ids (a list, or an integer array [n]), or embeddings (a float array [n, hidden_size])."""


def prepare_parts(parts: Sequence[Part], n_vocab: int, hidden_size: int, n_max: int) -> list[NDArray[Any]]:
    """int32 [n] and float32 [n, hidden_size] arrays, contiguous, empty parts left out.

    Raises BadRequest (code "request.parts") naming the part, and ContextFull beyond n_max positions.
    """
    if isinstance(parts, np.ndarray) or not isinstance(parts, (list, tuple)):
        raise BadRequest(
            f"parts: got {type(parts).__name__}, expected a list of parts: [ids], or [ids, embeddings, ids]",
            "request.parts",
        )
    arrays = [array for index, part in enumerate(parts) if len(array := _one(index, part, n_vocab, hidden_size))]
    total = sum(len(array) for array in arrays)
    if total == 0:
        raise BadRequest("parts: no tokens and no embeddings in them, expected at least one", "request.parts")
    if total > n_max:
        sizes = ", ".join(str(len(array)) for array in arrays[:8]) + (", ..." if len(arrays) > 8 else "")
        raise ContextFull(
            f"the parts have {total} positions ({sizes}), but at most {n_max} fit: "
            f"open the model with a larger n_ctx or give fewer",
            "context.parts_too_long",
        )
    return arrays


def _one(index: int, part: Any, n_vocab: int, hidden_size: int) -> NDArray[Any]:
    where = f"parts[{index}]"
    if not isinstance(part, (list, tuple, np.ndarray)):
        raise BadRequest(
            f"{where}: got {shown(part)}, expected token ids or embeddings (a list of ids goes in as [ids])",
            "request.parts",
        )
    try:
        array: NDArray[Any] = np.asarray(part) if len(part) else np.zeros(0, dtype=np.int32)
    except (ValueError, OverflowError, TypeError) as error:
        raise BadRequest(f"{where}: not an array of numbers: {error}", "request.parts") from None
    kind = array.dtype.kind
    if kind in "iu":
        if array.ndim != 1:
            raise BadRequest(f"{where}: got ids of shape {array.shape}, expected [n]", "request.parts")
        wrong = np.flatnonzero((array < 0) | (array >= n_vocab))
        if len(wrong):
            at = int(wrong[0])
            raise BadRequest(
                f"{where}[{at}]: got token id {int(array[at])}, expected 0 to {n_vocab - 1}", "request.parts"
            )
        return np.ascontiguousarray(array, dtype=np.int32)
    if kind == "f":
        if array.ndim != 2 or array.shape[1] != hidden_size:
            raise BadRequest(
                f"{where}: got embeddings of shape {array.shape}, expected [n, {hidden_size}]", "request.parts"
            )
        with np.errstate(over="ignore"):
            embeddings = np.ascontiguousarray(array, dtype=np.float32)
        if not np.isfinite(embeddings).all():
            row, column = (int(axis[0]) for axis in np.nonzero(~np.isfinite(embeddings)))
            raise BadRequest(
                f"{where}[{row}, {column}]: got {array[row, column]}, expected a finite number", "request.parts"
            )
        return embeddings
    raise BadRequest(
        f"{where}: got dtype {array.dtype}, expected integers (token ids) or floats (embeddings)", "request.parts"
    )
