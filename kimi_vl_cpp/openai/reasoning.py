"""The many ways in which requests say how long a model may reason, as one budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..generation.sampling import MAX_NEW_TOKENS
from .fields import bad, boolean, integer, mapping, shown

EFFORTS: dict[str, int | None] = {
    "none": 0,
    "minimal": 256,
    "low": 1024,
    "medium": 4096,
    "high": 16384,
    "xhigh": None,
    "max": None,
}
"""reasoning_effort -> the tokens that the reasoning may take; None is no limit."""

BUDGETS = ("thinking_token_budget", "thinking_budget_tokens", "thinking_budget")
FIELDS = frozenset(("reasoning_effort", *BUDGETS, "enable_thinking", "chat_template_kwargs", "thinking", "reasoning"))
_TEMPLATE_SWITCHES = ("enable_thinking", "thinking")


@dataclass(frozen=True)
class Reasoning:
    """What a request says about reasoning. given: whether it says anything. budget: tokens that it may take, 0 for no
    reasoning, None for no limit. exclude: it is counted, but not part of the answer."""

    given: bool = False
    budget: int | None = None
    exclude: bool = False


NOTHING_SAID = Reasoning()


def read_reasoning(fields: Mapping[str, Any]) -> Reasoning:
    """Raises BadRequest for a wrong value, and for two fields that contradict each other."""
    on: str | None = None
    limit: tuple[str, int] | None = None
    given = False
    for where, wish in _wishes(fields):
        given = True
        if wish is None:
            on = where
        elif limit is not None and limit[1] != wish:
            raise bad(where, f"contradicts {limit[0]}: give one of them")
        else:
            limit = (where, wish)
        if on is not None and limit is not None and limit[1] == 0:
            raise bad(where, f"contradicts {limit[0] if where == on else on}: give one of them")
    reasoning = fields.get("reasoning")
    exclude = reasoning.get("exclude") if isinstance(reasoning, Mapping) else None
    return Reasoning(
        given, None if limit is None else limit[1], exclude is not None and boolean("reasoning.exclude", exclude)
    )


def _wishes(fields: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    """(field, budget) of every field that says something; None is reasoning without a limit."""
    if fields.get("reasoning_effort") is not None:
        yield "reasoning_effort", _effort("reasoning_effort", fields["reasoning_effort"])
    for name in BUDGETS:
        if fields.get(name) is not None:
            yield name, _budget(name, fields[name])
    if fields.get("enable_thinking") is not None:
        yield "enable_thinking", _switch("enable_thinking", fields["enable_thinking"])
    template = fields.get("chat_template_kwargs")
    if template is not None:
        for name in _TEMPLATE_SWITCHES:
            if mapping("chat_template_kwargs", template).get(name) is not None:
                yield f"chat_template_kwargs.{name}", _switch(f"chat_template_kwargs.{name}", template[name])
    thinking = fields.get("thinking")
    if thinking is not None:
        kind = mapping("thinking", thinking).get("type")
        if kind not in ("enabled", "disabled", "adaptive", "auto"):
            raise bad("thinking.type", f"got {shown(kind)}, expected 'enabled' or 'disabled'")
        if thinking.get("budget_tokens") is not None:
            yield "thinking.budget_tokens", _budget("thinking.budget_tokens", thinking["budget_tokens"])
        if kind in ("enabled", "disabled"):
            yield "thinking.type", _switch("thinking.type", kind == "enabled")
    reasoning = fields.get("reasoning")
    if reasoning is not None:
        if mapping("reasoning", reasoning).get("effort") is not None:
            yield "reasoning.effort", _effort("reasoning.effort", reasoning["effort"])
        if reasoning.get("max_tokens") is not None:
            yield "reasoning.max_tokens", _budget("reasoning.max_tokens", reasoning["max_tokens"])
        if reasoning.get("enabled") is not None:
            yield "reasoning.enabled", _switch("reasoning.enabled", reasoning["enabled"])


def _effort(where: str, value: Any) -> int | None:
    if not isinstance(value, str) or value not in EFFORTS:
        raise bad(where, f"got {shown(value)}, expected one of {', '.join(EFFORTS)}")
    return EFFORTS[value]


def _budget(where: str, value: Any) -> int | None:
    tokens = integer(where, value, -1, MAX_NEW_TOKENS)
    return None if tokens < 0 else tokens


def _switch(where: str, value: Any) -> int | None:
    return None if boolean(where, value) else 0
