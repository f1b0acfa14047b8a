"""The code of an answer as actions. It is parsed and never executed: calls of known names with literal arguments.

Sources of the forms: the paper's figure 10 (`Toolcall: click(x=0.884, y=0.144)`), and the sections `## Thought`,
`## Action:` and `## Code:` with a fenced block of pyautogui and `computer` calls, which public agents of this family of
models use.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import AgentStopped, shown
from ..grounding.parse import SLACK
from . import actions
from .actions import LONGEST_WAIT, Action, Button
from .keys import canonical

MAX_CODE = 4096
MAX_CALLS = 20
MAX_TEXT = 2000
WHEEL_CLICK = 0.1
"""Of the screen, for `scroll(clicks)`."""

_BUTTONS: dict[str, Button] = {
    "left": "left", "right": "right", "middle": "middle", "primary": "left", "secondary": "right",
}  # fmt: skip
_OWNERS = frozenset({"pyautogui", "computer", "mobile", "browser", "time"})
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_SECTION = re.compile(r"^[#*\s]*(thought|action|code|toolcall)\b[*\s]*:?[*]*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Written:
    """An answer taken apart: what it says about the step, and the actions of its code."""

    thought: str
    action_text: str
    actions: tuple[Action, ...]


def read_answer(text: str) -> Written:
    """An answer, without its reasoning. Raises AgentStopped (code "agent.action") naming the offending source."""
    said: dict[str, str] = {}
    marks = list(_SECTION.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=False):
        said[mark[1].lower()] = text[mark.end() : end].strip()
    blocks = _FENCE.findall(text)
    code = blocks[-1] if blocks else said.get("toolcall") or said.get("code", "")
    if not code.strip():
        raise _refused("the answer has no code", " ".join(text.split())[:80])
    return Written(said.get("thought", ""), said.get("action", ""), tuple(parse(code)))


def parse(code: str) -> list[Action]:
    """The actions of a block of code. Raises AgentStopped (code "agent.action")."""
    if len(code.encode(errors="replace")) > MAX_CODE:
        raise _refused(f"the code has more than {MAX_CODE} bytes", code[:80])
    try:
        body = ast.parse(code.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refused("the code is not Python", code.strip()[:80]) from None
    calls = [one for one in body if not isinstance(one, ast.Import | ast.ImportFrom)]
    if not 1 <= len(calls) <= MAX_CALLS:
        raise _refused(f"the code has {len(calls)} calls, expected 1 to {MAX_CALLS}", code.strip()[:80])
    return [_action(one, (ast.get_source_segment(code.strip(), one) or "")[:80]) for one in calls]


def _action(statement: ast.stmt, source: str) -> Action:
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call):
        raise _refused("only calls can be performed", source)
    match call.func:
        case ast.Name(name):
            pass
        case ast.Attribute(ast.Name(owner), name) if owner in _OWNERS:
            pass
        case _:
            raise _refused("only calls of pyautogui and computer can be performed", source)
    known = _KNOWN.get(name.replace("_", "").lower())
    if known is None:
        raise _refused(f"{shown(name)} is not an action: expected one of {', '.join(NAMES)}", source)
    arguments = _Arguments(call, source)
    try:
        action = known(arguments)
    except AgentStopped as error:
        raise error if source in str(error) else _refused(str(error), source) from None
    arguments.check_all_used()
    return action


class _Arguments:
    """Literal arguments of a call, by position or name; each is taken once."""

    def __init__(self, call: ast.Call, source: str) -> None:
        self._source = source
        try:
            self.positional: list[Any] = [ast.literal_eval(one) for one in call.args]
            self._named = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise _refused("arguments have to be plain numbers and texts", source) from None
        if None in self._named or len(self._named) != len(call.keywords):
            raise _refused("an argument cannot be read", source)

    def take(self, *names: str, default: Any = None) -> Any:
        """The argument of the first of the names that is there, else the next by position, else the default."""
        for name in names:
            if name in self._named:
                return self._named.pop(name)
        return self.positional.pop(0) if self.positional else default

    def ignore(self, *names: str) -> None:
        """Takes what does not matter: durations of movements."""
        for name in names:
            self._named.pop(name, None)

    def share(self, *names: str) -> float:
        """A coordinate."""
        value = self._number(self.take(*names), names[0])
        if not -SLACK <= value <= 1 + SLACK:
            raise self.wrong(f"{names[0]} is {value:g}, expected a share of the screen from 0 to 1")
        return min(max(value, 0.0), 1.0)

    def place(self) -> tuple[float, float]:
        """x and y, or a pair of them."""
        if self.positional and isinstance(self.positional[0], list | tuple) and len(self.positional[0]) == 2:
            self.positional[:1] = self.positional[0]
        return self.share("x"), self.share("y")

    def optional_place(self) -> tuple[float, float] | tuple[None, None]:
        """x and y where they are named."""
        return self.place() if "x" in self._named and "y" in self._named else (None, None)

    def pair(self, *names: str) -> tuple[float, float] | None:
        """A place given as one argument by name."""
        found = next((self._named.pop(name) for name in names if name in self._named), None)
        if found is None:
            return None
        if not isinstance(found, list | tuple) or len(found) != 2:
            raise self.wrong(f"{names[0]} is {shown(found)}, expected two shares")
        self._named |= {"x": found[0], "y": found[1]}
        return self.place()

    def number(self, *names: str, default: float = 0.0) -> float:
        return self._number(self.take(*names, default=default), names[0])

    def whole(self, low: int, high: int, *names: str, default: int = 1) -> int:
        value = self.take(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(f"{names[0]} is {shown(value)}, expected a whole number from {low} to {high}")
        return value

    def text(self, *names: str, default: str | None = None) -> str:
        value = self.take(*names, default=default)
        if not isinstance(value, str) or len(value) > MAX_TEXT or any(0xD800 <= ord(c) < 0xE000 for c in value):
            raise self.wrong(f"{names[0]} is {shown(value)}, expected a text of at most {MAX_TEXT} characters")
        return value

    def keys(self, *names: str) -> tuple[str, ...]:
        """Names of keys: several arguments, or a list."""
        given = self.take(*names)
        found = list(given) if isinstance(given, list | tuple) else [given, *self.positional]
        if not isinstance(given, list | tuple):
            self.positional.clear()
        if not 1 <= len(found) <= MAX_CALLS or not all(isinstance(one, str) for one in found):
            raise self.wrong(f"{names[0]} is {shown(given)}, expected names of keys")
        return tuple(map(canonical, found))

    def check_all_used(self) -> None:
        """Nothing that was given is passed over."""
        left = [*map(shown, self.positional), *map(str, self._named)]
        if left:
            raise self.wrong(f"argument {left[0]} is not known here")

    def wrong(self, problem: str) -> AgentStopped:
        return _refused(problem, self._source)

    def _number(self, value: Any, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(f"{name} is {shown(value)}, expected a number")
        return float(value)


def _click(button: Button | None = None, count: int | None = None) -> Callable[[_Arguments], Action]:
    def read(given: _Arguments) -> Action:
        x, y = given.place()
        n = count or given.whole(1, 3, "clicks", "count")
        named = button or given.take("button", default="left")
        given.ignore("duration", "interval", "tween")
        pressed = _BUTTONS.get(str(named).lower())
        if pressed is None:
            raise given.wrong(f"button is {shown(named)}, expected left, right or middle")
        return actions.Click(x, y, pressed, n)

    return read


def _move(given: _Arguments) -> Action:
    x, y = given.place()
    given.ignore("duration", "tween")
    return actions.Move(x, y)


def _drag(given: _Arguments) -> Action:
    start, end = given.pair("from_coord", "start"), given.pair("to_coord", "end")
    x1, y1 = end or given.place()
    given.ignore("duration", "button", "tween", "mouseDownUp")
    x0, y0 = start or (None, None)
    return actions.Drag(x0, y0, x1, y1)


def _scroll(across: bool) -> Callable[[_Arguments], Action]:
    def read(given: _Arguments) -> Action:
        x, y = given.optional_place()
        share = given.take("page") if "page" in given._named else None
        amount = (
            given.number("clicks", "amount") * WHEEL_CLICK if share is None else float(given._number(share, "page"))
        )
        if not 0 < abs(amount) <= 20:
            raise given.wrong(f"it scrolls by {amount:g} screens, expected something up to 20")
        return actions.Scroll(amount, 0.0, x, y) if across else actions.Scroll(0.0, -amount, x, y)

    return read


def _write(given: _Arguments) -> Action:
    text = given.text("message", "text", "content")
    given.ignore("interval")
    return actions.Write(text)


def _press(given: _Arguments) -> Action:
    times = given.whole(1, 20, "presses") if "presses" in given._named else 1
    given.ignore("interval")
    return actions.Press(given.keys("keys", "key") * times)


def _hotkey(given: _Arguments) -> Action:
    given.ignore("interval")
    return actions.Hotkey(given.keys("keys"))


def _wait(given: _Arguments) -> Action:
    seconds = given.number("seconds", "secs", "time", "duration", default=1.0)
    if seconds < 0:
        raise given.wrong("a time to wait cannot be negative")
    return actions.Wait(min(seconds, LONGEST_WAIT))


def _navigate(given: _Arguments) -> Action:
    return actions.Navigate(given.text("url"))


def _terminate(given: _Arguments) -> Action:
    status = given.text("status", default="success").lower()
    answer = given.text("answer", "reason", "message", default="")
    if status not in ("success", "failure"):
        raise given.wrong(f"status is {shown(status)}, expected success or failure")
    return actions.Done(answer) if status == "success" else actions.Fail(answer)


def _ask(given: _Arguments) -> Action:
    return actions.Ask(given.text("question", "message", "text"))


_SPELLED: dict[str, Callable[[_Arguments], Action]] = {
    "click": _click(),
    "doubleClick": _click(count=2),
    "tripleClick": _click(count=3),
    "rightClick": _click("right", 1),
    "middleClick": _click("middle", 1),
    "moveTo": _move,
    "dragTo": _drag,
    "scroll": _scroll(False),
    "vscroll": _scroll(False),
    "hscroll": _scroll(True),
    "write": _write,
    "typewrite": _write,
    "press": _press,
    "hotkey": _hotkey,
    "wait": _wait,
    "sleep": _wait,
    "navigate": _navigate,
    "terminate": _terminate,
    "ask": _ask,
}
NAMES = tuple(_SPELLED)
_KNOWN = {name.lower(): read for name, read in _SPELLED.items()}
_KNOWN |= {"move": _move, "drag": _drag, "type": _write, "goto": _navigate, "leftclick": _click("left", 1)}


def _refused(problem: str, source: str) -> AgentStopped:
    return AgentStopped(f"{problem}: {shown(source)}", "agent.action")
