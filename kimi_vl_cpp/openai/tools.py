"""The fields of a request that are about functions: which there are, which may be called, which have been called."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..generation.tools import Tool, ToolUse
from ..text import tool_calls
from .fields import bad, boolean, mapping, shown, string, unsupported

FIELDS = ("tools", "tool_choice", "parallel_tool_calls")
MAX_TOOLS = 128
NAME = "^[A-Za-z0-9_.-]{1,128}$"
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_CHOICES = ("none", "auto", "required")


def read_tools(given: Mapping[str, Any]) -> ToolUse | None:
    """What a request says about functions, None where it has none. Raises BadRequest and Unsupported."""
    several = boolean("parallel_tool_calls", given.get("parallel_tool_calls", True))
    listed = given.get("tools", [])
    if not isinstance(listed, list):
        raise bad("tools", f"got {shown(listed)}, expected a list of functions")
    if len(listed) > MAX_TOOLS:
        raise bad("tools", f"got {len(listed)}, expected at most {MAX_TOOLS}")
    functions = [_function(f"tools[{index}]", one) for index, one in enumerate(listed)]
    described = {tool.name: description for tool, description in functions}
    if len(described) < len(functions):
        raise bad("tools", "two functions have the same name")
    choice = given.get("tool_choice", "auto")
    if not functions:
        if choice not in ("none", "auto"):
            raise bad("tool_choice", "asks for a call, but there are no tools")
        return None
    names, required, once = _chosen(choice, tuple(described))
    return ToolUse(
        tool_calls.instructions(list(described.values()), several=several),
        tuple(tool for tool, _ in functions if tool.name in names),
        required=required,
        several=several and not once,
    )


def _function(where: str, value: Any) -> tuple[Tool, dict[str, Any]]:
    """A function, and how the system message describes it."""
    kind = mapping(where, value).get("type", "function")
    if kind != "function":
        raise unsupported(f"{where}.type", f"got {shown(kind)}, expected 'function'")
    place = f"{where}.function"
    function = mapping(place, value.get("function"))
    name = check_name(f"{place}.name", function.get("name"))
    parameters = function.get("parameters")
    schema = _NO_ARGUMENTS if parameters is None else mapping(f"{place}.parameters", parameters)
    if schema.get("type", "object") != "object":
        raise bad(f"{place}.parameters.type", f"got {shown(schema['type'])}, expected 'object'", "request.tools")
    description = function.get("description")
    described = (
        {"name": name}
        if description is None
        else {
            "name": name,
            "description": string(f"{place}.description", description),
        }
    )
    text = _dumped(f"{place}.parameters", _closed(schema))
    return Tool(name, text, f"{place}.parameters"), {**described, "parameters": schema}


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with the arguments that it names alone, unless it says that there may be others: none of those would
    mean anything to a function."""
    says = schema.keys() & {"additionalProperties", "patternProperties", "unevaluatedProperties"}
    closed = {"additionalProperties": False} if schema.get("properties") and not says else {}
    return {"type": "object", **schema, **closed}


def check_name(where: str, value: Any) -> str:
    """The name of a function."""
    name = string(where, value)
    if not re.match(NAME, name) or name.endswith("\n"):
        raise bad(where, f"got {shown(name)}, expected 1 to 128 letters, digits, '_', '-' and '.'")
    return name


def _dumped(where: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise bad(where, f"is not JSON: {error}") from None


def _chosen(choice: Any, names: Sequence[str]) -> tuple[Sequence[str], bool, bool]:
    """The names of the functions that may be called, whether one must be, and whether only once."""
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise bad("tool_choice", f"got {shown(choice)}, expected one of {', '.join(_CHOICES)}, or a function")
        return () if choice == "none" else names, choice == "required", False
    kind = mapping("tool_choice", choice).get("type")
    if kind == "function":
        return [_known("tool_choice.function.name", choice.get("function"), names)], True, True
    if kind == "allowed_tools":
        place = "tool_choice.allowed_tools"
        allowed = mapping(place, choice.get("allowed_tools"))
        mode, listed = allowed.get("mode"), allowed.get("tools")
        if mode not in ("auto", "required"):
            raise bad(f"{place}.mode", f"got {shown(mode)}, expected 'auto' or 'required'")
        if not isinstance(listed, list) or not listed:
            raise bad(f"{place}.tools", f"got {shown(listed)}, expected a list of functions")
        picked = [
            _known(
                f"{place}.tools[{index}].function.name", mapping(f"{place}.tools[{index}]", one).get("function"), names
            )
            for index, one in enumerate(listed)
        ]
        return picked, mode == "required", False
    raise bad("tool_choice.type", f"got {shown(kind)}, expected 'function' or 'allowed_tools'")


def _known(where: str, function: Any, names: Sequence[str]) -> str:
    name = function.get("name") if isinstance(function, Mapping) else None
    if name not in names:
        raise bad(where, f"got {shown(name)}, which is not in tools: {', '.join(names)[:200]}")
    return str(name)


class CallHistory:
    """The calls of a conversation so far, which results refer to."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def calls(self, where: str, value: Any) -> str:
        """The `tool_calls` of an assistant's message as the text that the model wrote."""
        if not isinstance(value, (list, tuple)):
            raise bad(where, f"got {shown(value)}, expected a list of calls")
        return "".join(self._call(f"{where}[{index}]", one) for index, one in enumerate(value))

    def _call(self, where: str, value: Any) -> str:
        kind = mapping(where, value).get("type", "function")
        if kind != "function":
            raise unsupported(f"{where}.type", f"got {shown(kind)}, expected 'function'", "unsupported.tools")
        function = mapping(f"{where}.function", value.get("function"))
        name = check_name(f"{where}.function.name", function.get("name"))
        arguments = function.get("arguments")
        if isinstance(arguments, Mapping):
            arguments = _dumped(f"{where}.function.arguments", arguments)
        call_id = string(f"{where}.id", value.get("id"), 256)
        self._names[call_id] = name
        return tool_calls.call(name, string(f"{where}.function.arguments", arguments) or "{}")

    def called(self, where: str, call_id: Any) -> str:
        """The name of the function that an earlier call was of."""
        known = string(where, call_id)
        if known not in self._names:
            raise bad(
                where,
                f"got {shown(known)}, which is not the id of a call in an earlier message",
                "request.tool_call_id",
            )
        return self._names[known]
