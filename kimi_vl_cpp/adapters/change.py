"""What an adapter does to one matrix: W + scale B A, with factors that stay in their file until they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BadModelFile, shown
from ..files.input_file import InputFile
from ..files.stored import SourceTensor, read_rows


@dataclass(frozen=True)
class Factor:
    """Rows [first, first + n_rows) of a stored float matrix; transposed: as columns."""

    tensor: SourceTensor
    first: int
    n_rows: int
    transposed: bool = False

    def read(self) -> NDArray[np.float32]:
        """float32 [n_rows, n_cols], or its transpose. Raises BadModelFile "lora.not_finite"."""
        stored = read_rows(self.tensor, self.first, self.n_rows, self.tensor.shape[-1])
        if self.tensor.type == "BF16":
            rows = (stored.astype(np.uint32) << 16).view(np.float32)
        else:
            rows = stored.astype(np.float32)
        if not np.isfinite(rows).all():
            raise BadModelFile(
                f"{self.tensor.file.path}: tensor {self.tensor.name} has values that are not finite: the training "
                "diverged or the file is damaged; use an earlier checkpoint of the adapter",
                "lora.not_finite",
            )
        return np.ascontiguousarray(rows.T) if self.transposed else rows


@dataclass(frozen=True)
class LowRank:
    """scale b a, added to rows [row0, row0 + n_rows) of a tensor seen as [rows, columns].

    a: [rank, columns]; b: [n_rows, rank].
    """

    row0: int
    n_rows: int
    a: Factor
    b: Factor
    scale: float

    def rows(self, first: int, n: int) -> NDArray[np.float32]:
        """float32 [n, columns]: what is added to rows [row0 + first, row0 + first + n), computed in float32."""
        b = self.b.read()[first : first + n] * np.float32(self.scale)
        return np.asarray(b @ self.a.read(), np.float32)


Changes = Mapping[str, Sequence[LowRank]]
"""By the GGUF name of the tensor."""


@dataclass(frozen=True)
class Adapter:
    """An opened adapter.

    scale: the caller's, over the adapter's own. base: the model that it was trained on, as it says itself. digest:
    SHA-256 of its weights.
    """

    path: Path
    scale: float
    base: str | None
    digest: str
    files: tuple[InputFile, ...]
    changes: Changes

    def notice_beside(self, model_name: str) -> str | None:
        """What to say where it names another model than this one as its base."""
        if self.base is None or Path(self.base).name.lower() == model_name.lower():
            return None
        return (
            f"{self.path}: was trained on {shown(self.base)}, this model calls itself {shown(model_name)}: "
            "the shapes fit, but only you can know whether the weights do"
        )

    def close(self) -> None:
        """Idempotent."""
        for file in self.files:
            file.close()


def add_changes(changes: Sequence[LowRank], first: int, rows: NDArray[np.float32]) -> None:
    """Adds what the changes have for rows [first, first + n) of a tensor to `rows`, float32 [n, columns]."""
    end = first + rows.shape[0]
    for change in changes:
        lower, upper = max(first, change.row0), min(end, change.row0 + change.n_rows)
        if lower < upper:
            rows[lower - first : upper - first] += change.rows(lower - change.row0, upper - lower)
