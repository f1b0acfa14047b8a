"""Encoding of float32 rows as GGUF blocks, for test files: `quantize`, `dequantize`, `block_of`.

The `gguf` package encodes F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4 and the TQ types and decodes everything. The
others are encoded here by plain rounding: valid blocks whose values lie near the wanted ones, made for tests and not
for quality.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

from .. import _core

F32Array = NDArray[np.float32]
U8Array = NDArray[np.uint8]

TENSOR_TYPES: tuple[str, ...] = tuple(row["name"] for row in _core.formats())
"""Every tensor type that a test model can have: all that the runtime reads."""

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def block_of(type_name: str) -> tuple[int, int]:
    """(elements, bytes) of one block of a type; raises ValueError for a type that test models cannot have."""
    if type_name not in TENSOR_TYPES:
        raise ValueError(f"tensor type {type_name!r}: expected one of {', '.join(TENSOR_TYPES)}")
    elems, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    return int(elems), int(n_bytes)


def quantize(values: NDArray[Any], type_name: str) -> NDArray[Any]:
    """values [..., n] as blocks along the last axis: uint8 [..., bytes of a row], float32 or float16 for those types.

    Raises ValueError when n is not a multiple of the block.
    """
    elems, n_bytes = block_of(type_name)
    x = np.ascontiguousarray(values, np.float32)
    if x.shape[-1] % elems:
        raise ValueError(f"a row of {x.shape[-1]} values cannot be {type_name}: expected a multiple of {elems}")
    encode = _ENCODERS.get(type_name)
    if encode is None:
        return np.ascontiguousarray(quants.quantize(x, GGMLQuantizationType[type_name]))
    blocks = encode(x.reshape(-1, elems))
    assert blocks.shape == (x.size // elems, n_bytes) and blocks.dtype == np.uint8
    return blocks.reshape(*x.shape[:-1], -1)


def dequantize(blocks: NDArray[Any], type_name: str) -> F32Array:
    """What blocks made by `quantize` hold: float32 [..., n], by the `gguf` package's decoders."""
    return np.ascontiguousarray(quants.dequantize(blocks, GGMLQuantizationType[type_name]), np.float32)


# Encoders: float32 [blocks, elems] -> uint8 [blocks, bytes].


def _f16(x: NDArray[Any]) -> U8Array:
    return np.ascontiguousarray(x, "<f2").reshape(len(x), -1).view(np.uint8)


def _rounded_f16(x: NDArray[Any]) -> F32Array:
    return np.asarray(x, np.float16).astype(np.float32)


def _ratio(x: NDArray[Any], scale: NDArray[Any]) -> NDArray[Any]:
    """x / scale, 0 where scale is 0."""
    out = np.zeros(np.broadcast(x, scale).shape, np.float32)
    np.divide(x, scale, out=out, where=scale != 0)
    return out


def _round(x: NDArray[Any], low: int, high: int) -> NDArray[np.int64]:
    return np.asarray(np.clip(np.rint(x), low, high), np.int64)


def _u8(x: NDArray[Any]) -> U8Array:
    return (x & 0xFF).astype(np.uint8)


def _extreme(x: F32Array) -> F32Array:
    """The value of largest magnitude along the last axis, with its sign."""
    return np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]


def _with_minimum(x: F32Array, n_sub: int, q_max: int, scale_max: int) -> tuple[NDArray[np.int64], ...]:
    """Sub-block scales and minima under shared d and dmin: q, scale, minimum as integers, d and dmin as f16 bytes."""
    sub = x.reshape(len(x), n_sub, -1)
    minimum = np.maximum(0, -sub.min(-1))
    scale = np.maximum(0, (sub.max(-1) + minimum) / q_max)
    d, dmin = _rounded_f16(scale.max(-1) / scale_max), _rounded_f16(minimum.max(-1) / scale_max)
    sc = _round(_ratio(scale, d[:, None]), 0, scale_max)
    mn = _round(_ratio(minimum, dmin[:, None]), 0, scale_max)
    steps = _ratio(sub + (dmin[:, None] * mn)[..., None], (d[:, None] * sc)[..., None].astype(np.float32))
    return _round(steps, 0, q_max), sc, mn, _f16(d[:, None]).astype(np.int64), _f16(dmin[:, None]).astype(np.int64)


def _signed(
    x: F32Array, n_sub: int, q_low: int, scale_max: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], U8Array]:
    """Signed scale per sub-block under a shared d: (q in q_low .. -q_low - 1, scale as integers), d as f16 bytes."""
    sub = x.reshape(len(x), n_sub, -1)
    scale = _extreme(sub) / q_low
    d = _rounded_f16(np.abs(scale).max(-1) / scale_max)
    sc = _round(_ratio(scale, d[:, None]), -scale_max, scale_max)
    q = _round(_ratio(sub, (d[:, None] * sc)[..., None].astype(np.float32)), q_low, -q_low - 1)
    return q, sc, _f16(d[:, None])


