"""One answer on its way: what was asked of the core, how far it is, and the tokens that wait for their reader.

The conductor writes it, one thread at a time; its reader, in another thread, only takes tokens and sets `cancelled`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .._core import PAGE_POSITIONS
from ..cache.keys import Positions
from .drafts import MAX_DRAFT, Drafter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .._core import Sampler, Session
    from .holding import Holding

MAX_AHEAD = 8
"""Tokens that an answer may be ahead of its reader: enough for readers of several streams to meet in one batch."""

_REPORT_S = 0.05

End = Literal["stop", "length"]

CacheUse = Literal["use", "read", "off"]
"""What a job does with pages of others: takes them and leaves its own, takes them only, neither."""


class Chooser(Protocol):
    """Chooses the tokens of one answer.

    core_sampler: what the core may sample with itself, None where every token must go through `choose`. logprob: what
    is noted about the token that was chosen or forced last. masked: when the mask of the tokens that might follow was
    begun and done for it, in seconds of time.perf_counter; None without one.
    """

    @property
    def core_sampler(self) -> Sampler | None: ...
    @property
    def logprob(self) -> Any: ...
    @property
    def masked(self) -> tuple[float, float] | None: ...
    def choose(self, session: Session) -> int: ...
    def force(self, session: Session, token: int) -> int: ...


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What is asked of the core beside a prompt.

    pixels: digest -> what returns the uint8 [H, W, 3] of a picture, called when its turn comes. stop_ids: tokens that
    end the answer. max_new_tokens: where it is cut; 0 computes the prompt only. max_ahead: tokens that it may be ahead
    of its reader; 1 where the reader decides after each what is forced to come next. reports: whether its reader wants
    to know about progress. prompt_rows(start, logits): called page by page with the logits of the whole prompt, float32
    [n, n_vocab], of which then nothing is taken from the cache; for prompts without pictures. cache: see CacheUse.
    priority: jobs of a higher one go first. adapter: the core's number of the one that it is computed with, part of the
    positions' root; -1: none.
    """

    chooser: Chooser
    stop_ids: frozenset[int] = frozenset()
    max_new_tokens: int = 1
    max_ahead: int = MAX_AHEAD
    pixels: Mapping[str, Callable[[], NDArray[np.uint8]]] = field(default_factory=dict)
    reports: bool = False
    prompt_rows: Callable[[int, NDArray[np.float32]], None] | None = None
    cache: CacheUse = "use"
    priority: int = 0
    adapter: int = -1


