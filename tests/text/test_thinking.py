"""The reasoning split from the answer, however the text arrives."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_vl_cpp.text.thinking import CLOSING, OPENING, ThinkingSplitter, split_thinking

CASES = {
    "a block and an answer": ("◁think▷I see.◁/think▷A cat.", "I see.", "A cat."),
    "white space around the marks": ("\n ◁think▷\nI see.\n\n◁/think▷\n\nA cat.\n", "I see.", "A cat."),
    "white space inside stays": ("◁think▷a\n\n b◁/think▷c\n\n d", "a\n\n b", "c\n\n d"),
    "no block, as it is": ("  A cat.\n ", "", "  A cat.\n "),
    "nothing": ("", "", ""),
    "only white space": (" \n", "", " \n"),
    "no closing mark: all of it is thinking": ("◁think▷I see a", "I see a", ""),
    "an empty block": ("◁think▷◁/think▷A cat.", "", "A cat."),
    "a blank block": ("◁think▷ \n ◁/think▷A cat.", "", "A cat."),
    "a block and no answer": ("◁think▷I see.◁/think▷ \n", "I see.", ""),
    "only the opening mark": ("◁think▷", "", ""),
    "a second block is text": ("◁think▷a◁/think▷b ◁think▷c◁/think▷ d", "a", "b ◁think▷c◁/think▷ d"),
    "an opening mark inside the block": ("◁think▷a ◁think▷ b◁/think▷c", "a ◁think▷ b", "c"),
    "a closing mark alone ends thinking": ("a ◁/think▷\n\nb", "a", "b"),
    "a closing mark first": ("◁/think▷b", "", "b"),
    "a block after a closing mark is text": ("a◁/think▷b ◁think▷c◁/think▷", "a", "b ◁think▷c◁/think▷"),
    "text before the block": ("Sure. ◁think▷a◁/think▷ b", "a", "Sure. b"),
    "half a mark at the end": ("A cat ◁thi", "", "A cat ◁thi"),
    "half a closing mark at the end": ("◁think▷a ◁/thin", "a ◁/thin", ""),
    "half a mark inside": ("◁think▷a ◁/thin ◁/think▷b", "a ◁/thin", "b"),
    "a mark begins again inside a mark": ("◁th◁think▷a◁/thi◁/think▷b", "a◁/thi", "◁thb"),
    "triangles of other kinds": ("◁ think ▷ <think>a</think>", "", "◁ think ▷ <think>a</think>"),
    "marks in capitals": ("◁THINK▷a", "", "◁THINK▷a"),
    "no-break and ideographic space": ("◁think▷\u3000a\u00a0◁/think▷\u2003b", "a", "b"),
}


def run(chunks, finished=True, reasoning="yes", stop=()):
    splitter = ThinkingSplitter(reasoning, stop)
    pieces = [piece for chunk in chunks for piece in splitter.push(chunk)]
    return pieces + (splitter.flush() if finished else [])


def joined(pieces):
    return tuple("".join(text for kind, text in pieces if kind == want) for want in ("thinking", "text"))


@pytest.mark.parametrize("name", CASES)
def test_reply_is_split(name):
    reply, thinking, text = CASES[name]
    assert split_thinking(reply) == (thinking, text)


@pytest.mark.parametrize("name", CASES)
def test_reply_is_split_the_same_however_it_is_cut(name):
    reply, thinking, text = CASES[name]
    assert joined(run(reply)) == (thinking, text)  # character by character
    for first in range(len(reply) + 1):
        for second in range(first, len(reply) + 1):
            assert joined(run([reply[:first], reply[first:second], reply[second:]])) == (thinking, text)


PIECES = st.lists(
    st.sampled_from([OPENING, CLOSING, "◁", "◁th", "think▷", "◁/", " ", "\n", "a", "b c", "中"]), max_size=12
)


@settings(max_examples=500, deadline=None)
@given(PIECES, st.data())
def test_streamed_pieces_joined_are_the_one_shot_parts(pieces, data):
    reply = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(reply)), max_size=6)))
    chunks = [reply[a:b] for a, b in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
    streamed = run(chunks)
    assert joined(streamed) == split_thinking(reply)
    assert all(text for _, text in streamed)
    if reply.lstrip().startswith(OPENING):
        kinds = [kind for kind, _ in streamed]
        assert kinds == sorted(kinds, reverse=True)  # all thinking first, then all text


@settings(max_examples=300, deadline=None)
@given(PIECES)
def test_what_was_given_out_is_never_taken_back(pieces):
    reply = "".join(pieces)
    thinking, text = split_thinking(reply)
    for end in range(len(reply) + 1):
        early_thinking, early_text = split_thinking(reply[:end], finished=False)
        assert thinking.startswith(early_thinking) and text.startswith(early_text)


def test_no_part_of_a_mark_or_of_the_thinking_reaches_the_text():
    for end in range(len("◁think▷secret◁/think▷")):
        assert split_thinking("◁think▷secret◁/think▷"[:end], finished=False)[1] == ""


def test_pieces_come_at_once_where_nothing_is_in_doubt():
    splitter = ThinkingSplitter()
    assert splitter.push("◁think▷I see") == [("thinking", "I see")]
    assert splitter.thinking
    assert splitter.push(" a") == [("thinking", " a")]
    assert splitter.push(" cat.◁/thi") == [("thinking", " cat.")]
    assert splitter.push("nk▷\n\nA ") == [("text", "A")]
    assert not splitter.thinking
    assert splitter.push("cat") == [("text", " cat")]
    assert splitter.flush() == []


def test_neighbouring_pieces_of_one_push_differ_in_kind():
    assert run(["Well ◁think▷a◁/think▷b"]) == [("text", "Well "), ("thinking", "a"), ("text", "b")]


def test_reply_that_goes_on_inside_a_block():
    splitter = ThinkingSplitter(inside=True)
    assert splitter.push("more.◁/think▷A cat.") == [("thinking", "more."), ("text", "A cat.")]


@settings(max_examples=300, deadline=None)
@given(PIECES)
def test_a_model_that_does_not_reason_loses_nothing_whatever_it_writes(pieces):
    assert joined(run(pieces, reasoning="no")) == ("", "".join(pieces))


@settings(max_examples=300, deadline=None)
@given(PIECES)
def test_an_unknown_model_reasons_only_where_its_reply_begins_with_the_mark(pieces):
    reply = "".join(pieces)
    want = split_thinking(reply) if reply.lstrip().startswith(OPENING) else ("", reply)
    assert joined(run(pieces, reasoning="maybe")) == joined(run(reply, reasoning="maybe")) == want


@settings(max_examples=500, deadline=None)
@given(
    PIECES,
    st.lists(st.sampled_from(["\n", " ", "\n\n", "a", "b c", " a", "a\n"]), min_size=1, max_size=3),
    st.sampled_from(["yes", "maybe", "no"]),
    st.data(),
)
def test_stop_strings_cut_the_answer_the_same_however_it_arrives(pieces, stop, reasoning, data):
    reply = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(reply)), max_size=6)))
    chunks = [reply[a:b] for a, b in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
    assert joined(run(chunks, reasoning=reasoning, stop=stop)) == joined(run(reply, reasoning=reasoning, stop=stop))


@pytest.mark.parametrize("stop", ["\n", "\n\n", " ", " \n", "\t"])
@pytest.mark.parametrize("chunked", [True, False])
def test_white_space_around_the_marks_is_no_stop_string(stop, chunked):
    for reply, thinking, text in (
        (" \n◁think▷\n\n a \n\n◁/think▷ \n\n\tb", "a", "b"),
        ("a \n\n◁/think▷ \n\n\tb", "a", "b"),
        ("x \n\n\t◁think▷a◁/think▷\n\n b", "a", "x \n\n\tb"),
    ):
        splitter = ThinkingSplitter("yes", [stop])
        pieces = [piece for chunk in (reply if chunked else [reply]) for piece in splitter.push(chunk)]
        assert joined([*pieces, *splitter.flush()]) == (thinking, text)
        assert splitter.hit is None


def test_a_stop_string_of_white_space_is_met_as_soon_as_it_is_complete():
    splitter = ThinkingSplitter("yes", ["\n\n"])
    splitter.push("◁think▷a\n\n◁/think▷\n\nb\n")
    assert splitter.hit is None
    splitter.push("\n")
    assert splitter.hit == "\n\n"


@pytest.mark.slow
def test_long_replies_are_linear():
    # 10^6 pushes and a push of 10^6 marks: about 2 s on a slow core, minutes if a step were quadratic.
    started = time.process_time()
    splitter = ThinkingSplitter()
    splitter.push("◁think▷a")
    for _ in range(10**6):
        splitter.push(" ")
    assert splitter.push("b") == [("thinking", " " * 10**6 + "b")]
    for reasoning in ("yes", "maybe", "no"):
        assert split_thinking("◁" * 10**6 + " " * 10**6, reasoning=reasoning)[1] == "◁" * 10**6 + " " * 10**6
    assert time.process_time() - started < 20
