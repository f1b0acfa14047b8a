"""OpenAI's Responses as chat requests, and answers as its objects and events. Stateless: nothing is stored."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import KimiVLError, shown
from ..types import FinishReason, Piece, Response
from .fields import bad, mapping, string, unsupported
from .shapes import usage_of

_STATE = ("previous_response_id", "conversation", "background", "prompt")
_RENAMED = {"max_output_tokens": "max_tokens"}
_NO_EFFECT = ("store", "metadata", "include", "truncation", "max_tool_calls", "parallel_tool_calls", "tool_choice")
_OWN = frozenset(("input", "instructions", "text", *_STATE, *_RENAMED, *_NO_EFFECT))


def read_responses_request(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of the chat request that asks for the same. Raises BadRequest and Unsupported."""
    for name in _STATE:
        if body.get(name):
            raise unsupported(name, "nothing is stored here: send the whole conversation in `input`")
    chat = {name: value for name, value in body.items() if name not in _OWN}
    for name, chat_name in _RENAMED.items():
        if body.get(name) is not None:
            chat[chat_name] = body[name]
    text = body.get("text")
    if text is not None and mapping("text", text).get("format") is not None:
        chat["response_format"] = _format(mapping("text.format", text["format"]))
    messages = _messages(body.get("input"))
    if body.get("instructions") is not None:
        messages.insert(0, {"role": "system", "content": string("instructions", body["instructions"])})
    return {**chat, "messages": messages}


_CHAT_NAMES = {"response_format.json_schema": "text.format", "response_format": "text.format", "messages": "input"}


@contextmanager
def own_names() -> Iterator[None]:
    """Errors raised inside name the fields of this API, not those of the chat request."""
    try:
        yield
    except KimiVLError as error:
        for chat_name, name in {**_CHAT_NAMES, **{new: old for old, new in _RENAMED.items()}}.items():
            if (error.param or "").startswith(chat_name):
                error.args = (str(error).replace(chat_name, name, 1),)
                error.param = (error.param or "").replace(chat_name, name, 1)
                break
        raise


def ignored_fields(body: Mapping[str, Any]) -> list[str]:
    """The fields of this API that are given and have no effect."""
    return [name for name in _NO_EFFECT if body.get(name) not in (None, False, "auto", {}, [])]


def _format(value: Mapping[str, Any]) -> dict[str, Any]:
    """The schema is one level higher than in chat requests."""
    if value.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {"schema": value.get("schema")}}
    return dict(value)


def _messages(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise bad("input", f"got {shown(value)}, expected a text or a list of items")
    messages: list[dict[str, Any]] = []
    thought = ""
    for index, item in enumerate(value):
        where = f"input[{index}]"
        kind = mapping(where, item).get("type", "message")
        if kind == "reasoning":
            thought += _thought(where, item)
        elif kind == "message":
            message = {"role": item.get("role"), "content": item.get("content")}
            if thought and item.get("role") == "assistant":
                message["reasoning_content"] = thought
            thought = ""
            messages.append(message)
        else:
            raise unsupported(f"{where}.type", f"got {shown(kind)}, expected 'message' or 'reasoning'")
    return messages


def _thought(where: str, item: Mapping[str, Any]) -> str:
    parts = item.get("content") or []
    if not isinstance(parts, list):
        raise bad(f"{where}.content", f"got {shown(parts)}, expected a list of parts")
    return "".join(
        string(f"{where}.content[{index}].text", mapping(f"{where}.content[{index}]", part).get("text"))
        for index, part in enumerate(parts)
    )


class ResponseWriter:
    """One answer as a Response, whole or as its events."""

    def __init__(self, body: Mapping[str, Any], *, answer_id: str, created: int, model: str) -> None:
        self._head: dict[str, Any] = {
            "id": answer_id,
            "object": "response",
            "created_at": created,
            "model": model,
            "error": None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": _effort(body), "summary": None},
            "store": False,
            "temperature": body.get("temperature"),
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": body.get("top_p"),
            "truncation": "disabled",
        }
        self._sequence = 0
        self._items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None

    def whole(self, response: Response, reason: FinishReason) -> dict[str, Any]:
        """The finished Response."""
        if response.thinking:
            self._items.append(_item("thinking", response.thinking))
        self._items.append(_item("text", response.text))
        return self._finished(response, reason)

    def _finished(self, response: Response, reason: FinishReason) -> dict[str, Any]:
        cut = reason != "stop"
        usage = usage_of([response])
        return {
            **self._head,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._items,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"]},
                "total_tokens": usage["total_tokens"],
            },
        }

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event

    def opening(self) -> list[dict[str, Any]]:
        """The events before the first piece."""
        begun = {**self._head, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        return [self._event("response.created", response=begun), self._event("response.in_progress", response=begun)]

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        """The events of one piece."""
        events: list[dict[str, Any]] = []
        if self._open is None or self._open["kind"] != piece.kind:
            events += [*self._close(), *self._begin(piece.kind)]
        assert self._open is not None
        self._open["text"] += piece.text
        name = "reasoning_text" if piece.kind == "thinking" else "output_text"
        extra: dict[str, Any] = {} if piece.kind == "thinking" else {"logprobs": []}
        return [*events, self._event(f"response.{name}.delta", **self._place(), delta=piece.text, **extra)]

    def end(self, response: Response, reason: FinishReason) -> list[dict[str, Any]]:
        """The events after the last piece."""
        events = [] if response.text else [*self._close(), *self._begin("text")]
        events += self._close()
        finished = self._finished(response, reason)
        return [*events, self._event(f"response.{finished['status']}", response=finished)]

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self._items), "content_index": 0}

    def _begin(self, kind: str) -> list[dict[str, Any]]:
        item = _item(kind, "")
        self._open = {"kind": kind, "text": "", "id": item["id"]}
        begun = {**item, "content": [], "status": "in_progress"}
        return [
            self._event("response.output_item.added", output_index=len(self._items), item=begun),
            self._event("response.content_part.added", **self._place(), part=item["content"][0]),
        ]

    def _close(self) -> list[dict[str, Any]]:
        if self._open is None:
            return []
        kind, text = self._open["kind"], self._open["text"]
        item = {**_item(kind, text), "id": self._open["id"]}
        name = "reasoning_text" if kind == "thinking" else "output_text"
        extra: dict[str, Any] = {} if kind == "thinking" else {"logprobs": []}
        events = [
            self._event(f"response.{name}.done", **self._place(), text=text, **extra),
            self._event("response.content_part.done", **self._place(), part=item["content"][0]),
            self._event("response.output_item.done", output_index=len(self._items), item=item),
        ]
        self._items.append(item)
        self._open = None
        return events


def _item(kind: str, text: str) -> dict[str, Any]:
    if kind == "thinking":
        content = [{"type": "reasoning_text", "text": text}]
        return {"type": "reasoning", "id": f"rs_{secrets.token_hex(12)}", "summary": [], "content": content}
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {
        "type": "message",
        "id": f"msg_{secrets.token_hex(12)}",
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }


def _effort(body: Mapping[str, Any]) -> Any:
    reasoning = body.get("reasoning")
    return reasoning.get("effort") if isinstance(reasoning, Mapping) else None
