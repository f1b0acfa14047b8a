"""What every weight matrix is multiplied with: sums of squares of the columns, and how many rows there were.

The network once more, with a look at the inputs; the names are those of GGUF tensors. Of the two forms of latent
attention this is the absorbed one: k_b is multiplied with the unrotated part of each head's queries, v_b with each
head's weighted mean of the latents. (Expanded, both would be multiplied with all latents, whether attended to or not,
and the columns of k_b as it is stored, transposed, would not be columns of that product at all.)
"""

import numpy as np

from . import mla, moe, moonvit, projector
from .functions import gelu_erf, gelu_tanh, layer_norm, rms_norm, rotate_pairs, silu, softmax


class Sums:
    """sums[name]: [n_matrices, n_cols]; counts[name]: [n_matrices]."""

    def __init__(self):
        self.sums, self.counts = {}, {}

    def see(self, name, x, matrix=0, n_matrices=1):
        """x: [n, n_cols]."""
        self.sums.setdefault(name, np.zeros((n_matrices, x.shape[-1])))[matrix] += (x * x).sum(0)
        self.counts.setdefault(name, np.zeros(n_matrices, np.int64))[matrix] += len(x)


def _swiglu(seen, name, x, parts, matrix=0, n_matrices=1):
    gate, up, down = parts
    seen.see(name.format("gate"), x, matrix, n_matrices)
    seen.see(name.format("up"), x, matrix, n_matrices)
    inner = silu(x @ gate.T) * (x @ up.T)
    seen.see(name.format("down"), inner, matrix, n_matrices)
    return inner @ down.T


def _attention(seen, blk, x, w, prefix, c):
    n, heads, rank = len(x), c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, v_dim = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    angles = mla.rope_angles(np.arange(n), rope, c["rope_theta"], c.get("rope_scaling"))
    seen.see(blk + "attn_q.weight", x)
    seen.see(blk + "attn_kv_a_mqa.weight", x)
    q = (x @ w[prefix + "q_proj.weight"].T).reshape(n, heads, nope + rope)
    down = x @ w[prefix + "kv_a_proj_with_mqa.weight"].T
    latents = rms_norm(down[:, :rank], w[prefix + "kv_a_layernorm.weight"], mla.KV_A_NORM_EPS)
    k_pe = rotate_pairs(down[:, rank:], angles)
    kv_b = w[prefix + "kv_b_proj.weight"].reshape(heads, nope + v_dim, rank)
    visible = np.tril(np.ones((n, n), bool))
    out = np.zeros((n, heads * v_dim))
    for h in range(heads):
        q_nope, q_pe = q[:, h, :nope], rotate_pairs(q[:, h, nope:], angles)
        seen.see(blk + "attn_k_b.weight", q_nope, h, heads)
        scores = (q_nope @ kv_b[h, :nope] @ latents.T + q_pe @ k_pe.T) * mla.softmax_scale(c)
        attended = softmax(np.where(visible, scores, -np.inf)) @ latents
        seen.see(blk + "attn_v_b.weight", attended, h, heads)
        out[:, h * v_dim : (h + 1) * v_dim] = attended @ kv_b[h, nope:].T
    seen.see(blk + "attn_output.weight", out)
    return out @ w[prefix + "o_proj.weight"].T


