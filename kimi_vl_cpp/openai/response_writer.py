"""Answers as OpenAI's Responses: whole objects, or the events of a stream. Nothing is stored."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..text.tool_calls import CallPiece
from ..types import Piece, Response
from .said import AnswerReader, Called
from .shapes import usage_of

ItemKind = Literal["thinking", "text", "call"]
_DELTAS: dict[ItemKind, str] = {
    "thinking": "response.reasoning_text",
    "text": "response.output_text",
    "call": "response.function_call_arguments",
}
_ID_PREFIXES: dict[ItemKind, str] = {"thinking": "rs", "text": "msg", "call": "fc"}


@dataclass
class _Item:
    """An item of the output. text: what it holds so far, of a call its arguments. call: which call it is."""

    kind: ItemKind
    id: str
    text: str = ""
    call: Called | None = None

    def as_dict(self, status: str = "completed") -> dict[str, Any]:
        if self.call is not None:
            return {
                "type": "function_call",
                "id": self.id,
                "call_id": self.call.id,
                "name": self.call.name,
                "arguments": self.text,
                "status": status,
            }
        if self.kind == "thinking":
            return {"type": "reasoning", "id": self.id, "summary": [], "content": [self.part]}
        return {"type": "message", "id": self.id, "status": status, "role": "assistant", "content": [self.part]}

    @property
    def part(self) -> dict[str, Any]:
        """The one part of its content."""
        if self.kind == "thinking":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}


class ResponseWriter:
    """One answer as a Response, whole or as its events."""

    def __init__(self, body: Mapping[str, Any], *, answer_id: str, created: int, model: str, tools: bool) -> None:
        """body: the request. tools: the answer may call functions."""
        self._head: dict[str, Any] = {
            "id": answer_id,
            "object": "response",
            "created_at": created,
            "model": model,
            "error": None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "parallel_tool_calls": tools and body.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "reasoning": {"effort": _effort(body), "summary": None},
            "store": False,
            "temperature": body.get("temperature"),
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "top_p": body.get("top_p"),
            "truncation": "disabled",
        }
        self._sequence = 0
        self._items: list[dict[str, Any]] = []
        self._open: _Item | None = None
        self._reader = AnswerReader(tools)

    def whole(self, response: Response) -> dict[str, Any]:
        """The finished Response."""
        if response.thinking:
            self.piece(Piece(response.thinking, "thinking"))
        if response.text:
            self.piece(Piece(response.text, "text"))
        finished: dict[str, Any] = self.end(response)[-1]["response"]
        return finished

    def _finished(self, response: Response) -> dict[str, Any]:
        cut = response.finish_reason != "stop"
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
        if piece.kind == "thinking":
            return self._write("thinking", piece.text)
        return [event for one in self._reader.push(piece.text) for event in self._said(one)]

    def end(self, response: Response) -> list[dict[str, Any]]:
        """The events after the last piece."""
        events = [event for one in self._reader.flush() for event in self._said(one)]
        events += self._close("incomplete" if response.finish_reason != "stop" else "completed")
        if not any(item["type"] != "reasoning" for item in self._items):
            events += [*self._begin(_new_item("text")), *self._close()]
        finished = self._finished(response)
        return [*events, self._event(f"response.{finished['status']}", response=finished)]

    def _said(self, piece: CallPiece) -> list[dict[str, Any]]:
        if piece.kind == "text":
            return self._write("text", piece.text)
        if piece.kind == "call":
            n_begun = sum(item["type"] == "function_call" for item in self._items)
            item = _new_item("call", self._reader.said.calls[n_begun])
            return [*self._close(), *self._begin(item)]
        return self._write("call", piece.text) if piece.kind == "arguments" else self._close()

    def _write(self, kind: ItemKind, text: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        if self._open is None or self._open.kind != kind:
            events += [*self._close(), *self._begin(_new_item(kind))]
        assert self._open is not None
        self._open.text += text
        extra: dict[str, Any] = {"logprobs": []} if kind == "text" else {}
        return [*events, self._event(f"{_DELTAS[kind]}.delta", **self._place(), delta=text, **extra)]

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        place = {"item_id": self._open.id, "output_index": len(self._items)}
        return place if self._open.kind == "call" else {**place, "content_index": 0}

    def _begin(self, item: _Item) -> list[dict[str, Any]]:
        self._open = item
        begun = item.as_dict("in_progress")
        if item.kind == "call":
            return [self._event("response.output_item.added", output_index=len(self._items), item=begun)]
        begun |= {"content": [], "status": "in_progress"}
        return [
            self._event("response.output_item.added", output_index=len(self._items), item=begun),
            self._event("response.content_part.added", **self._place(), part=item.part),
        ]

    def _close(self, status: str = "completed") -> list[dict[str, Any]]:
        item = self._open
        if item is None:
            return []
        done = f"{_DELTAS[item.kind]}.done"
        if item.call is not None:
            events = [self._event(done, **self._place(), arguments=item.text, name=item.call.name)]
        else:
            extra: dict[str, Any] = {"logprobs": []} if item.kind == "text" else {}
            events = [
                self._event(done, **self._place(), text=item.text, **extra),
                self._event("response.content_part.done", **self._place(), part=item.part),
            ]
        finished = item.as_dict(status)
        events.append(self._event("response.output_item.done", output_index=len(self._items), item=finished))
        self._items.append(finished)
        self._open = None
        return events


def _new_item(kind: ItemKind, call: Called | None = None) -> _Item:
    return _Item(kind, f"{_ID_PREFIXES[kind]}_{secrets.token_hex(12)}", call=call)


def _effort(body: Mapping[str, Any]) -> Any:
    reasoning = body.get("reasoning")
    return reasoning.get("effort") if isinstance(reasoning, Mapping) else None
