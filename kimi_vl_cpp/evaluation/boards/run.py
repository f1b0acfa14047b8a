"""A question of a benchmark asked, and what all answers come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import BadImage, ContextFull
from ...grounding.mapping import Plan
from ..run import wilson
from .board import Board, Item

if TYPE_CHECKING:
    from ...model import KimiVL


@dataclass(frozen=True)
class Answer:
    """What was answered. failure: why there is no answer, a code; "": there is one."""

    text: str
    failure: str = ""


@dataclass(frozen=True)
class Total:
    """Sums over answers.

    value, low, high: 0 to 1; low counts what is undecided as wrong, high as right, value leaves it out. interval: 95 %,
    of the decided.
    """

    n: int
    undecided: int
    failed: int
    value: float
    low: float
    high: float
    interval: tuple[float, float]

    def scaled(self, scale: float) -> dict[str, Any]:
        """For JSON, in the units of the paper."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        found: dict[str, Any] = {name: round(scale * number, 2) for name, number in numbers.items()}
        interval = [round(scale * end, 2) for end in self.interval]
        return {"n": self.n, "undecided": self.undecided, "failed": self.failed, **found, "interval_95": interval}


def ask(model: KimiVL, item: Item, max_new_tokens: int) -> Answer:
    """Asks greedily, as the first question of a conversation.

    A picture or document that cannot be read, or is too long for the context, is an answer that failed; other errors
    are raised.
    """
    options: dict[str, Any] = {"temperature": 0, "seed": 0, "max_new_tokens": max_new_tokens, "progress": _ignore}
    try:
        if item.document is not None:
            (text,) = (part for part in item.content if isinstance(part, str))
            return Answer(model.chat(text, documents=[item.document], **options).text)
        pictures = [part for part in item.content if not isinstance(part, str)]
        content: list[dict[str, Any]] = []
        for part in item.content:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                content.append({"type": "image", "image": sum(one["type"] == "image" for one in content)})
        messages: list[Any] = [{"role": "user", "content": content}]
        if item.system is not None:
            messages.insert(0, {"role": "system", "content": item.system})
        return Answer(model.start(messages, pictures, **options).drain().text)
    except (BadImage, ContextFull) as failure:
        return Answer("", failure.code)


def _ignore(stage: str, done: int, total: int) -> None:
    """The progress of one question is not shown: its number is."""


def total(answers: Sequence[tuple[Item, Answer]], padded: Plan | None = None) -> Total:
    """A failed answer is wrong. padded: reads points as shares of the picture with the margin that this adds."""

    def score(item: Item, answer: Answer) -> float | None:
        if answer.failure:
            return 0.0
        if padded is not None and item.score_padded is not None:
            return item.score_padded(answer.text, padded)
        return item.score(answer.text)

    scores = [score(item, answer) for item, answer in answers]
    decided = [score for score in scores if score is not None]
    n, right = len(scores), sum(decided)
    undecided = n - len(decided)
    return Total(
        n=n,
        undecided=undecided,
        failed=sum(bool(answer.failure) for _, answer in answers),
        value=right / len(decided) if decided else 0.0,
        low=right / n if n else 0.0,
        high=(right + undecided) / n if n else 0.0,
        interval=wilson(round(right), len(decided)),
    )


def table(
    board: Board, answers: Sequence[tuple[Item, Answer]], variant: str, padded: Plan | None = None
) -> dict[str, Any]:
    """Everything that was measured, as plain values: the whole, the groups, and the paper's number for the variant.
    padded: see `total`."""
    groups: dict[str, list[tuple[Item, Answer]]] = {}
    for item, answer in answers:
        groups.setdefault(item.group, []).append((item, answer))
    return {
        "bench": board.name,
        "scale": board.scale,
        "all": total(answers, padded).scaled(board.scale),
        "groups": {name: total(ones, padded).scaled(board.scale) for name, ones in sorted(groups.items())},
        "paper": board.paper.get(variant),
        "paper_by_variant": board.paper,
        "note": board.note,
    }
