"""What a long command shows while it works: one line on standard error that rewrites itself. Refuses to know models: it
gets stages and numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from ..errors import Cancelled
from ..wording import columns, cut, duration, padded, printable
from .terminal import DIM, Terminal

_STAGES = {"load": "loading the model", "encode": "looking at the picture", "prefill": "reading the prompt"}


class Progress:
    """One line on standard error that rewrites itself; silent unless that is a terminal.

    Callable as the `progress(stage, done, total)` of KimiVL. A stage that ends within `delay` seconds is never shown.
    """

    def __init__(self, terminal: Terminal, *, delay: float = 0.15, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = terminal
        self._delay = delay
        self.clock = clock
        self._stage = ""
        self._unfinished = False  # the stage that was left: pictures and prompt take turns when there are many
        self._started = 0.0
        self._painted = 0.0
        self._shown = 0  # columns on the screen

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self.clock()
        if done == 0 or (stage != self._stage and not self._unfinished):
            self._started = now
        self._stage, self._unfinished = stage, done < total
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
        text = cut(printable(text, one_line=True), self._terminal.width() - 1)
        if self._terminal.err_escapes:
            self._write(f"\r{self._terminal.style(text, DIM)}\x1b[K")
        else:
            self._write("\r" + padded(text, self._shown))
        self._shown = columns(text)
        self._painted = self.clock()

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


_BAR_COLUMNS = 24
_TEXT_COLUMNS = 32  # "quantizing [] 100%  99 min left" and the cursor


class Bar:
    """progress(stage, done, total) as a bar with the time left; silent unless standard error is a terminal.

    titles: stage -> its words on the line. surveys: stages that count files of the data and show no bar. Loading a
    model is shown as everywhere.
    """

    def __init__(
        self,
        terminal: Terminal,
        titles: Mapping[str, str],
        surveys: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line = Progress(terminal)
        self._terminal = terminal
        self._titles = titles
        self._surveys = surveys
        self._clock = clock
        self._stage = ""
        self._began: tuple[float, int] = (0.0, 0)  # when, and what was done already
        self._painted = float("-inf")
        self._shares: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "load":
            self._line(stage, done, total)
            return
        if stage in self._surveys:
            self._line.show(f"looking at the data  {done}/{total}")
            return
        now = self._clock()
        if stage != self._stage:
            self._stage, self._began = stage, (now, done)
        self._shares[stage] = done / max(total, 1)
        if now - self._painted < 0.05 and done < total:
            return
        self._painted = now
        began, at_first = self._began
        text = f"{100 * done // max(total, 1):3d}%"
        if now - began > 1 and at_first < done < total:
            text += f"  {duration((now - began) / (done - at_first) * (total - done))} left"
        columns = min(_BAR_COLUMNS, self._terminal.width() - _TEXT_COLUMNS)
        if columns >= 4:
            filled = columns * done // max(total, 1)
            text = f"[{'#' * filled}{'.' * (columns - filled)}] {text}"
        self._line.show(f"{self._titles.get(stage, stage)} {text}")

    def announce(self, text: str) -> None:
        """Says what comes before the first stage."""
        self._line.show(f"{text}…")

    def how_far(self, stage: str) -> str:
        """For the note of an interrupted run: " at 40 %", or nothing before the stage began."""
        return f" at {100 * self._shares[stage]:.0f} %" if stage in self._shares else ""

    @contextmanager
    def until_stopped(self, note: Callable[[], str]) -> Iterator[None]:
        """Takes the line away at the end. note(): what the user should know when the work was stopped before it."""
        try:
            yield
        except (KeyboardInterrupt, Cancelled):
            self.clear()
            self._terminal.note(note())
            raise
        finally:
            self.clear()

    def clear(self) -> None:
        """Takes the line away."""
        self._line.clear()
