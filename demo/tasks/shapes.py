"""Coloured shapes: which, what colour, how many, where."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..draw import PALETTE, Canvas, Colour, jitter, luminance
from ..example import SHAPES, Box, Example, Turn
from .phrases import (
    COLOUR_OF,
    HOW_MANY,
    HOW_MANY_OF,
    IS_THERE,
    SHAPE_OF,
    WHAT_COLOUR,
    WHAT_SHAPE,
    WHERE,
    one,
    pick,
)

PLACES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)


@dataclass
class Thing:
    kind: str
    colour: str
    x: float
    y: float
    radius: float


def outline(kind: str, x: float, y: float, r: float, turn: float) -> list[tuple[float, float]]:
    """Corners of a shape of radius r around (x, y)."""

    def ring(n: int, radii: tuple[float, ...], first: float) -> list[tuple[float, float]]:
        angles = [first + turn + 2 * math.pi * i / n for i in range(n)]
        return [
            (x + r * radii[i % len(radii)] * math.sin(a), y - r * radii[i % len(radii)] * math.cos(a))
            for i, a in enumerate(angles)
        ]

    if kind == "square":
        return ring(4, (1.15,), math.pi / 4)
    if kind == "triangle":
        return ring(3, (1.1,), 0)
    if kind == "star":
        return ring(10, (1.1, 0.45), 0)
    if kind == "diamond":
        return [(x, y - 1.15 * r), (x + 0.75 * r, y), (x, y + 1.15 * r), (x - 0.75 * r, y)]
    if kind == "hexagon":
        return ring(6, (1.0,), math.pi / 6)
    if kind == "cross":
        a, b = r, r * 0.36
        return [
            (x - b, y - a), (x + b, y - a), (x + b, y - b), (x + a, y - b), (x + a, y + b), (x + b, y + b),
            (x + b, y + a), (x - b, y + a), (x - b, y + b), (x - a, y + b), (x - a, y - b), (x - b, y - b),
        ]  # fmt: skip
    if kind == "heart":
        points = []
        for i in range(28):
            t = 2 * math.pi * i / 28
            px = 16 * math.sin(t) ** 3
            py = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((x + px * r / 16, y - py * r / 16))
        return points
    raise ValueError(kind)


def draw(rng: np.random.Generator, split: str, difficulty: float, size: tuple[int, int]) -> Example:
    width, height = size
    background = _background(rng, difficulty)
    canvas = Canvas(size, background)
    wanted = int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.2, 0.2, 0.2, 0.16, 0.14, 0.1]))
    if rng.random() > difficulty:
        wanted = min(wanted, 3)
    colours = [name for name, rgb in PALETTE.items() if _differs(rgb, background)]
    few = [one(rng, SHAPES) for _ in range(2)]
    things: list[Thing] = []
    largest = 0.24 if wanted <= 2 else 0.17
    for _ in range(wanted):
        for _ in range(40):
            radius = float(rng.uniform(0.085, largest)) * min(size)
            thing = Thing(
                one(rng, few) if rng.random() < 0.5 and wanted > 2 else one(rng, SHAPES),
                one(rng, colours),
                *_position(rng, width, height, radius),
                radius,
            )
            if all(math.hypot(thing.x - t.x, thing.y - t.y) > (radius + t.radius) * 1.2 for t in things):
                things.append(thing)
                break
    for thing in things:
        fill = jitter(rng, PALETTE[thing.colour], int(14 * difficulty))
        turn = float(rng.uniform(-0.25, 0.25)) * difficulty
        if thing.kind == "circle":
            r = thing.radius
            canvas.ellipse((thing.x - r, thing.y - r, thing.x + r, thing.y + r), "circle", fill, thing.colour)
        else:
            turn = turn if thing.kind in ("square", "triangle", "star", "hexagon") else 0.0
            points = outline(thing.kind, thing.x, thing.y, thing.radius, turn)
            canvas.polygon(points, thing.kind, fill, thing.colour)
    image, glyphs, labels = canvas.finish(rng, difficulty * 0.8)
    turns = _turns(rng, things, width, height)
    if split == "train":
        turns += _more_counts(rng, things)
    return Example(image, glyphs, labels, turns)


def _background(rng: np.random.Generator, difficulty: float) -> Colour:
    if rng.random() > difficulty * 0.7:
        return 255, 255, 255
    if rng.random() < 0.6:
        return jitter(rng, (225, 225, 225), 30)
    return tuple(int(c) for c in rng.integers(0, 256, 3))  # type: ignore[return-value]


def _differs(a: Colour, b: Colour) -> bool:
    distance = math.dist(a, b)
    return distance > 110 and (abs(luminance(a) - luminance(b)) > 0.12 or distance > 160)


def _position(rng: np.random.Generator, width: int, height: int, radius: float) -> tuple[float, float]:
    """A centre well inside one of nine places."""
    reach = radius * 1.2
    out = []
    for side in (width, height):
        while True:
            at = float(rng.uniform(reach, side - reach))
            if min(abs(at / side - 1 / 3), abs(at / side - 2 / 3)) > 0.045:
                break
        out.append(at)
    return out[0], out[1]


def place(x: float, y: float, width: int, height: int) -> str:
    return PLACES[min(2, int(3 * y / height))][min(2, int(3 * x / width))]


def _turns(rng: np.random.Generator, things: list[Thing], width: int, height: int) -> list[Turn]:
    turns: list[Turn] = []
    c = "color" if rng.random() < 0.5 else "colour"
    kinds, colours = [t.kind for t in things], [t.colour for t in things]
    if len(things) == 1:
        turns.append(Turn(pick(rng, WHAT_SHAPE), kinds[0], "shape"))
        turns.append(Turn(pick(rng, WHAT_COLOUR, c=c), colours[0], "colour"))
    unique_kinds = [t for t in things if kinds.count(t.kind) == 1]
    unique_colours = [t for t in things if colours.count(t.colour) == 1]
    for thing in _some(rng, unique_kinds, 2):
        turns.append(_about([thing], thing.kind, pick(rng, COLOUR_OF, shape=thing.kind, c=c), thing.colour, "colour"))
    for thing in _some(rng, unique_colours, 2):
        turns.append(_about([thing], thing.colour, pick(rng, SHAPE_OF, colour=thing.colour), thing.kind, "shape"))
    named = [
        (name, t)
        for t in things
        for name in (t.kind, f"{t.colour} {t.kind}", f"{t.colour} shape")
        if sum(_fits(name, other) for other in things) == 1
    ]
    for i in rng.permutation(len(named))[:2]:
        name, thing = named[int(i)]
        answer = place(thing.x, thing.y, width, height)
        turns.append(_about([thing], name, pick(rng, WHERE, thing=name), answer, "where"))
    if rng.random() < 0.7:
        turns.append(_counting(things, "", pick(rng, HOW_MANY)))
    if rng.random() < 0.6:
        kind = one(rng, kinds) if rng.random() < 0.75 else one(rng, SHAPES)
        turns.append(_counting([t for t in things if t.kind == kind], _plural(kind), _how_many(rng, _plural(kind))))
    else:
        colour = one(rng, colours) if rng.random() < 0.75 else one(rng, list(PALETTE))
        question = _how_many(rng, f"{colour} shapes")
        turns.append(_counting([t for t in things if t.colour == colour], colour, question))
    if rng.random() < 0.4:
        turns.append(_is_there(rng, things))
    return [turns[int(i)] for i in rng.permutation(len(turns))[:5]]


def _more_counts(rng: np.random.Generator, things: list[Thing]) -> list[Turn]:
    """Of what there is most of: most kinds and colours occur once at most."""
    kinds, colours = [t.kind for t in things], [t.colour for t in things]
    kind, colour = max(kinds, key=kinds.count), max(colours, key=colours.count)
    turns = [_counting(things, "", pick(rng, HOW_MANY))]
    if kinds.count(kind) > 1:
        turns.append(_counting([t for t in things if t.kind == kind], _plural(kind), _how_many(rng, _plural(kind))))
    if colours.count(colour) > 1:
        question = _how_many(rng, f"{colour} shapes")
        turns.append(_counting([t for t in things if t.colour == colour], colour, question))
    return turns


def _plural(kind: str) -> str:
    return "crosses" if kind == "cross" else f"{kind}s"


def _how_many(rng: np.random.Generator, kinds: str) -> str:
    return pick(rng, HOW_MANY_OF, kinds=kinds)


def _boxes(things: list[Thing]) -> list[Box]:
    return [(t.x - 0.6 * t.radius, t.y - 0.6 * t.radius, t.x + 0.6 * t.radius, t.y + 0.6 * t.radius) for t in things]


def _about(things: list[Thing], name: str, question: str, answer: str, task: str) -> Turn:
    """A turn about the things that the question calls by a name."""
    boxes = _boxes(things)
    looks = [boxes] * len(answer) if len(things) == 1 else []
    return Turn(question, answer, task, None, looks, [boxes] * len(name), question.lower().rindex(name))


def _counting(things: list[Thing], name: str, question: str) -> Turn:
    """A turn about the number of things; name: what the question calls them, if it does."""
    turn = Turn(question, str(len(things)), "count", counted=_boxes(things))
    if name:
        turn.asked, turn.asked_from = [turn.counted or []] * len(name), question.lower().rindex(name)
    return turn


def _fits(name: str, thing: Thing) -> bool:
    return all(word in (thing.kind, thing.colour, "shape") for word in name.split())


def _some(rng: np.random.Generator, things: list[Thing], most: int) -> list[Thing]:
    return [things[int(i)] for i in rng.permutation(len(things))[:most]]


def _is_there(rng: np.random.Generator, things: list[Thing]) -> Turn:
    wanted = bool(rng.random() < 0.5)
    while True:
        thing = things[int(rng.integers(len(things)))]
        kind = thing.kind if wanted or rng.random() < 0.5 else one(rng, SHAPES)
        colour = thing.colour if wanted or rng.random() < 0.5 else one(rng, list(PALETTE))
        name = kind if rng.random() < 0.4 else f"{colour} {kind}"
        found = [other for other in things if _fits(name, other)]
        if bool(found) is wanted:
            turn = _counting(found, name, pick(rng, IS_THERE, thing=name))
            turn.answer, turn.task = "yes" if found else "no", "is_there"
            return turn
