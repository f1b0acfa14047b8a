"""The body of a request: read within its limits, decoded once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request

from .errors import Refused
from .state import state_of

_SILENCE_S = 30.0
_LARGE = 1 << 18
"""Bytes from which a body is decoded outside of the event loop."""


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object in a body. Raises Refused: 400, 408, 411, 413, 415."""
    body = await _read(request)
    try:
        value = await asyncio.to_thread(_decode, body) if len(body) > _LARGE else _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"the body is not JSON: {problem}", "request.json") from None
    if not isinstance(value, dict):
        raise Refused(400, f"the body is a JSON {_kind(value)}, expected an object", "request.json")
    return value


def _decode(body: bytes) -> Any:
    return msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf"))


def _kind(value: Any) -> str:
    names = {list: "array", str: "string", type(None): "null", bool: "boolean"}
    return names.get(type(value), "number")


async def _read(request: Request) -> bytes:
    limit = state_of(request).settings.max_body
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refused(415, f"Content-Encoding {encoding[:40]}: send the body uncompressed", "request.encoding")
    length = request.headers.get("content-length")
    if length is None and "transfer-encoding" not in request.headers:
        raise Refused(411, "the request has no body: send JSON with its Content-Length", "request.length")
    if length is not None and length.isdigit() and int(length) > limit:
        raise _too_large(int(length), limit)
    return await read_bytes(request, limit, lambda got: _too_large(got, limit))


async def read_bytes(request: Request, limit: int, too_large: Callable[[int], Exception]) -> bytes:
    """The body of a request as it comes. Raises too_large(bytes so far), and Refused 408 when it stops coming."""
    parts: list[bytes] = []
    total = 0
    stream = request.stream()
    while True:
        try:
            part = await asyncio.wait_for(anext(stream, None), _SILENCE_S)
        except TimeoutError:
            raise Refused(408, f"the body stopped for {_SILENCE_S:g} s before its end", "request.timeout") from None
        if part is None:
            break
        total += len(part)
        if total > limit:
            raise too_large(total)
        parts.append(part)
    return b"".join(parts)


def _too_large(got: int, limit: int) -> Refused:
    return Refused(
        413,
        f"the body has {got} bytes or more, and at most {limit} are taken: send smaller pictures, or start the server "
        "with a larger --max-body",
        "request.too_large",
    )
