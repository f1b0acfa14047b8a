"""How much arithmetic and memory traffic a piece of work needs at least, from the shapes and types in the file.

Counted are the multiplications by weights (two operations per weight that a token meets: of the experts only those that
are chosen), the products of attention in the cheaper of its two forms, and every byte of weights and cache that has to
be read once. Norms, rotations and activations are left out: a ceiling may be a little too high, never too low.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._core import TensorInfo

FLOAT_TYPES = frozenset({"F32", "F16", "BF16"})
_EXPERTS = re.compile(r"^blk\.\d+\.ffn_(?:gate|up|down|gate_up)_exps\.weight$")


@dataclass(frozen=True)
class Work:
    """What has to be done at least. int8_ops: with quantized weights; float_ops: everything else; n_bytes: read."""

    int8_ops: float = 0.0
    float_ops: float = 0.0
    n_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.int8_ops + other.int8_ops, self.float_ops + other.float_ops, self.n_bytes + other.n_bytes)

    @property
    def ops(self) -> float:
        """All operations; a multiply-add is two."""
        return self.int8_ops + self.float_ops


@dataclass(frozen=True)
class Machine:
    """What was measured: GB/s, and 1e9 operations a second. bf16 is 0 where the instruction set has none."""

    read_gb_s: float
    int8_gops: float
    f32_gops: float
    bf16_gops: float

    @property
    def float_gops(self) -> float:
        """The faster of the two kinds of float arithmetic."""
        return max(self.f32_gops, self.bf16_gops)

    def seconds(self, work: Work) -> tuple[float, str]:
        """The shortest time that `work` can take here, and what bounds it: "memory" or "arithmetic"."""
        reading = work.n_bytes / (self.read_gb_s * 1e9)
        computing = work.int8_ops / (self.int8_gops * 1e9) + work.float_ops / (self.float_gops * 1e9)
        return (reading, "memory") if reading >= computing else (computing, "arithmetic")


@dataclass
class _Weights:
    """Sums over the tensors that every token meets, and over the experts."""

    int8_elems: int = 0
    float_elems: int = 0
    n_bytes: int = 0

    def add(self, tensor: TensorInfo) -> None:
        if tensor.type in FLOAT_TYPES:
            self.float_elems += tensor.n_elems
        else:
            self.int8_elems += tensor.n_elems
        self.n_bytes += tensor.n_bytes


class TextCost:
    """The decoder's share. config: that of _core.Engine; tensors: of the text file."""

    def __init__(self, config: Mapping[str, Any], tensors: Sequence[TensorInfo], kv_bytes_per_token: int) -> None:
        self._layers, self._experts = _Weights(), _Weights()
        named = {tensor.name: tensor for tensor in tensors}
        for name, tensor in named.items():
            if _EXPERTS.match(name):
                self._experts.add(tensor)
            elif name.startswith("blk.") and len(_real_shape(tensor)) >= 2:
                self._layers.add(tensor)
        self._embedding_row_bytes = named["token_embd.weight"].n_bytes / int(config["n_vocab"])
        self._head = _Weights()
        self._head.add(named.get("output.weight", named["token_embd.weight"]))
        n_experts = int(config["n_routed_experts"])
        self._chosen = int(config["num_experts_per_tok"]) / n_experts if n_experts else 0.0
        heads, layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
        latent, rope = int(config["kv_lora_rank"]), int(config["qk_rope_head_dim"])
        nope, value = int(config["qk_nope_head_dim"]), int(config["v_head_dim"])
        # Of one query and one key. Absorbed: against the latent row; expanded: against the head's own key and value.
        self._absorbed_ops = 2.0 * layers * heads * (2 * latent + rope)
        self._expanded_ops = 2.0 * layers * heads * (nope + rope + value)
        self._expansion_ops = 2.0 * layers * heads * latent * (nope + value)  # of one cached key
        self._kv_bytes = kv_bytes_per_token

    @property
    def ops_per_token(self) -> float:
        """Operations with weights for one token, the output head and attention left out."""
        every = self._layers.int8_elems + self._layers.float_elems
        return 2.0 * (every + self._chosen * (self._experts.int8_elems + self._experts.float_elems))

    @property
    def bytes_per_token(self) -> float:
        """Bytes of weights that decoding one token reads."""
        return self.step(1, 0).n_bytes - self._kv_bytes

    def step(self, n: int, depth: int) -> Work:
        """`n` new tokens after `depth`, at once, with the logits of the last."""
        experts, layers, head = self._experts, self._layers, self._head
        touched = 1.0 - (1.0 - self._chosen) ** n  # of the experts, were they chosen at random
        pairs = n * depth + n * (n + 1) / 2.0
        attention = min(pairs * self._absorbed_ops, pairs * self._expanded_ops + depth * self._expansion_ops)
        return Work(
            int8_ops=2.0 * (n * (layers.int8_elems + self._chosen * experts.int8_elems) + head.int8_elems),
            float_ops=2.0 * (n * (layers.float_elems + self._chosen * experts.float_elems) + head.float_elems)
            + attention,
            n_bytes=layers.n_bytes
            + touched * experts.n_bytes
            + head.n_bytes
            + n * self._embedding_row_bytes
            + (depth + n) * self._kv_bytes,
        )

    def decoding(self, n: int, depth: int, streams: int = 1) -> Work:
        """`n` tokens one after another, the first after `depth`, of each of `streams` sequences in common steps."""
        total = Work()
        for i in range(n):
            one = self.step(1, depth + i)
            n_bytes = self.step(streams, 0).n_bytes + streams * (depth + i) * self._kv_bytes
            total += Work(streams * one.int8_ops, streams * one.float_ops, n_bytes)
        return total


class VisionCost:
    """The vision tower's and projector's share. config: that of _core.Engine; tensors: of the vision file."""

    def __init__(self, config: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> None:
        self._tower, self._projector = _Weights(), _Weights()
        for tensor in tensors:
            if len(_real_shape(tensor)) < 2 or not tensor.name.endswith(".weight"):
                continue
            if tensor.name.startswith("v.blk.") or tensor.name == "v.patch_embd.weight":
                self._tower.add(tensor)
            elif tensor.name.startswith("mm."):
                self._projector.add(tensor)
        self._pair_ops = 4.0 * int(config["vision_layers"]) * int(config["vision_hidden_size"])

    def picture(self, n_patches: int, n_tokens: int) -> Work:
        """One picture; every patch attends to every other."""
        tower, projector = self._tower, self._projector
        return Work(
            int8_ops=2.0 * (n_patches * tower.int8_elems + n_tokens * projector.int8_elems),
            float_ops=2.0 * (n_patches * tower.float_elems + n_tokens * projector.float_elems)
            + self._pair_ops * float(n_patches) ** 2,
            n_bytes=float(tower.n_bytes + projector.n_bytes),
        )


def _real_shape(tensor: TensorInfo) -> list[int]:
    """The shape without dimensions of one."""
    return [n for n in tensor.shape if n > 1]
