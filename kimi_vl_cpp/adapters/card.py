"""What an adapter is, for people who choose one: read from its directory alone, without its factors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..files.stored import SourceTensor
from .change import Adapter, LowRank
from .opening import open_adapter
from .places import Shapes
from .sides import changes_pictures, rank_of, side_bytes


@dataclass(frozen=True)
class Card:
    """An adapter beside a model.

    base: the model that it was trained on, as it says itself. scale: the caller's. ranks: the lowest and the highest.
    n_matrices: how many of the network it changes, by the last part of their names; every expert and head counts.
    bytes_of: memory that its factors take, by the name of the tensor.
    """

    path: Path
    is_folder: bool
    base: str | None
    scale: float
    ranks: tuple[int, int]
    n_parameters: int
    file_bytes: int
    n_matrices: Mapping[str, int]
    changes_pictures: bool
    bytes_of: Mapping[str, int]

    @property
    def memory_bytes(self) -> int:
        """Of its factors, as float32."""
        return sum(self.bytes_of.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self) | {"path": str(self.path), "memory_bytes": self.memory_bytes}
        del found["bytes_of"]
        return found


def card_of(adapter: Adapter) -> Card:
    """The card of an open adapter."""
    n_matrices: dict[str, int] = {}
    for name, changes in adapter.changes.items():
        part = name.split(".")[-2] if not name.startswith("mm.") else name.removesuffix(".weight")
        n_matrices[part] = n_matrices.get(part, 0) + len({change.row0 for change in changes})
    ranks = [rank_of(change) for change in _all(adapter)]
    return Card(
        path=adapter.path,
        is_folder=adapter.path.is_dir(),
        base=adapter.base,
        scale=adapter.scale,
        ranks=(min(ranks), max(ranks)),
        n_parameters=sum(prod(tensor.shape) for tensor in factors_of(adapter)),
        file_bytes=sum(file.n_bytes for file in adapter.files),
        n_matrices=n_matrices,
        changes_pictures=changes_pictures(adapter),
        bytes_of=side_bytes(adapter),
    )


def factors_of(adapter: Adapter) -> list[SourceTensor]:
    """The stored factors, each once, by name."""
    found = {factor.tensor.name: factor.tensor for change in _all(adapter) for factor in (change.a, change.b)}
    return [found[name] for name in sorted(found)]


def read_cards(
    sources: Iterable[tuple[str | os.PathLike[str], float]], shapes: Shapes, projector: object = None
) -> list[Card]:
    """The cards of adapters (path, scale) beside a model whose matrices have `shapes`. Raises what `open_adapter`
    does."""
    cards = []
    for path, scale in sources:
        adapter = open_adapter(path, shapes, scale, projector)
        try:
            cards.append(card_of(adapter))
        finally:
            adapter.close()
    return cards


def _all(adapter: Adapter) -> Iterable[LowRank]:
    for changes in adapter.changes.values():
        yield from changes
