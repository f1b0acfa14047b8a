"""Whether an answer to a question is right. A task of another name than those below is judged like words, or as a point
when it has a box.

Two judgements of an answer, both without white space at its ends, doubled white space and one final period.

Exact: it is an accepted answer; words and prices in their letters' case, closed answers (shape, colour, count, where)
in any; a point is "(0.25, 0.75)" or "x=0.25, y=0.75", shares of width and height, and lies in the box.

Lenient, for models that answer in sentences: it names one thing of the task's kind, and that is the accepted one. The
kind is, for closed answers, all answers of the task in the folder (in any case and in the plural; three is 3, upper is
top, middle is centre); for prices, amounts with a currency sign or cents (a missing sign does not count); for
points, places in any form that grounding.parse knows, or a pair of numbers (shares, thousandths or pixels; a box stands
for its middle, and a place may be named twice). Words are right when the answer contains them, in any case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ..grounding import parse
from ..media.open import open_image
from .questions import CLOSED_TASKS, PRICE_TASKS, Question

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SPELLINGS = {
    "count": {rf"\b{word}\b": str(number) for number, word in enumerate(_NUMBER_WORDS)} | {r"\bno\b": "0"},
    "where": {r"\bcenter\b|\bmiddle\b": "centre", r"\bupper\b": "top", r"\blower\b": "bottom", "-": " "},
    "colour": {r"\bgrey\b": "gray"},
}
_AMOUNT = re.compile(
    r"(?<![\d.,])([$€£])?\s?(\d{1,3}(?:,\d{3})+|\d+)(?:[.,](\d\d))?(?![.,]?\d)(?:\s?([$€£])(?!\s?\d))?"
)
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_BARE_POINT = re.compile(rf"(?<![\d.-]){_NUMBER}\s*,\s*{_NUMBER}(?!\s*,\s*[\d.])")
_SHARE = r"(0\.\d+|1\.0+)"
_EXACT_POINT = re.compile(rf"\({_SHARE}, {_SHARE}\)|x={_SHARE}, y={_SHARE}")


class Judge:
    """Judges answers. questions: all of a set, for what the answers of a task can be."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._closed: dict[str, set[str]] = {}
        for question in questions:
            self._closed.setdefault(question.task, set()).update(answer.casefold() for answer in question.answers)

    def exact(self, question: Question, answer: str) -> bool:
        """Whether the answer is, as it stands, an accepted one."""
        text = _plain(answer)
        if question.box is not None:
            found = _EXACT_POINT.fullmatch(text)
            if found is None:
                return False
            x, y = (float(share) for share in found.groups() if share is not None)
            return _inside(question, x, y)
        accepted = {_plain(one) for one in question.answers}
        if question.task in CLOSED_TASKS:
            return text.casefold() in {one.casefold() for one in accepted}
        return text in accepted

    def lenient(self, question: Question, answer: str) -> bool:
        """Whether the answer names one thing of the task's kind, and the right one."""
        if self.exact(question, answer):
            return True
        text = _plain(answer).casefold()
        if question.box is not None:
            return _loose_point(question, text)
        if question.task in CLOSED_TASKS:
            return self._named(question.task, text) == {one.casefold() for one in question.answers}
        if question.task in PRICE_TASKS and any(_amounts(one) for one in question.answers):
            named = _amounts(text)
            return len({value for _, value in named}) == 1 and any(_agree(named, _amounts(a)) for a in question.answers)
        return any(re.search(rf"(?<!\w){re.escape(_plain(one).casefold())}(?!\w)", text) for one in question.answers)

    def said(self, question: Question, answer: str) -> str:
        """What an answer says, in a form in which answers that mean the same are the same: the thing of the task's kind
        that it names, an amount by its value, a place to two decimals; else its words in small letters."""
        text = _plain(answer).casefold()
        if question.box is not None and (place := _one_place(text)) is not None:
            return f"{place[0]:.2f}, {place[1]:.2f}"
        if question.task in CLOSED_TASKS and len(named := self._named(question.task, text)) == 1:
            return named.pop()
        if question.task in PRICE_TASKS and len(values := {value for _, value in _amounts(text)}) == 1:
            return str(values.pop())
        return text

    def _named(self, task: str, text: str) -> set[str]:
        """The task's answers that a text names; a longer one hides a shorter inside it."""
        for pattern, standard in _SPELLINGS.get(task, {}).items():
            text = re.sub(pattern, standard, text)
        found = set()
        for candidate in sorted(self._closed.get(task, ()), key=lambda one: (-len(one), one)):
            pattern = rf"(?<![\w.]){re.escape(candidate)}(?:s|es)?(?!\w|\.\d)"
            if re.search(pattern, text):
                found.add(candidate)
                text = re.sub(pattern, " ", text)
        return found


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip()


def _amounts(text: str) -> set[tuple[str, int]]:
    """The amounts of money in a text: (sign or "", hundredths)."""
    found = set()
    for before, whole, cents, after in _AMOUNT.findall(text):
        if (before or after or cents) and len(whole) < 20:
            found.add((before or after, int(whole.replace(",", "")) * 100 + int(cents or 0)))
    return found


def _agree(named: set[tuple[str, int]], accepted: set[tuple[str, int]]) -> bool:
    """Whether one of the accepted amounts is named; signs may be missing on either side, but not differ."""
    return any(
        value == wanted and (sign == expected or not sign or not expected)
        for sign, value in named
        for expected, wanted in accepted
    ) and all(len({sign for sign, _ in amounts if sign}) <= 1 for amounts in (named, accepted))


def _loose_point(question: Question, text: str) -> bool:
    """Whether all places that a text names are one, and that lies in the question's box."""
    place = _one_place(text)
    if place is None:
        return False
    x, y = place
    width, height = _size(question.image)
    scales = [(1.0, 1.0)] if max(place) <= 1 else [(1 / width, 1 / height), (0.001, 0.001)]
    return any(_inside(question, x * across, y * down) for across, down in scales)


def _one_place(text: str) -> tuple[float, float] | None:
    """The place that a text names, in its numbers, when it names no other. A box stands for its middle, and a point
    inside of it for the same place."""
    found = parse.places(text)
    boxes = {place.numbers for place in found if place.is_box}
    points = {place.numbers[:2] for place in found if not place.is_box}
    if not found:
        points = {(float(x), float(y)) for x, y in _BARE_POINT.findall(text)}
    points = {p for p in points if not any(x0 <= p[0] <= x1 and y0 <= p[1] <= y1 for x0, y0, x1, y1 in boxes)}
    places = points | {((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes}
    return places.pop() if len(places) == 1 else None


def _inside(question: Question, x: float, y: float) -> bool:
    assert question.box is not None
    width, height = _size(question.image)
    x0, y0, x1, y1 = question.box
    return x0 <= x * width <= x1 and y0 <= y * height <= y1


@lru_cache(maxsize=4096)
def _size(path: Path) -> tuple[int, int]:
    return open_image(path).original_size
