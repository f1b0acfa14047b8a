"""Random weights in Hugging Face's layout: activations stay near 1, and routing can be made easy to compare."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .vocabulary import N_SPECIAL

F32Array = NDArray[np.float32]

TEXT, TOWER, PROJECTOR = "language_model.model.", "vision_tower.", "multi_modal_projector."
CLASS_VALUE = np.float32(4)
"""What an embedding holds in the dimension of its routing class."""


def random_weights(config: dict[str, Any], seed: int, wide_routing: bool) -> dict[str, F32Array]:
    """HF name -> float32. The same seed and sizes give the same weights.

    wide_routing: the first dimensions of the residual stream hold a one-hot class of the token, which no layer
    overwrites, and the routers read mainly these, from columns drawn so that the last chosen and the first refused
    expert are far apart and that the correction bias changes the choice. Rounding of weights and activations then picks
    the same experts, and outputs can be compared number by number. Without it routing has near ties.
    """
    draw = _Draw(np.random.default_rng(seed))
    text, vision = config["text"], config["vision"]
    if vision is not None:
        _tower(draw, vision, text["hidden_size"])
    _decoder(draw, text)
    if wide_routing:
        _widen_routing(draw, text)
    return draw.weights


class _Draw:
    """Draws named weights in order."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.weights: dict[str, F32Array] = {}

    def normal(self, *shape: int) -> F32Array:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def linear(self, name: str, rows: int, cols: int, gain: float = 1.0) -> None:
        """Outputs of standard deviation `gain` for inputs of 1."""
        self.weights[name] = self.normal(rows, cols) * np.float32(gain / np.sqrt(cols))

    def vector(self, name: str, n: int, mean: float, deviation: float) -> None:
        self.weights[name] = np.float32(mean) + np.float32(deviation) * self.normal(n)

    def norm(self, name: str, n: int) -> None:
        self.vector(name + ".weight", n, 1, 0.1)
        self.vector(name + ".bias", n, 0, 0.1)


def _tower(draw: _Draw, v: dict[str, Any], text_hidden: int) -> None:
    hidden, inner, patch, side = v["hidden_size"], v["intermediate_size"], v["patch_size"], v["position_side"]
    pre = TOWER + "patch_embed."
    patch_gain = np.float32(2 / np.sqrt(3 * patch * patch))
    draw.weights[pre + "proj.weight"] = draw.normal(hidden, 3, patch, patch) * patch_gain
    draw.vector(pre + "proj.bias", hidden, 0, 0.1)
    draw.weights[pre + "pos_emb.weight"] = draw.normal(side, side, hidden) * np.float32(0.7)
    for i in range(v["num_hidden_layers"]):
        block = f"{TOWER}encoder.blocks.{i}."
        for name in ("norm0", "norm1"):
            draw.norm(block + name, hidden)
        shapes = (("wqkv", 3 * hidden, hidden), ("wo", hidden, hidden))
        for name, rows, cols in (*shapes, ("mlp.fc0", inner, hidden), ("mlp.fc1", hidden, inner)):
            draw.linear(f"{block}{name}.weight", rows, cols, 1.3 if name == "wqkv" else 1)
            draw.vector(f"{block}{name}.bias", rows, 0, 0.1)
    draw.norm(TOWER + "encoder.final_layernorm", hidden)
    draw.norm(PROJECTOR + "pre_norm", hidden)
    for name, rows, gain in (("linear_1", 4 * hidden, 1.2), ("linear_2", text_hidden, 1.5)):
        draw.linear(f"{PROJECTOR}{name}.weight", rows, 4 * hidden, gain)
        draw.vector(f"{PROJECTOR}{name}.bias", rows, 0, 0.1)


def _decoder(draw: _Draw, t: dict[str, Any]) -> None:
    hidden, heads, rank = t["hidden_size"], t["num_attention_heads"], t["kv_lora_rank"]
    nope, rope, v_dim = t["qk_nope_head_dim"], t["qk_rope_head_dim"], t["v_head_dim"]
    draw.weights[TEXT + "embed_tokens.weight"] = draw.normal(t["vocab_size"], hidden)
    for i in range(t["num_hidden_layers"]):
        layer = f"{TEXT}layers.{i}."
        draw.vector(layer + "input_layernorm.weight", hidden, 1, 0.1)
        draw.linear(layer + "self_attn.q_proj.weight", heads * (nope + rope), hidden, 1.5)
        draw.linear(layer + "self_attn.kv_a_proj_with_mqa.weight", rank + rope, hidden)
        draw.vector(layer + "self_attn.kv_a_layernorm.weight", rank, 1, 0.1)
        draw.linear(layer + "self_attn.kv_b_proj.weight", heads * (nope + v_dim), rank, 1.2)
        draw.linear(layer + "self_attn.o_proj.weight", hidden, heads * v_dim)
        draw.vector(layer + "post_attention_layernorm.weight", hidden, 1, 0.1)
        if i < t["first_k_dense_replace"]:
            _swiglu(draw, layer + "mlp.", t["intermediate_size"], hidden, 1.5)
            continue
        draw.linear(layer + "mlp.gate.weight", t["n_routed_experts"], hidden, 1.5)
        draw.vector(layer + "mlp.gate.e_score_correction_bias", t["n_routed_experts"], 0, 0.2)
        for e in range(t["n_routed_experts"]):
            _swiglu(draw, f"{layer}mlp.experts.{e}.", t["moe_intermediate_size"], hidden, 1.2)
        if t["n_shared_experts"]:
            inner = t["n_shared_experts"] * t["moe_intermediate_size"]
            _swiglu(draw, layer + "mlp.shared_experts.", inner, hidden, 1.2)
    draw.vector(TEXT + "norm.weight", hidden, 1, 0.1)
    if not t["tie_word_embeddings"]:
        draw.linear("language_model.lm_head.weight", t["vocab_size"], hidden, 2.5)
        # Special tokens are unlikely, so that answers are text and go on.
        draw.weights["language_model.lm_head.weight"][t["vocab_size"] - N_SPECIAL :] *= np.float32(0.25)


