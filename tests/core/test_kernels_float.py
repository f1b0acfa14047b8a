"""Float kernels of every instruction set against twins in NumPy float64.

Bounds are those of the arithmetic: a float sum of n terms errs by at most n * 2^-24 times the sum of the magnitudes
(twice that without fused multiply-add); U below is 2^-24. The vector exponential claims a relative error of 2e-7.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from kernel_support import FLOAT_TYPES, U, assert_bits_equal, assert_within, dequantize, isas_with_own, sizes
from numpy.typing import NDArray

from kimi_vl_cpp import _core
from kimi_vl_cpp.errors import BadRequest

ops = _core.ops
F32 = NDArray[np.float32]
EXP_ERROR = 2e-7
every_isa = pytest.mark.parametrize("isa", isas_with_own("float", "attention", "rows"))


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(type_name: str, n_rows: int, k: int, seed: int) -> NDArray[np.uint8]:
    w = normal(seed, n_rows, k)
    if type_name == "F32":
        return w.view(np.uint8)
    if type_name == "F16":
        return w.astype(np.float16).view(np.uint8)
    return np.ascontiguousarray(w.view(np.uint16)[:, 1::2]).view(np.uint8)  # upper halves


# ---- products ------------------------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("type_name", FLOAT_TYPES)
@pytest.mark.parametrize("k", [1, 7, 64, 129, 1152])
def test_gemv_float_agrees_with_its_twin(isa: str, type_name: str, k: int) -> None:
    w, x = weights(type_name, 11, k, seed=k), normal(k + 1, 5, k)
    exact = dequantize(type_name, w).astype(np.float64)
    got = ops.gemv_float(isa, type_name, w, x)
    assert_within(
        got, x.astype(np.float64) @ exact.T, (2 * k + 8) * U * (np.abs(x).astype(np.float64) @ np.abs(exact).T)
    )


@every_isa
@pytest.mark.parametrize("type_name", FLOAT_TYPES)
def test_gemv_float_does_not_depend_on_the_rows_around_it(isa: str, type_name: str) -> None:
    k = 203
    w, x = weights(type_name, 9, k, seed=1), normal(2, 13, k)
    whole = ops.gemv_float(isa, type_name, w, x)
    for n in range(1, 13):
        assert_bits_equal(ops.gemv_float(isa, type_name, w, x[:n]), whole[:n])
    for first, n in [(0, 1), (3, 2), (1, 7), (8, 1)]:
        got = ops.gemv_float(isa, type_name, w[first : first + n], x)
        assert_bits_equal(got, np.ascontiguousarray(whole[:, first : first + n]))


@every_isa
@pytest.mark.parametrize("type_name", FLOAT_TYPES)
def test_gemv_float_reads_weights_at_odd_addresses_and_strides(isa: str, type_name: str) -> None:
    k = 100
    w, x = weights(type_name, 4, k, seed=1), normal(2, 3, k)
    buffer = np.full(4 * (k * sizes(type_name)[1] + 5) + 1, 0xFF, np.uint8)
    shifted = buffer[1:].reshape(4, -1)
    shifted[:, : w.shape[1]] = w
    assert_bits_equal(ops.gemv_float(isa, type_name, shifted, x), ops.gemv_float(isa, type_name, w, x))


@every_isa
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("k", [1, 5, 64, 192])
def test_gemm_f32_agrees_with_its_twin(isa: str, transposed: bool, k: int) -> None:
    lanes = ops.sizes(isa)["tile_lanes"]
    for m in (1, 2, 5, 6, 7, 12, 13, 31):
        a, b, start = normal(m, m, k), normal(k, k, lanes), normal(3, m, lanes)
        operand = np.ascontiguousarray(a.T) if transposed else a
        want = a.astype(np.float64) @ b.astype(np.float64)
        bound = (2 * k + 2) * U * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))
        assert_within(ops.gemm_f32(isa, operand, b, transposed=transposed), want, bound)
        got = ops.gemm_f32(isa, operand, b, out=start, transposed=transposed)
        assert_within(got, want + start, bound + (2 * k + 2) * U * np.abs(start))


@every_isa
@pytest.mark.parametrize("transposed", [False, True])
def test_gemm_f32_row_does_not_depend_on_the_rows_around_it(isa: str, transposed: bool) -> None:
    k, m = 77, 27
    a, b = normal(1, m, k), normal(2, k, ops.sizes(isa)["tile_lanes"])

    def run(rows: F32) -> F32:
        return ops.gemm_f32(isa, np.ascontiguousarray(rows.T) if transposed else rows, b, transposed=transposed)

    whole = run(a)
    for n in range(1, m):
        assert_bits_equal(run(a[:n]), whole[:n])
        assert_bits_equal(run(a[n:]), whole[n:])


@every_isa
def test_transpose_panel_moves_every_value_and_pads_with_zeros(isa: str) -> None:
    lanes = ops.sizes(isa)["tile_lanes"]
    for n_rows in range(1, lanes + 1):
        for k, ld in [(1, 1), (5, 5), (72, 80)]:
            w = normal(n_rows, n_rows, ld)
            want = np.zeros((k, lanes), np.float32)
            want[:, :n_rows] = w[:, :k].T
            assert_bits_equal(ops.transpose_panel(isa, w, k), want)


# ---- attention -----------------------------------------------------------------------------------------------------


def attend(
    isa: str, q: F32, k1: F32, k2: F32 | None, v: F32, block: int, last: NDArray[np.int32] | None
) -> tuple[F32, ...]:
    """All keys in blocks of `block`; the state after the last."""
    state = None
    for at in range(0, len(k1), block):
        part = slice(at, at + block)
        second = None if k2 is None else k2[part]
        state = ops.attention_block(isa, q, k1[part], second, v[part], key0=at, last_key=last, state=state)
    assert state is not None
    return state


def attention_twin(
    q: F32, k: F32, v: F32, last: NDArray[np.int32] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(output, bound): the error of a score turns into a relative error of its weight."""
    scores = q.astype(np.float64) @ k.astype(np.float64).T
    score_error = (2 * q.shape[1] + 2) * U * (np.abs(q).astype(np.float64) @ np.abs(k).astype(np.float64).T)
    if last is not None:
        hidden = np.arange(len(k))[None, :] > last[:, None]
        scores[hidden] = -np.inf
        score_error[hidden] = 0
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    # Weights and their sum err alike; rescaling happens at most once a block, so len(k) roundings cover all of it. The
    # subtraction of the maximum rounds too, by U of the difference: up to 87 matter, below that e^-87 is no weight.
    relative = 2 * (score_error.max(axis=1) + EXP_ERROR + 90 * U + 3 * len(k) * U)
    return p @ v.astype(np.float64), relative[:, None] * (p @ np.abs(v).astype(np.float64)) + 1e-36


