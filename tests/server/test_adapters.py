"""Adapters over HTTP: each is a model of its own in the list, and a request's `model` picks it."""

from __future__ import annotations

import pytest
from adapter_files import random_gguf_adapter
from server_support import HI, RunningServer

from kimi_vl_cpp import builtin
from kimi_vl_cpp.model import KimiVL


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: random_gguf_adapter(folder / f"{name}.gguf", builtin.model_path(), seed=seed, only="attn_")
        for seed, name in enumerate(("invoices", "tickets"))
    }


@pytest.fixture(scope="module")
def server(adapters):
    with RunningServer(lambda: KimiVL.builtin(n_ctx=1024, lora=adapters), aliases=("kimi",)) as running:
        yield running


def test_every_adapter_is_a_model_of_the_list(server):
    with server.client() as client:
        models = client.get("/v1/models").json()["data"]
        one = client.get("/v1/models/tickets").json()
    assert [(model["id"], model["parent"]) for model in models] == [
        ("kimi", None),
        ("invoices", "kimi"),
        ("tickets", "kimi"),
    ]
    assert one == models[2]


@pytest.mark.parametrize("name", ["kimi", "invoices", "tickets"])
def test_the_model_of_a_request_picks_the_adapter(server, adapters, name):
    lora = adapters.get(name)
    with KimiVL.builtin(n_ctx=1024, lora=lora) as model:
        want = model.create_chat_completion(HI, temperature=0, max_tokens=8)["choices"][0]["message"]["content"]
        text = model.start_text("Hi there", temperature=0, max_new_tokens=8).drain().text
    asked = {"model": name, "temperature": 0, "max_tokens": 8}
    answer = server.post("/v1/chat/completions", messages=HI, **asked).json()
    assert (answer["model"], answer["choices"][0]["message"]["content"]) == (name, want)
    chunks = server.stream(HI, **asked)
    assert {chunk["model"] for chunk in chunks if chunk != "[DONE]"} == {name}
    completion = server.post("/v1/completions", prompt="Hi there", **asked).json()
    assert (completion["model"], completion["choices"][0]["text"]) == (name, text)
    response = server.post("/v1/responses", input=HI, model=name, temperature=0, max_output_tokens=8).json()
    assert response["model"] == name
    options = {"temperature": 0, "num_predict": 8}
    ollama = server.post("/api/chat", model=f"{name}:latest", messages=HI, options=options, stream=False).json()
    assert ollama["message"]["content"] == want


def test_without_a_model_the_base_answers(server):
    assert server.post("/v1/chat/completions", messages=HI, max_tokens=1).json()["model"] == "kimi"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/api/chat"])
def test_an_unknown_name_is_not_answered_by_another_model(server, path):
    content = {"input": HI} if path == "/v1/responses" else {"messages": HI}
    refused = server.post(path, model="invoice", **content)
    assert refused.status_code == 404
    assert "invoice" in refused.text and "kimi, invoices, tickets" in refused.text


def test_the_field_of_another_server_says_what_to_give_instead(server):
    refused = server.post("/v1/chat/completions", messages=HI, lora=[{"id": 0, "scale": 0.5}])
    assert refused.status_code == 400 and "give the adapter's name as model" in refused.text
