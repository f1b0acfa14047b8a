"""Pages that outlive a process: what was computed once is read, and what is read gives the same tokens."""

from __future__ import annotations

import fake_core
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scheduler_support import KINDS, ROOT, Machine, Sampled, alone, answer_of, prompt

from kimi_vl_cpp import KimiVL
from kimi_vl_cpp.cache.folder import entries
from kimi_vl_cpp.cache.keys import Picture, Positions
from kimi_vl_cpp.files.digest import code_digest
from kimi_vl_cpp.generation import loaded
from kimi_vl_cpp.scheduler.job import Job, JobSpec

LONG = prompt(1, 900)


def test_after_a_restart_a_prompt_is_read_and_not_computed(tmp_path):
    tokens = [Machine(folder=tmp_path)]
    first = tokens[0]
    got = first.read(first.start(LONG, 20))
    second = Machine(folder=tmp_path)
    job = second.start(LONG, 20)
    assert second.read(job) == got == alone(LONG, 20)
    fake_core.SCRIPT = second.script
    assert sum(second.script.prefilled) == 1  # the row whose logits are wanted
    assert (job.n_cached, job.n_restored) == (899, 899)
    second.check()


def test_after_a_restart_a_conversation_computes_only_what_is_new(tmp_path):
    """The answer too, and the page in which it ended."""
    first = Machine(folder=tmp_path)
    answer = first.read(first.start(LONG, 200))
    items = [*LONG, *answer, 5, 6]
    is_answer = np.array([False] * 900 + [True] * 200 + [False] * 2)
    second = Machine(folder=tmp_path)
    job = Job(Positions(ROOT, items, is_answer), JobSpec(chooser=Sampled(0), max_new_tokens=5))
    got = second.read(second.conductor.submit(job))
    assert sum(second.script.prefilled) == 3  # and the answer's last token, which was sampled and never computed
    plain = Machine()
    other = Job(Positions(ROOT, items, is_answer), JobSpec(chooser=Sampled(0), max_new_tokens=5))
    assert got == plain.read(plain.conductor.submit(other))


def test_a_picture_is_read_and_not_encoded(tmp_path):
    items = [1, Picture("a", 100), 2]
    first = Machine(folder=tmp_path)
    got = first.read(first.start(items, 5))
    second = Machine(folder=tmp_path)
    assert second.read(second.start(items, 5)) == got
    assert second.script.encoded == [] and len(first.script.encoded) == 1


def test_a_picture_that_memory_has_no_room_for_is_read_once_for_a_prompt(tmp_path):
    items = [1, Picture("a", 100), 2]
    first = Machine(folder=tmp_path)
    got = first.read(first.start(items, 5))
    second = Machine(folder=tmp_path)
    second.images.max_bytes = 0
    assert second.read(second.start(items, 5)) == got
    assert second.images.store.counts.read == 1 and second.images.n_encoded == 0


def test_short_prompts_leave_no_files(tmp_path):
    machine = Machine(folder=tmp_path)
    machine.read(machine.start(prompt(1, 400), 20))
    assert entries(tmp_path) == []


def test_what_leaves_the_cache_alone_leaves_no_files(tmp_path):
    machine = Machine(folder=tmp_path)
    for cache in ("read", "off"):
        machine.read(machine.start(LONG, 20, cache=cache))
    assert entries(tmp_path) == []


def test_a_job_that_gave_its_pages_back_reads_them_again(tmp_path):
    """With room for one, two that alternate compute nothing twice."""
    machine = Machine(n_pages=12, folder=tmp_path)
    jobs = [machine.start(prompt(n, 900), 300, n) for n in range(2)]
    got: list[list[int]] = [[], []]
    while any(job.end is None or job.n_read < len(job.tokens) for job in jobs):
        for job, tokens in zip(jobs, got, strict=True):
            tokens += machine.read(job, 40)
    assert got == [alone(prompt(n, 900), 300, n) for n in range(2)]
    fake_core.SCRIPT = machine.script
    assert sum(job.n_restored for job in jobs) > 900
    n_again = sum(machine.script.prefilled) - 2 * 900
    n_turns = sum(job.n_restored > 0 for job in jobs) * 300 // 40 + 4
    assert n_again <= 2 * n_turns  # the last row, whose logits are wanted, each time
    machine.check()


def test_others_go_on_while_a_long_beginning_is_read(tmp_path):
    long = prompt(3, 3900)
    first = Machine(folder=tmp_path)
    first.read(first.start(long, 1))
    machine = Machine(folder=tmp_path)
    page = machine.conductor.index.disk.store.page
    reads: list[int] = []

    def noted(*args):
        reads.append(len(machine.script.steps))
        return page(*args)

    machine.conductor.index.disk.store.page = noted
    job = machine.start(prompt(1, 20), 50)
    machine.read(job, 3)
    other = machine.start(long, 1)
    machine.read(job, 30)
    assert len(reads) == 3899 // 128
    assert machine.read(other) == alone(long, 1)
    machine.check()


