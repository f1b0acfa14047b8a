"""The conductor over a core that answers by script, in a time of its own: who runs when, who waits for whom, and that
nothing of it shows in a token."""

from __future__ import annotations

import linecache
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

import fake_core
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scheduler_support import KINDS, ROOT, Machine, Sampled, alone, answer_of, prompt
from waiting import wait_until

from kimi_vl_cpp.cache.keys import Picture, Positions
from kimi_vl_cpp.errors import BadRequest, Cancelled, OutOfMemory
from kimi_vl_cpp.scheduler.job import MAX_AHEAD, Job, JobSpec
from kimi_vl_cpp.scheduler.room import Room


def read_in_threads(machine: Machine, jobs: list[Job]) -> list[list[int]]:
    """The tokens of each, read by a thread of its own; all have begun before any goes on."""
    begun = threading.Barrier(len(jobs))

    def read(job: Job) -> list[int]:
        first = machine.read(job, 1)
        begun.wait(60)
        return first + machine.read(job)

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(read, jobs))


@contextmanager
def driving(machine: Machine) -> Iterator[threading.Thread]:
    """A thread that drives, as a server has one."""
    thread = threading.Thread(target=machine.conductor.drive, daemon=True)
    thread.start()
    wait_until(lambda: machine.conductor._has_own_thread, "it drives")
    try:
        yield thread
    finally:
        machine.gate.close()
        thread.join(60)
    assert not thread.is_alive()


# Batches


def test_answers_under_way_are_decoded_in_one_step():
    machine = Machine()
    jobs = [machine.start(prompt(n, 20), 40, n) for n in range(4)]
    got = [[machine.conductor.next_token(job) for job in jobs] for _ in range(40)]
    assert [list(tokens) for tokens in zip(*got, strict=True)] == [alone(prompt(n, 20), 40, n) for n in range(4)]
    assert machine.script.steps.count(4) >= 30 and len(machine.script.steps) <= 45


def test_readers_in_threads_of_their_own_meet_in_one_batch():
    machine = Machine(real_time=True)
    machine.script.decode_s = 0.002
    expected = [alone(prompt(n, 20), 60, n) for n in range(6)]
    fake_core.SCRIPT = machine.script
    assert read_in_threads(machine, [machine.start(prompt(n, 20), 60, n) for n in range(6)]) == expected
    assert machine.script.max_inside == 1
    assert len(machine.script.steps) < 0.6 * 6 * 59  # alone each of 6 would take 59
    machine.check()


def test_readers_that_decide_after_each_token_meet_in_one_batch_too():
    machine = Machine(real_time=True)
    machine.script.decode_s = 0.002
    expected = [alone(prompt(n, 20), 40, n) for n in range(4)]
    fake_core.SCRIPT = machine.script
    assert read_in_threads(machine, [machine.start(prompt(n, 20), 40, n, max_ahead=1) for n in range(4)]) == expected
    assert max(machine.script.steps) > 1


def test_more_answers_than_a_step_holds_take_turns():
    machine = Machine(max_parallel=3)
    jobs = [machine.start(prompt(n, 20), 100, n) for n in range(8)]
    machine.read(jobs[0], 50)
    assert max(machine.script.steps) == 3
    assert all(len(job.tokens) == MAX_AHEAD for job in jobs[1:])
    assert machine.read(jobs[7], 10) == alone(prompt(7, 20), 10, 7)


def test_an_answer_is_never_far_ahead_of_its_reader():
    machine = Machine()
    lazy, eager = machine.start(prompt(1, 20), 100), machine.start(prompt(2, 20), 100)
    machine.read(eager, 100)
    assert len(lazy.tokens) == MAX_AHEAD
    assert machine.read(lazy) == alone(prompt(1, 20), 100)


def test_one_reader_gets_its_token_from_one_step():
    machine = Machine()
    job = machine.start(prompt(1, 20), 100)
    for n in range(1, 20):
        machine.read(job, 1)
        assert len(job.tokens) == n and len(machine.script.steps) == n - 1


