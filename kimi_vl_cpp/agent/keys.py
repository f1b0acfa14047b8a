"""Names of keys: one table, as agents write them (pyautogui's names), and what a browser and an X server call them.

A name that is not here is refused before anything is pressed, because one of the two raises and the other ignores it.
"""

from __future__ import annotations

from ..errors import AgentStopped, shown

# name: (browser, X11)
_NAMED = {
    "ctrl": ("Control", "ctrl"),
    "alt": ("Alt", "alt"),
    "shift": ("Shift", "shift"),
    "win": ("Meta", "super"),
    "enter": ("Enter", "Return"),
    "tab": ("Tab", "Tab"),
    "esc": ("Escape", "Escape"),
    "space": ("Space", "space"),
    "backspace": ("Backspace", "BackSpace"),
    "delete": ("Delete", "Delete"),
    "insert": ("Insert", "Insert"),
    "up": ("ArrowUp", "Up"),
    "down": ("ArrowDown", "Down"),
    "left": ("ArrowLeft", "Left"),
    "right": ("ArrowRight", "Right"),
    "home": ("Home", "Home"),
    "end": ("End", "End"),
    "pageup": ("PageUp", "Prior"),
    "pagedown": ("PageDown", "Next"),
    **{f"f{n}": (f"F{n}", f"F{n}") for n in range(1, 13)},
}
_ALIASES = {
    "control": "ctrl", "ctrlleft": "ctrl", "ctrlright": "ctrl", "option": "alt", "altleft": "alt", "altright": "alt",
    "shiftleft": "shift", "shiftright": "shift", "command": "win", "cmd": "win", "meta": "win", "super": "win",
    "return": "enter", "escape": "esc", "del": "delete", "arrowup": "up", "arrowdown": "down", "arrowleft": "left",
    "arrowright": "right", "pgup": "pageup", "pgdn": "pagedown", " ": "space",
}  # fmt: skip
_X11_SIGNS = {
    "-": "minus", "+": "plus", "=": "equal", ",": "comma", ".": "period", "/": "slash", "\\": "backslash",
    ";": "semicolon", "'": "apostrophe", "[": "bracketleft", "]": "bracketright", "`": "grave",
}  # fmt: skip
_SIGNS = "abcdefghijklmnopqrstuvwxyz0123456789" + "".join(_X11_SIGNS)


def canonical(name: str) -> str:
    """The name of a key in the table. Raises AgentStopped (code "agent.action") for one that is not there."""
    lower = name.strip().lower() or name[:1]
    lower = _ALIASES.get(lower, lower)
    if lower not in _NAMED and lower not in _SIGNS:
        raise AgentStopped(
            f"{shown(name)} is not the name of a key: expected a letter, a digit, or one of {', '.join(_NAMED)}",
            "agent.action",
        )
    return lower


def for_browser(name: str) -> str:
    """Playwright's name of a key in the table."""
    return _NAMED[name][0] if name in _NAMED else name


def for_x11(name: str) -> str:
    """The X server's name (a keysym) of a key in the table."""
    return _NAMED[name][1] if name in _NAMED else _X11_SIGNS.get(name, name)
