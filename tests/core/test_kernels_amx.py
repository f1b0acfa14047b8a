"""Products in tiles against a twin in NumPy that adds up in the order of kernels/amx/bf16.cpp, bit by bit.

Whatever cut of rows and columns a product is computed in, the twin is the same: a sum follows from its own numbers. The
bounds of test_kernels_bf16.py hold as well.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_support import ISAS, assert_bits_equal
from numpy.typing import NDArray

from kimi_vl_cpp import _core

ops = _core.ops
F32 = NDArray[np.float32]
Bits = NDArray[np.uint16]
LANES = 32
DEPTH = 32  # numbers that one instruction adds up
pytestmark = pytest.mark.skipif("amx" not in ISAS, reason="no amx here")


def flushed(x: F32) -> F32:
    """Subnormals as zeros of their sign."""
    return np.where(np.abs(x) < 2.0**-126, np.copysign(np.float32(0), x), x).astype(np.float32)


def floats(bits: Bits) -> F32:
    return flushed((bits.astype(np.uint32) << 16).view(np.float32))


def fused(a: F32, b: F32, c: F32) -> F32:
    """a * b + c with one rounding: the product of two bf16 is exact in double."""
    product = a.astype(np.float64) * b
    return flushed((product.astype(np.longdouble) + c).astype(np.float32))


def twin(a: Bits, b: Bits) -> F32:
    """a [m, k] times b [k, n] in the order of the tiles."""
    padding = -a.shape[1] % DEPTH
    left, right = np.pad(floats(a), ((0, 0), (0, padding))), np.pad(floats(b), ((0, padding), (0, 0)))
    total = np.zeros((len(a), b.shape[1]), np.float32)
    for first in range(0, left.shape[1], DEPTH):
        halves = []
        for parity in (0, 1):
            half = np.zeros_like(total)
            for i in range(first + parity, first + DEPTH, 2):
                half = fused(left[:, i, None], right[None, i], half)
            halves.append(half)
        total = flushed(total + flushed(halves[0] + halves[1]))
    return total


def numbers(rng: np.random.Generator, m: int, n: int, spread: int) -> Bits:
    """Normal numbers times powers of two up to `spread` either way; with 130 there are subnormals, of products too."""
    x = rng.standard_normal((m, n)).astype(np.float32)
    scaled = np.ldexp(x, rng.integers(-spread, min(spread, 60) + 1, (m, n))).astype(np.float32)
    return (scaled.view(np.uint32) >> 16).astype(np.uint16)


def in_pairs(bits: Bits) -> Bits:
    return np.ascontiguousarray(bits.reshape(-1, 2, bits.shape[1]).transpose(0, 2, 1))


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 60), st.sampled_from([0, 8, 130]))
def test_a_product_has_the_bits_of_the_stated_order(seed: int, m: int, half_k: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = numbers(rng, m, 2 * half_k, spread), numbers(rng, 2 * half_k, LANES, spread)
    assert_bits_equal(ops.gemm_bf16("amx", a, in_pairs(b), "floats"), twin(a, b))


def test_a_row_has_its_bits_wherever_the_rows_are_cut() -> None:
    rng = np.random.default_rng(1)
    a, b = numbers(rng, 97, 1152, 4), in_pairs(numbers(rng, 1152, LANES, 4))
    whole = {into: ops.gemm_bf16("amx", a, b, into) for into in ("floats", "rows")}
    for first, count in [(0, 1), (3, 15), (5, 16), (7, 17), (31, 33), (64, 32), (96, 1), (1, 96)]:
        for into, want in whole.items():
            got = ops.gemm_bf16("amx", np.ascontiguousarray(a[first : first + count]), b, into)
            assert np.array_equal(got.view(np.uint8), want[first : first + count].view(np.uint8))
    assert np.array_equal(ops.gemm_bf16("amx", a[:96], b, "pairs"), in_pairs(whole["rows"][:96]))


def test_attention_of_a_lane_has_its_bits_whatever_its_neighbours_and_the_keys_that_it_does_not_see() -> None:
    rng = np.random.default_rng(2)
    n, dk, dv = 128, 72, 76
    q, other = numbers(rng, dk, LANES, 1), numbers(rng, dk, LANES, 3)
    other[:, 5] = q[:, 5]
    k, v = numbers(rng, n, dk, 0), numbers(rng, n, dv, 2)
    last = np.full(LANES, 70, np.int32)
    seen: list[F32] = []
    for queries, n_keys in [(q, 71), (q, 72), (other, 71), (other, 97), (q, 128)]:
        empty = np.full(LANES, -np.inf, np.float32), np.zeros(LANES, np.float32), np.zeros((dv, LANES), np.float32)
        values = in_pairs(np.concatenate([v[:n_keys], np.zeros((n_keys % 2, dv), np.uint16)]))
        keys, none = np.ascontiguousarray(k[:n_keys]), np.zeros((n_keys, 0), np.uint16)
        _, total, out = ops.attention_block_bf16("amx", in_pairs(queries), keys, none, values, 0, last, empty)
        seen.append(np.concatenate([total[5:6], out[:, 5]]))
    for state in seen[1:]:
        assert_bits_equal(state, seen[0])
