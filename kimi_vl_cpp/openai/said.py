"""What an answer says beside its reasoning: content, and calls of functions."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from ..text.tool_calls import CallPiece, ToolCallSplitter
from ..types import Response
from .types import AnswerReason, ToolCall


@dataclass
class Called:
    """A call of a function; arguments: the text of a JSON object, as far as it is known."""

    id: str
    name: str
    arguments: str = ""

    def as_dict(self) -> ToolCall:
        """As messages carry it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass
class Said:
    """What an answer says beside its reasoning: its content and its calls."""

    content: str = ""
    calls: list[Called] = field(default_factory=list)


class AnswerReader:
    """Splits the text of one answer into content and calls, where it may hold calls."""

    def __init__(self, tools: bool) -> None:
        self._splitter = ToolCallSplitter() if tools else None
        self.said = Said()

    def push(self, text: str) -> list[CallPiece]:
        """The pieces of content and calls that this text completes, noted in `said`."""
        return self._noted([CallPiece("text", text)] if self._splitter is None else self._splitter.push(text))

    def flush(self) -> list[CallPiece]:
        """Those that the end of the answer completes."""
        return [] if self._splitter is None else self._noted(self._splitter.flush())

    def _noted(self, pieces: list[CallPiece]) -> list[CallPiece]:
        for piece in pieces:
            if piece.kind == "text":
                self.said.content += piece.text
            elif piece.kind == "call":
                self.said.calls.append(Called(f"call_{secrets.token_hex(12)}", piece.text))
            elif piece.kind == "arguments":
                self.said.calls[-1].arguments += piece.text
        return pieces


def read_answer(text: str, tools: bool) -> Said:
    """Content and calls of a whole answer."""
    reader = AnswerReader(tools)
    reader.push(text)
    reader.flush()
    return reader.said


def answer_reason(response: Response, said: Said) -> AnswerReason:
    """The finish reason: an answer that ended by itself with calls has one of its own."""
    return "tool_calls" if said.calls and response.finish_reason == "stop" else response.finish_reason
