"""Fields of a request: what each means, and that every error says which field it is about."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_vl_cpp.errors import BadImage, BadRequest, KimiVLError
from kimi_vl_cpp.generation.several import answer_seed
from kimi_vl_cpp.openai.fields import shown, whole
from kimi_vl_cpp.openai.messages import translate_messages
from kimi_vl_cpp.openai.options import read_options
from kimi_vl_cpp.openai.reasoning import EFFORTS, read_reasoning
from kimi_vl_cpp.openai.shapes import shortest_float32

HI = [{"role": "user", "content": "Hi"}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = (
    "model stream stream_options n logprobs top_logprobs max_tokens max_completion_tokens temperature "
    "top_p top_k min_p frequency_penalty presence_penalty repeat_penalty repetition_penalty repeat_last_n "
    "seed stop logit_bias tools stop_token_ids ignore_eos min_tokens loop_guard reasoning_effort thinking "
    "thinking_budget enable_thinking reasoning chat_template_kwargs response_format tool_choice "
    "continue_final_message return_token_ids answer_reserve xyz"
).split()


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4))
def test_any_fields_are_read_or_refused_by_name(fields):
    try:
        read_options(fields)
    except KimiVLError as error:
        assert error.param is not None and error.param.split(".")[0].split("[")[0] in NAMES
        assert error.code.split(".")[0] in ("request", "unsupported")


# What Python alone would write. Texts that hold such words by chance are not among the values.
PYTHON_WORDS = re.compile(r"\b(None|True|False|NoneType|str|int|float|bool|dict|tuple|Mapping)\b|'[A-Z]")
WRONG = [None, True, False, "ABC", 5, -7, 1.5, 2**70, [], ["ABC", None], [True], {}, {"ABC": None}, {"ABC": [False]}]


@pytest.mark.parametrize("name", [*NAMES, "messages", "tools", "structured_outputs", "cache_salt", "cache_prompt"])
def test_errors_speak_of_json_and_not_of_python(name):
    n_refused = 0
    for value in WRONG:
        try:
            if name == "messages":
                translate_messages(value)
            else:
                read_options({name: value})
        except KimiVLError as error:
            n_refused += 1
            assert not PYTHON_WORDS.search(str(error)), str(error)
            if isinstance(value, str):
                assert "'ABC'" not in str(error)
    assert n_refused or name in ("xyz", "reasoning_effort")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "null"),
        ([True, {"a": "b'c"}], """[true, {"a": "b'c"}]"""),
        ("é\n", '"é\\n"'),
        ("x" * 100, '"' + "x" * 27 + "..." + "x" * 27 + '"'),
        (10**9, "1000000000"),
    ],
)
def test_values_are_shown_as_json_writes_them(value, written):
    assert shown(value) == written


@given(JSON)
def test_any_value_is_shown_in_little_room(value):
    assert len(shown([value] * 50)) < 2000


@given(JSON)
def test_any_messages_are_read_or_refused_by_place(value):
    for messages in (value, [value], [{"role": "user", "content": value}], [{"role": "user", "content": [value]}]):
        try:
            translate_messages(messages)
        except KimiVLError as error:
            assert error.param.startswith("messages")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "1"}, "temperature"),
        ({"repetition_penalty": 50}, "repetition_penalty"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"reasoning_effort": "none", "enable_thinking": True}, "enable_thinking"),
        ({"thinking_budget": 3, "thinking_token_budget": 4}, "thinking_budget"),
        ({"tools": [{}]}, "tools[0].function"),
        ({"stop": ["a", ""]}, "stop"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_an_error_carries_the_name_of_its_field(fields, param):
    with pytest.raises(KimiVLError) as caught:
        read_options(fields)
    assert caught.value.param == param and str(caught.value).startswith(param.split(".")[0])


def test_a_damaged_picture_is_about_the_field_that_it_came_in(model):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [*HI, {"role": "assistant", "content": "?"}, {"role": "user", "content": [part]}]
    with pytest.raises(BadImage) as caught:
        model.create_chat_completion(messages)
    assert caught.value.param == "messages[2].content[0].image_url"
    assert str(caught.value).startswith(caught.value.param)


@given(st.floats() | st.integers() | st.booleans() | st.text())
def test_only_floats_with_a_whole_value_become_integers(value):
    result = whole(value)
    assert result == value or value != value
    assert isinstance(result, int) == (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


def test_the_same_length_may_be_said_twice_and_minus_one_is_the_context():
    assert read_options({"max_tokens": 5.0, "max_completion_tokens": 5}).sampling["max_new_tokens"] == 5
    assert read_options({"max_tokens": -1}).sampling["max_new_tokens"] > 10**9
    assert read_options({"max_tokens": 0}).sampling == {"prompt_only": True}


def test_fields_without_effect_are_listed():
    options = read_options({"user": "me", "max_token": 5, "metadata": None, "seed": -3, "top_k": -1})
    assert options.ignored == ["user", "max_token"] and options.unknown == ["max_token"]
    assert options.sampling == {"seed": None, "top_k": 0}


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        *(({"reasoning_effort": name}, tokens) for name, tokens in EFFORTS.items()),
        ({"thinking": {"type": "disabled"}}, 0),
        ({"thinking": {"type": "enabled", "budget_tokens": 99}}, 99),
        ({"reasoning": {"max_tokens": 7, "enabled": True}}, 7),
        ({"chat_template_kwargs": {"enable_thinking": False}}, 0),
        ({"chat_template_kwargs": {"thinking": True}}, None),
        ({"enable_thinking": False, "thinking_budget": 0}, 0),
        ({"thinking_budget": -1}, None),
    ],
)
def test_every_way_to_limit_the_reasoning_is_one_budget(fields, budget):
    reasoning = read_reasoning(fields)
    assert reasoning.given and reasoning.budget == budget


def test_a_length_without_a_budget_keeps_a_reserve_for_the_answer():
    assert read_options({"max_tokens": 400}).sampling["answer_reserve"] == 100
    assert read_options({"max_tokens": 400, "answer_reserve": 0}).sampling["answer_reserve"] == 0
    assert "answer_reserve" not in read_options({"max_tokens": 400, "reasoning_effort": "high"}).sampling
    assert "answer_reserve" not in read_options({}).sampling


def test_n_answers_of_one_prompt_choice_0_is_the_answer_of_n_1(script, model):
    script.answer = None
    options = {"seed": 5, "max_tokens": 12, "temperature": 1.0}
    one = model.create_chat_completion(HI, **options)
    three = model.create_chat_completion(HI, n=3, **options)
    texts = [choice["message"]["content"] for choice in three["choices"]]
    assert texts[0] == one["choices"][0]["message"]["content"] and len(set(texts)) == 3
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert three["usage"]["completion_tokens"] == 36
    again = model.create_chat_completion(HI, **{**options, "seed": answer_seed(5, 2)})
    assert again["choices"][0]["message"]["content"] == texts[2]
    streamed, order = ["", "", ""], []
    for chunk in model.create_chat_completion(HI, n=3, stream=True, **options):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content", "")
            order.append(choice["index"])
    assert streamed == texts
    assert order.index(2) < len(order) - 1 - order[::-1].index(0)  # in turns, not one after the other


def test_log_probabilities_are_written_as_the_api_does(model):
    result = model.create_chat_completion(HI, logprobs=True, top_logprobs=2)
    content = result["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == "Hello world"
    assert all(set(entry) == {"token", "logprob", "bytes", "top_logprobs"} for entry in content)
    assert content[0]["top_logprobs"][0] == {key: content[0][key] for key in ("token", "logprob", "bytes")}
    chunks = model.create_chat_completion(HI, logprobs=True, top_logprobs=2, stream=True)
    streamed = [e for c in chunks for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == content
    json.dumps(result)


@given(st.floats(-100, 0, width=32))
def test_printed_log_probabilities_identify_the_float32(value):
    import numpy as np

    printed = json.dumps(shortest_float32(value))
    assert np.float32(json.loads(printed)) == np.float32(value) and len(printed) <= 18


def test_a_partial_message_is_continued(script, model):
    script.answer = " world"
    begun = [*HI, {"role": "assistant", "content": "Hello", "partial": True}]
    for messages, extra in (
        (begun, {}),
        ([*HI, {"role": "assistant", "content": "Hello"}], {"continue_final_message": True}),
    ):
        result = model.create_chat_completion(messages, **extra)
        assert result["choices"][0]["message"]["content"] == " world"
    with pytest.raises(BadRequest, match=r"messages\[0\].prefix"):
        model.create_chat_completion([{"role": "assistant", "content": "x", "prefix": True}, *HI])


def test_a_reasoning_can_be_left_out_and_is_counted(script, model):
    script.answer = "◁think▷hm◁/think▷yes"
    model.loaded.variant = "thinking"
    result = model.create_chat_completion(HI, reasoning={"exclude": True})
    assert result["choices"][0]["message"] == {"role": "assistant", "content": "yes", "refusal": None}
    assert result["usage"]["completion_tokens_details"]["reasoning_tokens"] > 3
    chunks = list(model.create_chat_completion(HI, reasoning={"exclude": True}, stream=True))
    assert not any("reasoning_content" in chunk["choices"][0]["delta"] for chunk in chunks)


def test_detail_low_limits_the_patches_of_one_picture(script, model):
    import base64
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (1400, 1400), "red").save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    def positions(**options):
        part = {"type": "image_url", "image_url": {"url": url, **options}}
        message = {"role": "user", "content": [part]}
        return model.create_chat_completion([message], max_tokens=1)["usage"]["prompt_tokens_details"]["image_tokens"]

    assert positions(detail="low") <= 289 < 600  # 1,024 patches are 256 positions, and padding
    assert positions(max_patches=64) <= 25
    with pytest.raises(BadRequest, match="detail"):
        positions(detail="tiny")
