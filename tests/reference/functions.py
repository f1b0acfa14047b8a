"""The functions that several modules use."""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def rms_norm(x, weight, eps):
    """x: [..., n]."""
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * weight


def layer_norm(x, weight, bias, eps):
    """x: [..., n]. Biased variance."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred * centred, -1, keepdims=True) + eps) * weight + bias


def softmax(x):
    """Over the last axis; -inf has weight 0."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def gelu_tanh(x):
    """The tower's."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x):
    """The projector's."""
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)).astype(x.dtype))


def swiglu(x, gate, up, down):
    """x: [n, hidden]; gate, up: [inner, hidden]; down: [hidden, inner]."""
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def rotate_pairs(x, angles):
    """Adjacent pairs (2j, 2j + 1) of x [..., n] by angles [..., n / 2]."""
    cos, sin, a, b = np.cos(angles), np.sin(angles), x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)
