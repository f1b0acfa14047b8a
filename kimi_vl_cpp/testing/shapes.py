"""The sizes of a test model, with the names of Hugging Face's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT_DEFAULTS: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "kv_lora_rank": 32,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.446,
    "rms_norm_eps": 1e-5,
    "rope_theta": 800000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
"""Of the text model; a keyword of `make_tiny_model` with the same name replaces one."""

VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
    "position_side": 8,
}
"""Of the vision tower; the keyword has the prefix `vision_`. position_side: rows and columns of the position table."""

ROWS_OF_256: dict[str, int] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "kv_lora_rank": 256,
    "num_attention_heads": 4,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 64,
    "vision_hidden_size": 64,
    "vision_intermediate_size": 128,
}
"""Sizes for which K-quants fit: all rows are multiples of 256 but those of attn_k_b, as in the real model, and of the
tower itself. About 3 MB in Q4_K."""

SMALLEST: dict[str, int] = {
    "n_vocab": 512,
    "hidden_size": 16,
    "intermediate_size": 16,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "kv_lora_rank": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
}
"""Sizes for a whole text model below 64 KiB with text_type="F16" and vision="none"."""


def make_config(n_vocab: int, with_vision: bool, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """{"text": {...}, "vision": {...} or None}. Raises ValueError for an unknown name or sizes that do not fit."""
    text, vision = {"vocab_size": n_vocab, **TEXT_DEFAULTS}, dict(VISION_DEFAULTS)
    for name, value in overrides.items():
        target, key = (vision, name[7:]) if name.startswith("vision_") else (text, name)
        if key not in target:
            known = [*TEXT_DEFAULTS, *(f"vision_{key}" for key in VISION_DEFAULTS)]
            raise ValueError(f"unknown size {name!r}: expected one of {', '.join(known)}")
        target[key] = value
    if text["qk_rope_head_dim"] % 2:
        raise ValueError(f"qk_rope_head_dim={text['qk_rope_head_dim']}: expected an even number")
    if text["num_experts_per_tok"] > text["n_routed_experts"]:
        raise ValueError("num_experts_per_tok is more than n_routed_experts")
    if vision["hidden_size"] % (4 * vision["num_attention_heads"]):
        raise ValueError("vision_hidden_size: expected a multiple of 4 for every head (two rotated axes)")
    return {"text": text, "vision": vision if with_vision else None}