def _q2_k(x: F32Array) -> U8Array:
    q, sc, mn, d, dmin = _with_minimum(x, 16, 3, 15)
    fields = q.reshape(-1, 2, 4, 32)  # half, bit pair, byte
    qs = sum(fields[:, :, j] << (2 * j) for j in range(4))
    return np.concatenate([_u8(sc | mn << 4), _u8(np.asarray(qs)).reshape(len(x), 64), _u8(d), _u8(dmin)], -1)


def _q3_k(x: F32Array) -> U8Array:
    q, sc, d = _signed(x, 16, -4, 31)
    q, sc = q.reshape(-1, 2, 4, 32) + 4, sc + 32
    qs = sum((q[:, :, j] & 3) << (2 * j) for j in range(4))
    high = sum((q[:, n, j] >> 2) << (4 * n + j) for n in range(2) for j in range(4))
    scales_high = sum((sc[:, 4 * k : 4 * k + 4] >> 4) << (2 * k) for k in range(4))
    scales = np.concatenate([(sc[:, :8] & 15) | (sc[:, 8:] & 15) << 4, np.asarray(scales_high)], -1)
    return np.concatenate([_u8(np.asarray(high)), _u8(np.asarray(qs)).reshape(len(x), 64), _u8(scales), d], -1)


def _scales_k4(sc: NDArray[np.int64], mn: NDArray[np.int64]) -> U8Array:
    """Eight 6-bit scales and minima in 12 bytes."""
    low = [sc[:, :4] | (sc[:, 4:] >> 4) << 6, mn[:, :4] | (mn[:, 4:] >> 4) << 6]
    return _u8(np.concatenate([*low, (sc[:, 4:] & 15) | (mn[:, 4:] & 15) << 4], -1))


def _q4_k(x: F32Array) -> U8Array:
    q, sc, mn, d, dmin = _with_minimum(x, 8, 15, 63)
    qs = _u8(q[:, 0::2] | q[:, 1::2] << 4).reshape(len(x), 128)
    return np.concatenate([_u8(d), _u8(dmin), _scales_k4(sc, mn), qs], -1)


def _q5_k(x: F32Array) -> U8Array:
    q, sc, mn, d, dmin = _with_minimum(x, 8, 31, 63)
    high = sum((q[:, b] >> 4) << b for b in range(8))
    qs = _u8((q[:, 0::2] & 15) | (q[:, 1::2] & 15) << 4).reshape(len(x), 128)
    return np.concatenate([_u8(d), _u8(dmin), _scales_k4(sc, mn), _u8(np.asarray(high)), qs], -1)


def _q6_k(x: F32Array) -> U8Array:
    q, sc, d = _signed(x, 16, -32, 127)
    q = q.reshape(-1, 2, 4, 32) + 32
    ql = np.concatenate([(q[:, :, 0] & 15) | (q[:, :, 2] & 15) << 4, (q[:, :, 1] & 15) | (q[:, :, 3] & 15) << 4], -1)
    qh = sum((q[:, :, j] >> 4) << (2 * j) for j in range(4))
    return np.concatenate([_u8(ql).reshape(len(x), 128), _u8(np.asarray(qh)).reshape(len(x), 64), _u8(sc), d], -1)