class Job:
    """A prompt and the tokens that follow it. positions: the prompt, and every token once it is sampled."""

    def __init__(self, positions: Positions, spec: JobSpec) -> None:
        self.positions = positions
        self.n_prompt = len(positions)
        self.spec = spec
        self.prompt_rows = spec.prompt_rows  # None once they have been handed out
        # For the reader
        self.tokens: list[int] = []
        self.notes: dict[int, Any] = {}  # what the chooser notes about tokens[index]
        self.end_note: Any = None  # and about the token that ended the answer
        self.end: End | Exception | None = None
        self.cancelled = False
        self.n_read = 0
        self.n_done_with = 0  # tokens after which the reader has come back
        self.n_cached: int | None = None  # positions that were held when it began
        self.n_restored = 0  # positions that were read from the folder for it
        self.encode_s = self.prefill_s = self.decode_s = self.restore_s = 0.0
        self.n_drafted = self.n_accepted = 0  # tokens that were drafted, and those of them that came
        self.events: deque[tuple[str, int, int]] = deque()  # for its progress callback
        self._bell: SimpleQueue[None] = SimpleQueue()
        self.reader_waits = False
        # The conductor's own
        self.forced: deque[int] = deque()  # tokens that come next, whatever is chosen
        self.drafter = Drafter()
        self.given_s = 0.0  # when it got its last token, by time.perf_counter
        self.number = 0  # in the order of arrival
        self.awaited = False  # whether what it computes is needed by one whose reader waits
        self.holding: Holding | None = None
        self.restored = False  # whether the folder has no more for it
        self.task: Any = None  # the prompt or picture task under way
        self.chunk = range(0)  # positions of the prompt that are computed next, or under way
        self.features: dict[str, NDArray[Any]] = {}  # digest -> rows of the pictures in the chunk
        self.missing: deque[str] = deque()  # digests of those in the chunk that are not encoded
        self.n_pictures = 0  # that were not encoded when it began
        self.n_encoded = 0  # of them
        self.first_row = 0  # that is computed for it
        self.n_layers_done = 0  # of them
        self.reported_s = 0.0  # when progress was last noted
        self.served_s = 0.0  # by tasks
        self.last_turn = 0  # in which it got a token

    @property
    def rank(self) -> tuple[int, int]:
        """Its place among the jobs that want the same: the lowest goes first."""
        return -self.spec.priority, self.number

    @property
    def claim(self) -> tuple[bool, int, int]:
        """Its place when memory is short: the lowest takes from the others. One order for all, so that no two take from
        each other in turn; those whose readers are away only run ahead and come last."""
        return not (self.reader_waits or self.awaited), *self.rank

    @property
    def has_news(self) -> bool:
        """Whether its reader has something to do."""
        return self.n_read < len(self.tokens) or self.end is not None or self.cancelled or bool(self.events)

    @property
    def wanted(self) -> bool:
        """Whether it is to be worked on: not at its end, and its reader not too far behind."""
        return self.end is None and not self.cancelled and len(self.tokens) - self.n_done_with < self.spec.max_ahead

    def is_twin_of(self, other: Job) -> bool:
        """Whether both are at their first token after the same prompt, so that its rows serve both."""
        return (
            other is not self
            and not (self.tokens or other.tokens or self.prompt_rows or other.prompt_rows)
            and self.positions.same_as(other.positions)
        )

    @property
    def core_sampler(self) -> Sampler | None:
        """What the core samples its next token with; None: it is chosen or forced here."""
        return None if self.forced else self.spec.chooser.core_sampler

    @property
    def most_drafts(self) -> int:
        """Tokens that may be drafted beyond the next one: where they are sampled in the core, none that the reader
        would not take, and none that would take another page."""
        if self.core_sampler is None or self.holding is None:
            return 0
        n_ahead = len(self.tokens) - self.n_done_with
        n_wanted = min(self.spec.max_ahead - n_ahead, self.spec.max_new_tokens - len(self.tokens))
        return max(min(n_wanted - 1, MAX_DRAFT, PAGE_POSITIONS - 1 - self.holding.n_past % PAGE_POSITIONS), 0)

    @property
    def awaits_its_reader(self) -> bool:
        """Whether it can go on only when its reader has seen the last token."""
        return (
            self.spec.max_ahead == 1 and self.end is None and not self.cancelled and len(self.tokens) > self.n_done_with
        )

    @property
    def decodes(self) -> bool:
        """Whether its prompt is done, so that all it lacks is the row of its last token."""
        return self.holding is not None and bool(self.tokens) and self.holding.n_past == len(self.positions) - 1

    def note(self, stage: str, done: int, total: int, now: float) -> None:
        """Progress for the reader, about every 50 ms and at the end of a stage."""
        if self.spec.reports and (done == total or now - self.reported_s >= _REPORT_S):
            self.reported_s = now
            self.events.append((stage, done, total))
            self.ring()

    def ring(self) -> None:
        """Wakes its reader."""
        if self._bell.empty():
            self._bell.put(None)

    def wait(self, timeout_s: float) -> None:
        """Until `ring`, or not longer than timeout_s. For the reader's thread; Ctrl-C ends it."""
        self.reader_waits = True
        try:
            if not self.has_news:
                self._bell.get(timeout=timeout_s)
        except Empty:
            return
        finally:
            self.reader_waits = False
