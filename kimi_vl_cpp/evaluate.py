"""How well a model answers questions about pictures: a folder of questions, and the judge.

A folder holds `questions.jsonl`, one object a line: id, task, image (a file of the folder), question, answers (a list
of accepted ones), and for points box = [x0, y0, x1, y1] in pixels. Owns the format and the rules of judging; the
figures of a task are shares with 95 % intervals of Wilson's.

Two judgements of an answer. Exact: it is an accepted answer, apart from white space at its ends or doubled inside and
one final period; words and prices in their letters' case, closed answers (shape, colour, count, where) in any; a point
as "(0.25, 0.75)", shares of width and height, inside the box. Lenient, for models that answer in sentences: of all
answers that occur in the task's questions the text names the accepted one and no other; for words, it contains them;
for prices, its one price is the accepted one; a point may be in pixels or in thousandths too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import BadRequest, shown
from .image_io import open_image

if TYPE_CHECKING:
    from .model import KimiVL

QUESTIONS_NAME = "questions.jsonl"
MAX_QUESTIONS_BYTES = 64 << 20
CLOSED_TASKS = ("shape", "colour", "count", "where")
PRICE_TASKS = ("prices", "receipt_total", "receipt_price")
POINT_TASKS = ("button",)

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PRICE = re.compile(r"[$€£]?\d+(?:[.,]\d{2})?")
_POINT = re.compile(r"\(?\s*(\d+(?:\.\d+)?)\s*,\s*(\d+(?:\.\d+)?)\s*\)?")
_EXACT_POINT = re.compile(r"\((0\.\d+|1\.0+), (0\.\d+|1\.0+)\)")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Question:
    """box: x0, y0, x1, y1 in pixels of the picture, for points."""

    id: str
    task: str
    image: Path
    question: str
    answers: tuple[str, ...]
    box: Box | None = None


@dataclass(frozen=True)
class Judged:
    """An answer and whether it is right. seconds: from the question to the end of the answer."""

    question: Question
    answer: str
    exact: bool
    lenient: bool
    seconds: float


def read_questions(folder: str | Path) -> list[Question]:
    """The questions of a folder, in the order of the file. Raises BadRequest "eval.data", which names file and line."""
    path = Path(folder) / QUESTIONS_NAME
    try:
        if path.stat().st_size > MAX_QUESTIONS_BYTES:
            _bad(path, f"has more than {MAX_QUESTIONS_BYTES} bytes")
        text = path.read_bytes().decode()
    except OSError as error:
        _bad(path, f"cannot be read: {error.strerror}; expected a folder with {QUESTIONS_NAME} and its pictures")
    except UnicodeDecodeError as error:
        _bad(path, f"is not UTF-8 at byte {error.start}")
    found: list[Question] = []
    ids: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        question = _question(line, path, number)
        if question.id in ids:
            _bad(path, f"line {number}: id {shown(question.id)} occurs twice")
        ids.add(question.id)
        found.append(question)
    if not found:
        _bad(path, "holds no questions")
    return found


def _question(line: str, path: Path, number: int) -> Question:
    def bad(problem: str) -> NoReturn:
        _bad(path, f"line {number}: {problem}")

    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        bad(f"is not JSON: {error}")
    if not isinstance(entry, dict):
        bad("is no object")
    values = {}
    for name in ("id", "task", "image", "question"):
        value = entry.get(name)
        if not isinstance(value, str) or not value or len(value) > 10_000:
            bad(f"{name} is {shown(value)}, expected a text")
        values[name] = value
    answers = entry.get("answers")
    if not isinstance(answers, list) or not answers or not all(isinstance(one, str) and one for one in answers):
        bad(f"answers is {shown(answers)}, expected a list of texts")
    image = values["image"]
    if image != Path(image).name or "\0" in image or "\\" in image:
        bad(f"image is {shown(image)}, expected the name of a file in the same folder")
    if not (path.parent / image).is_file():
        bad(f"image {shown(image)} is not in {path.parent}")
    box = entry.get("box")
    if box is not None:
        is_box = isinstance(box, list) and len(box) == 4
        if not is_box or not all(type(side) in (int, float) and math.isfinite(side) for side in box):
            bad(f"box is {shown(box)}, expected [x0, y0, x1, y1]")
        box = tuple(float(side) for side in box)
    elif values["task"] in POINT_TASKS:
        bad("has no box, which a point is judged by")
    return Question(values["id"], values["task"], path.parent / image, values["question"], tuple(answers), box)


def _bad(path: Path, problem: str) -> NoReturn:
    raise BadRequest(f"{path}: {problem}", "eval.data")


class Judge:
    """Judges answers. questions: all of a set, for what the answers of a task can be."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._closed: dict[str, set[str]] = {}
        for question in questions:
            self._closed.setdefault(question.task, set()).update(answer.lower() for answer in question.answers)

    def exact(self, question: Question, answer: str) -> bool:
        text = " ".join(answer.split())
        if question.box is not None:
            found = _EXACT_POINT.fullmatch(text)
            return found is not None and self._inside(question, float(found[1]), float(found[2]))
        candidates = {text, text.removesuffix(".")}
        if question.task in CLOSED_TASKS:
            return any(one.lower() in {accepted.lower() for accepted in question.answers} for one in candidates)
        return bool(candidates & {" ".join(accepted.split()) for accepted in question.answers})

    def lenient(self, question: Question, answer: str) -> bool:
        if self.exact(question, answer):
            return True
        text = " ".join(answer.lower().split())
        accepted = {one.lower() for one in question.answers}
        if question.box is not None:
            return self._loose_point(question, text)
        if question.task in PRICE_TASKS:
            prices = {found.strip("$€£").replace(",", ".") for found in _PRICE.findall(text)}
            return prices == {one.strip("$€£").replace(",", ".") for one in accepted}
        if question.task in CLOSED_TASKS:
            return self._named(question.task, text) == accepted
        return any(one in text for one in accepted)

    def _named(self, task: str, text: str) -> set[str]:
        """The task's answers that a text names; a longer one hides a shorter inside it."""
        if task == "count":
            for number, word in enumerate(_NUMBER_WORDS):
                text = re.sub(rf"\b{word}\b", str(number), text)
        if task == "where":
            text = re.sub(r"\bcenter\b|\bmiddle\b", "centre", re.sub(r"\bupper\b", "top", text))
            text = re.sub(r"\blower\b", "bottom", text).replace("-", " ")
        if task == "colour":
            text = text.replace("grey", "gray")
        found = set()
        for candidate in sorted(self._closed[task], key=len, reverse=True):
            pattern = rf"\b{re.escape(candidate)}s?\b"
            if re.search(pattern, text):
                found.add(candidate)
                text = re.sub(pattern, " ", text)
        return found

    def _loose_point(self, question: Question, text: str) -> bool:
        numbers = _POINT.findall(text)
        if len(numbers) != 1:
            return False
        x, y = float(numbers[0][0]), float(numbers[0][1])
        width, height = open_image(question.image).original_size
        scales = [(1.0, 1.0)] if max(x, y) <= 1 else [(1 / width, 1 / height), (0.001, 0.001)]
        return any(self._inside(question, x * across, y * down) for across, down in scales)

    @staticmethod
    def _inside(question: Question, x: float, y: float) -> bool:
        assert question.box is not None
        width, height = open_image(question.image).original_size
        x0, y0, x1, y1 = question.box
        return x0 <= x * width <= x1 and y0 <= y * height <= y1


def evaluate(
    model: KimiVL,
    questions: Sequence[Question],
    judge: Judge,
    *,
    max_new_tokens: int | None = None,
    before: Callable[[int, Question], None] | None = None,
) -> Iterator[Judged]:
    """Asks every question as the first of a conversation, greedily; questions about one picture follow each other
    cheaply. before: called with index and question before it is asked. Raises what `KimiVL.chat` raises."""
    for index, question in enumerate(questions):
        if before is not None:
            before(index, question)
        response = model.chat(
            question.question, images=[question.image], temperature=0, seed=0, max_new_tokens=max_new_tokens
        )
        times = response.timings
        yield Judged(
            question,
            response.text,
            judge.exact(question, response.text),
            judge.lenient(question, response.text),
            times.first_token_s + times.decode_s,
        )


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
