"""Several answers to one prompt: each is what it is alone, the prompt is computed once, a vote ends early."""

from __future__ import annotations

import numpy as np
import pytest

from kimi_vl_cpp import BadRequest, KimiVL
from kimi_vl_cpp.generation.several import answer_seed, normalized
from kimi_vl_cpp.text.tokenizer import Tokenizer


def test_each_of_several_answers_is_the_one_that_its_seed_gives_alone(script, model):
    script.answer = None
    picture = np.zeros((56, 84, 3), np.uint8)
    answers = model.answers("Hi", [picture], n=4, seed=7, max_new_tokens=12)
    assert len(script.encoded) == 1 and sum(script.prefilled) == answers.responses[0].usage.prompt_tokens
    assert [one.seed for one in answers.responses] == [answer_seed(7, index) for index in range(4)]
    assert script.steps.count(4) >= 10
    for one in answers.responses:
        assert model.chat("Hi", [picture], seed=one.seed, max_new_tokens=12).token_ids == one.token_ids
    assert len({one.token_ids for one in answers.responses}) == 4


def test_the_prompt_of_several_answers_is_written_once(script, model, monkeypatch):
    written: list[str] = []
    encode = Tokenizer.encode
    monkeypatch.setattr(
        Tokenizer, "encode", lambda self, text, **form: (written.append(text), encode(self, text, **form))[1]
    )
    model.answers("A question", n=4, max_new_tokens=2)
    assert written.count("A question") == 1
    written.clear()
    model.create_chat_completion([{"role": "user", "content": "A question"}], n=3, max_tokens=2)
    assert written.count("A question") == 1


def test_several_answers_stream_side_by_side_with_their_numbers(script, model):
    script.answer = None
    whole = model.answers("Hi", n=3, seed=7, max_new_tokens=12)
    stream = model.answers("Hi", n=3, seed=7, max_new_tokens=12, stream=True)
    assert stream.seeds == tuple(one.seed for one in whole.responses) and stream.result is None
    pieces = list(stream)
    texts = ["".join(piece.text for index, piece in pieces if index == n) for n in range(3)]
    assert texts == [one.text for one in whole.responses] == [one.text for one in stream.result.responses]
    assert {index for index, _ in pieces[:6]} == {0, 1, 2}


def test_closing_the_stream_of_several_answers_cancels_them(script, model):
    stream = model.answers("Hi", n=3, stream=True)
    next(stream)
    stream.close()
    assert [one.finish_reason for one in stream.result.responses] == ["cancelled"] * 3
    assert stream.result.winner is None and model.loaded.conductor.n_jobs == 0
    untouched = model.answers("Hi", n=2, stream=True)
    untouched.close()
    assert [one.text for one in untouched.result.responses] == ["", ""]


def test_choices_of_one_completion_are_decoded_together(script, model):
    model.create_chat_completion([{"role": "user", "content": "Hi"}], n=3, max_tokens=12, seed=1)
    assert script.steps.count(3) >= 9


def test_a_vote_ends_when_the_lead_cannot_be_lost(script, model):
    answers = model.answers("Hi", n=5, vote=True, seed=1)
    assert answers.winner is not None and answers.winner.text == "Hello world" == str(answers)
    ended = [one for one in answers.responses if one.finish_reason == "stop"]
    assert answers.votes == {"hello world": len(ended)} and 3 <= len(ended) <= 5
    assert model.answers("Hi", n=3).votes == {"hello world": 3}


@pytest.mark.parametrize(("text", "same"), [("Yes.", "yes"), (" A  b\n", "a b"), ("1.5", "1.5")])
def test_answers_that_differ_in_case_spaces_and_a_full_stop_are_one(text, same):
    assert normalized(text) == normalized(same) == same


@pytest.mark.parametrize("n", [0, 65, 1.5, True])
def test_a_number_of_answers_out_of_range_is_refused(model, n):
    with pytest.raises(BadRequest) as caught:
        model.answers("Hi", n=n)
    assert caught.value.code == "request.n"


def test_an_error_in_one_answer_ends_the_others(script, model):
    seen = []

    def fail(session) -> None:
        seen.append(session)
        if len(seen) == 10:
            raise ValueError("broken")

    script.fail_row = fail
    with pytest.raises(ValueError, match="broken"):
        model.answers("Hi", n=3)
    assert model.loaded.conductor.n_jobs == 0


def test_a_conversation_forks_into_two_that_go_on_independently(script, model):
    script.answer = None
    conversation = model.conversation("Be brief.")
    conversation.ask("One", seed=1, max_new_tokens=30)
    fork = conversation.fork()
    script.prefilled.clear()
    mine, other = conversation.ask("Two", seed=2, max_new_tokens=8), fork.ask("Three", seed=2, max_new_tokens=8)
    assert other.usage.cached_tokens >= mine.usage.prompt_tokens - 40
    assert [turn.text for turn in conversation.turns] == ["One", "Two"]
    assert [turn.text for turn in fork.turns] == ["One", "Three"]
    with KimiVL("fake-Instruct.gguf", n_ctx=1024) as fresh:
        again = fresh.conversation("Be brief.")
        again.ask("One", seed=1, max_new_tokens=30)
        assert again.ask("Three", seed=2, max_new_tokens=8).token_ids == other.token_ids
