"""Reproducibility: the same bits in any batch and with any threads, chunks that agree, timelines that rewind."""

from __future__ import annotations

import numpy as np
import pytest
from engine_support import FLOAT, open_engine, prefill
from vectors import assert_near, assert_same_bits

from kimi_vl_cpp import BadRequest, ContextFull
from kimi_vl_cpp._core import PAGE_POSITIONS, PagePool, Session
from kimi_vl_cpp.testing import ROWS_OF_256

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q4_K_M", "Q6_K", "Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "MXFP4")


def model_of(tiny_model, type_name):
    return tiny_model(seed=3, text_type=type_name, vision_type="Q8_0", **ROWS_OF_256)


def session_after(engine, ids, kv_type="auto"):
    session = Session(engine, 128, kv_type)
    session.prefill([ids], logits="none")
    return session


@pytest.mark.parametrize("type_name", TYPES)
def test_a_batch_gives_each_session_the_bits_it_gets_alone(tiny_model, isa, type_name):
    model = model_of(tiny_model, type_name)
    engine = open_engine(model, isa)
    pasts = [1, 30, 7, 64, 2, 45, 3, 3]
    # One token, a few, many, embeddings, no logits; two sessions with the same past.
    news = [model.random_ids(n, seed=20 + i) for i, n in enumerate((1, 1, 3, 1, 40, 1, 6, 6))]
    news[6] = np.random.default_rng(0).standard_normal((6, 256), dtype=np.float32)
    wants = ["last", "last", "all", "last", "all", "none", "all", "last"]

    def sessions():
        return [session_after(engine, model.random_ids(n, seed=n)) for n in pasts]

    alone = [engine.step([(s, new, want)])[0] for s, new, want in zip(sessions(), news, wants, strict=True)]
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 4, 1, 0], [3, 1], [5, 6]):
        fresh = sessions()
        batch = engine.step([(fresh[i], news[i], wants[i]) for i in order])
        for i, got in zip(order, batch, strict=True):
            if wants[i] == "none":
                assert got is None
            else:
                assert_same_bits(got, alone[i], f"session {i} of {order}")
            assert fresh[i].n_past == pasts[i] + len(news[i])


@pytest.mark.parametrize("type_name", TYPES)
def test_decoding_together_gives_the_ids_of_decoding_alone(tiny_model, isa, type_name):
    """Several steps, so that a difference in the caches would show."""
    model = model_of(tiny_model, type_name)
    engine = open_engine(model, isa)
    starts = [model.random_ids(n, seed=n) for n in (5, 17, 33)]
    alone = []
    for start in starts:
        session = Session(engine, 128)
        logits, rows = session.prefill([start]), []
        for _ in range(6):
            session.decode(int(logits.argmax()))
            logits = session.logits
            rows.append(logits)
        alone.append(np.stack(rows))
    together = [Session(engine, 128) for _ in starts]
    logits = [session.prefill([start]) for session, start in zip(together, starts, strict=True)]
    for i in range(6):
        tokens = [np.array([row.argmax()], np.int32) for row in logits]
        logits = engine.step([(s, token, "last") for s, token in zip(together, tokens, strict=True)])
        for k, row in enumerate(logits):
            assert_same_bits(row, alone[k][i], f"session {k}, step {i}")


@pytest.mark.parametrize("type_name", TYPES)
def test_threads_do_not_change_a_bit(tiny_model, isa, type_name):
    model = model_of(tiny_model, type_name)
    ids, pixels = model.random_ids(70), model.random_picture(84, 140)
    results = []
    for n_threads in (1, 2, 3):
        engine = open_engine(model, isa, n_threads=n_threads)
        session = Session(engine, 128)
        picture = engine.encode_image(pixels)
        logits = session.prefill([ids, picture], logits="all")
        session.decode(5)
        results.append((engine.vision_tower(pixels), picture, logits, session.logits))
    for other in results[1:]:
        for got, want, what in zip(other, results[0], ("tower", "projector", "prefill", "decode"), strict=True):
            assert_same_bits(got, want, what)


def test_the_same_call_twice_gives_the_same_bits(tiny_model, isa):
    model = model_of(tiny_model, "Q4_K_M")
    engine = open_engine(model, isa)
    ids = model.random_ids(70)
    assert_same_bits(prefill(engine, [ids]), prefill(engine, [ids]))


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 31, 89])
def test_chunks_agree(tiny_model, isa, chunk):
    model = tiny_model(num_attention_heads=3, qk_nope_head_dim=20, v_head_dim=12)
    engine = open_engine(model, isa)
    parts = [model.random_ids(40), engine.encode_image(model.random_picture(84, 140)), model.random_ids(35, seed=1)]
    whole = prefill(engine, parts)
    assert_near(prefill(engine, parts, chunk=chunk), whole, FLOAT)
    session = Session(engine, 128, "f32")
    last = session.prefill(parts, logits="last", chunk=chunk)
    assert_near(last, whole[-1], FLOAT)
    assert_same_bits(session.logits, last)


