"""The cache in pages: what is shared, what is copied, what is counted, and that no bit depends on it."""

from __future__ import annotations

import numpy as np
import pytest
from engine_support import open_engine
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from vectors import assert_same_bits

from kimi_vl_cpp import BadRequest, OutOfMemory
from kimi_vl_cpp._core import PAGE_POSITIONS, Engine, Page, PagePool, Session
from kimi_vl_cpp.testing import ROWS_OF_256, make_tiny_model

KV_TYPES = ("f16", "q8_0", "f32")


@pytest.fixture
def engine(tiny_model, isa) -> Engine:
    return open_engine(tiny_model(seed=3, text_type="Q8_0", **ROWS_OF_256), isa)


def pool_of(engine: Engine, n_pages: int, kv_type: str = "auto") -> PagePool:
    return PagePool(engine, n_pages * PagePool(engine, 1 << 24, kv_type).page_bytes, kv_type)


def append(session: Session, ids: np.ndarray) -> None:
    """All rows in one form, so that bits follow from the ids alone."""
    if len(ids):
        session.prefill([ids], expanded=np.zeros(len(ids), dtype=bool))


def refusal(session: Session, ids: np.ndarray) -> str:
    """The code of the error; without its traceback, which would keep the session alive."""
    try:
        append(session, ids)
    except OutOfMemory as error:
        return error.code
    return "none"


def rows_of(session: Session, layers: int) -> list[np.ndarray]:
    """The rows of every page as far as they count, [layers, rows, row bytes]."""
    found = []
    for i, page in enumerate(session.pages):
        rows = np.frombuffer(page.read(), np.uint8).reshape(layers, page.n_filled, -1)
        found.append(rows[:, : min(PAGE_POSITIONS, session.n_past - i * PAGE_POSITIONS)])
    return found


