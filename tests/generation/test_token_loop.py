"""The token loop on a core that answers by script: stop strings, thinking, prefix reuse, cancelling, counts."""

from __future__ import annotations

import gc
import random
import re
import string
import threading

import fake_core
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_vl_cpp.errors import BadRequest, Cancelled, ContextFull
from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.text.stop_strings import StopMatcher


@pytest.fixture
def thinker(script):
    script.metadata = {"general.name": "Kimi VL Fake Thinking"}
    with KimiVL("fake-Thinking.gguf", n_ctx=1024) as loaded:
        yield loaded


def picture(seed: int = 0, size: tuple[int, int] = (56, 84)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


# Answers


def test_answer_is_what_the_model_says_up_to_the_end_of_its_turn(model):
    response = model.chat("Hi")
    assert (response.text, response.thinking, response.finish_reason) == ("Hello world", "", "stop")
    assert response.token_ids == tuple(b"Hello world")
    assert response.usage.completion_tokens == len("Hello world")


def test_pieces_joined_are_the_text_and_the_return_value_is_the_response(model):
    stream = model.chat("Hi", stream=True)
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            response = end.value
            break
    assert "".join(map(str, pieces)) == response.text == "Hello world"
    assert stream.result is response


def test_a_character_of_several_tokens_comes_in_one_piece(script, model):
    script.answer = "aé漢😀b"
    pieces = [piece.text for piece in model.chat("Hi", stream=True)]
    assert pieces == ["a", "é", "漢", "😀", "b"]


def test_half_a_character_at_the_end_becomes_one_replacement_character(script, model):
    script.answer = "ab漢"
    assert model.chat("Hi", max_new_tokens=4).text == "ab\ufffd"


def test_thinking_is_split_from_the_answer(script, thinker):
    script.answer = "◁think▷because◁/think▷yes"
    response = thinker.chat("Hi")
    assert (response.thinking, response.text) == ("because", "yes")
    kinds = {piece.kind for piece in thinker.chat("Hi", stream=True)}
    assert kinds == {"thinking", "text"}


def test_a_closing_mark_alone_ends_thinking_that_began_with_the_reply(script, thinker):
    script.answer = "because◁/think▷\n\nyes"
    response = thinker.chat("Hi")
    assert (response.thinking, response.text) == ("because", "yes")


def test_an_instruct_model_that_writes_the_marks_loses_nothing(script, model):
    script.answer = "◁think▷ opens and ◁/think▷ closes"
    response = model.chat("Hi")
    assert (response.thinking, response.text) == ("", script.answer)


def test_token_limit_ends_with_length(model):
    response = model.chat("Hi", max_new_tokens=5)
    assert (response.text, response.finish_reason, response.usage.completion_tokens) == ("Hello", "length", 5)


def test_full_context_ends_with_length_and_never_decodes_beyond_it(script, model):
    script.answer = "x" * 5000
    response = model.chat("Hi", max_new_tokens=4000)
    assert response.finish_reason == "length"
    assert response.usage.total_tokens == model.n_ctx


# Stop strings


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("world", "Hello "),
        (["o w"], "Hell"),
        (["world", "lo"], "Hel"),
        (["nothing"], "Hello world"),
        (["worldwide"], "Hello world"),
        (" ", "Hello"),
    ],
)
def test_stop_string_over_several_tokens_is_not_in_the_answer(model, stop, text):
    stream = model.chat("Hi", stop=stop, stream=True)
    assert "".join(piece.text for piece in stream) == text
    assert stream.result.text == text
    assert stream.result.finish_reason == "stop"


def test_stop_string_ends_the_answer_at_its_last_token(script, model):
    script.answer = "one\n\ntwo\n\nthree"
    response = model.chat("Hi", stop="\n\n")
    assert (response.text, response.stop_string) == ("one", "\n\n")
    assert response.usage.completion_tokens == len("one\n\n")


def test_stop_string_in_the_reasoning_does_not_end_the_answer(script, thinker):
    script.answer = "◁think▷a END b◁/think▷yes END no"
    response = thinker.chat("Hi", stop="END")
    assert response.thinking == "a END b"
    assert response.text.strip() == "yes"


