"""A picture and, drawn beside it, the picture of its labels."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .example import AMBIGUOUS, CHARACTERS, COLOURS, GLYPHS, PATCH, Box

Colour = tuple[int, int, int]
_GLYPH = {glyph: i for i, glyph in enumerate(GLYPHS) if glyph}
_CLEAR_SHARE, _EMPTY_SHARE = 0.18, 0.10
_GROUNDS = [GLYPHS.index("button"), GLYPHS.index("field")]  # what other things stand on

PALETTE: dict[str, Colour] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 215, 40),
    "orange": (245, 140, 25),
    "purple": (135, 50, 170),
    "pink": (245, 140, 190),
    "brown": (125, 75, 35),
    "black": (20, 20, 20),
    "gray": (130, 130, 130),
    "white": (250, 250, 250),
    "cyan": (50, 200, 215),
}


@functools.cache
def _extent(font: ImageFont.FreeTypeFont, character: str) -> tuple[float, int, int]:
    """Advance, top and bottom of a character, from the anchor 'ls' (left end of the base line)."""
    _, top, _, bottom = font.getbbox(character, anchor="ls")
    return font.getlength(character), min(top, bottom - 4), bottom


def width_of(text: str, font: ImageFont.FreeTypeFont) -> float:
    return sum(_extent(font, character)[0] for character in text)


class Canvas:
    """size: (W, H). Drawing adds to the picture and to its labels."""

    def __init__(self, size: tuple[int, int], background: Colour) -> None:
        self.size, self.background = size, background
        self.image = Image.new("RGB", size, background)
        self.draw = ImageDraw.Draw(self.image)
        self._glyphs, self._colours = Image.new("L", size, 0), Image.new("L", size, 0)
        self._glyph_draw, self._colour_draw = ImageDraw.Draw(self._glyphs), ImageDraw.Draw(self._colours)

    def text(
        self, x: float, base: float, text: str, font: ImageFont.FreeTypeFont, fill: Colour, name: str = ""
    ) -> list[Box]:
        """Prints a line whose base line begins at (x, base). name: of its colour, for the labels. -> each character's
        box."""
        colour = COLOURS.index(name) if name else 0
        self.draw.text((x, base), text, fill=fill, font=font, anchor="ls")
        at = x
        boxes = []
        for character in text:
            advance, top, bottom = _extent(font, character)
            box = (at, base + top, at + advance - 1, base + bottom - 1)
            boxes.append(box)
            if character in CHARACTERS:
                self._glyph_draw.rectangle(box, fill=_GLYPH[character])
                if colour:
                    self._colour_draw.rectangle(box, fill=colour)
            at += advance
        return boxes

    def turned(self, box: Box, angle: float) -> Box:
        """The box after `finish` has turned the picture; its size stays."""
        sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        x, y = (box[0] + box[2] - self.size[0]) / 2, (box[1] + box[3] - self.size[1]) / 2
        dx, dy = x * cosine + y * sine - x, y * cosine - x * sine - y
        return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy

    def polygon(self, points: Sequence[tuple[float, float]], kind: str, fill: Colour, name: str) -> None:
        self.draw.polygon(points, fill=fill)
        self._glyph_draw.polygon(points, fill=_GLYPH[kind])
        self._colour_draw.polygon(points, fill=COLOURS.index(name))

    def ellipse(self, box: tuple[float, float, float, float], kind: str, fill: Colour, name: str) -> None:
        self.draw.ellipse(box, fill=fill)
        self._glyph_draw.ellipse(box, fill=_GLYPH[kind])
        self._colour_draw.ellipse(box, fill=COLOURS.index(name))

    def area(self, box: tuple[float, float, float, float], kind: str) -> None:
        """Labels a box that was drawn by other means."""
        self._glyph_draw.rectangle(box, fill=_GLYPH[kind])

    def finish(self, rng: np.random.Generator, difficulty: float, angle: float = 0.0) -> tuple[np.ndarray, ...]:
        """-> image, glyphs, colours as Example has them; damaged the more, the harder."""
        image, glyphs, colours = self.image, self._glyphs, self._colours
        if angle:
            image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=self.background)
            glyphs = glyphs.rotate(angle, Image.Resampling.NEAREST)
            colours = colours.rotate(angle, Image.Resampling.NEAREST)
        if rng.random() < 0.25 * difficulty:
            image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9))))
        if rng.random() < 0.2 * difficulty:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=int(rng.integers(30, 90)))
            image = Image.open(buffer)
        pixels = np.asarray(image)
        if rng.random() < 0.4 * difficulty:
            strength = float(rng.uniform(2, 16)) * difficulty
            noise = rng.standard_normal(pixels.shape[:2], dtype=np.float32)[:, :, None] * strength
            pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
        halves = to_cells(np.asarray(glyphs), len(GLYPHS), PATCH // 2)
        halves = halves.reshape(halves.shape[0], -1, 2)
        return np.array(pixels), halves, to_cells(np.asarray(colours), len(COLOURS), PATCH)


def to_cells(labels: np.ndarray, n_classes: int, width: int) -> np.ndarray:
    """uint8 [H, W] of pixels -> uint8 [H/14, W/width]: the class that covers most of the cell."""
    rows, columns = labels.shape[0] // PATCH, labels.shape[1] // width
    blocks = labels.reshape(rows, PATCH, columns, width).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    number = np.arange(rows * columns)[:, None] * n_classes + blocks
    counts = np.bincount(number.ravel(), minlength=rows * columns * n_classes).reshape(rows * columns, n_classes)
    counts = counts[:, 1:] / (PATCH * width)
    if n_classes == len(GLYPHS):
        counts[:, [ground - 1 for ground in _GROUNDS]] *= 0.35
    best, share = counts.argmax(1) + 1, counts.max(1)
    out = np.where(share >= _CLEAR_SHARE, best, AMBIGUOUS)
    out = np.where(counts.sum(1) < _EMPTY_SHARE, 0, out)
    return out.astype(np.uint8).reshape(rows, columns)


def luminance(colour: Colour) -> float:
    return (0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]) / 255


def jitter(rng: np.random.Generator, colour: Colour, amount: int) -> Colour:
    r, g, b = (int(np.clip(c + rng.integers(-amount, amount + 1), 0, 255)) for c in colour)
    return r, g, b


def paper_and_ink(rng: np.random.Generator, difficulty: float) -> tuple[Colour, Colour]:
    """Colours of background and print with enough contrast."""
    if rng.random() > difficulty:
        return (255, 255, 255), (0, 0, 0)
    while True:
        if rng.random() < 0.6:  # light paper
            paper = jitter(rng, (235, 235, 228), 20)
            ink: Colour = tuple(int(c) for c in rng.integers(0, 130, 3))  # type: ignore[assignment]
        elif rng.random() < 0.4:  # dark mode
            paper = tuple(int(c) for c in rng.integers(0, 70, 3))  # type: ignore[assignment]
            ink = tuple(int(c) for c in rng.integers(170, 256, 3))  # type: ignore[assignment]
        else:
            paper = tuple(int(c) for c in rng.integers(0, 256, 3))  # type: ignore[assignment]
            ink = tuple(int(c) for c in rng.integers(0, 256, 3))  # type: ignore[assignment]
        if abs(luminance(paper) - luminance(ink)) > 0.35:
            return paper, ink
