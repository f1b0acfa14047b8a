"""The long work of one job, a layer at a time: the pictures of a chunk of its prompt, the chunk, and so on to the end.

Owns which task a job needs next and what its end means. A job holds the rows of the pictures in one chunk at a time, so
its memory does not grow with their number. Does not choose between jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from .._core import PAGE_POSITIONS
from ..cache.keys import Picture
from .holding import n_pages
from .job import Job
from .resources import Resources
from .speeds import Speeds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MAX_LAYER_S = 0.4
"""Chunks of a prompt are cut so that one layer takes no longer: nobody is to be silent for more."""

_LARGEST_CHUNK = 2048  # rows: each chunk unpacks all weights once more


class Tasks:
    """Prompt and picture tasks of one engine."""

    def __init__(self, resources: Resources) -> None:
        self.speeds = Speeds()
        engine = self._engine = resources.engine
        self._features = resources.features
        self._clock = resources.clock
        self._n_layers = max(int(engine.config.get("num_hidden_layers") or 1), 1)
        self._n_blocks = int(engine.config.get("vision_layers") or 0) + 2  # patches and projector too
        self._row_s = 0.0  # seconds of one row in one layer, as last measured
        self._encoding: dict[str, Job] = {}  # digest -> who encodes it

    def begin(self, job: Job) -> None:
        """Cuts the job's first chunk."""
        assert job.holding is not None
        job.first_row = job.holding.n_past
        job.n_pictures = self.n_to_encode(job, job.first_row)
        job.n_encoded = 0
        self._cut_chunk(job)

    def ready(self, job: Job) -> bool:
        """Whether the job's next piece can begin: false while another job encodes the picture that it needs."""
        return not job.missing or self._encoding.get(job.missing[0], job) is job

    def n_pages_of_next(self, job: Job) -> int:
        """Pages that the job takes when its next task begins; 0 while one is under way."""
        if job.task is not None or job.missing or job.holding is None:
            return 0
        n_past = job.holding.n_past
        shared = job.holding.shares_last_page
        return n_pages(job.chunk.stop) - n_pages(n_past) + shared

    def advance(self, job: Job) -> bool:
        """One layer or block. True when the prompt is done, and the logits of its last position are there."""
        started = self._clock()
        if job.missing:
            self._advance_picture(job, job.missing[0])
            job.encode_s += self._clock() - started
            return False
        done = self._advance_prompt(job)
        job.prefill_s += self._clock() - started
        return done

    def seconds_left(self, job: Job, first: int, n_pictures: int) -> float | None:
        """About how long the job's prompt takes from position `first` on, n_pictures of the rest to be encoded. None
        while nothing is known."""
        pictures = self._pictures(job, first)
        n_rows = sum(picture.n_tokens for picture in pictures) / max(len(pictures), 1)
        return self.speeds.seconds(first, job.n_prompt, n_rows * n_pictures)

    def n_to_encode(self, job: Job, first: int) -> int:
        """Pictures from position `first` on that are not kept."""
        return sum(not self._features.holds(picture.digest) for picture in self._pictures(job, first))

    @staticmethod
    def _pictures(job: Job, first: int) -> list[Picture]:
        return job.positions.pictures_in(first, len(job.positions))

    def drop(self, job: Job) -> None:
        """Ends what is under way and forgets the rows of pictures."""
        task, job.task = job.task, None
        job.features.clear()
        for digest in [digest for digest, owner in self._encoding.items() if owner is job]:
            del self._encoding[digest]
        if task is not None and hasattr(task, "cancel"):
            task.cancel()

    # Pictures

    def _advance_picture(self, job: Job, digest: str) -> None:
        if job.task is None:
            known = self._features.get(digest)
            if known is not None:  # another job has just encoded it
                job.features[digest] = known
                job.missing.popleft()
                job.n_encoded += 1
                return
            self._encoding[digest] = job
            job.n_layers_done = 0
            job.task = self._engine.begin_image(job.spec.pixels[digest](), job.spec.adapter)
        started = self._clock()
        done = job.task.advance(1)
        n_rows = next(one.n_tokens for one in self._pictures(job, job.chunk.start) if one.digest == digest)
        self.speeds.note_picture(n_rows, (self._clock() - started) * self._n_blocks)
        job.n_layers_done += 1
        if done:
            job.features[digest] = job.task.result
            self._features.put(digest, job.features[digest])
            job.missing.popleft()
            job.task = None
            job.n_encoded += 1
            del self._encoding[digest]
        n_done = job.n_encoded * self._n_blocks + (0 if done else min(job.n_layers_done, self._n_blocks - 1))
        n_pictures = max(job.n_pictures, job.n_encoded + (not done))  # one may have left the cache since
        job.note("encode", n_done, n_pictures * self._n_blocks, self._clock())

    # The prompt

    def _advance_prompt(self, job: Job) -> bool:
        """A layer of a chunk; whole pages are published at the end of each chunk."""
        holding = job.holding
        assert holding is not None
        n_total = len(job.positions)
        if job.prompt_rows is not None:
            return self._advance_with_rows(job, job.prompt_rows)
        if job.task is None:
            job.n_layers_done = 0
            parts = job.positions.parts(job.chunk.start, job.chunk.stop, lambda picture: job.features[picture.digest])
            expanded = job.positions.expanded()[job.chunk.start : job.chunk.stop]
            want: Literal["none", "last"] = "last" if job.chunk.stop == n_total else "none"
            job.task = self._engine.begin_prefill(holding.session, parts, want, expanded)
        started = self._clock()
        chunk_done = job.task.advance(1)
        layer_s = self._clock() - started
        self._row_s = layer_s / len(job.chunk)
        self.speeds.note_rows(job.chunk.start, len(job.chunk), layer_s * self._n_layers)
        job.n_layers_done += 1
        if chunk_done:
            job.task = None
            holding.publish()
        done = bool(chunk_done and job.chunk.stop == n_total)
        n_new = n_total - job.first_row
        n_done = (
            job.chunk.start - job.first_row + len(job.chunk) * min(job.n_layers_done, self._n_layers) // self._n_layers
        )
        job.note("prefill", n_new if done else min(n_done, n_new - 1), n_new, self._clock())
        if chunk_done:
            self._cut_chunk(job)
        return done

    def _advance_with_rows(self, job: Job, rows: Callable[[int, NDArray[np.float32]], None]) -> bool:
        """A page of a prompt of which all logits are wanted."""
        holding = job.holding
        assert holding is not None
        first, n_total = holding.n_past, len(job.positions)
        end = min((first // PAGE_POSITIONS + 1) * PAGE_POSITIONS, n_total)
        parts = job.positions.parts(first, end, lambda picture: job.features[picture.digest])
        logits = holding.session.prefill(parts, logits="all", expanded=job.positions.expanded()[first:end])
        assert logits is not None
        rows(first, logits)
        holding.publish()
        job.note("prefill", end, n_total, self._clock())
        if end == n_total:
            job.prompt_rows = None
        return end == n_total

    def _cut_chunk(self, job: Job) -> None:
        """The job's next chunk and which of its pictures are still to be encoded. The rows of those before it go."""
        assert job.holding is not None
        job.chunk = self._chunk_of(job.holding.n_past, len(job.positions))
        pictures = job.positions.pictures_in(job.chunk.start, job.chunk.stop)
        held, job.features = job.features, {}
        job.missing.clear()
        for picture in pictures:
            known = held[picture.digest] if picture.digest in held else self._features.find(picture.digest)
            if known is None:
                job.missing.append(picture.digest)
            else:
                job.features[picture.digest] = known

    def _chunk_of(self, n_past: int, n_total: int) -> range:
        """The positions after n_past that are computed in one pass; its end is a page's, or the prompt's."""
        n = _LARGEST_CHUNK // PAGE_POSITIONS
        if self._row_s > 0:
            n = max(min(int(MAX_LAYER_S / self._row_s) // PAGE_POSITIONS, n), 1)
        return range(n_past, min((n_past // PAGE_POSITIONS + n) * PAGE_POSITIONS, n_total))