# Shares


def during_a_long_prompt(machine: Machine, job: Job, n: int = 3000) -> tuple[list[float], float]:
    """The times at which `job` got tokens while a prompt of n positions was computed, and the time of its first."""
    other = machine.start(prompt(9, n), 1)
    times = [machine.now]
    while other.end is None:
        machine.read(job, 1)
        times.append(machine.now)
    return times, machine.now


@pytest.mark.parametrize(("decode_s", "row_s"), [(0.03, 1.6e-4), (0.001, 5e-7), (0.1, 2.5e-5), (0.004, 2e-4)])
def test_an_answer_goes_on_while_a_long_prompt_is_computed(decode_s, row_s):
    machine = Machine()
    machine.script.decode_s, machine.script.prefill_row_s = decode_s, row_s
    job = machine.start(prompt(1, 20), 10_000)
    machine.read(job, 3)
    times, end = during_a_long_prompt(machine, job)
    layer_s = row_s * 2048
    silences = np.diff(times)
    assert max(silences) <= decode_s + max(0.12, layer_s) + layer_s + 1e-6
    decoding, working = decode_s * len(silences), end - times[0] - decode_s * len(silences)
    assert decoding >= 0.24 * (end - times[0]) - decode_s
    assert working >= 0.24 * (end - times[0]) - layer_s


def test_a_short_prompt_does_not_wait_for_a_long_one():
    machine = Machine()
    machine.script.prefill_s = 1.0
    long, short = machine.start(prompt(9, 3900), 1), machine.start(prompt(1, 50), 1)
    assert machine.read(short) == alone(prompt(1, 50), 1)
    assert long.end is None
    assert machine.now <= 2 * 1.0 + 0.3
    assert machine.read(long) == alone(prompt(9, 3900), 1)


def test_a_prompt_of_higher_priority_goes_first():
    machine = Machine()
    machine.script.prefill_s = 1.0
    usual, urgent = machine.start(prompt(9, 3000), 1), machine.start(prompt(1, 3000), 1, priority=1)
    assert machine.read(urgent) == alone(prompt(1, 3000), 1)
    assert usual.holding is None or usual.holding.n_past == 0
    assert machine.read(usual) == alone(prompt(9, 3000), 1)


def test_with_little_memory_a_job_of_lower_priority_gives_way():
    machine = Machine(n_pages=4)
    usual = machine.start(prompt(9, 300), 100)
    machine.read(usual, 3)
    urgent = machine.start(prompt(1, 300), 5, priority=1)
    assert machine.read(urgent) == alone(prompt(1, 300), 5)
    assert machine.read(usual) == alone(prompt(9, 300), 100)[3:]
    machine.check()


@pytest.mark.parametrize("priority", [0, 1])
@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("waits", [(False, False), (False, True), (True, False), (True, True)])
def test_of_two_jobs_one_at_most_takes_memory_from_the_other(waits, awaited, priority):
    """Else each could take the other's pages in turn, without end."""
    machine = Machine()
    one, other = machine.start(prompt(9, 300), 3), machine.start(prompt(1, 133), 3, priority=priority)
    machine.read(one, 1), machine.read(other, 1)
    jobs = [one, other]
    assert one.holding and other.holding
    one.reader_waits, other.reader_waits = waits
    one.awaited = awaited
    assert [Room._victim(one, jobs), Room._victim(other, jobs)].count(None) == 1


def test_two_answers_that_run_ahead_do_not_take_memory_from_each_other_in_turn():
    """Neither would get through its prompt, and the one whose reader waits for it would wait without end."""
    machine = Machine(n_pages=4)
    machine.script.prefill_s = 1.0  # a turn does a part of a prompt
    pieces: list[str] = []

    def count(stage: str, step: int) -> None:
        pieces.append(stage)
        assert len(pieces) <= 10 * fake_core.N_LAYERS, "the prompts are begun again and again"

    machine.script.fail_at = count
    common = prompt(1, 300)
    machine.start(prompt(9, 300), 20), machine.start([*common, 1], 20)
    assert machine.read(machine.start([*common, 2], 3)) == alone([*common, 2], 3)
    machine.check()


