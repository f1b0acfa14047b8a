"""What `compare` and `imatrix` say about the folder of texts and pictures that they worked through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..wording import printable
from .terminal import YELLOW, Terminal

_MOST_NOTES = 5


class DataReport(Protocol):
    """The part of their reports that is read here. skipped: (file, why)."""

    @property
    def warnings(self) -> Sequence[str]: ...
    @property
    def skipped(self) -> Sequence[tuple[Path, str]]: ...


def show(report: DataReport, terminal: Terminal) -> None:
    """The warnings, and the first of the files that were skipped."""
    for warning in report.warnings:
        terminal.say(f"warning: {warning}", YELLOW)
    for file, why in report.skipped[:_MOST_NOTES]:
        terminal.note(f"skipped {printable(str(file), one_line=True)}: {printable(why, one_line=True)}")
    if len(report.skipped) > _MOST_NOTES:
        terminal.note(f"skipped {len(report.skipped) - _MOST_NOTES} more files; --json lists all")
