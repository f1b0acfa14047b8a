"""The mixture of experts: sigmoid scores, a bias that selects but does not weigh, and shared experts."""

import numpy as np

from .functions import sigmoid, softmax, swiglu


def route(x, w, prefix, c):
    """Experts [n, k], best first; their weights [n, k]; by how much the last of them was preferred to the next [n]."""
    k, n_experts = c["num_experts_per_tok"], c["n_routed_experts"]
    logits = x @ w[prefix + "gate.weight"].T
    scores = softmax(logits) if c.get("scoring_func") == "softmax" else sigmoid(logits)
    choice = scores + w.get(prefix + "gate.e_score_correction_bias", 0)
    order = np.argsort(-choice, -1, kind="stable")
    ranked = np.take_along_axis(choice, order, -1)
    margins = ranked[:, k - 1] - ranked[:, k] if k < n_experts else np.full(len(x), np.inf)
    experts = order[:, :k]
    weights = np.take_along_axis(scores, experts, -1)
    if c["norm_topk_prob"]:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return experts, weights * c["routed_scaling_factor"], margins


def feed_forward(x, w, prefix, c):
    """x: [n, hidden_size], normed. Returns the output and the routing margins [n]. prefix ends in "mlp."."""
    experts, weights, margins = route(x, w, prefix, c)
    out = np.zeros_like(x)
    for e in range(c["n_routed_experts"]):
        token, slot = np.nonzero(experts == e)
        if len(token):
            parts = (w[f"{prefix}experts.{e}.{part}_proj.weight"] for part in ("gate", "up", "down"))
            out[token] += weights[token, slot, None] * swiglu(x[token], *parts)
    if c["n_shared_experts"]:
        out += swiglu(x, *(w[f"{prefix}shared_experts.{part}_proj.weight"] for part in ("gate", "up", "down")))
    return out, margins
