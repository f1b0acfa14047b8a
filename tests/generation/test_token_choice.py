"""What a request changes in the choice of tokens, log probabilities, and the end of reasoning and of loops."""

from __future__ import annotations

import fake_core
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_vl_cpp.errors import BadRequest
from kimi_vl_cpp.generation.choosing import token_logprob
from kimi_vl_cpp.generation.loop_guard import LONGEST_PERIOD, LoopGuard
from kimi_vl_cpp.model import KimiVL

ASK = [{"role": "user", "content": "Hi"}]
END = 256 + fake_core.SPECIAL.index("<|im_end|>")


@pytest.fixture
def model(script):
    with KimiVL("fake-Instruct.gguf", n_ctx=2048) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def real():
    with KimiVL.builtin(n_ctx=1024) as loaded:
        yield loaded


@pytest.fixture
def thinking(model):
    model.loaded.variant = "thinking"
    return model


# Log probabilities


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40), st.integers(0, 20), st.data())
def test_log_probabilities_are_a_log_softmax_best_first_ties_to_the_smaller_id(values, n_top, data):
    logits = np.array(values, dtype=np.float32)
    token = data.draw(st.integers(0, len(values) - 1))
    got = token_logprob(logits, token, n_top)
    exact = logits.astype(np.float64)
    exact = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    assert got.logprob == pytest.approx(exact[token], abs=1e-5)
    order = sorted(range(len(values)), key=lambda index: (-logits[index], index))[:n_top]
    assert [index for index, _ in got.top] == order
    assert dict(got.top).get(token, got.logprob) == got.logprob


def test_log_probabilities_are_those_of_the_raw_logits_whatever_is_sampled(real):
    plain = real.start(ASK, temperature=0, max_new_tokens=8, logprobs=3).drain()
    assert len(plain.logprobs) == len(plain.token_ids) > 0
    assert all(one.top[0] == (one.token_id, one.logprob) for one in plain.logprobs)
    biased = real.start(ASK, temperature=0, max_new_tokens=8, logprobs=3, logit_bias={5: 0.5}, repeat_last_n=0).drain()
    assert biased.logprobs[0].top == plain.logprobs[0].top


def test_asking_for_log_probabilities_changes_no_token(real):
    options = {"temperature": 1.5, "seed": 11, "max_new_tokens": 24, "repeat_penalty": 1.1}
    plain = real.start(ASK, **options).drain()
    asked = real.start(ASK, **options, logprobs=20).drain()
    assert asked.token_ids == plain.token_ids


def test_prompt_log_probabilities_are_those_of_the_logits(real):
    ids = real.tokenize("What is written on the receipt? " * 40)
    assert len(ids) > 256  # several pages
    answer = real.start_text(ids, prompt_logprobs=2, logprobs=2, max_new_tokens=1, temperature=0).drain()
    logits = real.logits([ids])
    assert answer.prompt_logprobs[0] is None and len(answer.prompt_logprobs) == len(ids)
    for position in (1, 127, 128, 129, len(ids) - 1):
        assert answer.prompt_logprobs[position] == token_logprob(logits[position - 1], ids[position], 2)
    assert answer.logprobs[0] == token_logprob(logits[-1], int(logits[-1].argmax()), 2)


def test_pieces_carry_the_tokens_and_log_probabilities_of_their_text(script, thinking):
    script.answer = "◁think▷hm◁/think▷ yes é"
    stream = thinking.start(ASK, logprobs=0)
    pieces = list(stream)
    said = [piece for piece in pieces if piece.kind == "text"]
    text = b"".join(bytes([one.token_id]) for piece in said for one in piece.logprobs).decode()
    assert text == "yes é" == stream.result.text
    assert not any(piece.logprobs for piece in pieces if piece.kind == "thinking")
    assert stream.result.usage.reasoning_tokens == len("◁think▷hm◁/think▷".encode())
    assert sum((piece.token_ids for piece in pieces), ()) == stream.result.token_ids


# What is changed in the logits


def test_a_bias_of_minus_100_forbids_a_token(script, model):
    script.answer = "abc"
    text = model.start(ASK, temperature=0, logit_bias={ord("b"): -100}, max_new_tokens=3).drain().text
    assert text[0] == "a" and text[2] == "c" and "b" not in text


