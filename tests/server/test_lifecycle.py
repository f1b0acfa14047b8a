"""A server's life: loading, waiting, clients that leave or sleep, limits of time, the graceful end. The core answers by
script, so that every state lasts as long as the test wants: an answer is slow until it was seen, and fast after."""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from server_support import HI, RunningServer, events_of, text_of, with_picture
from waiting import wait_until

from kimi_vl_cpp.errors import BadRequest
from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.server.runs import Run
from kimi_vl_cpp.server.serving import open_socket
from kimi_vl_cpp.server.settings import Settings


@pytest.fixture
def load(script, tmp_path):
    path = tmp_path / "fake-Instruct.gguf"
    path.write_bytes(b"fake")
    return lambda: KimiVL(str(path), n_ctx=1024)


def open_request(server: RunningServer, **fields) -> socket.socket:
    """A request that was sent and whose answer nobody reads yet."""
    body = json.dumps({"messages": HI, **fields}).encode()
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    raw.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    return raw


SLOW_S = 0.05
"""A step while others act: an answer of hundreds then takes far longer than a busy machine needs to look."""


def status(server: RunningServer) -> dict:
    with server.client() as client:
        return client.get("/v1/status").json()


def metric(server: RunningServer, name: str, **labels: str) -> float:
    """A value of /metrics; 0 where it has not been counted."""
    found = server.state.metrics.registry.get_sample_value(f"kimi_vl_{name}", {"model": "fake-Instruct", **labels})
    return found or 0.0


def test_one_thread_of_the_server_computes_all_answers(script, load):
    threads: set[str] = set()
    script.fail_at = lambda stage, step: threads.add(threading.current_thread().name)
    with RunningServer(load) as server, server.client() as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/chat/completions", json={"messages": HI}), range(4)))
        assert all(answer.status_code == 200 for answer in answers)
    assert threads == {"drive"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("state", ["encode", "prefill", "decode", "queued"])
def test_a_client_that_leaves_cancels_in_every_state(script, load, state, stream):
    script.answer = "x" * 900
    script.decode_s = SLOW_S
    if state in ("encode", "prefill"):
        setattr(script, f"{state}_s", 8.0)
    with RunningServer(load, max_running=1) as server:
        fields = {"messages": with_picture()} if state == "encode" else {}
        other = open_request(server, max_tokens=900) if state == "queued" else None
        if other is not None:
            wait_until(lambda: status(server)["running"] == 1, "the first one runs")
        raw = open_request(server, stream=stream, **fields)
        wait_until(lambda: state in [one["state"] for one in status(server)["streams"]], f"it is in {state}")
        raw.close()
        if other is None:
            wait_until(lambda: not status(server)["streams"] and status(server)["running"] == 0, "it has gone")
        else:
            wait_until(lambda: status(server)["waiting"] == 0, "it has left the queue")
            assert status(server)["running"] == 1  # the other one goes on
            other.close()
        script.encode_s = script.prefill_s = script.decode_s = 0.0
        wait_until(lambda: status(server)["running"] == 0, "all is at rest")
        script.answer = "fine"
        assert server.ask()["choices"][0]["message"]["content"] == "fine"
        wait_until(lambda: metric(server, "requests_cancelled_total", state=state) == 1, "it is counted")


def test_cancelling_one_leaves_the_others_alone(script, load):
    script.answer = "y" * 200
    script.decode_s = SLOW_S
    with RunningServer(load) as server:
        leaving = [open_request(server, stream=True) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            staying = [pool.submit(server.stream) for _ in range(3)]
            wait_until(lambda: status(server)["running"] == 6, "all run")
            for raw in leaving:
                raw.close()
            wait_until(lambda: status(server)["running"] == 3, "three have left")
            script.decode_s = 0.0
            assert all(text_of(one.result()) == "y" * 200 for one in staying)


def test_a_client_that_does_not_read_is_left_and_its_memory_is_bounded(script, load, monkeypatch):
    from kimi_vl_cpp.server import runs

    monkeypatch.setattr(runs, "MAX_UNREAD", 4096)
    script.answer = None
    with RunningServer(load, slow_client=1.0) as server:
        raw = open_request(server, stream=True, max_tokens=900, ignore_eos=True, logprobs=True, top_logprobs=20)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wait_until(lambda: metric(server, "request_success_total", finished_reason="length") == 1, "it was left")
        assert not status(server)["streams"]
        assert server.ask(max_tokens=1)["usage"]["completion_tokens"] == 1
        raw.close()


def test_the_queue_is_first_come_first_served_and_full_is_503(script, load):
    script.answer = "z" * 300
    script.decode_s = SLOW_S
    with RunningServer(load, max_running=1, max_queue=2) as server:
        raws = [open_request(server, stream=True)]
        wait_until(lambda: status(server)["running"] == 1, "the first runs")
        for n in (1, 2):
            raws.append(open_request(server, stream=True))
            wait_until(lambda n=n: status(server)["waiting"] == n, "it waits")
        full = server.post("/v1/chat/completions", messages=HI)
        assert full.status_code == 503 and full.json()["error"]["code"] == "serve.queue_full"
        assert 1 <= int(full.headers["retry-after"]) <= 60
        script.decode_s = 0.0
        for raw in raws:
            with raw, raw.makefile("rb") as file:
                assert any(b"[DONE]" in line for line in file)


def test_one_key_may_have_so_many_and_no_more(script, load):
    script.answer, script.decode_s = "z" * 300, SLOW_S
    with RunningServer(load, keys=("a:one", "b:two"), max_per_key=1) as server:
        body = {"messages": HI, "stream": True}
        first, second = ({"x-api-key": key} for key in ("one", "two"))
        with (
            server.client() as client,
            client.stream("POST", "/v1/chat/completions", json=body, headers=first) as running,
        ):
            lines = running.iter_lines()
            next(lines)
            more = client.post("/v1/chat/completions", json=body, headers=first)
            assert more.status_code == 429 and more.json()["error"]["type"] == "rate_limit_error"
            assert (
                client.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 1}, headers=second).status_code
                == 200
            )


