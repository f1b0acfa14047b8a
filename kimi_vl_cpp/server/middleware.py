"""What every request passes through: its context and log line, errors as answers, Host and Origin, the key.

Pure ASGI: a middleware that reads the response itself would hide from the endpoints that a client has left.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .context import KEY as CONTEXT
from .context import Context, make_context
from .errors import MAX_HEADER_BYTES, ClientLeft, Refused, error_body, headers_too_long, refusal
from .keys import key_of
from .state import KEY as STATE
from .state import State

OPEN_PATHS = frozenset(("/health", "/ping", "/"))
"""Paths that need no key; static files below /ui/ too."""
_QUIET = ("/health", "/ping", "/metrics", "/ui/")
"""Routes that are asked too often to be logged, but for their failures."""
CLIENT_LEFT = 499
"""The status in logs and metrics of a request whose client left before its answer began."""
_ALLOWED_HEADERS = "authorization, content-type, x-api-key, x-request-id"
_EXPOSED_HEADERS = "x-request-id, retry-after, x-kimi-vl-ignored"


class Observed:
    """The outermost layer: gives a request its context and the server's state, turns exceptions into answers, sets
    x-request-id, counts and logs."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = make_context(scope)
        scope[CONTEXT], scope[STATE] = context, self._state

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = context.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except (ClientLeft, ClientDisconnect):
            pass
        except Exception as error:
            await self._answer(context, error, send_observed)
        finally:
            context.status = context.status or CLIENT_LEFT
            self._state.metrics.http(context.route, context.method, context.status)
            if context.status >= 400 or not context.route.startswith(_QUIET):
                self._state.log.request(context)

    async def _answer(self, context: Context, error: Exception, send: Send) -> None:
        refused = _of_starlette(error, context) if isinstance(error, HTTPException) else refusal(error)
        context.fields.setdefault("code", refused.code)
        if refused.status == 500:
            self._state.log.failure(context, error)
        if context.status:  # half an answer is out: the connection ends here
            raise error
        await send_json(send, refused.status, error_body(refused), refused.headers)


def _of_starlette(error: HTTPException, context: Context) -> Refused:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{context.path}: {context.method} is not possible here, only {allowed}"
        return Refused(405, message, "request.method", headers=error.headers)
    return Refused(error.status_code, f"{context.path[:200]}: there is nothing here", "request.path")


async def send_json(send: Send, status: int, body: object, headers: dict[str, str] | None = None) -> None:
    """A whole JSON response."""
    data = msgspec.json.encode(body)
    listed = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in listed.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": data})


class Guarded:
    """Refuses headers that are too long, a Host that is not this server's (DNS rebinding makes a foreign page
    same-origin, only the Host shows it) and an Origin that is not allowed; answers preflights of those that are."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        settings = state.settings
        self._hosts = {name.lower().rstrip(".") for name in settings.allowed_hosts}
        self._origins = {origin.rstrip("/").lower() for origin in settings.cors_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            raise headers_too_long()
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if scope.get("client") is not None and not host_allowed(host, self._hosts):
            raise Refused(403, f"Host {host[:100]!r} is not served here: name it with --allowed-host", "serve.host")
        if origin is None:
            await self._app(scope, receive, send)
            return
        foreign = origin.lower() != f"{scope['scheme']}://{host}".lower()
        if foreign and origin.rstrip("/").lower() not in self._origins:
            raise Refused(
                403, f"Origin {origin[:100]!r} may not use this server: name it with --cors-origin", "serve.origin"
            )

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start" and foreign:
                listed = MutableHeaders(scope=message)
                listed["access-control-allow-origin"] = origin
                listed["access-control-expose-headers"] = _EXPOSED_HEADERS
                listed.add_vary_header("Origin")
            await send(message)

        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            allowed = {
                "access-control-allow-methods": "GET, POST, OPTIONS",
                "access-control-allow-headers": _ALLOWED_HEADERS,
                "access-control-max-age": "600",
            }
            raw = [(name.encode(), value.encode()) for name, value in allowed.items()]
            await send_with_cors({"type": "http.response.start", "status": 204, "headers": raw})
            await send_with_cors({"type": "http.response.body"})
            return
        await self._app(scope, receive, send_with_cors)


def host_allowed(host: str, more: Collection[str] = ()) -> bool:
    """Whether a Host header names this server: an IP address, localhost, or one of `more`."""
    try:
        parts = urlsplit(f"//{host}")
        name, _ = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return False
    if parts.netloc != host or parts.username is not None or not name:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in more:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Keyed:
    """Refuses a request without a key that is accepted, where the server has keys."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._keys = state.settings.keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and not _is_open(scope):
            key = key_of(Headers(scope=scope))
            name = None if key is None else self._keys.name_of(key)
            if name is None:
                missing = key is None
                message = "no API key: send it as Authorization: Bearer KEY" if missing else "the API key is wrong"
                code = "serve.key_missing" if missing else "serve.key_wrong"
                raise Refused(401, message, code, headers={"WWW-Authenticate": "Bearer"})
            scope[CONTEXT].key = name
        await self._app(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    path = scope[CONTEXT].path
    return path in OPEN_PATHS or (path.startswith("/ui/") and scope["method"] in ("GET", "HEAD"))