@every_isa
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dk1", "dk2", "dv"), [(72, 0, 72), (64, 16, 64), (5, 3, 7)])
def test_attention_agrees_with_softmax(isa: str, half: bool, causal: bool, dk1: int, dk2: int, dv: int) -> None:
    lanes = ops.sizes(isa)["tile_lanes"] // (2 if half else 1)
    n = 150
    q = normal(1, lanes, dk1 + dk2) * np.float32(2 / math.sqrt(dk1 + dk2))
    k, v = normal(2, n, dk1 + dk2) * np.float32(2), normal(3, n, dv)
    k1, k2 = np.ascontiguousarray(k[:, :dk1]), np.ascontiguousarray(k[:, dk1:]) if dk2 else None
    last = (np.arange(lanes, dtype=np.int32) * 7) % n if causal else None  # lane 0 sees the first key alone
    want, bound = attention_twin(q, k, v, last)
    for block in (1, 17, 64, 128):
        _, total, out = attend(isa, q, k1, k2, v, block, last)
        assert_within(out / total[:, None], want, bound)


@every_isa
def test_attention_survives_large_scores(isa: str) -> None:
    lanes = ops.sizes(isa)["tile_lanes"]
    q, k, v = normal(1, lanes, 8) * np.float32(100), normal(2, 40, 8) * np.float32(100), normal(3, 40, 4)
    want, bound = attention_twin(q, k, v, None)
    for block in (8, 40):
        _, total, out = attend(isa, q, k, None, v, block, None)
        assert (total >= 1 - 1e-5).all()
        assert_within(out / total[:, None], want, bound)


