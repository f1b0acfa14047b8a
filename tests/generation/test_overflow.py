"""Conversations that outgrow the context: refused with numbers, or without their oldest turns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_vl_cpp import BadRequest, ContextFull, KimiVL
from kimi_vl_cpp.cache.keys import Picture, n_positions
from kimi_vl_cpp.generation.overflow import LEFT, drop_turns
from kimi_vl_cpp.text.chat_template import Span


def turn(number: int, n_question: int, n_answer: int | None, n_picture: int = 0) -> list:
    """A question, with its answer unless that is still to come."""
    picture = [Picture(f"p{number}", n_picture)] if n_picture else []
    asked = [1000, 9, 1002, *picture, *[number] * n_question, 1003, 1001, 9, 1002]
    return asked if n_answer is None else [*asked, *[number] * n_answer, 1003]


def spans(history: list[list], n_head: int) -> list[Span]:
    """Where the messages of these turns lie behind n_head items."""
    found, at = [], n_head
    for items in history:
        answer = items.index(1001)
        found.append(Span("user", at, at + 3, at + answer - 1))
        found.append(Span("assistant", at + answer, at + answer + 3, at + len(items) - (items[-1] == 1003)))
        at += len(items)
    return found


def joined(history: list[list]) -> list:
    return [item for turn in history for item in turn]


turns = st.lists(
    st.tuples(st.integers(1, 60), st.integers(0, 60), st.sampled_from([0, 0, 30])), min_size=1, max_size=20
)


@settings(max_examples=200)
@given(turns, st.integers(0, 20), st.integers(150, 400))
def test_whole_old_turns_go_and_the_cut_stays_until_the_next_overflow(sizes, n_system, n_ctx):
    """Asked turn by turn, as a client does that sends the whole history each time."""
    head = [7] * n_system
    cuts = []
    for last in range(len(sizes)):
        past = [turn(i, n, answer, picture) for i, (n, answer, picture) in enumerate(sizes[:last])]
        history = [*past, turn(last, sizes[last][0], None, sizes[last][2])]
        found = drop_turns([*head, *joined(history)], spans(history, n_system), n_ctx)
        cut = found.n_turns
        assert found.items == [*head, *joined(history[cut:])]
        assert found.messages == spans(history[cut:], n_system)
        assert found.n_tokens == n_positions(joined(history[:cut]))
        assert found.n_pictures == sum(size[2] > 0 for size in sizes[:cut])
        n = n_positions(found.items)
        assert n + 1 <= n_ctx or cut == last
        assert not cuts or cut >= cuts[-1]
        if cuts and cut > cuts[-1]:  # only because the question did not fit, and then for long
            assert n_positions([*head, *joined(history[cuts[-1] :])]) + 1 > n_ctx
            assert n <= LEFT * n_ctx or cut == last
        cuts.append(cut)


def test_a_conversation_goes_on_without_its_oldest_turns(script):
    script.answer = "yes"
    with KimiVL("fake-Instruct.gguf", n_ctx=1024, overflow="drop_turns") as model:
        conversation = model.conversation("You help.")
        dropped = []
        for number in range(12):
            picture = [np.full((56, 56, 3), number, np.uint8)]
            response = conversation.ask(f"{number} " + "word " * 40, images=picture)
            assert response.text == "yes"
            dropped.append(response.usage.dropped_tokens)
            assert bool(dropped[-1]) == any("left out" in notice for notice in response.notices)
        assert dropped[0] == 0 and dropped[-1] > 0
        assert len(set(dropped)) <= 5  # the cut stays where it is for some turns
        again = conversation.regenerate()
        assert again.usage.cached_tokens >= again.usage.prompt_tokens - 1 - 128
        assert len(conversation.turns) == 12


def test_a_last_question_that_does_not_fit_is_refused(script):
    with KimiVL("fake-Instruct.gguf", n_ctx=1024, overflow="drop_turns") as model:
        conversation = model.conversation()
        conversation.ask("Hi")
        with pytest.raises(ContextFull):
            conversation.ask("word " * 300)


def test_without_it_a_conversation_that_does_not_fit_is_refused(script, model):
    conversation = model.conversation()
    with pytest.raises(ContextFull):
        for _ in range(12):
            conversation.ask("word " * 40)


def test_overflow_is_error_or_drop_turns(script):
    with pytest.raises(BadRequest, match=r"overflow: got 'cut', expected one of error, drop_turns"):
        KimiVL("fake-Instruct.gguf", overflow="cut")
