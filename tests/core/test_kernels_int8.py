"""int8 kernels of every instruction set and format against slow twins in NumPy.

The weights of a twin are those that the panels hold, which are themselves checked bit for bit against the `gguf`
package. Tolerances are the standard bound of a float sum, (number of operations) * 2^-24 * (sum of magnitudes),
with the magnitudes taken before any cancellation inside a group; where all numbers are small integers, nothing is
tolerated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_support import (
    QUANT_TYPES,
    U,
    assert_bits_equal,
    assert_within,
    dequantize,
    isas_with_own,
    random_rows,
    set_scales,
    sizes,
    unpack_rows,
)
from numpy.typing import NDArray

from kimi_vl_cpp import _core
from kimi_vl_cpp.errors import BadRequest

ops = _core.ops
Activations = NDArray[np.void]  # structured blocks of 32: ops.quantize_rows
Q_RANGE = {
    "Q4_0": (-8, 7), "Q4_1": (0, 15), "Q5_0": (-16, 15), "Q5_1": (0, 31), "Q8_0": (-128, 127), "Q2_K": (0, 3),
    "Q3_K": (-4, 3), "Q4_K": (0, 15), "Q5_K": (0, 31), "Q6_K": (-32, 31), "IQ4_NL": (-127, 113), "IQ4_XS": (-127, 113),
    "MXFP4": (-12, 12), "IQ3_XXS": (-62, 62), "IQ3_S": (-15, 15), "IQ2_XXS": (-43, 43), "IQ2_XS": (-43, 43),
    "IQ2_S": (-43, 43), "IQ1_S": (-9, 9), "IQ1_M": (-9, 9), "TQ1_0": (-1, 1), "TQ2_0": (-1, 2),
}  # fmt: skip
# The scale under which all weights are integers, where it is not 1.
UNIT = {"IQ3_XXS": 4, **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M"), 8)}
GROUPS_OF_16 = ("Q2_K", "Q3_K", "Q6_K", "IQ2_XS", "IQ2_S", "IQ1_M")
every_isa = pytest.mark.parametrize("isa", isas_with_own("int8"))
every_type = pytest.mark.parametrize("type_name", QUANT_TYPES)


def lengths(type_name: str) -> list[int]:
    """Row lengths to try: one block, an odd number of blocks, and the model's 1408 = 44 * 32 where it fits."""
    return [32, 96, 1408] if sizes(type_name)[0] == 32 else [256, 768]


def random_x(n: int, k: int, seed: int) -> NDArray[np.float32]:
    """Rows whose groups differ in size by orders of magnitude; one group is all zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, k)) * np.repeat(10.0 ** rng.uniform(-3, 2, (n, k // 32)), 32, axis=1)
    x[0, :32] = 0.0
    return x.astype(np.float32)


def twin(w: NDArray[np.uint8], type_name: str, x: Activations) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(value, bound of the error), both float64 [n_x, n_rows]."""
    k = 32 * x.shape[1]
    q, scale, low = unpack_rows("generic", type_name, w, k)
    n_groups = scale.shape[1]
    group = k // n_groups
    q3, x3 = q.reshape(len(q), n_groups, group), x["q"].astype(np.int64).reshape(-1, n_groups, group)
    x_scale = np.repeat(x["scale"].astype(np.float64), 32, axis=1)[:, ::group]
    dot = np.einsum("rgi,jgi->jrg", q3, x3)
    magnitude = np.einsum("rgi,jgi->jrg", np.abs(q3), np.abs(x3))
    weight = np.abs(scale.astype(np.float64))
    value = np.einsum("jrg,rg,jg->jr", dot, scale.astype(np.float64), x_scale)
    total = np.einsum("jrg,rg,jg->jr", magnitude, weight, x_scale)
    if low is not None:
        low = low.astype(np.float64)
        value -= np.einsum("rg,jg,jg->jr", low, x3.sum(axis=2), x_scale)
        total += np.einsum("rg,jg,jg->jr", np.abs(low), np.abs(x3).sum(axis=2), x_scale)
    return value, (2 * n_groups + 16) * U * total


# ---- quantizing activations ----------------------------------------------------------------------------------------


