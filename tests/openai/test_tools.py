"""Functions in chat completions: what the model is shown, what it may write, how calls come out."""

from __future__ import annotations

import json

import pytest

from kimi_vl_cpp.errors import BadRequest, Unsupported
from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.text.tool_calls import call

pytest.importorskip("llguidance", reason="needs the extra [server]")

ASK = [{"role": "user", "content": "What is the weather in Rome?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ROME = call("get_weather", '{"city": "Rome"}')


@pytest.fixture
def model(script):
    with KimiVL("fake-Instruct.gguf", n_ctx=2048) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def real():
    with KimiVL.builtin(n_ctx=2048) as loaded:
        yield loaded


def prompt_of(model, messages, **options):
    stream = model.create_chat_completion(messages, stream=True, max_tokens=0, **options)
    text = model.detokenize([one for one in stream._streams[0].prompt_ids if one >= 0], special=True)
    stream.close()
    return text


def deltas_of(chunks):
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def joined_calls(deltas):
    calls = []
    for piece in (one for delta in deltas for one in delta.get("tool_calls", ())):
        if "id" in piece:
            assert piece["index"] == len(calls) and piece["function"]["arguments"] == ""
            calls.append({"id": piece["id"], "name": piece["function"]["name"], "arguments": ""})
        else:
            calls[piece["index"]]["arguments"] += piece["function"]["arguments"]
    return calls


# What the model writes


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_demanded_call_satisfies_its_schema(real, choice, seed):
    answer = real.create_chat_completion(
        ASK, tools=[WEATHER, CLOCK], tool_choice=choice, temperature=1.5, seed=seed, max_tokens=300
    )["choices"][0]
    calls = answer["message"].get("tool_calls", [])
    for one in calls[: None if answer["finish_reason"] == "tool_calls" else -1]:
        arguments = json.loads(one["function"]["arguments"])
        if one["function"]["name"] == "clock":
            assert choice == "required" and arguments == {}
        else:
            assert one["function"]["name"] == "get_weather"
            assert len(arguments["city"]) <= 12 and arguments.get("days", 1) >= 1
            assert arguments.keys() <= {"city", "days"}
    if choice != "required":
        assert len(calls) <= 1
    assert answer["finish_reason"] in ("tool_calls", "length")
    assert answer["message"]["content"] in (None, "")


def test_calls_in_an_answer_are_taken_out_of_its_content(model, script):
    script.answer = f"Let me look.\n{ROME}\n{call('clock', '{}')}"
    answer = model.create_chat_completion(ASK, tools=[WEATHER, CLOCK], logprobs=True, top_logprobs=1)["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    assert answer["message"]["content"] == "Let me look."
    first, second = answer["message"]["tool_calls"]
    assert first["type"] == "function" and first["id"].startswith("call_") and first["id"] != second["id"]
    assert first["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    assert second["function"] == {"name": "clock", "arguments": "{}"}
    assert "".join(one["token"] for one in answer["logprobs"]["content"]) == "Let me look.\n"


def test_content_is_null_beside_calls_alone(model, script):
    script.answer = ROME
    message = model.create_chat_completion(ASK, tools=[WEATHER])["choices"][0]["message"]
    assert message["content"] is None and len(message["tool_calls"]) == 1


def test_an_answer_without_a_call_stays_as_it_is(model, script):
    script.answer = " It is <b>sunny</b> "
    answer = model.create_chat_completion(ASK, tools=[WEATHER])["choices"][0]
    assert answer["message"]["content"] == script.answer and answer["finish_reason"] == "stop"
    assert "tool_calls" not in answer["message"]


def test_a_stream_carries_the_same_calls_in_pieces(model, script):
    script.answer = f"Let me look.\n{ROME}{call('clock', '{}')}"
    chunks = list(model.create_chat_completion(ASK, tools=[WEATHER, CLOCK], stream=True))
    deltas = deltas_of(chunks)
    calls = joined_calls(deltas)
    assert [(one["name"], one["arguments"]) for one in calls] == [("get_weather", '{"city": "Rome"}'), ("clock", "{}")]
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me look."
    assert len([one for delta in deltas for one in delta.get("tool_calls", ())]) > 6  # as they came
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_reasoning_may_come_before_a_call_and_may_speak_of_calls(model, script):
    model.loaded.variant = "thinking"
    script.answer = f"◁think▷I could write <tool_call> now.◁/think▷\n\n{ROME}"
    message = model.create_chat_completion(ASK, tools=[WEATHER], tool_choice="required")["choices"][0]["message"]
    assert message["reasoning_content"] == "I could write <tool_call> now."
    assert message["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'
    script.answer = "◁think▷Is it <tool_call>?◁/think▷\n\nNo."
    message = model.create_chat_completion(ASK, tools=[WEATHER])["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Is it <tool_call>?", "No.")


@pytest.mark.parametrize(
    ("wish", "n"),
    [
        ({}, 2),
        ({"parallel_tool_calls": False}, 1),
        ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, 1),
    ],
)
def test_how_many_calls_there_may_be(model, script, wish, n):
    script.answer = call("clock", "{}") * 2
    answer = model.create_chat_completion(ASK, tools=[CLOCK], **wish)["choices"][0]
    assert len(answer["message"]["tool_calls"]) == n and answer["finish_reason"] == "tool_calls"


def test_a_call_that_is_cut_is_length_and_keeps_what_there_is(model, script):
    script.answer = ROME
    answer = model.create_chat_completion(ASK, tools=[WEATHER], max_tokens=len(ROME) - 18)["choices"][0]
    assert answer["finish_reason"] == "length"
    assert '{"city": "Rome"}'.startswith(answer["message"]["tool_calls"][0]["function"]["arguments"])


@pytest.mark.parametrize("seed", range(3))
def test_no_call_is_written_where_none_may_be(real, seed):
    bias = {str(real.tokenize("<")[0]): 20}
    answer = real.create_chat_completion(
        ASK, tools=[WEATHER], tool_choice="none", seed=seed, max_tokens=40, temperature=1, logit_bias=bias
    )["choices"][0]
    assert "tool_calls" not in answer["message"] and "<tool_call>" not in answer["message"]["content"]


def test_a_format_holds_the_text_and_the_schema_a_call(model, script):
    wanted = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "required": ["a"]}}}
    script.answer = '{"a": 1}'
    answer = model.create_chat_completion(ASK, tools=[WEATHER], response_format=wanted)["choices"][0]
    assert json.loads(answer["message"]["content"]) == {"a": 1}
    script.answer = ROME
    answer = model.create_chat_completion(ASK, tools=[WEATHER], response_format=wanted)["choices"][0]
    assert answer["finish_reason"] == "tool_calls" and answer["message"]["content"] is None


@pytest.mark.parametrize("seed", range(3))
def test_arguments_that_the_schema_does_not_name_are_not_written(real, seed):
    """Also where it does not forbid them; and at most one space goes between two tokens of JSON."""
    parameters = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    for open_too in (False, True):
        parameters["additionalProperties"] = True
        if not open_too:
            del parameters["additionalProperties"]
        answer = real.create_chat_completion(
            ASK,
            tools=[tool],
            tool_choice="required",
            parallel_tool_calls=False,
            seed=seed,
            temperature=1.5,
            max_tokens=99,
        )["choices"][0]
        arguments = answer["message"]["tool_calls"][0]["function"]["arguments"]
        assert arguments.startswith(("{ ", '{"'))
        if not open_too:
            assert answer["finish_reason"] == "tool_calls"
            assert arguments.replace(" ", "") in ('{"city":"Rome"}', '{"city":"Oslo"}')
            assert "  " not in arguments


# What the model is shown


def test_functions_are_in_the_system_message(model):
    default = prompt_of(model, ASK, tools=[WEATHER])
    own = prompt_of(model, [{"role": "system", "content": "Be brief."}, *ASK], tools=[WEATHER])
    for prompt in (default, own):
        system = prompt.split("<|im_end|>")[0]
        assert json.dumps(WEATHER["function"]) in system and "<tool_call>" in system
    assert "Be brief.\n\n" in own and own.count("<|im_system|>") == 1
    choices = ("auto", "required", "none", {"type": "function", "function": {"name": "get_weather"}})
    assert {prompt_of(model, ASK, tools=[WEATHER], tool_choice=choice) for choice in choices} == {default}
    assert "<tool_call>" not in prompt_of(model, ASK)


def test_calls_and_results_go_back_as_they_were_written(model, script):
    script.answer = f"Let me look.{ROME}{call('clock', '{}')}"
    message = model.create_chat_completion(ASK, tools=[WEATHER, CLOCK])["choices"][0]["message"]
    ids = [one["id"] for one in message["tool_calls"]]
    history = [
        *ASK,
        message,
        {"role": "tool", "tool_call_id": ids[1], "content": "noon"},
        {"role": "tool", "tool_call_id": ids[0], "content": [{"type": "text", "text": "sunny"}]},
        {"role": "user", "content": "So?"},
    ]
    prompt = prompt_of(model, history, tools=[WEATHER, CLOCK])
    turns = [turn.split("<|im_middle|>")[-1] for turn in prompt.split("<|im_end|>")]
    assert turns[2] == script.answer
    assert turns[3] == (
        '<tool_response name="clock">noon</tool_response><tool_response name="get_weather">sunny</tool_response>'
    )
    assert turns[4] == "So?"
    assert prompt_of(model, history).endswith(prompt.split("<|im_end|>", 1)[1])  # without tools too


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        ({"tools": [CLOCK] * 129}, "tools"),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters.type",
        ),
        ({"tools": [{"function": {"name": "f", "parameters": {"not": {}}}}]}, "tools[0].function.parameters"),
        (
            {"tools": [CLOCK, {"function": {"name": "f", "parameters": {"minProperties": "x"}}}]},
            "tools[1].function.parameters",
        ),
        ({"tools": [CLOCK], "tool_choice": "some"}, "tool_choice"),
        (
            {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice.function.name",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": 1, "tools": [CLOCK]}, "parallel_tool_calls"),
    ],
)
def test_wrong_fields_are_named(model, fields, param):
    with pytest.raises(BadRequest) as raised:
        model.create_chat_completion(ASK, **fields)
    assert raised.value.param == param and str(raised.value).startswith(param)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "tool", "tool_call_id": "nobody", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages[1].tool_calls[0].function"),
        (
            {"role": "assistant", "tool_calls": [{"id": 1, "function": {"name": "f", "arguments": ""}}]},
            "messages[1].tool_calls[0].id",
        ),
    ],
)
def test_wrong_messages_are_named(model, message, param):
    with pytest.raises(BadRequest) as raised:
        model.create_chat_completion([*ASK, message])
    assert raised.value.param == param


def test_what_is_not_done_is_unsupported(model):
    with pytest.raises(Unsupported, match=r"tools\[0\]\.type"):
        model.create_chat_completion(ASK, tools=[{"type": "web_search"}])
    with pytest.raises(Unsupported, match="functions"):
        model.create_chat_completion(ASK, functions=[{"name": "f"}])
    with pytest.raises(BadRequest, match="continued"):
        model.create_chat_completion([*ASK, {"role": "assistant", "content": "I", "partial": True}], tools=[CLOCK])