def test_control_ends_an_answer_or_its_reasoning_from_elsewhere(script, load):
    script.answer = "◁think▷" + "t" * 600

    def thinking() -> KimiVL:
        model = load()
        model.loaded.variant = "thinking"
        return model

    with RunningServer(thinking) as server, server.client() as client:
        for action, name in (("reasoning_end", "reasoning_content"), ("cancel", "content")):
            script.decode_s = SLOW_S
            with client.stream(
                "POST", "/v1/chat/completions", json={"messages": HI, "stream": True, "max_tokens": 300}
            ) as answer:
                events = events_of(answer.iter_lines())
                chunks = [next(events), next(events)]
                said = server.post("/v1/chat/completions/control", id=chunks[0]["id"], action=action)
                assert said.status_code == 200
                script.decode_s = 0.0
                chunks += list(events)
            assert chunks[-1] == "[DONE]"
            thought = text_of(chunks, name="reasoning_content")
            if action == "reasoning_end":
                assert len(thought) < 200 and text_of(chunks) and name
            else:
                end = chunks[-2]
                assert end["choices"][0]["finish_reason"] == "length" and end["kimi"]["stop_reason"] == "cancelled"
        gone = server.post("/v1/chat/completions/control", id="chatcmpl-x", action="cancel")
        assert gone.status_code == 404


def test_a_request_that_takes_too_long_ends_with_length(script, load):
    script.answer, script.decode_s = "w" * 900, SLOW_S
    for timeout in (0.3, 3.0, 30.0):
        with RunningServer(load, timeout=timeout, max_running=1) as server:
            response = server.post("/v1/chat/completions", messages=HI)
        if response.status_code == 200:
            break
        assert response.json()["error"]["code"] == "serve.timeout"  # a busy machine: it had not begun
    answer = response.json()
    assert answer["choices"][0]["finish_reason"] == "length" and answer["kimi"]["stop_reason"] == "timeout"
    assert set(answer["choices"][0]["message"]["content"]) <= {"w"}


