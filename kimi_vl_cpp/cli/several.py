"""`kimi-vl run --answers N --vote`: several answers to one question, and what most of them say."""

from __future__ import annotations

from typing import Any

from ..generation.several import Answers
from ..types import Response
from ..wording import plural
from . import exits
from .terminal import Terminal

DEFAULT_VOTERS = 5


def count(answers: int | None, vote: bool) -> int | None:
    """How many answers are wanted; None for one that is streamed. Raises UsageError."""
    from ..generation.several import MAX_ANSWERS

    if answers is not None and not 1 <= answers <= MAX_ANSWERS:
        raise exits.UsageError(f"--answers {answers}: expected 1 to {MAX_ANSWERS}")
    if vote and answers is not None and answers < 2:
        raise exits.UsageError("--vote needs several answers: ask for them with --answers N")
    return DEFAULT_VOTERS if vote and answers is None else answers


def write(found: Answers, vote: bool, terminal: Terminal) -> None:
    """The answers on standard output; their seeds, and how the vote went, on standard error."""
    winner = found.winner
    if vote and winner is not None:
        terminal.out.write(winner.text.rstrip("\n") + "\n")
        n_ended = sum(found.votes.values())
        terminal.note(f"{max(found.votes.values())} of {plural(n_ended, 'answer')} agree; seed {winner.seed}")
        return
    if vote:
        terminal.note("no answer came to its end, so there is no vote: -n allows longer answers")
    for number, response in enumerate(found.responses, 1):
        terminal.note(f"answer {number} of {len(found.responses)}, seed {response.seed}")
        terminal.out.write(response.text.rstrip("\n") + "\n\n")
        terminal.out.flush()


def as_json(found: Answers, one: Any) -> dict[str, Any]:
    """What --json prints. one(response): a response as it is printed alone."""
    responses: list[Response] = list(found.responses)
    return {
        "answers": [one(response) for response in responses],
        "votes": found.votes,
        "winner": None if found.winner is None else responses.index(found.winner),
    }
