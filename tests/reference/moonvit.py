"""MoonViT, the vision tower. n: patches of one picture on a grid of `rows` x `cols`, row by row."""

import numpy as np

from .functions import gelu_tanh, layer_norm, rotate_pairs, softmax

LAYER_NORM_EPS = 1e-5
ROPE_THETA = 10000.0
BICUBIC_A = -0.75


def patches(pixels, patch, mean=0.5, std=0.5):
    """uint8 [H, W, 3] -> [n, 3 * patch * patch] in the order channel, y, x. mean, std: one number, or one a channel."""
    rows, cols = pixels.shape[0] // patch, pixels.shape[1] // patch
    x = (pixels / 255.0 - mean) / std
    return x.reshape(rows, patch, cols, patch, 3).transpose(0, 2, 4, 1, 3).reshape(rows * cols, -1)


def bicubic_taps(n_in, n_out, i):
    """Sources (clamped) and weights of output i: torch's bicubic, align_corners=False, no antialiasing."""
    source = (i + 0.5) * n_in / n_out - 0.5
    first = int(np.floor(source))
    t = source - first

    def near(x):
        return (BICUBIC_A + 2) * x**3 - (BICUBIC_A + 3) * x**2 + 1

    def far(x):
        return BICUBIC_A * (x**3 - 5 * x**2 + 8 * x - 4)

    taps = np.clip(np.arange(first - 1, first + 3), 0, n_in - 1)
    return taps, np.array([far(t + 1), near(t), near(1 - t), far(2 - t)])


def resampling_matrix(n_in, n_out):
    """[n_out, n_in]"""
    matrix = np.zeros((n_out, n_in))
    for i in range(n_out):
        for tap, weight in zip(*bicubic_taps(n_in, n_out, i), strict=True):
            matrix[i, tap] += weight
    return matrix


def position_embedding(table, rows, cols):
    """table: [side, side, hidden] by row, column -> [rows * cols, hidden]."""
    side = table.shape[0]
    if (rows, cols) != (side, side):
        vertical, horizontal = resampling_matrix(side, rows), resampling_matrix(side, cols)
        table = np.einsum("ra,cb,abd->rcd", vertical, horizontal, table, optimize=True)
    return table.reshape(rows * cols, -1)


def rope_angles(rows, cols, head_dim):
    """[n, head_dim / 2]: even pairs turn by the column, odd pairs by the row; frequencies of groups of four dims."""
    freqs = ROPE_THETA ** (-4.0 * np.arange(head_dim // 4) / head_dim)
    row, col = np.divmod(np.arange(rows * cols), cols)
    return np.stack([col[:, None] * freqs, row[:, None] * freqs], -1).reshape(rows * cols, -1)


def split_rope_angles(rows, cols, head_dim):
    """The same for heads permuted as in kimik25 files: the first half by the column, the second by the row."""
    angles = rope_angles(rows, cols, head_dim)
    return np.concatenate([angles[:, 0::2], angles[:, 1::2]], -1)


def attention(x, w, prefix, heads, angles):
    """x: [n, hidden]. Every patch sees every patch."""
    n, hidden = x.shape
    qkv = (x @ w[prefix + "wqkv.weight"].T + w[prefix + "wqkv.bias"]).reshape(n, 3, heads, hidden // heads)
    q, k, v = qkv.transpose(1, 2, 0, 3)  # each [heads, n, head_dim]
    q, k = rotate_pairs(q, angles), rotate_pairs(k, angles)
    p = softmax(q @ k.transpose(0, 2, 1) * (hidden // heads) ** -0.5)
    out = (p @ v).transpose(1, 0, 2).reshape(n, hidden)
    return out @ w[prefix + "wo.weight"].T + w[prefix + "wo.bias"]


def tower(pixels, w, c):
    """uint8 [H, W, 3], H and W multiples of 2 * patch -> [n, hidden]. c: config["vision"]."""
    rows, cols = pixels.shape[0] // c["patch_size"], pixels.shape[1] // c["patch_size"]
    pre = "vision_tower.patch_embed."
    x = patches(pixels, c["patch_size"], np.array(c.get("image_mean", 0.5)), np.array(c.get("image_std", 0.5)))
    x = x @ w[pre + "proj.weight"].reshape(c["hidden_size"], -1).T + w[pre + "proj.bias"]
    h = x + position_embedding(w[pre + "pos_emb.weight"], rows, cols)
    angles = rope_angles(rows, cols, c["hidden_size"] // c["num_attention_heads"])

    def norm(x, name):
        return layer_norm(x, w[name + ".weight"], w[name + ".bias"], c.get("layer_norm_eps", LAYER_NORM_EPS))

    for i in range(c["num_hidden_layers"]):
        b = f"vision_tower.encoder.blocks.{i}."
        h = h + attention(norm(h, b + "norm0"), w, b, c["num_attention_heads"], angles)
        inner = gelu_tanh(norm(h, b + "norm1") @ w[b + "mlp.fc0.weight"].T + w[b + "mlp.fc0.bias"])
        h = h + inner @ w[b + "mlp.fc1.weight"].T + w[b + "mlp.fc1.bias"]
    return norm(h, "vision_tower.encoder.final_layernorm")
