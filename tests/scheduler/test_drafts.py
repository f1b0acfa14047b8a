"""Drafts: what is proposed, when it is worth its rows, and that an answer with drafts is the answer without them."""

from __future__ import annotations

import fake_core
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_support import KINDS, Machine, alone, answer_of, prompt

from kimi_vl_cpp import KimiVL
from kimi_vl_cpp.cache.keys import Picture, Positions
from kimi_vl_cpp.errors import BadRequest
from kimi_vl_cpp.scheduler.drafts import MAX_DRAFT, Drafter, DraftLength
from kimi_vl_cpp.testing import ROWS_OF_256
from kimi_vl_cpp.types import Response

END = 256 + fake_core.SPECIAL.index("<|im_end|>")


def drafter_of(items: list) -> Drafter:
    drafter = Drafter()
    drafter.follow(Positions(b"root", items))
    return drafter


def test_what_followed_the_same_four_tokens_is_drafted():
    assert drafter_of([1, 2, 3, 4, 50, 60, 70, 1, 2, 3, 4]).draft(3) == [50, 60, 70]
    assert drafter_of([1, 2, 3, 4, 50, 60, 70, 1, 2, 3]).draft(3) == []
    assert drafter_of([1, 2, 3, 4, 50, 9, 1, 2, 3, 4, 51, 9, 1, 2, 3, 4]).draft(1) == [51]  # the last time counts


def test_a_repetition_is_drafted_beyond_its_end():
    assert drafter_of([5, 1, 2, 1, 2, 1, 2]).draft(5) == [1, 2, 1, 2, 1]


def test_a_draft_ends_before_a_picture_and_before_what_ends_the_answer():
    common = [1, 2, 3, 4]
    assert drafter_of([*common, 5, Picture("a", 3), 6, *common]).draft(4) == [5]
    assert drafter_of([*common, 5, 9, 6, *common]).draft(4, {9}) == [5]
    assert drafter_of([Picture("a", 9), Picture("b", 9)]).draft(4) == []


@settings(max_examples=100)
@given(st.lists(st.integers(0, 3), max_size=120), st.integers(0, 12), st.integers(1, 12))
def test_a_draft_is_what_came_after_the_same_tokens(ids, n_later, n):
    """However the positions were taken in, against all places where the last four tokens stood before."""
    drafter, positions = Drafter(), Positions(b"root", ids)
    drafter.follow(positions)
    for token in range(n_later):
        positions.append(token % 3)
        drafter.follow(positions)
    everything = positions.tokens(0)
    draft = drafter.draft(n)
    ends = [at for at in range(4, len(everything)) if everything[at - 4 : at] == everything[-4:]]
    assert len(draft) == (n if ends else 0)
    for done in range(len(draft)):
        assert any((everything + draft)[end : end + done + 1] == draft[: done + 1] for end in ends)


def test_no_draft_is_worth_its_rows_before_the_past_has_told_the_future():
    length = DraftLength()
    assert length.best(0.0, 1, MAX_DRAFT) == 0
    assert [length.best(rate, 1, MAX_DRAFT) > 0 for rate in (0.3, 0.5, 0.99)] == [False, True, True]
    assert length.best(0.99, 1, 3) == 3


def test_where_rows_cost_as_much_as_steps_nothing_is_drafted():
    length = DraftLength()
    for _ in range(50):
        length.note(1, 0.1), length.note(4, 0.4)
    assert length.best(0.9, 1, MAX_DRAFT) == 0
    for _ in range(50):
        length.note(1, 0.1), length.note(4, 0.12)
    assert length.best(0.9, 1, MAX_DRAFT) == MAX_DRAFT


# On a core that answers by script


def saying(text: str, **options) -> Machine:
    machine = Machine(**options)
    machine.script.answer = text
    return machine


def test_an_answer_that_repeats_itself_takes_a_fraction_of_the_steps():
    machine = saying("12345678, " * 40)
    job = machine.start(prompt(1, 20), 400, stop_ids=frozenset({END}))
    assert bytes(machine.read(job)).decode() == "12345678, " * 40
    assert len(machine.script.steps) < 100
    assert job.n_accepted > 0.9 * job.n_drafted > 200


def test_an_answer_that_follows_the_prompt_is_drafted_from_it():
    text = "".join(chr(33 + i * i % 90) for i in range(200))
    machine = saying(text)
    job = machine.start(list(text.encode()), 200, stop_ids=frozenset({END}))
    assert bytes(machine.read(job)).decode() == text
    assert len(machine.script.steps) < 80


def test_an_answer_without_repetition_is_decoded_as_if_nothing_were_drafted():
    machine = Machine()
    job = machine.start(prompt(1, 200), 300)
    assert machine.read(job) == alone(prompt(1, 200), 300)
    assert job.n_drafted == 0 and len(machine.script.steps) == 299


