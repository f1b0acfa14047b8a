"""What a server refuses, with which status, and that every refusal is a body that OpenAI's clients read."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_support import HI, RunningServer, with_picture
from waiting import wait_until

from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.server.keys import Keys
from kimi_vl_cpp.server.middleware import host_allowed


@pytest.fixture(scope="module")
def server():
    with RunningServer(lambda: KimiVL.builtin(n_ctx=1024), max_body=1 << 20, max_images=3) as running:
        yield running


@pytest.fixture(scope="module")
def locked():
    names = ("ann:secret-a", "secret-b")
    with RunningServer(
        lambda: KimiVL.builtin(n_ctx=1024),
        keys=names,
        strict=True,
        aliases=("kimi",),
        cors_origins=("https://chat.example",),
    ) as running:
        yield running


def refused(response, status, code):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "kimi_code"}
    assert error["code"] == code
    assert response.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": HI, "temperature": "1"}, "temperature", "request.temperature"),
        ({"messages": HI, "n": 17}, "n", "request.n"),
        ({"messages": []}, "messages", "request.messages"),
        ({}, "messages", "request.messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "request.content"),
        ({"messages": HI, "tools": [{}]}, "tools[0].function", "request.tools"),
        ({"messages": HI, "functions": [{}]}, "functions", "unsupported.functions"),
        (
            {"messages": HI, "response_format": {"type": "xml"}},
            "response_format.type",
            "request.response_format",
        ),
        ({"messages": with_picture() * 4}, "messages", "request.too_many_images"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, None, "context_length_exceeded"),
    ],
)
def test_a_wrong_field_is_400_and_named(server, fields, param, code):
    for extra in ({}, {"stream": True}):
        error = refused(server.post("/v1/chat/completions", **fields, **extra), 400, code)
        assert error["param"] == param and error["type"] == "invalid_request_error"


def test_pictures_that_cannot_be_opened_are_400_at_their_place(server):
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}
    error = refused(
        server.post("/v1/chat/completions", messages=[{"role": "user", "content": [part]}]),
        400,
        "request.image_url_remote",
    )
    assert error["param"] == "messages[0].content[0].image_url"
    part["image_url"]["url"] = "data:image/png;base64,iVBORw0KGgo="
    response = server.post("/v1/chat/completions", messages=[{"role": "user", "content": [part]}])
    assert response.status_code == 400 and response.json()["error"]["param"].endswith("content[0].image_url")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nothing",
        b'{"messages": NaN}',
        b'{"temperature": 1e999}',
        b'{"a": "\\ud800"}',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_not_a_json_object_is_400(server, body):
    with server.client() as client:
        refused(client.post("/v1/chat/completions", content=body), 400, "request.json")


def test_bodies_over_the_limit_are_413_before_they_are_read(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")

    def endless():
        for _ in range(64):
            yield b" " * 65536

    with server.client() as client:
        refused(client.post("/v1/chat/completions", content=endless()), 413, "request.too_large")
        compressed = client.post("/v1/chat/completions", content=b"{}", headers={"Content-Encoding": "gzip"})
        refused(compressed, 415, "request.encoding")


def test_wrong_paths_and_methods(server):
    with server.client() as client:
        refused(client.get("/nothing"), 404, "request.path")
        refused(client.post("/v1/embeddings", json={}), 404, "unsupported.endpoint")
        refused(client.delete("/v1/models"), 405, "request.method")
        assert client.get("/v1/chat/completions").headers["allow"] == "POST"
        assert client.head("/health").status_code == 200 and client.get("/ping").status_code == 200


def test_the_client_s_request_id_comes_back_where_it_is_fit_for_headers(server):
    with server.client() as client:
        assert client.get("/ping", headers={"x-request-id": "a.b-7"}).headers["x-request-id"] == "a.b-7"
        assert client.get("/ping", headers={"x-request-id": "a b"}).headers["x-request-id"].startswith("req-")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    "model stream stream_options n logprobs top_logprobs temperature top_p top_k min_p frequency_penalty seed stop "
    "presence_penalty logit_bias tools stop_token_ids ignore_eos min_tokens reasoning_effort thinking reasoning "
    "response_format continue_final_message return_token_ids return_progress echo prompt suffix x".split()
)
PATHS = st.sampled_from(
    "/v1/chat/completions /v1/completions /tokenize /detokenize /v1/chat/completions/input_tokens "
    "/v1/chat/completions/control".split()
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(PATHS, st.dictionaries(FIELDS, JSON, max_size=3), st.none() | JSON, st.none() | JSON)
def test_no_json_makes_the_server_fail(server, path, fields, content, messages):
    body = {"messages": HI, "prompt": "x", "tokens": [1], **fields, "max_tokens": 2}
    if content is not None:
        body["messages"] = [{"role": "user", "content": content}]
    if messages is not None:
        body["messages"] = messages
    try:
        data = json.dumps(body).encode()
    except (UnicodeEncodeError, ValueError):
        return
    with server.client() as client:
        response = client.post(path, content=data)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code", "kimi_code"}


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200))
def test_no_bytes_make_the_server_fail(server, body):
    with server.client() as client:
        assert client.post("/v1/chat/completions", content=body).status_code == 400


def test_after_all_of_it_the_answers_are_the_same(server):
    with KimiVL.builtin(n_ctx=1024) as model:
        ours = model.create_chat_completion(HI, seed=3, temperature=1.1, max_tokens=20)
    assert server.ask(seed=3, temperature=1.1, max_tokens=20)["choices"] == ours["choices"]


# Keys, names, hosts, origins


def test_a_key_is_needed_and_both_headers_carry_it(locked):
    body = {"messages": HI, "max_tokens": 1}
    with locked.client() as client:
        missing = client.post("/v1/chat/completions", json=body)
        assert refused(missing, 401, "invalid_api_key")["type"] == "authentication_error"
        assert missing.headers["www-authenticate"] == "Bearer"
        for wrong in (
            "Bearer",
            "Bearer secret",
            "Bearer secret-a2",
            "Basic secret-a",
            "Bearer \xe9",
            "x" * 1000,
        ):
            header = {"authorization": wrong.encode("latin-1")}
            refused(client.post("/v1/chat/completions", json=body, headers=header), 401, "invalid_api_key")
        for right in ({"authorization": "bearer secret-a"}, {"x-api-key": "secret-b"}):
            assert client.post("/v1/chat/completions", json=body, headers=right).status_code == 200
        assert client.get("/v1/models?api_key=secret-a").status_code == 401
        assert client.get("/health").status_code == 200 and client.get("/ping").status_code == 200
        assert client.get("/metrics").status_code == 401 and client.get("/v1/status").status_code == 401


def test_strict_refuses_unknown_fields_and_models(locked):
    header = {"authorization": "Bearer secret-a"}
    with locked.client(headers=header) as client:
        body = {"messages": HI, "max_tokens": 1}
        refused(client.post("/v1/chat/completions", json={**body, "max_token": 1}), 400, "request.unknown_option")
        refused(client.post("/v1/chat/completions", json={**body, "model": "gpt-4"}), 404, "model_not_found")
        assert client.post("/v1/chat/completions", json={**body, "model": "kimi"}).status_code == 200


def test_no_key_is_in_the_log(locked, capfd):
    with locked.client(headers={"authorization": "Bearer secret-a"}) as client:
        client.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 1})
        client.get("/v1/models", headers={"authorization": "Bearer secret-wrong"})
    log = ""

    def written() -> bool:  # a line is written after its answer
        nonlocal log
        log += capfd.readouterr().err
        return "GET /v1/models 401" in log

    wait_until(written, "both requests are in the log")
    assert "key=ann" in log and "secret" not in log and "Hi" not in log


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "a/?x=", "user@localhost", "", "127.0.0.1:x"]
)
def test_a_foreign_host_is_403(server, host):
    assert not host_allowed(host)
    with server.client() as client:
        refused(client.get("/ping", headers={"host": host}), 403, "serve.host")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "a.localhost", "127.0.0.1:8000", "[::1]:8000", "10.0.0.5"]
)
def test_an_address_or_localhost_is_a_host(host):
    assert host_allowed(host)


def test_a_foreign_origin_is_403_also_for_simple_posts(server, locked):
    with server.client() as client:
        own = {"origin": server.url}
        assert client.get("/ping", headers=own).status_code == 200
        for foreign in ("https://evil.example", "null", "http://localhost:1"):
            simple = {"origin": foreign, "content-type": "text/plain"}
            refused(client.post("/v1/chat/completions", content=b"{}", headers=simple), 403, "serve.origin")
    with locked.client() as client:
        headers = {"origin": "https://chat.example", "access-control-request-method": "POST"}
        preflight = client.options("/v1/chat/completions", headers=headers)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
        assert "authorization" in preflight.headers["access-control-allow-headers"]


def test_an_address_beyond_this_computer_needs_a_key():
    from kimi_vl_cpp.errors import BadRequest
    from kimi_vl_cpp.server.settings import Settings

    for host in ("0.0.0.0", "::", "10.0.0.1", "example.com"):
        with pytest.raises(BadRequest, match="--no-auth"):
            Settings(host=host).check()
        Settings(host=host, no_auth=True).check()
        Settings(host=host, keys=Keys(["k"])).check()
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        Settings(host=host).check()


def test_keys_are_read_from_a_file_again(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nann:one\n\ntwo\n")
    keys = Keys(["bob:three"], file)
    assert keys.names == ["bob", "ann", "default"]
    assert [keys.name_of(key) for key in (b"one", b"two", b"three", b"on", b"one ")] == [
        "ann",
        "default",
        "bob",
        None,
        None,
    ]
    file.write_text("ann:four\n")
    keys.reload()
    assert keys.name_of(b"one") is None and keys.name_of(b"four") == "ann"
    assert "four" not in repr(keys)


def raw_answer(server, *parts):
    """The status line, and the error in the body, of what was sent by hand."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        with contextlib.suppress(OSError):  # it may have been refused before its end
            for part in parts:
                raw.sendall(part)
        answer = b""
        with contextlib.suppress(OSError):
            while part := raw.recv(65536):
                answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], json.loads(body)["error"]


@pytest.mark.parametrize("end", [b"", b"\r\nConnection: close\r\n\r\n"])
def test_headers_that_are_too_long_are_431(server, end):
    head = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Long: "
    status, error = raw_answer(server, head + b"x" * 66_000 + end)
    assert status.startswith(b"HTTP/1.1 431") and error["kimi_code"] == "request.headers"


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET / HTTP/1.1\r\nHost\r\n\r\n", b"GET /\r\n\r\n"],
)
def test_what_is_not_http_is_400(server, sent):
    status, error = raw_answer(server, sent)
    assert status.startswith(b"HTTP/1.1 400") and error["kimi_code"] == "request.http"