def text(network, parts, n_logits):
    """A prompt from the beginning. n_logits: of how many last positions the logits are asked for."""
    seen, w, c = Sums(), network.weights, network.text
    h = np.concatenate([network.embed(part) for part in parts])
    for i in range(c["num_hidden_layers"]):
        b, blk = f"language_model.model.layers.{i}.", f"blk.{i}."
        x = rms_norm(h, w[b + "input_layernorm.weight"], c["rms_norm_eps"])
        h = h + _attention(seen, blk, x, w, b + "self_attn.", c)
        x = rms_norm(h, w[b + "post_attention_layernorm.weight"], c["rms_norm_eps"])

        def weights(prefix):
            return [w[f"{prefix}{part}_proj.weight"] for part in ("gate", "up", "down")]

        if i < c["first_k_dense_replace"]:
            h = h + _swiglu(seen, blk + "ffn_{}.weight", x, weights(b + "mlp."))
            continue
        experts, routed, _ = moe.route(x, w, b + "mlp.", c)
        out = np.zeros_like(h)
        for e in range(c["n_routed_experts"]):
            token, slot = np.nonzero(experts == e)
            one = _swiglu(
                seen, blk + "ffn_{}_exps.weight", x[token], weights(f"{b}mlp.experts.{e}."), e, c["n_routed_experts"]
            )
            out[token] += routed[token, slot, None] * one
        if c["n_shared_experts"]:
            out += _swiglu(seen, blk + "ffn_{}_shexp.weight", x, weights(b + "mlp.shared_experts."))
        h = h + out
    last = rms_norm(h[len(h) - n_logits :], w["language_model.model.norm.weight"], c["rms_norm_eps"])
    has_head = "language_model.lm_head.weight" in w
    seen.see("output.weight" if has_head else "token_embd.weight", last)
    return seen


def picture(network, pixels):
    """uint8 [H, W, 3] through tower and projector. The convolution and the position table are not matrices here."""
    seen, w, c = Sums(), network.weights, network.vision
    rows, cols = pixels.shape[0] // c["patch_size"], pixels.shape[1] // c["patch_size"]
    pre = "vision_tower.patch_embed."
    x = moonvit.patches(pixels, c["patch_size"]) @ w[pre + "proj.weight"].reshape(c["hidden_size"], -1).T
    h = x + w[pre + "proj.bias"] + moonvit.position_embedding(w[pre + "pos_emb.weight"], rows, cols)
    heads, hidden = c["num_attention_heads"], c["hidden_size"]
    angles = moonvit.rope_angles(rows, cols, hidden // heads)
    for i in range(c["num_hidden_layers"]):
        b, blk = f"vision_tower.encoder.blocks.{i}.", f"v.blk.{i}."
        x = layer_norm(h, w[b + "norm0.weight"], w[b + "norm0.bias"], moonvit.LAYER_NORM_EPS)
        for part in ("attn_q", "attn_k", "attn_v"):
            seen.see(f"{blk}{part}.weight", x)
        # attention() with the identity in place of wo gives what wo is multiplied with.
        bare = {b + "wo.weight": np.eye(hidden), b + "wo.bias": np.zeros(hidden)}
        attended = moonvit.attention(x, {**w, **bare}, b, heads, angles)
        seen.see(blk + "attn_out.weight", attended)
        h = h + attended @ w[b + "wo.weight"].T + w[b + "wo.bias"]
        x = layer_norm(h, w[b + "norm1.weight"], w[b + "norm1.bias"], moonvit.LAYER_NORM_EPS)
        seen.see(blk + "ffn_up.weight", x)
        inner = gelu_tanh(x @ w[b + "mlp.fc0.weight"].T + w[b + "mlp.fc0.bias"])
        seen.see(blk + "ffn_down.weight", inner)
        h = h + inner @ w[b + "mlp.fc1.weight"].T + w[b + "mlp.fc1.bias"]
    final = "vision_tower.encoder.final_layernorm."
    x = layer_norm(h, w[final + "weight"], w[final + "bias"], moonvit.LAYER_NORM_EPS)
    p = "multi_modal_projector."
    x = layer_norm(
        projector.merge(x, rows, cols), w[p + "pre_norm.weight"], w[p + "pre_norm.bias"], projector.LAYER_NORM_EPS
    )
    x = x.reshape(len(x), -1)
    seen.see("mm.1.weight", x)
    seen.see("mm.2.weight", gelu_erf(x @ w[p + "linear_1.weight"].T + w[p + "linear_1.bias"]))
    return seen
