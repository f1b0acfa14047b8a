"""An adapter as side products: the factors of every matrix of the network, as the core adds them beside it.

The network's matrices are those of a file whose joined tensors (attn_kv_b, attn_qkv, ffn_gate_up_exps) are taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..files.rules import TEXT_ARCHITECTURE
from .change import Adapter, LowRank
from .complaints import bad
from .places import Shapes

PICTURE_PREFIXES = ("v.", "mm.")
"""What the names of the matrices begin with that pictures pass through."""


@dataclass(frozen=True)
class SideProduct:
    """What is added to the product of one matrix with x: bᵀ (a x).

    name: of the matrix. index: in its stack (experts, heads). a: float32 [rank, columns]. b: float32 [rank, rows],
    scaled.
    """

    name: str
    index: int
    a: NDArray[np.float32]
    b: NDArray[np.float32]


def network_shapes(shapes: Shapes, get: Callable[[str], object]) -> Shapes:
    """The shapes of the network's matrices. shapes: of a model's tensors; get: a value of its text file's metadata."""

    def size(key: str) -> int:
        value = get(f"{TEXT_ARCHITECTURE}.{key}")
        return value if isinstance(value, int) else 0

    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name.endswith(".attn_kv_b.weight"):
            heads, rank = size("attention.head_count"), size("attention.kv_lora_rank")
            nope = size("attention.key_length") - size("rope.dimension_count")
            found[name.replace("kv_b", "k_b")] = (heads, rank, nope)
            found[name.replace("kv_b", "v_b")] = (heads, size("attention.value_length"), rank)
        elif name.endswith(".attn_qkv.weight"):
            for part in ("q", "k", "v"):
                found[name.replace("qkv", part)] = (shape[0] // 3, *shape[1:])
        elif name.endswith(".ffn_gate_up_exps.weight"):
            for part in ("gate", "up"):
                found[name.replace("gate_up", part)] = (shape[0], shape[1] // 2, shape[2])
        else:
            found[name] = shape
    return found


def side_bytes(adapter: Adapter) -> dict[str, int]:
    """Memory that the factors of each matrix take in the core."""
    return {
        name: sum(4 * rank_of(change) * (_columns(change) + change.n_rows) for change in changes)
        for name, changes in adapter.changes.items()
    }


def side_products(adapter: Adapter, shapes: Shapes) -> Iterator[SideProduct]:
    """Reads the factors. shapes: those of `network_shapes` that the adapter was opened with.

    Raises BadModelFile "lora.not_finite", "lora.rank".
    """
    for name, changes in adapter.changes.items():
        n_rows = shapes[name][-2]
        for change in changes:
            index, rest = divmod(change.row0, n_rows)
            if rest or change.n_rows != n_rows or not rank_of(change):
                bad(
                    adapter.path,
                    f"{name}: factors of rank {rank_of(change)} for rows {change.row0} to "
                    f"{change.row0 + change.n_rows}, expected a whole matrix of {n_rows} rows",
                    "rank",
                )
            scaled = change.b.read() * np.float32(change.scale)
            if not np.isfinite(scaled).all():
                bad(adapter.path, f"{name}: its factors times {change.scale:g} are not finite", "not_finite")
            yield SideProduct(name, index, change.a.read(), np.ascontiguousarray(scaled.T))


def added_up(products: Iterator[SideProduct]) -> list[tuple[str, int, NDArray[np.float32], NDArray[np.float32]]]:
    """(name, index, a, b) as `_core.Engine.add_adapter` takes them: factors of the same matrix one below the other,
    which adds their products up."""
    found: dict[tuple[str, int], list[SideProduct]] = {}
    for product in products:
        found.setdefault((product.name, product.index), []).append(product)
    return [
        (*where, np.concatenate([one.a for one in ones]), np.concatenate([one.b for one in ones]))
        for where, ones in found.items()
    ]


def changes_pictures(adapter: Adapter) -> bool:
    """Whether pictures are encoded to other embeddings with it."""
    return any(name.startswith(PICTURE_PREFIXES) for name in adapter.changes)


def rank_of(change: LowRank) -> int:
    """Columns of b."""
    return change.a.tensor.shape[-1] if change.a.transposed else change.a.n_rows


def _columns(change: LowRank) -> int:
    return change.a.n_rows if change.a.transposed else change.a.tensor.shape[-1]
