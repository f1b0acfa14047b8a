"""Values that the model must not see: it writes their names as {{NAME}}, and they are put in when a text is typed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ..errors import AgentStopped, BadRequest, shown
from .actions import Action, Write

_NAME = re.compile(r"\{\{\s*([A-Za-z_]\w{0,63})\s*\}\}")


class Secrets:
    """values: name -> value. Raises BadRequest (code "request.secrets") for a name that cannot be written so."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = dict(values or {})
        for name, value in self._values.items():
            if _NAME.fullmatch(f"{{{{{name}}}}}") is None or not value:
                raise BadRequest(
                    f"secrets: {shown(name)} needs a name of letters, digits and _, and a value", "request.secrets"
                )

    @property
    def names(self) -> list[str]:
        """What the model may write."""
        return list(self._values)

    def revealed(self, action: Action) -> Action:
        """The action with the values in it. Raises AgentStopped (code "agent.secret") for a name without a value."""
        if not isinstance(action, Write):
            return action

        def value(match: re.Match[str]) -> str:
            if match[1] not in self._values:
                listed = ", ".join(self._values) or "none"
                raise AgentStopped(
                    f"{{{{{match[1]}}}}} is not a secret that was given (there is {listed})", "agent.secret"
                )
            return self._values[match[1]]

        return replace(action, text=_NAME.sub(value, action.text)) if self._values else action

    def hidden(self, text: str) -> str:
        """A text with names instead of the values in it."""
        for name, value in self._values.items():
            text = text.replace(value, f"{{{{{name}}}}}")
        return text
