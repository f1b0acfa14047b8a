"""From patches to embeddings of the language model: merge 2 x 2, normalise, two linear layers."""

from .functions import gelu_erf, layer_norm

LAYER_NORM_EPS = 1e-5


def merge(x, rows, cols):
    """[rows * cols, d] -> [rows * cols / 4, 4, d]: blocks row by row, and each block row by row."""
    d = x.shape[-1]
    return x.reshape(rows // 2, 2, cols // 2, 2, d).transpose(0, 2, 1, 3, 4).reshape(-1, 4, d)


def project(x, rows, cols, w):
    """The tower's output [rows * cols, vision hidden] -> [rows * cols / 4, hidden_size]."""
    p = "multi_modal_projector."
    x = layer_norm(merge(x, rows, cols), w[p + "pre_norm.weight"], w[p + "pre_norm.bias"], LAYER_NORM_EPS)
    x = x.reshape(len(x), -1)
    x = gelu_erf(x @ w[p + "linear_1.weight"].T + w[p + "linear_1.bias"])
    return x @ w[p + "linear_2.weight"].T + w[p + "linear_2.bias"]
