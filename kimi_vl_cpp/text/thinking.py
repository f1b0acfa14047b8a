"""Splits reasoning from the answer: ◁think▷ reasoning ◁/think▷ answer.

Owns the two marks and where they count, and which text stop strings look at: the answer, without the reasoning and
without the white space around the marks. The marks are ordinary text, not special tokens, and may arrive cut anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..types import PieceKind, Reasoning
from .stop_strings import StopMatcher

OPENING = "◁think▷"
CLOSING = "◁/think▷"
NO_THINKING = f"{OPENING}\n\n{CLOSING}"
"""What a reply without reasoning begins with."""


class ThinkingSplitter:
    """Text of a reply in, separate pieces out; nothing that may be part of a mark or of a stop string is given out
    before it is known.

    reasoning "yes" (a model trained to reason): from the first opening mark to the first closing mark is thinking, also
        when the closing mark never comes. A closing mark without an opening one ends thinking that began with the
        reply. Until a mark or the end of the reply decides, the text is held back.
    reasoning "maybe": the same for a reply that begins with the opening mark; any other reply is all text.
    reasoning "no": marks are text like any other.

    White space around the marks belongs to neither side: it is dropped before the opening mark of a reply that begins
    with it, at both ends of the thinking, and at both ends of the answer after it. After the first block everything is
    text, whatever it spells. A reply without a block is given out as it is.

    stop: strings that end the answer and are not part of it; `hit` is the one met. Reasoning and white space around
    the marks do not count.
    inside: the reply goes on inside a block that was opened before it.
    """

    def __init__(self, reasoning: Reasoning = "yes", stop: Sequence[str] = (), inside: bool = False) -> None:
        self._state: Literal["before", "thinking", "after", "plain"]
        self._state = "thinking" if inside else "plain" if reasoning == "no" else "before"
        self._hold_all = reasoning == "yes"
        self._matcher = StopMatcher(stop)
        self._held: list[str] = []  # before a mark: what no mark has decided yet
        self._tail = ""  # may be the beginning of a mark
        self._space: list[str] = []  # white space that is given out only if something follows
        self._begun = False  # something of the current stretch was given out

    @property
    def thinking(self) -> bool:
        """Whether the reply is known to be inside the thinking block now."""
        return self._state == "thinking"

    @property
    def after(self) -> bool:
        """Whether the thinking block has ended: what follows is the answer."""
        return self._state == "after"

    @property
    def answering(self) -> bool:
        """Whether text is part of the answer now, or may turn out to be."""
        return not self.thinking and (self._state != "after" or self._begun)

    @property
    def begun_mark(self) -> str:
        """Inside the thinking block: what may be the beginning of the closing mark at the end of the text so far."""
        return self._tail if self._state == "thinking" else ""

    def skip(self, text: str) -> None:
        """Takes the beginning of the reply, which is known already: only what follows is given out, and stop strings
        do not look at it. Without a mark in it the reply is all text."""
        if self._state == "before" and text.strip():
            matcher, self._matcher = self._matcher, StopMatcher(())
            self.push(text)
            self._matcher = matcher
            if self._state == "before":
                self._state, self._held, self._tail = "plain", [], ""
            self._space = []

    @property
    def hit(self) -> str | None:
        """The stop string that ended the answer, or None."""
        return self._matcher.hit

    def push(self, text: str) -> list[tuple[PieceKind, str]]:
        """The pieces that this text completes, in order, none of them empty; neighbours differ in kind."""
        out: list[tuple[PieceKind, str]] = []
        text = self._tail + text
        self._tail = ""
        if self._state == "before":
            text = self._decide(out, text)
        if self._state == "thinking":
            before, found, text = text.partition(CLOSING)
            if not found:
                before = self._keep_tail(before, (CLOSING,))
            self._trimmed(out, "thinking", before)
            if found:
                self._enter("after")
        if self._state == "after":
            self._answer(out, text)
        elif self._state == "plain":
            _add(out, "text", self._matcher.push(text))
        return out

    def flush(self) -> list[tuple[PieceKind, str]]:
        """The end of the reply: the rest of what was held back. White space at the end of a block's answer is not."""
        out: list[tuple[PieceKind, str]] = []
        tail, self._tail = self._tail, ""
        if self._state == "thinking":
            self._trimmed(out, "thinking", tail)
        elif self._state == "after":
            self._trimmed(out, "text", self._matcher.flush())
        else:
            _add(out, "text", self._matcher.push("".join((*self._held, tail))))
            _add(out, "text", self._matcher.flush())
        self._held, self._space = [], []
        return out

    def _decide(self, out: list[tuple[PieceKind, str]], text: str) -> str:
        """Looks for the mark that says what the beginning of the reply is. Returns the text behind it."""
        marks = (OPENING, CLOSING) if self._hold_all else (OPENING,)
        start, mark = min(((at, mark) for mark in marks if (at := text.find(mark)) >= 0), default=(-1, ""))
        if start < 0:
            self._held.append(self._keep_tail(text, marks))
            if self._hold_all or not self._held[-1].strip():
                return ""
        before = "".join(self._held) + text[: max(start, 0)]
        self._held = []
        if mark == CLOSING:
            self._trimmed(out, "thinking", before)
            self._enter("after")
        elif mark == OPENING and (self._hold_all or not before.strip()):
            if before.strip():
                body = before.rstrip()
                _add(out, "text", self._matcher.push(body))
                _add(out, "text", self._matcher.flush())
                if self.hit is None:
                    _add(out, "text", before[len(body) :])
            self._enter("thinking")
        else:  # something else came first
            self._state = "plain"
            rest = text[max(start, 0) :] if mark else self._tail
            self._tail = ""
            return before + rest
        return text[start + len(mark) :]

    def _enter(self, state: Literal["thinking", "after"]) -> None:
        self._state, self._space, self._begun = state, [], False

    def _keep_tail(self, text: str, marks: Sequence[str]) -> str:
        """`text` without what may be the beginning of a mark at its end, which is kept for the next push."""
        n_held = max(_length_of_mark_at_end(text, mark) for mark in marks)
        self._tail = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def _answer(self, out: list[tuple[PieceKind, str]], text: str) -> None:
        """The answer after a block: stop strings see it at once, without the white space that follows the mark."""
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        self._trimmed(out, "text", self._matcher.push(text))

    def _trimmed(self, out: list[tuple[PieceKind, str]], kind: PieceKind, text: str) -> None:
        """Gives out `text` but for white space at its ends that may have to go."""
        body = text.rstrip()
        if body:
            if kind == "thinking" and not self._begun:
                self._space, body, self._begun = [], body.lstrip(), True
            _add(out, kind, "".join((*self._space, body)))
            self._space = []
        space = text[len(text.rstrip()) :]
        if space:
            self._space.append(space)