def test_the_chunks_of_a_slow_core_are_cut_so_that_no_layer_is_long():
    machine = Machine()
    machine.script.prefill_row_s = 0.001
    tokens = machine.read(machine.start(prompt(1, 3900), 2))
    assert set(machine.script.prefilled[1:-1]) == {384} and machine.script.prefilled[-1] <= 384
    assert tokens == alone(prompt(1, 3900), 2)


def test_how_long_a_prompt_takes_is_known_from_those_before():
    machine = Machine()
    machine.script.prefill_row_s = 1e-4
    job = machine.start(prompt(1, 1000), 1)
    assert machine.conductor.seconds_left(job) is None
    machine.read(job)
    assert machine.conductor.seconds_left(job) == 0
    began, job = machine.now, machine.start(prompt(9, 1000), 1, reports=True)
    assert machine.conductor.seconds_left(job) == pytest.approx(1000 * 10 * 1e-4)
    seen: list[tuple[float, float]] = []
    while machine.conductor.next_token(
        job, lambda *event: seen.append((machine.now, machine.conductor.seconds_left(job)))
    ):
        continue
    assert machine.now - began == pytest.approx(1000 * 10 * 1e-4) and seen
    again = machine.start([*prompt(9, 1000), 5, Picture("a", 100)], 1)
    n_new = 1101 - 896  # whole pages are held; the other was not whole when it was computed
    assert machine.conductor.seconds_left(again) == pytest.approx((n_new + 160) * 10 * 1e-4, rel=0.2)


# What is shared


def test_a_beginning_that_another_prompt_computes_is_waited_for():
    machine = Machine()
    common = prompt(1, 300)
    one, other = machine.start([*common, 1], 3), machine.start([*common, 2], 3)
    assert machine.read(other) == alone([*common, 2], 3) and machine.read(one) == alone([*common, 1], 3)
    fake_core.SCRIPT = machine.script
    assert sum(machine.script.prefilled) == 301 + 301 - 256
    assert sorted([one.n_cached, other.n_cached]) == [0, 256]


def test_who_waits_for_a_page_goes_on_when_its_owner_is_cancelled():
    machine = Machine()
    machine.script.prefill_s = 1.0
    common = prompt(1, 300)
    one, other = machine.start([*common, 1], 3), machine.start([*common, 2], 3)
    machine.script.fail_at = lambda stage, step: setattr(one, "cancelled", stage == "prefill" and step == 5)
    assert machine.read(other) == alone([*common, 2], 3)
    machine.check()


def test_answers_to_one_prompt_compute_it_once_and_share_its_pages():
    machine = Machine()
    jobs = [machine.start(prompt(1, 300), 20, seed) for seed in range(5)]
    machine.read(jobs[0], 1)
    assert sum(machine.script.prefilled) == 300 and machine.pool.n_pages == 3
    machine.read(jobs[0], 1)
    assert machine.pool.n_pages <= 2 + 6  # a copy of the last page for each
    got = [jobs[0].tokens[:2] + machine.read(jobs[0]), *(machine.read(job) for job in jobs[1:])]
    assert got == [alone(prompt(1, 300), 20, seed) for seed in range(5)]
    assert [job.n_cached for job in jobs] == [0] + [300] * 4
    machine.check()


def test_answers_to_one_prompt_all_come_with_little_memory():
    machine = Machine(n_pages=4)
    jobs = [machine.start(prompt(1, 300), 20, seed) for seed in range(5)]
    assert [machine.read(job) for job in jobs] == [alone(prompt(1, 300), 20, seed) for seed in range(5)]
    machine.check()