def test_a_silence_is_filled_with_comments_and_white_space(script, load, monkeypatch):
    from kimi_vl_cpp.server import sse

    monkeypatch.setattr(sse, "SILENCE_S", 0.2)
    heard = threading.Event()
    script.fail_at = lambda stage, done: None if stage != "prefill" else heard.wait(60)  # silent until it was heard

    def count(parts: Iterator[str], what: str) -> str:
        told = ""
        for part in parts:
            told += part
            if told.count(what) >= 3:
                heard.set()
        return told

    with RunningServer(load, ping=0.2) as server, server.client() as client:
        asked = {"messages": HI, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            assert count(answer.iter_text(), ": ping\n").endswith("data: [DONE]\n\n")
        heard.clear()
        asked = {"messages": [*HI, *HI]}
        with client.stream("POST", "/v1/chat/completions", json=asked) as late:
            told = count(late.iter_text(), " ")
        assert told.startswith("   ") and json.loads(told)["choices"][0]["message"]["content"] == "Hello world"


def test_an_error_in_the_middle_of_a_stream_is_an_event_and_no_done(script, load):
    def fail(stage, done):
        if stage == "decode" and script.failing:
            raise MemoryError

    script.failing, script.fail_at = True, fail
    with RunningServer(load) as server:
        chunks = server.stream()
        assert chunks[-1]["error"]["type"] == "unavailable_error"
        broken = server.post("/v1/chat/completions", messages=HI)
        assert broken.status_code == 503
        script.failing = False
        assert server.ask()["choices"][0]["message"]["content"] == "Hello world"


def test_a_bug_is_500_without_its_trace_and_the_trace_is_in_the_log(script, load, capfd):
    def fail(stage, done):
        if stage == "prefill":
            raise ZeroDivisionError("secret detail")

    script.fail_at = fail
    with RunningServer(load) as server:
        response = server.post("/v1/chat/completions", messages=HI)
    assert response.status_code == 500 and "secret" not in response.text
    assert response.headers["x-should-retry"] == "false"
    log = capfd.readouterr().err
    assert "secret detail" in log and response.headers["x-request-id"] in log


def test_while_the_model_loads_the_socket_is_open_and_says_so(script, load):
    go = threading.Event()

    def slow() -> KimiVL:
        go.wait(60)
        return load()

    server = RunningServer(slow)
    try:
        with server.client() as client:
            assert client.get("/ping").status_code == 200
            health = client.get("/health")
            assert health.status_code == 503 and health.json()["error"]["code"] == "serve.loading"
            assert client.get("/v1/models").status_code == 503
            go.set()
            wait_until(lambda: client.get("/health").status_code == 200, "it is ready")
    finally:
        go.set()
        server.stop()
        server.join()


def test_a_graceful_end_lets_answers_end_and_takes_no_new_ones(script, load):
    script.answer, script.decode_s = "v" * 100, SLOW_S
    with RunningServer(load) as server, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(server.stream) for _ in range(4)]
        wait_until(lambda: status(server)["running"] == 4, "all run")
        with server.client() as client:
            client.get("/ping")
            server.stop()
            wait_until(lambda: client.get("/health").status_code == 503, "it drains")
            late = client.post("/v1/chat/completions", json={"messages": HI})
            assert late.status_code == 503 and "retry-after" in late.headers
        script.decode_s = 0.0
        for one in answers:
            chunks = one.result()
            assert text_of(chunks) == "v" * 100 and chunks[-1] == "[DONE]"


def test_after_the_grace_period_streams_end_with_an_error_and_answers_with_what_there_is(script, load):
    script.answer, script.decode_s = "u" * 900, 0.02
    with RunningServer(load, grace=0.3) as server, ThreadPoolExecutor(2) as pool:
        stream, whole = pool.submit(server.stream), pool.submit(server.ask)
        wait_until(lambda: [one["state"] for one in status(server)["streams"]] == ["decode"] * 2, "both run")
        server.stop()
        assert stream.result()[-1]["error"]["code"] == "serve.shutdown"
        answer = whole.result()
        assert answer["choices"][0]["finish_reason"] == "length" and answer["kimi"]["stop_reason"] == "shutdown"


def test_headers_that_never_end_are_given_up_and_slow_ones_are_read(script, load, monkeypatch):
    from kimi_vl_cpp.server import protocol

    monkeypatch.setattr(protocol, "HEADERS_S", 0.3)
    with RunningServer(load) as server:
        address = ("127.0.0.1", server.port)
        with (
            socket.create_connection(address, timeout=60) as silent,
            socket.create_connection(address, timeout=60) as half,
        ):
            half.sendall(b"GET /ping HTTP/1.1\r\nHost: local")
            for raw in (silent, half):
                answer = raw.makefile("rb").read()
                assert answer.startswith(b"HTTP/1.1 408") and b'"code":"request.timeout"' in answer
        monkeypatch.setattr(protocol, "HEADERS_S", 60.0)
        with socket.create_connection(address, timeout=60) as kept, kept.makefile("rb") as answers:

            def answered() -> bool:
                while answers.readline() != b"\r\n":
                    pass
                return answers.read(15) == b'{"status":"ok"}'

            for _ in range(2):
                for byte in b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n":
                    kept.sendall(bytes([byte]))
                assert answered()
                monkeypatch.setattr(protocol, "HEADERS_S", 0.2)
            time.sleep(0.5)  # at rest between requests: the connection stays
            monkeypatch.setattr(protocol, "HEADERS_S", 60.0)
            kept.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answered()


def test_behind_a_proxy_with_a_prefix_everything_is_where_it_was(script, load):
    with RunningServer(load, root_path="/kimi", keys=("k",)) as server, server.client() as client:
        assert client.get("/health").status_code == 200 and client.get("/").status_code == 200
        assert client.get("/v1/models").status_code == 401
        models = client.get("/v1/models", headers={"x-api-key": "k"})
        assert models.json()["data"][0]["id"] == "fake-Instruct"
        missing = client.post("/v1/embeddings", headers={"x-api-key": "k"}, json={})
        assert missing.json()["error"]["code"] == "unsupported.endpoint"


