"""Exceptions as answers: status, type and code of each, and the body that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import BadImage, BadRequest, Cancelled, ContextFull, KimiVLError, OutOfMemory, Unsupported

MAX_HEADER_BYTES = 64 << 10
INVALID = "invalid_request_error"
UNAVAILABLE = "unavailable_error"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: UNAVAILABLE}
_OPENAI_CODES = {
    "context.prompt_too_long": "context_length_exceeded",
    "context.full": "context_length_exceeded",
    "serve.key_missing": "invalid_api_key",
    "serve.key_wrong": "invalid_api_key",
    "serve.unknown_model": "model_not_found",
}
"""Our code -> OpenAI's, where it has one."""


class Refused(KimiVLError):
    """A request that the server does not pass on: too large, too many, no key, no such path."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, code)
        self.status = status
        self.param = param
        self.headers = dict(headers or {})


def headers_too_long() -> Refused:
    """431."""
    return Refused(431, f"the headers have more than {MAX_HEADER_BYTES} bytes", "request.headers")


class ClientLeft(Exception):
    """The client closed the connection: no one is waiting for an answer."""


def unavailable(message: str, code: str, retry_after: float = 1) -> Refused:
    """503: try again in `retry_after` seconds."""
    return Refused(503, message, code, headers={"Retry-After": str(round(min(60, max(1, retry_after))))})


def refusal(error: BaseException) -> Refused:
    """What a client is answered for an exception; of one that is a bug, nothing but that it happened."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, OutOfMemory):
        return unavailable(str(error), error.code, 5)
    if isinstance(error, Cancelled):
        return unavailable("the server is shutting down", "serve.shutdown", 5)
    if isinstance(error, (BadRequest, BadImage, ContextFull, Unsupported)) and error.code != "engine.closed":
        return Refused(400, str(error), error.code, param=error.param or _param_of(error.code))
    if isinstance(error, MemoryError):
        return unavailable("there is not enough memory for this request", "memory.allocation", 5)
    message = "the server failed to answer this request; the reason is in its log under the request's id"
    return Refused(500, message, "internal", headers={"x-should-retry": "false"})


def error_body(error: Refused) -> dict[str, Any]:
    """The JSON body of an error."""
    return {
        "error": {
            "message": str(error),
            "type": _TYPES.get(error.status, "server_error" if error.status == 500 else INVALID),
            "param": error.param,
            "code": _OPENAI_CODES.get(error.code, error.code),
            "kimi_code": error.code,
        }
    }


def _param_of(code: str) -> str | None:
    """The field in a code as "request.temperature"."""
    kind, _, name = code.partition(".")
    return name if kind == "request" and name not in ("", "invalid", "unknown_option") else None
