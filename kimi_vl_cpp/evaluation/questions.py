"""A folder of questions about pictures: `questions.jsonl` and the files that it names.

One object a line: id, task, image (a file of the folder), question, answers (a list of accepted ones), and for points
box = [x0, y0, x1, y1] in pixels of the upright picture. Owns the format; does not know how answers are judged.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import BadImage, BadRequest, shown
from ..media.open import open_image

QUESTIONS_NAME = "questions.jsonl"
MAX_QUESTIONS_BYTES = 64 << 20
MAX_TEXT_CHARS = 10_000
CLOSED_TASKS = ("shape", "colour", "count", "where")
PRICE_TASKS = ("prices", "receipt_total", "receipt_price")
POINT_TASKS = ("button",)

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
    """Opens every picture once: a damaged one is reported before hours of work. Raises BadRequest "eval.data"."""
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
            _bad(path, 0, "is not a regular file")
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