@pytest.mark.parametrize(("text_type", "kv_type"), [("F32", "f32"), ("Q8_0", "f16"), ("Q8_0", "q8_0")])
@pytest.mark.parametrize("n", [1, 3, 40, 200])
def test_the_last_logits_alone_are_the_last_of_all(tiny_model, isa, text_type, kv_type, n):
    """The last layer skips rows that nobody asks logits of; neither the others nor the cache may notice."""
    model = tiny_model(text_type=text_type, **ROWS_OF_256)
    engine = open_engine(model, isa)
    ids, next_token = model.random_ids(n), int(model.random_ids(1, seed=5)[0])
    results = []
    for logits in ("all", "last", "none"):
        session = Session(engine, n + 2, kv_type)
        got = session.prefill([ids], logits=logits)
        if logits != "none":
            assert_same_bits(got if logits == "last" else got[-1], session.logits)
            results.append(np.array(session.logits))
        session.decode(next_token)
        results.append(np.array(session.logits))
    assert_near(results[2], results[0], FLOAT, "last")  # the output matrix itself is multiplied otherwise for few rows
    assert_same_bits(results[3], results[1], "after last")
    assert_same_bits(results[4], results[1], "after none")


def test_sessions_of_a_batch_may_want_different_logits(tiny_model, isa):
    model = tiny_model(text_type="Q8_0", **ROWS_OF_256)
    engine = open_engine(model, isa)
    news = [model.random_ids(n, seed=n) for n in (7, 150, 30, 5)]

    def step(wants):
        return engine.step([(Session(engine, 200, "f32"), new, want) for new, want in zip(news, wants, strict=True)])

    whole = step(["all"] * 4)
    some = step(["last", "all", "none", "last"])
    for i, want in enumerate([whole[0][-1], whole[1], None, whole[3][-1]]):
        if want is not None:
            assert_near(np.squeeze(some[i]), np.squeeze(want), FLOAT, str(i))


def test_parts_are_only_a_spelling_of_the_prompt(tiny_model):
    model = tiny_model()
    engine = open_engine(model)
    ids = model.random_ids(50)
    pieces = [ids[:1], ids[1:1], ids[1:20], ids[20:]]
    assert_same_bits(prefill(engine, pieces), prefill(engine, [ids]))


def test_tokens_as_embeddings_are_the_tokens(tiny_model):
    model = tiny_model()
    engine = open_engine(model)
    ids = model.random_ids(50)
    rows = np.ascontiguousarray(model.tensors["token_embd.weight"][ids])
    assert_same_bits(prefill(engine, [rows]), prefill(engine, [ids]))


@pytest.mark.parametrize("type_name", ["F32", "F16", "Q4_K_M"])
def test_a_rewound_session_is_as_new(tiny_model, isa, type_name):
    model = model_of(tiny_model, type_name)
    engine = open_engine(model, isa)
    ids, wrong = model.random_ids(60), model.random_ids(30, seed=9)
    straight = Session(engine, 128)
    straight.prefill([ids[:40]], logits="none")
    want = straight.prefill([ids[40:]], logits="all")
    session = Session(engine, 128)
    session.prefill([ids[:40]], logits="none")
    session.prefill([wrong], logits="none")
    for token in wrong[:5]:
        session.decode(int(token))
    session.truncate(40)
    assert session.n_past == 40
    assert_same_bits(session.prefill([ids[40:]], logits="all"), want)


def test_a_step_that_does_not_fit_leaves_every_session_as_it_was(tiny_model):
    model = tiny_model()
    engine = open_engine(model)
    full, other = Session(engine, 10), Session(engine, 64)
    full.prefill([model.random_ids(8)], logits="none")
    other.prefill([model.random_ids(8)], logits="none")
    want = engine.step([(session_after(engine, model.random_ids(8)), model.random_ids(5, seed=1), "last")])[0]
    with pytest.raises(ContextFull):
        engine.step([(other, model.random_ids(5, seed=1), "last"), (full, model.random_ids(3), "last")])
    bad = np.array([model.n_vocab], np.int32)
    with pytest.raises(BadRequest):
        engine.step([(other, model.random_ids(5, seed=1), "last"), (full, bad, "last")])
    with pytest.raises(BadRequest):
        engine.step([(other, model.random_ids(1), "last"), (other, model.random_ids(1), "last")])
    assert (full.n_past, other.n_past) == (8, 8)
    assert_same_bits(engine.step([(other, model.random_ids(5, seed=1), "last")])[0], want)
    full.prefill([model.random_ids(2)], logits="none")  # to the brim
    assert full.n_past == full.n_ctx
    with pytest.raises(ContextFull):
        full.decode(1)


def test_the_cache_holds_latents_only(tiny_model):
    model = tiny_model()
    t = model.config["text"]
    values = t["num_hidden_layers"] * (t["kv_lora_rank"] + t["qk_rope_head_dim"])
    engine = open_engine(model)
    for kv_type, size in (("f16", 2), ("f32", 4), ("auto", 4)):  # float32 weights keep a float32 cache
        assert PagePool(engine, 1 << 24, kv_type).page_bytes == PAGE_POSITIONS * values * size
    quantized = open_engine(tiny_model(text_type="Q8_0"))
    assert PagePool(quantized, 1 << 24).page_bytes == PAGE_POSITIONS * values * 2
