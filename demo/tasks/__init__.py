"""The tasks: each draws a picture and asks about it."""

from __future__ import annotations

import numpy as np

from ..example import Example, Turn
from . import button, receipt, shapes, words
from .phrases import OFF_TOPIC, REFUSAL, pick

TASKS = ("words", "receipt", "shapes", "button")
SIZES: dict[str, list[tuple[int, int]]] = {
    "words": [(112, 56), (140, 84), (168, 84), (168, 112), (196, 84), (224, 112), (252, 56)],
    "receipt": [(196, 224), (196, 252), (224, 224), (224, 280), (252, 252)],
    "shapes": [(140, 140), (168, 168), (196, 196), (224, 168)],
    "button": [(196, 140), (224, 140), (224, 168), (252, 168)],
}
_DRAW = {"words": words.draw, "receipt": receipt.draw, "shapes": shapes.draw, "button": button.draw}
OFF_TOPIC_SHARE = 0.02


def make_example(
    rng: np.random.Generator,
    task: str,
    *,
    split: str = "train",
    difficulty: float = 1.0,
    size: tuple[int, int] | None = None,
) -> Example:
    """A picture with questions. split: "train" or "held_out", other fonts and words. difficulty: 0 for dark upright
    print in plain fonts, 1 for everything. size: (W, H) in pixels, multiples of 28; None: one of SIZES."""
    if size is None:
        size = SIZES[task][int(rng.integers(len(SIZES[task])))]
    example = _DRAW[task](rng, split, difficulty, size)
    if rng.random() < OFF_TOPIC_SHARE:
        example.turns.append(Turn(pick(rng, OFF_TOPIC), REFUSAL, "other"))
    return example
