"""Ollama's requests as chat requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .fields import bad, boolean, mapping, shown, string, unsupported

_OPTIONS = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
_LEVELS = {"low": "low", "medium": "medium", "high": "high", "max": "max"}
_NO_EFFECT = ("keep_alive", "context", "template", "raw")


def read_chat(body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The chat request that `/api/chat` asks for, with `stream`, and the options that have no effect."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise bad("messages", f"got {shown(messages)}, expected a list")
    calls: list[tuple[str, str]] = []
    read = []
    for index, one in enumerate(messages):
        where = f"messages[{index}]"
        read.append(_with_calls(where, _message(where, mapping(where, one)), one, calls))
    chat, ignored = _common(body, read)
    if body.get("tools") is not None:
        chat["tools"] = body["tools"]
    return chat, ignored


def read_generate(body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The same of `/api/generate`."""
    if body.get("suffix"):
        raise unsupported("suffix", "the model does not fill in the middle")
    message = {"role": "user", "content": body.get("prompt") or "", "images": body.get("images")}
    messages = [_message("prompt", message)]
    if body.get("system"):
        messages.insert(0, {"role": "system", "content": string("system", body["system"])})
    return _common(body, messages)


def _message(where: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of this API: its pictures are base64, beside the text."""
    content = string(f"{where}.content", message.get("content") or "")
    images = message.get("images") or []
    if not isinstance(images, list):
        raise bad(f"{where}.images", f"got {shown(images)}, expected a list of base64 texts")
    translated: dict[str, Any] = {"role": message.get("role"), "content": content}
    if images:
        urls = [string(f"{where}.images[{index}]", image) for index, image in enumerate(images)]
        pictures = [{"type": "image_url", "image_url": {"url": _data_url(url)}} for url in urls]
        translated["content"] = [*pictures, {"type": "text", "text": content}]
    if message.get("thinking"):
        translated["reasoning_content"] = message["thinking"]
    return translated


def _with_calls(
    where: str, translated: dict[str, Any], message: Mapping[str, Any], calls: list[tuple[str, str]]
) -> dict[str, Any]:
    """A message with its calls, or, of a result, with the id of its call. Calls have no ids here: a result is that of
    the first call of its tool_name (of any call where it names none) that has no result yet. calls: (id, name) of those
    without a result."""
    given = message.get("tool_calls")
    if given:
        if not isinstance(given, list):
            raise bad(f"{where}.tool_calls", f"got {shown(given)}, expected a list of calls")
        translated["tool_calls"] = []
        for index, one in enumerate(given):
            call_id = f"{where}.tool_calls[{index}]"
            function = mapping(call_id, one).get("function")
            translated["tool_calls"].append({"id": call_id, "function": function})
            calls.append((call_id, str(mapping(f"{call_id}.function", function).get("name"))))
    if message.get("role") == "tool":
        wanted = message.get("tool_name") or message.get("name")
        found = next((one for one in calls if wanted in (None, one[1])), None)
        if found is None:
            raise bad(f"{where}.tool_name", f"got {shown(wanted)}, but no call of an earlier message waits for it")
        calls.remove(found)
        translated["tool_call_id"] = found[0]
    return translated


def _data_url(image: str) -> str:
    return image if image.startswith("data:") else f"data:image/unknown;base64,{image}"


def _common(body: Mapping[str, Any], messages: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    stream = body.get("stream")
    chat: dict[str, Any] = {"messages": messages, "stream": True if stream is None else boolean("stream", stream)}
    ignored = [name for name in _NO_EFFECT if body.get(name) not in (None, "", [], False)]
    for name, value in mapping("options", body.get("options") or {}).items():
        if value is None:
            continue
        if name not in _OPTIONS:
            ignored.append(f"options.{name}")
        elif not (name == "num_predict" and value in (-1, -2)):
            chat[_OPTIONS[name]] = value
    think = body.get("think")
    if isinstance(think, bool):
        chat["enable_thinking"] = think
    elif think is not None:
        if not isinstance(think, str) or think not in _LEVELS:
            raise bad("think", f"got {shown(think)}, expected true, false or one of {', '.join(_LEVELS)}")
        chat["reasoning_effort"] = _LEVELS[think]
    wanted = body.get("format")
    if wanted == "json":
        chat["response_format"] = {"type": "json_object"}
    elif isinstance(wanted, Mapping):
        chat["response_format"] = {"type": "json_schema", "json_schema": {"schema": wanted}}
    elif wanted not in (None, ""):
        raise bad("format", f"got {shown(wanted)}, expected 'json' or a JSON schema")
    return chat, ignored
