"""Which tensors a GGUF file of this model has, and from which rows of the checkpoint each is made.

Owns the names of both sides and the three rearrangements: kv_b_proj is split per head into attn_k_b (transposed) and
attn_v_b, the experts of a layer are stacked, and wqkv is cut into thirds. Reads no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from kimi_vl_cpp.errors import BadModelFile, Unsupported, shown
from kimi_vl_cpp.files.stored import SourceTensor

from .checkpoint import Checkpoint, check_float
from .config import ModelConfig, TextConfig, VisionConfig

# What tools put before the names: training wrappers, and the layout of transformers from 4.52 on.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")
_INNER = re.compile(r"^(?:model\.)?(language_model|vision_tower|multi_modal_projector)\.(.+)$")
_PACKED = re.compile(
    r"\.(?:qweight|qzeros|g_idx|scales|biases|absmax|quant_map|nested_absmax|weight_packed|weight_scale(?:_inv)?|"
    r"weight_zero_point|weight_shape|quant_state\..*|SCB|weight_format)$|\.weight\.(?:absmax|quant_.*|nested_.*)$"
)

TEXT = "language_model."
TOWER = "vision_tower."
PROJECTOR = "multi_modal_projector."


@dataclass(frozen=True)
class Part:
    """`n_rows` rows of a source tensor from `first` on, seen as rows of `n_cols` elements; transposed: they become the
    columns of the target."""

    source: str
    first: int
    n_rows: int
    n_cols: int
    transposed: bool = False

    def pieces(self, max_elems: int) -> Iterator[Part]:
        """The part in pieces of about `max_elems`, in order. A transposed part is one piece."""
        step = max(1, max_elems // self.n_cols)
        if self.transposed or step >= self.n_rows:
            yield self
            return
        for first in range(0, self.n_rows, step):
            yield Part(self.source, self.first + first, min(step, self.n_rows - first), self.n_cols)


@dataclass(frozen=True)
class Target:
    """A tensor to write. shape: NumPy order. parts: its rows, in order. is_vision: part of the vision file."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    is_vision: bool

    @property
    def n_elems(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Mapped:
    """A target, and the shape that each of its source tensors must have."""

    target: Target
    expected: Mapping[str, tuple[int, ...]]


def map_checkpoint(checkpoint: Checkpoint, config: ModelConfig) -> tuple[list[Target], list[str]]:
    """Everything to write, in file order, and the names of tensors that have no place in it.

    Raises BadModelFile "checkpoint.missing_tensor", "checkpoint.shape", "checkpoint.dtype"; Unsupported for a dtype.
    """
    checkpoint.tensors = original_names(checkpoint.tensors)
    packed = next((name for name in checkpoint.tensors if _PACKED.search(name)), None)
    if packed is not None:
        raise Unsupported(
            f"{checkpoint.folder}: tensor {shown(packed)} belongs to weights that are quantized already, expected the "
            "original floats: use the original bfloat16 checkpoint",
            "checkpoint.quantized",
        )
    targets: list[Target] = []
    used: set[str] = set()
    missing: list[str] = []
    for mapped in (*text_targets(config.text), *vision_targets(config.vision, config.text.hidden_size)):
        for name, shape in mapped.expected.items():
            tensor = checkpoint.tensors.get(name)
            if tensor is None:
                missing.append(name)
                continue
            _check_shape(tensor, shape)
            check_float(tensor)
        if len(missing) > 5:
            break
        used |= mapped.expected.keys()
        targets.append(mapped.target)
    if missing:
        if any("lora_" in name for name in checkpoint.tensors):
            raise Unsupported(
                f"{checkpoint.folder}: holds the weights of an adapter (LoRA) and not of a model: give the base "
                "model as the source, and the adapter as lora (--lora)",
                "checkpoint.adapter",
            )
        there = ", ".join(shown(name) for name in sorted(checkpoint.tensors.keys() - used)[:3])
        raise BadModelFile(
            f"{checkpoint.folder}: tensors are missing that config.json calls for: {', '.join(missing[:5])}"
            f"{', …' if len(missing) > 5 else ''}"
            f"{f' (there are {there}, …)' if there else ''}: download the checkpoint again, or "
            "save it under these names",
            "checkpoint.missing_tensor",
        )
    return targets, sorted(name for name in checkpoint.tensors if name not in used)


def original_names(tensors: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """`tensors` by the names of the published checkpoints, whichever prefixes a tool gave them.

    Raises BadModelFile "checkpoint.duplicate_tensor" for two tensors of the same name then.
    """
    found: dict[str, SourceTensor] = {}
    for stored, tensor in tensors.items():
        name = _original_name(stored)
        if name in found:
            raise BadModelFile(
                f"{tensor.file.path}: tensors {shown(found[name].name)} and {shown(stored)} are both {shown(name)}: "
                "the checkpoint is of two saves; save it again into an empty folder",
                "checkpoint.duplicate_tensor",
            )
        found[name] = tensor
    return found


def _original_name(stored: str) -> str:
    name = _WRAPPERS.sub("", stored)
    if name.startswith(("lm_head.", "model.lm_head.")):
        return TEXT + name.removeprefix("model.")
    inner = _INNER.match(name)
    if inner is None:
        return name
    part, rest = inner.groups()
    if part == "language_model" and rest.startswith(("layers.", "embed_tokens.", "norm.")):
        rest = "model." + rest
    return f"{part}.{rest}"


def _check_shape(tensor: SourceTensor, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise BadModelFile(
            f"{tensor.file.path}: tensor {shown(tensor.name)} has shape {list(tensor.shape)}, expected "
            f"{list(expected)} from config.json: the two are not of the same model; download both again",
            "checkpoint.shape",
        )


def _whole(
    hf: str, name: str, shape: tuple[int, ...], is_vision: bool, stored: tuple[int, ...] | None = None
) -> Mapped:
    """A tensor that stays as it is, but for its shape being `stored` in the checkpoint."""
    part = Part(hf, 0, prod(shape[:-1]), shape[-1])
    return Mapped(Target(name, shape, (part,), is_vision), {hf: stored or shape})


def text_targets(c: TextConfig) -> Iterator[Mapped]:
    """The tensors of the text model, in the order of a converter's file."""

    def same(hf: str, name: str, *shape: int) -> Mapped:
        return _whole(TEXT + hf, name, shape, False)

    hidden, heads, rank = c.hidden_size, c.num_attention_heads, c.kv_lora_rank
    nope, rope, value = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
    yield same("model.embed_tokens.weight", "token_embd.weight", c.vocab_size, hidden)
    yield same("model.norm.weight", "output_norm.weight", hidden)
    yield same("lm_head.weight", "output.weight", c.vocab_size, hidden)
    for i in range(c.num_hidden_layers):
        hf, blk = f"model.layers.{i}.", f"blk.{i}."
        attn = hf + "self_attn."
        yield same(hf + "input_layernorm.weight", blk + "attn_norm.weight", hidden)
        yield same(attn + "q_proj.weight", blk + "attn_q.weight", heads * (nope + rope), hidden)
        yield same(attn + "kv_a_proj_with_mqa.weight", blk + "attn_kv_a_mqa.weight", rank + rope, hidden)
        yield same(attn + "kv_a_layernorm.weight", blk + "attn_kv_a_norm.weight", rank)
        yield from _split_kv_b(TEXT + attn + "kv_b_proj.weight", blk, heads, nope, value, rank)
        yield same(attn + "o_proj.weight", blk + "attn_output.weight", hidden, heads * value)
        yield same(hf + "post_attention_layernorm.weight", blk + "ffn_norm.weight", hidden)
        if i < c.first_k_dense_replace:
            inner = c.intermediate_size
            yield same(hf + "mlp.gate_proj.weight", blk + "ffn_gate.weight", inner, hidden)
            yield same(hf + "mlp.up_proj.weight", blk + "ffn_up.weight", inner, hidden)
            yield same(hf + "mlp.down_proj.weight", blk + "ffn_down.weight", hidden, inner)
            continue
        inner, experts = c.moe_intermediate_size, c.n_routed_experts
        yield same(hf + "mlp.gate.weight", blk + "ffn_gate_inp.weight", experts, hidden)
        yield same(hf + "mlp.gate.e_score_correction_bias", blk + "exp_probs_b.bias", experts)
        for part, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            names = [f"{TEXT}{hf}mlp.experts.{e}.{part}_proj.weight" for e in range(experts)]
            parts = tuple(Part(name, 0, *shape) for name in names)
            target = Target(f"{blk}ffn_{part}_exps.weight", (experts, *shape), parts, False)
            yield Mapped(target, dict.fromkeys(names, shape))
        inner *= c.n_shared_experts
        shared = hf + "mlp.shared_experts."
        yield same(shared + "gate_proj.weight", blk + "ffn_gate_shexp.weight", inner, hidden)
        yield same(shared + "up_proj.weight", blk + "ffn_up_shexp.weight", inner, hidden)
        yield same(shared + "down_proj.weight", blk + "ffn_down_shexp.weight", hidden, inner)


def _split_kv_b(hf: str, blk: str, heads: int, nope: int, value: int, rank: int) -> Iterator[Mapped]:
    """kv_b_proj [heads * (nope + value), rank] -> attn_k_b [heads, rank, nope] and attn_v_b [heads, value, rank]."""
    each = nope + value
    keys = tuple(Part(hf, h * each, nope, rank, transposed=True) for h in range(heads))
    values = tuple(Part(hf, h * each + nope, value, rank) for h in range(heads))
    stored = {hf: (heads * each, rank)}
    yield Mapped(Target(blk + "attn_k_b.weight", (heads, rank, nope), keys, False), stored)
    yield Mapped(Target(blk + "attn_v_b.weight", (heads, value, rank), values, False), stored)


def vision_targets(c: VisionConfig, text_hidden: int) -> Iterator[Mapped]:
    """The tensors of the vision tower and the projector, in the order of a converter's file."""
    hidden, inner, patch, side = c.hidden_size, c.intermediate_size, c.patch_size, c.position_side

    def both(hf: str, name: str, *shape: int) -> Iterator[Mapped]:
        yield _whole(hf + ".weight", name + ".weight", shape, True)
        yield _whole(hf + ".bias", name + ".bias", (shape[0],), True)

    yield from both(TOWER + "patch_embed.proj", "v.patch_embd", hidden, 3, patch, patch)
    table = TOWER + "patch_embed.pos_emb.weight"
    yield _whole(table, "v.position_embd.weight", (side * side, hidden), True, (side, side, hidden))
    for i in range(c.num_hidden_layers):
        hf, blk = f"{TOWER}encoder.blocks.{i}.", f"v.blk.{i}."
        for k, name in enumerate(("attn_q", "attn_k", "attn_v")):
            yield from _third(hf + "wqkv", blk + name, k, hidden)
        yield from both(hf + "wo", blk + "attn_out", hidden, hidden)
        yield from both(hf + "norm0", blk + "ln1", hidden)
        yield from both(hf + "norm1", blk + "ln2", hidden)
        yield from both(hf + "mlp.fc0", blk + "ffn_up", inner, hidden)
        yield from both(hf + "mlp.fc1", blk + "ffn_down", hidden, inner)
    yield from both(TOWER + "encoder.final_layernorm", "v.post_ln", hidden)
    merged = hidden * c.merge * c.merge
    yield from both(PROJECTOR + "pre_norm", "mm.input_norm", hidden)
    yield from both(PROJECTOR + "linear_1", "mm.1", merged, merged)
    yield from both(PROJECTOR + "linear_2", "mm.2", text_hidden, merged)


def _third(hf: str, name: str, k: int, hidden: int) -> Iterator[Mapped]:
    """The k-th third of wqkv: queries, keys, values."""
    weight, bias = hf + ".weight", hf + ".bias"
    part = Part(weight, k * hidden, hidden, hidden)
    yield Mapped(Target(name + ".weight", (hidden, hidden), (part,), True), {weight: (3 * hidden, hidden)})
    yield Mapped(Target(name + ".bias", (hidden,), (Part(bias, k, 1, hidden),), True), {bias: (3 * hidden,)})
