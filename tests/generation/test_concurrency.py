"""Threads, processes, signals and the interpreter's end, on the real core with a tiny model.

What must happen in another process is a script of its own: a hang or an abort there fails a test here.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import kimi_vl_cpp
from kimi_vl_cpp import BadRequest, Cancelled, KimiVL
from kimi_vl_cpp.testing import make_tiny_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and fork are POSIX's here")

LONG = 30_000  # tokens of a prompt that takes seconds even in a tiny model, as attention grows with the square
# Other processes import the package that is tested here, wherever it is.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(kimi_vl_cpp.__file__).parent.parent)}
HEADER = """
import os, signal, sys, threading, time
from kimi_vl_cpp import BadRequest, KimiVL, KimiVLError
PATH = {path!r}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=1, max_position_embeddings=32_768)


@pytest.fixture(scope="module")
def model(tiny):
    with KimiVL(tiny.text, n_ctx=4096, n_threads=1) as loaded:
        yield loaded


def long_prompt(tiny) -> list[int]:
    return tiny.random_ids(LONG).tolist()


def run_script(tiny, body: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    script = HEADER.format(path=str(tiny.text)) + textwrap.dedent(body)
    command = [sys.executable, "-c", script]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=ENVIRONMENT)
    except subprocess.TimeoutExpired as hung:
        pytest.fail(f"hung: {hung.stdout!r} {hung.stderr!r}")


