"""Data by a JSON schema: the schema that one page is asked with, and one record made of the pages' records. Knows no
model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadRequest, shown
from ..generation.grammar import GrammarSource
from .recipes import Recipe

_LONGEST_SCHEMA = 20_000  # characters: it goes into the prompt of every page


@dataclass
class Merged:
    """data: one record. conflicts: values of a field that pages disagree on, the first of which is in the data.
    missing: required fields that no page has, as "$.total"."""

    data: dict[str, Any]
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_schema(text: str) -> dict[str, Any]:
    """A JSON schema of an object with properties. Raises BadRequest (code "document.schema")."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"schema: not JSON: {error}", "document.schema") from None
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict) or not schema["properties"]:
        raise BadRequest(
            'schema: got something else than an object with properties: expected {"type": "object", "properties": '
            "{...}}",
            "document.schema",
        )
    if schema.get("type", "object") != "object":
        raise BadRequest(f"schema: got type {shown(schema['type'])}, expected object", "document.schema")
    if len(text) > _LONGEST_SCHEMA:
        raise BadRequest(
            f"schema: {len(text)} characters, expected at most {_LONGEST_SCHEMA}: it is part of every request",
            "document.schema",
        )
    return schema


def recipe_for(schema: Mapping[str, Any]) -> Recipe:
    """What each page is asked."""
    text = json.dumps(schema, ensure_ascii=False)
    prompt = (
        "Fill in this JSON schema from the page. Copy values as they are printed. Use null, or an empty list, for what "
        f"this page does not say. Answer with the JSON alone.\n{text}"
    )
    page_schema = json.dumps(_for_a_page(schema), ensure_ascii=False)
    return Recipe("data", prompt, grammar=GrammarSource("json_schema", page_schema, "schema"))


def merge(records: Sequence[tuple[int, Any]], schema: Mapping[str, Any]) -> Merged:
    """The records of pages as one: lists joined in the order of the pages, of other values the first that is not null.

    records: page numbers and what was read there; anything but an object is passed over.
    """
    merged = Merged({})
    _Merging(merged.conflicts).object(merged.data, [(page, one) for page, one in records if isinstance(one, dict)], "$")
    for name in schema["properties"]:
        merged.data.setdefault(name, None)
    merged.missing = _missing(merged.data, schema, "$")
    return merged


def _for_a_page(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with null allowed for every property, as no page has to have all of them, and with no property that
    it does not name."""
    properties = {name: {"anyOf": [one, {"type": "null"}]} for name, one in schema["properties"].items()}
    closed: dict[str, Any] = _closed({**schema, "properties": properties, "required": list(properties)})
    return closed


def _closed(schema: Any) -> Any:
    """The schema with every object in it closed, where it does not say otherwise."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    result: dict[str, Any] = {}
    for name, value in schema.items():
        if name in ("properties", "$defs", "definitions") and isinstance(value, dict):
            result[name] = {inner: _closed(one) for inner, one in value.items()}
        else:
            result[name] = value if name in ("enum", "const", "default") else _closed(value)
    if "properties" in result:
        result.setdefault("additionalProperties", False)
    return result


class _Merging:
    def __init__(self, conflicts: list[dict[str, Any]]) -> None:
        self._conflicts = conflicts

    def object(self, target: dict[str, Any], records: Sequence[tuple[int, dict[str, Any]]], path: str) -> None:
        for name in dict.fromkeys(name for _, record in records for name in record):
            found = [(page, record[name]) for page, record in records if record.get(name) is not None]
            target[name] = self._value(found, f"{path}.{name}")

    def _value(self, found: Sequence[tuple[int, Any]], path: str) -> Any:
        if not found:
            return None
        first = found[0][1]
        alike = [(page, value) for page, value in found if type(value) is type(first)]
        if isinstance(first, list) and len(alike) == len(found):
            return [item for _, value in found for item in value]
        if isinstance(first, dict) and len(alike) == len(found):
            inner: dict[str, Any] = {}
            self.object(inner, alike, path)
            return inner
        if any(value != first for _, value in found):
            values = [{"page": page, "value": value} for page, value in found]
            self._conflicts.append({"path": path, "values": values})
        return first


def _missing(data: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> list[str]:
    found = [f"{path}.{name}" for name in schema.get("required", ()) if data.get(name) is None]
    for name, inner in schema.get("properties", {}).items():
        if isinstance(data.get(name), dict) and isinstance(inner, dict):
            found += _missing(data[name], inner, f"{path}.{name}")
    return found
