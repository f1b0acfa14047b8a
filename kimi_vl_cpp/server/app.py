"""The routes of the server, and the layers around them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from . import chat_completions, completions, models, ollama, openapi, pages, responses, tokens
from .context import KEY as CONTEXT
from .errors import Refused
from .middleware import Guarded, Keyed, Observed
from .state import State

Endpoint = Callable[[Request], Awaitable[Any]]

_NOT_HERE = {
    "/v1/embeddings": "the model has no embeddings of texts",
    "/v1/files": "send the requests one by one",
    "/v1/batches": "send the requests one by one",
    "/v1/audio": "audio is not understood",
    "/v1/images": "pictures are read, not made",
    "/v1/messages": "use /v1/chat/completions",
    "/api/pull": "start the server with the model",
    "/api/push": "there is no store of models",
    "/api/create": "there is no store of models",
    "/api/copy": "there is no store of models",
    "/api/delete": "there is no store of models",
    "/api/embed": "the model has no embeddings of texts",
    "/api/embeddings": "the model has no embeddings of texts",
}
"""Paths of other servers -> what to do instead."""


def create_app(state: State) -> ASGIApp:
    """The ASGI application of one server."""
    router = Router(routes=_routes(state), redirect_slashes=False, default=_nothing_here)
    return Observed(Guarded(Keyed(_Routed(router), state), state), state)


def _routes(state: State) -> list[BaseRoute]:
    routes: list[BaseRoute] = []
    for path, method, endpoint, bare in (
        ("/v1/chat/completions", "POST", chat_completions.chat_completions, True),
        ("/v1/chat/completions/input_tokens", "POST", chat_completions.input_tokens, False),
        ("/v1/chat/completions/control", "POST", chat_completions.control, False),
        ("/v1/responses", "POST", responses.responses, True),
        ("/v1/completions", "POST", completions.completions, True),
        ("/v1/models", "GET", models.models, True),
        ("/v1/models/{name:path}", "GET", models.one_model, True),
        ("/v1/tokenize", "POST", tokens.tokenize, True),
        ("/v1/detokenize", "POST", tokens.detokenize, True),
        ("/v1/tokenizer_info", "GET", tokens.tokenizer_info, True),
        ("/v1/status", "GET", models.status, False),
        ("/api/chat", "POST", ollama.chat, False),
        ("/api/generate", "POST", ollama.generate, False),
        ("/api/tags", "GET", ollama.tags, False),
        ("/api/ps", "GET", ollama.running, False),
        ("/api/show", "POST", ollama.show, False),
        ("/api/version", "GET", ollama.version, False),
        ("/openapi.json", "GET", openapi.openapi, False),
        ("/health", "GET", models.health, False),
        ("/ping", "GET", models.ping, False),
    ):
        paths = [path, path.removeprefix("/v1")] if bare else [path]
        routes += [Route(one, endpoint, methods=[method]) for one in paths]
    if state.settings.metrics:
        routes.append(Route("/metrics", models.metrics_text, methods=["GET"]))
    if state.settings.ui:
        routes += pages.routes()
    return routes


class _Routed:
    """The router, which notes in the context which route answers."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["app"] = self  # the router raises for 405 where an application handles exceptions
            for route in self._router.routes:
                if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
                    scope[CONTEXT].route = route.path
                    break
        await self._router(scope, receive, send)


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    path = scope[CONTEXT].path
    for prefix, advice in _NOT_HERE.items():
        if path == prefix or path.startswith(prefix.rstrip("/") + "/"):
            raise Refused(404, f"{path[:200]}: not served here: {advice}", "unsupported.endpoint")
    raise Refused(404, f"{path[:200]}: there is nothing here", "request.path")
