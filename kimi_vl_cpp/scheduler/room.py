"""Which jobs have memory: who is admitted, who waits, who gives pages back when others need them.

A job that gives its pages back loses time and nothing else: what it computed stays in the index as long as there is
room, and the rest is computed again, to the same bits. The oldest job is asked last, so one always ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .._core import PAGE_POSITIONS
from ..cache.index import PrefixIndex
from ..errors import OutOfMemory
from .holding import Holding, n_pages
from .job import Job
from .tasks import Tasks

if TYPE_CHECKING:
    from .._core import Session


_READ_AT_ONCE = 32  # pages: 0.2 s of a full model's at 0.64 GB/s


class Room:
    """The pages of one pool, shared out between jobs."""

    def __init__(self, index: PrefixIndex, tasks: Tasks, new_session: Callable[[int], Session]) -> None:
        self._index = index
        self._tasks = tasks
        self._new_session = new_session
        self._promised: dict[bytes, Job] = {}  # key of a page -> the job that computes it
        self.n_preempted = 0  # times that a job's pages went to others
        self.n_observers = 0  # while there are any, rows are computed in another form and belong to nobody else

    def note_awaited(self, jobs: list[Job]) -> None:
        """Gives a job the claim of those whose readers wait, while one of these waits for what it computes."""
        waiting = [job for job in jobs if job.holding is None and job.wanted and job.reader_waits]
        awaited = [self.computing(job, jobs) for job in waiting]
        for job in jobs:
            job.awaited = job in awaited

    def computing(self, job: Job, jobs: list[Job]) -> Job | None:
        """Who is computing the next whole page that the job needs, or its whole prompt: it will be there sooner."""
        if job.prompt_rows is not None:
            return None
        keys = self._missing_keys(job) if self._reads(job) else []
        if keys and (owner := self._promised.get(keys[0], job)) is not job:
            return owner
        return next((other for other in jobs if other.holding is not None and job.is_twin_of(other)), None)

    def restore(self, job: Job, jobs: list[Job]) -> bool:
        """Reads pages that the job begins with and that only the folder has. Whether there may be more of them: a turn
        reads no more than _READ_AT_ONCE, as others wait meanwhile."""
        if job.restored or self._index.disk is None or not self._reads(job):
            return False
        limit = len(job.positions) - 1
        n = self._index.disk.restore(
            job.positions, limit, _READ_AT_ONCE, lambda n_held: self.make(n_pages(limit + 2) - n_held, job, jobs)
        )
        if n is None:
            return False  # it cannot be admitted either
        job.n_restored += n
        job.restored = n < _READ_AT_ONCE * PAGE_POSITIONS
        return not job.restored

    def fork_twins(self, job: Job, jobs: list[Job]) -> list[Job]:
        """Gives the rows of a prompt that is done to the jobs that wait for the same one. Returns them."""
        twins = [other for other in jobs if other.holding is None and other.wanted and other.is_twin_of(job)]
        for twin in twins:
            assert job.holding is not None
            twin.holding = Holding.fork_of(job.holding, twin.positions)
            twin.n_cached = twin.n_prompt
        return twins

    def admit(self, job: Job, jobs: list[Job]) -> bool:
        """Gives the job a session with what is held of its positions, once its prompt and one token more would fit.
        Raises OutOfMemory when they never would."""
        limit = len(job.positions) - 1 if self._reads(job) else 0  # the logits of the last are wanted
        publishes = job.spec.cache == "use" and not self.n_observers
        for whole_pages in (False, True):
            job.holding = holding = Holding(
                self._index,
                job.positions,
                partial(self._new_session, job.spec.adapter),
                limit=limit,
                whole_pages=whole_pages,
                publishes=publishes,
            )
            part_of_a_page = holding.n_past % PAGE_POSITIONS != 0
            n_needed = n_pages(len(job.positions) + 1) - len(holding.nodes)
            if self.make(n_needed + part_of_a_page, job, jobs):
                break
            self.drop(job)
            if part_of_a_page:
                continue
            if not any(other.holding for other in jobs):
                raise self._never(job, n_needed)
            return False
        for key in self._missing_keys(job) if publishes else ():
            self._promised.setdefault(key, job)
        if job.n_cached is None:
            job.n_cached = holding.n_past
            self._index.counts.hit_positions += holding.n_past
            self._index.counts.missed_positions += len(job.positions) - holding.n_past
        self._tasks.begin(job)
        return True

    def _reads(self, job: Job) -> bool:
        return job.prompt_rows is None and job.spec.cache != "off" and not self.n_observers

    def _missing_keys(self, job: Job) -> list[bytes]:
        first = len(self._index.whole_pages(job.positions, len(job.positions)))
        return [job.positions.key(number) for number in range(first, job.positions.n_whole_pages)]

    def _never(self, job: Job, n_needed: int) -> OutOfMemory:
        pool = self._index.pool
        return OutOfMemory(
            f"the request has {len(job.positions)} positions and needs {n_needed} more pages of {pool.page_bytes} "
            f"bytes, but of the {pool.budget} bytes for pages only those of {self._index.n_free} can be freed: give "
            "the model more kv_memory, or unpin what is pinned",
            "memory.kv_pages",
        )

    def make(self, n: int, asking: Job, jobs: list[Job]) -> bool:
        """Makes room for n pages, by dropping what nobody uses, then by taking pages from other jobs."""
        while not self._index.make_room(n):
            victim = self._victim(asking, jobs)
            if victim is None:
                return False
            self.preempt(victim)
        return True

    def make_for_task(self, job: Job, jobs: list[Job]) -> None:
        """Makes room for what the job's next task takes, as pages may have gone to others since it was admitted. Raises
        OutOfMemory."""
        n_needed = self._tasks.n_pages_of_next(job)
        if n_needed and not self.make(n_needed, job, jobs):
            raise self._never(job, n_needed)

    def preempt(self, job: Job) -> None:
        """Takes the job's memory for others."""
        self.n_preempted += 1
        self.park(job)

    def park(self, job: Job) -> None:
        """Takes the job's memory away; it is admitted again when there is room."""
        self._end_task(job)
        job.restored = False
        holding, job.holding = job.holding, None
        if holding is not None:
            holding.release()

    def drop(self, job: Job) -> None:
        """As `park`, without keeping what is not a whole page: after an error nobody knows what it holds."""
        self._end_task(job)
        holding, job.holding = job.holding, None
        if holding is not None:
            holding.drop()

    def recount(self, jobs: list[Job]) -> None:
        """After an interrupt: the index's counts of users, from what the jobs hold."""
        self._index.recount(job.holding.nodes for job in jobs if job.holding is not None)

    def prompt_done(self, job: Job) -> None:
        """The job computes no more pages that others wait for."""
        for key in [key for key, owner in self._promised.items() if owner is job]:
            del self._promised[key]

    def _end_task(self, job: Job) -> None:
        self.prompt_done(job)
        self._tasks.drop(job)

    @staticmethod
    def _victim(asking: Job, jobs: list[Job]) -> Job | None:
        """The last of those that come after the asking one."""
        holders = [job for job in jobs if job.holding is not None and job.claim > asking.claim]
        return max(holders, key=lambda job: job.claim, default=None)
