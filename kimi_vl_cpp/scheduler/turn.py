"""What one turn does: all decodes that are due in one step, then a prompt or a picture for a share of time.

Owns the jobs and their order. One thread at a time calls it. It survives a KeyboardInterrupt at any place: what the
core has returned is written down before Python looks at it, and a job of which nobody knows what it holds begins again
from its positions, to the same bits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..cache.index import PrefixIndex
from ..errors import OutOfMemory
from .drafts import MAX_ANSWERS, Drafter, DraftLength
from .job import Job
from .resources import Resources
from .room import Room
from .tasks import Tasks

SLICE_S = 0.12
"""How long prompts and pictures go on while an answer waits for its next token."""

Watch = Callable[[str, float, float, int], None]
"""watch(work, began, ended, n): n answers decoded in one step ("decode"), or one layer of a prompt ("prefill"), block
of a picture ("encode") or mask of a grammar ("mask") computed, in seconds of the clock."""

_TASK_SHARE = 3  # seconds of prompts and pictures for each second of decoding, at most, while both wait


class Turns:
    """The jobs of one engine. max_parallel: answers that are decoded in one step. drafts: whether tokens are drafted
    that have followed the same ones before."""

    def __init__(
        self,
        resources: Resources,
        index: PrefixIndex,
        *,
        max_parallel: int = 16,
        drafts: bool = True,
    ) -> None:
        self.index = index
        self.jobs: list[Job] = []  # in the order of arrival
        self.arrivals: deque[Job] = deque()  # of any thread
        self.watch: Watch | None = None
        self._engine = resources.engine
        self._clock = resources.clock
        self._max_parallel = max_parallel
        self._draft_length = DraftLength() if drafts else None
        self._tasks = Tasks(resources)
        self.room = Room(index, self._tasks, resources.new_session)
        self._n_turns = self._n_arrived = 0
        self._debt_s = 0.0  # of prompts and pictures to decoding, while both wait
        # What must survive an interrupt
        self._unsettled: list[tuple[Job, int]] = []  # jobs of the step under way, with the tokens they had
        self._outcomes: list[Any] = []  # its results, once there are: one list, or the one token of a prompt
        self._touched: list[Job] = []  # jobs that are being changed
        self._clean = True

    def run(self) -> bool:
        """One turn. False when there was nothing to do."""
        self.tidy()
        self._clean = False
        self._n_turns += 1
        restored = self._admit()
        did = self._decode()
        did = self._work(waiting=did) or did or restored
        self._clean = True
        return did

    def tidy(self) -> None:
        """Takes in who came and lets go who left, without computing anything."""
        if not self._clean:
            self._repair()
        self._clean = False
        self._come_and_go()
        self._clean = True

    def end_all(self, error: Callable[[], Exception]) -> None:
        """Ends every job with an error of its own and gives their memory up."""
        self.tidy()
        for job in list(self.jobs):
            self._end(job, error())

    def seconds_left(self, job: Job) -> float | None:
        """As Conductor.seconds_left, of a job that was admitted: by any thread."""
        if job.tokens or job.end is not None:
            return 0.0
        return self._tasks.seconds_left(job, job.chunk.start, max(job.n_pictures - job.n_encoded, 0))

    def seconds_ahead(self, job: Job) -> float | None:
        """As Conductor.seconds_left, of a job that has not begun."""
        first = self.index.match(job.positions, job.n_prompt - 1).n_positions
        return self._tasks.seconds_left(job, first, self._tasks.n_to_encode(job, first))

    def force(self, job: Job, tokens: Sequence[int]) -> None:
        """Tokens that follow those that were read; what was computed beyond is taken back."""
        self.tidy()
        if len(job.tokens) > job.n_read or job.end is not None:
            self._change(job, self.room.park, job)
            del job.tokens[job.n_read :]
            job.positions.cut(job.n_prompt + job.n_read)
            job.drafter = Drafter()
            if job.end is not None and not isinstance(job.end, Exception):
                job.end = None
                self.arrivals.append(job)
        job.forced.extend(tokens)

    def observe(self, by: int) -> None:
        """Notes that `by` more observe the core, -1 for one less. What was computed before is computed no further."""
        for job in list(self.jobs):
            self._change(job, self.room.park, job)
        self.room.n_observers += by

    # Who is there

    def _come_and_go(self) -> None:
        while self.arrivals:
            job = self.arrivals[0]
            if job not in self.jobs:
                self._n_arrived += 1
                job.number = self._n_arrived
                job.served_s = min((other.served_s for other in self.jobs if self._has_task(other)), default=0.0)
                self.jobs.append(job)
            self.arrivals.popleft()
        for job in [job for job in self.jobs if job.cancelled or job.end is not None]:
            self._remove(job)

    def _remove(self, job: Job) -> None:
        self._change(job, self.room.park, job)
        self.jobs.remove(job)

    def _end(self, job: Job, end: Any) -> None:
        if job.end is None:
            job.end = end
        job.ring()
        if job in self.jobs:
            self._remove(job)

    def _admit(self) -> bool:
        """By their claims; who does not fit lets nobody pass who comes after, unless its reader is away. Whether pages
        were read for one of which there are more to come."""
        self.room.note_awaited(self.jobs)
        for job in sorted(self.jobs, key=lambda job: job.claim):
            if job.holding is None and job.wanted and self.room.computing(job, self.jobs) is None:
                try:
                    started = self._clock()
                    more = self._change(job, self.room.restore, job, self.jobs)
                    job.restore_s += self._clock() - started
                    if more:
                        return True
                    if not self._change(job, self.room.admit, job, self.jobs) and job.reader_waits:
                        return False
                except Exception as error:
                    self._fail(job, error)
        return False

    # Decoding

    def _decode(self) -> bool:
        due = [job for job in self.jobs if job.wanted and job.decodes]
        due.sort(key=lambda job: (-job.spec.priority, job.last_turn, job.number))
        due = self._with_room(due[: self._max_parallel])
        if not due:
            return False
        started = self._clock()
        tokens = self._with_drafts(due)
        rows = [(job.holding.session, tokens[job.number], job.core_sampler) for job in due if job.holding is not None]
        self._unsettled = [(job, len(job.tokens)) for job in due]
        try:
            # In C from the call to the list: an interrupt finds the results in it, or the sessions as they were.
            self._outcomes.extend(map(self._engine.decode, (rows,)))
        except Exception as error:  # of the step as a whole
            self._outcomes.append([error] * len(due))
        seconds = self._clock() - started
        if self._draft_length is not None:
            self._draft_length.note(sum(map(len, tokens.values())), seconds)
        for job, outcome in zip(due, self._outcomes[-1], strict=True):
            job.decode_s += seconds
            job.last_turn = self._n_turns
            job.n_accepted += len(outcome) - 1 if isinstance(outcome, list) else 0
        self._debt_s -= _TASK_SHARE * seconds
        if self.watch is not None:
            self.watch("decode", started, started + seconds, len(due))
        self._settle()
        return True

    def _with_room(self, due: list[Job]) -> list[Job]:
        """Those for whose next row there is memory; the last by their claims give way to the others."""
        due = list(due)
        while due:
            n_needed = sum(1 for job in due if job.holding is not None and job.holding.needs_page)
            first = min(due, key=lambda job: job.claim)
            if self.room.make(n_needed, first, self.jobs):
                break
            last = max(due, key=lambda job: job.claim)
            text = "no page of the cache can be freed for the next token: give the model more kv_memory"
            self._out_of_memory(last, OutOfMemory(text, "memory.kv_pages"))
            due = [job for job in due if job.holding is not None]
        return [job for job in due if job.holding is not None]

    def _with_drafts(self, due: list[Job]) -> dict[int, list[int]]:
        """By the number of each job, its last token and the drafts of those that follow it."""
        tokens = {job.number: job.tokens[-1:] for job in due}
        if self._draft_length is not None and len(due) <= MAX_ANSWERS:
            n_rows = len(due)
            for job in due:
                if n_most := job.most_drafts:
                    job.drafter.follow(job.positions)
                    n = self._draft_length.best(job.drafter.hit_rate, n_rows, n_most)
                    drafted = job.drafter.draft(n, job.spec.stop_ids)
                    tokens[job.number] += drafted
                    job.n_drafted += len(drafted)
                    n_rows += len(drafted)
        return tokens

    def _settle(self) -> None:
        """Hands out what a step has sampled. Begun again after an interrupt it hands out what is left."""
        if self._outcomes:
            outcomes = self._outcomes[0] if isinstance(self._outcomes[0], list) else self._outcomes
            for (job, n_before), outcome in zip(self._unsettled, outcomes, strict=True):
                for n_after, one in enumerate(outcome if isinstance(outcome, list) else [outcome]):
                    if job.end is None:
                        self._take(job, n_before + n_after, one)
        self._unsettled, self._outcomes = [], []

    def _take(self, job: Job, n_before: int, outcome: int | Exception | None) -> None:
        """A job's token, of which there were n_before before it. Every line may be run again."""
        if outcome is None:
            outcome = self._chosen(job, n_before)
        if isinstance(outcome, OutOfMemory):
            self._out_of_memory(job, outcome)
        elif isinstance(outcome, Exception):
            self._fail(job, outcome)
        elif outcome in job.spec.stop_ids:
            job.end_note = job.notes.pop(n_before, None)
            self._end(job, "stop")
        else:
            if len(job.tokens) == n_before:
                job.tokens.extend(map(deque.popleft, (job.forced,)) if job.forced else (outcome,))
            if len(job.positions) == job.n_prompt + n_before:
                job.positions.append(outcome)
            if job.holding is not None:
                self._change(job, job.holding.publish)
            job.given_s = time.perf_counter()
            if len(job.tokens) >= job.spec.max_new_tokens:
                self._end(job, "length")
            job.ring()

    def _chosen(self, job: Job, n_before: int) -> int | Exception:
        """The token after those that there were before, chosen in Python or forced."""
        assert job.holding is not None
        if len(job.tokens) > n_before:
            return job.tokens[n_before]
        session, chooser = job.holding.session, job.spec.chooser
        try:
            token = chooser.force(session, job.forced[0]) if job.forced else chooser.choose(session)
        except Exception as error:
            return error
        if chooser.logprob is not None:
            job.notes[n_before] = chooser.logprob
        if chooser.masked is not None and self.watch is not None:
            self.watch("mask", *chooser.masked, 1)
        return token

    # Prompts and pictures

    def _has_task(self, job: Job) -> bool:
        return job.holding is not None and job.wanted and not job.decodes

    def _work(self, waiting: bool) -> bool:
        """Advances the job that was served least, layer by layer. waiting: whether answers wait for their next token;
        then as long as their share allows."""
        if not waiting:
            self._debt_s = 0.0
        if self._debt_s > 0:
            return False
        self._debt_s = max(self._debt_s, -_TASK_SHARE * SLICE_S)
        ready = [job for job in self.jobs if self._has_task(job) and self._tasks.ready(job)]
        if not ready:
            self._debt_s = 0.0
            return False
        job = min(ready, key=lambda job: (-job.spec.priority, job.served_s, job.number))
        began = now = self._clock()
        while self._has_task(job) and self._tasks.ready(job):
            started, work = now, "encode" if job.missing else "prefill"
            try:
                self.room.make_for_task(job, self.jobs)
                if self._change(job, self._tasks.advance, job):
                    self._first_token(job)
            except OutOfMemory as error:
                self._out_of_memory(job, error)
            except Exception as error:
                self._fail(job, error)
            now = self._clock()
            if self.watch is not None:
                self.watch(work, started, now, 1)
            job.served_s += now - started
            self._debt_s += now - started
            if now - began >= SLICE_S or (waiting and self._debt_s > 0) or job.has_news:
                break
        if not waiting:
            self._debt_s = 0.0
        return True

    def _out_of_memory(self, job: Job, error: OutOfMemory) -> None:
        """The job's pages went to others since it was admitted: it waits until they give them back. One that has
        copies of pages begins again on those of the index."""
        self._touched.clear()
        others = any(other.holding for other in self.jobs if other is not job)
        if others or (job.holding is not None and job.holding.has_copies):
            self.room.preempt(job)
        else:
            self._fail(job, error)

    def _first_token(self, job: Job) -> None:
        """Samples what follows the positions that have just been computed."""
        self.room.prompt_done(job)
        twins = self.room.fork_twins(job, self.jobs)
        for one in (job, *twins):
            self._sample_first(one)

    def _sample_first(self, job: Job) -> None:
        if job.spec.max_new_tokens == 0:
            self._end(job, "length")
        if job.holding is None or not job.wanted:
            return
        self._unsettled = [(job, len(job.tokens))]
        try:
            if job.core_sampler is None:
                self._outcomes.append(None)
            else:
                self._outcomes.extend(map(job.holding.session.sample, (job.core_sampler,)))
        except Exception as error:
            self._outcomes.append([error])
        self._settle()

    # Errors and interrupts

    def _change(self, job: Job, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function that changes what the job holds. Interrupted, the job begins again from its positions."""
        self._touched.append(job)
        result = function(*args)
        self._touched.clear()
        return result

    def _fail(self, job: Job, error: Exception) -> None:
        """Ends one job; its neighbours go on."""
        self._touched.clear()
        if job.end is None:
            job.end = error
        self.room.drop(job)
        if job in self.jobs:
            self.jobs.remove(job)
        job.ring()

    def _repair(self) -> None:
        """After an interrupt in a turn."""
        self.room.recount(self.jobs)
        for job in {id(job): job for job in self._touched}.values():
            self.room.drop(job)
        self._touched.clear()
        self._settle()
        for job in self.jobs:
            if job.holding is not None and job.holding.n_past >= len(job.positions):
                self.room.drop(job)
        self._clean = True
