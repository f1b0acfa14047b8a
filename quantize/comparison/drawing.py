"""Figures made of rectangles, lines, dots and words, as SVG for a page and as PNG for everything else.

Colours are names: a page gives them values for light and dark (`PALETTE`), a PNG is always light. Knows nothing of
models.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import Any, Literal

from PIL import Image, ImageDraw, ImageFont

from kimi_vl_cpp.wording import printable

Anchor = Literal["start", "middle", "end"]

PALETTE: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#191b20"),
    "ink": ("#1c1e24", "#e8e9ee"),
    "pale": ("#5f6570", "#9aa1ad"),
    "grid": ("#e3e5ea", "#30343d"),
    "c0": ("#2f6fbe", "#6aa7f0"),
    "c1": ("#d2731c", "#f0a055"),
    "c2": ("#2d8a57", "#62c48d"),
    "c3": ("#8a56b8", "#bf93e6"),
    "c4": ("#bb3c4c", "#ee7f8c"),
    "c5": ("#17808f", "#58c0cf"),
}
"""Name -> (on light, on dark)."""

N_SERIES = 6
_SCALE = 2  # pixels of a PNG for a unit of a drawing


def series(i: int) -> str:
    """The colour of the i-th thing of its kind."""
    return f"c{i % N_SERIES}"


def clean(text: str) -> str:
    """On one line, without control characters."""
    return printable(text, one_line=True)


@dataclass(frozen=True)
class _Rect:
    x: float
    y: float
    w: float
    h: float
    colour: str
    strength: float
    title: str


@dataclass(frozen=True)
class _Line:
    points: tuple[tuple[float, float], ...]
    colour: str
    width: float


@dataclass(frozen=True)
class _Dot:
    x: float
    y: float
    r: float
    colour: str
    title: str
    hollow: bool


@dataclass(frozen=True)
class _Words:
    x: float
    y: float
    text: str
    size: float
    anchor: Anchor
    colour: str


@dataclass
class Drawing:
    """A figure; units are CSS pixels, y goes down. name: of its file. title, note: what it shows and how to read it.
    folds: there is one for each candidate."""

    name: str
    title: str
    note: str
    width: float = 760
    height: float = 100
    folds: bool = False
    _items: list[Any] = field(default_factory=list)

    def rect(self, x: float, y: float, w: float, h: float, colour: str, strength: float = 1.0, title: str = "") -> None:
        """strength: 0 is invisible. title: what hovering shows."""
        self._items.append(_Rect(x, y, max(w, 0.0), max(h, 0.0), colour, strength, clean(title)))

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.0) -> None:
        self._items.append(_Line(tuple(points), colour, width))

    def dot(self, x: float, y: float, r: float, colour: str, title: str = "", hollow: bool = False) -> None:
        self._items.append(_Dot(x, y, r, colour, clean(title), hollow))

    def words(
        self, x: float, y: float, text: str, size: float = 12, anchor: Anchor = "start", colour: str = "ink"
    ) -> None:
        """y: of the line that letters stand on."""
        self._items.append(_Words(x, y, clean(text), size, anchor, colour))

    def legend(self, names: Sequence[str], x: float, y: float) -> float:
        """Names with the colour of each; starts a new line where one is full. Returns the y below it."""
        at = x
        for i, name in enumerate(names):
            needed = 18 + text_width(name, 12) + 18
            if at > x and at + needed > self.width:
                at, y = x, y + 20
            self.rect(at, y - 9, 11, 11, series(i))
            self.words(at + 17, y, name)
            at += needed
        return y + 20

    def svg(self) -> str:
        """One <svg> element; its colours are CSS variables --NAME."""
        box, label = f"0 0 {_n(self.width)} {_n(self.height)}", escape(clean(self.title))
        out = [f'<svg viewBox="{box}" role="img" aria-label="{label}">']
        out += [_svg(item) for item in self._items]
        return "\n".join([*out, "</svg>"])

    def png(self) -> bytes:
        """On white, with its title above and its note below."""
        notes = wrapped(self.note, 12, self.width - 32)
        top, left = 52.0, 16.0
        height = top + self.height + 20 * len(notes) + 24
        picture = Image.new("RGB", (round((self.width + 32) * _SCALE), round(height * _SCALE)), _rgb("paper"))
        pen = ImageDraw.Draw(picture)
        _paint(pen, _Words(0, 0, clean(self.title), 17, "start", "ink"), left, 30)
        for item in self._items:
            _paint(pen, item, left, top)
        for i, words in enumerate(notes):
            _paint(pen, _Words(0, 20 * i, clean(words), 12, "start", "pale"), left, top + self.height + 20)
        out = io.BytesIO()
        picture.save(out, "PNG", optimize=True)
        return out.getvalue()


def wrapped(text: str, size: float, width: float) -> list[str]:
    """The text in lines that are not wider than `width`."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [line for line in lines if line]


