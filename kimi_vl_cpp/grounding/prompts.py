"""What a model is asked when it should point. Shares of width and height, because that is how Kimi-VL points."""

from __future__ import annotations

POINT_SYSTEM = (
    "You operate a computer through its graphical user interface. You are given a task and a screenshot of the screen. "
    "Answer in two sections. `## Action:` says in words what to do. `## Code:` holds one fenced block of Python with a "
    "pyautogui call that clicks the element. Coordinates are normalised, from 0 to 1, so that they hold at any "
    "resolution of the screen."
)

ABSENT = "not there"


def point_request(query: str, *, several: bool, may_be_absent: bool) -> str:
    """The user's text behind the picture."""
    text = f"## Task Instruction:\n{query}"
    if several:
        text += "\nThere may be several: write one click for each of them."
    if may_be_absent:
        text += f"\nIf it cannot be seen in the screenshot, answer only: {ABSENT}"
    return text


def box_request(query: str) -> str:
    """The user's text behind the picture, for boxes."""
    return (
        f"Find in the picture: {query}. Answer with a JSON list with one entry for each, such as "
        '[{"bbox_2d": [x0, y0, x1, y1], "label": "..."}]: left, top, right and bottom as shares of the width and '
        "height of the picture, from 0 to 1 with three decimals."
    )
