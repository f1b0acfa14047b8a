"""How right a model is by how long it may reason, and by how many answers vote.

Two readings of a length L, because the paper's figure 13 does not say which it shows. Cut: an answer counts if the
model closed its reasoning by itself within L tokens; nothing has to be computed for it but one run at the longest
length. Forced: the reasoning is closed after L tokens and the model has to answer, as `thinking_budget` does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checks import check_int
from ..errors import BadRequest
from ..generation.sampling import MAX_NEW_TOKENS
from .judge import Judge
from .questions import Question
from .run import Share

if TYPE_CHECKING:
    from ..model import KimiVL
    from ..types import Response

ANSWER_TOKENS = 512
"""Kept for the answer behind the reasoning."""


@dataclass(frozen=True)
class Reasoned:
    """A question at each length. tokens: of the reasoning at the longest. closed: whether the model ended it by itself.
    cut, forced: length -> right or not, by the lenient rule. answers: length -> the forced answer."""

    question: Question
    tokens: int
    closed: bool
    cut: dict[int, bool]
    forced: dict[int, bool]
    answers: dict[int, str]


@dataclass(frozen=True)
class Voted:
    """A question with several answers. right: of the majority among the first 1, 2, ... of them. agreement: the share
    of all answers that say what most of them say. tokens: of all answers."""

    question: Question
    answers: tuple[str, ...]
    right: tuple[bool, ...]
    agreement: float
    tokens: int


def check_lengths(lengths: Sequence[int], model: KimiVL) -> list[int]:
    """The lengths in ascending order, each once. Raises BadRequest when the model does not reason or one does not fit
    into its context."""
    if not model.variant.startswith("thinking"):
        raise BadRequest(
            f"thinking: {model.name} ({model.variant}) does not reason before it answers: take a Thinking model",
            "request.thinking",
        )
    found = sorted(set(lengths))
    for length in found:
        check_int("thinking", length, 1, MAX_NEW_TOKENS)
    if not found or found[-1] + ANSWER_TOKENS >= model.n_ctx:
        raise BadRequest(
            f"thinking: {found[-1] if found else 'nothing'} tokens of reasoning and {ANSWER_TOKENS} of the answer do "
            f"not fit into the context of {model.n_ctx}: give a larger n_ctx, or shorter lengths",
            "request.thinking",
        )
    return found


def by_length(
    model: KimiVL,
    questions: Sequence[Question],
    judge: Judge,
    lengths: Sequence[int],
    *,
    before: Callable[[int, Question], None] | None = None,
    **options: Any,
) -> Iterator[Reasoned]:
    """Asks every question at the longest length, and again at each shorter one at which its reasoning had not ended.
    The answers of one question agree up to the shorter length, as every answer with the same seed does.

    options: of sampling; greedy unless said otherwise. Raises what `check_lengths` and `KimiVL.chat` raise.
    """
    lengths = check_lengths(lengths, model)
    options = {"temperature": 0, "seed": 0, **options}
    for index, question in enumerate(questions):
        if before is not None:
            before(index, question)
        longest = _ask(model, question, lengths[-1], options)
        closed = longest.thinking_closed_by in (None, "model")
        tokens = longest.usage.reasoning_tokens
        right = judge.lenient(question, longest.text)
        cut, forced, answers = {}, {}, {}
        for length in lengths:
            ended = closed and tokens <= length
            cut[length] = ended and right
            response = longest if ended or length == lengths[-1] else _ask(model, question, length, options)
            answers[length] = response.text
            forced[length] = judge.lenient(question, response.text)
        yield Reasoned(question, tokens, closed, cut, forced, answers)


def _ask(model: KimiVL, question: Question, length: int, options: dict[str, Any]) -> Response:
    response: Response = model.chat(
        question.question,
        images=[question.image],
        thinking_budget=length,
        max_new_tokens=length + ANSWER_TOKENS,
        progress=_ignore,
        **options,
    )
    return response


def shares_by_length(found: Sequence[Reasoned]) -> dict[int, tuple[Share, Share]]:
    """Length -> (cut, forced)."""
    lengths = list(found[0].cut) if found else []
    n = len(found)
    return {
        length: (Share(sum(one.cut[length] for one in found), n), Share(sum(one.forced[length] for one in found), n))
        for length in lengths
    }


def by_votes(
    model: KimiVL,
    questions: Sequence[Question],
    judge: Judge,
    n: int,
    *,
    before: Callable[[int, Question], None] | None = None,
    **options: Any,
) -> Iterator[Voted]:
    """Asks every question for n answers with different seeds, and judges what most of the first 1 to n say. Answers
    vote by what the judge reads in them; of equals the earliest wins.

    options: of sampling; those of the variant unless said otherwise, as greedy answers are all the same.
    """
    options = {"seed": 0, **options}
    for index, question in enumerate(questions):
        if before is not None:
            before(index, question)
        responses = model.answers(question.question, [question.image], n=n, progress=_ignore, **options).responses
        said = [judge.said(question, response.text) for response in responses]
        right = []
        for k in range(1, len(said) + 1):
            winner = majority(said[:k])
            right.append(judge.lenient(question, responses[said.index(winner)].text))
        yield Voted(
            question,
            tuple(response.text for response in responses),
            tuple(right),
            Counter(said)[majority(said)] / len(said),
            sum(response.usage.completion_tokens for response in responses),
        )


def majority(said: Sequence[str]) -> str:
    """What most say; of equals the earliest."""
    votes = Counter(said)
    return max(said, key=lambda one: votes[one])


def _ignore(stage: str, done: int, total: int) -> None:
    """The progress of one question is not shown: its number is."""