@every_isa
def test_attention_lane_that_sees_no_key_of_a_block_keeps_its_sums(isa: str) -> None:
    lanes = ops.sizes(isa)["tile_lanes"]
    q, k, v = normal(1, lanes, 16), normal(2, 30, 16), normal(3, 30, 8)
    last = np.full(lanes, 9, np.int32)
    last[::2] = 29
    before = attend(isa, q, k[:10], None, v[:10], 10, last)
    after = attend(isa, q, k, None, v, 10, last)
    for old, new in zip(before, after, strict=True):
        assert_bits_equal(np.ascontiguousarray(new[1::2]), np.ascontiguousarray(old[1::2]))
    assert (after[1][::2] != before[1][::2]).all()
    blind = np.full(lanes, -1, np.int32)  # a lane of padding: no key at all
    _, total, out = attend(isa, q, k, None, v, 10, blind)
    assert not total.any() and not out.any()


@every_isa
def test_attention_lane_does_not_depend_on_its_neighbours_nor_on_the_width_of_the_tile(isa: str) -> None:
    lanes = ops.sizes(isa)["tile_lanes"]
    q, k, v = normal(1, lanes, 24), normal(2, 50, 24), normal(3, 50, 24)
    last = np.arange(lanes, dtype=np.int32)
    whole = attend(isa, q, k, None, v, 32, last)
    for part in (slice(0, lanes // 2), slice(lanes // 2, lanes)):
        for narrow, wide in zip(attend(isa, q[part], k, None, v, 32, last[part]), whole, strict=True):
            assert_bits_equal(narrow, wide[part])
    other = normal(9, lanes, 24) * np.float32(30)
    other[3] = q[3]
    for got, want in zip(attend(isa, other, k, None, v, 32, last), whole, strict=True):
        assert_bits_equal(got[3:4], want[3:4])


# ---- rows ----------------------------------------------------------------------------------------------------------

LENGTHS = [1, 3, 16, 33, 576, 2048]


@every_isa
@pytest.mark.parametrize("n", LENGTHS)
def test_rms_norm_agrees_with_its_twin(isa: str, n: int) -> None:
    x, weight = normal(n, n) * np.float32(3), normal(n + 1, n)
    exact = x.astype(np.float64)
    want = exact / np.sqrt((exact**2).mean() + 1e-6) * weight
    # Half the relative error of the sum of squares (n additions), then a handful of roundings.
    assert_within(ops.rms_norm(isa, x, weight, 1e-6), want, (n / 2 + 8) * U * np.abs(want))


@every_isa
@pytest.mark.parametrize("n", LENGTHS)
def test_layer_norm_agrees_with_its_twin(isa: str, n: int) -> None:
    x, weight, bias = normal(n, n) + np.float32(0.5), normal(n + 1, n), normal(n + 2, n)
    exact = x.astype(np.float64)
    centred = exact - exact.mean()
    deviation = math.sqrt((centred**2).mean() + 1e-5)
    want = centred / deviation * weight + bias
    mean_error = (n + 2) * U * np.abs(exact).mean()
    relative = (n / 2 + 8) * U + (mean_error / deviation) ** 2
    bound = np.abs(weight) * (mean_error + relative * np.abs(centred)) / deviation + 2 * U * (
        np.abs(want) + np.abs(bias)
    )
    assert_within(ops.layer_norm(isa, x, weight, bias, 1e-5), want, bound)


@every_isa
def test_norms_of_zeros_are_zeros_and_bias(isa: str) -> None:
    zeros, ones, bias = np.zeros(50, np.float32), np.ones(50, np.float32), normal(1, 50)
    assert_bits_equal(ops.rms_norm(isa, zeros, ones, 1e-6), zeros)
    assert_bits_equal(ops.layer_norm(isa, zeros, ones, bias, 1e-5), bias)


def activations() -> F32:
    """A dense sweep of what networks produce, and magnitudes up to where e^x over- and underflows."""
    sweep = np.linspace(-12, 12, 4001)
    wide = np.linspace(-120, 120, 481)
    tiny = [0.0, -0.0, 1e-8, -1e-8, 1e-30, -1e-30, 1e-40, 1e4, -1e4, 1e18, -1e18]
    return np.concatenate([sweep, wide, tiny]).astype(np.float32)


@every_isa
def test_silu_mul_agrees_with_its_twin(isa: str) -> None:
    gate = activations()
    up = normal(5, gate.size)
    exact = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        want = exact / (1 + np.exp(-exact)) * up
    # The clamp of the exponential at e^88 leaves |x| e^-88 where the truth is smaller still.
    bound = (EXP_ERROR + 6 * U) * np.abs(want) + 1e-38 * np.abs(exact * up) + 1e-44
    assert_within(ops.silu_mul(isa, gate, up), want, bound)


@every_isa
def test_gelu_tanh_agrees_with_its_twin(isa: str) -> None:
    x = activations()
    exact = x.astype(np.float64)
    u = math.sqrt(2 / math.pi) * (exact + 0.044715 * exact**3)
    with np.errstate(over="ignore"):
        want = exact / (1 + np.exp(-2 * u))
    # Five roundings of the exponent 2u become a relative error of as many U times |2u|, where the exponential matters.
    exponent = np.minimum(np.abs(2 * u), 90)
    bound = (EXP_ERROR + 6 * U + 6 * U * exponent * (exact < 4)) * np.abs(want) + 1e-38 * np.abs(exact) + 1e-44
    assert_within(ops.gelu_tanh(isa, x), want, bound)


@every_isa
def test_gelu_erf_agrees_with_its_twin(isa: str) -> None:
    x = activations()
    exact = x.astype(np.float64)
    want = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in exact])
    # erf and the sum 1 + erf err by an ulp or two of numbers up to 2, which the factor x / 2 scales.
    assert_within(ops.gelu_erf(isa, x), want, 6 * U * np.abs(exact) + 1e-44)