@settings(max_examples=300, deadline=None)
@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=1),
)
def test_stop_matcher_does_not_depend_on_how_the_text_is_cut(text, stops, cuts):
    whole = StopMatcher(stops)
    expected = whole.push(text) + whole.flush()
    matcher, out, rest = StopMatcher(stops), "", text
    for cut in cuts * (len(text) + 1):
        piece, rest = rest[:cut], rest[cut:]
        out += matcher.push(piece)
    out += matcher.flush()
    assert (out, matcher.hit) == (expected, whole.hit)
    assert text.startswith(out)
    assert not any(stop in out for stop in stops)


# Prefix reuse


def test_second_question_on_the_same_picture_encodes_nothing_and_prefills_the_rest(script, model):
    image = picture()
    first = model.chat("What is this?", images=[image])
    again = model.chat("And its colour?", images=[image])
    assert len(script.encoded) == 1
    assert first.usage.cached_tokens == 0
    assert again.usage.cached_tokens >= again.usage.prompt_tokens - len("And its colour?") - len("assistant") - 8
    assert again.usage.image_tokens == 6


def test_the_same_request_is_answered_the_same_with_and_without_a_cached_prefix(script, model):
    script.answer = None  # noise that depends on everything in the timeline
    fresh = model.chat("One", images=[picture(1)], seed=5, max_new_tokens=20)
    model.chat("Two", images=[picture(2)], max_new_tokens=20)
    other = model.chat("One", images=[picture(1)], seed=5, max_new_tokens=20)
    cached = model.chat("One", images=[picture(1)], seed=5, max_new_tokens=20)
    assert cached.usage.cached_tokens == cached.usage.prompt_tokens - 1
    assert fresh.token_ids == other.token_ids == cached.token_ids


def test_another_picture_of_the_same_size_is_not_taken_for_the_first(script, model):
    script.answer = None
    one = model.chat("What?", images=[picture(1)], seed=1, max_new_tokens=8)
    two = model.chat("What?", images=[picture(2)], seed=1, max_new_tokens=8)
    assert len(script.encoded) == 2
    assert one.token_ids != two.token_ids


def test_picture_cache_forgets_the_oldest_beyond_its_bytes(script):
    one_picture = 6 * fake_core.HIDDEN * 4
    with KimiVL("fake.gguf", image_cache_bytes=2 * one_picture) as model:
        for seed in (1, 2, 3, 3, 2, 1):
            model.encode_image(picture(seed))
        assert len(script.encoded) == 4  # 1 2 3, and 1 again
        assert model.loaded.image_cache.n_bytes <= 2 * one_picture


def test_encoded_picture_given_out_is_a_copy(model):
    first = model.encode_image(picture())
    first[:] = 0
    assert np.abs(model.encode_image(picture())).max() > 0


# Cancelling and errors


def test_closing_the_stream_cancels_and_keeps_what_there_was(script, model):
    stream = model.chat("Hi", stream=True)
    assert next(stream).text == "H"
    stream.close()
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text == "H"
    with pytest.raises(StopIteration):
        next(stream)


def test_a_dropped_stream_leaves_its_pages_to_the_next(script, model):
    stream = model.chat("Hi", stream=True)
    next(stream)
    del stream
    gc.collect()
    index = model.loaded.conductor.index
    assert [node.n_users for node in index.nodes()] == [0] and index.pool.n_pages == 1
    assert model.chat("Hi").usage.cached_tokens > 0


def test_a_stream_that_never_starts_costs_nothing(script, model):
    stream = model.chat("Hi", stream=True)
    stream.close()
    assert stream.result.finish_reason == "cancelled"
    assert script.prefilled == []
    assert list(stream) == []


def test_cancel_from_another_thread_ends_a_prefill_without_an_error(script, model):
    stream = model.chat("Hi", stream=True)
    steps: list[int] = []

    def cancel_at_the_third(stage: str, step: int) -> None:
        steps.append(step)
        if step == 3:
            other = threading.Thread(target=stream.cancel)
            other.start()
            other.join()

    script.fail_at = cancel_at_the_third
    assert list(stream) == []
    assert steps == [1, 2, 3]  # of ten
    assert stream.result.finish_reason == "cancelled"
    script.fail_at = lambda stage, step: None
    assert model.chat("Hi").text == "Hello world"


