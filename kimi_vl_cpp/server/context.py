"""What belongs to one HTTP request beside its bytes: its id, its key, the line that the log gets at its end."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
KEY = "kimi_vl.context"


@dataclass
class Context:
    """request_id: the client's own, where it sent one that is fit for headers and logs. path: without the prefix of
    --root-path. key: the name of its API key. route: the path of the route that answers. fields: what the log line says
    beside method, path and status."""

    request_id: str
    method: str
    path: str
    client: str
    key: str = ""
    route: str = "other"
    status: int = 0
    started: float = field(default_factory=time.perf_counter)
    fields: dict[str, Any] = field(default_factory=dict)


def make_context(scope: Scope) -> Context:
    """The context of a request that has just come in."""
    given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
    client = scope.get("client")
    return Context(
        request_id=given if _ID.match(given) else f"req-{secrets.token_hex(12)}",
        method=scope["method"],
        path=scope["path"].removeprefix(scope.get("root_path", "")) or "/",
        client=client[0] if client else "socket",
    )


def context_of(request: Request) -> Context:
    """The context of a request."""
    context: Context = request.scope[KEY]
    return context
