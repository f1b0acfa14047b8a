"""Engine.decode: many sessions in one step, each with its own outcome; drafts that change nothing but the time."""

from __future__ import annotations

import numpy as np
import pytest
from engine_support import open_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import assert_same_bits

from kimi_vl_cpp import BadModelFile, BadRequest, ContextFull, OutOfMemory
from kimi_vl_cpp._core import PAGE_POSITIONS, Engine, PagePool, Sampler, Session
from kimi_vl_cpp.testing import ROWS_OF_256


@pytest.fixture
def engine(tiny_model, isa) -> Engine:
    return open_engine(tiny_model(seed=3, text_type="Q4_K_M", **ROWS_OF_256), isa)


def prompt(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 500, n).astype(np.int32)


def session_after(engine: Engine, n: int, n_ctx: int = 600, pool: PagePool | None = None, seed: int = 0) -> Session:
    session = Session(engine, n_ctx, pool=pool)
    session.prefill([prompt(n, seed)], logits="none")
    return session


def decoded(session: Session, sampler: Sampler, token: int, n: int) -> list[int]:
    """The next n tokens after `token`, one at a time."""
    found = [token]
    for _ in range(n):
        session.decode(found[-1])
        found.append(session.sample(sampler))
    return found[1:]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}])
def test_many_rows_give_the_tokens_and_logits_of_each_alone(engine, options) -> None:
    lengths, n = (1, 5, 100, 127, 128, 130, 300, 511), 12
    want, logits = [], []
    for i, length in enumerate(lengths):
        session = session_after(engine, length, seed=i)
        want.append(decoded(session, Sampler(seed=i, repeat_penalty=1.3, **options), 7, n))
        logits.append(session.logits)
    sessions = [session_after(engine, length, seed=i) for i, length in enumerate(lengths)]
    samplers = [Sampler(seed=i, repeat_penalty=1.3, **options) for i in range(len(lengths))]
    tokens = [[7] for _ in lengths]
    for step in range(n):
        rows = [(s, t[-1], r) for s, t, r in zip(sessions, tokens, samplers, strict=True)]
        for i, token in enumerate(engine.decode(rows[:: 1 - step % 2 * 2])[:: 1 - step % 2 * 2]):
            tokens[i].append(token)
    assert [row[1:] for row in tokens] == want
    for session, expected in zip(sessions, logits, strict=True):
        assert_same_bits(session.logits, expected)


def test_without_a_sampler_the_token_is_appended(engine) -> None:
    one, two = session_after(engine, 20), session_after(engine, 20)
    assert engine.decode([(one, 7, None)]) == [None]
    two.decode(7)
    assert_same_bits(one.logits, two.logits)
    assert engine.decode([]) == []


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_drafts_change_no_token(tiny_model, data) -> None:
    """Drafts right, wrong and partly right, at any temperature, across the borders of pages and splits of keys."""
    engine = open_engine(tiny_model(seed=3, text_type="Q4_K_M", **ROWS_OF_256))
    start = data.draw(st.sampled_from([1, 30, 120, 250, 500]))
    options = {"seed": data.draw(st.integers(0, 99)), "temperature": data.draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))}
    n, plain = 24, session_after(engine, start)
    want = decoded(plain, Sampler(repeat_penalty=1.1, **options), 7, n)
    session, sampler, got = session_after(engine, start), Sampler(repeat_penalty=1.1, **options), []
    neighbour, other = session_after(engine, 40, seed=9), Sampler(seed=1)
    while len(got) < n:
        right = want[len(got) : len(got) + data.draw(st.integers(0, 6))]
        drafts = right + data.draw(st.lists(st.integers(0, 500), max_size=2))
        row = (session, [got[-1] if got else 7, *drafts], sampler)
        new, beside = engine.decode([row, (neighbour, 3, other)])
        assert isinstance(beside, int) and 1 <= len(new) <= 1 + len(drafts)
        assert session.n_past == start + len(got) + len(new)
        got += new
        if len(got) >= len(want) and len(new) > 1:
            break
        if len(new) > len(right):
            continue
        assert len(new) == len(right) + 1 or len(got) > len(want)
    assert got[:n] == want
    plain.truncate(start)
    for token in [7, *got][: len(got)]:
        plain.decode(token)
    assert_same_bits(session.logits, plain.logits)


