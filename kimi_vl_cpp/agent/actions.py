"""What an agent can do: one frozen class an action. Places are shares of the screen's width and height, from 0 to 1.

Owns the actions, their words for a user, and their form in JSON. Knows no screen and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ..errors import AgentStopped, shown

Button = Literal["left", "right", "middle"]
LONGEST_WAIT = 20.0
"""Seconds."""


@dataclass(frozen=True)
class Click:
    """count: 1 to 3."""

    x: float
    y: float
    button: Button = "left"
    count: int = 1


@dataclass(frozen=True)
class Move:
    """The pointer to a place."""

    x: float
    y: float


@dataclass(frozen=True)
class Drag:
    """With the left button held. x0, y0: None for where the pointer is."""

    x0: float | None
    y0: float | None
    x1: float
    y1: float


@dataclass(frozen=True)
class Scroll:
    """dx, dy: to the right and down, in shares of the screen. x, y: where; None is the middle."""

    dx: float
    dy: float
    x: float | None = None
    y: float | None = None


@dataclass(frozen=True)
class Write:
    """Text into what has the focus. `{{NAME}}` stands for a secret."""

    text: str


@dataclass(frozen=True)
class Press:
    """Keys one after the other, by the names of agent/keys.py."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Hotkey:
    """Keys together, the last of which is pressed while the others are held."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    """seconds: up to LONGEST_WAIT."""

    seconds: float


@dataclass(frozen=True)
class Navigate:
    """A browser to an address."""

    url: str


@dataclass(frozen=True)
class Done:
    """The task is done."""

    answer: str = ""


@dataclass(frozen=True)
class Fail:
    """The task cannot be done."""

    reason: str = ""


@dataclass(frozen=True)
class Ask:
    """A question to the user."""

    question: str


Action = Click | Move | Drag | Scroll | Write | Press | Hotkey | Wait | Navigate | Done | Fail | Ask

_CLASSES: dict[str, type[Action]] = {
    one.__name__.lower(): one
    for one in (Click, Move, Drag, Scroll, Write, Press, Hotkey, Wait, Navigate, Done, Fail, Ask)
}
ENDS = (Done, Fail, Ask)
"""Actions that nothing on the screen is done for."""
KINDS = tuple(name for name, one in _CLASSES.items() if one not in ENDS)
"""Names of the actions that change or wait for the screen."""

_COUNTS = {1: "Click", 2: "Double-click", 3: "Triple-click"}


def kind(action: Action) -> str:
    """Its name: "click", "write", ..."""
    return type(action).__name__.lower()


def in_words(action: Action) -> str:
    """What it does, on one line, for the one who is asked."""
    match action:
        case Click(x, y, button, count):
            return f"{_COUNTS[count]} with the {button} button at {_place(x, y)}"
        case Move(x, y):
            return f"Move the pointer to {_place(x, y)}"
        case Drag(x0, y0, x1, y1):
            start = "where the pointer is" if x0 is None or y0 is None else _place(x0, y0)
            return f"Drag from {start} to {_place(x1, y1)}"
        case Scroll(dx, dy, x, y):
            ways = [("down", dy), ("up", -dy), ("right", dx), ("left", -dx)]
            how = " and ".join(f"{way} by {share:.0%} of the screen" for way, share in ways if share > 0)
            return f"Scroll {how or 'nowhere'}" + (f" at {_place(x, y)}" if x is not None and y is not None else "")
        case Write(text):
            return f"Write {text!r}"
        case Press(keys):
            return f"Press {', then '.join(keys)}"
        case Hotkey(keys):
            return f"Press {'+'.join(keys)}"
        case Wait(seconds):
            return f"Wait for {seconds:g} s"
        case Navigate(url):
            return f"Go to {url}"
        case Done(answer):
            return f"Done: {answer}" if answer else "Done"
        case Fail(reason):
            return f"Give up: {reason}" if reason else "Give up"
        case Ask(question):
            return f"Ask: {question}"


def places(action: Action) -> list[tuple[float, float]]:
    """The places that an action is at, as shares."""
    match action:
        case Click(x, y) | Move(x, y):
            return [(x, y)]
        case Drag(x0, y0, x1, y1):
            return [(x1, y1)] if x0 is None or y0 is None else [(x0, y0), (x1, y1)]
        case Scroll(_, _, x, y) if x is not None and y is not None:
            return [(x, y)]
        case _:
            return []


def to_dict(action: Action) -> dict[str, Any]:
    """Fit for JSON."""
    values = asdict(action)
    return {"do": kind(action), **{name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}}


def from_dict(data: Mapping[str, Any]) -> Action:
    """The action that `to_dict` gave. Raises AgentStopped (code "agent.trace")."""
    cls: Any = _CLASSES.get(str(data.get("do")))
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items() if name != "do"}
    declared = {} if cls is None else {field.name: str(field.type) for field in fields(cls)}
    if cls is None or set(given) != set(declared) or not all(_FITS[declared[name]](given[name]) for name in given):
        raise AgentStopped(f"{shown(dict(data))} is not an action of a trace", "agent.trace")
    action: Action = cls(**given)
    return action


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LONGEST_WAIT


_FITS: dict[str, Callable[[Any], bool]] = {
    "float": _is_number,
    "float | None": lambda value: value is None or _is_number(value),
    "int": lambda value: type(value) is int and 1 <= value <= 3,
    "str": lambda value: isinstance(value, str),
    "Button": lambda value: value in ("left", "right", "middle"),
    "tuple[str, ...]": lambda value: isinstance(value, tuple) and all(isinstance(one, str) for one in value),
}


def _place(x: float, y: float) -> str:
    return f"{x:.3f}, {y:.3f}"
