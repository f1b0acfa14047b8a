"""bf16 kernels against twins in NumPy: inputs are rounded as the kernel rounds them; what is left is the arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from engine_support import check_cache_type, decode, open_engine, prefill
from kernel_support import ISAS, U, assert_bits_equal, assert_within, isas_with_own
from numpy.typing import NDArray
from vectors import assert_near

from kimi_vl_cpp import _core
from kimi_vl_cpp.testing import ROWS_OF_256

ops = _core.ops
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bits = NDArray[np.uint16]
HALF_STEP = 2.0**-8  # half a unit in the last place of bf16, relative
EXP_ERROR = 2e-7
every_conversion = pytest.mark.parametrize("isa", isas_with_own("bf16 conversions"))
every_product = pytest.mark.parametrize("isa", isas_with_own("bf16 products"))
every_attention_over_latents = pytest.mark.parametrize("isa", isas_with_own("bf16 latents"))


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_bits(x: F32) -> Bits:
    """To nearest even. Subnormals of float32 become zeros, as the instruction takes them."""
    bits = np.where(np.abs(x) < 2.0**-126, np.copysign(np.float32(0), x), x).astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def values(bits: Bits) -> F64:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def pairs(bits: Bits) -> Bits:
    """[n, m] -> [(n + 1) / 2, m, 2]."""
    padded = np.concatenate([bits, np.zeros((len(bits) % 2, bits.shape[1]), np.uint16)])
    return np.ascontiguousarray(padded.reshape(-1, 2, bits.shape[1]).transpose(0, 2, 1))


def unpaired(bits: Bits, n: int) -> Bits:
    return bits.transpose(0, 2, 1).reshape(-1, bits.shape[1])[:n]


@pytest.mark.parametrize("isa", ["avx512", "amx"])
def test_what_has_kernels_of_its_own_is_tested(isa: str) -> None:
    if isa not in ISAS:
        pytest.skip(f"no {isa} here")
    assert isa in isas_with_own("bf16 products")


@every_conversion
@pytest.mark.parametrize("n", [1, 15, 16, 31, 32, 33, 64, 577])
def test_floats_are_rounded_to_nearest_even(isa: str, n: int) -> None:
    x = normal(n, n) * np.float32(2.0) ** np.random.default_rng(n).integers(-140, 120, n).astype(np.float32)
    for i, special in enumerate([0x3F808000, 0x3F818000, 0x3F808001, 0x80000000, 0x7F800000, 0xFF800000, 0x00000001]):
        if i < n:
            x[i] = np.array([special], np.uint32).view(np.float32)[0]
    assert np.array_equal(ops.bf16_from_f32(isa, x), to_bits(x))


@every_conversion
@pytest.mark.parametrize(("n_rows", "n_cols"), [(1, 1), (2, 16), (3, 17), (8, 32), (5, 50)])
def test_rows_become_pairs(isa: str, n_rows: int, n_cols: int) -> None:
    x = normal(1, n_rows, n_cols)
    assert np.array_equal(ops.bf16_pairs_from_f32(isa, x, 0.3), pairs(to_bits(x * np.float32(0.3))))


@every_conversion
@pytest.mark.parametrize("type_name", ["F16", "BF16"])
def test_weights_become_pairs_across_the_lanes(isa: str, type_name: str) -> None:
    lanes = ops.sizes(isa)["tile_lanes"]
    for n_rows, k, padding in [(lanes, 32, 0), (lanes, 1152, 0), (lanes - 3, 78, 6), (1, 2, 2), (17, 4304, 0)]:
        x = normal(k, n_rows, k + padding)
        stored = x.astype(np.float16).view(np.uint16) if type_name == "F16" else to_bits(x)
        stored[0, 0] = 1  # a subnormal of either type
        got = ops.pack_bf16(isa, type_name, stored.view(np.uint8), k)
        want = np.zeros((k, lanes), np.uint16)
        bits = to_bits(stored.view(np.float16).astype(np.float32)) if type_name == "F16" else stored
        want[:, :n_rows] = bits[:, :k].T
        assert np.array_equal(got, pairs(want))
    assert ops.pack_bf16(isa, "Q8_0", np.zeros((1, 34), np.uint8), 32) is None


def near_bits(got: Bits, want: F64, bound: F64) -> None:
    """Within the bound of the sum and half a step of the rounding that follows."""
    assert_within(values(got), want, bound + HALF_STEP * (np.abs(want) + bound))


@every_product
@pytest.mark.parametrize("into", ["floats", "rows", "pairs"])
@pytest.mark.parametrize("k", [2, 64, 514])
def test_products_agree_with_numpy(isa: str, into: str, k: int) -> None:
    b = to_bits(normal(2, k, ops.sizes(isa)["tile_lanes"]))
    for m in (1, 2, 5, 11, 12, 13, 30, 128):
        a = to_bits(normal(m, m, k))
        got = ops.gemm_bf16(isa, a, pairs(b), into)
        want, bound = values(a) @ values(b), (k + 2) * U * (np.abs(values(a)) @ np.abs(values(b)))
        if into == "floats":
            assert_within(got, want, bound)
            continue
        if into == "pairs" and m % 2:
            assert not got[-1, :, 1].any()
        near_bits(unpaired(got, m) if into == "pairs" else got, want, bound)


# ---- attention -----------------------------------------------------------------------------------------------------


def twin(q: F64, k: F64, v: F64, last: NDArray[np.int32] | None) -> tuple[F64, F64]:
    """(output, bound): weights are rounded to bf16 for their product with the values, not for their sum."""
    scores = q @ k.T
    score_error = (q.shape[1] + 2) * U * (np.abs(q) @ np.abs(k).T)
    if last is not None:
        hidden = np.arange(len(k))[None, :] > last[:, None]
        scores[hidden], score_error[hidden] = -np.inf, 0
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    relative = HALF_STEP + 2 * (score_error.max(axis=1) + EXP_ERROR + 90 * U + 3 * len(k) * U)
    return p @ v, relative[:, None] * (p @ np.abs(v)) + 1e-36


def empty_state(lanes: int, dv: int) -> tuple[F32, ...]:
    return np.full(lanes, -np.inf, np.float32), np.zeros(lanes, np.float32), np.zeros((dv, lanes), np.float32)


def expanded(isa: str, q: Bits, k: Bits, v: Bits, dk1: int, block: int, last) -> tuple[F32, ...]:
    state = empty_state(len(q), v.shape[1])
    for at in range(0, len(k), block):
        part = slice(at, at + block)
        k1, k2 = np.ascontiguousarray(k[part, :dk1]), np.ascontiguousarray(k[part, dk1:])
        state = ops.attention_block_bf16(isa, pairs(np.ascontiguousarray(q.T)), k1, k2, pairs(v[part]), at, last, state)
    return state


@every_product
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dk1", "dk2", "dv"), [(128, 64, 128), (72, 0, 72), (6, 4, 7)])
def test_attention_agrees_with_softmax(isa: str, causal: bool, dk1: int, dk2: int, dv: int) -> None:
    lanes, n = ops.sizes(isa)["tile_lanes"], 150
    q = to_bits(normal(1, lanes, dk1 + dk2) * np.float32(2 / np.sqrt(dk1 + dk2)))
    k, v = to_bits(normal(2, n, dk1 + dk2) * np.float32(2)), to_bits(normal(3, n, dv))
    last = (np.arange(lanes, dtype=np.int32) * 7) % n if causal else None
    want, bound = twin(values(q), values(k), values(v), last)
    for block in (1, 17, 64, 128):
        _, total, out = expanded(isa, q, k, v, dk1, block, last)
        assert_within(out.T / total[:, None], want, bound)


def absorbed(isa: str, q: Bits, rows: Bits, rank: int, block: int, last) -> tuple[F32, ...]:
    state = empty_state(len(q), rank)
    for at in range(0, len(rows), block):
        state = ops.latent_block_f16(isa, pairs(np.ascontiguousarray(q.T)), rows[at : at + block], at, last, state)
    return state


def latents(n: int, width: int) -> tuple[Bits, F64]:
    """(f16 bits, their values as bf16)."""
    halves = (normal(4, n, width) * np.float32(1.5)).astype(np.float16)
    halves[::7, 0] = np.float16(3e-7)  # subnormal as a half
    return halves.view(np.uint16), values(to_bits(halves.astype(np.float32)))


@every_attention_over_latents
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("rank", "rope"), [(512, 64), (32, 8), (28, 6), (2, 2)])
def test_attention_over_latents_agrees_with_softmax(isa: str, half: bool, causal: bool, rank: int, rope: int) -> None:
    lanes, n, width = ops.sizes(isa)["tile_lanes"] // (2 if half else 1), 203, rank + rope
    q = to_bits(normal(1, lanes, width) * np.float32(2 / np.sqrt(width)))
    rows, numbers = latents(n, width)
    last = (np.arange(lanes, dtype=np.int32) * 13) % n if causal else None
    want, bound = twin(values(q), numbers, numbers[:, :rank], last)
    for block in (1, 6, 17, 64, 128):
        _, total, out = absorbed(isa, q, rows, rank, block, last)
        assert_within(out.T / total[:, None], want, bound)


@every_attention_over_latents
@pytest.mark.parametrize("half", [False, True])
def test_a_lane_does_not_depend_on_its_neighbours(isa: str, half: bool) -> None:
    lanes = ops.sizes(isa)["tile_lanes"] // (2 if half else 1)
    q, other = to_bits(normal(1, lanes, 40)), to_bits(normal(9, lanes, 40) * np.float32(3))
    other[5] = q[5]
    rows, _ = latents(70, 40)
    for got, want in zip(absorbed(isa, other, rows, 32, 64, None), absorbed(isa, q, rows, 32, 64, None), strict=True):
        assert_bits_equal(np.ascontiguousarray(got.T[5:6]), np.ascontiguousarray(want.T[5:6]))


@every_attention_over_latents
def test_half_a_tile_gives_the_bits_of_a_whole_one(isa: str) -> None:
    lanes = ops.sizes(isa)["tile_lanes"]
    q = to_bits(normal(1, lanes, 576) * np.float32(0.1))
    rows, _ = latents(128, 576)
    whole, part = absorbed(isa, q, rows, 512, 128, None), absorbed(isa, q[: lanes // 2], rows, 512, 128, None)
    for got, want in zip(part, whole, strict=True):
        assert_bits_equal(np.ascontiguousarray(got), np.ascontiguousarray(want[..., : lanes // 2]))


@every_attention_over_latents
def test_a_lane_that_sees_nothing_stays_empty(isa: str) -> None:
    lanes = ops.sizes(isa)["tile_lanes"]
    rows, _ = latents(10, 40)
    nothing = np.full(lanes, -1, np.int32)
    _, total, out = absorbed(isa, to_bits(normal(1, lanes, 40)), rows, 32, 10, nothing)
    assert not total.any() and not out.any()


# ---- sessions ------------------------------------------------------------------------------------------------------

SHAPES = {
    "full-size heads": dict(
        num_attention_heads=16, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, kv_lora_rank=512
    ),
    "odd sizes": dict(num_attention_heads=3, qk_nope_head_dim=20, v_head_dim=12, kv_lora_rank=28, qk_rope_head_dim=6),
    "an odd rank": dict(num_attention_heads=3, qk_nope_head_dim=20, v_head_dim=12, kv_lora_rank=27, qk_rope_head_dim=6),
}
SIXTEEN_BITS = (
    4e-2  # of the logits, beside int8 activations; the weights of the tiny model are random, its attention is sharp
)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_in_sixteen_bits_answers_nearly_like_floats(tiny_model, isa, shape) -> None:
    model = tiny_model(text_type="Q8_0", **{**ROWS_OF_256, **SHAPES[shape]})
    engine = open_engine(model, isa)
    ids = model.random_ids(300)
    want = prefill(engine, [ids], "f32")
    check_cache_type(engine, ids, want, "f16", SIXTEEN_BITS)


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_sixteen_bits_are_used_with_bytes_only(tiny_model, activations) -> None:
    """A file of floats, or one that is asked to be, keeps the precision of its cache."""
    model = tiny_model(text_type="F32" if activations == "int8" else "Q8_0", **ROWS_OF_256)
    engine = open_engine(model, "auto", activations=activations)
    ids = model.random_ids(200)
    assert_near(prefill(engine, [ids], "f16"), prefill(engine, [ids], "f32"), 2e-3)
    assert_near(decode(engine, ids, "f16"), prefill(engine, [ids], "f32"), 2e-3)
