"""Multi-head latent attention, told twice: expanded (keys and values of every head) and absorbed (in the latent space).

A cached position is a latent c [kv_lora_rank] and one rotated key k_pe [qk_rope_head_dim] for all heads.
"""

import numpy as np

from .functions import rms_norm, rotate_pairs, softmax

KV_A_NORM_EPS = 1e-6
"""Not the model's rms_norm_eps: the default of the class, which no config or GGUF key carries."""


def rope_angles(positions, dims, theta, scaling=None):
    """[n, dims / 2]. scaling: config's rope_scaling; Kimi-VL has none."""
    freqs = theta ** (-2.0 * np.arange(dims // 2) / dims)
    if scaling is not None and scaling["type"] == "linear":
        freqs = freqs / scaling["factor"]
    if scaling is not None and scaling["type"] == "yarn":

        def turning(rotations):  # the pair that turns so often within the original context
            context = scaling["original_max_position_embeddings"]
            return dims * np.log(context / (rotations * 2 * np.pi)) / (2 * np.log(theta))

        low = max(np.floor(turning(scaling["beta_fast"])), 0)
        high = min(np.ceil(turning(scaling["beta_slow"])), dims - 1)
        slow = np.clip((np.arange(dims // 2) - low) / max(high - low, 0.001), 0, 1)
        freqs = freqs / scaling["factor"] * slow + freqs * (1 - slow)
    return positions[:, None] * freqs


def softmax_scale(c):
    """Of the scores; YaRN with mscale_all_dim sharpens them (DeepSeek's form of it)."""
    scale = (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5
    scaling = c.get("rope_scaling")
    if scaling is not None and scaling["type"] == "yarn":
        scale *= (0.1 * scaling["mscale_all_dim"] * np.log(scaling["factor"]) + 1) ** 2
    return scale


def attention(x, past, w, prefix, c, absorbed):
    """x: [n, hidden_size], normed. past: (c [m, kv_lora_rank], k_pe [m, rope]) of the positions before.

    Returns the output [n, hidden_size] and the cache with the new positions. c: config["text"].
    """
    n, heads, rank = len(x), c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, v_dim = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    m = len(past[0])
    angles = rope_angles(np.arange(m, m + n), rope, c["rope_theta"], c.get("rope_scaling"))

    q = (x @ w[prefix + "q_proj.weight"].T).reshape(n, heads, nope + rope)
    q_nope, q_pe = q[..., :nope], rotate_pairs(q[..., nope:], angles[:, None])
    down = x @ w[prefix + "kv_a_proj_with_mqa.weight"].T
    latent = rms_norm(down[:, :rank], w[prefix + "kv_a_layernorm.weight"], KV_A_NORM_EPS)
    latents = np.concatenate([past[0], latent])  # [m + n, rank]
    k_pe = np.concatenate([past[1], rotate_pairs(down[:, rank:], angles)])  # [m + n, rope]

    kv_b = w[prefix + "kv_b_proj.weight"].reshape(heads, nope + v_dim, rank)
    k_b, v_b = kv_b[:, :nope], kv_b[:, nope:]
    if absorbed:
        q_latent = np.einsum("qhn,hnr->hqr", q_nope, k_b)
        scores = q_latent @ latents.T
    else:
        keys = np.einsum("sr,hnr->hns", latents, k_b)
        scores = q_nope.transpose(1, 0, 2) @ keys
    scores = (scores + q_pe.transpose(1, 0, 2) @ k_pe.T) * softmax_scale(c)
    visible = np.arange(m + n)[None] <= np.arange(m, m + n)[:, None]
    p = softmax(np.where(visible, scores, -np.inf))  # [heads, n, m + n]
    if absorbed:
        out = np.einsum("hqr,hvr->qhv", p @ latents, v_b)
    else:
        out = np.einsum("hqs,shv->qhv", p, np.einsum("sr,hvr->shv", latents, v_b), optimize=True)
    return out.reshape(n, heads * v_dim) @ w[prefix + "o_proj.weight"].T, (latents, k_pe)
