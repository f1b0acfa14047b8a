"""What clients of OpenAI's chat completions may rely on, as checks of a server that runs:

    python tests/server/conformance.py http://127.0.0.1:8000 [KEY]

Each check is one sentence about public behaviour. They ask for little, so that any model passes them.
"""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import httpx
from PIL import Image

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hello!"}]
Check = Callable[["Asked"], None]
CHECKS: dict[str, Check] = {}


def check(sentence: str) -> Callable[[Check], Check]:
    """Adds a check to the list."""

    def add(function: Check) -> Check:
        assert sentence not in CHECKS
        CHECKS[sentence] = function
        return function

    return add


class Asked:
    """One server, and how it is asked."""

    def __init__(self, url: str, key: str = "none") -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self.client = httpx.Client(base_url=url, timeout=300, trust_env=False, headers=headers)

    def post(self, path: str = CHAT, **fields: Any) -> httpx.Response:
        body = fields if path != CHAT else {"model": "any", "messages": HI, "max_tokens": 12, "seed": 1, **fields}
        return self.client.post(path, json=body)

    def ok(self, path: str = CHAT, **fields: Any) -> Any:
        response = self.post(path, **fields)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("application/json")
        return response.json()

    def text(self, **fields: Any) -> str:
        text = self.ok(**fields)["choices"][0]["message"]["content"]
        assert isinstance(text, str)
        return text

    def bad(self, status: int = 400, param: str | None = None, path: str = CHAT, **fields: Any) -> Any:
        response = self.post(path, **fields)
        assert response.status_code == status, (response.status_code, response.text)
        error = response.json()["error"]
        assert isinstance(error["message"], str) and error["message"] and isinstance(error["type"], str)
        assert {"param", "code"} <= error.keys()
        if param is not None:
            assert error["param"] == param, error
        return error

    def chunks(self, **fields: Any) -> list[Any]:
        """The JSON of a stream's events, without the last, which has to be [DONE]."""
        body = {"model": "any", "messages": HI, "max_tokens": 12, "seed": 1, "stream": True, **fields}
        with self.client.stream("POST", CHAT, json=body) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            lines = list(response.iter_lines())
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert all(line == "" or line.startswith(("data: ", ":")) for line in lines)
        assert data[-1] == "[DONE]" and data.count("[DONE]") == 1
        return [json.loads(one) for one in data[:-1]]


def picture(color: str = "red", size: tuple[int, int] = (56, 56), kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def seen(url: str, **part: Any) -> list[dict[str, Any]]:
    content = [{"type": "image_url", "image_url": {"url": url, **part}}, {"type": "text", "text": "What is this?"}]
    return [{"role": "user", "content": content}]


def joined(chunks: list[Any], index: int = 0) -> str:
    pieces = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in pieces)


# Whole answers


@check("a completion has the fields of the API")
def _(asked: Asked) -> None:
    answer = asked.ok()
    assert answer["object"] == "chat.completion" and isinstance(answer["created"], int) and answer["id"]
    (choice,) = answer["choices"]
    assert choice["index"] == 0 and choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length") and choice["logprobs"] is None


