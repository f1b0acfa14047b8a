"""The fields that say what an answer has to look like, as one grammar."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..generation.grammar import GrammarKind, GrammarSource
from .fields import bad, mapping, shown, string, unsupported

FIELDS = (
    "response_format structured_outputs guided_json guided_regex guided_choice guided_grammar json_schema grammar"
).split()
_ANY_OBJECT = '{"type": "object"}'
_FORMATS = ("text", "json_object", "json_schema", "regex", "grammar")


def read_format(given: Mapping[str, Any]) -> GrammarSource | None:
    """The grammar that a request asks for, or None. Raises BadRequest, also for more than one."""
    found = [source for name in FIELDS if name in given and (source := _READERS[name](name, given[name])) is not None]
    if len(found) > 1:
        raise bad(found[1].field, f"{found[0].field} is given too: give one of them")
    return found[0] if found else None


def _response_format(where: str, value: Any) -> GrammarSource | None:
    kind = mapping(where, value).get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return GrammarSource("json_schema", _ANY_OBJECT, where)
    if kind == "json_schema":
        schema = mapping(f"{where}.json_schema", value.get("json_schema")).get("schema")
        return _schema(f"{where}.json_schema.schema", schema)
    if kind == "regex":
        return _text("regex")(f"{where}.regex", value.get("regex"))
    if kind == "grammar":
        return _grammar(f"{where}.grammar", value.get("grammar"))
    raise bad(f"{where}.type", f"got {shown(kind)}, expected one of {', '.join(_FORMATS)}")


def _structured_outputs(where: str, value: Any) -> GrammarSource | None:
    readers = {
        "json": _schema,
        "regex": _text("regex"),
        "choice": _choice,
        "grammar": _grammar,
        "json_object": _json_object,
    }
    found = [
        source
        for name, read in readers.items()
        if mapping(where, value).get(name) is not None and (source := read(f"{where}.{name}", value[name])) is not None
    ]
    if len(found) > 1:
        raise bad(found[1].field, f"{found[0].field} is given too: give one of them")
    return found[0] if found else None


def _json_object(where: str, value: Any) -> GrammarSource | None:
    if not isinstance(value, bool):
        raise bad(where, f"got {shown(value)}, expected true or false")
    return GrammarSource("json_schema", _ANY_OBJECT, where) if value else None


def _schema(where: str, value: Any) -> GrammarSource:
    if isinstance(value, str):  # as text, which some clients send
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise bad(where, f"is not JSON: {error}") from None
    if not isinstance(value, (Mapping, bool)):
        raise bad(where, f"got {shown(value)}, expected a JSON schema")
    try:
        return GrammarSource("json_schema", json.dumps(value), where)
    except (TypeError, ValueError, RecursionError) as error:
        raise bad(where, f"is not a JSON schema: {error}") from None


def _choice(where: str, value: Any) -> GrammarSource:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise bad(where, f"got {shown(value)}, expected a list of strings, none empty")
    return GrammarSource("choice", json.dumps(value), where)


def _grammar(where: str, value: Any) -> GrammarSource | None:
    text = string(where, value)
    if not text:
        return None
    if "::=" in text:
        raise unsupported(where, "GBNF is not read: write it in Lark's notation", "unsupported.gbnf")
    return GrammarSource("lark", text, where)


def _text(kind: GrammarKind) -> Callable[[str, Any], GrammarSource]:
    return lambda where, value: GrammarSource(kind, string(where, value), where)


_READERS: dict[str, Callable[[str, Any], GrammarSource | None]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _schema,
    "guided_regex": _text("regex"),
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "json_schema": _schema,
    "grammar": _grammar,
}