def test_a_picture_that_two_requests_show_is_encoded_once():
    machine = Machine()
    machine.script.encode_s = 1.0
    one = machine.start([1, Picture("a", 100), 2], 3)
    other = machine.start([3, Picture("a", 100), Picture("b", 100)], 3)
    assert machine.read(other) == alone([3, Picture("a", 100), Picture("b", 100)], 3)
    assert machine.read(one) == alone([1, Picture("a", 100), 2], 3)
    assert len(machine.script.encoded) == 2


def test_a_page_that_an_answer_has_filled_is_found_by_the_next_prompt():
    machine = Machine()
    answer = machine.read(machine.start(prompt(1, 100), 200))
    items = [*prompt(1, 100), *answer, 5]
    is_answer = np.array([False] * 100 + [True] * 200 + [False])
    job = Job(Positions(ROOT, items, is_answer), JobSpec(chooser=Sampled(0), max_new_tokens=2))
    machine.read(machine.conductor.submit(job))
    assert job.n_cached == 299  # the answer's last token was sampled and never computed


# Tokens that are chosen here or forced


def test_tokens_chosen_beside_the_core_are_those_that_it_would_have_sampled():
    machine = Machine()
    jobs = [machine.start(prompt(n, 20), 20, n, chooser=Sampled(n, in_core=n % 2 == 0)) for n in range(4)]
    assert [machine.read(job) for job in jobs] == [alone(prompt(n, 20), 20, n) for n in range(4)]


def forced_at(machine: Machine, job: Job, n: int) -> list[int]:
    """Reads a job, forcing two tokens after the n-th."""
    tokens = machine.read(job, n)
    machine.conductor.force(job, [1, 2])
    return tokens + machine.read(job)


@pytest.mark.parametrize("n", [1, 3, 19])
def test_forced_tokens_follow_the_last_one_read(n):
    neighbour_alone = alone(prompt(2, 20), 60)
    got = []
    for machine in (Machine(), Machine()):
        job, neighbour = machine.start(prompt(1, 20), 20, max_ahead=1), machine.start(prompt(2, 20), 60)
        if got:
            machine.read(neighbour, 40)
        got.append(forced_at(machine, job, n))
        assert machine.read(neighbour) == (neighbour_alone if len(got) == 1 else neighbour_alone[40:])
        machine.check()
    assert got[0] == got[1] and got[0][:n] == alone(prompt(1, 20), 20)[:n]
    assert got[0][n : n + 2] == [1, 2][: 20 - n] and len(got[0]) == 20


def test_a_job_that_is_ahead_is_taken_back_when_tokens_are_forced():
    machine = Machine()
    job, neighbour = machine.start(prompt(1, 126), 7), machine.start(prompt(2, 20), 60)
    machine.read(job, 1), machine.read(neighbour, 30)
    assert job.end == "length"
    tokens = job.tokens[:1] + forced_at(machine, job, 0)
    assert tokens[1:3] == [1, 2] and len(tokens) == 7
    machine.check()


def test_a_prompt_alone_is_computed_and_samples_nothing():
    machine = Machine()
    job = machine.start(prompt(1, 200), 0)
    assert machine.read(job) == [] and job.end == "length"
    assert machine.conductor.n_held(Positions(ROOT, prompt(1, 200))) == 200


def test_the_logits_of_a_whole_prompt_come_page_by_page():
    machine = Machine()
    machine.read(machine.start(prompt(1, 300), 1))
    rows: list[tuple[int, int]] = []
    job = machine.start(prompt(1, 300), 3, prompt_rows=lambda start, logits: rows.append((start, len(logits))))
    assert machine.read(job) == alone(prompt(1, 300), 3)
    assert rows == [(0, 128), (128, 128), (256, 44)] and job.n_cached == 0


# Errors, cancelling, closing