def quantize_twin(x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    n, k = x.shape
    groups = x.reshape(n, k // 32, 32)
    amax = np.abs(groups).max(axis=2)
    with np.errstate(all="ignore"):
        inverse = np.where(amax > 0, np.float32(127.0) / amax, np.float32(0.0)).astype(np.float32)
        q = np.clip(np.rint(np.nan_to_num(groups * inverse[:, :, None], posinf=127, neginf=-127)), -127, 127)
    scale = amax / np.float32(127.0)
    isum = q.sum(axis=2).astype(np.int32)
    half_isum = q.reshape(n, k // 32, 2, 16).sum(axis=3).astype(np.int32)
    sums = {"sum": scale * isum.astype(np.float32), "half_sum": scale[:, :, None] * half_isum.astype(np.float32)}
    return {"q": q.astype(np.int8), "scale": scale, **sums, "isum": isum, "half_isum": half_isum}


def assert_same_activations(got: Activations, want: dict[str, NDArray[Any]]) -> None:
    assert set(got.dtype.names) == set(want)
    for name, field in want.items():
        if field.dtype == np.float32:
            assert_bits_equal(np.ascontiguousarray(got[name]), field)
        else:
            assert (got[name] == field).all(), f"{name} differs at {np.argwhere(got[name] != field)[0]}"


@every_isa
@pytest.mark.parametrize("k", [32, 96, 1408, 2048])
def test_quantize_row_has_the_bits_of_its_definition(isa: str, k: int) -> None:
    x = random_x(5, k, seed=k)
    assert_same_activations(ops.quantize_rows(isa, x), quantize_twin(x))


@every_isa
def test_quantize_row_rounds_ties_to_even_and_survives_extremes(isa: str) -> None:
    rows = np.zeros((8, 64), np.float32)
    rows[0, :32] = np.arange(32) - 15.5  # with the maximum of 127 below: every value a tie
    rows[0, 31] = 127.0
    rows[1] = -0.0
    rows[2] = 3e38 * np.where(np.arange(64) % 2, 1, -1)
    rows[3, 7], rows[3, 40] = 1e-45, -1e-45  # the smallest subnormals: their inverse is infinite
    rows[4] = 1e-40
    rows[5, 3] = -1e-30
    rows[6] = np.float32(0.3)
    rows[7, 0], rows[7, 1:] = 1e30, 1e-30
    assert_same_activations(ops.quantize_rows(isa, rows), quantize_twin(rows))


@every_isa
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_quantize_row_shows_what_is_not_finite_and_leaves_other_groups_alone(isa: str, poison: float) -> None:
    x = random_x(1, 128, seed=2)
    clean = ops.quantize_rows(isa, x)
    x[0, 40] = poison
    got = ops.quantize_rows(isa, x)
    assert np.abs(got["q"].astype(np.int32)).max() <= 127
    assert not np.isfinite(got["scale"][0, 1]) and not np.isfinite(got["sum"][0, 1])
    others = [0, 2, 3]
    assert (got[0, others] == clean[0, others]).all()
    assert (got["isum"] == got["q"].sum(axis=2, dtype=np.int32)).all()


# ---- panels --------------------------------------------------------------------------------------------------------


@every_isa
@every_type
def test_panel_holds_exactly_the_values_of_the_weights(isa: str, type_name: str) -> None:
    for k in lengths(type_name):
        w = random_rows(type_name, 2 * ops.sizes(isa)["panel_lanes"] - 3, k, seed=k)
        q, scale, low = unpack_rows(isa, type_name, w, k)
        assert Q_RANGE[type_name][0] <= q.min() and q.max() <= Q_RANGE[type_name][1]
        group = k // scale.shape[1]
        assert group == (16 if type_name in GROUPS_OF_16 else 32)
        value = np.repeat(scale, group, axis=1) * q.astype(np.float32)
        if low is not None:
            value = value - np.repeat(low, group, axis=1)
        assert_bits_equal(value, dequantize(type_name, w))


@every_isa
@every_type
def test_panel_fills_missing_rows_with_zeros(isa: str, type_name: str) -> None:
    lanes = ops.sizes(isa)["panel_lanes"]
    k = lengths(type_name)[1]
    w = random_rows(type_name, lanes, k, seed=1)
    full = ops.pack_panel(isa, type_name, w, k)
    for n_rows in range(1, lanes):
        panel = ops.pack_panel(isa, type_name, w[:n_rows], k)
        assert (panel["q"][:, :n_rows] == full["q"][:, :n_rows]).all()
        assert (panel["scale"][:, :n_rows] == full["scale"][:, :n_rows]).all()
        if panel["min"] is not None:
            assert (panel["min"][:, :n_rows] == full["min"][:, :n_rows]).all()
            assert not panel["min"][:, n_rows:].any()
        q = panel["q"].reshape(-1, panel["group"] // 4, lanes, 4).astype(np.float32) - panel["bias"]
        assert not (q * panel["scale"][:, None, :, None])[:, :, n_rows:].any()


# ---- products ------------------------------------------------------------------------------------------------------

PRODUCTS = {"gemv": ops.gemv, "gemm": ops.gemm}
every_product = pytest.mark.parametrize("product", PRODUCTS)


@every_isa
@every_type
@every_product
def test_product_agrees_with_its_twin(isa: str, type_name: str, product: str) -> None:
    for k in lengths(type_name):
        w = random_rows(type_name, 21, k, seed=k + 1)
        x = ops.quantize_rows("generic", random_x(6, k, seed=k + 2))
        value, bound = twin(w, type_name, x)
        assert_within(PRODUCTS[product](isa, type_name, w, x), value, bound)


@every_isa
@every_type
@every_product
def test_integer_part_is_exact(isa: str, type_name: str, product: str) -> None:
    """Scales that are integers, and sums of magnitudes below 2^24: float arithmetic has nothing to round."""
    rng = np.random.default_rng(11)
    k, n_rows = 256, 19
    elems, n_bytes = sizes(type_name)
    blocks = rng.integers(0, 256, (n_rows * k // elems, n_bytes), dtype=np.uint8)
    if type_name == "MXFP4":
        blocks[:, 0] = 128
    else:
        set_scales(type_name, blocks, np.full((len(blocks), 2), UNIT.get(type_name, 1), np.float16))
    w = blocks.reshape(n_rows, -1)
    values = rng.integers(-2, 3, (9, k))
    values[:, ::32] = 127 * rng.choice([-1, 1], (9, k // 32))  # makes every scale exactly 1
    x = ops.quantize_rows(isa, values.astype(np.float32))
    assert (x["q"].reshape(values.shape) == values).all() and (x["scale"] == 1).all()
    weights = dequantize(type_name, w).astype(np.int64)
    assert (np.abs(weights) @ np.abs(values).T).max() < 2**24
    got = PRODUCTS[product](isa, type_name, w, x)
    assert (got == values @ weights.T).all(), f"differs at {np.argwhere(got != values @ weights.T)[0]}"


@every_isa
@every_type
@every_product
def test_output_does_not_depend_on_how_many_rows_and_columns_are_computed(
    isa: str, type_name: str, product: str
) -> None:
    run = PRODUCTS[product]
    lanes = ops.sizes(isa)["panel_lanes"]
    k = lengths(type_name)[1]
    n_rows, n_x = lanes + 5, 35
    w = random_rows(type_name, n_rows, k, seed=5)
    x = ops.quantize_rows(isa, random_x(n_x, k, seed=6))
    whole = run(isa, type_name, w, x)
    for n in [*range(1, 17), 24, 33]:
        assert_bits_equal(run(isa, type_name, w, x[:n]), whole[:n])
    for j in (3, 17, n_x - 1):
        assert_bits_equal(run(isa, type_name, w, x[j : j + 1]), whole[j : j + 1])
    for first, n in [(0, 1), (1, 2), (2, 3), (lanes - 1, 4), (3, lanes), (n_rows - 1, 1)]:
        assert_bits_equal(
            run(isa, type_name, w[first : first + n], x), np.ascontiguousarray(whole[:, first : first + n])
        )


@every_isa
@every_type
def test_gemm_takes_the_rows_that_the_map_names(isa: str, type_name: str) -> None:
    k = lengths(type_name)[1]
    w = random_rows(type_name, 17, k, seed=8)
    x = ops.quantize_rows(isa, random_x(12, k, seed=9))
    whole = ops.gemm(isa, type_name, w, x)
    for rows in ([0], [11, 0, 5], [3, 3, 3, 3, 3, 3, 3, 3, 3], list(range(11, -1, -1)), [7] * 40):
        got = ops.gemm(isa, type_name, w, x, np.array(rows, np.int32))
        assert_bits_equal(got, whole[rows])


@every_isa
@every_type
def test_weights_may_lie_at_odd_addresses_and_strides(isa: str, type_name: str) -> None:
    k = lengths(type_name)[1]
    w = random_rows(type_name, 20, k, seed=10)
    x = ops.quantize_rows(isa, random_x(5, k, seed=11))
    buffer = np.zeros(20 * (w.shape[1] + 3) + 1, np.uint8)
    shifted = buffer[1:].reshape(20, w.shape[1] + 3)
    shifted[:, : w.shape[1]] = w
    shifted[:, w.shape[1] :] = 0xFF
    for run in PRODUCTS.values():
        assert_bits_equal(run(isa, type_name, shifted, x), run(isa, type_name, w, x))


@every_isa
@every_type
@every_product
def test_extreme_bytes_and_activations(isa: str, type_name: str, product: str) -> None:
    """All quants at an end of their range against activations of ±127: where narrow accumulators would saturate."""
    k = lengths(type_name)[1]
    elems, n_bytes = sizes(type_name)
    rows = []
    for byte in (0x00, 0x80, 0xFF, 0x7F, 0xF0, 0x0F, 0x88):
        blocks = np.full((k // elems, n_bytes), byte, np.uint8)
        if type_name == "MXFP4":
            blocks[:, 0] = 120
        else:
            set_scales(type_name, blocks, np.full((len(blocks), 2), 0.01, np.float16))
        rows.append(blocks.reshape(-1))
    w = np.stack(rows)
    signs = np.ones((4, k), np.float32)
    signs[1] = -1
    signs[2, ::2] = -1
    signs[3, 1::4] = -1
    x = ops.quantize_rows(isa, signs * np.float32(5.0))
    assert (np.abs(x["q"].astype(np.int32)) == 127).all()
    value, bound = twin(w, type_name, x)
    assert_within(PRODUCTS[product](isa, type_name, w, x), value, bound)


@every_isa
@pytest.mark.parametrize("type_name", [t for t in QUANT_TYPES if t != "MXFP4"])
@every_product
def test_scale_that_is_not_a_number_stays_in_its_row(isa: str, type_name: str, product: str) -> None:
    k = lengths(type_name)[1]
    w = random_rows(type_name, 9, k, seed=12)
    x = ops.quantize_rows(isa, random_x(3, k, seed=13))
    whole = PRODUCTS[product](isa, type_name, w, x)
    blocks = w[4].reshape(-1, sizes(type_name)[1]).copy()
    set_scales(type_name, blocks, np.full((len(blocks), 2), np.nan, np.float16))
    w[4] = blocks.reshape(-1)
    got = PRODUCTS[product](isa, type_name, w, x)
    assert np.isnan(got[:, 4]).all()
    others = [r for r in range(9) if r != 4]
    assert_bits_equal(np.ascontiguousarray(got[:, others]), np.ascontiguousarray(whole[:, others]))


# ---- the door ------------------------------------------------------------------------------------------------------


def test_ops_refuse_arguments_that_do_not_fit() -> None:
    x = ops.quantize_rows("generic", np.zeros((2, 256), np.float32))
    w = np.zeros((3, 144), np.uint8)
    assert ops.gemv("generic", "Q4_K", w, x).shape == (2, 3)
    for call in (
        lambda: ops.quantize_rows("generic", np.zeros((2, 31), np.float32)),
        lambda: ops.quantize_rows("generic", np.zeros((2, 32), np.float64)),
        lambda: ops.gemv("generic", "Q4_K", w, x["q"]),
        lambda: ops.gemv("generic", "Q4_K", w[:, :143].copy(), x),
        lambda: ops.gemv("generic", "F16", w, x),
        lambda: ops.gemv("generic", "Q4_K", w[:, ::2], x),
        lambda: ops.gemm("generic", "Q4_K", w, x, np.array([2], np.int32)),
        lambda: ops.pack_panel("generic", "Q4_K", np.zeros((200, 144), np.uint8), 256),
        lambda: ops.gemv("no such set", "Q4_K", w, x),
    ):
        with pytest.raises(BadRequest):
            call()
