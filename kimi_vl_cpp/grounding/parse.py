"""Points and boxes in an answer, in every form that Kimi-VL was seen to write. Text only; pixels are for `mapping`.

Sources of the forms: the paper's figure 10, `click(x=0.884, y=0.144)`; the maker's ScreenSpot-Pro script, a fenced
`pyautogui.click(x=0.204, y=0.149)`; user reports of `{"bbox_2d": [0.280, 0.500, 0.520, 0.700]}`, x0, y0, x1, y1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import GroundingError, shown

Units = Literal["shares", "thousandths", "pixels"]
Shares = tuple[float, float, float, float]

SLACK = 0.005
"""How far beyond the picture a share may be to count as its edge."""

_N = r"([-+]?(?:\d{1,12}(?:\.\d{0,18})?|\.\d{1,18})(?:[eE][-+]?\d{1,3})?)"
_END = r"(?![\w.%]|\s*[*/+%])"  # a product with the screen's size is not a number
_SEP = r"\s*,\s*"


def _named(name: str) -> str:
    return rf"[\"']?\b{name}[\"']?\s*[=:]\s*{_N}{_END}"


_PLACE = re.compile(
    rf"(?P<box>{_named('x[01]')}{_SEP}{_named('y[01]')}{_SEP}{_named('x[12]')}{_SEP}{_named('y[12]')}"
    rf"|[(\[]\s*{_N}{_SEP}{_N}{_SEP}{_N}{_SEP}{_N}\s*[)\]]"
    rf"|box\W{{0,20}}[(\[]\s*{_N}{_SEP}{_N}\s*[)\]]{_SEP}[(\[]\s*{_N}{_SEP}{_N}\s*[)\]])"
    rf"|{_named('x')}{_SEP}{_named('y')}"
    rf"|[(\[]\s*{_N}{_SEP}{_N}\s*(?=[)\]]|,\s*[A-Za-z_])",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_LABEL = re.compile(r"[\"']label[\"']\s*:\s*\"([^\"]{0,500})\"")


@dataclass(frozen=True)
class Place:
    """A point or a box in the numbers of the answer: (x, y, x, y) for a point, (left, top, right, bottom) for a box."""

    numbers: Shares
    is_box: bool
    label: str = ""


@dataclass(frozen=True)
class Found:
    """The places of an answer as shares of the picture, the first of which is the answer, and notices."""

    places: tuple[Place, ...]
    notices: tuple[str, ...] = ()


def places(text: str) -> list[Place]:
    """Everything that an answer points at, in its numbers: in its last fenced block, else in all of it."""
    blocks = _FENCE.findall(text)
    found = _places(blocks[-1]) if blocks else []
    return found or _places(text)


def parse(text: str, size: tuple[int, int], *, units: Units | None = None) -> Found:
    """The places of an answer as shares from 0 to 1.

    text: the answer without the reasoning. size: width and height of the picture, for units="pixels". units: of numbers
    above 1; None refuses them, because thousandths and pixels cannot be told apart.

    Raises GroundingError: grounding.no_point, grounding.scale, grounding.range.
    """
    found = places(text)
    if not found:
        said = " ".join(text.split())[:80]
        raise GroundingError(
            f"the answer names no place: {shown(said)}: ask for one thing that can be seen, in other words",
            "grounding.no_point",
        )
    top = max(abs(number) for place in found for number in place.numbers)
    divisors = (1.0, 1.0)
    if units in ("thousandths", "pixels"):
        divisors = (1000.0, 1000.0) if units == "thousandths" else (float(size[0]), float(size[1]))
    elif top > 1 + SLACK:
        raise GroundingError(
            f"the answer has coordinates up to {top:g}, expected shares from 0 to 1: say with units= whether they are "
            "'thousandths' or 'pixels'",
            "grounding.scale",
        )
    notices: list[str] = []
    return Found(tuple(_clamped(place, divisors, notices) for place in found), tuple(dict.fromkeys(notices)))


def _places(text: str) -> list[Place]:
    found = []
    for match in _PLACE.finditer(text):
        numbers = [float(number) for number in match.groups()[1:] if number is not None]
        if match["box"] is None:
            x, y = numbers
            found.append(Place((x, y, x, y), False))
            continue
        x0, y0, x1, y1 = numbers
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        found.append(Place(box, True, _label(text, match.start(), match.end())))
    return found


def _label(text: str, start: int, end: int) -> str:
    """The label in the braces around a box."""
    opening, closing = text.rfind("{", max(0, start - 600), start), text.find("}", end, end + 600)
    found = _LABEL.search(text, opening, closing) if opening >= 0 and closing >= 0 else None
    return found[1] if found else ""


def _clamped(place: Place, divisors: tuple[float, float], notices: list[str]) -> Place:
    shares = []
    for index, number in enumerate(place.numbers):
        share = number / divisors[index % 2]
        if not -SLACK <= share <= 1 + SLACK:
            raise GroundingError(
                f"the answer names a place outside of the picture ({share:.3f} of its "
                f"{('width', 'height')[index % 2]}): ask again",
                "grounding.range",
            )
        if not 0 <= share <= 1:
            notices.append(f"a coordinate of {share:.4f} was taken as the edge of the picture")
        shares.append(min(max(share, 0.0), 1.0))
    return Place((shares[0], shares[1], shares[2], shares[3]), place.is_box, place.label)
