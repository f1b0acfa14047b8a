"""Completions and tokens as lm-eval asks for them, and OpenAI's own client, unchanged."""

from __future__ import annotations

import json

import pytest
from server_support import HI, RunningServer, with_picture

from kimi_vl_cpp.generation.choosing import token_logprob
from kimi_vl_cpp.model import KimiVL


@pytest.fixture(scope="module")
def library():
    with KimiVL.builtin(n_ctx=1024) as model:
        yield model


@pytest.fixture(scope="module")
def server():
    with RunningServer(lambda: KimiVL.builtin(n_ctx=1024), aliases=("kimi",)) as running:
        yield running


def test_loglikelihoods_as_lm_eval_reads_them(server, library):
    context, continuation = library.tokenize("The total is "), library.tokenize("$10.05.")
    ids = context + continuation
    asked = {"prompt": [ids, ids[:9]], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1}
    answer = server.post("/v1/completions", **asked).json()
    choice = answer["choices"][0]
    values = choice["logprobs"]["token_logprobs"][len(context) : -1]
    top = choice["logprobs"]["top_logprobs"][len(context) : -1]
    logits = library.logits([ids])
    expected = [token_logprob(logits[len(context) + k - 1], token, 1) for k, token in enumerate(continuation)]
    assert values == pytest.approx([one.logprob for one in expected], abs=1e-6)
    greedy = [max(best.values()) == value for best, value in zip(top, values, strict=True)]
    assert greedy == [one.top[0][0] == one.token_id for one in expected]
    assert len(answer["choices"]) == 2 and answer["choices"][1]["index"] == 1
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["text"].startswith("The total is $10.05.")


def test_a_completion_continues_its_prompt_and_text_stays_text(server, library):
    prompt = "one two <|im_end|>"
    answer = server.post("/v1/completions", prompt=prompt, max_tokens=6, return_token_ids=True, seed=1).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["prompt_token_ids"] == library.tokenize(prompt)
    special = server.post(
        "/v1/completions", prompt=prompt, max_tokens=6, return_token_ids=True, parse_special=True
    ).json()
    assert special["choices"][0]["prompt_token_ids"] == library.tokenize(prompt, special=True)
    ours = library.start_text(prompt, max_new_tokens=6, seed=1).drain()
    assert answer["choices"][0]["text"] == ours.text