@pytest.mark.parametrize(("stage", "at_step"), [("encode", 5), ("prefill", 25), ("decode", 5)])
def test_ctrl_c_in_any_stage_leaves_a_model_that_answers_the_same(script, model, stage, at_step):
    script.answer = None
    script.chunk = 5
    image = picture(3)
    expected = model.chat("A longer question", images=[image], seed=3, max_new_tokens=12)
    model.chat("Something else", images=[picture(4)], max_new_tokens=3)
    model.loaded.image_cache.clear()
    model.loaded.conductor.index.clear()
    count = 0

    def interrupt(at: str, step: int) -> None:
        nonlocal count
        count += at == stage
        if at == stage and count == at_step:
            raise KeyboardInterrupt

    script.fail_at = interrupt
    with pytest.raises(KeyboardInterrupt):
        model.chat("A longer question", images=[image], seed=3, max_new_tokens=12)
    script.fail_at = lambda at, step: None
    assert model.chat("A longer question", images=[image], seed=3, max_new_tokens=12).token_ids == expected.token_ids


def test_interrupted_inside_a_picture_forgets_the_part_of_it(script, model):
    script.answer = None
    script.chunk = 1
    image = picture(5)

    def interrupt(at: str, step: int) -> None:
        n_system = 47  # the template up to the picture is longer than this
        if at == "prefill" and len(script.prefilled) > n_system + 30:
            raise KeyboardInterrupt

    script.fail_at = interrupt
    with pytest.raises(KeyboardInterrupt):
        model.chat("What is this?", images=[image], seed=3, max_new_tokens=12)
    script.fail_at = lambda at, step: None
    script.chunk = 64
    cached = model.chat("What is this?", images=[image], seed=3, max_new_tokens=12)
    with KimiVL("fake.gguf", n_ctx=1024) as other:
        assert other.chat("What is this?", images=[image], seed=3, max_new_tokens=12).token_ids == cached.token_ids


def test_an_error_in_the_progress_callback_comes_out(model):
    def progress(stage: str, done: int, total: int) -> None:
        raise ZeroDivisionError(stage)

    with pytest.raises(ZeroDivisionError, match="prefill"):
        model.chat("Hi", progress=progress)
    assert model.chat("Hi").text == "Hello world"


def test_progress_tells_stages_in_order_and_ends_each(model):
    seen: list[tuple[str, int, int]] = []
    model.chat("Hi", images=[picture(1), picture(2)], progress=lambda *event: seen.append(event))
    assert [stage for stage, _, _ in seen] == sorted((stage for stage, _, _ in seen))  # encode before prefill
    encode = [(done, total) for stage, done, total in seen if stage == "encode"]
    assert encode == sorted(encode) and encode[-1][0] == encode[-1][1]


def test_a_progress_callback_that_calls_the_model_is_refused_instead_of_hanging(model):
    def progress(stage: str, done: int, total: int) -> None:
        model.encode_image(picture(9))

    with pytest.raises(BadRequest) as caught:
        model.chat("Hi", progress=progress)
    assert caught.value.code == "engine.reentrant"
    assert model.chat("Hi").text == "Hello world"


# Context


def test_context_error_has_the_numbers_and_what_would_fit(script, model):
    with pytest.raises(ContextFull) as caught:
        model.chat("Hi", images=[picture(1, (560, 560)), picture(2, (560, 560)), picture(3, (560, 560))])
    message = str(caught.value)
    assert "#1 400, #2 400, #3 400, together 1200" in message
    assert "n_ctx is 1024" in message
    assert "the first 2 of the 3 pictures" in message
    assert script.encoded == [] and script.prefilled == []


def test_a_hundred_pictures_say_how_many_fit(model):
    image = picture(1, (84, 84))
    with pytest.raises(ContextFull) as caught:
        model.chat("Hi", images=[image] * 100)
    found = re.search(r"the first (\d+) of the 100 pictures", str(caught.value))
    assert found, str(caught.value)
    n_fit = int(found[1])
    model.chat("Hi", images=[image] * n_fit, max_new_tokens=1)
    with pytest.raises(ContextFull):
        model.chat("Hi", images=[image] * (n_fit + 1), max_new_tokens=1)