@every_isa
def test_rotate_pairs_agrees_with_its_twin(isa: str) -> None:
    for n in (1, 7, 32, 36):
        x, angle = normal(n, 2 * n), np.linspace(0, 7, n)
        cos_sin = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
        a, b = x[0::2].astype(np.float64), x[1::2].astype(np.float64)
        c, s = cos_sin.astype(np.float64).T
        want = np.stack([a * c - b * s, a * s + b * c], axis=1).ravel()
        bound = 3 * U * np.stack([abs(a * c) + abs(b * s), abs(a * s) + abs(b * c)], axis=1).ravel()
        assert_within(ops.rotate_pairs(isa, x, cos_sin), want, bound)


@every_isa
def test_add_scaled_agrees_with_its_twin(isa: str) -> None:
    for n in LENGTHS:
        x, out = normal(n, n), normal(n + 1, n)
        term = x.astype(np.float64) * np.float64(np.float32(0.37))
        assert_within(ops.add_scaled(isa, x, 0.37, out), out + term, 2 * U * (np.abs(out) + np.abs(term)))


@every_isa
def test_element_does_not_depend_on_its_place_in_the_row(isa: str) -> None:
    """The tail of a row sees the same arithmetic as its vectors."""
    x, y = normal(1, 70) * np.float32(4), normal(2, 70)
    functions: list[Callable[[slice], F32]] = [
        lambda at: ops.silu_mul(isa, x[at], y[at]),
        lambda at: ops.gelu_tanh(isa, x[at]),
        lambda at: ops.gelu_erf(isa, x[at]),
        lambda at: ops.add_scaled(isa, x[at], 0.7, y[at]),
        lambda at: ops.f32_from_f16(isa, ops.f16_from_f32(isa, x[at])),
    ]
    for function in functions:
        whole = function(slice(0, 70))
        for first in (0, 1, 5):
            for n in range(1, 40):
                assert_bits_equal(function(slice(first, first + n)), whole[first : first + n])


