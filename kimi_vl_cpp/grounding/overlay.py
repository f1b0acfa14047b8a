"""A picture with marks on what was found. The pixel that is meant is never painted over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .ask import Box, Point

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageDraw import ImageDraw

_GROUND, _LINE = "#ffffff", "#d4006a"  # one of which stands out from any ground
_LONGEST_LABEL = 60


def draw(image: Image.Image, found: Sequence[Point | Box], label: str = "") -> Image.Image:
    """A copy of the upright picture with a ring and a cross around each point, a frame around each box.

    label: the text beside a mark that has none of its own.
    """
    from PIL import ImageDraw

    result = image.convert("RGB")
    pen = ImageDraw.Draw(result)
    unit = max(3, round(max(image.size) / 150))
    line = max(1, unit // 3)
    for one in found:
        for width, colour in ((line + 2, _GROUND), (line, _LINE)):
            if isinstance(one, Point):
                _point(pen, one, unit, width, colour)
            else:
                _frame(pen, one, line, width, colour)
    for one in found:
        name = (one.label if isinstance(one, Box) else "") or label
        if name:
            _label(pen, name, one, unit, image.size)
    return result


def _point(pen: ImageDraw, point: Point, unit: int, width: int, colour: str) -> None:
    x, y, outer = point.x, point.y, 4 * unit
    pen.ellipse((x - outer, y - outer, x + outer, y + outer), outline=colour, width=width)
    for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        ends = (x + 2 * dx * unit, y + 2 * dy * unit, x + 5 * dx * unit, y + 5 * dy * unit)
        pen.line(ends, fill=colour, width=width)


def _frame(pen: ImageDraw, box: Box, line: int, width: int, colour: str) -> None:
    """Around the box, never inside. Pillow draws the width inward."""
    out = line + 2 - (line + 2 - width) // 2
    pen.rectangle((box.x0 - out, box.y0 - out, box.x1 + out, box.y1 + out), outline=colour, width=width)


def _label(pen: ImageDraw, text: str, one: Point | Box, unit: int, size: tuple[int, int]) -> None:
    """Below the ring, or above the frame, inside of the picture."""
    from PIL import ImageFont

    font = ImageFont.load_default(size=max(12, 2 * unit))
    text = "".join(character if character.isprintable() else " " for character in text)[:_LONGEST_LABEL]
    _, _, right, bottom = pen.textbbox((0, 0), text, font=font, stroke_width=2)
    width, height = int(right), int(bottom)
    if isinstance(one, Point):
        x, y, other = one.x + 2 * unit, one.y + 5 * unit, one.y - 5 * unit - height
    else:
        x, y, other = one.x0, one.y0 - unit - height, one.y1 + unit
    if not 0 <= y <= size[1] - height:
        y = other
    place = (min(max(2, x), max(0, size[0] - width - 2)), min(max(2, y), max(0, size[1] - height)))
    pen.text(place, text, fill=_LINE, font=font, stroke_width=2, stroke_fill=_GROUND)
