"""Prompts and pictures in pieces: the bits of whole calls, whatever runs in between, and what a cancel leaves."""

from __future__ import annotations

import gc
import signal
import threading

import numpy as np
import pytest
from engine_support import open_engine
from hypothesis import given
from hypothesis import strategies as st
from vectors import assert_same_bits

from kimi_vl_cpp import BadImage, BadRequest, ContextFull, OutOfMemory, Unsupported
from kimi_vl_cpp._core import PagePool, Session
from kimi_vl_cpp.testing import ROWS_OF_256

LAYERS = 3
TYPES = ("F32", "Q4_K_M")


@pytest.fixture(params=TYPES)
def model(tiny_model, request):
    vision_type = "F32" if request.param == "F32" else "Q8_0"
    return tiny_model(
        seed=9, text_type=request.param, vision_type=vision_type, **{**ROWS_OF_256, "num_hidden_layers": LAYERS}
    )


def prompt(model, n: int = 300) -> list[np.ndarray]:
    """Ids, embeddings and ids: a whole page of expanded rows and others, chunks that straddle parts."""
    rng = np.random.default_rng(n)
    picture = rng.standard_normal((n // 3, model.config["text"]["hidden_size"]), dtype=np.float32)
    return [model.random_ids(n // 3), picture, model.random_ids(n - 2 * (n // 3), seed=1)]


class Others:
    """What runs between the advances of a task: steps, prefills, pictures and tasks of other sessions."""

    def __init__(self, engine, model) -> None:
        self.engine, self.model, self.turn = engine, model, 0
        self.sessions = [Session(engine, 2000), Session(engine, 2000)]
        for session in self.sessions:
            session.prefill([model.random_ids(50)])
        self.prefill = engine.begin_prefill(Session(engine, 300), [model.random_ids(260, seed=2)], chunk=100)
        self.image = engine.begin_image(model.random_picture(56, 84))

    def run(self) -> None:
        self.turn += 1
        ids = self.model.random_ids(3, seed=self.turn)
        first, second = self.sessions
        self.engine.step([(first, ids[:1], "last"), (second, ids, "all")])
        self.engine.decode([(second, 7, None), (first, 5, None)])
        if self.turn % 3 == 0:
            first.prefill([self.model.random_ids(40)])
            self.engine.encode_image(self.model.random_picture(28, 28))
        if not self.prefill.done:
            self.prefill.advance()
        if not self.image.done:
            self.image.advance()


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "f32"])
@pytest.mark.parametrize("logits", ["last", "all", "none"])
def test_a_prompt_in_pieces_has_the_bits_of_a_whole_one(model, isa, kv_type, logits):
    """Other work runs at every border of a layer."""
    engine = open_engine(model, isa)
    parts, others = prompt(model), Others(engine, model)
    whole, pieces = Session(engine, 400, kv_type), Session(engine, 400, kv_type)
    for session in (whole, pieces):
        session.prefill([model.random_ids(5)])
    want = whole.prefill(parts, logits=logits, chunk=128)
    task = engine.begin_prefill(pieces, parts, logits=logits, chunk=128)
    seen = []
    while not task.advance():
        others.run()
        seen.append((task.n_done, pieces.n_past))
    assert seen == [(n, 5 + n) for n in (0, 0, 128, 128, 128, 256, 256, 256)]
    assert task.done and task.n_done == 300 and pieces.n_past == 305
    if logits == "none":
        assert task.logits is None
    else:
        assert_same_bits(task.logits, want)
        assert_same_bits(pieces.logits, whole.logits)
    for token in (3, 4):  # and so the cache
        whole.decode(token)
        pieces.decode(token)
        assert_same_bits(pieces.logits, whole.logits)


def test_other_work_has_its_own_bits_beside_tasks(model, isa):
    engine = open_engine(model, isa)
    picture, ids = model.random_picture(56, 84), model.random_ids(260, seed=2)
    others = Others(engine, model)
    while not (others.prefill.done and others.image.done):
        others.run()
    want = Session(engine, 300).prefill([ids])
    assert_same_bits(others.prefill.logits, want)
    assert_same_bits(others.image.result, engine.encode_image(picture))


@pytest.mark.parametrize("size", [(28, 28), (28, 140), (112, 84)])
def test_a_picture_in_pieces_has_the_bits_of_a_whole_one(model, isa, size):
    engine = open_engine(model, isa)
    others = Others(engine, model)
    pixels = model.random_picture(*size)
    task = engine.begin_image(pixels)
    steps = 1
    while not task.advance():
        others.run()
        steps += 1
    assert steps == engine.config["vision_layers"] + 2
    assert_same_bits(task.result, engine.encode_image(pixels))


@given(data=st.data())
def test_any_interleaving_of_tasks_has_the_bits_of_whole_calls(tiny_model, data):
    model = tiny_model(seed=9, text_type="Q8_0", vision_type="Q8_0", **ROWS_OF_256)
    engine = open_engine(model)
    running, want = [], []
    for i in range(data.draw(st.integers(2, 4), "tasks")):
        if data.draw(st.booleans(), "picture"):
            pixels = model.random_picture(28 * data.draw(st.integers(1, 4)), 28 * data.draw(st.integers(1, 4)))
            running.append(engine.begin_image(pixels))
            want.append(engine.encode_image(pixels))
        else:
            ids = model.random_ids(data.draw(st.integers(1, 300), "tokens"), seed=i)
            chunk = data.draw(st.sampled_from([0, 1, 5, 64, 128]) if len(ids) < 20 else st.sampled_from([0, 64, 128]))
            running.append(engine.begin_prefill(Session(engine, 300), [ids], chunk=chunk))
            want.append(Session(engine, 300).prefill([ids]))
    left = list(running)
    while left:
        task = data.draw(st.sampled_from(left), "next")
        if task.advance(data.draw(st.integers(1, 5), "steps")):
            left.remove(task)
    for task, expected in zip(running, want, strict=True):
        assert_same_bits(task.result if hasattr(task, "result") else task.logits, expected)


@pytest.mark.parametrize("advances", range(1, 3 * LAYERS))
def test_a_cancelled_prompt_leaves_whole_chunks_and_a_free_session(model, isa, advances):
    engine = open_engine(model, isa)
    ids = model.random_ids(300)
    session, cold = Session(engine, 400), Session(engine, 400)
    pages = session.kv_bytes
    task = engine.begin_prefill(session, [ids], chunk=128)
    for _ in range(advances):
        assert not task.advance()
    task.cancel()
    held = 128 * (advances // LAYERS)
    assert session.n_past == task.n_done == held and not task.done
    page = Session(engine, 1)
    page.decode(1)
    assert session.kv_bytes == pages + held // 128 * page.kv_bytes
    with pytest.raises(BadRequest, match="begin another") as ended:
        task.advance()
    assert ended.value.code == "task.ended"
    task.cancel()
    assert_same_bits(session.prefill([ids[held:]]), cold.prefill([ids]))


def uses_of(session, engine):
    """Every way to use a session, but for looking at its sizes."""
    ids = np.array([1], np.int32)
    return {
        "prefill": lambda: session.prefill([ids]),
        "decode": lambda: session.decode(1),
        "step": lambda: engine.step([(session, ids, "last")]),
        "truncate": lambda: session.truncate(0),
        "pages": lambda: session.pages,
        "fork": lambda: session.fork(),
        "adopt": lambda: session.adopt([], 0),
        "begin_prefill": lambda: engine.begin_prefill(session, [ids]),
    }


def test_a_session_is_its_tasks_until_that_ends(tiny_model):
    model = tiny_model()
    engine = open_engine(model)
    for name in uses_of(None, engine):
        session = Session(engine, 300)
        task = engine.begin_prefill(session, [model.random_ids(200)])
        task.advance()
        with pytest.raises(BadRequest, match="cancel") as busy:
            uses_of(session, engine)[name]()
        assert busy.value.code == "session.busy", name
        (outcome,) = engine.decode([(session, 1, None)])
        assert outcome.code == "session.busy"
        task.advance(100)
        assert_same_bits(task.logits, Session(engine, 300).prefill([model.random_ids(200)]))
        if name != "adopt":  # takes empty sessions only
            uses_of(session, engine)[name]()


def test_a_dropped_task_frees_its_session_and_pages(tiny_model):
    model = tiny_model()
    engine = open_engine(model)
    pool = PagePool(engine, 1 << 30)
    session = Session(engine, 1000, pool=pool)
    task = engine.begin_prefill(session, [model.random_ids(600)])
    task.advance()
    assert pool.n_pages == 5
    del task
    gc.collect()
    assert pool.n_pages == 0 and session.n_past == 0
    session.decode(1)


def test_a_task_keeps_what_it_needs(tiny_model):
    """Its session, ids that are changed later, and pixels and embeddings that nobody else holds."""
    model = tiny_model()
    engine = open_engine(model)
    ids, picture = model.random_ids(200), model.random_picture(56, 56)
    embeddings = engine.encode_image(picture)
    want = Session(engine, 300).prefill([ids, embeddings])
    changed = ids.copy()
    prefill = engine.begin_prefill(Session(engine, 300), [changed, embeddings.copy()], chunk=64)
    image = engine.begin_image(picture.copy())
    changed[:] = -1
    gc.collect()
    prefill.advance(1000)
    image.advance(1000)
    assert_same_bits(prefill.logits, want)
    assert_same_bits(image.result, embeddings)


def test_what_cannot_begin_says_why_before_any_work(tiny_model):
    model, blind = tiny_model(), tiny_model(vision="none")
    engine, without_vision = open_engine(model), open_engine(blind)
    session, ids = Session(engine, 100), model.random_ids(10)
    with pytest.raises(ContextFull):
        engine.begin_prefill(session, [model.random_ids(101)])
    with pytest.raises(OutOfMemory):
        small = PagePool(engine, PagePool(engine, 1 << 30).page_bytes)
        engine.begin_prefill(Session(engine, 300, pool=small), [model.random_ids(200)])
    for begin, code in {
        lambda: engine.begin_prefill(session, []): "request.empty",
        lambda: engine.begin_prefill(session, [np.array([-1], np.int32)]): "request.token_id",
        lambda: engine.begin_prefill(session, [ids], chunk=-1): "request.chunk",
        lambda: engine.begin_prefill(session, [ids], logits="first"): "request.logits",
        lambda: engine.begin_prefill(session, [ids], expanded=np.zeros(3, dtype=bool)): "request.forms",
        lambda: without_vision.begin_prefill(session, [ids]): "request.session",
        lambda: engine.begin_image(np.zeros((28, 28), np.uint8)): "request.pixels",
    }.items():
        with pytest.raises(BadRequest) as refused:
            begin()
        assert refused.value.code == code
    with pytest.raises(BadImage):
        engine.begin_image(np.zeros((28, 30, 3), np.uint8))
    with pytest.raises(Unsupported):
        without_vision.begin_image(model.random_picture(28, 28))
    session.prefill([ids])  # nothing of this has claimed it
    task = engine.begin_prefill(session, [ids])
    for n in (0, -1):
        with pytest.raises(BadRequest, match="expected 1 or more"):
            task.advance(n)
    for unfinished in (lambda: task.logits, lambda: engine.begin_image(model.random_picture(28, 28)).result):
        with pytest.raises(BadRequest) as refused:
            unfinished()
        assert refused.value.code == "task.unfinished"
    engine.close()
    with pytest.raises(BadRequest) as refused:
        task.advance()
    assert refused.value.code == "engine.closed"
    task.cancel()


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
def test_a_signal_handler_that_raises_ends_the_task(tiny_model):
    """The handler's own exception comes out, and the session holds whole chunks."""
    model = tiny_model()
    engine = open_engine(model)
    ids = model.random_ids(20_000) % model.n_vocab
    session = Session(engine, model.config["text"]["max_position_embeddings"])
    ids = ids[: session.n_ctx]

    class Stop(Exception):
        pass

    def stop(*_args) -> None:
        raise Stop

    task = engine.begin_prefill(session, [ids], chunk=1)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Stop):
            while not task.advance(1_000_000):
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not task.done and session.n_past == task.n_done < len(ids)
    session.truncate(0)
    assert_same_bits(session.prefill([ids[:50]]), Session(engine, 50).prefill([ids[:50]]))


def test_tasks_of_several_threads_share_the_engine(tiny_model):
    model = tiny_model(text_type="Q8_0", **ROWS_OF_256)
    engine = open_engine(model)
    prompts = [model.random_ids(150, seed=i) for i in range(4)]
    want = [Session(engine, 150).prefill([ids]) for ids in prompts]
    got: list[np.ndarray | None] = [None] * len(prompts)

    def work(i: int) -> None:
        task = engine.begin_prefill(Session(engine, 150), [prompts[i]], chunk=50)
        while not task.advance():
            engine.encode_image(model.random_picture(28, 28))
        got[i] = task.logits

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for logits, expected in zip(got, want, strict=True):
        assert_same_bits(logits, expected)
