"""The latent cache in bytes (q8_0): its kernels against twins in NumPy, and what sessions that keep it answer."""

from __future__ import annotations

import numpy as np
import pytest
from engine_support import check_cache_type, decode, open_engine, prefill
from kernel_support import assert_bits_equal, assert_within, isas_with_own
from numpy.typing import NDArray
from vectors import assert_near, assert_same_bits

from kimi_vl_cpp import _core
from kimi_vl_cpp._core import PAGE_POSITIONS, PagePool, Session
from kimi_vl_cpp.testing import ROWS_OF_256

ops = _core.ops
LANES = 16
F64 = NDArray[np.float64]
Q8_CACHE = 4e-2  # of the logits; the weights of the tiny model are random, its attention is sharp
every_isa = pytest.mark.parametrize("isa", isas_with_own("float", "attention"))


class Keys:
    """Random keys as bytes and halves, and their exact values."""

    def __init__(self, n_keys: int, n: int, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.bytes = rng.integers(1, 256, (n_keys, n)).astype(np.uint8)
        halves = (rng.uniform(0.2, 1, (n_keys, n // 32)) / 127).astype(np.float16)
        halves[rng.random(halves.shape) < 0.05] = 0
        self.scales = halves.view(np.uint16)
        self.values = (self.bytes.astype(np.float64) - 128) * np.repeat(halves.astype(np.float64), 32, axis=1)
        self.largest = halves.astype(np.float64)


class Queries:
    def __init__(self, n: int, size: float, seed: int = 2) -> None:
        rng = np.random.default_rng(seed)
        self.q = rng.integers(-127, 128, (LANES, n)).astype(np.int8)
        self.scale = rng.uniform(0.5, 1, (LANES, n // 32)).astype(np.float32) * np.float32(size / 127)
        self.values = self.q.astype(np.float64) * np.repeat(self.scale.astype(np.float64), 32, axis=1)


def attend(isa, queries: Queries, keys: Keys, dv: int, block: int, last=None):
    """The state after all keys, `block` at a time; None where the instruction set decodes rows instead."""
    state = (np.full(LANES, -np.inf, np.float32), np.zeros(LANES, np.float32), np.zeros((LANES, dv), np.float32))
    for at in range(0, len(keys.bytes), block):
        part = slice(at, at + block)
        state = ops.latent_block_q8(
            isa, queries.q, queries.scale, keys.bytes[part], keys.scales[part], dv, at, last, state
        )
        if state is None:
            pytest.skip(f"{isa} decodes the rows")
    return state


def twin(queries: Queries, keys: Keys, dv: int, block: int, last=None) -> tuple[F64, F64]:
    """(output, bound). A weight times its key's scale errs by half a step, 1/255 of the largest of the block."""
    scores = queries.values @ keys.values.T
    if last is not None:
        scores[np.arange(len(keys.values))[None, :] > last[:, None]] = -np.inf
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    bound = np.zeros((LANES, dv))
    for at in range(0, len(keys.values), block):
        part = slice(at, at + block)
        step = p[:, part].max(axis=1)[:, None] * keys.largest[part].max(axis=0)[None] / 255  # [lanes, blocks of 32]
        numbers = np.abs(keys.bytes[part].astype(np.float64) - 128).sum(axis=0)[:dv]
        bound += 0.51 * np.repeat(step, 32, axis=1)[:, :dv] * numbers
    total = p.sum(axis=1, keepdims=True)
    return p @ keys.values[:, :dv] / total, bound / total + 2e-5


@every_isa
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "dv"), [(576 + 64, 512), (64, 28), (128, 128), (192, 65)])
@pytest.mark.parametrize("size", [0.05, 1.0])
def test_attention_over_bytes_agrees_with_softmax(isa, n, dv, causal, size) -> None:
    keys, queries = Keys(203, n), Queries(n, size)
    last = (np.arange(LANES, dtype=np.int32) * 13) % 203 if causal else None
    for block in (1, 6, 64, 128):
        want, bound = twin(queries, keys, dv, block, last)
        _, total, out = attend(isa, queries, keys, dv, block, last)
        assert_within(out / total[:, None], want, bound)


@every_isa
def test_a_lane_over_bytes_does_not_depend_on_its_neighbours(isa) -> None:
    keys, queries, other = Keys(70, 128), Queries(128, 0.2), Queries(128, 3.0, seed=5)
    other.q[3], other.scale[3] = queries.q[3], queries.scale[3]
    for got, want in zip(attend(isa, other, keys, 96, 64), attend(isa, queries, keys, 96, 64), strict=True):
        assert_bits_equal(got[3:4], want[3:4])


@every_isa
def test_a_lane_over_bytes_that_sees_nothing_stays_empty(isa) -> None:
    _, total, out = attend(isa, Queries(64, 1.0), Keys(10, 64), 64, 10, np.full(LANES, -1, np.int32))
    assert not total.any() and not out.any()


@every_isa
@pytest.mark.parametrize("n", [1, 31, 32, 50, 512])
def test_bytes_become_floats(isa, n) -> None:
    keys = Keys(1, 512)
    assert_bits_equal(ops.f32_from_q8(isa, keys.bytes[0], keys.scales[0], n), keys.values[0, :n].astype(np.float32))


# ---- sessions ------------------------------------------------------------------------------------------------------

SHAPES = {
    "full-size heads": dict(
        num_attention_heads=16, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, kv_lora_rank=512
    ),
    "odd sizes": dict(num_attention_heads=3, qk_nope_head_dim=20, v_head_dim=12, kv_lora_rank=28, qk_rope_head_dim=6),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cache_of_bytes_answers_nearly_like_one_of_floats(tiny_model, isa, shape) -> None:
    model = tiny_model(**SHAPES[shape])
    engine = open_engine(model, isa)
    ids = model.random_ids(300)
    want = prefill(engine, [ids], "f32")
    check_cache_type(engine, ids, want, "q8_0", Q8_CACHE)
    exact = open_engine(model, isa, activations="float")
    # Only the cache is rounded now: whole or token by token, it holds the same bytes.
    assert_near(decode(exact, ids[:150], "q8_0"), prefill(exact, [ids[:150]], "q8_0"), 2e-3, "float activations")


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_many_keys_in_splits_over_threads_give_the_same_bits(tiny_model, isa, kv_type) -> None:
    model = tiny_model(seed=3, text_type="Q8_0", **ROWS_OF_256)
    results = []
    for threads in (1, 2, 3):
        engine = open_engine(model, isa, n_threads=threads)
        session = Session(engine, 1500, kv_type)
        session.prefill([model.random_ids(1400)], logits="none")
        rows = []
        for token in model.random_ids(4, seed=9):
            session.decode(int(token))
            rows.append(np.array(session.logits))
        session.truncate(1400)
        session.decode(int(model.random_ids(4, seed=9)[0]))
        assert_same_bits(np.array(session.logits), rows[0], "rewound")
        results.append(np.array(rows))
    for got in results[1:]:
        assert_same_bits(got, results[0], "threads")


def test_a_batch_over_bytes_gives_each_session_the_bits_it_gets_alone(tiny_model, isa) -> None:
    model = tiny_model(seed=3, text_type="Q8_0", **ROWS_OF_256)
    engine = open_engine(model, isa)

    def sessions():
        found = []
        for n in (1, 40, 130):
            session = Session(engine, 256, "q8_0")
            session.prefill([model.random_ids(n, seed=n)], logits="none")
            found.append(session)
        return found

    news = [model.random_ids(n, seed=20 + n) for n in (1, 3, 40)]
    alone = [engine.step([(s, new, "all")])[0] for s, new in zip(sessions(), news, strict=True)]
    together = engine.step([(s, new, "all") for s, new in zip(sessions(), news, strict=True)])
    for got, want in zip(together, alone, strict=True):
        assert_same_bits(got, want)


def test_the_cache_takes_34_bytes_for_32_numbers(tiny_model) -> None:
    engine = open_engine(tiny_model(**SHAPES["full-size heads"]))
    layers = engine.config["num_hidden_layers"]
    assert PagePool(engine, 1 << 24, "q8_0").page_bytes == PAGE_POSITIONS * layers * (512 + 64) // 32 * 34
