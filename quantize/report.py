"""What a run of `quantize` did, for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TensorReport:
    """shape: NumPy order. source: the type that it had. type: the type that it has now."""

    name: str
    shape: tuple[int, ...]
    source: str
    type: str
    n_bytes: int
    crc32: int


@dataclass(frozen=True)
class FileReport:
    """One written file."""

    path: Path
    n_bytes: int
    tensors: tuple[TensorReport, ...]


@dataclass(frozen=True)
class Report:
    """files: the text file, or the only one, first. type: the mix or recipe. warnings: what was lost or may surprise.

    n_resumed: tensors taken over from an earlier run.
    """

    files: tuple[FileReport, ...]
    type: str
    vision: str | None
    reason: str
    warnings: tuple[str, ...]
    notices: tuple[str, ...]
    n_resumed: int
    seconds: float

    @property
    def path(self) -> Path:
        """Of the file to give to KimiVL."""
        return self.files[0].path

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self.files)

    @property
    def n_elems(self) -> int:
        return sum(_product(tensor.shape) for file in self.files for tensor in file.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Of the tensors, headers left out."""
        n_bytes = sum(tensor.n_bytes for file in self.files for tensor in file.tensors)
        return 8 * n_bytes / self.n_elems

    def by_type(self) -> dict[str, tuple[int, int]]:
        """Type -> (tensors, bytes), largest first."""
        found: dict[str, tuple[int, int]] = {}
        for file in self.files:
            for tensor in file.tensors:
                n, n_bytes = found.get(tensor.type, (0, 0))
                found[tensor.type] = n + 1, n_bytes + tensor.n_bytes
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = asdict(self)
        for file in values["files"]:
            file["path"] = str(file["path"])
        values |= {"n_bytes": self.n_bytes, "bits_per_weight": round(self.bits_per_weight, 4)}
        values["by_type"] = {kind: {"tensors": n, "bytes": size} for kind, (n, size) in self.by_type().items()}
        return values


def _product(shape: tuple[int, ...]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n
