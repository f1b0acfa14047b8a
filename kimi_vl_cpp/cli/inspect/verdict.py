"""The last lines of `kimi-vl inspect`: whether it works, and what was found."""

from __future__ import annotations

from typing import Any

from ...wording import printable
from ..terminal import BOLD, DIM, GREEN, RED, YELLOW, Terminal

_COLOURS = {"error": RED, "warning": YELLOW, "note": DIM}


def print_verdict(report: dict[str, Any], what: str, beside: str, terminal: Terminal) -> None:
    """what: "file"; beside: "with Kimi-VL": the words around whether it works."""
    if report["works"]:
        checked = " Every value in it is finite." if report.get("checked") else ""
        terminal.print(terminal.style(f"This {what} works {beside}.{checked}", GREEN, err=False))
    else:
        terminal.print(terminal.style(f"This {what} does not work {beside}:", BOLD, RED, err=False))
    for finding in report["findings"]:
        label = terminal.style(finding["severity"].ljust(8), _COLOURS[finding["severity"]], err=False)
        terminal.print(f"  {label}{printable(finding['message'], one_line=True)}")