def test_one_row_that_fails_does_not_touch_its_neighbours():
    machine = Machine()
    jobs = [machine.start(prompt(n, 20), 20, n) for n in range(3)]
    machine.read(jobs[0], 2), machine.read(jobs[1], 2), machine.read(jobs[2], 2)
    broken = id(jobs[1].holding.session)

    def fail(session) -> None:
        if id(session) == broken:
            raise ValueError("this row only")

    machine.script.fail_row = fail
    got = machine.read(jobs[0]), machine.read(jobs[2])
    with pytest.raises(ValueError, match="this row only"):
        machine.read(jobs[1])
    assert [alone(prompt(n, 20), 20, n)[2:] for n in (0, 2)] == list(got)
    machine.check()


@pytest.mark.parametrize("stage", ["prefill", "encode"])
def test_a_task_that_fails_ends_its_own_job_only(stage):
    machine = Machine()
    good = machine.start(prompt(1, 20), 20)
    machine.read(good, 2)

    def fail(at: str, step: int) -> None:
        if at == stage:
            raise ValueError("broken")

    machine.script.fail_at = fail
    bad = machine.start([Picture("a", 100), 2], 3)
    got = machine.read(good)
    with pytest.raises(ValueError, match="broken"):
        machine.read(bad)
    assert got == alone(prompt(1, 20), 20)[2:]
    machine.check()


def test_a_cancelled_prompt_leaves_its_whole_pages():
    machine = Machine()
    machine.script.prefill_s = 1.0
    job = machine.start(prompt(1, 3000), 1)
    machine.script.fail_at = lambda stage, step: setattr(job, "cancelled", machine.now > 1.5)
    assert machine.read(job) == []
    machine.check()
    assert machine.conductor.n_held(Positions(ROOT, prompt(1, 3000))) == 2048


def test_closing_ends_jobs_and_frees_all_pages():
    machine = Machine()
    job, unread = machine.start(prompt(1, 200), 100), machine.start(prompt(2, 200), 100)
    machine.read(job, 3)
    machine.gate.close()
    for one in (job, unread):
        with pytest.raises((Cancelled, BadRequest)) as caught:
            machine.read(one)
        assert caught.value.code == "engine.closed"
    assert machine.engine.closed and machine.pool.n_pages == 0
    with pytest.raises(BadRequest):
        machine.start(prompt(1, 20))


def test_a_request_that_never_fits_is_refused_with_numbers():
    machine = Machine(n_pages=3)
    with pytest.raises(OutOfMemory, match="3000 bytes") as caught:
        machine.read(machine.start(prompt(1, 600), 1))
    assert caught.value.code == "memory.kv_pages"
    assert machine.read(machine.start(prompt(1, 200), 3)) == alone(prompt(1, 200), 3)


# Memory


def test_with_little_memory_everybody_ends_with_the_same_tokens():
    expected = [alone(prompt(n, 150), 150, n) for n in range(6)]
    machine = Machine(n_pages=5)
    jobs = [machine.start(prompt(n, 150), 150, n) for n in range(6)]
    got = [[] for _ in jobs]
    while any(job.end is None or job.n_read < len(job.tokens) for job in jobs):
        for job, tokens in zip(jobs, got, strict=True):
            tokens += machine.read(job, 7)
    assert got == expected
    machine.check()


def test_two_equal_answers_do_not_take_the_memory_of_both():
    machine = Machine(n_pages=6)
    jobs = [machine.start(KINDS[2], 200, 1, max_ahead=1) for _ in range(2)]
    expected = alone(KINDS[2], 200, 1)
    got: list[list[int]] = [[], []]
    for _ in range(200):
        for job, tokens in zip(jobs, got, strict=True):
            tokens += machine.read(job, 1)
    assert got == [expected, expected]
    machine.check()


def test_with_little_memory_readers_in_threads_all_end():
    expected = [alone(prompt(n, 150), 120, n) for n in range(6)]
    machine = Machine(n_pages=5)
    assert read_in_threads(machine, [machine.start(prompt(n, 150), 120, n) for n in range(6)]) == expected
    machine.check()


# Any schedule