def assert_clean(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert said in done.stdout
    assert "Fatal" not in done.stderr and "Traceback" not in done.stderr, done.stderr


# Threads on one model


def test_eight_threads_on_one_model_answer_as_one_does(tiny, model):
    picture = tiny.random_picture(56, 84)

    def answer(n: int) -> tuple[int, ...]:
        return model.chat(f"Question {n}", images=[picture], temperature=0, max_new_tokens=12).token_ids

    expected = {n: answer(n) for n in range(8)}
    got: dict[int, tuple[int, ...]] = {}
    threads = [threading.Thread(target=lambda n=n: got.update({n: answer(n)})) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == expected


def test_every_call_may_run_beside_every_other(tiny, model):
    picture = tiny.random_picture(56, 84)
    ids = tiny.random_ids(20).tolist()
    calls = [
        lambda: model.chat("Hello", max_new_tokens=8),
        lambda: list(model.chat("Hello", stream=True, max_new_tokens=8)),
        lambda: model.encode_image(picture),
        lambda: model.vision_tower(picture),
        lambda: model.logits([ids]),
        lambda: model.generate([ids], max_new_tokens=8),
        lambda: model.conversation().ask("Hello", max_new_tokens=8),
        lambda: model.detokenize(model.tokenize("Hello")),
    ]
    errors: list[BaseException] = []

    def repeat(call) -> None:
        try:
            for _ in range(4):
                call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)


def test_dropped_streams_give_their_memory_back(tiny, model):
    index = model.loaded.conductor.index
    n_before = len(index)
    for _ in range(20):
        stream = model.chat("Hello", stream=True, max_new_tokens=50)
        next(stream, None)
        del stream
    gc.collect()
    assert index.pool.n_pages == len(index) <= n_before + 20
    assert model.chat("Hello", max_new_tokens=2).usage.cached_tokens > 0


def test_python_threads_run_while_the_core_computes(tiny):
    with KimiVL(tiny.text, n_ctx=0, n_threads=1) as model:
        work = threading.Thread(target=lambda: model.logits([long_prompt(tiny)], positions="last"))
        work.start()
        turns = 0
        while work.is_alive():
            time.sleep(0)  # gives the GIL away and waits for it
            turns += 1
    # Seconds of turns. With the GIL held there would be those before and after the call alone.
    assert turns > 1000


def test_closing_while_another_thread_prefills_ends_it_at_once(tiny):
    model = KimiVL(tiny.text, n_ctx=0, n_threads=1)
    errors: list[BaseException] = []
    events: list[int] = []
    busy = threading.Event()

    def wait_for_the_close(stage: str, done: int, total: int) -> None:
        events.append(done)
        busy.set()
        while not model.loaded.gate.closed:
            time.sleep(0.001)

    def work() -> None:
        try:
            model.logits([long_prompt(tiny)], positions="last", progress=wait_for_the_close)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert busy.wait(60)
    model.close()
    thread.join(60)
    assert not thread.is_alive()
    assert errors and isinstance(errors[0], Cancelled) and errors[0].code == "engine.closed"
    assert len(events) == 1 and events[0] < LONG  # no more work after the close


def test_closing_while_another_thread_streams(tiny):
    model = KimiVL(tiny.text, n_ctx=4096, n_threads=2)
    errors: list[BaseException] = []
    busy = threading.Event()

    def work() -> None:
        try:
            while True:
                for _ in model.chat("Hello", stream=True, temperature=2.0):
                    busy.set()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert busy.wait(60)
    model.close()
    thread.join(60)
    assert not thread.is_alive()
    assert isinstance(errors[0], (Cancelled, BadRequest)) and errors[0].code == "engine.closed"


def test_a_model_can_be_dropped_without_close(tiny):
    for _ in range(5):
        model = KimiVL(tiny.text, n_ctx=256)
        stream = model.chat("Hello", stream=True)
        next(stream, None)
        del model, stream
    gc.collect()
    with KimiVL(tiny.text, n_ctx=256) as model:
        model.chat("Hello", max_new_tokens=2)


# Number of threads


@pytest.mark.parametrize("n_threads", [1, 2, 3, 16, 64])
def test_any_number_of_threads_gives_the_same_bits(tiny, model, n_threads):
    ids = tiny.random_ids(50).tolist()
    with KimiVL(tiny.text, n_ctx=256, n_threads=n_threads) as other:
        assert other.n_threads == n_threads
        assert (other.logits([ids]) == model.logits([ids])).all()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_automatic_threads_follow_the_affinity_of_the_process(tiny):
    done = run_script(
        tiny,
        """
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        with KimiVL(PATH) as model:
            model.chat("Hello", max_new_tokens=2)
            print("threads", model.n_threads)
        """,
    )
    assert_clean(done, "threads 1")


# Ctrl-C

INTERRUPT = """
import numpy as np
sys.setswitchinterval(0.001)
model = KimiVL(PATH, n_ctx=0, n_threads=2, in_token_limit=16384)
expected = model.chat("Hello", max_new_tokens=8, temperature=0).token_ids
rng = np.random.default_rng(0)
ids = rng.integers(0, 300, 30_000).tolist()
picture = rng.integers(0, 255, (1792, 1792, 3), dtype=np.uint8)
pressed = felt = 0.0

def press_later():
    def press():
        global pressed
        time.sleep({delay})
        pressed = time.perf_counter()
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=press, daemon=True).start()

waiting = True
def on_progress(stage, done, total):
    global waiting
    if waiting:
        waiting = False
        press_later()

def call():
    global waiting
    if {stage!r} == "encode":
        model.vision_tower(picture, progress=on_progress)
    elif {stage!r} == "prefill":
        model.logits([ids], positions="last", progress=on_progress)
    else:
        press_later()
        while True:
            model.chat("Hello", temperature=2.0, max_new_tokens=2000)

try:
    call()
    print("ran to its end")
except KeyboardInterrupt:
    felt = time.perf_counter()
assert model.chat("Hello", max_new_tokens=8, temperature=0).token_ids == expected
print("felt after", felt - pressed)
"""
STAGES = pytest.mark.parametrize(("stage", "delay"), [("encode", 0.05), ("prefill", 0.1), ("decode", 0.2)])


@STAGES
def test_ctrl_c_ends_a_call_and_the_model_answers_the_same_after_it(tiny, stage, delay):
    done = run_script(tiny, INTERRUPT.format(stage=stage, delay=delay))
    assert_clean(done, "felt after")
    assert "ran to its end" not in done.stdout


@pytest.mark.slow
@STAGES
def test_ctrl_c_is_felt_at_once(tiny, stage, delay):
    done = run_script(tiny, INTERRUPT.format(stage=stage, delay=delay))
    assert float(done.stdout.rpartition("felt after")[2]) < 2  # 0.2 s are promised


def test_a_hundred_interrupted_streams_leave_a_model_that_answers(tiny):
    # Ctrl-C at every moment of the token loop, the places between the core's calls included.
    done = run_script(
        tiny,
        """
        import random
        model = KimiVL(PATH, n_ctx=1024, n_threads=1)
        expected = model.chat("Hello", max_new_tokens=8, temperature=0).token_ids
        random.seed(1)
        n_interrupted = 0
        for _ in range(100):
            try:
                timer = threading.Timer(random.uniform(0.001, 0.03), os.kill, (os.getpid(), signal.SIGINT))
                timer.start()
                try:
                    for _ in model.chat("Hello", stream=True, temperature=2.0):
                        pass
                finally:
                    timer.join()
                time.sleep(0.01)
            except KeyboardInterrupt:
                n_interrupted += 1
            answer = model.chat("Hello", max_new_tokens=8, temperature=0).token_ids
            assert answer == expected, (answer, expected)
        print("interrupted", n_interrupted)
        """,
    )
    assert_clean(done, "interrupted 100")


# Processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_gets_a_clear_error_and_may_load_its_own(tiny):
    done = run_script(
        tiny,
        """
        model = KimiVL(PATH, n_ctx=512, n_threads=2)
        expected = model.chat("Hello", max_new_tokens=8, temperature=0).token_ids
        child = os.fork()
        if child == 0:
            try:
                model.chat("Hello", max_new_tokens=8)
            except BadRequest as error:
                print("child:", error.code, flush=True)
            model.close()
            with KimiVL(PATH, n_ctx=512, n_threads=2) as own:
                assert own.chat("Hello", max_new_tokens=8, temperature=0).token_ids == expected
            print("child done", flush=True)
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        assert model.chat("Hello", max_new_tokens=8, temperature=0).token_ids == expected
        print("parent done, child", status)
        """,
    )
    assert_clean(done, "parent done, child 0")
    assert "child: engine.forked" in done.stdout and "child done" in done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_forked_in_the_middle_of_a_call_does_not_hang(tiny):
    done = run_script(
        tiny,
        """
        model = KimiVL(PATH, n_ctx=0, n_threads=2)
        busy = threading.Event()
        def work():
            model.logits([[1] * 20_000], positions="last", progress=lambda *event: busy.set())
        thread = threading.Thread(target=work)
        thread.start()
        busy.wait()
        child = os.fork()
        if child == 0:
            try:
                model.chat("Hello", max_new_tokens=8)
            except BadRequest as error:
                print("child:", error.code, flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        thread.join()
        print("parent done, child", status)
        """,
    )
    assert_clean(done, "parent done, child 0")
    assert "child: engine.forked" in done.stdout


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_worker_processes_load_their_own_model(tiny, tmp_path, method):
    script = tmp_path / "workers.py"
    script.write_text(
        HEADER.format(path=str(tiny.text))
        + textwrap.dedent(
            f"""
            import multiprocessing

            def answer(seed):
                with KimiVL(PATH, n_ctx=512, n_threads=1) as model:
                    return model.chat("Hello", max_new_tokens=8, seed=seed, temperature=1).token_ids

            def fail(n):
                KimiVL(PATH, n_ctx=-n)

            if __name__ == "__main__":
                expected = [answer(seed) for seed in range(2)]
                with multiprocessing.get_context({method!r}).Pool(1) as pool:
                    assert pool.map(answer, range(2)) == expected
                    try:
                        pool.apply(fail, (5,))
                    except BadRequest as error:
                        print("error came home:", error.code)
                print("done")
            """
        )
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)
    assert_clean(done, "done")
    assert "error came home: request.n_ctx" in done.stdout


def test_a_sub_interpreter_is_refused_instead_of_hanging(tiny):
    done = run_script(
        tiny,
        """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        code = (
            "try:\\n"
            "    import kimi_vl_cpp._core\\n"
            "except ImportError as error:\\n"
            "    print('refused:', error, flush=True)\\n"
        )
        interpreters.run_string(interpreters.create(), code)
        """,
    )
    assert_clean(done, "refused: kimi_vl_cpp cannot be used in a sub-interpreter")


# The interpreter's end


@pytest.mark.parametrize("daemon", [True, False])
def test_the_interpreter_ends_while_a_thread_generates(tiny, daemon):
    done = run_script(
        tiny,
        f"""
        model = KimiVL(PATH, n_ctx=4096, n_threads=2)
        busy = threading.Event()
        def work():
            n = 0
            try:
                while {daemon} or n < 3:
                    n += 1
                    for _ in model.chat("Hello", stream=True, temperature=2.0, max_new_tokens=200):
                        busy.set()
            except KimiVLError as error:
                assert error.code == "engine.closed"
        threading.Thread(target=work, daemon={daemon}).start()
        busy.wait()
        print("ending")
        """,
    )
    assert_clean(done, "ending")


def test_the_interpreter_ends_in_the_middle_of_a_long_call(tiny):
    done = run_script(
        tiny,
        f"""
        model = KimiVL(PATH, n_ctx=0, n_threads=1)
        busy = threading.Event()
        def work():
            try:
                model.logits([[1] * {LONG}], positions="last", progress=lambda *event: busy.set())
                os.write(1, b"ran to its end")
            except KimiVLError as error:
                assert error.code == "engine.closed"
        threading.Thread(target=work, daemon=True).start()
        busy.wait()
        print("ending")
        """,
    )
    assert_clean(done, "ending")
    assert "ran to its end" not in done.stdout


def test_open_streams_and_conversations_do_not_trouble_the_interpreters_end(tiny):
    done = run_script(
        tiny,
        """
        model = KimiVL(PATH, n_ctx=512)
        stream = model.chat("Hello", stream=True)
        next(stream)
        conversation = model.conversation()
        other = conversation.ask("Hello", stream=True)
        next(other)
        print("ending")
        """,
    )
    assert_clean(done, "ending")


def test_a_kill_by_sigterm_ends_the_process(tiny):
    script = HEADER.format(path=str(tiny.text)) + textwrap.dedent(
        """
        model = KimiVL(PATH, n_ctx=0, n_threads=2)
        print("ready", flush=True)
        while True:
            model.chat("Hello", temperature=2.0)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM
    process.stdout.close()