# Several at once


def test_two_streams_of_one_thread_advance_side_by_side(script, model):
    one, two = model.chat("Hi", stream=True), model.chat("Hi", stream=True)
    pairs = [(str(a), str(b)) for a, b in zip(one, two, strict=True)]
    assert "".join(a for a, _ in pairs) == "".join(b for _, b in pairs) == "Hello world"


def test_a_request_inside_the_loop_over_a_stream_works(model):
    texts = []
    for piece in model.chat("Hi", stream=True):
        if "w" in piece.text:
            texts.append(model.chat("Inner", max_new_tokens=3).text)
    assert texts == ["Hel"]


def test_eight_threads_get_their_own_answers_one_core_call_at_a_time(script, model):
    script.answer = None
    expected = {n: model.chat(f"Question {n}", seed=n, max_new_tokens=10).token_ids for n in range(8)}
    got: dict[int, tuple[int, ...]] = {}
    script.decode_s = 0.001

    def ask(n: int) -> None:
        got[n] = model.chat(f"Question {n}", seed=n, max_new_tokens=10).token_ids

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == expected
    assert script.max_inside == 1


def test_a_second_thread_is_not_starved_by_a_long_answer(script, model):
    script.answer = "".join(random.Random(0).choices(string.ascii_letters, k=400))  # nothing to draft from
    script.decode_s = 0.002
    begun = threading.Event()

    def note(stage: str, step: int) -> None:
        if stage == "decode" and len(script.steps) > 9:
            begun.set()

    script.fail_at = note
    long = threading.Thread(target=lambda: model.chat("Long", max_new_tokens=400), name="long")
    long.start()
    assert begun.wait(60)
    before = len(script.steps)
    model.chat("Short", max_new_tokens=5)
    meanwhile = len(script.steps) - before
    long.join(60)
    assert sum(script.steps) >= 399 + 4  # the first token of each is the prefill's
    # Four steps of its own; a thread that the processor lets sleep before it asks may miss some.
    assert meanwhile < 200, f"the short answer of 5 tokens took {meanwhile} steps"


def test_closing_the_model_ends_a_stream_in_another_thread(script, model):
    script.answer, script.decode_s = "x" * 500, 0.01
    errors: list[BaseException] = []
    got = threading.Event()

    def read() -> None:
        try:
            for _ in model.chat("Hi", stream=True):
                got.set()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert got.wait(60)
    model.close()
    thread.join(60)
    assert not thread.is_alive()
    assert isinstance(errors[0], Cancelled) and errors[0].code == "engine.closed"


def test_closing_from_a_progress_callback_takes_effect_when_the_call_leaves(model):
    with pytest.raises(Cancelled) as caught:
        model.chat("Hi", progress=lambda *event: model.close())
    assert caught.value.code == "engine.closed"
    assert model.loaded.engine.closed


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.chat("Hi"),
        lambda m: m.chat("Hi", stream=True),
        lambda m: m.create_chat_completion([{"role": "user", "content": "Hi"}]),
        lambda m: m.conversation().ask("Hi"),
        lambda m: m.tokenize("Hi"),
        lambda m: m.detokenize([1]),
        lambda m: m.encode_image(picture()),
        lambda m: m.vision_tower(picture()),
        lambda m: m.logits([[1]]),
        lambda m: m.generate([[1]]),
    ],
)
def test_use_after_close_is_a_typed_error(model, call):
    model.close()
    model.close()
    with pytest.raises(BadRequest) as caught:
        call(model)
    assert caught.value.code == "engine.closed"


def test_conversations_and_chats_share_what_they_have_in_common(script, model):
    conversation = model.conversation()
    first = conversation.ask("One")
    assert model.chat("One").usage.cached_tokens == first.usage.prompt_tokens - 1
    model.chat("Two", max_new_tokens=3)
    again = conversation.ask("And then?")
    assert again.usage.cached_tokens >= first.usage.total_tokens