class ModelSession:
    """What a session holds: its ids, and for each page the identity of what it refers to."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.pages: list[object] = []


class Histories(RuleBasedStateMachine):
    """Random histories of sessions on one pool, against a model of references in Python. Sessions are drawn by number:
    what hypothesis draws, it keeps alive."""

    BUDGET = 7

    @initialize()
    def start(self) -> None:
        if not hasattr(Histories, "engine"):
            model = make_tiny_model(Histories.folder, seed=3, text_type="Q8_0", **ROWS_OF_256)
            Histories.engine, Histories.n_vocab = open_engine(model), model.n_vocab
        self.pool = pool_of(self.engine, self.BUDGET)
        self.sessions: list[tuple[Session, ModelSession]] = []
        self.held: list[tuple[list[Page], list[object], list[int]]] = []

    def references(self, page: object) -> int:
        lists = [model.pages for _, model in self.sessions] + [pages for _, pages, _ in self.held]
        return sum(other is page for pages in lists for other in pages)

    def n_pages(self) -> int:
        lists = [model.pages for _, model in self.sessions] + [pages for _, pages, _ in self.held]
        return len({id(page) for pages in lists for page in pages})

    @rule()
    def begin(self) -> None:
        self.sessions.append((Session(self.engine, 600, pool=self.pool), ModelSession()))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), n=st.sampled_from([1, 2, 40, 127, 128, 129, 300]), seed=st.integers(0, 3))
    def extend(self, data, n: int, seed: int) -> None:
        session, model = self.sessions[data.draw(st.integers(0, len(self.sessions) - 1))]
        n = min(n, 600 - len(model.ids))
        ids = np.random.default_rng(seed).integers(0, self.n_vocab, n).astype(np.int32)
        first, end = len(model.ids), len(model.ids) + n
        last = first // PAGE_POSITIONS
        copies = n > 0 and first % PAGE_POSITIONS != 0 and self.references(model.pages[last]) > 1
        needed = -(-end // PAGE_POSITIONS) - len(model.pages) + copies
        if needed > self.BUDGET - self.n_pages():
            assert refusal(session, ids) == "memory.kv_pages"
            return
        append(session, ids)
        if copies:
            model.pages[last] = object()
        model.pages += [object() for _ in range(needed - copies)]
        model.ids += ids.tolist()

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def fork(self, data) -> None:
        session, model = self.sessions[data.draw(st.integers(0, len(self.sessions) - 1))]
        other = ModelSession()
        other.ids, other.pages = list(model.ids), list(model.pages)
        self.sessions.append((session.fork(), other))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), share=st.floats(0, 1))
    def truncate(self, data, share: float) -> None:
        session, model = self.sessions[data.draw(st.integers(0, len(self.sessions) - 1))]
        n = int(share * len(model.ids))
        session.truncate(n)
        del model.ids[n:], model.pages[-(-n // PAGE_POSITIONS) :]

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def hold(self, data) -> None:
        session, model = self.sessions[data.draw(st.integers(0, len(self.sessions) - 1))]
        self.held.append((session.pages, list(model.pages), list(model.ids)))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), share=st.floats(0, 1))
    def adopt(self, data, share: float) -> None:
        pages, identities, ids = self.held[data.draw(st.integers(0, len(self.held) - 1))]
        n = int(share * len(ids))
        n_pages = -(-n // PAGE_POSITIONS)
        session, model = Session(self.engine, 600, pool=self.pool), ModelSession()
        session.adopt(pages[:n_pages], n)
        model.ids, model.pages = ids[:n], identities[:n_pages]
        self.sessions.append((session, model))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data) -> None:
        del self.held[data.draw(st.integers(0, len(self.held) - 1))]

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def end(self, data) -> None:
        del self.sessions[data.draw(st.integers(0, len(self.sessions) - 1))]

    @invariant()
    def counts_are_exact(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert self.pool.n_pages == self.n_pages() <= self.BUDGET
        assert self.pool.bytes_in_use == self.pool.n_pages * self.pool.page_bytes <= self.pool.budget
        for session, model in self.sessions:
            assert session.n_past == len(model.ids)
            assert session.kv_bytes == len(model.pages) * self.pool.page_bytes

    def check_rows(self) -> None:
        """Sessions, and pages that are referred to from outside, hold what computing their ids alone gives."""
        layers = self.engine.config["num_hidden_layers"]
        for pages, ids in [(s.pages, m.ids) for s, m in self.sessions] + [(pages, ids) for pages, _, ids in self.held]:
            alone, session = Session(self.engine, 600), Session(self.engine, 600, pool=self.pool)
            append(alone, np.array(ids, np.int32))
            session.adopt(pages, len(ids))
            for got, want in zip(rows_of(session, layers), rows_of(alone, layers), strict=True):
                assert np.array_equal(got, want)

    def teardown(self) -> None:
        self.check_rows()
        self.sessions.clear()
        self.held.clear()
        assert self.pool.n_pages == 0


def test_random_histories_count_and_share_as_their_model_says(tmp_path_factory) -> None:
    Histories.folder = tmp_path_factory.mktemp("pages")
    Histories.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
    Histories.TestCase("runTest").debug()


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("n", [1, 100, 128, 200, 256, 300])
def test_a_fork_and_its_parent_go_on_as_alone(engine, kv_type, n) -> None:
    rng = np.random.default_rng(0)
    start, one, two = (rng.integers(0, 500, count).astype(np.int32) for count in (n, 140, 140))
    parent = Session(engine, 600, kv_type)
    append(parent, start)
    child = parent.fork()
    assert_same_bits(child.logits, parent.logits)
    for first in range(0, 140, 7):
        append(parent, one[first : first + 7])
        append(child, two[first : first + 7])
    for session, more in ((parent, one), (child, two)):
        alone = Session(engine, 600, kv_type)
        append(alone, np.concatenate([start, more]))
        assert_same_bits(session.logits, alone.logits)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(("n", "kept"), [(300, 300), (300, 256), (300, 200), (300, 1), (128, 128), (90, 50)])
def test_adopted_pages_have_the_bits_of_computing_them(engine, kv_type, n, kept) -> None:
    ids = np.random.default_rng(1).integers(0, 500, n + 60).astype(np.int32)
    pool = pool_of(engine, 8, kv_type)
    first = Session(engine, 600, pool=pool)
    append(first, ids[:n])
    second = Session(engine, 600, pool=pool)
    second.adopt(first.pages[: -(-kept // PAGE_POSITIONS)], kept)
    assert (second.n_past, pool.n_pages) == (kept, -(-n // PAGE_POSITIONS))
    with pytest.raises(BadRequest, match="no logits yet"):
        _ = second.logits
    append(second, ids[kept:])
    append(first, ids[n:])  # beside it, on pages they share
    alone = Session(engine, 600, kv_type)
    append(alone, ids)
    assert_same_bits(second.logits, alone.logits)
    assert_same_bits(first.logits, alone.logits)


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_pages_may_lie_anywhere(engine, kv_type) -> None:
    """Sessions that grow by turns, whose pages lie between those of others, after others have been freed."""
    rng = np.random.default_rng(2)
    pool = pool_of(engine, 24, kv_type)
    gone = Session(engine, 1000, pool=pool)
    append(gone, rng.integers(0, 500, 500).astype(np.int32))
    ids = [rng.integers(0, 500, 700).astype(np.int32) for _ in range(3)]
    sessions = [Session(engine, 1000, pool=pool) for _ in ids]
    for first in range(0, 700, 100):
        for session, all_ids in zip(sessions, ids, strict=True):
            session.prefill([all_ids[first : first + 100]])
        if first == 200:
            gone.truncate(130)
    for session, all_ids in zip(sessions, ids, strict=True):
        alone = Session(engine, 1000, kv_type)
        for first in range(0, 700, 100):
            alone.prefill([all_ids[first : first + 100]])
        assert_same_bits(session.logits, alone.logits)


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_a_page_survives_its_bytes(engine, kv_type) -> None:
    ids = np.random.default_rng(3).integers(0, 500, 200).astype(np.int32)
    pool = pool_of(engine, 8, kv_type)
    session = Session(engine, 400, pool=pool)
    append(session, ids)
    pages = session.pages
    assert [(page.n_filled, page.sealed) for page in pages] == [(128, True), (72, False)]
    assert all(page.nbytes == pool.page_bytes for page in pages)
    saved = [page.read() for page in pages]
    assert [len(rows) for rows in saved] == [pool.page_bytes, pool.page_bytes * 72 // 128]
    other = PagePool(engine, pool.budget, kv_type)
    restored = Session(engine, 400, pool=other)
    restored.adopt(
        [other.page_from(memoryview(rows), page.n_filled) for rows, page in zip(saved, pages, strict=True)], 200
    )
    assert [page.read() for page in restored.pages] == saved
    for one in (session, restored):
        append(one, ids[:5])
    assert_same_bits(restored.logits, session.logits)


def test_bytes_of_another_size_are_no_page(engine) -> None:
    pool = pool_of(engine, 2)
    row = pool.page_bytes // PAGE_POSITIONS
    for n_bytes, n_filled in ((row, 2), (row * 3 + 1, 3), (0, 1), (row * 128, 127)):
        with pytest.raises(
            BadRequest, match=rf"{n_bytes} bytes were given for {n_filled} rows .* expected {row * n_filled}"
        ):
            pool.page_from(bytes(n_bytes), n_filled)
    for n_filled in (0, 129, -1):
        with pytest.raises(BadRequest, match="expected 1 to 128 rows"):
            pool.page_from(b"", n_filled)
    assert pool.n_pages == 0


def test_pages_that_do_not_fit_are_not_adopted(engine) -> None:
    pool, ids = pool_of(engine, 8), np.arange(200, dtype=np.int32)
    session = Session(engine, 400, pool=pool)
    append(session, ids)
    pages = session.pages
    with pytest.raises(BadRequest, match="the session holds 200 positions"):
        session.adopt(pages, 200)
    empty = Session(engine, 400, pool=pool)
    for wrong, n_past, message in (
        (pages, 201, "page 1 holds 72 rows, 201 positions need 73"),
        (pages[:1], 200, "1 pages were given for 200 positions"),
        (pages, 128, "2 pages were given for 128 positions"),
        (pages[::-1], 200, "page 0 holds 72 rows"),
        (pages, -1, "n_past is -1, expected 0 to n_ctx, 400"),
        (pages, 401, "n_past is 401"),
    ):
        with pytest.raises(BadRequest, match=message):
            empty.adopt(wrong, n_past)
    with pytest.raises(BadRequest, match="page 0 belongs to another pool"):
        Session(engine, 400).adopt(pages, 200)
    assert empty.n_past == 0 and not empty.pages


def test_a_budget_is_checked_before_memory_is_taken(engine) -> None:
    one = PagePool(engine, 1 << 24).page_bytes
    with pytest.raises(BadRequest, match=rf"budget is {one - 1} bytes, expected at least {one}"):
        PagePool(engine, one - 1)
    with pytest.raises(OutOfMemory, match="MiB of memory are available"):
        PagePool(engine, 1 << 60)
    pool = PagePool(engine, 3 * one - 1)
    session = Session(engine, 600, pool=pool)
    append(session, np.arange(256, dtype=np.int32))
    with pytest.raises(OutOfMemory, match=r"1 more pages of 128 positions .* 0 are left of a budget"):
        session.decode(1)
    assert (session.n_past, pool.n_pages) == (256, 2)
    session.truncate(255)
    session.decode(1)


def test_pools_belong_to_one_model_and_type(tiny_model) -> None:
    first, second = (open_engine(tiny_model(text_type="Q8_0")) for _ in range(2))
    pool = pool_of(first, 2, "q8_0")
    assert pool.kv_type == "q8_0"
    with pytest.raises(BadRequest, match="the pool belongs to another model"):
        Session(second, 100, pool=pool)
    with pytest.raises(BadRequest, match="kv_type is another than that of the pool"):
        Session(first, 100, "f16", pool)
    with pytest.raises(BadRequest, match='kv_type is "f64"'):
        PagePool(first, 1 << 24, "f64")


def test_pages_outlive_their_session_and_engine(tiny_model) -> None:
    engine = open_engine(tiny_model(text_type="Q8_0"))
    pool = pool_of(engine, 4)
    session = Session(engine, 300, pool=pool)
    append(session, np.arange(150, dtype=np.int32))
    pages = session.pages
    rows = pages[0].read()
    engine.close()
    del session, engine
    assert pages[0].read() == rows and pool.n_pages == 2
    del pages
    assert pool.n_pages == 0


def test_a_long_context_takes_memory_as_positions_come(engine) -> None:
    session = Session(engine, engine.config["context_length"])
    assert session.kv_bytes == 0
    append(session, np.arange(129, dtype=np.int32))
    assert session.kv_bytes == 2 * PagePool(engine, 1 << 24).page_bytes
