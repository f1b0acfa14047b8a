"""From the tokens of an answer to a stream of pieces.

Owns the text of an answer: the split into thinking and answer, stop strings, counts, and what is forced to come next.
Does not know how prompts are written; when anything is computed is the conductor's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..cache.keys import Positions
from ..errors import BadRequest, Cancelled
from ..scheduler.job import MAX_AHEAD, Job, JobSpec
from ..text.thinking import ThinkingSplitter
from ..types import FinishReason, Piece, PieceKind, Progress, Reasoning, Response, Timings, TokenLogprob, Usage
from .adapters import LoadedAdapter, index_of
from .budget import ThinkingBudget, reasoning_budget
from .choosing import TokenChooser, token_logprob
from .grammar import GrammarMatcher
from .loaded import LoadedModel
from .loop_guard import IN_ANSWER, IN_REASONING, LoopGuard
from .sampling import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..media.processor import ProcessedImage


@dataclass
class Request:
    """A request that has passed every check and fits into the context.

    positions: of the prompt. pixels: digest -> what returns the picture's uint8 [H, W, 3]. seen: the pictures, for a
    caller that keeps them. max_new_tokens: already limited by the context. prepare_s: what it took to get here. begun:
    the beginning of the reply that the prompt holds already. grammar: what the reply has to follow, at its beginning.
    n_dropped: positions of turns that were left out. adapter: what is added to the weights for it.
    """

    positions: Positions
    params: SamplingParams
    max_new_tokens: int
    pixels: Mapping[str, Callable[[], NDArray[np.uint8]]] = field(default_factory=dict)
    seen: list[ProcessedImage] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    prepare_s: float = 0.0
    stop_ids: frozenset[int] = frozenset()
    reasoning: Reasoning = "maybe"
    begun: str = ""
    grammar: GrammarMatcher | None = None
    n_dropped: int = 0
    adapter: LoadedAdapter | None = None

    @property
    def n_prompt(self) -> int:
        """Positions of the prompt."""
        return len(self.positions)

    @property
    def n_image(self) -> int:
        """Positions of the prompt that are pictures."""
        return sum(picture.n_tokens for _, picture in self.positions.pictures)

    def again(self, seed: int) -> Request:
        """The same request with another seed: nothing of it is checked or written again."""
        return replace(self, params=replace(self.params, seed=seed), notices=list(self.notices))


class Generation:
    """One request under way. `run()` is the generator of its pieces; `response()` what is there so far."""

    def __init__(
        self,
        host: LoadedModel,
        request: Request,
        progress: Progress | None = None,
        on_end: Callable[[Response], None] | None = None,
        hold: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """hold: entered from the first piece to the end. on_end: called with the response at the end."""
        self.host = host
        self.request = request
        self.finish: FinishReason = "cancelled"
        self._hold = hold
        self._progress = progress
        self._on_end = on_end
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._ids: list[int] = []
        self._first_token_s = 0.0
        self._started = 0.0
        params = request.params
        self._decoder = host.tokenizer.stream()
        self._splitter = ThinkingSplitter(request.reasoning, params.stop)
        self._splitter.skip(request.begun)
        limit = reasoning_budget(params, request.max_new_tokens)
        self._budget = ThinkingBudget(host.tokenizer, limit, params.thinking_close, inside=self._splitter.thinking)
        self._guard = LoopGuard() if params.loop_guard and not params.ignore_eos else None
        self._n_forced = 0  # tokens that were decided on and have not come
        self._stop_reason: str | None = None
        self._end_logprob: TokenLogprob | None = None
        self._n_reasoning = 0
        self._n_given = 0  # tokens that pieces have carried
        self._pending: list[TokenLogprob] = []  # of the answer, not carried by a piece yet
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob | None] = [] if params.prompt_logprobs is None else [None]
        self._grammar = None if request.grammar is None else request.grammar.copy()
        decides = limit is not None or self._guard is not None or self._grammar is not None  # after each token
        spec = JobSpec(
            chooser=TokenChooser(params, request.stop_ids, self._grammar),
            stop_ids=request.stop_ids,
            max_new_tokens=request.max_new_tokens,
            max_ahead=1 if decides else MAX_AHEAD,
            pixels=request.pixels,
            reports=progress is not None,
            prompt_rows=None if params.prompt_logprobs is None else self._note_prompt,
            cache=params.cache,
            priority=params.priority,
            adapter=index_of(request.adapter),
        )
        self._job = Job(request.positions.copy(), spec)

    def again(self, seed: int, progress: Progress | None = None) -> Generation:
        """Another answer to the same prompt, in no conversation."""
        return Generation(self.host, self.request.again(seed), progress or self.host.progress)

    def cancel(self) -> None:
        """Ends the answer at its next token, whatever is being computed. From any thread, also before it has begun."""
        self.host.conductor.cancel(self._job)

    def begin(self) -> None:
        """Puts the request into the queue, once; nothing of it is computed before somebody waits."""
        if not self._started:
            self.host.conductor.submit(self._job)
            self._started = time.perf_counter()

    def run(self) -> Generator[Piece, None, Response]:
        """The pieces. Ends with the response; on an error or Ctrl-C what was computed stays reusable."""
        with self._hold():
            try:
                try:
                    self.begin()
                    yield from self._loop()
                    yield from self._rest()
                finally:
                    self.host.conductor.leave(self._job)
            except BadRequest as error:
                if error.code == "engine.closed":
                    raise Cancelled("the model was closed while this call was running", "engine.closed") from None
                raise
            finally:
                if self._on_end is not None:
                    self._on_end(self.response())
        return self.response()

    def response(self) -> Response:
        """The answer so far; final once `run()` has ended, and "cancelled" if it was ended from outside."""
        job, request = self._job, self.request
        n_cached = job.n_cached or 0
        n_new = request.n_prompt - n_cached
        n_decoded = max(len(self._ids) - 1, 0)
        return Response(
            text="".join(self._text),
            thinking="".join(self._thinking),
            usage=Usage(
                prompt_tokens=request.n_prompt,
                completion_tokens=len(self._ids),
                image_tokens=request.n_image,
                cached_tokens=n_cached,
                reasoning_tokens=self._n_reasoning,
                drafted_tokens=job.n_drafted,
                accepted_tokens=job.n_accepted,
                dropped_tokens=request.n_dropped,
                restored_tokens=min(job.n_restored, n_cached),
            ),
            timings=Timings(
                load_s=self.host.load_s,
                encode_s=job.encode_s,
                restore_s=job.restore_s,
                prefill_s=job.prefill_s,
                decode_s=job.decode_s,
                first_token_s=self._first_token_s,
                prefill_tps=n_new / job.prefill_s if job.prefill_s > 0 else 0.0,
                decode_tps=n_decoded / job.decode_s if job.decode_s > 0 else 0.0,
            ),
            finish_reason=self.finish,
            notices=list(request.notices),
            token_ids=tuple(self._ids),
            seed=request.params.seed,
            stop_string=self.stop_string,
            logprobs=tuple(self._logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs),
            stop_reason=self._stop_reason,
            end_logprob=self._end_logprob,
            thinking_closed_by=self._closed_by(),
        )

    def _closed_by(self) -> str | None:
        """See Response.thinking_closed_by."""
        if self._splitter.after:
            return self._budget.closed_by or "model"
        return "never" if self._splitter.thinking else None

    @property
    def seconds_left(self) -> float | None:
        """See `PieceStream.seconds_left`."""
        return self.host.conductor.seconds_left(self._job)

    def end_thinking(self) -> None:
        """Ends the reasoning at the next token, from any thread; the answer follows."""
        self._budget.end("asked")

    @property
    def thinking_closed_by(self) -> str | None:
        """What ended the reasoning before the model did: "budget", "asked", "repetition", or None."""
        return self._budget.closed_by

    @property
    def stop_string(self) -> str | None:
        """The stop string met, or None."""
        return self._splitter.hit

    # The stages

    def _note_prompt(self, start: int, logits: NDArray[np.float32]) -> None:
        """The log probabilities of the prompt's tokens after the positions of these rows."""
        n_top = self.request.params.prompt_logprobs or 0
        del self._prompt_logprobs[start + 1 :]  # a prompt that lost its memory begins again
        for row, token in zip(logits, self.request.positions.tokens(start + 1), strict=False):
            self._prompt_logprobs.append(token_logprob(row, token, n_top))

    def _loop(self) -> Generator[Piece, None, None]:
        conductor, job = self.host.conductor, self._job
        while (token := conductor.next_token(job, self._progress)) is not None:
            if not self._ids:
                self._first_token_s = self.request.prepare_s + time.perf_counter() - self._started
            self._ids.append(token)
            pieces = list(self._token_pieces(token))
            ended = self._ended(token)
            if not ended:
                conductor.done_with(job)
            yield from pieces
            if ended:
                return
        if not job.cancelled:
            self.finish, self._end_logprob = job.end if job.end == "length" else "stop", job.end_note

    def _ended(self, token: int) -> bool:
        """Whether the reply ends behind this token. Decides too what is forced to come next."""
        grammar = self._grammar
        if self.stop_string is not None or (grammar is not None and grammar.complete):
            self.finish = "stop"
        elif len(self._ids) >= self.request.max_new_tokens:
            self.finish = "length"
        elif self._guard is not None and self._repeats(self._guard, token):
            self.finish, self._stop_reason = "length", "repetition"
        else:
            self._force()
            return False
        return True

    def _force(self) -> None:
        """Has the conductor take the tokens that must come next instead of choosing."""
        if self._n_forced:
            self._n_forced -= 1
        if not self._n_forced and (forced := self._budget.forced(self._splitter, self._decoder)):
            self._n_forced = len(forced)
            self.host.conductor.force(self._job, forced)

    def _repeats(self, guard: LoopGuard, token: int) -> bool:
        """Whether the answer repeats itself. A reasoning that does is closed."""
        guard.push(token)
        if self._splitter.thinking:
            if guard.repeats(*IN_REASONING):
                self._budget.end("repetition")
            return False
        return guard.repeats(*IN_ANSWER)

    def _token_pieces(self, token: int) -> Generator[Piece, None, None]:
        """The pieces that a token completes; keeps the count of the reasoning and the answer's log probabilities."""
        splitter, was_after = self._splitter, self._splitter.after
        text = self._decoder.push(token)
        pieces = splitter.push(text) if text else []
        if splitter.thinking or (splitter.after and not was_after):
            self._n_reasoning = len(self._ids)
            self._pending.clear()
        logprob = self._job.notes.pop(len(self._ids) - 1, None)
        if logprob is not None and splitter.answering:
            self._pending.append(logprob)
        yield from self._given_out(pieces)

    def _given_out(self, pieces: list[tuple[PieceKind, str]]) -> Generator[Piece, None, None]:
        for kind, text in pieces:
            (self._thinking if kind == "thinking" else self._text).append(text)
            logprobs: tuple[TokenLogprob, ...] = ()
            if kind == "text" and self._pending:
                logprobs = tuple(self._pending)
                self._logprobs += self._pending
                self._pending.clear()
            ids = tuple(self._ids[self._n_given :])
            self._n_given = len(self._ids)
            yield Piece(text, kind, ids, logprobs)

    def _rest(self) -> Generator[Piece, None, None]:
        """What decoder and splitter still hold back when the tokens have ended."""
        text = self._decoder.flush()
        yield from self._given_out(self._splitter.push(text) if text else [])
        yield from self._given_out(self._splitter.flush())
        if self.stop_string is not None and self.finish == "length":
            self.finish = "stop"


def encode_cached(
    host: LoadedModel,
    digest: str,
    pixels: NDArray[np.uint8],
    tick: Callable[[int, int], None] | None,
    adapter: LoadedAdapter | None = None,
) -> NDArray[np.float32]:
    """A picture through tower and projector, or from the cache if another request has just put it there.

    pixels: uint8 [H, W, 3] -> float32 [H/28 * W/28, hidden_size], read-only. To be called inside the gate.
    """
    cached = host.image_cache.find(digest)
    if cached is not None:
        return cached
    embedding = host.engine.encode_image(pixels, tick, index_of(adapter))
    host.image_cache.put(digest, embedding)
    return embedding
