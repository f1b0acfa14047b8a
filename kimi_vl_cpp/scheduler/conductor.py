"""The one caller of the core: takes jobs, hands out their tokens, and lets one thread at a time run the turns.

In the library it has no thread of its own: whoever waits for a token drives, for everybody, until its own is there,
and then passes the driving on. A server gives it a thread with `drive()`. Signals and progress callbacks stay in the
threads of the callers. Does not choose who runs (turn.py) and does not know what is said.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from ..cache.index import PrefixIndex
from ..cache.keys import Positions
from ..errors import Cancelled
from .gate import Gate
from .job import Job
from .resources import Resources
from .turn import Turns, Watch

if TYPE_CHECKING:
    pass

_T = TypeVar("_T")
_GATHER_S = 0.002
_PATIENCE_S = 0.1
"""How long a waiting thread trusts that another one drives. Only after an interrupt does nobody wake it earlier."""


class Conductor:
    """Jobs of one engine. Any number of threads may use it; it is closed with its gate."""

    def __init__(
        self,
        resources: Resources,
        gate: Gate,
        *,
        max_parallel: int = 16,
        drafts: bool = True,
    ) -> None:
        self.gate = gate
        self.index = PrefixIndex(resources.pool, resources.store)
        self._turns = Turns(resources, self.index, max_parallel=max_parallel, drafts=drafts)
        self._driver = 0  # the thread that drives
        self._has_own_thread = False
        self._work: SimpleQueue[None] = SimpleQueue()  # wakes `drive`
        gate.before_close(self._shut_down)

    # For readers

    def submit(self, job: Job) -> Job:
        """Takes a job; nothing of it is computed before somebody waits. Raises BadRequest like Gate.check."""
        self.gate.check()
        self._turns.arrivals.append(job)
        self._wake_drive()
        return job

    def next_token(self, job: Job, report: Callable[[str, int, int], Any] | None = None) -> int | None:
        """The job's next token; None when there is none, see `job.end` and `job.cancelled`.

        report(stage, done, total) is called in this thread. Raises what the job failed with, BadRequest like
        Gate.check, Cancelled "engine.closed".
        """
        self.done_with(job)
        while True:
            while job.events:
                event = job.events.popleft()
                if report is not None:
                    self.gate.report(report, *event)
            if job.cancelled:
                return None
            if job.n_read < len(job.tokens):
                job.n_read += 1
                self._wake_drive()
                return job.tokens[job.n_read - 1]
            if isinstance(job.end, Exception):
                raise job.end
            if job.end is not None:
                return None
            self._wait(job)

    def done_with(self, job: Job) -> None:
        """The reader has decided what follows the last token that it read, so that the next one may be computed."""
        job.n_done_with = job.n_read
        self._wake_drive()

    def force(self, job: Job, tokens: Sequence[int]) -> None:
        """Has these tokens follow the last one that was read, before any is chosen again. Tokens that are ahead of the
        reader are taken back: where tokens are to depend on the seed alone, the job's max_ahead is 1."""
        self.gate.call(self._turns.force, job, tokens)

    def leave(self, job: Job) -> None:
        """The reader wants no more of the job. What is computed of it stays in the index."""
        job.cancelled = True
        if job.end is not None or not self.gate.is_ours or self.gate.closed or self.gate.holds_lock:
            return
        if self._has_own_thread:
            self._wake_drive()
        elif not self._driver and not self.gate.busy:
            self._tidy()

    def cancel(self, job: Job) -> None:
        """As `leave`, from another thread than the reader's, which returns at once."""
        job.cancelled = True
        job.ring()
        self._wake_drive()

    # For the one who drives

    def drive(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Runs turns until the model is closed or `stopped`, which is asked after every turn and at `wake`: what a
        server's own thread does. Readers only wait meanwhile, and without jobs nothing wakes the thread."""
        self._has_own_thread = True
        try:
            while not self.gate.closed and not stopped():
                if not self._run_until(stopped):
                    self._wait_for_work()
        finally:
            self._has_own_thread = False
            for job in list(self._turns.jobs):
                job.ring()

    def wake(self) -> None:
        """Has `drive` ask whether it is stopped. From any thread."""
        self._work.put(None)

    def between_turns(self, function: Callable[[], _T]) -> _T:
        """Calls a function that looks at the index or changes it, while nothing is computed."""

        def call() -> _T:
            self._turns.tidy()
            return function()

        return self.gate.call(call)

    def observe(self, begin: Callable[[], _T]) -> _T:
        """Calls what begins to observe the core. Until `observed`, no rows go into the index and none come from it, as
        the core computes them in another form."""

        def call() -> _T:
            self._turns.observe(1)
            try:
                return begin()
            except BaseException:
                self._turns.observe(-1)
                raise

        return self.between_turns(call)

    def observed(self, end: Callable[[], None]) -> None:
        """Calls what ends an observing."""

        def call() -> None:
            end()
            self._turns.observe(-1)

        self.between_turns(call)

    def seconds_left(self, job: Job) -> float | None:
        """About how long it is until the job's first token, if it were alone: what the index holds of it counts as
        done. None before this model has computed anything. From any thread, and from the job's progress callback."""
        if job.n_cached is None:
            return self.between_turns(lambda: self._turns.seconds_ahead(job))
        return self._turns.seconds_left(job)

    def watch(self, watch: Watch) -> None:
        """Has every step and layer reported from now on, in the thread that computes them."""
        self._turns.watch = watch

    @property
    def n_jobs(self) -> int:
        """Answers that are under way."""
        if self.gate.is_ours and not self.gate.closed:
            self.gate.call(self._turns.tidy)
        return len(self._turns.jobs)

    @property
    def n_preempted(self) -> int:
        """Times that an answer's memory went to others. Without waiting."""
        return self._turns.room.n_preempted

    @property
    def n_swapped(self) -> int:
        """Answers that had begun and wait for memory to go on. Without waiting."""
        return sum(job.n_cached is not None and job.holding is None for job in list(self._turns.jobs) if not job.end)

    def n_held(self, positions: Positions) -> int:
        """How many positions at the start are in the index."""
        return self.between_turns(lambda: self.index.match(positions, len(positions)).n_positions)

    # Inside

    def _wait(self, job: Job) -> None:
        """Until the job has news or for a while, driving if nobody else does."""
        self.gate.check()
        if self._has_own_thread or (self._driver and self._driver != threading.get_ident()):
            job.wait(_PATIENCE_S)
            if job.has_news or self._has_own_thread:
                return
        job.reader_waits = True
        try:
            if not self._run_until(lambda: job.has_news) and not job.has_news:
                job.wait(_PATIENCE_S)  # others have the memory that it needs, and their readers are away
        finally:
            job.reader_waits = False
            self._pass_on()

    def _run_until(self, done: Callable[[], bool]) -> bool:
        """Drives until `done`, somebody else wants the lock, or there is nothing to do, which is False."""
        gate = self.gate
        did = True
        try:
            gate.knock()
            with gate.lock:
                gate.enter()
                self._driver = threading.get_ident()
                try:
                    while did and not done() and not gate.closed:
                        self._gather()
                        did = self._turns.run()
                        if gate.someone_waits:
                            break
                finally:
                    self._driver = 0
        finally:
            gate.leave()
        return did

    def _gather(self) -> None:
        """Gives readers that decide after each token what comes next a moment to come back: they meet in one step."""
        while any(time.perf_counter() - job.given_s < _GATHER_S for job in self._turns.jobs if job.awaits_its_reader):
            time.sleep(_GATHER_S / 10)

    def _wait_for_work(self) -> None:
        """Until there may be something to do. Jobs that lack memory alone look for it again after a while: nobody
        reports when others give theirs back."""
        lacks_memory = any(job.wanted for job in self._turns.jobs)
        with suppress(Empty):
            self._work.get(timeout=_PATIENCE_S if lacks_memory else None)

    def _pass_on(self) -> None:
        """Wakes a reader that waits for a token, to drive."""
        for job in list(self._turns.jobs):
            if job.reader_waits and not job.has_news:
                job.ring()
                return

    def _shut_down(self) -> None:
        """Ends all jobs and frees all pages."""
        self._turns.end_all(lambda: Cancelled("the model was closed while this call was running", "engine.closed"))
        self.index.forget_all()
        self.wake()

    def _tidy(self) -> None:
        try:
            with self.gate.lock:
                if not self.gate.closed:
                    self._turns.tidy()
        finally:
            self.gate.leave()

    def _wake_drive(self) -> None:
        if self._has_own_thread and self._work.empty():
            self._work.put(None)