@check("usage adds up")
def _(asked: Asked) -> None:
    usage = asked.ok()["usage"]
    assert usage["prompt_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@check("ids are not used twice")
def _(asked: Asked) -> None:
    assert len({asked.ok(max_tokens=1)["id"] for _ in range(4)}) == 4


@check("the same seed gives the same answer")
def _(asked: Asked) -> None:
    assert asked.text(temperature=1, max_tokens=24) == asked.text(temperature=1, max_tokens=24)


@check("temperature 0 gives one answer whatever the seed")
def _(asked: Asked) -> None:
    assert asked.text(temperature=0, seed=1) == asked.text(temperature=0, seed=2)


@check("max_tokens cuts with length and counts exactly")
def _(asked: Asked) -> None:
    answer = asked.ok(max_tokens=3, ignore_eos=True)
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 3


@check("max_completion_tokens means the same")
def _(asked: Asked) -> None:
    assert asked.ok(max_tokens=None, max_completion_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3


@check("a stop string ends the answer and is not part of it")
def _(asked: Asked) -> None:
    whole = asked.text(temperature=0, max_tokens=40)
    stop = whole[3:5]
    cut = asked.ok(temperature=0, max_tokens=40, stop=[stop])["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(stop)] and cut["finish_reason"] == "stop"


@check("n gives n choices, of which the first is that of n = 1")
def _(asked: Asked) -> None:
    answer = asked.ok(n=3, temperature=1)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["choices"][0]["message"]["content"] == asked.text(temperature=1)


@check("n counts the prompt once")
def _(asked: Asked) -> None:
    assert asked.ok(n=3)["usage"]["prompt_tokens"] == asked.ok(n=1)["usage"]["prompt_tokens"]


@check("a bias of -100 forbids a token")
def _(asked: Asked) -> None:
    first = asked.ok(temperature=0, max_tokens=1, return_token_ids=True)["choices"][0]["token_ids"][0]
    other = asked.ok(temperature=0, max_tokens=1, return_token_ids=True, logit_bias={str(first): -100})
    assert other["choices"][0]["token_ids"] != [first]


@check("log probabilities are of the tokens of the content")
def _(asked: Asked) -> None:
    choice = asked.ok(logprobs=True, top_logprobs=3)["choices"][0]
    entries = choice["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in entries).decode(errors="replace") == choice["message"]["content"]
    for one in entries:
        values = [top["logprob"] for top in one["top_logprobs"]]
        assert len(values) == 3 and values == sorted(values, reverse=True) and one["logprob"] <= 0


@check("messages of all roles are taken, system and developer alike")
def _(asked: Asked) -> None:
    for role in ("system", "developer"):
        turns = [{"role": role, "content": "Be brief."}, *HI, {"role": "assistant", "content": "Hi."}, *HI]
        asked.text(messages=turns)


@check("content may be a list of text parts, which are one text")
def _(asked: Asked) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]
    assert asked.text(messages=[{"role": "user", "content": parts}]) == asked.text()


@check("null is the same as leaving a field out")
def _(asked: Asked) -> None:
    nothing = dict.fromkeys(("temperature", "top_p", "stop", "n", "logprobs", "tools", "response_format", "user"))
    assert asked.text(**nothing) == asked.text()


@check("fields without an effect are taken")
def _(asked: Asked) -> None:
    asked.text(user="ann", metadata={"a": "b"}, store=False, service_tier="auto", parallel_tool_calls=True)


# Streams


@check("a stream joins to the whole answer")
def _(asked: Asked) -> None:
    assert joined(asked.chunks(temperature=1)) == asked.text(temperature=1)


@check("chunks have one id, model and time, and the object of the API")
def _(asked: Asked) -> None:
    chunks = asked.chunks()
    assert len({(one["id"], one["model"], one["created"], one["object"]) for one in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"


@check("the first chunk has the role, the last the finish reason")
def _(asked: Asked) -> None:
    choices = [chunk["choices"][0] for chunk in asked.chunks()]
    assert choices[0]["delta"]["role"] == "assistant"
    assert [choice["finish_reason"] for choice in choices].count(None) == len(choices) - 1
    assert choices[-1]["finish_reason"] in ("stop", "length")


@check("no chunk without choices comes unasked")
def _(asked: Asked) -> None:
    assert all(chunk["choices"] for chunk in asked.chunks())


@check("include_usage adds one chunk without choices, with the usage of the whole answer")
def _(asked: Asked) -> None:
    chunks = asked.chunks(stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] == asked.ok()["usage"]["total_tokens"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


@check("streams of n choices keep them apart")
def _(asked: Asked) -> None:
    chunks = asked.chunks(n=2, temperature=1)
    whole = asked.ok(n=2, temperature=1)["choices"]
    assert [joined(chunks, index) for index in (0, 1)] == [choice["message"]["content"] for choice in whole]


@check("log probabilities of a stream are those of the whole")
def _(asked: Asked) -> None:
    chunks = asked.chunks(logprobs=True)
    pieces = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
    whole = asked.ok(logprobs=True)["choices"][0]["logprobs"]["content"]
    assert [one for piece in pieces for one in piece["content"]] == whole


@check("a wrong request that asks for a stream is an ordinary error")
def _(asked: Asked) -> None:
    asked.bad(stream=True, temperature="hot", param="temperature")


@check("a stream whose client left does not harm the next answer")
def _(asked: Asked) -> None:
    expected = asked.text()
    body = {"messages": HI, "stream": True, "ignore_eos": True, "max_tokens": 500}
    with asked.client.stream("POST", CHAT, json=body) as response:
        next(response.iter_lines())
    assert asked.text() == expected


# Pictures


@check("pictures are positions of the prompt")
def _(asked: Asked) -> None:
    usage = asked.ok(messages=seen(picture()))["usage"]
    assert usage["prompt_tokens_details"]["image_tokens"] > 0


@check("formats are told by their bytes")
def _(asked: Asked) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        asked.text(messages=seen(picture(kind=kind).replace(kind.lower(), "octet-stream", 1)))


@check("a URL may stand without its object, and have a detail")
def _(asked: Asked) -> None:
    content = [{"type": "image_url", "image_url": picture()}, {"type": "text", "text": "What is this?"}]
    bare = asked.text(messages=[{"role": "user", "content": content}])
    assert bare == asked.text(messages=seen(picture(), detail="high")) == asked.text(messages=seen(picture()))


@check("detail and max_patches limit the positions of a large picture")
def _(asked: Asked) -> None:
    large = picture(size=(280, 280))
    counts = [
        asked.ok("/v1/chat/completions/input_tokens", messages=seen(large, **part))["image_tokens"]
        for part in ({"detail": "high"}, {"detail": "low"}, {"detail": "low", "max_patches": 64})
    ]
    assert counts[0] >= counts[1] > counts[2] > 0


@check("the order of pictures and texts matters")
def _(asked: Asked) -> None:
    first, second = seen(picture("red")), seen(picture("blue"))
    both = [{"role": "user", "content": first[0]["content"] + second[0]["content"]}]
    assert asked.ok(messages=both)["usage"]["prompt_tokens_details"]["image_tokens"] > 4


@check("a damaged picture is 400 and named")
def _(asked: Asked) -> None:
    asked.bad(messages=seen("data:image/png;base64,AAAA"), param="messages[0].content[0].image_url")
    asked.bad(messages=seen("data:image/png;base64,!!!!"), param="messages[0].content[0].image_url")


@check("addresses inside are not fetched")
def _(asked: Asked) -> None:
    for url in ("http://127.0.0.1/a.png", "http://169.254.169.254/", "file:///etc/passwd", "ftp://x/y"):
        asked.bad(messages=seen(url), param="messages[0].content[0].image_url")


# Formats and functions


@check("json_schema holds the answer to the schema")
def _(asked: Asked) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert json.loads(asked.text(response_format=form, max_tokens=200, temperature=0))["a"] in (1, 2)


@check("a regular expression holds the answer")
def _(asked: Asked) -> None:
    form = {"type": "regex", "regex": "[0-9]{3}-[a-c]{2}"}
    assert re.fullmatch("[0-9]{3}-[a-c]{2}", asked.text(response_format=form, max_tokens=50))


@check("a choice is one of those given")
def _(asked: Asked) -> None:
    assert asked.text(structured_outputs={"choice": ["red", "green"]}) in ("red", "green")


@check("a schema that cannot be held to is 400")
def _(asked: Asked) -> None:
    for schema in ({"type": "nothing"}, {"not": {"type": "string"}}, 5):
        asked.bad(response_format={"type": "json_schema", "json_schema": {"schema": schema}})


ARGUMENTS = {"type": "object", "properties": {"at": {"enum": ["sky", "sea"]}}, "required": ["at"]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": ARGUMENTS}}
CALL = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100, "temperature": 0}


@check("a demanded call has arguments that fit, and content null")
def _(asked: Asked) -> None:
    answer = asked.ok(**CALL)
    (choice,) = answer["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert call["type"] == "function" and call["function"]["name"] == "look" and call["id"]
    assert json.loads(call["function"]["arguments"])["at"] in ("sky", "sea")


@check("a streamed call joins to the whole one")
def _(asked: Asked) -> None:
    deltas = [chunk["choices"][0]["delta"] for chunk in asked.chunks(**CALL)]
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
    assert pieces[0]["function"]["name"] == "look" and {piece["index"] for piece in pieces} == {0}
    whole = asked.ok(**CALL)["choices"][0]["message"]["tool_calls"][0]["function"]
    assert "".join(piece["function"]["arguments"] for piece in pieces) == whole["arguments"]


@check("the result of a call goes back")
def _(asked: Asked) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
    turns = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]
    result = {"role": "tool", "tool_call_id": "call_1", "content": "blue"}
    asked.text(messages=[*turns, result], tools=[TOOL], tool_choice="none")
    asked.bad(messages=[*turns, {**result, "tool_call_id": "call_2"}])


# Errors


@check("wrong types and ranges are 400 and named")
def _(asked: Asked) -> None:
    for field, value in {
        "temperature": -1, "top_p": 2, "n": 0, "max_tokens": "5", "seed": 1.5, "stop": [""], "stream": "yes",
        "logprobs": 1, "presence_penalty": 3, "logit_bias": {"x": 1}, "messages": "Hello!",
    }.items():  # fmt: skip
        assert asked.bad(**{field: value})["param"].startswith(field)


@check("messages are checked one by one")
def _(asked: Asked) -> None:
    asked.bad(messages=[], param="messages")
    asked.bad(messages=[{"role": "nobody", "content": "x"}], param="messages[0].role")
    asked.bad(messages=[*HI, {"role": "user", "content": 5}], param="messages[1].content")
    asked.bad(messages=[{"role": "user", "content": [{"type": "text"}]}], param="messages[0].content[0].text")


@check("more than the context is context_length_exceeded")
def _(asked: Asked) -> None:
    n_ctx = asked.client.get("/v1/models").json()["data"][0]["max_model_len"]
    error = asked.bad(messages=[{"role": "user", "content": "word " * 2 * n_ctx}])
    assert error["code"] == "context_length_exceeded" and str(n_ctx) in error["message"]


@check("what is not JSON is 400")
def _(asked: Asked) -> None:
    for body in (b"", b"{", b"[1]", b'{"messages": NaN}', b"[" * 100_000, b"\xff\xfe", b'{"a": "\\ud800"}'):
        response = asked.client.post(CHAT, content=body)
        assert response.status_code == 400, (body[:20], response.text)


@check("unknown paths are 404, wrong methods 405 with Allow, both as errors")
def _(asked: Asked) -> None:
    missing = asked.client.get("/v1/nothing")
    assert missing.status_code == 404 and "error" in missing.json()
    wrong = asked.client.get(CHAT)
    assert wrong.status_code == 405 and "POST" in wrong.headers["allow"] and "error" in wrong.json()


@check("an unknown model's page is 404, the known one's describes it")
def _(asked: Asked) -> None:
    (first, *_) = asked.client.get("/v1/models").json()["data"]
    assert first["object"] == "model" and asked.client.get(f"/v1/models/{first['id']}").json() == first
    assert asked.client.get("/v1/models/no/such").status_code == 404


@check("every answer carries a request id, the client's where it sent one")
def _(asked: Asked) -> None:
    assert asked.post(max_tokens=1).headers["x-request-id"]
    named = asked.client.post(CHAT, json={"messages": HI, "max_tokens": 1}, headers={"x-request-id": "mine-1"})
    assert named.headers["x-request-id"] == "mine-1"


@check("a page from elsewhere is refused")
def _(asked: Asked) -> None:
    response = asked.client.post(CHAT, json={"messages": HI}, headers={"Origin": "https://evil.example"})
    assert response.status_code == 403 and "access-control-allow-origin" not in response.headers


@check("HEAD answers where GET does")
def _(asked: Asked) -> None:
    response = asked.client.head("/v1/models")
    assert response.status_code == 200 and response.content == b""


# Other doors


@check("a completion continues its prompt, and echo gives it back")
def _(asked: Asked) -> None:
    fields = {"prompt": "One, two,", "max_tokens": 4, "temperature": 0}
    plain = asked.ok("/v1/completions", **fields)["choices"][0]["text"]
    assert asked.ok("/v1/completions", echo=True, **fields)["choices"][0]["text"] == "One, two," + plain


@check("token ids come back as the text they came from")
def _(asked: Asked) -> None:
    text = "Añb 漢字 <|im_end|>"
    ids = asked.ok("/tokenize", prompt=text, parse_special=False)["tokens"]
    assert asked.ok("/detokenize", tokens=ids)["prompt"] == text


@check("Responses give the answer of chat completions")
def _(asked: Asked) -> None:
    response = asked.ok("/v1/responses", input="Hello!", temperature=0, max_output_tokens=12)
    (message,) = [item for item in response["output"] if item["type"] == "message"]
    assert message["content"][0]["text"] == asked.text(temperature=0)


@check("many requests at once are answered as one by one")
def _(asked: Asked) -> None:
    wants = [{"temperature": 1, "seed": seed, "max_tokens": 16} for seed in range(8)]
    alone = [asked.text(**want) for want in wants]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda want: asked.text(**want), wants)) == alone


def main() -> int:
    asked = Asked(*sys.argv[1:])
    failed = 0
    for sentence, function in CHECKS.items():
        try:
            function(asked)
        except Exception:
            failed += 1
            print(f"FAILED  {sentence}")
            traceback.print_exc()
        else:
            print(f"ok      {sentence}")
    print(f"{len(CHECKS) - failed} of {len(CHECKS)}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
