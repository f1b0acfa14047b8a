"""Several answers to one prompt: their seeds, reading them together, and the vote among them.

The scheduler computes the common prompt once; here is only what is done with the answers.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from ..checks import NotPicklable
from ..types import Piece, Progress, Response
from .stream import PieceStream

MAX_ANSWERS = 64


def answer_seed(seed: int, index: int) -> int:
    """The seed of answer `index` of several; that of answer 0 is the seed itself. Given alone, it gives that answer."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8], "little")


def answers_to(first: PieceStream, n: int, progress: Progress | None = None) -> list[PieceStream]:
    """The streams of n answers to the prompt of the first, with seeds that follow from its own. progress: the callback
    of the others, None for the model's."""
    return [first, *(first.again(answer_seed(first.seed, index), progress) for index in range(1, n))]


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


class AnswersStream(NotPicklable, Generator[tuple[int, Piece], None, Answers]):
    """The pieces of several answers as they come, each behind the number of its answer, 0 is the first.

    The answers are read in turn, so that they are decoded together. Nothing is computed before the first `next()`.
    `close()` cancels those that have not ended. `result` is there once the stream has ended, None before; it is also
    the generator's return value.
    """

    _instead = "read it to its end here and send its result"

    def __init__(self, streams: Sequence[PieceStream], *, vote: bool = False) -> None:
        self.result: Answers | None = None
        self._streams = list(streams)
        self._votes: Counter[str] = Counter()
        self._inner = self._run(vote)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of the answers."""
        return tuple(stream.seed for stream in self._streams)

    def send(self, value: None) -> tuple[int, Piece]:
        return self._inner.send(value)

    def throw(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> tuple[int, Piece]:
        return self._inner.throw(typ if isinstance(typ, BaseException) else typ())

    def close(self) -> None:
        """Cancels the answers that have not ended."""
        self._inner.close()
        if self.result is None:
            self._end(self._streams)

    def drain(self) -> Answers:
        """Reads the rest and returns the answers."""
        for _ in self:
            continue
        assert self.result is not None
        return self.result

    def _run(self, vote: bool) -> Generator[tuple[int, Piece], None, Answers]:
        running = dict(enumerate(self._streams))
        try:
            for stream in self._streams:
                stream.begin()
            while running and not (vote and _decided(self._votes, len(running))):
                for index, stream in list(running.items()):
                    piece = next(stream, None)
                    if piece is not None:
                        yield index, piece
                        continue
                    del running[index]
                    if stream.result is not None and stream.result.finish_reason == "stop":
                        self._votes[normalized(stream.result.text)] += 1
        finally:
            found = self._end(running.values())
        return found

    def _end(self, running: Iterable[PieceStream]) -> Answers:
        for stream in running:
            stream.close()
        responses = tuple(stream.result for stream in self._streams if stream.result is not None)
        ended = [one for one in responses if one.finish_reason == "stop"]
        winner = max(ended, key=lambda one: self._votes[normalized(one.text)], default=None)  # of equals the first
        self.result = Answers(responses, dict(self._votes), winner)
        return self.result


def read_together(streams: Sequence[PieceStream]) -> list[Response]:
    """The responses of all streams, read in turn so that they are decoded together. An error ends them all."""
    return list(AnswersStream(streams).drain().responses)


def _decided(votes: Counter[str], n_running: int) -> bool:
    leaders = votes.most_common(2)
    return bool(leaders) and leaders[0][1] > (leaders[1][1] if len(leaders) > 1 else 0) + n_running
