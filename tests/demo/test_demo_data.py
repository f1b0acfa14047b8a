"""The pictures that the demonstration model learns from. Skipped where its fonts and word list are not installed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2]))  # demo/ is not installed; the package is found before it
from demo import words
from demo.example import AMBIGUOUS, COLOURS, GLYPHS, Example
from demo.fonts import HELD_OUT, TRAIN, faces
from demo.tasks import SIZES, TASKS, make_example
from demo.tasks.shapes import place

try:
    faces("train"), faces("held_out"), words.real_word(np.random.default_rng(0), "train")
except FileNotFoundError as missing:
    pytest.skip(str(missing), allow_module_level=True)


def draw(task: str, seed: int, split: str = "train", difficulty: float = 1.0) -> Example:
    return make_example(np.random.default_rng((seed, 1)), task, split=split, difficulty=difficulty)


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_the_same_example(task: str) -> None:
    first, second = draw(task, 5), draw(task, 5)
    assert first.turns == second.turns
    for name in ("image", "glyphs", "colours"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_pictures_and_labels_have_the_sizes_of_the_task(task: str, split: str) -> None:
    for seed in range(20):
        example = draw(task, seed, split, difficulty=seed / 20)
        height, width = example.image.shape[:2]
        assert (width, height) in SIZES[task] and example.image.dtype == np.uint8
        assert example.glyphs.shape == (height // 14, width // 14, 2)
        assert example.colours.shape == (height // 14, width // 14)
        assert (example.glyphs[example.glyphs != AMBIGUOUS] < len(GLYPHS)).all()
        assert (example.colours[example.colours != AMBIGUOUS] < len(COLOURS)).all()
        assert example.turns and all(turn.question and turn.answer for turn in example.turns)


def test_training_and_judging_share_no_font_and_no_word() -> None:
    assert not set(TRAIN) & set(HELD_OUT)
    trained = {face for family in faces("train") for face in family}
    assert not trained & {face for family in faces("held_out") for face in family}
    rng = np.random.default_rng(3)
    for split, held_out in (("train", False), ("held_out", True)):
        drawn = [words.real_word(rng, split) for _ in range(100)]
        drawn += [words.invented_word(rng, split) for _ in range(100)]
        assert all(words.is_held_out(word) is held_out for word in drawn)


def test_plain_print_is_labelled_character_by_character() -> None:
    found = total = 0
    for seed in range(30):
        example = draw("words", seed, difficulty=0.0)
        under = {GLYPHS[g] for g in example.glyphs.ravel() if g not in (0, AMBIGUOUS)}
        printed = set(example.turns[0].answer) - set(" .,:'")  # a dot covers too little to be the label of a cell
        found += len(printed & under)
        total += len(printed)
        assert under <= set(example.turns[0].answer)
    assert found / total > 0.9


def test_the_total_of_a_receipt_is_the_sum_of_its_rows() -> None:
    for seed in range(40):
        example = make_example(np.random.default_rng((seed, 2)), "receipt", difficulty=0.5)
        answers = {turn.task: turn.answer for turn in example.turns}
        total = cents(answers["receipt_total"])
        rows = {turn.question: cents(turn.answer) for turn in example.turns if turn.task == "receipt_price"}
        assert sum(rows.values()) + cents(answers.get("receipt_tax", "0.00")) <= total


def cents(price: str) -> int:
    return int(re.sub(r"\D", "", price))


def test_a_point_lies_inside_the_box_of_its_button() -> None:
    for seed in range(30):
        example = draw("button", seed)
        height, width = example.image.shape[:2]
        for turn in example.turns:
            if turn.box is not None:
                x, y = (float(part) for part in turn.answer.strip("()").split(","))
                x0, y0, x1, y1 = turn.box
                assert x0 <= x * width <= x1 and y0 <= y * height <= y1


def test_places_are_thirds_of_the_picture() -> None:
    assert place(10, 10, 90, 90) == "top left"
    assert place(45, 45, 90, 90) == "centre"
    assert place(89, 45, 90, 90) == "right"
    assert place(45, 89, 90, 90) == "bottom"