def test_forbidding_every_token_is_an_error(model):
    with pytest.raises(BadRequest) as caught:
        model.start(ASK, logit_bias=dict.fromkeys(range(fake_core.N_VOCAB), -100)).drain()
    assert caught.value.code == "request.logit_bias"


@pytest.mark.parametrize("option", [{"logit_bias": {fake_core.N_VOCAB: 1}}, {"stop_token_ids": [fake_core.N_VOCAB]}])
def test_ids_outside_of_the_vocabulary_are_refused(model, option):
    with pytest.raises(BadRequest, match=f"0 to {fake_core.N_VOCAB - 1}"):
        model.start(ASK, **option)


def test_penalties_take_from_tokens_that_the_answer_has(real):
    options = {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True}
    plain = real.start(ASK, **options).drain().token_ids
    punished = real.start(ASK, **options, frequency_penalty=2.0, presence_penalty=2.0).drain().token_ids
    assert punished[0] == plain[0]
    assert len(set(punished)) > len(set(plain))


# Where the answer ends


def test_stop_ids_end_the_answer_and_are_not_part_of_it(model):
    answer = model.start(ASK, temperature=0, stop_token_ids=[ord("w")]).drain()
    assert (answer.text, answer.finish_reason) == ("Hello ", "stop")


def test_ignore_eos_goes_on_to_the_limit(model):
    answer = model.start(ASK, temperature=0, ignore_eos=True, max_new_tokens=30).drain()
    assert (len(answer.token_ids), answer.finish_reason) == (30, "length")


def test_no_end_of_turn_before_min_tokens(script, model):
    script.answer = "ab"
    answer = model.start(ASK, temperature=0, min_tokens=5, max_new_tokens=50).drain()
    assert len(answer.token_ids) >= 5 and answer.token_ids[:2] == (ord("a"), ord("b"))
    assert END not in answer.token_ids


def test_no_tokens_at_all_computes_the_prompt_only(script, model):
    answer = model.start(ASK, prompt_only=True).drain()
    assert (answer.text, answer.finish_reason, answer.token_ids) == ("", "length", ())
    n_before = len(script.prefilled)
    assert model.start(ASK).drain().usage.cached_tokens == answer.usage.prompt_tokens - 1
    assert script.prefilled[n_before:] == [1]


def test_more_tokens_than_fit_are_cut_with_a_notice(model):
    notices = model.start(ASK, max_new_tokens=5000).notices
    assert len(notices) == 1 and "5000" in notices[0] and str(model.n_ctx) in notices[0]
    assert model.start(ASK, max_new_tokens=-1).notices == []


def brute_repeats(tokens, copies, least):
    n = len(tokens)
    for period in range(1, LONGEST_PERIOD + 1):
        length = max(least, copies * period)
        if length <= n and all(tokens[n - i] == tokens[n - i - period] for i in range(1, length - period + 1)):
            return True
    return False


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(0, 30))
def test_a_loop_is_found_when_it_is_there(start, period, times):
    guard, tokens = LoopGuard(), start + period * times
    for token in tokens:
        guard.push(token)
    for copies, least in ((4, 16), (8, 24)):
        assert guard.repeats(copies, least) == brute_repeats(tokens, copies, least)


def test_an_answer_that_repeats_itself_is_ended(script, model):
    script.answer = "intro " + "la la " * 400
    answer = model.start(ASK, temperature=0, loop_guard=True, max_new_tokens=2000).drain()
    assert (answer.finish_reason, answer.stop_reason) == ("length", "repetition")
    assert 1024 <= len(answer.token_ids) <= 1024 + 10
    assert model.start(ASK, temperature=0, max_new_tokens=1500).drain().stop_reason is None


# Reasoning


@pytest.mark.parametrize("budget", [0, 1, 5, 100])
@pytest.mark.parametrize("close", ["", " Enough."])
def test_a_reasoning_over_its_budget_is_closed_and_the_answer_follows(script, thinking, budget, close):
    script.answer = "◁think▷" + "x" * 300
    stream = thinking.start(
        ASK, temperature=0, thinking_budget=budget or None, thinking_close=close, max_new_tokens=340
    )
    if budget == 0:
        stream.end_thinking()
    pieces = list(stream)
    result = stream.result
    assert len(result.thinking) <= budget + len(close)
    assert result.thinking.endswith(close.strip())
    assert set(result.text) == {"x"}  # the script goes on
    assert stream.thinking_closed_by == ("budget" if budget else "asked")
    assert "".join(piece.text for piece in pieces if piece.kind == "text") == result.text


