"""Drafts of an answer's next tokens: what followed the same tokens earlier, in the prompt or in the answer.

A draft costs rows of a step and is never believed: the core samples after each of its tokens as it would have without
it, and the first one that differs ends it. So drafts change when tokens come, not which. Owns what is proposed and how
much of it is worth its rows. Knows no session and no sampler.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..cache.keys import Positions

MAX_DRAFT = 7
MAX_ANSWERS = 4
"""Answers under way beside which nothing is drafted: their own rows fill a step."""

_MATCH = 4  # tokens that must have come before in the same order
_LEARNING = 1 / 8  # weight of the newest observation in a mean
_LEAST_GAIN = 1.05
_NO_TOKEN = -1  # stands for a position of a picture


class Drafter:
    """The past of one sequence. `hit_rate`: how often the token that the past suggested was the one that came, whether
    or not it was drafted: finding out that drafts would fail costs nothing."""

    def __init__(self) -> None:
        self.hit_rate = 0.0
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # _MATCH tokens -> where they were followed last
        self._source: int | None = None  # where what comes next is suggested

    def follow(self, positions: Positions) -> None:
        """Takes in the positions that have come since the last call."""
        self._extend(positions.tokens(len(self._ids)))

    def draft(self, n: int, stop_ids: Collection[int] = ()) -> list[int]:
        """Up to n tokens that may come next, none of them one that ends the answer."""
        found: list[int] = []
        if self._source is None:
            return found
        n_held = len(self._ids)
        for at in range(self._source, self._source + n):
            token = self._ids[at] if at < n_held else found[at - n_held]
            if token == _NO_TOKEN or token in stop_ids:
                break
            found.append(token)
        return found

    def _extend(self, tokens: Iterable[int]) -> None:
        ids = self._ids
        for token in tokens:
            if self._source is not None:
                hit = ids[self._source] == token
                self.hit_rate += (hit - self.hit_rate) * _LEARNING
                self._source = self._source + 1 if hit else None
            if len(ids) >= _MATCH:
                self._after[tuple(ids[-_MATCH:])] = len(ids)
            ids.append(token)
            if self._source is None and token != _NO_TOKEN:
                self._source = self._after.get(tuple(ids[-_MATCH:]))


class DraftLength:
    """How many drafts are worth their rows, by what rows have cost lately."""

    def __init__(self) -> None:
        self._single_s = 0.0  # of a step of one row
        self._row_cost = 0.36  # of each further row, as a share of that: the full model's on two cores

    def note(self, n_rows: int, seconds: float) -> None:
        """A step took so long."""
        if n_rows == 1:
            self._single_s += (seconds - self._single_s) * (_LEARNING if self._single_s else 1)
        elif self._single_s > 0:
            seen = (seconds / self._single_s - 1) / (n_rows - 1)
            self._row_cost += (min(max(seen, 0.05), 1.5) - self._row_cost) * _LEARNING

    def best(self, hit_rate: float, n_rows: int, n_most: int) -> int:
        """How many drafts, n_most at most, gain most in a step that has n_rows rows without them."""
        best, tokens = 0, 1.0  # the tokens that the answer gets from the step
        best_gain = _LEAST_GAIN * n_rows / self._cost(n_rows)
        for n in range(1, n_most + 1):
            tokens += hit_rate**n
            gain = (n_rows - 1 + tokens) / self._cost(n_rows + n)
            if gain > best_gain:
                best, best_gain = n, gain
        return best

    def _cost(self, n_rows: int) -> float:
        return 1 + self._row_cost * (n_rows - 1)
