"""How well a model answers questions about pictures: a folder of questions, and the judge.

A folder holds `questions.jsonl`, one object a line: id, task, image (a file of the folder), question, answers (a list
of accepted ones), and for points box = [x0, y0, x1, y1] in pixels of the upright picture. A task of another name than
those below is judged like words, or as a point when it has a box. Owns the format and the rules of judging; the figures
of a task are shares with 95 % intervals of Wilson's.

Two judgements of an answer, both without white space at its ends, doubled white space and one final period.

Exact: it is an accepted answer; words and prices in their letters' case, closed answers (shape, colour, count, where)
in any; a point is "(0.25, 0.75)", shares of width and height, and lies in the box.

Lenient, for models that answer in sentences: it names one thing of the task's kind, and that is the accepted one. The
kind is, for closed answers, all answers of the task in the folder (in any case and in the plural; three is 3, upper is
top, middle is centre); for prices, amounts with a currency sign or cents (a sign that is left out is no fault); for
points, pairs of numbers, or boxes of four that stand for their middle (shares, thousandths or pixels; a place may be
named twice). Words are right when the answer contains them, in any case.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import BadImage, BadRequest, shown
from ..media.open import open_image

if TYPE_CHECKING:
    from ..model import KimiVL

QUESTIONS_NAME = "questions.jsonl"
MAX_QUESTIONS_BYTES = 64 << 20
MAX_TEXT_CHARS = 10_000
CLOSED_TASKS = ("shape", "colour", "count", "where")
PRICE_TASKS = ("prices", "receipt_total", "receipt_price")
POINT_TASKS = ("button",)

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
_POINT = re.compile(rf"(?<![\d.-]){_NUMBER}\s*,\s*(?:[\"']?y[\"']?\s*[:=]\s*)?{_NUMBER}")
_NEXT = r"\s*,\s*(?:[\"']?[a-z]+\d?[\"']?\s*[:=]\s*)?"  # perhaps with a name: "x2": 0.3
_BOX = re.compile(
    rf"(?<![\d.-]){_NUMBER}{_NEXT}{_NUMBER}{_NEXT}{_NUMBER}{_NEXT}{_NUMBER}(?![\d.]*\s*,\s*[\d.])"
    rf"|box\W{{0,20}}{_NUMBER}\s*,\s*{_NUMBER}\s*[)\]]\s*,\s*[(\[]\s*{_NUMBER}\s*,\s*{_NUMBER}"
)
_EXACT_POINT = re.compile(r"\((0\.\d+|1\.0+), (0\.\d+|1\.0+)\)")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Question:
    """box: x0, y0, x1, y1 in pixels of the picture, for points. line: where it stands in its file, from 1."""

    id: str
    task: str
    image: Path
    question: str
    answers: tuple[str, ...]
    box: Box | None = None
    line: int = 0


@dataclass(frozen=True)
class Judged:
    """An answer and whether it is right. seconds: from the question to the end of the answer."""

    question: Question
    answer: str
    exact: bool
    lenient: bool
    seconds: float


def read_questions(folder: str | os.PathLike[str]) -> list[Question]:
    """The questions of a folder, in the order of the file. Raises BadRequest "eval.data", which names file and line."""
    path = Path(folder) / QUESTIONS_NAME
    found: list[Question] = []
    ids: set[str] = set()
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        question = _question(line, path, number)
        if question.id in ids:
            _bad(path, number, f"id {shown(question.id)} occurs twice")
        ids.add(question.id)
        found.append(question)
    if not found:
        _bad(path, 0, "holds no questions")
    return found


def check_pictures(questions: Iterable[Question]) -> None:
    """Opens every picture once, so that a damaged one is told before hours of work. Raises BadRequest "eval.data"."""
    seen: set[Path] = set()
    for question in questions:
        if question.image in seen:
            continue
        seen.add(question.image)
        try:
            open_image(question.image)
        except BadImage as error:
            _bad(question.image.with_name(QUESTIONS_NAME), question.line, f"image {error}")


def _text(path: Path) -> str:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            _bad(path, 0, "is no regular file")
        if status.st_size > MAX_QUESTIONS_BYTES:
            _bad(path, 0, f"has {status.st_size} bytes, expected at most {MAX_QUESTIONS_BYTES}")
        with open(path, "rb") as file:
            return file.read(MAX_QUESTIONS_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _bad(path, 0, f"is not UTF-8 at byte {error.start}")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        _bad(path, 0, f"cannot be read: {reason}; expected a folder with {QUESTIONS_NAME} and its pictures")


def _question(line: str, path: Path, number: int) -> Question:
    def bad(problem: str) -> NoReturn:
        _bad(path, number, problem)

    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        bad(f"is not JSON: {error}")
    if not isinstance(entry, dict):
        bad(f"is {shown(entry)}, expected an object with id, task, image, question and answers")
    values: dict[str, str] = {}
    for name in ("id", "task", "image", "question"):
        value: Any = entry.get(name)
        if not _is_text(value):
            bad(f"{name} is {'missing' if value is None else shown(value)}, expected a text")
        values[name] = value
    answers = entry.get("answers")
    if not isinstance(answers, list) or not answers or not all(_is_text(one) for one in answers):
        bad(f"answers is {'missing' if answers is None else shown(answers)}, expected a list of texts")
    image = values["image"]
    if image in (".", "..") or any(character in image for character in "/\\\0"):
        bad(f"image is {shown(image)}, expected the name of a file in the same folder")
    if not os.path.isfile(path.parent / image):
        bad(f"image {shown(image)} is not in {path.parent}")
    box = entry.get("box")
    if box is not None:
        box = _box(box) or bad(f"box is {shown(box)}, expected [x0, y0, x1, y1] with x0 < x1 and y0 < y1")
    elif values["task"] in POINT_TASKS:
        bad("has no box, which a point is judged by: add box = [x0, y0, x1, y1]")
    return Question(values["id"], values["task"], path.parent / image, values["question"], tuple(answers), box, number)


def _is_text(value: object) -> bool:
    """A text that says something, no longer than it should be, and that can be encoded."""
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT_CHARS:
        return False
    return not any(0xD800 <= ord(character) < 0xE000 for character in value)


def _box(value: object) -> Box | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(type(side) in (int, float) and -1e9 < side < 1e9 for side in value):  # so NaN is none
        return None
    x0, y0, x1, y1 = map(float, value)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _bad(path: Path, line: int, problem: str) -> NoReturn:
    raise BadRequest(f"{path}: {f'line {line}: ' if line else ''}{problem}", "eval.data")


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
            return found is not None and _inside(question, float(found[1]), float(found[2]))
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
    """Whether all places that a text names are one, and that lies in the question's box. A box stands for its middle,
    and a point inside of it for the same place."""
    boxes = {_corners(*(float(n) for n in found if n)) for found in _BOX.findall(text)}
    points = {(float(x), float(y)) for x, y in _POINT.findall(_BOX.sub(" ", text))}
    points = {p for p in points if not any(x0 <= p[0] <= x1 and y0 <= p[1] <= y1 for x0, y0, x1, y1 in boxes)}
    numbers = [number for place in (*boxes, *points) for number in place]
    places = points | {((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes}
    if len(places) != 1:
        return False
    ((x, y),) = places
    width, height = _size(question.image)
    scales = [(1.0, 1.0)] if max(numbers) <= 1 else [(1 / width, 1 / height), (0.001, 0.001)]
    return any(_inside(question, x * across, y * down) for across, down in scales)


def _corners(x0: float, y0: float, x1: float, y1: float) -> Box:
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _inside(question: Question, x: float, y: float) -> bool:
    assert question.box is not None
    width, height = _size(question.image)
    x0, y0, x1, y1 = question.box
    return x0 <= x * width <= x1 and y0 <= y * height <= y1


@lru_cache(maxsize=4096)
def _size(path: Path) -> tuple[int, int]:
    return open_image(path).original_size


def default_max_new_tokens(model: KimiVL) -> int:
    """Where an answer is cut when nobody says: long enough for a sentence, or for a line of reasoning."""
    return min(model.defaults.max_new_tokens, 4096 if model.variant.startswith("thinking") else 256)


def evaluate(
    model: KimiVL,
    questions: Sequence[Question],
    judge: Judge,
    *,
    max_new_tokens: int | None = None,
    before: Callable[[int, Question], None] | None = None,
) -> Iterator[Judged]:
    """Asks every question as the first of a conversation, greedily. A picture that was asked about before is not
    encoded again, and its prompt is not read again when its questions follow each other.

    max_new_tokens: None is `default_max_new_tokens`. before: called with index and question before it is asked. Raises
    what `KimiVL.chat` raises.
    """
    longest = default_max_new_tokens(model) if max_new_tokens is None else max_new_tokens
    for index, question in enumerate(questions):
        if before is not None:
            before(index, question)
        response = model.chat(
            question.question,
            images=[question.image],
            temperature=0,
            seed=0,
            max_new_tokens=longest,
            progress=_ignore,
        )
        times = response.timings
        yield Judged(
            question,
            response.text,
            judge.exact(question, response.text),
            judge.lenient(question, response.text),
            times.first_token_s + times.decode_s,
        )


def _ignore(stage: str, done: int, total: int) -> None:
    """The progress of one question is not shown: its number is."""


@dataclass(frozen=True)
class Share:
    """A share of n with its 95 % interval (Wilson)."""

    right: int
    n: int

    @property
    def value(self) -> float:
        return self.right / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The lower and upper end."""
        if not self.n:
            return 0.0, 1.0
        z = 1.959964  # of the normal distribution, 95 %
        p, n = self.value, self.n
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


def by_task(judged: Sequence[Judged]) -> dict[str, tuple[Share, Share]]:
    """Task -> (exact, lenient), in the order of the questions."""
    found: dict[str, list[Judged]] = {}
    for one in judged:
        found.setdefault(one.question.task, []).append(one)
    return {task: shares(ones) for task, ones in found.items()}


def shares(judged: Sequence[Judged]) -> tuple[Share, Share]:
    """(exact, lenient)."""
    n = len(judged)
    return Share(sum(one.exact for one in judged), n), Share(sum(one.lenient for one in judged), n)
