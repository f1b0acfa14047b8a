"""Several answers to one prompt: their seeds, reading them together, and the vote among them.

The scheduler computes the common prompt once; here is only what is done with the answers.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..types import Response
from .stream import PieceStream

MAX_ANSWERS = 64


def answer_seed(seed: int, index: int) -> int:
    """The seed of answer `index` of several; that of answer 0 is the seed itself. Given alone, it gives that answer."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8], "little")


@dataclass(frozen=True)
class Answers:
    """Several answers to one question.

    responses: in the order of their seeds; with a vote, those that could no longer change it are "cancelled".
    votes: normalized answer -> how many ended with it. winner: the first response with the answer of the most votes,
    None where no answer ended.
    """

    responses: tuple[Response, ...]
    votes: dict[str, int]
    winner: Response | None

    def __str__(self) -> str:
        return "" if self.winner is None else self.winner.text


def normalized(text: str) -> str:
    """What of an answer counts in a vote: its words in small letters, without a full stop at the end."""
    return " ".join(text.casefold().split()).rstrip(".")


def read_together(streams: Sequence[PieceStream]) -> list[Response]:
    """The responses of all streams, read in turn so that they are decoded together. An error ends them all."""
    return list(read_all(streams).responses)


def read_all(streams: Sequence[PieceStream], *, vote: bool = False) -> Answers:
    """As `read_together`. vote: until the lead of one answer cannot be lost; the other streams are cancelled."""
    votes: Counter[str] = Counter()
    running = list(streams)
    try:
        for stream in running:
            stream.begin()
        while running and not (vote and _decided(votes, len(running))):
            for stream in list(running):
                if next(stream, None) is None:
                    running.remove(stream)
                    if stream.result is not None and stream.result.finish_reason == "stop":
                        votes[normalized(stream.result.text)] += 1
    finally:
        for stream in running:
            stream.close()
    responses = tuple(stream.result for stream in streams if stream.result is not None)
    ended = [one for one in responses if one.finish_reason == "stop"]
    winner = max(ended, key=lambda one: votes[normalized(one.text)], default=None)  # of equals the first
    return Answers(responses, dict(votes), winner)


def _decided(votes: Counter[str], n_running: int) -> bool:
    leaders = votes.most_common(2)
    return bool(leaders) and leaders[0][1] > (leaders[1][1] if len(leaders) > 1 else 0) + n_running
