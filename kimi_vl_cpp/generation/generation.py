"""From a checked request to a stream of pieces: pictures, prefill, the token loop, and the end.

Owns the order of events, cancelling, the split into thinking and answer, stop strings, counts and times. Does not know
how prompts are spelled or which timeline a request gets: the model hands both in.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import BadRequest, Cancelled
from ..text.thinking import ThinkingSplitter
from ..types import FinishReason, Piece, PieceKind, Progress, Reasoning, Response, Timings, TokenLogprob, Usage
from .budget import ThinkingBudget, reasoning_budget
from .choosing import TokenChooser, token_logprob
from .grammar import GrammarMatcher
from .loaded import LoadedModel
from .loop_guard import IN_ANSWER, IN_REASONING, LoopGuard
from .sampling import SamplingParams
from .sequence import Key, Picture, Timeline, n_positions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_T = TypeVar("_T")


@dataclass
class Job:
    """A request that has passed every check and fits into the context.

    keys: the prompt as tokens and pictures. expanded: bool [n_prompt], the form of each position. pixels: digest ->
    uint8 [H, W, 3] of each picture. max_new_tokens: already limited by the context. prepare_s: what it took to get
    here. begun: the beginning of the reply that the prompt holds already. grammar: what the reply has to follow.
    """

    keys: list[Key]
    expanded: NDArray[np.bool_]
    params: SamplingParams
    max_new_tokens: int
    pixels: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    prepare_s: float = 0.0
    stop_ids: frozenset[int] = frozenset()
    reasoning: Reasoning = "maybe"
    begun: str = ""
    grammar: GrammarMatcher | None = None

    @property
    def n_prompt(self) -> int:
        """Positions of the prompt."""
        return n_positions(self.keys)

    @property
    def n_image(self) -> int:
        """Positions of the prompt that are pictures."""
        return sum(key.n_tokens for key in self.keys if isinstance(key, Picture))


class Generation:
    """One request under way. `run()` is the generator of its pieces; `response()` what is there so far."""

    def __init__(
        self,
        host: LoadedModel,
        job: Job,
        lease: Callable[[], AbstractContextManager[Timeline]],
        progress: Progress | None = None,
        on_end: Callable[[Response], None] | None = None,
    ) -> None:
        self.host = host
        self.job = job
        self.cancelled = False
        self.finish: FinishReason = "cancelled"
        self._lease = lease
        self._progress = progress
        self._on_end = on_end
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._ids: list[int] = []
        self._n_cached = 0
        self._encode_s = self._prefill_s = self._decode_s = self._first_token_s = 0.0
        self._started = 0.0
        self._decoder = host.tokenizer.stream()
        self._splitter = ThinkingSplitter(job.reasoning, job.params.stop)
        self._splitter.skip(job.begun)
        self._chooser = TokenChooser(job.params, job.stop_ids, job.grammar)
        limit = reasoning_budget(job.params, job.max_new_tokens)
        self._budget = ThinkingBudget(host.tokenizer, limit, job.params.thinking_close, inside=self._splitter.thinking)
        self._guard = LoopGuard() if job.params.loop_guard and not job.params.ignore_eos else None
        self._forced: deque[int] = deque()
        self._stop_reason: str | None = None
        self._end_logprob: TokenLogprob | None = None
        self._n_reasoning = 0
        self._n_given = 0  # tokens that pieces have carried
        self._pending: list[TokenLogprob] = []  # of the answer, not carried by a piece yet
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob | None] = []

    def run(self) -> Generator[Piece, None, Response]:
        """The pieces. Ends with the response; on an error or Ctrl-C what was computed stays reusable."""
        self._started = time.perf_counter()
        with self._lease() as timeline:
            try:
                try:
                    self._compute_prompt(timeline)
                    yield from self._loop(timeline)
                except Cancelled:
                    if not self.cancelled:
                        raise
                yield from self._rest()
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
        n_new = self.job.n_prompt - self._n_cached
        n_decoded = max(len(self._ids) - 1, 0)
        return Response(
            text="".join(self._text),
            thinking="".join(self._thinking),
            usage=Usage(
                prompt_tokens=self.job.n_prompt,
                completion_tokens=len(self._ids),
                image_tokens=self.job.n_image,
                cached_tokens=self._n_cached,
                reasoning_tokens=self._n_reasoning,
            ),
            timings=Timings(
                load_s=self.host.load_s,
                encode_s=self._encode_s,
                prefill_s=self._prefill_s,
                decode_s=self._decode_s,
                first_token_s=self._first_token_s,
                prefill_tps=n_new / self._prefill_s if self._prefill_s > 0 else 0.0,
                decode_tps=n_decoded / self._decode_s if self._decode_s > 0 else 0.0,
            ),
            finish_reason=self.finish,
            notices=list(self.job.notices),
            token_ids=tuple(self._ids),
            seed=self.job.params.seed,
            stop_string=self.stop_string,
            logprobs=tuple(self._logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs),
            stop_reason=self._stop_reason,
            end_logprob=self._end_logprob,
        )

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

    def _compute_prompt(self, timeline: Timeline) -> None:
        job, rows = self.job, None
        if job.params.prompt_logprobs is not None:
            self._prompt_logprobs, rows = [None], self._note_prompt
        self._n_cached = self.host.gate.call(timeline.begin, job.keys, job.expanded, rows is None)
        embeddings = self._encode(timeline.pending_pictures())

        def prefill() -> None:
            timeline.prefill(lambda picture: embeddings[picture.digest], self._tick("prefill"), rows)

        _, self._prefill_s = self._timed(prefill)

    def _note_prompt(self, start: int, logits: NDArray[np.float32]) -> None:
        """The log probabilities of the prompt's tokens after the positions of these rows."""
        n_top = self.job.params.prompt_logprobs or 0
        for row, key in zip(logits, self.job.keys[start + 1 :], strict=False):
            assert isinstance(key, int)
            self._prompt_logprobs.append(token_logprob(row, key, n_top))

    def _encode(self, pictures: Sequence[Picture]) -> dict[str, NDArray[np.float32]]:
        """digest -> embeddings, each picture once."""
        host = self.host
        found: dict[str, NDArray[np.float32]] = {}
        for picture in pictures:
            if picture.digest not in found:
                cached = host.image_cache.get(picture.digest)
                if cached is not None:
                    found[picture.digest] = cached
        missing = [digest for digest in dict.fromkeys(p.digest for p in pictures) if digest not in found]
        for index, digest in enumerate(missing):
            tick = self._tick("encode", index, len(missing))
            embedding, seconds = self._timed(encode_cached, host, digest, self.job.pixels[digest], tick)
            self._encode_s += seconds
            found[digest] = embedding
        return found

    def _loop(self, timeline: Timeline) -> Generator[Piece, None, None]:
        def choose(previous: int | None) -> int:
            if previous is not None:
                timeline.decode(previous)
            if self._forced:
                return self._chooser.force(timeline.session, self._forced.popleft())
            return self._chooser.choose(timeline.session)

        if self.job.max_new_tokens == 0:
            self.finish = "length"
            return
        token, seconds = self._timed(choose, None)
        self._prefill_s += seconds
        self._first_token_s = self.job.prepare_s + time.perf_counter() - self._started
        while True:
            if token in self.job.stop_ids:
                self.finish, self._end_logprob = "stop", self._chooser.logprob
                return
            self._ids.append(token)
            yield from self._token_pieces(token)
            if self._ended(token):
                return
            token, seconds = self._timed(choose, token)
            self._decode_s += seconds

    def _ended(self, token: int) -> bool:
        """Whether the reply ends behind this token. Decides too what is forced to come next."""
        grammar = self.job.grammar
        if self.stop_string is not None or (grammar is not None and grammar.complete):
            self.finish = "stop"
        elif len(self._ids) >= self.job.max_new_tokens:
            self.finish = "length"
        elif self._guard is not None and self._repeats(self._guard, token):
            self.finish, self._stop_reason = "length", "repetition"
        elif not self.cancelled:
            if not self._forced:
                self._forced.extend(self._budget.forced(self._splitter, self._decoder))
            return False
        return True

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
        if self._chooser.logprob is not None and splitter.answering:
            self._pending.append(self._chooser.logprob)
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

    # Turns, time and cancelling

    def _timed(self, function: Callable[..., _T], *args: Any) -> tuple[_T, float]:
        """The result of a core call and the seconds that it took, waiting for the turn not counted."""

        def inside() -> tuple[_T, float]:
            if self.cancelled:
                raise Cancelled("the request was cancelled", "request.cancelled")
            start = time.perf_counter()
            result = function(*args)
            return result, time.perf_counter() - start

        return self.host.gate.call(inside)

    def _tick(self, stage: str, index: int = 0, count: int = 1) -> Callable[[int, int], None]:
        """The core's progress callback for part `index` of `count` of a stage; cancels when somebody asked for it."""

        def tick(done: int, total: int) -> None:
            if self.cancelled:
                raise Cancelled("the request was cancelled", "request.cancelled")
            self.host.gate.check_running()
            if self._progress is not None:
                self._progress(stage, index * total + done, count * total)

        return tick


def encode_cached(
    host: LoadedModel, digest: str, pixels: NDArray[np.uint8], tick: Callable[[int, int], None] | None
) -> NDArray[np.float32]:
    """A picture through tower and projector, or from the cache if another request has just put it there.

    pixels: uint8 [H, W, 3] -> float32 [H/28 * W/28, hidden_size], read-only. To be called inside the gate.
    """
    cached = host.image_cache.get(digest)
    if cached is not None:
        return cached
    embedding = host.engine.encode_image(pixels, tick)
    host.image_cache.put(digest, embedding)
    return embedding
