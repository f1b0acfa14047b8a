"""What a picture to learn from is: pixels, what lies under every patch, and questions with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PATCH = 14
AMBIGUOUS = 255

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?%$€£#&@+-=/()'*"
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "hexagon")
GLYPHS = ("", *CHARACTERS, *SHAPES, "button", "field")
COLOURS = ("", "red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "gray", "white", "cyan")


Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


@dataclass
class Turn:
    """box: of what a point must hit. looks: where in the picture each character of the answer is to be found; asked:
    the same for characters of the question, from `asked_from` on. Empty: nowhere. counted: the things whose number is
    the answer."""

    question: str
    answer: str
    task: str
    box: Box | None = None
    looks: Sequence[Sequence[Box]] = ()
    asked: Sequence[Sequence[Box]] = ()
    asked_from: int = 0
    counted: Sequence[Box] | None = None


@dataclass
class Example:
    """image: uint8 [H, W, 3], sides multiples of 28. glyphs: uint8 [H/14, W/14, 2], indices of GLYPHS of what covers
    most of the left and of the right half of a patch, for print may be narrower than a patch; colours: uint8
    [H/14, W/14], of COLOURS. 0 for nothing, AMBIGUOUS where it cannot be said."""

    image: np.ndarray
    glyphs: np.ndarray
    colours: np.ndarray
    turns: list[Turn]
