"""A sign, a label, a scrap: one to four short lines of print."""

from __future__ import annotations

import numpy as np
from PIL import ImageFont

from ..draw import Canvas, paper_and_ink, width_of
from ..example import Box, Example, Turn
from ..fonts import faces, font, mean_advance
from ..words import any_text
from .phrases import LINE, NTH, READ, READ_ONE, READ_PRICE, one, pick

MIN_ADVANCE, MAX_ADVANCE = 8.5, 18.0


def pick_face(rng: np.random.Generator, split: str, difficulty: float) -> str:
    plain = bool(rng.random() > difficulty)
    return one(rng, one(rng, faces(split, plain)))  # type: ignore[arg-type]


def sized(face: str, advance: float) -> ImageFont.FreeTypeFont:
    """The face at the size at which a letter is so many pixels wide, on average."""
    return font(face, max(10, min(40, round(100 * advance / mean_advance(face)))))


def draw(rng: np.random.Generator, split: str, difficulty: float, size: tuple[int, int]) -> Example:
    width, height = size
    paper, ink = paper_and_ink(rng, difficulty)
    canvas = Canvas(size, paper)
    face = pick_face(rng, split, difficulty)
    advance = float(rng.uniform(MIN_ADVANCE, MAX_ADVANCE))
    if rng.random() > difficulty:
        advance = float(rng.uniform(11, 15))
    printed = sized(face, advance)
    pitch = max(printed.size * float(rng.uniform(1.15, 1.6)), 20.0)
    most = max(1, min(4, int((height - 6) / pitch)))
    n_lines = int(rng.integers(1, most + 1))
    angle = float(rng.uniform(-4, 4)) if rng.random() < 0.35 * difficulty else 0.0
    room = width - 8 - abs(angle) * 2
    lines: list[str] = []
    while len(lines) < n_lines:
        longest = max(2, int(room / advance))
        text = any_text(rng, split, min(12, longest))
        while rng.random() < 0.35 and len(text) + 3 <= longest:
            text += " " + any_text(rng, split, longest - len(text) - 1)
        if width_of(text, printed) <= room and len(text) <= 24 and sum(map(len, lines)) + len(text) <= 36:
            lines.append(text)
        elif lines and rng.random() < 0.2:
            break
    centred = rng.random() < 0.4
    slack = height - 6 - pitch * (len(lines) - 1) - printed.size
    base = 3 + printed.size * 0.85 + max(0.0, slack) * float(rng.uniform(0, 1))
    left = 3 + float(rng.uniform(0, max(0.5, room - max(width_of(line, printed) for line in lines))))
    boxes = []
    for i, line in enumerate(lines):
        x = (width - width_of(line, printed)) / 2 if centred else left
        found = canvas.text(round(x), round(base + i * pitch), line, printed, ink)
        boxes.append([[canvas.turned(box, angle)] for box in found])
    if rng.random() < 0.2 * difficulty:
        canvas.draw.rectangle((1, 1, width - 2, height - 2), outline=ink, width=int(rng.integers(1, 3)))
    image, glyphs, colours = canvas.finish(rng, difficulty, angle)
    return Example(image, glyphs, colours, _turns(rng, lines, boxes))


def _turns(rng: np.random.Generator, lines: list[str], boxes: list[list[list[Box]]]) -> list[Turn]:
    whole = " ".join(lines)
    is_price = len(lines) == 1 and lines[0][:1] in "$€£" and " " not in whole
    phrases = READ_PRICE if is_price else READ if " " in whole else READ_ONE
    looks = [found for line in boxes for found in (*line, [])][:-1]
    turns = [Turn(pick(rng, phrases), whole, "prices" if is_price else "words", looks=looks)]
    if len(lines) > 1:
        for i, line in enumerate(lines):
            turns.append(Turn(pick(rng, LINE, nth=_nth(rng, i, len(lines))), line, "words", looks=boxes[i]))
    return turns


def _nth(rng: np.random.Generator, i: int, n: int) -> str:
    return "last" if i == n - 1 and rng.random() < 0.5 else NTH[i]
