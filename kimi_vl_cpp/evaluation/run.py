"""The run over a set of questions, and the shares that were right with their 95 % intervals (Wilson's)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .judge import Judge
from .questions import Question

if TYPE_CHECKING:
    from ..model import KimiVL


@dataclass(frozen=True)
class Judged:
    """An answer and whether it is right. seconds: from the question to the end of the answer."""

    question: Question
    answer: str
    exact: bool
    lenient: bool
    seconds: float


def default_max_new_tokens(model: KimiVL) -> int:
    """Where an answer is cut when nobody says: long enough for a sentence, or for a line of reasoning."""
    return min(model.defaults.max_new_tokens, 4096 if model.variant.startswith("thinking") else 256)


def evaluate(
    model: KimiVL,
    questions: Sequence[Question],
    judge: Judge,
    *,
    max_new_tokens: int | None = None,
    n_pictures: int = 1,
    before: Callable[[int, Question], None] | None = None,
) -> Iterator[Judged]:
    """Asks every question as the first of a conversation, greedily. A picture that was asked about before is not
    encoded again, and its prompt is not read again when its questions follow each other.

    max_new_tokens: None is `default_max_new_tokens`. n_pictures: in each chat: the question's own, at a place that
    changes from question to question and is named in the text, and those of later questions. before: called with index
    and question before it is asked. Raises what `KimiVL.chat` raises.
    """
    longest = default_max_new_tokens(model) if max_new_tokens is None else max_new_tokens
    for index, question in enumerate(questions):
        if before is not None:
            before(index, question)
        text, pictures = _among(questions, index, n_pictures)
        response = model.chat(
            text,
            images=pictures,
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


def _among(questions: Sequence[Question], index: int, n_pictures: int) -> tuple[str, list[Path]]:
    """The question about one of several pictures, and these."""
    question = questions[index]
    if n_pictures == 1:
        return question.question, [question.image]
    later = (questions[(index + step) % len(questions)].image for step in range(1, len(questions)))
    others = list(dict.fromkeys(image for image in later if image != question.image))[: n_pictures - 1]
    place = index % (len(others) + 1)
    return f"Picture {place + 1}: {question.question}", [*others[:place], question.image, *others[place:]]


def _ignore(stage: str, done: int, total: int) -> None:
    """The progress of one question is not shown: its number is."""


def wilson(n_good: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval in which a share lies with 95 % confidence (E. B. Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    share = n_good / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return 0.0 if n_good == 0 else low, 1.0 if n_good == n else high


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
        return wilson(self.right, self.n)


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