def _swiglu(draw: _Draw, prefix: str, inner: int, hidden: int, down_gain: float) -> None:
    draw.linear(prefix + "gate_proj.weight", inner, hidden)
    draw.linear(prefix + "up_proj.weight", inner, hidden)
    draw.linear(prefix + "down_proj.weight", hidden, inner, down_gain)


def _widen_routing(draw: _Draw, t: dict[str, Any]) -> None:
    w, rng, hidden = draw.weights, draw.rng, t["hidden_size"]
    classes = min(16, hidden // 4)
    embedding = w[TEXT + "embed_tokens.weight"]
    # A whole block of 32 holds nothing else, so that zeros stay zeros in types that store a minimum.
    embedding[:, : max(classes, 32 if hidden >= 64 else 0)] = 0
    embedding[np.arange(len(embedding)), rng.integers(0, classes, len(embedding))] = CLASS_VALUE
    if PROJECTOR + "linear_2.weight" in w:  # pictures are one class
        w[PROJECTOR + "linear_2.weight"][:classes] *= np.float32(0.02)
        w[PROJECTOR + "linear_2.bias"][:classes] = 0
        w[PROJECTOR + "linear_2.bias"][3 % classes] = CLASS_VALUE
    for name, weight in w.items():
        if name.startswith(TEXT) and name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[:classes] *= np.float32(0.02)
    n_experts, k = t["n_routed_experts"], t["num_experts_per_tok"]
    for i in range(t["first_k_dense_replace"], t["num_hidden_layers"]):
        layer = f"{TEXT}layers.{i}."
        bias = rng.permutation(np.linspace(-0.25, 0.25, n_experts)).astype(np.float32)
        gate = w[layer + "mlp.gate.weight"] * np.float32(0.05)
        for c in range(classes):
            # A column is read as column * CLASS_VALUE * norm weight / rms; the rms of the residual stream is 1 to 4.
            reach = CLASS_VALUE * w[layer + "post_attention_layernorm.weight"][c]
            gate[:, c] = _routing_column(rng, bias, k, reach, want_change=c % 3 != 0)
        w[layer + "mlp.gate.weight"] = gate
        w[layer + "mlp.gate.e_score_correction_bias"] = bias


def _routing_column(rng: np.random.Generator, bias: F32Array, k: int, reach: np.float32, want_change: bool) -> F32Array:
    """A router column for which the choice of k experts is clear. want_change: and not that of the scores alone."""
    n = len(bias)
    tries = 512
    chosen = np.zeros((tries, n), bool)
    np.put_along_axis(chosen, rng.random((tries, n)).argsort(-1)[:, :k], True, -1)
    # score + bias at least 0.65 where chosen, at most 0.35 elsewhere (at rms 2.5)
    low = np.where(chosen, np.clip(0.65 - bias, 0.06, 0.9), 0.05)
    high = np.where(chosen, 0.95, np.clip(0.35 - bias, 0.1, 0.94))
    score = rng.uniform(low, high)
    columns = np.log(score / (1 - score)) * 2.5 / reach
    rms = np.array([1, 2, 3, 4])[:, None, None]
    scores = 1 / (1 + np.exp(-columns * reach / rms))  # [rms, tries, experts]
    inside, outside = np.where(chosen, scores + bias, np.inf), np.where(chosen, -np.inf, scores + bias)
    margin = (inside.min(-1) - outside.max(-1)).min(0)
    without_bias = np.where(chosen, scores, np.inf).min(-1) - np.where(chosen, -np.inf, scores).max(-1)
    changed = np.where(without_bias.max(0) < 0, margin, -np.inf)
    if want_change and changed.max() > 0.15:
        margin = changed
    return np.asarray(columns[int(margin.argmax())], np.float32)
