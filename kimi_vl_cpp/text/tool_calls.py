"""Function calls as text: the marks around them, the instructions that list the functions, results in a conversation.

Kimi-VL's chat template has no form for function calls, so they are written in ordinary text, as
`<tool_call>{"name": NAME, "arguments": OBJECT}</tool_call>`. Knows no request and no JSON schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

OPENING = "<tool_call>"
CLOSING = "</tool_call>"
RESULT_CLOSING = "</tool_response>"
_HEAD = '{"name": '
_BETWEEN = ', "arguments": '
_TAIL = "}"
_INSTRUCTIONS = """# Functions

You can call functions. Each line below describes one in JSON: its name, what it does, and the schema of its arguments.

{functions}

To call a function, end your message with {opening}{head}NAME{between}ARGUMENTS{tail}{closing}, where ARGUMENTS is a \
JSON object. {several}The next message holds what the function returned."""
_SEVERAL = "To call several, write one after the other. "


def instructions(functions: Sequence[Mapping[str, Any]], *, several: bool) -> str:
    """What the system message says about functions. functions: each a JSON object with its name, description and
    parameters. several: whether one message may call more than one."""
    return _INSTRUCTIONS.format(
        functions="\n".join(json.dumps(one, ensure_ascii=False) for one in functions),
        opening=OPENING,
        head=_HEAD,
        between=_BETWEEN,
        tail=_TAIL,
        closing=CLOSING,
        several=_SEVERAL if several else "",
    )


def call_opening(name: str) -> str:
    """What follows the opening mark of a call, up to the arguments."""
    return f"{_HEAD}{json.dumps(name)}{_BETWEEN}"


CALL_END = f"{_TAIL}{CLOSING}"
"""What follows the arguments of a call."""
_CALL_OPENING = re.compile(rf'{re.escape(_HEAD)}("[^"]*"){re.escape(_BETWEEN)}')


def call(name: str, arguments: str) -> str:
    """A whole call. arguments: the text of a JSON object."""
    return f"{OPENING}{call_opening(name)}{arguments}{CALL_END}"


def result_opening(name: str) -> str:
    """What goes before the result of a function; RESULT_CLOSING follows it."""
    return f"<tool_response name={json.dumps(name)}>"


@dataclass(frozen=True)
class CallPiece:
    """A piece of an answer that may call functions. kind "text": text outside of calls. "call": a call begins, text is
    the function's name. "arguments": the next part of its arguments. "end": the call is complete."""

    kind: Literal["text", "call", "arguments", "end"]
    text: str = ""


class ToolCallSplitter:
    """The text of an answer in, its text and calls out, as soon as they are known.

    White space between the text and a call, and between two calls, belongs to neither. Calls have the form that `call`
    writes; the grammar of an answer holds them to it.
    """

    def __init__(self) -> None:
        self._step = self._outside
        self._held = ""  # what is not decided yet
        self._object = _ObjectEnd()
        self.n_calls = 0

    def push(self, text: str) -> list[CallPiece]:
        """The pieces that this text completes."""
        out: list[CallPiece] = []
        text, self._held = self._held + text, ""
        while text:
            text = self._step(out, text)
        return out

    def flush(self) -> list[CallPiece]:
        """The end of the answer: text that was held back."""
        held, self._held = self._held, ""
        if self._step != self._outside or (self.n_calls and not held.strip()):
            return []
        return [CallPiece("text", held)] if held else []

    # Each takes text of one part of the answer and returns what the next one is to look at.

    def _outside(self, out: list[CallPiece], text: str) -> str:
        before, found, rest = text.partition(OPENING)
        if found:
            if before.strip():
                out.append(CallPiece("text", before.rstrip()))
            self._step = self._head
            return rest
        n_given = len(text[: len(text) - _length_of_beginning(text, OPENING)].rstrip())
        if n_given:
            out.append(CallPiece("text", text[:n_given]))
        self._held = text[n_given:]
        return ""

    def _head(self, out: list[CallPiece], text: str) -> str:
        found = _CALL_OPENING.match(text)
        if not found:
            self._held = text
            return ""
        out.append(CallPiece("call", json.loads(found[1])))
        self.n_calls += 1
        self._step, self._object = self._arguments, _ObjectEnd()
        return text[found.end() :]

    def _arguments(self, out: list[CallPiece], text: str) -> str:
        end = self._object.find(text)
        out.append(CallPiece("arguments", text[:end]))
        if end is None:
            return ""
        self._step = self._end
        return text[end:]

    def _end(self, out: list[CallPiece], text: str) -> str:
        if not text.startswith(CALL_END):
            self._held = text
            return ""
        out.append(CallPiece("end"))
        self._step = self._outside
        return text[len(CALL_END) :]


class _ObjectEnd:
    """Looks for the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def find(self, text: str) -> int | None:
        """The index behind the object's last character, or None while it goes on."""
        for index, character in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
        return None


def _length_of_beginning(text: str, mark: str) -> int:
    """How many characters at the end of `text` are a beginning of `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