def test_a_past_that_misleads_costs_no_rows():
    """Every four tokens have been there before, and what comes next is never what came then."""
    text = "".join(f"abcd{chr(40 + i % 80)}" for i in range(60))
    machine = saying(text)
    job = machine.start(prompt(1, 20), 300, stop_ids=frozenset({END}))
    assert bytes(machine.read(job)).decode() == text
    assert job.n_drafted - job.n_accepted <= 5


def test_nothing_is_drafted_in_a_step_of_many_answers():
    machine = saying("1234, " * 50)
    steps: list[list[int]] = []
    decode = machine.engine.decode

    def noted(rows):
        steps.append([len(tokens) for _, tokens, _ in rows])
        return decode(rows)

    machine.engine.decode = noted
    jobs = [machine.start(prompt(n, 20), 100) for n in range(5)]
    for _ in range(100):
        for job in jobs:
            machine.read(job, 1)
    assert all(sum(step) == 5 for step in steps if len(step) == 5)
    assert any(sum(step) > len(step) for step in steps)


def test_nothing_is_drafted_for_a_reader_that_decides_after_each_token():
    machine = saying("1234, " * 50)
    job = machine.start(prompt(1, 20), 100, max_ahead=1)
    machine.read(job)
    assert job.n_drafted == 0


@settings(max_examples=60)
@given(st.lists(st.integers(0, MAX_DRAFT + 2), min_size=1, max_size=20), st.integers(0, 3), st.integers(5, 30))
def test_drafts_that_are_wrong_anywhere_change_no_token(n_right, kind, n_pages):
    """Drafts that are right for so many tokens and wrong after them, beside an answer without drafts."""
    expected = [answer_of(kind, 0), answer_of((kind + 1) % 4, 1)]
    machine = Machine(n_pages=n_pages)
    jobs = [machine.start(KINDS[kind], 200, 0), machine.start(KINDS[(kind + 1) % 4], 200, 1)]
    rounds = iter(range(1 << 30))

    def draft(n: int, stop_ids: object) -> list[int]:
        right = n_right[next(rounds) % len(n_right)]
        return [(t + (i >= right)) % 200 for i, t in enumerate(expected[0][len(jobs[0].tokens) :][:n])]

    jobs[0].drafter.draft = draft
    machine.conductor._turns._draft_length.best = lambda rate, n_rows, n_most: n_most
    assert [machine.read(job) for job in jobs] == expected
    assert jobs[0].n_drafted > 0
    machine.check()


# On the real core


TEXTS = ["1 2 3 4 5 6 7 8 9 " * 12, '{"a": [1, 2], "b": [1, 2], "c": [1, 2], "d": ' * 5]


def answers(model: KimiVL, temperature: float) -> tuple[list[list[int]], list[Response]]:
    """The prompts and answers of six requests."""
    options = {"temperature": temperature, "max_new_tokens": 150, "ignore_eos": True, "repeat_penalty": 1.1}
    streams = [model.start_text(TEXTS[seed % 2], seed=seed, **options) for seed in range(6)]
    return [list(stream.prompt_ids) for stream in streams], [stream.drain() for stream in streams]


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0, 3.0])
def test_an_answer_with_drafts_has_the_tokens_of_plain_decoding(tiny_model, isa, temperature, monkeypatch):
    """With drafts that are right, wrong at some place, and wrong at once."""
    tiny = tiny_model(seed=6, text_type="Q4_K_M", vision_type="Q8_0", **ROWS_OF_256)
    with KimiVL(tiny.text, isa=isa, n_ctx=1024, speculate="off") as model:
        prompts, plain = answers(model, temperature)
    assert all(one.usage.drafted_tokens == 0 for one in plain)
    sequences = [prompt + list(one.token_ids) for prompt, one in zip(prompts, plain, strict=True)]

    def draft(self: Drafter, n: int, stop_ids: object) -> list[int]:
        past = self._ids
        later = next((ids[len(past) :][:n] for ids in sequences if ids[: len(past)] == past), [])
        n_right = len(past) % 11
        return [token if at < n_right else 7 for at, token in enumerate(later)]

    monkeypatch.setattr(Drafter, "draft", draft)
    monkeypatch.setattr(DraftLength, "best", lambda self, rate, n_rows, n_most: n_most)
    with KimiVL(tiny.text, isa=isa, n_ctx=1024) as model:
        drafted = answers(model, temperature)[1]
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
    n_accepted = sum(one.usage.accepted_tokens for one in drafted)
    assert n_accepted > 200 and sum(one.usage.drafted_tokens for one in drafted) > n_accepted + 200


def test_speculate_is_auto_or_off(script):
    with pytest.raises(BadRequest, match=r"speculate: got 'on', expected one of auto, off"):
        KimiVL("fake-Instruct.gguf", speculate="on")
