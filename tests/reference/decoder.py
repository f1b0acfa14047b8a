"""The decoder: pre-norm blocks of attention and feed-forward, dense in the first layers, experts in the others."""

import numpy as np

from . import mla, moe
from .functions import rms_norm, swiglu

MODEL = "language_model.model."


def layer(h, i, past, w, c, absorbed):
    """h: [n, hidden_size]. Returns the new h, the layer's cache and its routing margins."""
    b = f"{MODEL}layers.{i}."
    x = rms_norm(h, w[b + "input_layernorm.weight"], c["rms_norm_eps"])
    attended, cache = mla.attention(x, past, w, b + "self_attn.", c, absorbed)
    h = h + attended
    x = rms_norm(h, w[b + "post_attention_layernorm.weight"], c["rms_norm_eps"])
    if i < c["first_k_dense_replace"]:
        out, margins = swiglu(x, *(w[f"{b}mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))), None
    else:
        out, margins = moe.feed_forward(x, w, b + "mlp.", c)
    return h + out, cache, margins


def empty_cache(c, dtype):
    """Per layer the latents and the rotated keys of no positions."""
    return [
        (np.zeros((0, c["kv_lora_rank"]), dtype), np.zeros((0, c["qk_rope_head_dim"]), dtype))
        for _ in range(c["num_hidden_layers"])
    ]


def forward(h, caches, w, c, absorbed):
    """Embeddings [n, hidden_size] after the cached positions -> logits [n, vocab_size], caches, least margins [n]."""
    least = np.full(len(h), np.inf)
    caches = list(caches)
    for i in range(c["num_hidden_layers"]):
        h, caches[i], margins = layer(h, i, caches[i], w, c, absorbed)
        if margins is not None:
            least = np.minimum(least, margins)
    h = rms_norm(h, w[MODEL + "norm.weight"], c["rms_norm_eps"])
    head = w.get("language_model.lm_head.weight")
    return h @ (w[MODEL + "embed_tokens.weight"] if head is None else head).T, caches, least
