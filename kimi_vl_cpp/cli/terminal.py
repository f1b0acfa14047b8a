"""The two output streams and what each can show: colours, notes, errors.

Refuses to know models: it gets text.

Two rules hold everywhere. Standard output carries the answer and nothing else, so that it can be piped; progress,
notes, timings and errors go to standard error. What a file or a model wrote never reaches a terminal with its control
characters in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TextIO

from ..wording import printable

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
        """A line for the user, on standard error. A closed standard error is nobody listening, not a failure."""
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