@pytest.mark.parametrize("damaged", [[3], [3, 4, 6], range(7)], ids=str)
def test_damaged_pages_are_computed_again_and_are_whole_after_one_run(tmp_path, damaged):
    first = Machine(folder=tmp_path)
    first.read(first.start(LONG, 5))
    positions = Positions(ROOT, LONG)
    store = first.conductor.index.disk.store
    for number in damaged:
        path = store._path(positions.key(number), ".kv")
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    second = Machine(folder=tmp_path)
    job = second.start(LONG, 5)
    assert second.read(job) == alone(LONG, 5)
    assert job.n_restored == damaged[0] * 128
    assert [notice.code for notice in second.conductor.index.disk.store.notices] == ["cache.damaged"]
    third = Machine(folder=tmp_path)
    assert third.read(job := third.start(LONG, 5)) == alone(LONG, 5)
    assert job.n_restored == 899


events = st.lists(
    st.tuples(st.sampled_from(["start", "read", "read", "cancel", "clear", "restart"]), st.integers(0, 5)),
    min_size=5,
    max_size=25,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(events, st.integers(6, 30))
def test_under_any_schedule_with_restarts_a_job_has_the_tokens_that_it_has_alone(tmp_path_factory, events, n_pages):
    for kind in range(len(KINDS)):
        answer_of(kind, 0)
    folder = tmp_path_factory.mktemp("cache")
    machine = Machine(n_pages=n_pages, folder=folder)
    machine.conductor.index.disk.least = 128
    running: list[tuple[Job, list[int], int]] = []
    for event, which in events:
        kind = which % len(KINDS)
        if event == "start":
            running.append((machine.start(KINDS[kind], 200, 0), [], kind))
        elif event == "clear":
            machine.gate.call(machine.conductor.index.clear)
        elif event == "restart":
            machine.gate.close()
            running.clear()
            machine = Machine(n_pages=n_pages, folder=folder)
        elif running:
            job, tokens, _ = running[which % len(running)]
            if event == "cancel":
                machine.conductor.leave(job)
                running.pop(which % len(running))
            else:
                tokens += machine.read(job, 50)
        machine.check()
    for job, tokens, kind in running:
        tokens += machine.read(job)
        assert tokens == answer_of(kind, 0)
    assert not machine.conductor.index.disk.store.notices


# Through the face


def test_a_second_process_answers_from_the_folder(script, tmp_path):
    messages = [{"role": "user", "content": "word " * 180}]
    options = {"n_ctx": 2048, "cache_dir": tmp_path}
    with KimiVL("fake-Instruct.gguf", **options) as model:
        first = model.start(messages).drain()
    with KimiVL("fake-Instruct.gguf", **options) as model:
        second = model.start(messages).drain()
        info = model.cache.info()
    assert second.text == first.text and first.usage.restored_tokens == 0
    assert second.usage.restored_tokens == second.usage.cached_tokens == second.usage.prompt_tokens - 1
    assert info.disk.read > 0 and info.disk.bytes > 0 and not info.disk.notices


@pytest.mark.parametrize("other", [{"isa": "generic"}, {"activations": "float"}, {"path": "another-Instruct.gguf"}])
def test_what_decides_the_bits_separates_the_files(script, tmp_path, other):
    messages = [{"role": "user", "content": "word " * 180}]
    with KimiVL("fake-Instruct.gguf", n_ctx=2048, cache_dir=tmp_path) as model:
        model.start(messages).drain()
    options = {"path": "fake-Instruct.gguf", "n_ctx": 2048, "cache_dir": tmp_path, **other}
    with KimiVL(**options) as model:
        assert model.start(messages).drain().usage.restored_tokens == 0


def test_other_code_of_the_same_version_computes_anew(script, tmp_path, monkeypatch):
    core = tmp_path / "_core.so"
    core.write_bytes(b"old kernels")
    monkeypatch.setattr(loaded._core, "__file__", str(core))
    messages = [{"role": "user", "content": "word " * 180}]
    options = {"path": "fake-Instruct.gguf", "n_ctx": 2048, "cache_dir": tmp_path / "cache"}
    restored = []
    for kernels in (b"old kernels", b"old kernels", b"new kernels", b"new kernels"):
        core.write_bytes(kernels)
        code_digest.cache_clear()  # as in a new process
        with KimiVL(**options) as model:
            restored.append(model.start(messages).drain().usage.restored_tokens > 0)
    code_digest.cache_clear()
    assert restored == [False, True, False, True]
