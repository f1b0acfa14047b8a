"""Ollama's doors: its shapes, and the answers of the others."""

from __future__ import annotations

import json

import pytest
from server_support import HI, RunningServer, picture_url, with_picture

from kimi_vl_cpp.model import KimiVL


@pytest.fixture(scope="module")
def server():
    with RunningServer(lambda: KimiVL.builtin(n_ctx=1024), aliases=("kimi",)) as running:
        yield running


@pytest.fixture(scope="module")
def library():
    with KimiVL.builtin(n_ctx=1024) as model:
        yield model


def test_chat_is_the_answer_of_the_library_streamed_and_whole(server, library):
    options = {"seed": 4, "temperature": 1.1, "num_predict": 12}
    ours = library.create_chat_completion(with_picture(2), seed=4, temperature=1.1, max_tokens=12)
    image = picture_url(2).partition(",")[2]
    asked = {"model": "kimi:latest", "messages": [{"role": "user", "content": "What is this?", "images": [image]}]}
    whole = server.post("/api/chat", **asked, options=options, stream=False).json()
    assert whole["message"]["content"] == ours["choices"][0]["message"]["content"]
    assert whole["done"] is True and whole["done_reason"] == ours["choices"][0]["finish_reason"]
    assert whole["prompt_eval_count"] == ours["usage"]["prompt_tokens"]
    streamed = server.post("/api/chat", **asked, options=options)
    assert streamed.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in streamed.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


def test_generate_has_a_prompt_and_a_system_message(server, library):
    messages = [{"role": "system", "content": "Be brief."}, *HI]
    ours = library.create_chat_completion(messages, temperature=0, max_tokens=9)
    asked = {"prompt": "Hi", "system": "Be brief.", "options": {"temperature": 0, "num_predict": 9}, "stream": False}
    assert server.post("/api/generate", **asked).json()["response"] == ours["choices"][0]["message"]["content"]


def test_a_format_is_followed(server):
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": False}
    answer = server.post("/api/chat", messages=HI, format=schema, stream=False).json()
    assert answer["done_reason"] == "length" or json.loads(answer["message"]["content"]) == {"a": None}


def test_what_clients_ask_before(server):
    with server.client() as client:
        assert tuple(map(int, client.get("/api/version").json()["version"].split("."))) >= (0, 9)
        (model,) = client.get("/api/tags").json()["models"]
        assert model["name"] == "kimi:latest"
        assert client.get("/api/ps").json()["models"][0]["name"] == "kimi:latest"
        shown = client.post("/api/show", json={"model": "kimi"}).json()
        assert shown["capabilities"] == ["completion", "vision", "tools"]
        assert client.post("/api/show", json={"model": "other"}).status_code == 404


@pytest.mark.parametrize(
    ("path", "fields", "word"),
    [
        ("/api/chat", {}, "messages"),
        ("/api/chat", {"messages": HI, "options": {"temperature": "hot"}}, "temperature"),
        ("/api/chat", {"messages": HI, "format": "xml"}, "format"),
        ("/api/chat", {"messages": HI, "tools": [{}]}, "tools"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["!"]}]}, "messages[0]"),
        ("/api/generate", {"prompt": 5}, "prompt"),
        ("/api/generate", {"prompt": "x", "think": "loud"}, "think"),
    ],
)
def test_errors_are_one_string(server, path, fields, word):
    response = server.post(path, **fields)
    assert response.status_code == 400 and set(response.json()) == {"error"} and word in response.json()["error"]