events = st.lists(
    st.tuples(
        st.sampled_from(["start", "read", "read", "read", "cancel", "clear", "interrupt", "pin"]),
        st.integers(0, 5),
        st.integers(1, 60),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(events, st.integers(6, 30), st.integers(1, 4))
def test_under_any_schedule_a_job_has_the_tokens_that_it_has_alone(events, n_pages, max_parallel):
    for kind in range(len(KINDS)):
        for seed in range(2):
            answer_of(kind, seed)
    machine = Machine(n_pages=n_pages, max_parallel=max_parallel)
    machine.script.chunk = 100
    running: list[tuple[Job, list[int], list[int]]] = []
    for event, which, n in events:
        machine.script.fail_at = lambda stage, step: None
        if event == "start":
            expected = answer_of(which % len(KINDS), n % 2)
            running.append((machine.start(KINDS[which % len(KINDS)], 200, n % 2), [], expected))
        elif event == "clear":
            machine.gate.call(machine.conductor.index.clear)
        elif event == "pin":
            machine.conductor.index.pin(list(machine.conductor.index.nodes())[:1], 1 if n % 2 else -1)
        elif running:
            job, tokens, _ = running[which % len(running)]
            if event == "cancel":
                machine.conductor.leave(job)
                running.pop(which % len(running))
                continue
            countdown = [n]

            def interrupt(stage: str, step: int, countdown: list[int] = countdown) -> None:
                countdown[0] -= 1
                if countdown[0] == 0:
                    raise KeyboardInterrupt

            if event == "interrupt":
                machine.script.fail_at = interrupt
            try:
                tokens += machine.read(job, n)
            except KeyboardInterrupt:
                tokens[:] = job.tokens[: job.n_read]
        machine.check()
    machine.script.fail_at = lambda stage, step: None
    machine.conductor.index.pin(machine.conductor.index.nodes(), -1)
    for job, tokens, expected in running:
        tokens += machine.read(job)
        assert tokens == expected
        machine.check()


def traced_lines(machine: Machine, at: int, call) -> int:
    """Calls `call` with a KeyboardInterrupt at the at-th line of the scheduler and its index. Returns the lines run."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        name = frame.f_code.co_filename
        if ("/scheduler/" not in name and "/cache/" not in name) or "tests" in name:
            return None
        # The interpreter looks for signals after calls and at the ends of loops: not at these two.
        if event == "line" and not linecache.getline(name, frame.f_lineno).lstrip().startswith(("with ", "try:")):
            count += 1
            if count == at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("kind", ["prompt", "decode", "little memory"])
def test_ctrl_c_at_any_line_costs_time_and_nothing_else(kind):
    """The thread that drives is interrupted; the answers of others go on to the same tokens."""
    expected = [alone(prompt(n, 140), 12, n) for n in range(3)]

    def run(at: int) -> tuple[Machine, list[Job], int]:
        machine = Machine(n_pages=4 if kind == "little memory" else 100)
        jobs = [machine.start(prompt(n, 140), 12, n) for n in range(3)]
        if kind == "decode":
            machine.read(jobs[0], 1), machine.read(jobs[2], 1)
        return machine, jobs, traced_lines(machine, at, lambda: machine.read(jobs[0], 3))

    n_lines = run(0)[2]
    assert n_lines > 100
    for at in range(1, n_lines, 1 + n_lines // 200):
        machine, jobs, _ = run(at)
        machine.conductor.leave(jobs[0])
        for n in (1, 2):
            tokens = jobs[n].tokens[: jobs[n].n_read] + machine.read(jobs[n])
            assert tokens == expected[n], f"interrupted at line {at} of {n_lines}"
        machine.check()


# The server's thread


def test_with_a_thread_that_drives_readers_only_wait():
    machine = Machine()
    drivers: set[int] = set()
    decode = machine.engine.decode

    def noted(rows):
        drivers.add(threading.get_ident())
        return decode(rows)

    machine.engine.decode = noted
    expected = [alone(prompt(n, 20), 100, n) for n in range(4)]
    alone_first = alone(prompt(7, 20), 1)
    fake_core.SCRIPT = machine.script
    with driving(machine) as thread:
        assert read_in_threads(machine, [machine.start(prompt(n, 20), 100, n) for n in range(4)]) == expected
        assert drivers == {thread.ident}
        waiting = machine.start(prompt(7, 20), 100)
        assert machine.read(waiting, 1) == alone_first
        machine.conductor.cancel(waiting)
        assert machine.read(waiting) == []


class NotedWaits(SimpleQueue):
    """What a driver waits at, and how long it meant to each time."""

    def __init__(self, machine: Machine) -> None:
        self.timeouts: list[float | None] = []
        machine.conductor._work = self

    def get(self, block=True, timeout=None):
        self.timeouts.append(timeout)
        return super().get(block, timeout)


def test_without_work_nothing_wakes_the_thread_that_drives():
    machine = Machine()
    waits = NotedWaits(machine)
    with driving(machine):
        wait_until(lambda: waits.timeouts, "there is nothing to do")
        job = machine.start(prompt(1, 20), 100)
        assert len(machine.read(job, 40)) == 40
        wait_until(lambda: len(job.tokens) >= 40 + MAX_AHEAD - 1, "it is as far ahead as may be")
        assert len(machine.read(job)) == 60
    assert set(waits.timeouts) == {None}


def test_a_thread_that_drives_is_stopped_by_waking_it():
    machine, stopped = Machine(), threading.Event()
    waits = NotedWaits(machine)
    thread = threading.Thread(target=machine.conductor.drive, args=(stopped.is_set,), daemon=True)
    thread.start()
    wait_until(lambda: waits.timeouts, "there is nothing to do")
    stopped.set()
    machine.conductor.wake()
    thread.join(60)
    assert not thread.is_alive() and not machine.gate.closed


def test_a_thread_that_drives_looks_again_for_memory_that_others_hold():
    machine = Machine(n_pages=8)
    waits = NotedWaits(machine)
    with driving(machine):
        first = machine.start(prompt(1, 100), 100)
        wait_until(lambda: len(first.tokens) == MAX_AHEAD, "it is as far ahead as may be")
        held = machine.pool.take_empty(8 - machine.pool.n_pages)
        second = machine.start(prompt(9, 300), 5)
        wait_until(lambda: waits.timeouts[-1], "it waits for memory")
        assert not second.tokens
        held.clear()
        wait_until(lambda: len(second.tokens) == 5, "it has found it")


def test_a_waiting_reader_is_cancelled_from_another_thread():
    machine = Machine()
    job = machine.start(prompt(1, 3900), 1)

    def cancel(stage: str, step: int) -> None:
        if stage == "prefill" and step == 5:
            thread = threading.Thread(target=machine.conductor.cancel, args=(job,))
            thread.start()
            thread.join(60)
            assert not thread.is_alive()

    machine.script.fail_at = cancel
    assert machine.read(job) == []
    machine.check()


def test_progress_comes_in_the_readers_own_thread_whoever_drives():
    machine = Machine(real_time=True)
    machine.script.prefill_s, machine.script.encode_s = 0.3, 0.3
    seen: list[tuple[int, str, int, int]] = []
    job = machine.start([Picture("a", 100), *prompt(1, 2500)], 2, reports=True)
    with driving(machine):
        while machine.conductor.next_token(job, lambda *one: seen.append((threading.get_ident(), *one))) is not None:
            continue
    assert {thread for thread, *_ in seen} == {threading.get_ident()}
    stages = [stage for _, stage, _, _ in seen]
    assert stages == sorted(stages) and set(stages) == {"encode", "prefill"}
    for stage in ("encode", "prefill"):
        done = [(n, total) for _, name, n, total in seen if name == stage]
        assert done == sorted(done) and done[-1][0] == done[-1][1] and len(done) > 2