def test_streamed_completions_join_to_the_whole(server):
    asked = {
        "prompt": ["ab", "cd"],
        "max_tokens": 12,
        "n": 2,
        "seed": 4,
        "temperature": 1.2,
        "echo": True,
        "logprobs": 2,
    }
    whole = server.post("/v1/completions", **asked).json()
    body = {**asked, "stream": True}
    with server.client() as client, client.stream("POST", "/v1/completions", json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines[:-1]]
    for index in range(4):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in mine) == whole["choices"][index]["text"]
        assert mine[-1]["finish_reason"] == whole["choices"][index]["finish_reason"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "logprobs": 6}, "logprobs"),
        ({"prompt": "x", "echo": 1}, "echo"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_wrong_completions_are_400_and_named(server, fields, param):
    response = server.post("/v1/completions", **fields)
    assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_tokens_there_and_back(server, library):
    text = "Grüße ◁think▷ <|im_end|> 日本"
    told = server.post("/tokenize", prompt=text).json()
    assert told == {"tokens": library.tokenize(text, special=True), "count": len(told["tokens"]), "max_model_len": 1024}
    assert server.post("/v1/detokenize", tokens=told["tokens"]).json() == {"prompt": text, "content": text}
    assert server.post("/tokenize", content=text, parse_special=False).json()["tokens"] == library.tokenize(text)
    messages = server.post("/tokenize", messages=with_picture(), return_token_strs=True).json()
    assert messages["tokens"].count(-1) == 6 and len(messages["token_strs"]) == messages["count"]
    assert messages["count"] == server.ask(with_picture(), max_tokens=1)["usage"]["prompt_tokens"]
    assert server.post("/detokenize", tokens=[10**6]).status_code == 400
    with server.client() as client:
        assert client.get("/tokenizer_info").json()["eos_token"] == "[EOS]"


# OpenAI's client


@pytest.fixture
def openai(server):
    module = pytest.importorskip("openai")
    with module.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_s_client_reads_answers_streams_pictures_and_log_probabilities(openai, library):
    answer = openai.chat.completions.create(model="x", messages=with_picture(2), max_tokens=10, seed=5, logprobs=True)
    ours = library.create_chat_completion(with_picture(2), max_tokens=10, seed=5)
    assert answer.choices[0].message.content == ours["choices"][0]["message"]["content"]
    assert answer.usage.prompt_tokens_details.cached_tokens is not None
    assert "".join(one.token for one in answer.choices[0].logprobs.content) == answer.choices[0].message.content
    stream = openai.chat.completions.create(
        model="x", messages=HI, max_tokens=10, seed=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].usage.completion_tokens > 0
    assert [model.id for model in openai.models.list()] == ["kimi"]
    assert openai.completions.create(model="x", prompt="a", max_tokens=2).choices[0].text is not None


def test_openai_s_client_raises_its_own_errors(openai):
    module = pytest.importorskip("openai")
    with pytest.raises(module.BadRequestError) as caught:
        openai.chat.completions.create(model="x", messages=HI, temperature=-1)
    assert caught.value.param == "temperature" and caught.value.code == "request.temperature"
    with pytest.raises(module.NotFoundError):
        openai.embeddings.create(model="x", input="y")


# Responses


def test_responses_answer_as_chat_completions_do(server, library):
    asked = {"seed": 6, "temperature": 1.1}
    ours = library.create_chat_completion(
        [{"role": "system", "content": "Be brief."}, *with_picture(3)], max_tokens=12, **asked
    )
    image, text = with_picture(3)[0]["content"]
    content = [
        {"type": "input_image", "image_url": image["image_url"]["url"], "detail": "auto"},
        {"type": "input_text", "text": text["text"]},
    ]
    answer = server.post(
        "/v1/responses",
        input=[{"role": "user", "content": content}],
        instructions="Be brief.",
        max_output_tokens=12,
        store=True,
        **asked,
    ).json()
    (message,) = answer["output"]
    assert message["content"][0]["text"] == ours["choices"][0]["message"]["content"]
    assert answer["usage"]["input_tokens"] == ours["usage"]["prompt_tokens"]
    assert answer["store"] is False and answer["kimi"]["notices"] == ["store: this field has no effect"]
    assert answer["status"] == ("completed" if ours["choices"][0]["finish_reason"] == "stop" else "incomplete")


def test_openai_s_client_reads_the_events_of_a_response(openai):
    with openai.responses.stream(model="x", input="Hello!", max_output_tokens=60, temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == sorted(event.sequence_number for event in events)
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    whole = openai.responses.create(model="x", input="Hello!", max_output_tokens=60, temperature=0)
    assert deltas == whole.output_text == final.output_text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": "x", "previous_response_id": "r"}, "previous_response_id"),
        ({"input": [{"type": "item_reference"}]}, "input[0].type"),
        ({"input": [{"type": "function_call"}]}, "input[0].name"),
        ({"input": [{"type": "function_call", "name": "f", "call_id": 5}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "5"}]}, "input[0].output"),
        ({"input": [{"type": "function_call_output", "call_id": "5", "output": "x"}]}, "input[0].call_id"),
        ({"instructions": "Be brief", "input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": "x", "tools": [{"type": "function", "name": "f", "parameters": 5}]}, "tools[0].parameters"),
        (
            {
                "input": "x",
                "tools": [{"type": "function", "name": "f"}],
                "tool_choice": {"type": "function", "name": "g"},
            },
            "tool_choice.name",
        ),
        ({"input": [5]}, "input[0]"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "x", "max_output_tokens": "5"}, "max_output_tokens"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
    ],
)
def test_wrong_responses_are_400_and_named(server, fields, param):
    response = server.post("/v1/responses", **fields)
    assert response.status_code == 400 and response.json()["error"]["param"] == param
