"""An X display: mss looks at it, the program xdotool acts on it.

xdotool ends with 0 even when it did nothing, so names of keys come from a table and the pointer is asked where it is.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import AgentStopped, Unsupported
from .. import actions
from ..actions import Action
from ..keys import for_x11
from .base import Observation, Outcome, pixel

Run = Callable[[Sequence[str]], str]
"""xdotool's arguments -> what it prints."""

_BUTTONS = {"left": "1", "middle": "2", "right": "3"}
_WHEEL_CLICKS_A_SCREEN = 10
_CORNER = 3  # pixels: a pointer that the user pushed into the upper left corner stops the agent
_TYPE_DELAY_MS = "12"
# Of characters that no key has. xdotool gives each a key for that long, and a window that is slower than this to look
# gets nothing.
_FOREIGN_DELAY_MS = "150"
_RUNS = re.compile(r"[\x00-\x7f]{1,1000}|[^\x00-\x7f]{1,100}")  # each in a fraction of _TIMEOUT_S
_TIMEOUT_S = 60


class X11:
    """An `Environment`: one monitor of a display. The user stops it by pushing the pointer into its upper left
    corner."""

    def __init__(self, display: str | None = None, *, monitor: int = 1, settle: float = 0.5) -> None:
        """display: as ":0"; None for $DISPLAY. monitor: from 1. settle: seconds to wait after an action.

        Raises AgentStopped (code "agent.display"), Unsupported (code "unsupported.extra").
        """
        self._display = display or os.environ.get("DISPLAY", "")
        self.notices: list[str] = []
        self._settle = settle
        if not self._display:
            wayland = "; this is a Wayland session, which shows no other window" if _is_wayland() else ""
            raise AgentStopped(f"no X display: DISPLAY is not set{wayland}: name one, as :0", "agent.display")
        if shutil.which("xdotool") is None:
            raise AgentStopped("xdotool is not installed: apt install xdotool", "agent.display")
        self._camera = _mss(self._display)
        monitors = self._camera.monitors
        if not 1 <= monitor < len(monitors):
            raise AgentStopped(f"monitor {monitor}: there are {len(monitors) - 1}, from 1", "agent.display")
        self._area = monitors[monitor]
        self._run: Run = self._xdotool
        self._expected: tuple[int, int] | None = None

    def observe(self) -> Observation:
        """The monitor. Raises AgentStopped (code "agent.stopped") when the pointer is in its upper left corner."""
        self._check_corner()
        import io

        from PIL import Image

        taken = self._camera.grab(self._area)
        picture = Image.frombytes("RGB", taken.size, taken.rgb)
        if picture.getextrema() == ((0, 0),) * 3:
            self.notices.append("the screen is all black: is it locked, or a Wayland session?")
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
        return Observation(file.getvalue(), picture.size, self._window())

    def perform(self, action: Action) -> Outcome:
        """Raises AgentStopped (code "agent.display") when the pointer did not go where it was sent."""
        self._check_corner()
        self._act(action)
        if not isinstance(action, actions.Wait):
            time.sleep(self._settle)
        return Outcome()

    def close(self) -> None:
        """Gives the display back."""
        self._camera.close()

    def _act(self, action: Action) -> None:
        match action:
            case actions.Click(x, y, button, count):
                self._move(x, y)
                self._run(["click", "--repeat", str(count), "--delay", "80", _BUTTONS[button]])
            case actions.Move(x, y):
                self._move(x, y)
            case actions.Drag(x0, y0, x1, y1):
                if x0 is not None and y0 is not None:
                    self._move(x0, y0)
                self._run(["mousedown", "1"])
                try:
                    self._move(x1, y1)
                finally:
                    self._run(["mouseup", "1"])
            case actions.Scroll(dx, dy, x, y):
                self._move(0.5 if x is None else x, 0.5 if y is None else y)
                for share, (back, forth) in ((dy, ("4", "5")), (dx, ("6", "7"))):
                    clicks = max(1, round(abs(share) * _WHEEL_CLICKS_A_SCREEN)) if share else 0
                    if clicks:
                        self._run(["click", "--repeat", str(clicks), forth if share > 0 else back])
            case actions.Write(text):
                for part in _RUNS.findall(text):
                    delay = _TYPE_DELAY_MS if part.isascii() else _FOREIGN_DELAY_MS
                    self._run(["type", "--delay", delay, "--", part])
            case actions.Press(keys):
                for key in keys:
                    self._run(["key", "--", for_x11(key)])
            case actions.Hotkey(keys):
                self._run(["key", "--", "+".join(map(for_x11, keys))])
            case actions.Wait(seconds):
                time.sleep(seconds)
            case _:
                raise AgentStopped(f"a display cannot do this: {actions.in_words(action)}", "agent.action")

    def _move(self, x: float, y: float) -> None:
        wanted = (
            self._area["left"] + pixel(x, self._area["width"]),
            self._area["top"] + pixel(y, self._area["height"]),
        )
        self._run(["mousemove", "--sync", str(wanted[0]), str(wanted[1])])
        found = self._pointer()
        if found != wanted:
            raise AgentStopped(f"the pointer was sent to {wanted} and is at {found}", "agent.display")
        self._expected = wanted

    def _check_corner(self) -> None:
        x, y = self._pointer()
        corner = x - self._area["left"] < _CORNER and y - self._area["top"] < _CORNER
        if corner and self._expected is not None and (x, y) != self._expected:
            raise AgentStopped("the pointer was pushed into the upper left corner: stopped", "agent.stopped")

    def _pointer(self) -> tuple[int, int]:
        said = self._run(["getmouselocation", "--shell"])
        found = dict(re.findall(r"^([XY])=(-?\d+)$", said, re.MULTILINE))
        if set(found) != {"X", "Y"}:
            raise AgentStopped(f"xdotool does not say where the pointer is: {said[:100]!r}", "agent.display")
        return int(found["X"]), int(found["Y"])

    def _window(self) -> str:
        try:
            return self._run(["getactivewindow", "getwindowname"]).strip()[:200]
        except AgentStopped:
            return ""  # no window has the focus

    def _xdotool(self, arguments: Sequence[str]) -> str:
        environment = {**os.environ, "DISPLAY": self._display}
        try:
            done = subprocess.run(
                ["xdotool", *arguments], env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise AgentStopped(f"xdotool {arguments[0]} did not end in {_TIMEOUT_S} s", "agent.display") from None
        if done.returncode:
            raise AgentStopped(f"xdotool {arguments[0]}: {done.stderr.strip()[:200]}", "agent.display")
        return done.stdout


def _is_wayland() -> bool:
    return bool(os.environ.get("WAYLAND_DISPLAY"))


def _mss(display: str) -> Any:
    try:
        mss = importlib.import_module("mss")
    except ImportError:
        raise Unsupported(
            "an agent on a display needs mss: pip install 'kimi-vl-cpp[agent]'", "unsupported.extra"
        ) from None
    try:
        return mss.MSS(display=display)
    except Exception as error:
        raise AgentStopped(f"display {display} cannot be opened: {error}", "agent.display") from None
