"""What a picture to learn from is: pixels, what lies under every patch, and questions with their answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PATCH = 14
AMBIGUOUS = 255

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?%$€£#&@+-=/()'*"
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "hexagon")
GLYPHS = ("", *CHARACTERS, *SHAPES, "button", "field")
COLOURS = ("", "red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "gray", "white", "cyan")


@dataclass
class Turn:
    """box: x0, y0, x1, y1 in pixels, of what a point must hit."""

    question: str
    answer: str
    task: str
    box: tuple[float, float, float, float] | None = None


@dataclass
class Example:
    """image: uint8 [H, W, 3], sides multiples of 28. glyphs: uint8 [H/14, W/14, 2], indices of GLYPHS of what covers
    most of the left and of the right half of a patch, for print may be narrower than a patch; colours: uint8
    [H/14, W/14], of COLOURS. 0 for nothing, AMBIGUOUS where it cannot be said."""

    image: np.ndarray
    glyphs: np.ndarray
    colours: np.ndarray
    turns: list[Turn]
