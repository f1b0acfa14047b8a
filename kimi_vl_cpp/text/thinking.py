"""Parts the reasoning from the answer: ◁think▷ reasoning ◁/think▷ answer.

Owns the two marks and where they count. They are ordinary text, not special tokens, and may arrive cut anywhere.
"""

from __future__ import annotations

from typing import Literal

OPENING = "◁think▷"
CLOSING = "◁/think▷"

Kind = Literal["thinking", "text"]


def join_thinking(thinking: str, answer: str) -> str:
    """A reply as the model writes it: its reasoning in the marks, if there is any, then the answer."""
    return f"{OPENING}{thinking}{CLOSING}{answer}" if thinking else answer


class ThinkingSplitter:
    """Text of a reply in, parted pieces out; nothing that may be part of a mark is given out before it is known.

    The rule: before the first opening mark everything is text; from there to the first closing mark everything is
    thinking, also when the closing mark never comes; after it everything is text, whatever it spells. White space
    around the marks belongs to nobody: before the opening mark of a reply that begins with it, at both ends of the
    thinking, and at both ends of the answer after it. A reply without a block is given out as it is. A closing mark
    without an opening one is text.

    thinking: the reply goes on inside a block that was opened before (an answer that is being continued).
    """

    def __init__(self, thinking: bool = False) -> None:
        self._state: Literal["before", "thinking", "after"] = "thinking" if thinking else "before"
        self._tail = ""  # may be the beginning of a mark
        self._space: list[str] = []  # white space that is given out only if something follows
        self._begun = False  # something of the current stretch was given out

    @property
    def thinking(self) -> bool:
        """Whether the reply is inside the thinking block now."""
        return self._state == "thinking"

    def push(self, text: str) -> list[tuple[Kind, str]]:
        """The pieces that this text completes, in order, none of them empty; neighbours differ in kind."""
        out: list[tuple[Kind, str]] = []
        text = self._tail + text
        self._tail = ""
        while self._state != "after":
            mark = OPENING if self._state == "before" else CLOSING
            before, found, text = text.partition(mark)
            if not found:
                n_held = _length_of_mark_at_end(before, mark)
                self._tail = before[len(before) - n_held :]
                self._emit(out, before[: len(before) - n_held])
                return out
            self._emit(out, before)
            if self._state == "before" and self._begun:
                self._give(out, "")  # white space between a text before the block and the block: the text's
            self._state = "thinking" if self._state == "before" else "after"
            self._space, self._begun = [], False
        self._emit(out, text)
        return out

    def flush(self) -> list[tuple[Kind, str]]:
        """The end of the reply: the rest of what was kept back. White space at the end of a block's answer is not."""
        out: list[tuple[Kind, str]] = []
        self._emit(out, self._tail)
        self._tail = ""
        if self._state == "before":
            self._give(out, "")
        self._space = []
        return out

    def _emit(self, out: list[tuple[Kind, str]], text: str) -> None:
        """Gives out `text` but for white space at its ends that may have to go."""
        body = text.rstrip()
        if body:
            if not self._begun and self._state != "before":
                self._space, body = [], body.lstrip()
            self._give(out, body)
            self._begun = True
        space = text[len(text.rstrip()) :]
        if space:
            self._space.append(space)

    def _give(self, out: list[tuple[Kind, str]], text: str) -> None:
        text = "".join((*self._space, text))
        self._space = []
        kind: Kind = "thinking" if self._state == "thinking" else "text"
        if not text:
            return
        if out and out[-1][0] == kind:
            text = out.pop()[1] + text
        out.append((kind, text))


def split_thinking(text: str, finished: bool = True) -> tuple[str, str]:
    """(thinking, answer) of a reply, as `ThinkingSplitter` parts it. finished=False: more may follow, so that a
    beginning of a mark and white space at the end are left out."""
    splitter = ThinkingSplitter()
    pieces = splitter.push(text) + (splitter.flush() if finished else [])
    thinking = "".join(piece for kind, piece in pieces if kind == "thinking")
    return thinking, "".join(piece for kind, piece in pieces if kind == "text")


def _length_of_mark_at_end(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    at = text.rfind(mark[0], max(0, len(text) - len(mark) + 1))
    while at != -1 and not mark.startswith(text[at:]):
        at = text.rfind(mark[0], max(0, len(text) - len(mark) + 1), at)
    return 0 if at == -1 else len(text) - at