def _nearest_iq4(x: NDArray[Any]) -> NDArray[np.int64]:
    """Index of the nearest of IQ4_VALUES."""
    return np.asarray(np.searchsorted((IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2, x), np.int64)


def _iq4_nl(x: F32Array) -> U8Array:
    d = _rounded_f16(_extreme(x) / IQ4_VALUES[0])
    q = _nearest_iq4(_ratio(x, d[:, None]))
    return np.concatenate([_f16(d[:, None]), _u8(q[:, :16] | q[:, 16:] << 4)], -1)


def _iq4_xs(x: F32Array) -> U8Array:
    sub = x.reshape(len(x), 8, 32)
    scale = _extreme(sub) / IQ4_VALUES[0]
    d = _rounded_f16(np.abs(scale).max(-1) / 31)
    sc = _round(_ratio(scale, d[:, None]), -31, 31)
    q = _nearest_iq4(_ratio(sub, (d[:, None] * sc)[..., None].astype(np.float32)))
    sc += 32
    high = np.asarray(sum((sc[:, b] >> 4) << (2 * b) for b in range(8))).astype("<u2").reshape(-1, 1).view(np.uint8)
    low = _u8((sc[:, 0::2] & 15) | (sc[:, 1::2] & 15) << 4)
    qs = _u8(q[:, :, :16] | q[:, :, 16:] << 4).reshape(len(x), 128)
    return np.concatenate([_f16(d[:, None]), high, low, qs], -1)


# The IQ types below 4 bits: vectors of 4 or 8 magnitudes are points of a codebook.


def _bits(x: NDArray[Any], width: int, step: int) -> NDArray[np.int64]:
    """[..., width] integers into one: the i-th at bit i * step."""
    return np.asarray((x.astype(np.int64) << (step * np.arange(width))).sum(-1), np.int64)


def _nearest_points(y: F32Array, grid: F32Array) -> NDArray[np.int64]:
    """Index of the nearest row of grid [n_points, width] for each of y [n, width]."""
    lengths = (grid**2).sum(-1)
    parts = [np.argmin(lengths - 2 * part @ grid.T, -1) for part in np.array_split(y, -(-len(y) // 4096))]
    return np.concatenate(parts)


def _points(
    x: F32Array, codebook: Any, levels: list[float], n_groups: int, even: bool = False, shift: float = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], F32Array]:
    """x [n, 256] as points [n, vectors], a byte of signs for each eight elements [n, 32], level of each group
    [n, n_groups] and d [n]. even: an even number of each eight is negative. shift: points are signed, and moved by
    it."""
    codebook.init_grid()
    grid = codebook.grid.reshape(-1, codebook.grid.shape[-1]).astype(np.float32) + np.float32(shift)
    groups = x.reshape(len(x), n_groups, -1)
    scale = np.abs(groups).max(-1) / grid.max()
    steps = np.array(levels, np.float32)
    d = _rounded_f16(scale.max(-1) / steps[-1])
    level = np.abs(d[:, None, None] * steps - scale[..., None]).argmin(-1)
    y = _ratio(groups, (d[:, None] * steps[level])[..., None]).astype(np.float32).reshape(len(x), 32, 8)
    negative = np.zeros(y.shape, bool) if shift else y < 0
    if even:
        odd = np.asarray(negative.sum(-1) % 2, bool)
        smallest = np.abs(y).argmin(-1)[..., None] == np.arange(8)
        negative ^= odd[..., None] & smallest
    vectors = np.where(negative, -y, y).reshape(-1, grid.shape[-1])
    return _nearest_points(vectors, grid).reshape(len(x), -1), _bits(negative, 8, 1), level, d


def _words(x: NDArray[Any], dtype: str) -> U8Array:
    return np.ascontiguousarray(x.astype(dtype)).reshape(len(x), -1).view(np.uint8)


def _nibbles(level: NDArray[np.int64]) -> U8Array:
    return _u8(level[:, 0::2] | level[:, 1::2] << 4)


_HALVES_OF_ODD = [(2 * s + 1) / 2 for s in range(16)]


def _iq3_xxs(x: F32Array) -> U8Array:
    q, signs, level, d = _points(x, quants.IQ3_XXS, [v / 2 for v in _HALVES_OF_ODD], 8, even=True)
    words = _bits((signs & 127).reshape(-1, 8, 4), 4, 7) | level << 28
    return np.concatenate([_f16(d[:, None]), _u8(q), _words(words, "<u4")], -1)


def _iq3_s(x: F32Array) -> U8Array:
    q, signs, level, d = _points(x, quants.IQ3_S, [2 * v for v in _HALVES_OF_ODD], 8)
    high = _bits((q >> 8).reshape(-1, 8, 8), 8, 1)
    return np.concatenate([_f16(d[:, None]), _u8(q), _u8(high), _u8(signs), _nibbles(level)], -1)


def _iq2_xxs(x: F32Array) -> U8Array:
    q, signs, level, d = _points(x, quants.IQ2_XXS, [v / 4 for v in _HALVES_OF_ODD], 8, even=True)
    words = np.stack([_bits(q.reshape(-1, 8, 4), 4, 8), _bits((signs & 127).reshape(-1, 8, 4), 4, 7) | level << 28], -1)
    return np.concatenate([_f16(d[:, None]), _words(words, "<u4")], -1)


def _iq2_xs(x: F32Array) -> U8Array:
    q, signs, level, d = _points(x, quants.IQ2_XS, [v / 4 for v in _HALVES_OF_ODD], 16, even=True)
    return np.concatenate([_f16(d[:, None]), _words(q | (signs & 127) << 9, "<u2"), _nibbles(level)], -1)


def _iq2_s(x: F32Array) -> U8Array:
    q, signs, level, d = _points(x, quants.IQ2_S, [v / 4 for v in _HALVES_OF_ODD], 16)
    high = _bits((q >> 8).reshape(-1, 8, 4), 4, 2)
    return np.concatenate([_f16(d[:, None]), _u8(q), _u8(signs), _u8(high), _nibbles(level)], -1)


def _iq1_s(x: F32Array) -> U8Array:
    q, _, level, d = _points(x, quants.IQ1_S, [2 * s + 1 for s in range(8)], 8, shift=float(quants.IQ1_S.delta))
    high = _bits((q >> 8).reshape(-1, 8, 4), 4, 3) | level << 12
    return np.concatenate([_f16(d[:, None]), _u8(q), _words(high, "<u2")], -1)


def _iq1_m(x: F32Array) -> U8Array:
    q, _, level, d = _points(x, quants.IQ1_S, [2 * s + 1 for s in range(8)], 16, shift=float(quants.IQ1_S.delta))
    halves = np.asarray(d, "<f2").view("<u2").astype(np.int64)
    scales = _bits(level.reshape(-1, 4, 4), 4, 3) | ((halves[:, None] >> (4 * np.arange(4))) & 15) << 12
    return np.concatenate([_u8(q), _nibbles(q >> 8), _words(scales, "<u2")], -1)


_ENCODERS: dict[str, Callable[[F32Array], U8Array]] = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
}