def test_a_bad_row_has_its_error_and_no_neighbour_does(engine, tiny_model) -> None:
    page = PagePool(engine, 1 << 24).page_bytes
    good, want = session_after(engine, 50), session_after(engine, 50)
    sampler = Sampler(seed=4)
    full = session_after(engine, 64, n_ctx=64)
    pool = PagePool(engine, page)
    starved = session_after(engine, PAGE_POSITIONS, pool=pool)
    foreign = Session(open_engine(tiny_model()), 10)
    closed_engine = open_engine(tiny_model())
    closed = Session(closed_engine, 10)
    closed_engine.close()
    before = starved.n_past
    outcomes = engine.decode(
        [
            (full, 1, Sampler()),
            (good, 1, sampler),
            (starved, 1, Sampler()),
            (good, 1, Sampler()),
            (session_after(engine, 5), -1, Sampler()),
            (foreign, 1, Sampler()),
            (session_after(engine, 5), [], Sampler()),
            (closed, 1, Sampler()),
            (session_after(engine, 5), 1, sampler),
        ]
    )
    kinds = [ContextFull, int, OutOfMemory, *[BadRequest] * 6]
    codes = ["context.full", None, "memory.kv_pages", "request.session", "request.token_id", "request.session"]
    codes += ["request.empty", "engine.closed", "request.session"]
    for outcome, kind, code in zip(outcomes, kinds, codes, strict=True):
        assert isinstance(outcome, kind) and getattr(outcome, "code", None) == code, outcome
    assert (full.n_past, starved.n_past, good.n_past) == (64, before, 51)
    assert decoded(want, Sampler(seed=4), 1, 1) == [outcomes[1]]
    assert_same_bits(good.logits, want.logits)


def test_drafts_without_room_are_left_out(engine) -> None:
    """At the end of the context and of the pool a row with drafts goes as far as one without."""
    want = decoded(session_after(engine, 120), Sampler(seed=1), 7, 8)
    short = session_after(engine, 120, n_ctx=123)
    (new,) = engine.decode([(short, [7, *want[:7]], Sampler(seed=1))])
    assert new == want[:3] and short.n_past == 123
    (error,) = engine.decode([(short, [new[-1], 1], Sampler(seed=1))])
    assert isinstance(error, ContextFull) and short.n_past == 123
    starved = session_after(engine, 127, pool=PagePool(engine, PagePool(engine, 1 << 24).page_bytes))
    want = decoded(session_after(engine, 127), Sampler(seed=1), 7, 1)
    assert engine.decode([(starved, [7, want[0], 3], Sampler(seed=1))]) == [want]
    (error,) = engine.decode([(starved, [want[0], 1], Sampler(seed=1))])
    assert isinstance(error, OutOfMemory) and starved.n_past == 128


def test_logits_that_are_no_numbers_are_the_error_of_their_row(tiny_model) -> None:
    model = tiny_model(text_type="F32")
    engine = open_engine(model)
    good, pool = session_after(engine, 1), PagePool(engine, 1 << 24)
    rows = np.full(pool.page_bytes // PAGE_POSITIONS // 4, np.nan, np.float32)
    poisoned = Session(engine, 20, pool=pool)
    poisoned.adopt([pool.page_from(rows, 1)], 1)
    outcomes = engine.decode([(poisoned, 1, Sampler()), (good, 1, Sampler(temperature=0.0))])
    assert isinstance(outcomes[0], BadModelFile) and outcomes[0].code == "model.not_finite"
    assert isinstance(outcomes[1], int)
    assert poisoned.n_past == 1


def test_rows_are_tuples_of_three(engine) -> None:
    session = session_after(engine, 5)
    for wrong in [(session, 1)], [(1, 1, None)], [(session, "a", None)], [(session, 1, 5)], [(session, 2**40, None)]:
        with pytest.raises((TypeError, RuntimeError)):
            engine.decode(wrong)
    assert session.n_past == 5
