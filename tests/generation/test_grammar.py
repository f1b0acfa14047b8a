"""Answers that follow a grammar, with and without a reasoning before them."""

from __future__ import annotations

import json
import re

import pytest

from kimi_vl_cpp.errors import BadRequest, Unsupported
from kimi_vl_cpp.generation.grammar import GrammarSource
from kimi_vl_cpp.model import KimiVL

pytest.importorskip("llguidance", reason="needs the extra [server]")

ASK = [{"role": "user", "content": "Hi"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def real():
    with KimiVL.builtin(n_ctx=1024) as loaded:
        yield loaded


@pytest.fixture
def thinking(script):
    with KimiVL("fake-Instruct.gguf", n_ctx=2048) as loaded:
        loaded.loaded.variant = "thinking"
        yield loaded


def schema(value: object) -> GrammarSource:
    return GrammarSource("json_schema", json.dumps(value))


@pytest.mark.parametrize("seed", range(12))
def test_every_answer_that_ends_by_itself_satisfies_its_schema(real, seed):
    answer = real.start(ASK, grammar=schema(PERSON), temperature=1.5, seed=seed, max_new_tokens=300).drain()
    if answer.finish_reason == "length":
        return
    value = json.loads(answer.text)
    assert set(value) == {"name", "age", "tags"}
    assert isinstance(value["name"], str) and len(value["name"]) <= 12
    assert isinstance(value["age"], int) and 0 <= value["age"] <= 150
    assert len(value["tags"]) <= 3 and set(value["tags"]) <= {"a", "b"}


@pytest.mark.parametrize(
    ("source", "fits"),
    [
        (GrammarSource("regex", "[0-9]{3}-[a-f]+x"), lambda text: text[:3].isdigit() and text[3] == "-"),
        (GrammarSource("choice", '["yes", "no", "don\'t \\"know\\""]'), lambda t: t in ("yes", "no", 'don\'t "know"')),
        (GrammarSource("lark", 'start: "<" WORD ">"\nWORD: /[a-z]{1,5}/'), lambda t: t[0] == "<" and t[-1] == ">"),
    ],
)
def test_other_grammars_are_followed_too(real, source, fits):
    for seed in range(4):
        answer = real.start(ASK, grammar=source, temperature=1.5, seed=seed, max_new_tokens=60).drain()
        assert answer.finish_reason == "length" or fits(answer.text)


def test_the_end_of_the_grammar_ends_the_answer(real):
    answer = real.start(ASK, grammar=GrammarSource("regex", "abc"), max_new_tokens=50).drain()
    assert (answer.text, answer.finish_reason) == ("abc", "stop")


def test_a_grammar_asks_for_no_other_log_probabilities(real):
    plain = real.start(ASK, temperature=0, logprobs=5, max_new_tokens=1).drain()
    bound = real.start(ASK, temperature=0, logprobs=5, max_new_tokens=1, grammar=schema(PERSON)).drain()
    assert bound.logprobs[0].top == plain.logprobs[0].top


def test_a_reasoning_may_come_before_the_answer_and_is_free(script, thinking):
    script.answer = '◁think▷ hm { "x" ◁/think▷ {"a": 1}'
    source = schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    result = thinking.start(ASK, temperature=0, grammar=source, max_new_tokens=200).drain()
    assert result.thinking == 'hm { "x"' and json.loads(result.text)["a"] == 1


def test_a_reasoning_that_is_cut_is_followed_by_the_grammar(script, thinking):
    script.answer = "◁think▷" + "t" * 100
    source = GrammarSource("choice", '["yes", "no"]')
    result = thinking.start(ASK, temperature=0, grammar=source, thinking_budget=10, max_new_tokens=100).drain()
    assert result.thinking == "t" * 10 and result.text in ("yes", "no") and result.finish_reason == "stop"


def test_without_a_reasoning_the_answer_begins_at_once(script, thinking):
    script.answer = "◁think▷"
    source = GrammarSource("choice", '["yes", "no"]')
    result = thinking.start(ASK, temperature=0, grammar=source, thinking_budget=0, max_new_tokens=20).drain()
    assert result.text in ("yes", "no") and not result.thinking


def test_a_message_that_is_continued_is_part_of_the_grammar(real):
    source = GrammarSource("regex", "total: [0-9]{2}")
    begun = [*ASK, {"role": "assistant", "content": "total: 4"}]
    answer = real.start(begun, grammar=source, continue_final=True, max_new_tokens=9).drain()
    assert len(answer.text) == 1 and answer.text.isdigit() and answer.finish_reason == "stop"
    with pytest.raises(BadRequest, match="continued"):
        real.start([*ASK, {"role": "assistant", "content": "sum"}], grammar=source, continue_final=True)


@pytest.mark.parametrize(
    "source",
    [
        schema({"type": "nothing"}),
        schema({"contains": 3}),
        GrammarSource("json_schema", "{"),
        GrammarSource("regex", "("),
        GrammarSource("lark", "start: nothing"),
        GrammarSource("lark", "x" * 300_000),
        schema({"$ref": "#"}),
        schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
    ],
)
def test_a_grammar_that_cannot_be_compiled_is_refused_with_the_reason(real, source):
    with pytest.raises(BadRequest) as caught:
        real.start(ASK, grammar=source)
    assert caught.value.code == "request.grammar" and caught.value.param == "grammar"


def test_a_chain_of_references_as_long_as_a_grammar_may_be_is_followed(real):
    """By recursion: on the stack of a usual thread it ended the process."""
    links = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(6000)}
    source = schema({"$ref": "#/$defs/d0", "$defs": {**links, "d6000": {"enum": [7]}}})
    assert real.start(ASK, grammar=source).drain().text.strip() == "7"
    rules = "".join(f"r{i}: r{i + 1}\n" for i in range(9000))
    assert real.start(ASK, grammar=GrammarSource("lark", f'start: r0\n{rules}r9000: "7"')).drain().text == "7"


def test_without_llguidance_the_error_names_what_to_install(script, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with KimiVL("fake-Instruct.gguf", n_ctx=512) as model, pytest.raises(Unsupported, match="pip install"):
        model.start(ASK, grammar=GrammarSource("regex", "a"))


def test_another_answer_follows_the_grammar_from_its_beginning(real):
    first = real.start(ASK, grammar=GrammarSource("regex", "[ab]{5}"), seed=1, max_new_tokens=9)
    begun = next(first).text
    other = first.again(2).drain()
    assert re.fullmatch("[ab]{5}", begun + "".join(piece.text for piece in first))
    assert re.fullmatch("[ab]{5}", other.text) and other.seed == 2 and first.seed == 1