def _add(out: list[tuple[PieceKind, str]], kind: PieceKind, text: str) -> None:
    if text and out and out[-1][0] == kind:
        text = out.pop()[1] + text
    if text:
        out.append((kind, text))


def split_thinking(text: str, finished: bool = True, reasoning: Reasoning = "yes") -> tuple[str, str]:
    """(thinking, answer) of a reply, as `ThinkingSplitter` splits it. finished=False: more may follow, so that what is
    still undecided and white space at the end are left out."""
    splitter = ThinkingSplitter(reasoning)
    pieces = splitter.push(text) + (splitter.flush() if finished else [])
    thinking = "".join(piece for kind, piece in pieces if kind == "thinking")
    return thinking, "".join(piece for kind, piece in pieces if kind == "text")


def join_thinking(thinking: str, answer: str) -> str:
    """A reply as the model writes it: its reasoning in the marks, if there is any, then the answer."""
    return f"{OPENING}{thinking}{CLOSING}{answer}" if thinking else answer


def _length_of_mark_at_end(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    at = text.rfind(mark[0], max(0, len(text) - len(mark) + 1))
    while at != -1 and not mark.startswith(text[at:]):
        at = text.rfind(mark[0], max(0, len(text) - len(mark) + 1), at)
    return 0 if at == -1 else len(text) - at
