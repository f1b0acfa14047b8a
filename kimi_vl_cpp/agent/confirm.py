"""Asking the user before an action: before each, unless its kind was allowed, and some kinds only if all were."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from ..errors import AgentStopped, BadRequest, shown
from .actions import KINDS, Action, Drag, Hotkey, Navigate, Press, Write, in_words, kind

Decision = Literal["yes", "no", "stop"]
Confirm = Callable[[Action, Path | None], Decision]
"""(action, a picture with its place marked or None) -> what the user decided."""

ALL = "all"


def ask(action: Action, marked: Path | None) -> Decision:
    """On the terminal. Raises AgentStopped (code "agent.confirm") when there is none."""
    if not sys.stdin or not sys.stdin.isatty():
        raise AgentStopped(
            f"nobody can be asked whether to do this: {in_words(action)}: run it on a terminal, or allow its kind",
            "agent.confirm",
        )
    seen = f" (see {marked})" if marked is not None else ""
    while True:
        try:
            answer = input(f"{in_words(action)}{seen}? [y]es, [n]o, [s]top: ").strip().lower()
        except EOFError:
            return "stop"
        for decision in ("yes", "no", "stop"):
            if answer and decision.startswith(answer):
                return decision


def everything(action: Action, marked: Path | None) -> Decision:
    """Asks nobody."""
    return "yes"


def relaxed(kinds: Collection[str], otherwise: Confirm = ask) -> Confirm:
    """Asks about everything but these kinds. "all" is all of them; without it, what may send or leave something is
    asked about whatever the kinds: navigate, drag, and write, press and hotkey with the Enter key.

    Raises BadRequest (code "request.yes") for another name.
    """
    for name in kinds:
        if name not in (*KINDS, ALL):
            raise BadRequest(f"yes: got {shown(name)}, expected some of {', '.join((*KINDS, ALL))}", "request.yes")

    def decide(action: Action, marked: Path | None) -> Decision:
        if ALL in kinds or (kind(action) in kinds and not is_grave(action)):
            return "yes"
        return otherwise(action, marked)

    return decide


def is_grave(action: Action) -> bool:
    """Whether an action may send or leave something."""
    match action:
        case Write(text):
            return "\n" in text or "\r" in text
        case Press(keys) | Hotkey(keys):
            return "enter" in keys
        case _:
            return isinstance(action, Navigate | Drag)
