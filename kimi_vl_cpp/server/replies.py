"""Plain responses."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response


def json_reply(body: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")
