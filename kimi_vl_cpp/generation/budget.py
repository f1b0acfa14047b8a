"""How long the reasoning of an answer may be, and how it is ended when it is longer: by forced tokens.

Knows no sampler and no session: it is given each token and answers with the tokens that must come next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..text.thinking import CLOSING
from .sampling import SamplingParams

if TYPE_CHECKING:
    from ..text.thinking import ThinkingSplitter
    from ..text.tokenizer import StreamDecoder, Tokenizer

_LEAST_RESERVE = 16
_MOST_RESERVE = 1024


def reasoning_budget(params: SamplingParams, max_new_tokens: int) -> int | None:
    """The tokens that the reasoning may take: what the caller says, else those of the answer less its reserve. None: no
    limit."""
    if params.thinking_budget is not None:
        return params.thinking_budget
    return max(0, max_new_tokens - params.answer_reserve) if params.answer_reserve else None


def default_reserve(max_new_tokens: int) -> int:
    """The tokens to keep for the answer where a caller limits both together."""
    return max(_LEAST_RESERVE, min(_MOST_RESERVE, max_new_tokens // 4))


class ThinkingBudget:
    """Counts the tokens of one reasoning. limit: how many it may have, None for no limit. close: text that goes before
    the closing mark of a reasoning that is cut. inside: the reasoning was opened before the reply."""

    def __init__(self, tokenizer: Tokenizer, limit: int | None, close: str = "", inside: bool = False) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self._close = close
        self._count = 0
        self._inside = inside
        self._done = False
        self.closed_by: str | None = None

    def end(self, reason: str) -> None:
        """Ends the reasoning, or the one that is still to begin, at its next token. reason: for `closed_by`."""
        self._limit = 0
        self.closed_by = self.closed_by or reason

    def forced(self, splitter: ThinkingSplitter, decoder: StreamDecoder) -> list[int]:
        """To be called after every token that was not forced: the tokens that have to follow it, mostly none."""
        if self._done or not splitter.thinking:
            self._done = self._done or self._inside
            return []
        if self._inside:
            self._count += 1
        self._inside = True
        if self._limit is None or self._count < self._limit or decoder.incomplete:
            return []
        self._done = True
        self.closed_by = self.closed_by or "budget"
        begun = splitter.begun_mark  # the model has begun to close by itself: that is continued
        return self._tokenizer.encode(CLOSING[len(begun) :] if begun else self._close + CLOSING)
