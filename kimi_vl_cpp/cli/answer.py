"""An answer as it streams: the answer proper on standard output, the reasoning where the user sees it."""

from __future__ import annotations

from typing import Literal, TextIO

from ..text.thinking import CLOSING, OPENING
from ..wording import plural, printable
from .progress import Progress
from .terminal import DIM, RESET, Terminal, is_terminal

ThinkingMode = Literal["auto", "show", "hide"]


class AnswerWriter:
    """Writes an answer as it comes: the answer proper on standard output, the reasoning where a user sees it.

    thinking "auto": dimmed before the answer when standard output is a terminal; when it is not, dimmed on standard
    error if that is a terminal, else left out: a pipe or a file receives the answer alone. "show": always on standard
    output, between ◁think▷ and ◁/think▷ where it cannot be dimmed. "hide": never; a terminal shows that the model is
    thinking.
    """

    def __init__(self, terminal: Terminal, progress: Progress, thinking: ThinkingMode = "auto") -> None:
        self._terminal = terminal
        self._progress = progress
        self._kind = ""
        self._column_open = False  # the current line of standard output has characters
        self._n_thinking = 0
        self.wrote_text = False
        if thinking == "auto":
            thinking = "show" if terminal.out_tty or terminal.err_tty else "hide"
            self._thinking_stream = terminal.out if terminal.out_tty else terminal.err
        else:
            self._thinking_stream = terminal.out
        self._show = thinking == "show"
        to_out = self._thinking_stream is terminal.out
        self._dim = terminal.out_colour if to_out else terminal.err_colour

    def write(self, kind: str, text: str) -> None:
        """The next piece; `kind` is "thinking" or "text"."""
        if kind == "thinking":
            self._write_thinking(text)
            return
        if self._kind != "text":
            self._leave_thinking()
            self._kind = "text"
        self._emit(self._terminal.out, text)
        self.wrote_text = True
        self._column_open = not text.endswith("\n")

    def finish(self) -> None:
        """Ends the last line. To be called on every way out."""
        self._leave_thinking()
        if self._column_open:
            self._emit(self._terminal.out, "\n")
            self._column_open = False
        self._kind = ""

    def _write_thinking(self, text: str) -> None:
        if self._kind != "thinking":
            self._progress.clear()
            if self._column_open and self._thinking_stream is self._terminal.out:
                self._emit(self._terminal.out, "\n")
                self._column_open = False
            if self._show and not self._dim:
                self._emit(self._thinking_stream, OPENING)
            self._kind = "thinking"
        self._n_thinking += 1
        if not self._show:
            if self._terminal.out_tty:
                self._progress.show(f"thinking… {plural(self._n_thinking, 'token')}")
            return
        self._emit(self._thinking_stream, text, dim=self._dim)

    def _leave_thinking(self) -> None:
        self._progress.clear()
        if self._kind == "thinking" and self._show:
            self._emit(self._thinking_stream, "\n\n" if self._dim else f"{CLOSING}\n\n")
        self._kind = "" if self._kind == "thinking" else self._kind

    def _emit(self, stream: TextIO, text: str, *, dim: bool = False) -> None:
        if not text:
            return
        if is_terminal(stream):
            text = printable(text)
        stream.write(f"{DIM}{text}{RESET}" if dim else text)
        stream.flush()
