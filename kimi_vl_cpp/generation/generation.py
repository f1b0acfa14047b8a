"""From a checked request to a stream of pieces: pictures, prefill, the token loop, and the end.

Owns the order of events, cancelling, the split into thinking and answer, stop strings, counts and times. Does not know
how prompts are spelled or which timeline a request gets: the model hands both in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import BadRequest, Cancelled
from ..text.thinking import ThinkingSplitter
from ..types import FinishReason, Piece, PieceKind, Progress, Reasoning, Response, Timings, Usage
from .loaded import LoadedModel
from .sampling import SamplingParams, make_sampler
from .sequence import Key, Picture, Timeline, n_positions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .._core import Sampler

_T = TypeVar("_T")


@dataclass
class Job:
    """A request that has passed every check and fits into the context.

    keys: the prompt as tokens and pictures. expanded: bool [n_prompt], the form of each position. pixels: digest ->
    uint8 [H, W, 3] of each picture. max_new_tokens: already limited by the context. prepare_s: what it took to get
    here.
    """

    keys: list[Key]
    expanded: NDArray[np.bool_]
    pixels: dict[str, NDArray[np.uint8]]
    params: SamplingParams
    max_new_tokens: int
    notices: list[str] = field(default_factory=list)
    prepare_s: float = 0.0
    stop_ids: frozenset[int] = frozenset()
    reasoning: Reasoning = "maybe"

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

    def run(self) -> Generator[Piece, None, Response]:
        """The pieces. Ends with the response; on an error or Ctrl-C what was computed stays reusable."""
        self._started = time.perf_counter()
        with self._lease() as timeline:
            try:
                try:
                    sampler, token = self._first_token(timeline)
                    yield from self._loop(timeline, sampler, token)
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
        )

    @property
    def stop_string(self) -> str | None:
        """The stop string met, or None."""
        return self._splitter.hit

    # The stages

    def _first_token(self, timeline: Timeline) -> tuple[Sampler, int]:
        sampler = make_sampler(self.job.params)
        self._n_cached = self.host.gate.call(timeline.begin, self.job.keys, self.job.expanded)
        embeddings = self._encode(timeline.pending_pictures())

        def prefill() -> int:
            timeline.prefill(lambda picture: embeddings[picture.digest], self._tick("prefill"))
            return timeline.session.sample(sampler)

        token, self._prefill_s = self._timed(prefill)
        self._first_token_s = self.job.prepare_s + time.perf_counter() - self._started
        return sampler, token

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

    def _loop(self, timeline: Timeline, sampler: Sampler, token: int) -> Generator[Piece, None, None]:
        def next_token(previous: int) -> int:
            timeline.decode(previous)
            return timeline.session.sample(sampler)

        while True:
            if token in self.job.stop_ids:
                self.finish = "stop"
                return
            self._ids.append(token)
            yield from self._pieces(self._decoder.push(token))
            if self.stop_string is not None:
                self.finish = "stop"
                return
            if len(self._ids) >= self.job.max_new_tokens:
                self.finish = "length"
                return
            if self.cancelled:
                return
            token, seconds = self._timed(next_token, token)
            self._decode_s += seconds

    def _pieces(self, text: str) -> Generator[Piece, None, None]:
        if text:
            yield from self._given_out(self._splitter.push(text))

    def _given_out(self, pieces: list[tuple[PieceKind, str]]) -> Generator[Piece, None, None]:
        for kind, text in pieces:
            (self._thinking if kind == "thinking" else self._text).append(text)
            yield Piece(text, kind)

    def _rest(self) -> Generator[Piece, None, None]:
        """What decoder and splitter still hold back when the tokens have ended."""
        yield from self._pieces(self._decoder.flush())
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
