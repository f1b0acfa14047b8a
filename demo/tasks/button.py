"""A dialog with buttons: where to click, and what they say."""

from __future__ import annotations

import numpy as np

from ..draw import Canvas, Colour, jitter, luminance, width_of
from ..example import Example, Turn
from ..words import invented_word, is_held_out, real_word
from .phrases import N_BUTTONS, POINT, TITLE, WHICH_BUTTON, one, pick
from .words import pick_face, sized

LABELS = (
    "OK Cancel Save Open Close Yes No Help Next Back Delete Edit Apply Send Print Exit Start Stop Play Login Retry "
    "Undo Add Share Copy Paste Reset Search Submit Sign_in Log_out Details Browse Finish Skip Accept Decline Update "
    "Install"
).split()
SIDES = {2: ("left", "right"), 3: ("left", "middle", "right")}


def draw(rng: np.random.Generator, split: str, difficulty: float, size: tuple[int, int]) -> Example:
    width, height = size
    grey = int(rng.integers(200, 246))
    paper: Colour = (grey, grey, min(255, grey + int(rng.integers(0, 8))))
    dark = rng.random() < 0.2 * difficulty
    if dark:
        paper = jitter(rng, (45, 45, 50), 15)
    ink: Colour = (235, 235, 235) if dark else (15, 15, 15)
    canvas = Canvas(size, paper)
    face = pick_face(rng, split, difficulty)
    printed = sized(face, float(rng.uniform(9, 12.5)))
    turns: list[Turn] = []
    top = 4.0
    if rng.random() < 0.7:
        title = " ".join(_word(rng, split).capitalize() for _ in range(int(rng.integers(1, 3))))
        bar = printed.size + 10.0
        fill: Colour = tuple(int(v) for v in rng.integers(20, 150, 3)) if rng.random() < 0.6 else paper  # type: ignore
        if width_of(title, printed) < width - 16:
            canvas.draw.rectangle((0, 0, width, bar), fill=fill)
            on_bar: Colour = (255, 255, 255) if luminance(fill) < 0.5 else (10, 10, 10)
            canvas.text(7, round(bar - 7), title, printed, on_bar)
            turns.append(Turn(pick(rng, TITLE), title, "title"))
            top = bar + 4
    labels: list[str] = []
    boxes: list[tuple[float, float, float, float]] = []
    wanted = int(rng.integers(1, 5))
    in_row = rng.random() < 0.5 and wanted <= 3
    tall = printed.size + float(rng.uniform(8, 14))
    colour = _button_colour(rng, paper, difficulty)
    at = float(rng.uniform(6, 20))
    row = float(rng.uniform(top, max(top + 1, height - tall - 5)))
    for _ in range(60):
        if len(labels) == wanted:
            break
        label = _label(rng, split)
        if label.lower() in [other.lower() for other in labels]:
            continue
        wide = width_of(label, printed) + float(rng.uniform(12, 26))
        if in_row:
            box = (at, row, at + wide, row + tall)
            if box[2] > width - 4:
                continue
        else:
            if wide > width - 8:
                continue
            x, y = float(rng.uniform(4, width - wide - 4)), float(rng.uniform(top, max(top + 0.1, height - tall - 4)))
            box = (x, y, x + wide, y + tall)
            if box[3] > height or any(_overlap(box, other) for other in boxes):
                continue
        at = box[2] + float(rng.uniform(8, 20))
        labels.append(label)
        boxes.append(box)
        _draw_button(canvas, rng, box, label, printed, colour if rng.random() < 0.7 else _button_colour(rng, paper, 1))
    if rng.random() < 0.4:
        _draw_field(canvas, rng, boxes, top, ink, dark)
    image, glyphs, colours = canvas.finish(rng, difficulty * 0.6)
    for i in rng.permutation(len(labels))[:3]:
        x0, y0, x1, y1 = boxes[int(i)]
        point = f"({(x0 + x1) / 2 / width:.2f}, {(y0 + y1) / 2 / height:.2f})"
        turns.append(Turn(pick(rng, POINT, label=labels[int(i)]), point, "button", boxes[int(i)]))
    if in_row and len(labels) in SIDES:
        i = int(rng.integers(len(labels)))
        turns.append(Turn(pick(rng, WHICH_BUTTON, side=SIDES[len(labels)][i]), labels[i], "button_label"))
    if rng.random() < 0.3:
        turns.append(Turn(pick(rng, N_BUTTONS), str(len(labels)), "button_count"))
    return Example(image, glyphs, colours, turns)


def _word(rng: np.random.Generator, split: str) -> str:
    return real_word(rng, split, 8) if rng.random() < 0.6 else invented_word(rng, split, 7)


def _label(rng: np.random.Generator, split: str) -> str:
    if rng.random() < 0.5:
        label = one(rng, LABELS).replace("_", " ")
        if is_held_out(label) is (split == "held_out"):
            return label
    return _word(rng, split).capitalize()


def _button_colour(rng: np.random.Generator, paper: Colour, difficulty: float) -> Colour:
    while True:
        colour: Colour
        if rng.random() < 0.5:
            colour = tuple(int(v) for v in rng.integers(20, 240, 3))  # type: ignore[assignment]
        else:
            grey = int(rng.integers(150, 256))
            colour = (grey, grey, grey)
        if abs(luminance(colour) - luminance(paper)) > 0.08:
            return colour


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] + 6 and b[0] < a[2] + 6 and a[1] < b[3] + 6 and b[1] < a[3] + 6


def _draw_button(canvas: Canvas, rng: np.random.Generator, box: tuple, label: str, printed, fill: Colour) -> None:  # type: ignore
    ink: Colour = (255, 255, 255) if luminance(fill) < 0.5 else (10, 10, 10)
    radius = int(rng.choice([0, 3, 6, 10]))
    edge = tuple(max(0, c - 60) for c in fill)
    canvas.draw.rounded_rectangle(box, radius, fill=fill, outline=edge)
    canvas.area(box, "button")
    x = (box[0] + box[2] - width_of(label, printed)) / 2
    canvas.text(round(x), round((box[1] + box[3]) / 2 + printed.size * 0.33), label, printed, ink)


def _draw_field(canvas: Canvas, rng: np.random.Generator, boxes: list, top: float, ink: Colour, dark: bool) -> None:  # type: ignore
    width, height = canvas.size
    for _ in range(10):
        x, y = float(rng.uniform(4, width / 2)), float(rng.uniform(top, max(top + 1, height - 26)))
        box = (x, y, x + float(rng.uniform(40, width / 2 - 6)), y + 20)
        if box[3] < height and not any(_overlap(box, other) for other in boxes):
            canvas.draw.rectangle(box, fill=(70, 70, 75) if dark else (255, 255, 255), outline=(128, 128, 128))
            canvas.area(box, "field")
            return
