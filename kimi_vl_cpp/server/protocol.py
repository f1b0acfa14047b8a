"""HTTP/1.1 as uvicorn reads it, with a limit of time for headers (a client that never ends them keeps no connection),
and with the server's own errors for what is not HTTP."""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import Refused, error_body, headers_too_long

HEADERS_S = 10.0
"""How long the headers of a request may be in coming."""
_LATE = Refused(408, f"the headers were not whole after {HEADERS_S:g} s", "request.timeout")
_NOT_HTTP = Refused(400, "this is not HTTP/1.1", "request.http")


class TimedH11(H11Protocol):
    """Closes a connection whose headers are not whole in HEADERS_S, from its first byte on."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting = self.loop.call_later(HEADERS_S, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEADERS_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._stop_waiting()
        super().on_response_complete()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if not self.transport.is_closing():
            self._refuse(_LATE)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn while it handles what h11 raised about a request."""
        error = sys.exc_info()[1]
        too_long = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        self._refuse(headers_too_long() if too_long else _NOT_HTTP)

    def _refuse(self, refused: Refused) -> None:
        """Answers past h11, which may be in no state for it, and closes the connection."""
        body = msgspec.json.encode(error_body(refused))
        head = (
            f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
