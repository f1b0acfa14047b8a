"""Calls of functions through every door, as the doors' own clients read them."""

from __future__ import annotations

import json

import pytest
from server_support import RunningServer, picture_url

from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.text.tool_calls import call

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ASK = [{"role": "user", "content": "How is the weather in Rome, and what time is it?"}]
ROME = '{"city": "Rome"}'
CALLS = f"Let me look.\n{call('get_weather', ROME)}\n{call('clock', '{}')}"


@pytest.fixture
def server(script, tmp_path):
    script.answer = CALLS
    path = tmp_path / "fake-Instruct.gguf"
    path.write_bytes(b"fake")
    with RunningServer(lambda: KimiVL(path, n_ctx=4096)) as running:
        yield running


@pytest.fixture
def openai(server):
    return pytest.importorskip("openai").OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_round_of_calls_with_openais_client(server, openai, script):
    answer = openai.chat.completions.create(model="x", messages=ASK, tools=[WEATHER, CLOCK])
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls" and message.content == "Let me look."
    assert [one.function.name for one in message.tool_calls] == ["get_weather", "clock"]
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Rome"}
    script.answer = "Sunny, at noon."
    results = [
        {"role": "tool", "tool_call_id": one.id, "content": text}
        for one, text in zip(message.tool_calls, ("sunny", "noon"), strict=True)
    ]
    answer = openai.chat.completions.create(model="x", messages=[*ASK, message, *results], tools=[WEATHER, CLOCK])
    assert answer.choices[0].message.content == "Sunny, at noon." and answer.choices[0].finish_reason == "stop"


def test_streamed_calls_with_openais_own_accumulation(openai):
    with openai.chat.completions.stream(model="x", messages=ASK, tools=[WEATHER, CLOCK]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds and kinds.count("tool_calls.function.arguments.done") == 2
    assert final.finish_reason == "tool_calls" and final.message.content == "Let me look."
    assert [(one.function.name, one.function.arguments) for one in final.message.tool_calls] == [
        ("get_weather", '{"city": "Rome"}'),
        ("clock", "{}"),
    ]


def test_every_choice_has_calls_of_its_own(server):
    chunks = server.stream(ASK, tools=[WEATHER, CLOCK], n=2)
    pieces = {0: [], 1: []}
    for chunk in chunks[:-1]:
        for choice in chunk["choices"]:
            pieces[choice["index"]] += choice["delta"].get("tool_calls", ())
    for found in pieces.values():
        assert [one["function"]["name"] for one in found if "id" in one] == ["get_weather", "clock"]
    assert {one["id"] for one in pieces[0] if "id" in one}.isdisjoint(one["id"] for one in pieces[1] if "id" in one)


def test_a_screenshot_comes_back_as_the_result_of_a_call(server, script):
    message = server.ask(ASK, tools=[CLOCK])["choices"][0]["message"]
    screenshot = {"type": "image_url", "image_url": {"url": picture_url()}}
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": [screenshot]}
    script.answer = "I see."
    answer = server.ask([*ASK, message, result], tools=[CLOCK])
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    assert len(answer["kimi"]["images"]) == 1


RESPONSES_TOOLS = [
    {"type": "function", "name": "get_weather", "parameters": PARAMETERS},
    {"type": "function", "name": "clock"},
]


def test_a_round_of_calls_as_responses(openai, script):
    first = openai.responses.create(model="x", input=ASK, tools=RESPONSES_TOOLS)
    assert [item.type for item in first.output] == ["message", "function_call", "function_call"]
    assert first.output_text == "Let me look." and first.status == "completed"
    asked = first.output[1]
    assert (asked.name, asked.arguments, asked.status) == ("get_weather", '{"city": "Rome"}', "completed")
    outputs = [
        {"type": "function_call_output", "call_id": item.call_id, "output": text}
        for item, text in zip(first.output[1:], ("sunny", "noon"), strict=True)
    ]
    script.answer = "Sunny, at noon."
    history = [*ASK, *(item.to_dict() for item in first.output), *outputs]
    second = openai.responses.create(model="x", input=history, tools=RESPONSES_TOOLS)
    assert second.output_text == "Sunny, at noon."


def test_streamed_responses_carry_calls_as_items(openai):
    events = list(openai.responses.create(model="x", input=ASK, tools=RESPONSES_TOOLS, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == ['{"city": "Rome"}', "{}"]
    for event in done:
        pieces = [
            one.delta
            for one in events
            if one.type == "response.function_call_arguments.delta" and one.item_id == event.item_id
        ]
        assert "".join(pieces) == event.arguments
    added = [event for event in events if event.type == "response.output_item.added"]
    assert [event.output_index for event in added] == [0, 1, 2]
    final = events[-1].response
    assert [item.id for item in final.output] == [event.item.id for event in added]


def test_a_call_alone_is_the_only_item_and_a_cut_one_is_incomplete(openai, script):
    script.answer = call("get_weather", '{"city": "Rome"}')
    whole = openai.responses.create(model="x", input=ASK, tools=RESPONSES_TOOLS, tool_choice="required")
    assert [item.type for item in whole.output] == ["function_call"]
    cut = openai.responses.create(model="x", input=ASK, tools=RESPONSES_TOOLS, max_output_tokens=64)
    assert cut.status == "incomplete" and cut.output[0].status == "incomplete"
    assert '{"city": "Rome"}'.startswith(cut.output[0].arguments)


def lines_of(response):
    return [json.loads(line) for line in response.text.splitlines()]


def test_a_round_of_calls_as_ollama(server, script):
    asked = {"model": "x", "messages": ASK, "tools": [WEATHER, CLOCK]}
    whole = server.post("/api/chat", stream=False, **asked).json()
    expected = [
        {"function": {"name": "get_weather", "arguments": {"city": "Rome"}}},
        {"function": {"name": "clock", "arguments": {}}},
    ]
    assert whole["message"]["tool_calls"] == expected and whole["message"]["content"] == "Let me look."
    lines = lines_of(server.post("/api/chat", **asked))
    assert [one for line in lines for one in line["message"].get("tool_calls", ())] == expected
    assert "".join(line["message"]["content"] for line in lines) == "Let me look."
    script.answer = "Sunny."
    history = [
        *ASK,
        whole["message"],
        {"role": "tool", "tool_name": "clock", "content": "noon"},
        {"role": "tool", "tool_name": "get_weather", "content": "sunny"},
    ]
    answer = server.post("/api/chat", stream=False, model="x", messages=history, tools=[WEATHER, CLOCK]).json()
    assert answer["message"] == {"role": "assistant", "content": "Sunny."}
    assert "tools" in server.post("/api/show", model="fake-Instruct").json()["capabilities"]


def test_a_result_nobody_asked_for_is_refused_in_ollamas_way(server):
    response = server.post("/api/chat", messages=[*ASK, {"role": "tool", "tool_name": "clock", "content": "noon"}])
    assert response.status_code == 400 and "messages[1].tool_name" in response.json()["error"]
