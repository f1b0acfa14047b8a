"""The choice of the next token: the core's sampler, before it what a request changes in the logits, beside it the log
probabilities that a request asks for.

Log probabilities are of the raw logits. A request that changes nothing and asks for none never sees the logits: the
core samples where they are.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

from ..errors import BadRequest
from ..types import TokenLogprob
from .sampling import FORBIDDING_BIAS, SamplingParams, make_sampler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .._core import Sampler, Session
    from .grammar import GrammarMatcher


class TokenChooser:
    """Chooses the tokens of one answer. stop_ids: the tokens that may not come before min_tokens others.
    grammar: what they have to follow.

    logprob: of the token chosen last, None when the request asked for none. masked: see scheduler.job.Chooser.
    """

    def __init__(
        self, params: SamplingParams, stop_ids: Collection[int] = (), grammar: GrammarMatcher | None = None
    ) -> None:
        self.logprob: TokenLogprob | None = None
        self.masked: tuple[float, float] | None = None
        self._params = params
        self._grammar = grammar
        self._adjusts = params.adjusts_logits or grammar is not None
        self._stop_ids = list(stop_ids)
        self._sampler = make_sampler(params)
        self._counts: Counter[int] = Counter()
        self._n_chosen = 0
        self._drawn: list[int] = []

    @property
    def core_sampler(self) -> Sampler | None:
        """The sampler that the core may use itself; None where the logits are looked at or changed."""
        return None if self._params.logprobs is not None or self._adjusts else self._sampler

    def choose(self, session: Session) -> int:
        """The next token by the logits of the session's last position. Called again after an interrupt it chooses the
        same one."""
        logits = session.logits
        if not self._drawn:
            adjusted = self._adjusted(logits) if self._adjusts else logits
            self._drawn.extend(map(self._sampler.sample, (adjusted,)))
        token = self._drawn[0]
        self._sampler.accept(token)
        self._take(logits, token)
        return token

    def force(self, session: Session, token: int) -> int:
        """Takes `token` as if it had been chosen."""
        self.masked = None
        self._sampler.accept(token)
        self._take(session.logits if self._params.logprobs is not None else None, token)
        return token

    def _take(self, logits: NDArray[np.float32] | None, token: int) -> None:
        self._counts[token] += 1
        self._n_chosen += 1
        if self._grammar is not None and token not in self._stop_ids:
            self._grammar.consume(token)
        if logits is not None and self._params.logprobs is not None:
            self.logprob = token_logprob(logits, token, self._params.logprobs)
        self._drawn.clear()

    def _adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        params = self._params
        adjusted = logits.copy()
        for token, bias in params.logit_bias:
            if bias <= FORBIDDING_BIAS:
                adjusted[token] = -np.inf
            else:
                adjusted[token] += np.float32(bias)
        if params.frequency_penalty or params.presence_penalty:
            for token, count in self._counts.items():
                adjusted[token] -= np.float32(count * params.frequency_penalty + params.presence_penalty)
        if self._n_chosen < params.min_tokens:
            adjusted[self._stop_ids] = -np.inf
        if self._grammar is not None:
            began = time.perf_counter()
            adjusted[~self._grammar.allowed()] = -np.inf
            self.masked = began, time.perf_counter()
        if not np.isfinite(adjusted).any():
            raise BadRequest("logit_bias: every token that may come next is forbidden", "request.logit_bias")
        return adjusted


def token_logprob(logits: NDArray[np.float32], token: int, n_top: int) -> TokenLogprob:
    """The log-softmax, summed in double, at one token and at the n_top most likely ones. logits: float32 [n_vocab]."""
    import numpy as np

    peak = float(logits.max())
    log_total = peak + float(np.log(np.exp(logits.astype(np.float64) - peak).sum()))

    def value(index: int) -> float:
        return float(np.float32(float(logits[index]) - log_total))

    top: list[int] = []
    if n_top:
        least = np.partition(logits, len(logits) - n_top)[len(logits) - n_top] if n_top < len(logits) else -np.inf
        candidates = np.flatnonzero(logits >= least)
        order = np.lexsort((candidates, -logits[candidates]))
        top = [int(index) for index in candidates[order][:n_top]]
    return TokenLogprob(token, value(token), tuple((index, value(index)) for index in top))
