"""OpenAI's dicts in and out, on a core that answers by script."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from kimi_vl_cpp.errors import BadImage, BadRequest, KimiVLError, Unsupported
from kimi_vl_cpp.openai.messages import translate_messages
from kimi_vl_cpp.openai.options import read_options

HI = [{"role": "user", "content": "Hi"}]


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(seed: int = 0) -> str:
    return "data:image/png;base64," + base64.b64encode(png(seed)).decode()


def ask(*parts: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(parts)}]


def image_url(url: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


TEXT = {"type": "text", "text": "What?"}


def test_completion_has_every_field_of_the_api(model):
    result = model.create_chat_completion(HI)
    assert set(result) == {"id", "object", "created", "model", "choices", "usage"}
    assert result["object"] == "chat.completion"
    assert result["id"].startswith("chatcmpl-")
    assert result["model"] == "Kimi VL Fake Instruct"
    (choice,) = result["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello world", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    usage = result["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == len("Hello world")
    json.dumps(result)


def test_model_name_of_the_request_comes_back(model):
    assert model.create_chat_completion(HI, model="mine")["model"] == "mine"


def test_chunks_are_role_then_contents_then_finish_reason(model):
    chunks = list(model.create_chat_completion(HI, stream=True))
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas[1:-1]) == "Hello world"
    assert deltas[-1] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_comes_last_when_asked_for(model):
    chunks = list(model.create_chat_completion(HI, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len("Hello world")
    assert all("usage" not in chunk for chunk in chunks[:-1])


def test_reasoning_has_its_own_field(script, model):
    script.answer = "◁think▷hm◁/think▷yes"
    model.loaded.variant = "thinking"
    message = model.create_chat_completion(HI)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "yes", "refusal": None, "reasoning_content": "hm"}
    deltas = [chunk["choices"][0]["delta"] for chunk in model.create_chat_completion(HI, stream=True)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    assert "".join(delta.get("content", "") for delta in deltas) == "yes"


def test_reasoning_given_back_is_part_of_the_prompt(model):
    def prompt(**extra: str) -> int:
        messages = [*HI, {"role": "assistant", "content": "yes", **extra}, *HI]
        return model.create_chat_completion(messages)["usage"]["prompt_tokens"]

    assert prompt(reasoning_content="hm") == prompt() + len("◁think▷hm◁/think▷".encode())
    assert prompt(reasoning_content="") == prompt()


def test_closing_the_stream_cancels(model):
    stream = model.create_chat_completion(HI, stream=True)
    next(stream)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert stream.result.finish_reason == "cancelled"


def test_options_reach_the_sampler(model):
    assert model.create_chat_completion(HI, max_tokens=3)["choices"][0]["finish_reason"] == "length"
    assert model.create_chat_completion(HI, max_completion_tokens=3)["usage"]["completion_tokens"] == 3
    assert model.create_chat_completion(HI, max_tokens=None)["usage"]["completion_tokens"] == 11
    assert model.create_chat_completion(HI, stop=["o w"])["choices"][0]["message"]["content"] == "Hell"


def test_neutral_options_of_the_api_are_accepted(model):
    model.create_chat_completion(
        HI,
        n=1,
        user="me",
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias={},
        logprobs=False,
        tools=None,
        response_format={"type": "text"},
        temperature=0,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        seed=1,
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("audio", {"voice": "x"}),
        ("modalities", ["audio"]),
    ],
)
def test_what_is_not_supported_is_said(option, value):
    with pytest.raises(Unsupported) as caught:
        read_options({option: value})
    assert caught.value.code == f"unsupported.{option}"


@pytest.mark.parametrize(
    "options",
    [
        {"temprature": 1},
        {"max_tokens": 5, "max_completion_tokens": 6},
        {"n": 0},
        {"n": 17},
        {"n": True},
        {"logprobs": 1},
        {"top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 21},
        {"presence_penalty": 2.5},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"1": 101}},
        {"logit_bias": {"100000": 1}},
        {"stop_token_ids": [10**6]},
        {"min_tokens": -1},
        {"max_tokens": -2},
        {"max_tokens": 10**12},
        {"max_tokens": "5"},
        {"stop": ""},
        {"stop": ["x"] * 100_000},
        {"seed": 2**64},
        {"seed": 10**5000},
        {"top_p": 2},
        {"temperature": float("nan")},
        {"temperature": 1e30},
        {"model": 5},
        {"stream_options": 3},
        {"stream": "yes"},
    ],
)
def test_bad_options_are_request_errors(model, options):
    with pytest.raises(BadRequest) as caught:
        model.create_chat_completion(HI, **options)
    assert caught.value.code.startswith("request.")


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "Hi",
        [],
        ["Hi"],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "critic", "content": "x"}],
        [{"role": None, "content": "x"}],
        [{"role": "user", "content": ["x"]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": None}]}],
        [{"role": "user", "content": [{"type": "video", "video": "x"}]}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        [{"role": "user", "content": [{"type": "image"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}] * 10_001}],
        [{"role": "user", "content": "x", "reasoning_content": "y"}],
        [{"role": "user", "content": "x"}] * 10_001,
    ],
)
def test_bad_messages_are_request_errors(model, messages):
    with pytest.raises((BadRequest, Unsupported)) as caught:
        model.create_chat_completion(messages)
    assert caught.value.param.startswith("messages")


@pytest.mark.parametrize(
    "message",
    [{"role": "function", "content": "x"}, {"role": "assistant", "content": "x", "function_call": {"name": "f"}}],
)
def test_the_old_form_of_calls_is_unsupported(message):
    with pytest.raises(Unsupported) as caught:
        translate_messages([message])
    assert caught.value.code == "unsupported.tools"


# Pictures


def test_data_url_picture_is_seen(script, model):
    result = model.create_chat_completion(ask(image_url(data_url()), TEXT))
    assert result["usage"]["prompt_tokens_details"]["image_tokens"] == 6
    plain = model.create_chat_completion(ask({"type": "image_url", "image_url": data_url()}, TEXT))
    assert plain["usage"]["prompt_tokens_details"]["image_tokens"] == 6
    assert len(script.encoded) == 1


def test_picture_objects_are_taken_as_parts(script, model):
    for image in (png(), Image.open(io.BytesIO(png())), np.asarray(Image.open(io.BytesIO(png())))):
        model.create_chat_completion(ask({"type": "image", "image": image}, TEXT))
    assert len(script.encoded) == 1


def test_pictures_keep_their_places_among_texts_and_messages():
    url = data_url
    translated = translate_messages(
        [
            {"role": "user", "content": [TEXT, image_url(url(1)), TEXT, image_url(url(2))]},
            {"role": "assistant", "content": "ok"},
            {"role": "user", "content": [image_url(url(3)), TEXT]},
        ]
    )
    assert [one.place for one in translated.pictures] == [
        f"messages[{place}].image_url" for place in ("0].content[1", "0].content[3", "2].content[0")
    ]
    kinds = [
        [part.get("image", "t") for part in m["content"]] for m in translated.messages if isinstance(m["content"], list)
    ]
    assert kinds == [["t", 0, "t", 1], [2, "t"]]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x.png",
        "https://example.com/x.png",
        "HTTPS://example.com/x.png",
        " http://example.com/x.png",
        "http://[::1]/x.png",
        "http://169.254.169.254/latest",
        "//example.com/x.png",
        "\\\\host\\share\\x.png",
    ],
)
@pytest.mark.parametrize("allowed", [False, True])
def test_nothing_is_fetched_from_a_network(model, url, allowed):
    with pytest.raises(BadRequest) as caught:
        model.create_chat_completion(ask(image_url(url)), allow_local_images=allowed)
    assert caught.value.code == "request.image_url_remote"
    assert "data: URL" in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://x/y.png", "gopher://x", "javascript:1", "blob:x"])
def test_other_schemes_are_refused(model, url):
    with pytest.raises(BadRequest) as caught:
        model.create_chat_completion(ask(image_url(url)))
    assert caught.value.code == "request.image_url"


def test_local_files_only_when_the_caller_allows_it(model, tmp_path):
    path = tmp_path / "a b.png"
    path.write_bytes(png())
    for url in (str(path), path.as_uri()):
        with pytest.raises(BadRequest) as caught:
            model.create_chat_completion(ask(image_url(url)))
        assert caught.value.code == "request.image_url_local"
        model.create_chat_completion(ask(image_url(url)), allow_local_images=True)
    with pytest.raises(BadRequest):
        model.create_chat_completion(ask({"type": "image", "image": str(path)}))
    with pytest.raises(BadRequest, match="another host"):
        model.create_chat_completion(ask(image_url("file://host/a.png")), allow_local_images=True)


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:image/png;base64",
        "data:image/png;base64,%%%",
        "data:image/png;base64,AAAA",
        "data:text/html,hello",
        "data:image/png;base64," + base64.b64encode(b"data:image/png;base64,AAAA").decode(),
    ],
)
def test_broken_data_urls_are_typed_errors(model, url):
    with pytest.raises((BadImage, BadRequest)):
        model.create_chat_completion(ask(image_url(url)))


def test_an_error_message_does_not_carry_a_whole_data_url(model):
    with pytest.raises(KimiVLError) as caught:
        model.create_chat_completion(ask(image_url("data:image/png;base64," + "A" * 1_000_000)))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [-5, 10**12, "5", 1.5, True])
def test_an_error_names_the_option_as_it_was_given(model, name, value):
    with pytest.raises(BadRequest) as caught:
        model.create_chat_completion(HI, **{name: value})
    assert caught.value.code == f"request.{name}"
    assert str(caught.value).startswith(f"{name}: got ")


def test_minus_one_draws_a_seed_and_leaves_the_length_to_the_context(script, model):
    script.answer = "x" * 5000
    answer = model.create_chat_completion(HI, seed=-1, max_tokens=-1)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == model.n_ctx


def test_a_developer_message_is_a_system_message(model):
    def n_prompt(role):
        messages = [{"role": role, "content": "Be brief."}, *HI]
        return model.create_chat_completion(messages)["usage"]["prompt_tokens"]

    assert n_prompt("developer") == n_prompt("system")


@pytest.mark.parametrize(
    ("extra", "word"),
    [({"images": ["aGk="]}, "image_url"), ({"image": "x"}, "image_url"), ({"attachments": [1]}, "attachments")],
)
def test_what_a_message_carries_beside_its_content_is_refused_by_name(model, extra, word):
    with pytest.raises(BadRequest) as caught:
        model.create_chat_completion([{**HI[0], **extra}])
    assert f"messages[0].{next(iter(extra))}" in str(caught.value) and word in str(caught.value)


@pytest.mark.parametrize(
    "extra", [{"name": "Ann"}, {"refusal": None}, {"images": []}, {"tool_calls": None, "function_call": None}]
)
def test_what_asks_for_nothing_beside_the_content_changes_nothing(model, extra):
    plain = model.create_chat_completion(HI)["usage"]["prompt_tokens"]
    assert model.create_chat_completion([{**HI[0], **extra}], stream=None)["usage"]["prompt_tokens"] == plain


def test_base64_without_its_head_is_refused_with_what_is_missing(model):
    part = {"type": "image_url", "image_url": {"url": "iVBORw0KGgo" + "A" * 100}}
    with pytest.raises(BadRequest, match="put data:image/png;base64, in front of it"):
        model.create_chat_completion([{"role": "user", "content": [part]}])
