"""The functions that an answer may call, and the part of its grammar that allows, demands or forbids the calls.

Knows no request's fields and no template: what the system message says about the functions comes as text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..text import tool_calls
from ..text.thinking import OPENING as THOUGHT


@dataclass(frozen=True)
class Tool:
    """A function. name: letters, digits, "_", "-" and ".". parameters: the JSON schema of its arguments, which are an
    object, as text. field: what an error about the schema is about."""

    name: str
    parameters: str
    field: str = "tools"


@dataclass(frozen=True)
class ToolUse:
    """instructions: what the system message says about the functions. callable: those that may be called, none where
    calling is forbidden. required: whether one must be. several: whether one answer may call more than one."""

    instructions: str
    callable: tuple[Tool, ...]
    required: bool = False
    several: bool = True


# An answer's grammar in Lark's notation. Free text neither holds the mark of a call nor begins with that of
# reasoning: both would be read as text, which is the longer match. @answer is the grammar that the text has to follow,
# @arguments_N that of a function's arguments.
_NO_THOUGHT = rf"~/[ \t\r\n]*{THOUGHT}(?s:.*)/"
_TEXT = rf"""TEXT: /(?s:.*)/ & ~/(?s:.*){tool_calls.OPENING}(?s:.*)/ & {_NO_THOUGHT}
"""
_TEXT_BEFORE = rf"""before[lazy]: BEFORE
BEFORE: /(?s:.*){tool_calls.OPENING}/ & {_NO_THOUGHT}
"""


def reply_rules(tools: ToolUse, *, follows_grammar: bool) -> str:
    """The rule `reply`, which uses WS, and those below it. follows_grammar: the text is that of @answer."""
    opening = f'"{tool_calls.OPENING}"'
    text = "WS? @answer" if follows_grammar else "TEXT"
    begun = "WS? first" if follows_grammar or tools.required else "before"
    again = f" (WS? {opening} call)*" if tools.several else ""
    ways = [] if tools.required else [text]
    rules = [] if tools.required or follows_grammar else [_TEXT]
    if tools.callable:
        ways.append(f"{begun} call{again}")
        rules.append(f"first: {opening}\n" if begun == "WS? first" else _TEXT_BEFORE)
        calls = [
            f"{json.dumps(tool_calls.call_opening(tool.name))} @arguments_{index}"
            for index, tool in enumerate(tools.callable)
        ]
        rules.append(f"call: ({' | '.join(calls)}) {json.dumps(tool_calls.CALL_END)}\n")
    return f"reply: {' | '.join(ways)}\n" + "".join(rules)
