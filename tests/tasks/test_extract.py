"""Data by a JSON schema: what pages are asked, and how their records become one."""

from __future__ import annotations

import json

import documents
import fake_core
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_vl_cpp import cli
from kimi_vl_cpp.errors import BadRequest
from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.tasks import extract

SCHEMA = {
    "type": "object",
    "properties": {
        "total": {"type": "string"},
        "seller": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        "items": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["total"],
}


def test_lists_are_joined_and_of_other_values_the_first_counts():
    merged = extract.merge(
        [
            (1, {"total": None, "seller": {"name": "A"}, "items": ["x"]}),
            (2, {"total": "12", "seller": None, "items": []}),
            (3, {"total": "13", "seller": {"name": "A", "city": "B"}, "items": ["y", "x"]}),
            (4, "cut off"),
        ],
        SCHEMA,
    )
    assert merged.data == {"total": "12", "seller": {"name": "A", "city": "B"}, "items": ["x", "y", "x"]}
    assert merged.conflicts == [{"path": "$.total", "values": [{"page": 2, "value": "12"}, {"page": 3, "value": "13"}]}]
    assert merged.missing == []


def test_required_fields_that_no_page_has_are_named():
    merged = extract.merge([(1, {"seller": {"name": None}}), (2, None)], SCHEMA)
    assert merged.missing == ["$.total", "$.seller.name"]
    assert merged.data == {"total": None, "seller": {"name": None}, "items": None}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["total", "seller", "x"]), inner),
    max_leaves=8,
)


@given(st.lists(json_values, max_size=5))
def test_no_value_is_lost_and_nothing_is_made_up(values):
    merged = extract.merge(list(enumerate(values, 1)), SCHEMA)
    records = [value for value in values if isinstance(value, dict)]
    for name, value in merged.data.items():
        found = [record[name] for record in records if record.get(name) is not None]
        assert (value is None) == (not found)
        if found and all(isinstance(one, list) for one in found):
            assert value == [item for one in found for item in one]
        elif found and not all(isinstance(one, dict) for one in found):
            assert value == found[0]
            differ = any(one != found[0] for one in found)
            assert differ == any(conflict["path"] == f"$.{name}" for conflict in merged.conflicts)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"type": "array", "properties": {"a": {}}}', "[" * 100_000])
def test_what_is_not_a_schema_of_an_object_is_refused(text):
    with pytest.raises(BadRequest) as caught:
        extract.read_schema(text)
    assert caught.value.code == "document.schema"


def test_pages_are_asked_for_nothing_that_the_schema_does_not_name():
    schema = {"properties": {"properties": {"type": "object", "properties": {"a": {"enum": [{"properties": {}}]}}}}}
    page = json.loads(extract.recipe_for(schema).grammar.text)
    inner = page["properties"]["properties"]["anyOf"][0]
    assert page["additionalProperties"] is False and inner["additionalProperties"] is False
    assert list(page["properties"]) == ["properties"] and inner["properties"]["a"] == {"enum": [{"properties": {}}]}


def test_every_page_answers_by_the_schema(monkeypatch, tmp_path):
    """The model has no say in the form: its logits are noise here."""
    script = fake_core.install(monkeypatch)
    script.answer = None
    schema = {"type": "object", "properties": {"paid": {"type": "boolean"}}, "required": ["paid"]}
    recipe = extract.recipe_for(schema)
    with KimiVL("fake-Instruct.gguf", n_ctx=1024) as model:
        response = model.chat(recipe.prompt, max_new_tokens=200, seed=0, grammar=recipe.grammar)
    assert response.finish_reason == "stop" and json.loads(response.text)["paid"] in (True, False, None)


def test_the_command_writes_one_record(tmp_path, capsys):
    (tmp_path / "x.pdf").write_bytes(documents.pdf(["$1.00", "$2.00"], (168, 112), font_size=30))
    schema = {"type": "object", "properties": {"paid": {"enum": ["yes"]}}, "required": ["paid", "seller"]}
    (tmp_path / "s.json").write_text(json.dumps(schema))
    out = tmp_path / "x.json"
    command = ["read", str(tmp_path / "x.pdf"), "-o", str(out), "--schema", str(tmp_path / "s.json"), "-t", "1"]
    assert cli.main([*command, "--image-patches", "96", "-n", "120"]) == 1
    result = json.loads(out.read_text())
    assert result["missing"][-1] == "$.seller" and [page["page"] for page in result["pages"]] == [1, 2]
    assert all(page["data"] in ({"paid": "yes"}, {"paid": None}) for page in result["pages"])
    assert "$.seller" in capsys.readouterr().err
    assert cli.main([*command[:3], str(tmp_path / "x.md"), *command[4:]]) == 2