@every_isa
@pytest.mark.parametrize("n", [5, 64])
def test_not_a_number_is_not_swallowed(isa: str, n: int) -> None:
    x, ones = normal(1, n), np.ones(n, np.float32)
    x[3] = np.nan
    for got in (ops.silu_mul(isa, x, ones), ops.silu_mul(isa, ones, x), ops.gelu_tanh(isa, x), ops.gelu_erf(isa, x)):
        assert (np.isnan(got) == np.isnan(x)).all()
    for got in (ops.rms_norm(isa, x, ones, 1e-6), ops.layer_norm(isa, x, ones, ones, 1e-5)):
        assert np.isnan(got).all()


# ---- half precision ------------------------------------------------------------------------------------------------


@every_isa
def test_every_half_becomes_its_float(isa: str) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    assert_bits_equal(ops.f32_from_f16(isa, bits), bits.view(np.float16).astype(np.float32))


@every_isa
def test_float_becomes_the_nearest_half(isa: str) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    ties = ((halves[1:] + halves[:-1]) / 2).astype(np.float32)  # exact: one more bit
    near = np.concatenate([ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(1e9))])
    random = np.random.default_rng(1).integers(0, 2**32, 50001, dtype=np.uint32).view(np.float32)
    special = np.array([0.0, 65504, 65519.99, 65520, 65536, 1e30, np.inf, 2**-24, 2**-25, 1e-45, np.nan], np.float32)
    x = np.concatenate([near, -near, random, special, -special])
    with np.errstate(all="ignore"):
        want = x.astype(np.float16)
    got = ops.f16_from_f32(isa, x).view(np.float16)
    number = ~np.isnan(want)
    assert (np.isnan(got) == ~number).all()
    differ = np.flatnonzero(got.view(np.uint16)[number] != want.view(np.uint16)[number])
    assert not differ.size, (
        f"{x[number][differ[0]]!r}: got {got[number][differ[0]]!r}, want {want[number][differ[0]]!r}"
    )


def test_float_ops_refuse_arguments_that_do_not_fit() -> None:
    lanes = ops.sizes("generic")["tile_lanes"]
    x = np.zeros(8, np.float32)
    for call in (
        lambda: ops.rms_norm("generic", x, x[:7], 1e-6),
        lambda: ops.silu_mul("generic", x, x.astype(np.float64)),
        lambda: ops.gemm_f32("generic", np.zeros((2, 3), np.float32), np.zeros((3, lanes + 1), np.float32)),
        lambda: ops.transpose_panel("generic", np.zeros((lanes + 1, 4), np.float32), 4),
        lambda: ops.gemv_float("generic", "Q8_0", np.zeros((1, 34), np.uint8), np.zeros((1, 32), np.float32)),
        lambda: ops.attention_block("generic", np.zeros((3, 4), np.float32), x[None, :4], None, x[None]),
        lambda: ops.rms_norm("generic", x[::2], x[::2], 1e-6),
    ):
        with pytest.raises(BadRequest):
            call()
