"""The page: its static files and the rendering of answers. Knows nothing of models, requests or keys.

Static files are read once, by the list of the package; a request picks one by its name, so no path of a client reaches
the file system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..errors import BadRequest
from .bodies import read_bytes
from .render import MAX_TEXT, Block, render

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
MIME_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_RENDERERS = 2  # threads
_MAX_BODY = 8 * MAX_TEXT  # bytes: every character may be escaped


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    headers: dict[str, str]


class _RenderRequest(msgspec.Struct, forbid_unknown_fields=True):
    text: str


class _RenderAnswer(msgspec.Struct):
    blocks: list[Block]


def routes() -> list[Route]:
    """`/`, `/ui/NAME` and `POST /ui/render`. Reads the page's files now.

    Errors of requests are KimiVLErrors, which the application turns into answers.
    """
    files = _page_files()
    static = [
        Route("/" if name == "index.html" else f"/ui/{name}", _sender(file), methods=["GET"])
        for name, file in files.items()
    ]
    return [*static, Route("/ui/render", _render_endpoint(), methods=["POST"])]


def _page_files() -> dict[str, _File]:
    found = {}
    for entry in resources.files(__package__).joinpath("page").iterdir():
        kind = PurePosixPath(entry.name).suffix
        if kind in MIME_TYPES:
            found[entry.name] = _file(entry.read_bytes(), kind)
    example = resources.files("kimi_vl_cpp.builtin").joinpath("receipt.png")
    found["example.png"] = _file(example.read_bytes(), ".png")
    return found


def _file(body: bytes, kind: str) -> _File:
    headers = {
        "Content-Type": MIME_TYPES[kind],
        "Cache-Control": "no-cache",  # keep it, and ask whether it is still this one
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        **SECURITY_HEADERS,
    }
    return _File(body, headers)


def _sender(file: _File) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        given = request.headers.get("if-none-match", "")
        known = {tag.strip().removeprefix("W/") for tag in given.split(",")}
        if file.headers["ETag"] in known or "*" in known:
            return Response(status_code=304, headers=file.headers)
        return Response(file.body, headers=file.headers)

    return send


def _render_endpoint() -> Callable[[Request], Awaitable[Response]]:
    limiter: list[anyio.CapacityLimiter] = []  # made in the event loop that uses it

    async def send(request: Request) -> Response:
        if not limiter:
            limiter.append(anyio.CapacityLimiter(_RENDERERS))
        body = await read_bytes(request, _MAX_BODY, _too_large)
        answer = await anyio.to_thread.run_sync(_rendered, body, limiter=limiter[0])
        return Response(
            answer, media_type="application/json", headers={"Cache-Control": "no-store", **SECURITY_HEADERS}
        )

    return send


def _too_large(_got: int) -> BadRequest:
    return BadRequest(f"body: more than {_MAX_BODY} bytes: send the text in parts", code="request.text_too_long")


def _rendered(body: bytes) -> bytes:
    try:
        asked = msgspec.json.decode(body, type=_RenderRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f'body: {error}: expected JSON like {{"text": "…"}}', code="request.json") from error
    return msgspec.json.encode(_RenderAnswer(render(asked.text)))