def test_an_ended_answer_is_forgotten(script, load):
    with RunningServer(load) as server:
        for _ in range(5):
            server.ask()
        wait_until(lambda: not status(server)["streams"], "all ended")

        def none_left() -> bool:  # the thread of the last one may still be on its way out
            gc.collect()
            return not any(isinstance(one, Run) for one in gc.get_objects())

        wait_until(none_left, "no answer is held")


# The command


def serve(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "kimi_vl_cpp", "serve", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def ready_line(process: subprocess.Popen) -> str:
    for line in process.stderr:
        if line.startswith("ready: "):
            return line
    raise AssertionError("it ended before it was ready")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_the_builtin_model_and_ends_with_0(number):
    process = serve("--port", "0")
    line = ready_line(process)
    assert "kimi-vl-demo" in line and "no API keys" in line
    url = line.split()[1]
    assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
    process.send_signal(number)
    assert process.wait(60) == 0


def test_a_unix_socket_is_served_private_and_removed(tmp_path):
    path = tmp_path / "s"
    process = serve("--unix-socket", str(path))
    ready_line(process)
    assert os.stat(path).st_mode & 0o777 == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://any.example/health").status_code == 200
    with pytest.raises(BadRequest, match="listens there"):
        open_socket(Settings(unix_socket=str(path)))
    process.terminate()
    assert process.wait(60) == 0 and not path.exists()


def test_a_stale_socket_file_is_replaced_and_another_file_is_not(tmp_path):
    stale, other = tmp_path / "stale", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    other.write_text("x")
    open_socket(Settings(unix_socket=str(stale))).close()
    with pytest.raises(BadRequest, match="not a socket"):
        open_socket(Settings(unix_socket=str(other)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999"], "port"),
        (["--host", "0.0.0.0"], "--no-auth"),
        (["--host", "no.such.host.invalid", "--no-auth"], "no such address"),
        (["--max-body", "lots"], "--max-body"),
        (["--log-format", "xml"], "--log-format"),
        (["--api-key-file", "/nonexistent"], "key file"),
        (["--max-running", "0"], "max_running"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(arguments, words):
    process = serve(*arguments)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 2 and words in log and "Traceback" not in log


def test_a_taken_port_is_one_line_and_exit_code_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = serve("--port", str(taken.getsockname()[1]))
        _, log = process.communicate(timeout=120)
    assert process.returncode == 2 and "another program listens there" in log


def test_without_the_extra_the_command_names_what_to_install():
    code = "import sys; sys.modules['uvicorn'] = None; from kimi_vl_cpp.cli import main; sys.exit(main(['serve']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode != 0 and "pip install 'kimi-vl-cpp[server]'" in result.stderr


def test_run_imports_nothing_of_the_server():
    code = (
        "import sys; from kimi_vl_cpp.cli import main; main(['--help'])\n"
        "print([name for name in ('starlette', 'uvicorn', 'msgspec', 'prometheus_client') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip().splitlines()[-1] == "[]"


def test_a_trace_has_every_step_the_states_of_every_answer_and_no_text(script, load, tmp_path):
    path = tmp_path / "trace.json"
    with RunningServer(load, trace=str(path)) as server:
        server.ask(n=2, max_tokens=5)
        server.stream([{"role": "user", "content": "a secret"}], max_tokens=5)
    events = json.loads(path.read_text().rstrip().rstrip(",") + "]")
    names = [event["args"]["name"] for event in events if event["ph"] == "M"]
    assert names.pop(0) == "computing" and sorted(name.split()[1] for name in names) == ["0", "0", "1"]
    steps = [event for event in events if event["ph"] == "X" and event["tid"] == 0]
    assert sum(step["args"]["answers"] for step in steps if step["name"] == "decode") == 12
    assert {step["name"] for step in steps} == {"decode", "prefill"}
    for track in (1, 2, 3):
        spans = [event for event in events if event["ph"] == "X" and event["tid"] == track]
        assert [span["name"] for span in spans][:2] == ["preparing", "queued"]
        assert spans[-1]["name"] == "decode"
        for span, following in itertools.pairwise(spans):
            assert span["ts"] + span["dur"] == pytest.approx(following["ts"], abs=2)
        tokens = sum(event["args"]["tokens"] for event in events if event["ph"] == "i" and event["tid"] == track)
        assert tokens == 5
    assert "secret" not in path.read_text()


def test_a_trace_that_cannot_be_written_ends_the_start(script, load, tmp_path):
    with pytest.raises(BadRequest, match="trace"), RunningServer(load, trace=str(tmp_path / "no" / "trace.json")):
        pass
