"""OpenAI's Responses as chat requests. Stateless: nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import KimiVLError
from .fields import bad, mapping, shown, string, unsupported

_STATE = ("previous_response_id", "conversation", "background", "prompt")
_RENAMED = {"max_output_tokens": "max_tokens"}
_NO_EFFECT = ("store", "metadata", "include", "truncation", "max_tool_calls")
_OWN = frozenset(("input", "instructions", "text", "tools", "tool_choice", *_STATE, *_RENAMED, *_NO_EFFECT))
_ITEMS = ("message", "reasoning", "function_call", "function_call_output")


@dataclass
class ResponsesRequest:
    """chat: the body of the chat request that asks for the same. places: its fields -> those of this API."""

    chat: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def own_names(self) -> Iterator[None]:
        """Errors raised inside name the fields of this API, not those of the chat request."""
        try:
            yield
        except KimiVLError as error:
            param = error.param or ""
            for chat_name in sorted(self.places, key=len, reverse=True):
                if param == chat_name or param.startswith((f"{chat_name}.", f"{chat_name}[")):
                    error.param = self.places[chat_name] + param[len(chat_name) :]
                    error.args = (str(error).replace(param, error.param, 1),)
                    break
            raise


def read_responses_request(body: Mapping[str, Any]) -> ResponsesRequest:
    """The chat request that asks for the same. Raises BadRequest and Unsupported."""
    for name in _STATE:
        if body.get(name):
            raise unsupported(name, "nothing is stored here: send the whole conversation in `input`")
    request = ResponsesRequest({name: value for name, value in body.items() if name not in _OWN})
    chat = request.chat
    for name, chat_name in _RENAMED.items():
        if body.get(name) is not None:
            chat[chat_name] = body[name]
            request.places[chat_name] = name
    text = body.get("text")
    if text is not None and mapping("text", text).get("format") is not None:
        chat["response_format"] = _format(mapping("text.format", text["format"]))
        request.places |= {"response_format.json_schema": "text.format", "response_format": "text.format"}
    if body.get("tools") is not None:
        chat["tools"] = _tools(request, body["tools"])
    if body.get("tool_choice") is not None:
        chat["tool_choice"] = _tool_choice(body["tool_choice"])
        request.places |= {"tool_choice.function": "tool_choice", "tool_choice.allowed_tools": "tool_choice"}
    chat["messages"] = []
    if body.get("instructions") is not None:
        chat["messages"].append({"role": "system", "content": string("instructions", body["instructions"])})
        request.places["messages[0].content"] = "instructions"
    _Input(request).read(body.get("input"))
    return request


def ignored_fields(body: Mapping[str, Any]) -> list[str]:
    """The fields of this API that are given and have no effect."""
    return [name for name in _NO_EFFECT if body.get(name) not in (None, False, "auto", {}, [])]


def _format(value: Mapping[str, Any]) -> dict[str, Any]:
    """The schema is one level higher than in chat requests."""
    if value.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {"schema": value.get("schema")}}
    return dict(value)


def _tools(request: ResponsesRequest, value: Any) -> Any:
    """The functions, which are one level higher than in chat requests."""
    if not isinstance(value, list):
        return value
    tools = []
    for index, tool in enumerate(value):
        kind = mapping(f"tools[{index}]", tool).get("type")
        tools.append({"type": kind, "function": {name: one for name, one in tool.items() if name != "type"}})
        request.places[f"tools[{index}].function"] = f"tools[{index}]"
    return tools


def _tool_choice(value: Any) -> Any:
    """A choice that names functions does so one level higher than in chat requests."""
    if not isinstance(value, Mapping):
        return value
    if value.get("type") == "function":
        return {"type": "function", "function": {"name": value.get("name")}}
    if value.get("type") == "allowed_tools":
        listed = value.get("tools")
        tools = [{"function": one} for one in listed] if isinstance(listed, list) else listed
        return {"type": "allowed_tools", "allowed_tools": {"mode": value.get("mode"), "tools": tools}}
    return value


class _Input:
    """Reads the items of `input` into the messages of a chat request."""

    def __init__(self, request: ResponsesRequest) -> None:
        self._messages: list[dict[str, Any]] = request.chat["messages"]
        self._places = request.places
        self._thought = ""
        self._open = False  # the last message is the assistant's, and calls that come next belong to it

    def read(self, value: Any) -> None:
        """Raises BadRequest and Unsupported."""
        if isinstance(value, str):
            self._add("input", {"role": "user", "content": value}, content="input")
            return
        if not isinstance(value, list) or not value:
            raise bad("input", f"got {shown(value)}, expected a string or a list of items")
        for index, item in enumerate(value):
            where = f"input[{index}]"
            kind = mapping(where, item).get("type", "message")
            if kind not in _ITEMS:
                raise unsupported(f"{where}.type", f"got {shown(kind)}, expected one of {', '.join(_ITEMS)}")
            getattr(self, f"_{kind}")(where, item)

    def _add(self, where: str, message: dict[str, Any], **places: str) -> None:
        """Adds a message. places: its keys -> the fields that they come from."""
        chat_place = f"messages[{len(self._messages)}]"
        self._places[chat_place] = where
        self._places |= {f"{chat_place}.{key}": place for key, place in places.items()}
        self._messages.append(message)
        self._open = message["role"] == "assistant"

    def _message(self, where: str, item: Mapping[str, Any]) -> None:
        message = {"role": item.get("role"), "content": item.get("content")}
        if self._thought and item.get("role") == "assistant":
            message["reasoning_content"] = self._thought
        self._thought = ""
        self._add(where, message)

    def _reasoning(self, where: str, item: Mapping[str, Any]) -> None:
        parts = item.get("content") or []
        if not isinstance(parts, list):
            raise bad(f"{where}.content", f"got {shown(parts)}, expected a list of parts")
        for index, part in enumerate(parts):
            place = f"{where}.content[{index}]"
            self._thought += string(f"{place}.text", mapping(place, part).get("text"))
        self._open = False

    def _function_call(self, where: str, item: Mapping[str, Any]) -> None:
        if not self._open:
            message: dict[str, Any] = {"role": "assistant", "content": ""}
            if self._thought:
                message["reasoning_content"] = self._thought
            self._thought = ""
            self._add(where, message)
        calls: list[dict[str, Any]] = self._messages[-1].setdefault("tool_calls", [])
        place = f"messages[{len(self._messages) - 1}].tool_calls[{len(calls)}]"
        self._places |= {place: where, f"{place}.function": where, f"{place}.id": f"{where}.call_id"}
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        calls.append({"id": item.get("call_id"), "type": "function", "function": function})

    def _function_call_output(self, where: str, item: Mapping[str, Any]) -> None:
        message = {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
        self._add(where, message, tool_call_id=f"{where}.call_id", content=f"{where}.output")