def clipped(text: str, size: float, width: float) -> str:
    """The text, with an ellipsis in its middle when it would be wider than `width`."""
    kept = len(text)
    short = text
    while kept > 4 and text_width(short, size) > width:
        kept -= 1
        short = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    return short


def text_width(text: str, size: float) -> float:
    """About how wide a line of words is."""
    return float(_font(size).getlength(_drawable(text))) / _SCALE * 1.04


@cache
def _font(size: float) -> Any:
    return ImageFont.load_default(size * _SCALE)


def _drawable(text: str) -> str:
    """Pillow's own font knows Latin letters only."""
    for sign, plain in {"·": "-", "…": "...", "\u2013": "-", "\u2212": "-"}.items():
        text = text.replace(sign, plain)
    return text.encode("latin-1", "replace").decode("latin-1")


def _n(x: float) -> str:
    return f"{x:.1f}".removesuffix(".0")


def _svg(item: Any) -> str:
    if isinstance(item, _Words):
        return (
            f'<text x="{_n(item.x)}" y="{_n(item.y)}" font-size="{_n(item.size)}" text-anchor="{item.anchor}" '
            f'fill="var(--{item.colour})">{escape(item.text)}</text>'
        )
    if isinstance(item, _Line):
        points = " ".join(f"{_n(x)},{_n(y)}" for x, y in item.points)
        return (
            f'<polyline points="{points}" fill="none" stroke="var(--{item.colour})" stroke-width="{_n(item.width)}" '
            'stroke-linejoin="round"/>'
        )
    title = f"<title>{escape(item.title)}</title>" if item.title else ""
    if isinstance(item, _Dot):
        fill = "var(--paper)" if item.hollow else f"var(--{item.colour})"
        return (
            f'<circle cx="{_n(item.x)}" cy="{_n(item.y)}" r="{_n(item.r)}" fill="{fill}" '
            f'stroke="var(--{item.colour})" stroke-width="1.6">{title}</circle>'
        )
    strength = "" if item.strength >= 1 else f' fill-opacity="{item.strength:.3f}"'
    return (
        f'<rect x="{_n(item.x)}" y="{_n(item.y)}" width="{_n(item.w)}" height="{_n(item.h)}" '
        f'fill="var(--{item.colour})"{strength}>{title}</rect>'
    )


def _rgb(colour: str, strength: float = 1.0) -> tuple[int, int, int]:
    def parts(name: str) -> list[int]:
        value = PALETTE[name][0]
        return [int(value[i : i + 2], 16) for i in (1, 3, 5)]

    mixed = [round(s * strength + p * (1 - strength)) for s, p in zip(parts(colour), parts("paper"), strict=True)]
    return mixed[0], mixed[1], mixed[2]


def _paint(pen: ImageDraw.ImageDraw, item: Any, left: float, top: float) -> None:
    if isinstance(item, _Words):
        where = ((left + item.x) * _SCALE, (top + item.y) * _SCALE)
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[item.anchor]
        pen.text(where, _drawable(item.text), _rgb(item.colour), font=_font(item.size), anchor=anchor)
    elif isinstance(item, _Line):
        points = [((left + x) * _SCALE, (top + y) * _SCALE) for x, y in item.points]
        pen.line(points, _rgb(item.colour), max(1, round(item.width * _SCALE)), joint="curve")
    elif isinstance(item, _Dot):
        x, y, r = (left + item.x) * _SCALE, (top + item.y) * _SCALE, item.r * _SCALE
        fill = _rgb("paper" if item.hollow else item.colour)
        pen.ellipse((x - r, y - r, x + r, y + r), fill, _rgb(item.colour), 3)
    elif item.w > 0 and item.h > 0:
        x, y = (left + item.x) * _SCALE, (top + item.y) * _SCALE
        end = max(x, x + item.w * _SCALE - 1), max(y, y + item.h * _SCALE - 1)
        pen.rectangle((x, y, *end), _rgb(item.colour, item.strength))