@pytest.mark.parametrize("n_begun", range(1, len("◁/think▷")))
def test_a_closing_mark_that_the_model_has_begun_is_continued(script, thinking, n_begun):
    begun = "◁/think▷"[:n_begun]
    script.answer = "◁think▷abc" + begun + "zzzz" * 20
    budget = len("abc" + begun) if n_begun == 0 else len(("abc" + begun).encode())
    result = thinking.start(ASK, temperature=0, thinking_budget=budget, max_new_tokens=60).drain()
    assert result.thinking == "abc"
    assert set(result.text) == {"z"}


def test_a_character_is_finished_before_the_reasoning_is_closed(script, thinking):
    script.answer = "◁think▷" + "é" * 50
    result = thinking.start(ASK, temperature=0, thinking_budget=3, max_new_tokens=80).drain()
    assert result.thinking == "éé"


def test_a_reasoning_that_ends_by_itself_is_not_closed_again(script, thinking):
    script.answer = "◁think▷ab◁/think▷" + "y" * 40 + "◁think▷zz"
    stream = thinking.start(ASK, temperature=0, thinking_budget=30, max_new_tokens=200)
    result = stream.drain()
    assert (result.thinking, result.text) == ("ab", "y" * 40 + "◁think▷zz")
    assert stream.thinking_closed_by is None


def test_a_reserve_keeps_tokens_for_the_answer(script, thinking):
    script.answer = "◁think▷" + "x" * 300
    result = thinking.start(ASK, temperature=0, answer_reserve=30, max_new_tokens=120).drain()
    assert result.thinking and result.text


def test_a_reasoning_in_a_loop_is_closed(script, thinking):
    script.answer = "◁think▷" + "ab" * 800
    stream = thinking.start(ASK, temperature=0, loop_guard=True, max_new_tokens=600)
    result = stream.drain()
    assert 256 <= len(result.thinking) <= 270 and stream.thinking_closed_by == "repetition"


def test_reasoning_turned_off_is_an_empty_one_in_the_prompt(script, thinking):
    script.answer = "  yes ◁think▷no"
    off = thinking.start(ASK, temperature=0, thinking_budget=0)
    plain = thinking.start(ASK, temperature=0)
    assert off.n_prompt == plain.n_prompt + len("◁think▷\n\n◁/think▷".encode())
    assert off.drain().text == "yes ◁think▷no"
    assert off.result.usage.reasoning_tokens == 0


def test_a_model_that_does_not_reason_says_so(model):
    stream = model.start(ASK, temperature=0, thinking_budget=0)
    assert stream.n_prompt == model.start(ASK).n_prompt and "does not reason" in stream.notices[0]


# The answer continues a message


def test_the_last_message_is_continued_and_the_reply_is_the_new_text(script, model):
    script.answer = "b c"
    stream = model.start([*ASK, {"role": "assistant", "content": "a "}], temperature=0, continue_final=True)
    assert stream.prompt_ids[-2:] == (ord("a"), ord(" "))
    assert stream.drain().text == "b c"


@pytest.mark.parametrize(
    ("begun", "reply", "thought", "text"),
    [
        ("◁think▷so", "me◁/think▷yes", "me", "yes"),
        ("◁think▷some◁/think▷y", "es", "", "es"),
        ("The total", " is 5", "", " is 5"),
    ],
)
def test_a_reply_continues_an_open_reasoning_or_an_answer(script, thinking, begun, reply, thought, text):
    script.answer = reply
    messages = [*ASK, {"role": "assistant", "content": begun}]
    result = thinking.start(messages, temperature=0, continue_final=True).drain()
    assert (result.thinking, result.text) == (thought, text)


def test_only_a_message_of_the_assistant_is_continued(model):
    with pytest.raises(BadRequest, match=r"messages\[0\]"):
        model.start(ASK, continue_final=True)
