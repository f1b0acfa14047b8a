"""What a person sees: colours, the progress line, the answer as it streams.

Owns every escape sequence of the command line. Refuses to know models: it gets stages, pieces of text and numbers.

Two rules hold everywhere. Standard output carries the answer and nothing else, so that it can be piped; progress,
notes, timings and errors go to standard error. What a file or a model wrote never reaches a terminal with its control
characters in it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Literal, TextIO

from ..text.thinking import CLOSING, OPENING
from ..wording import duration, plural, printable

ThinkingMode = Literal["auto", "show", "hide"]

DIM, BOLD, RED, YELLOW, GREEN, RESET = "\x1b[2m", "\x1b[1m", "\x1b[31m", "\x1b[33m", "\x1b[32m", "\x1b[0m"


def is_terminal(stream: object) -> bool:
    """True when `stream` is open and a terminal."""
    try:
        return bool(stream.isatty())  # type: ignore[attr-defined]
    except (AttributeError, ValueError, OSError):
        return False


class Terminal:
    """The two output streams and what each can show."""

    def __init__(
        self, out: TextIO | None = None, err: TextIO | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        env = os.environ if env is None else env
        self.out = out if out is not None else _stream(sys.stdout)
        self.err = err if err is not None else _stream(sys.stderr)
        self.out_tty = is_terminal(self.out)
        self.err_tty = is_terminal(self.err)
        escapes = env.get("TERM", "") != "dumb"
        colour = escapes and not env.get("NO_COLOR")
        self.err_escapes = self.err_tty and escapes
        self.out_colour = self.out_tty and colour
        self.err_colour = self.err_tty and colour

    def style(self, text: str, *codes: str, err: bool = True) -> str:
        """`text` in the given style where the stream can show it, plain otherwise."""
        return f"{''.join(codes)}{text}{RESET}" if codes and (self.err_colour if err else self.out_colour) else text

    def say(self, text: str, *codes: str) -> None:
        """A line for the person, on standard error. A closed standard error is nobody listening, not a failure."""
        try:
            self.err.write(self.style(printable(text), *codes) + "\n")
            self.err.flush()
        except (OSError, ValueError):
            pass

    def note(self, text: str) -> None:
        """Something worth knowing that is not an error."""
        self.say(f"note: {text}", DIM)

    def error(self, message: str, code: str = "") -> None:
        """`error: message`, with the stable code behind it, dimmed."""
        head = self.style("error:", BOLD, RED)
        tail = f" {self.style(f'[{code}]', DIM)}" if code else ""
        try:
            self.err.write(f"{head} {printable(message)}{tail}\n")
            self.err.flush()
        except (OSError, ValueError):
            pass

    def print(self, text: str = "") -> None:
        """A line on standard output. Text from a file must have gone through `printable`."""
        self.out.write(text + "\n")
        self.out.flush()

    def width(self) -> int:
        """Columns of the terminal behind standard error, at least 20; 80 when unknown."""
        for stream in (self.err, self.out):
            try:
                columns = os.get_terminal_size(stream.fileno()).columns
            except (OSError, ValueError, AttributeError):
                continue
            if columns > 0:
                return max(20, columns)
        return 80


def _stream(stream: TextIO | None) -> TextIO:
    return stream if stream is not None else open(os.devnull, "w", encoding="utf-8")


_STAGES = {"load": "loading the model", "encode": "looking at the picture", "prefill": "reading the prompt"}


class Progress:
    """One line on standard error that rewrites itself; silent unless that is a terminal.

    Callable as the `progress(stage, done, total)` of KimiVL. A stage that ends within `delay` seconds is never shown.
    """

    def __init__(self, terminal: Terminal, *, delay: float = 0.15, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = terminal
        self._delay = delay
        self._clock = clock
        self._stage = ""
        self._started = 0.0
        self._painted = 0.0
        self._shown = 0  # columns on the screen

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._clock()
        if stage != self._stage or done == 0:
            self._stage, self._started = stage, now
        if not self._terminal.err_tty:
            return
        elapsed = now - self._started
        if total > 0 and done >= total:
            self.clear()
            return
        at_once = stage == "load"  # it reports its beginning and its end only
        if not at_once and (elapsed < self._delay or now - self._painted < 0.05):
            return
        text = _STAGES.get(stage, stage)
        if total > 1:
            text += f"  {100 * done // total:3d}%"
            if stage == "prefill":
                text += f"  {done}/{total} tokens"
            if done > 0 and elapsed > 1:
                text += f"  {duration(elapsed / done * (total - done))} left"
        self.show(text)

    def show(self, text: str) -> None:
        """Puts `text` on the line, cut to the terminal's width."""
        if not self._terminal.err_tty:
            return
        text = printable(text, one_line=True)[: self._terminal.width() - 1]
        if self._terminal.err_escapes:
            self._write(f"\r{self._terminal.style(text, DIM)}\x1b[K")
        else:
            self._write("\r" + text.ljust(self._shown))
        self._shown = len(text)
        self._painted = self._clock()

    def clear(self) -> None:
        """Takes the line away. Call before anything else is written."""
        if self._shown:
            self._write("\r\x1b[K" if self._terminal.err_escapes else "\r" + " " * self._shown + "\r")
            self._shown = 0

    def _write(self, text: str) -> None:
        try:
            self._terminal.err.write(text)
            self._terminal.err.flush()
        except (OSError, ValueError):
            pass


class AnswerWriter:
    """Writes an answer as it comes: the answer proper on standard output, the reasoning where a person sees it.

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
