"""Where a module of the checkpoint lies in a GGUF file, and which rows of it.

The same three rearrangements as the converter's: kv_b_proj is split per head into attn_k_b (transposed) and attn_v_b,
experts are stacked, wqkv is cut into thirds. Files are known too that keep kv_b_proj or wqkv whole, or join gate and
up of the experts. Whatever is done to the rows of W is done to B, to its columns to A.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

Shapes = Mapping[str, tuple[int, ...]]
"""Of a model's tensors by GGUF name, NumPy order."""


@dataclass(frozen=True)
class Place:
    """Rows [b_first, b_first + b_rows) of a module's matrix are rows [row0, row0 + n_rows) of the tensor `name`;
    transposed: they are its columns there."""

    name: str
    row0: int
    n_rows: int
    b_first: int
    b_rows: int
    transposed: bool = False


@dataclass(frozen=True)
class Module:
    """A linear module of the network: weights [n_out, n_in], and where they are."""

    n_out: int
    n_in: int
    places: tuple[Place, ...]


_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(self_attn|mlp)\.(.+)$")
_BLOCK = re.compile(r"(?:^|\.)encoder\.blocks\.(\d+)\.(.+)$")
_PROJECTOR = re.compile(r"(?:^|\.)multi_modal_projector\.(.+)$")
_EXPERT = re.compile(r"experts\.(\d+)\.(gate|up|down)_proj$")
_ATTENTION = {"q_proj": "attn_q", "kv_a_proj_with_mqa": "attn_kv_a_mqa", "o_proj": "attn_output"}
_MLP = {f"{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
_MLP |= {f"shared_experts.{name}": f"{tensor}_shexp" for name, tensor in _MLP.items()}
_VISION = {"wo": "attn_out", "mlp.fc0": "ffn_up", "mlp.fc1": "ffn_down"}
_PROJECTOR_NAMES = {"linear_1": "mm.1", "linear_2": "mm.2"}

KNOWN = (
    "self_attn.{q_proj, kv_a_proj_with_mqa, kv_b_proj, o_proj}, mlp.{gate_proj, up_proj, down_proj}, the same below "
    "mlp.experts.N and mlp.shared_experts, lm_head, vision_tower.encoder.blocks.N.{wqkv, wo, mlp.fc0, mlp.fc1} and "
    "multi_modal_projector.{linear_1, linear_2}"
)


def module_of(name: str, shapes: Shapes) -> Module | None:
    """What a module of the checkpoint is in a model with tensors of `shapes`; None: the model has no such module.

    name: as in the checkpoint, whatever prefixes a training tool put before "layers.", "encoder.blocks." and
    "multi_modal_projector.".
    """
    places = tuple(_places(name, shapes))
    if not places or any(place.name not in shapes for place in places):
        return None
    first = places[0]
    n_in = first.n_rows if first.transposed else shapes[first.name][-1]
    return Module(max(place.b_first + place.b_rows for place in places), n_in, places)


def _places(name: str, shapes: Shapes) -> Iterator[Place]:
    if name == "lm_head" or name.endswith(".lm_head"):
        yield from _whole("output.weight", shapes)
    elif found := _PROJECTOR.search(name):
        yield from _whole(f"{_PROJECTOR_NAMES.get(found[1])}.weight", shapes)
    elif found := _BLOCK.search(name):
        yield from _vision(f"v.blk.{int(found[1])}.", found[2], shapes)
    elif found := _LAYER.search(name):
        yield from _text(f"blk.{int(found[1])}.", found[2], found[3], shapes)


def _whole(name: str, shapes: Shapes) -> Iterator[Place]:
    if len(shapes.get(name, ())) == 2:
        yield Place(name, 0, shapes[name][0], 0, shapes[name][0])


def _vision(block: str, rest: str, shapes: Shapes) -> Iterator[Place]:
    if rest != "wqkv":
        yield from _whole(f"{block}{_VISION.get(rest)}.weight", shapes)
        return
    if f"{block}attn_qkv.weight" in shapes:
        yield from _whole(f"{block}attn_qkv.weight", shapes)
        return
    for third, part in enumerate(("attn_q", "attn_k", "attn_v")):
        for place in _whole(f"{block}{part}.weight", shapes):
            yield Place(place.name, 0, place.n_rows, third * place.n_rows, place.n_rows)


def _text(block: str, section: str, rest: str, shapes: Shapes) -> Iterator[Place]:
    if section == "self_attn" and rest == "kv_b_proj":
        yield from kv_b_places(block, shapes)
    elif section == "self_attn":
        yield from _whole(f"{block}{_ATTENTION.get(rest)}.weight", shapes)
    elif expert := _EXPERT.fullmatch(rest):
        yield from _expert(block, int(expert[1]), expert[2], shapes)
    else:
        yield from _whole(f"{block}{_MLP.get(rest)}.weight", shapes)


def kv_b_places(block: str, shapes: Shapes) -> Iterator[Place]:
    """Of kv_b_proj [heads * (nope + value), rank] of the layer whose tensors begin with `block`."""
    keys, values = f"{block}attn_k_b.weight", f"{block}attn_v_b.weight"
    if keys not in shapes or values not in shapes:
        yield from _whole(f"{block}attn_kv_b.weight", shapes)
        return
    heads, rank, nope = shapes[keys]
    value = shapes[values][1]
    for h in range(heads):
        yield Place(keys, h * rank, rank, h * (nope + value), nope, transposed=True)
        yield Place(values, h * value, value, h * (nope + value) + nope, value)


def _expert(block: str, index: int, part: str, shapes: Shapes) -> Iterator[Place]:
    name, offset, share = f"{block}ffn_{part}_exps.weight", 0, 1
    if name not in shapes and part != "down":
        name, offset, share = f"{block}ffn_gate_up_exps.weight", int(part == "up"), 2  # gate rows first in every expert
    shape = shapes.get(name, ())
    if len(shape) != 3 or index >= shape[0]:
        return
    each = prod(shape[:-1]) // shape[0]
    n_rows = each // share
    yield Place(name, index * each + offset * n_rows, n_rows, 0, n_rows)
