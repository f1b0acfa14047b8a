"""Hugging Face's tensors as a GGUF file holds them, and back: names, splits, transposes, stacks, permutations.

Forward when a test model is written; back when its weights are read from what the file really contains. All arrays
are in NumPy's order (slowest dimension first), the reverse of a GGUF file's `ne`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .draw import PROJECTOR, TEXT, TOWER

F32Array = NDArray[np.float32]

LAYOUTS = ("split", "legacy_kv_b", "fused_gate_up")
VISION_LAYOUTS = ("mmproj", "single", "none", "kimik25")

_TEXT_NAMES = {
    TEXT + "embed_tokens.weight": "token_embd.weight",
    TEXT + "norm.weight": "output_norm.weight",
    "language_model.lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
_BLOCK_NAMES = {"wo": "attn_out", "norm0": "ln1", "norm1": "ln2", "mlp.fc0": "ffn_up", "mlp.fc1": "ffn_down"}
_OUTER_NAMES = {
    TOWER + "patch_embed.proj": "v.patch_embd",
    TOWER + "encoder.final_layernorm": "v.post_ln",
    PROJECTOR + "pre_norm": "mm.input_norm",
    PROJECTOR + "linear_1": "mm.1",
    PROJECTOR + "linear_2": "mm.2",
}
_BOTH = (".weight", ".bias")
_EXPERT_PARTS = ("gate", "up", "down")


def permutation_k25(heads: int, head_dim: int) -> NDArray[np.int64]:
    """Old row for each new row of q and k in a kimik25 file (docs/model.md, "Two-dimensional RoPE").

    The pairs of columns come first, then those of rows.
    """
    old = np.arange(heads * head_dim).reshape(heads, head_dim // 4, 2, 2)  # head, frequency, axis, pair
    return old.transpose(0, 2, 1, 3).reshape(-1)


def text_tensors(weights: Mapping[str, F32Array], t: Mapping[str, Any], layout: str) -> dict[str, F32Array]:
    """GGUF name -> float32 array, in file order."""
    out = {gguf: weights[hf] for hf, gguf in _TEXT_NAMES.items() if hf in weights}
    heads, nope, rank = t["num_attention_heads"], t["qk_nope_head_dim"], t["kv_lora_rank"]
    for i in range(t["num_hidden_layers"]):
        hf, blk = f"{TEXT}layers.{i}.", f"blk.{i}."
        out |= {blk + gguf: weights[hf + name] for name, gguf in _LAYER_NAMES.items() if hf + name in weights}
        kv_b = weights[hf + "self_attn.kv_b_proj.weight"]
        if layout == "legacy_kv_b":
            out[blk + "attn_kv_b.weight"] = kv_b
        else:
            per_head = kv_b.reshape(heads, -1, rank)
            out[blk + "attn_k_b.weight"] = per_head[:, :nope].transpose(0, 2, 1)  # [heads, rank, nope]
            out[blk + "attn_v_b.weight"] = per_head[:, nope:]  # [heads, v, rank]
        if i < t["first_k_dense_replace"]:
            continue
        gate, up, down = (
            np.stack([weights[f"{hf}mlp.experts.{e}.{part}_proj.weight"] for e in range(t["n_routed_experts"])])
            for part in _EXPERT_PARTS
        )
        if layout == "fused_gate_up":
            out[blk + "ffn_gate_up_exps.weight"] = np.concatenate([gate, up], 1)
        else:
            out |= {blk + "ffn_gate_exps.weight": gate, blk + "ffn_up_exps.weight": up}
        out[blk + "ffn_down_exps.weight"] = down
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


def text_weights(tensors: Mapping[str, F32Array], t: Mapping[str, Any]) -> dict[str, F32Array]:
    """The reverse of `text_tensors`, for any layout. Tensors that are missing stay missing."""
    out = {hf: tensors[gguf] for hf, gguf in _TEXT_NAMES.items() if gguf in tensors}
    for i in range(t["num_hidden_layers"]):
        hf, blk = f"{TEXT}layers.{i}.", f"blk.{i}."
        out |= {hf + name: tensors[blk + gguf] for name, gguf in _LAYER_NAMES.items() if blk + gguf in tensors}
        if blk + "attn_kv_b.weight" in tensors:
            out[hf + "self_attn.kv_b_proj.weight"] = tensors[blk + "attn_kv_b.weight"]
        elif blk + "attn_k_b.weight" in tensors and blk + "attn_v_b.weight" in tensors:
            k_b, v_b = tensors[blk + "attn_k_b.weight"], tensors[blk + "attn_v_b.weight"]
            kv_b = np.concatenate([k_b.transpose(0, 2, 1), v_b], 1)
            out[hf + "self_attn.kv_b_proj.weight"] = kv_b.reshape(-1, kv_b.shape[-1])
        stacks = {part: tensors.get(f"{blk}ffn_{part}_exps.weight") for part in _EXPERT_PARTS}
        fused = tensors.get(blk + "ffn_gate_up_exps.weight")
        if fused is not None:
            stacks["gate"], stacks["up"] = np.split(fused, 2, axis=1)
        for part, stack in stacks.items():
            if stack is not None:
                out |= {f"{hf}mlp.experts.{e}.{part}_proj.weight": matrix for e, matrix in enumerate(stack)}
    return out


def vision_tensors(weights: Mapping[str, F32Array], v: Mapping[str, Any], kimik25: bool) -> dict[str, F32Array]:
    """GGUF name -> float32 array, in file order."""
    hidden, heads = v["hidden_size"], v["num_attention_heads"]
    out = {gguf + s: weights[hf + s] for hf, gguf in _OUTER_NAMES.items() for s in _BOTH}
    table = weights[TOWER + "patch_embed.pos_emb.weight"]
    out["v.position_embd.weight"] = table if kimik25 else table.reshape(-1, hidden)
    order = permutation_k25(heads, hidden // heads)
    for i in range(v["num_hidden_layers"]):
        hf, blk = f"{TOWER}encoder.blocks.{i}.", f"v.blk.{i}."
        for s in _BOTH:
            q, k, value = np.split(weights[hf + "wqkv" + s], 3)
            if kimik25:
                out[blk + "attn_qkv" + s] = np.concatenate([q[order], k[order], value])
            else:
                out |= {blk + "attn_q" + s: q, blk + "attn_k" + s: k, blk + "attn_v" + s: value}
            out |= {blk + gguf + s: weights[hf + name + s] for name, gguf in _BLOCK_NAMES.items()}
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


def vision_weights(tensors: Mapping[str, F32Array], v: Mapping[str, Any]) -> dict[str, F32Array]:
    """The reverse of `vision_tensors`, for both kinds, and for a joined attn_qkv that is not permuted (the position
    table tells which). Tensors that are missing stay missing."""
    hidden, heads = v["hidden_size"], v["num_attention_heads"]
    out = {hf + s: tensors[gguf + s] for hf, gguf in _OUTER_NAMES.items() for s in _BOTH if gguf + s in tensors}
    if "v.position_embd.weight" in tensors:
        side = v["position_side"]
        out[TOWER + "patch_embed.pos_emb.weight"] = tensors["v.position_embd.weight"].reshape(side, side, hidden)
    back: Any = slice(None)
    if tensors.get("v.position_embd.weight", np.empty(0)).ndim == 3:
        back = permutation_k25(heads, hidden // heads).argsort()
    for i in range(v["num_hidden_layers"]):
        hf, blk = f"{TOWER}encoder.blocks.{i}.", f"v.blk.{i}."
        for s in _BOTH:
            parts = [tensors.get(f"{blk}attn_{part}{s}") for part in "qkv"]
            if blk + "attn_qkv" + s in tensors:
                q, k, value = np.split(tensors[blk + "attn_qkv" + s], 3)
                parts = [q[back], k[back], value]
            if all(part is not None for part in parts):
                out[hf + "wqkv" + s] = np.concatenate([part for part in parts if part is not None])
            out |= {hf + name + s: tensors[blk + g + s] for name, g in _BLOCK_NAMES.items() if blk + g + s in tensors}
    return out
