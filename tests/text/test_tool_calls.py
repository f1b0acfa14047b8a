"""The text form of function calls: what is written is read back, however it is cut."""

from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from kimi_vl_cpp.text.tool_calls import CallPiece, ToolCallSplitter, call, instructions

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True)
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(st.text(max_size=8), JSON, max_size=3)), max_size=3)
TEXTS = st.text(st.sampled_from('a \n<t>o/_cl{}"')).filter(lambda text: "<tool_call>" not in text)


def pieces_of(texts: list[str]) -> list[CallPiece]:
    splitter = ToolCallSplitter()
    return [piece for text in texts for piece in splitter.push(text)] + splitter.flush()


def joined(pieces: list[CallPiece]) -> list[CallPiece]:
    """Neighbours of one kind as one piece."""
    out: list[CallPiece] = []
    for piece in pieces:
        if out and out[-1].kind == piece.kind and piece.kind in ("text", "arguments"):
            out[-1] = CallPiece(piece.kind, out[-1].text + piece.text)
        else:
            out.append(piece)
    return out


@given(text=TEXTS, calls=CALLS, between=st.sampled_from(["", " ", "\n\n"]), cuts=st.lists(st.integers(0, 400)))
def test_text_and_calls_come_back_however_they_are_cut(text, calls, between, cuts):
    written = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    whole = text + between.join(call(name, arguments) for name, arguments in written)
    bounds = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    pieces = joined(pieces_of([whole[a:b] for a, b in itertools.pairwise(bounds)]))
    shown = text.rstrip() if calls else text
    expected = [CallPiece("text", shown)] if shown else []
    for name, arguments in written:
        expected += [CallPiece("call", name), CallPiece("arguments", arguments), CallPiece("end")]
    assert pieces == expected


def test_nothing_of_a_call_is_given_out_as_text_and_text_is_not_held_back():
    splitter = ToolCallSplitter()
    assert splitter.push("Let me see.\n<tool") == [CallPiece("text", "Let me see.")]
    assert splitter.push(" x") == [CallPiece("text", "\n<tool x")]
    assert splitter.push("<tool_call>") == []
    assert splitter.push('{"name": "f", "arguments": {"a') == [CallPiece("call", "f"), CallPiece("arguments", '{"a')]
    assert splitter.push('": "}</tool_call>') == [CallPiece("arguments", '": "}</tool_call>')]
    assert splitter.push('"}}</tool_call>') == [CallPiece("arguments", '"}'), CallPiece("end")]


def test_a_call_that_is_cut_keeps_what_there_is_of_its_arguments():
    pieces = pieces_of(['Hm. <tool_call>{"name": "f", "arguments": {"a": [1,'])
    assert pieces == [CallPiece("text", "Hm."), CallPiece("call", "f"), CallPiece("arguments", '{"a": [1,')]
    assert pieces_of(["Hm. <tool_ca"]) == [CallPiece("text", "Hm."), CallPiece("text", " <tool_ca")]


def test_the_instructions_name_every_function_and_the_form_of_a_call():
    text = instructions([{"name": "f", "parameters": {}}, {"name": "g", "parameters": {}}], several=True)
    assert '{"name": "f", "parameters": {}}\n{"name": "g", "parameters": {}}' in text
    assert call("NAME", "ARGUMENTS").replace('"NAME"', "NAME") in text
    assert "several" in text and "several" not in instructions([], several=False)
