"""Responses that take their time: streams of events, and JSON that is long in coming. Both notice a client that has
left, and both break silences that proxies would take for a dead connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.types import Message, Receive, Scope, Send

from .errors import ClientLeft, error_body, refusal
from .middleware import send_json

_T = TypeVar("_T")
HEADERS = {
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
SILENCE_S = 60.0
"""How long JSON may be in coming before the response begins with white space."""


def event(data: object) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def error_event(error: BaseException) -> bytes:
    """The event of an error that comes after the headers."""
    return event(error_body(refusal(error)))


async def until_left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def or_left(receive: Receive, work: Awaitable[_T]) -> _T:
    """The result of `work`. Raises ClientLeft, with the work cancelled, when the client leaves before."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(until_left(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        task.cancel()
        watch.cancel()


@dataclass(frozen=True)
class Framing:
    """How the events of a stream are written. frame: one event. failure: an error that comes after the headers. end:
    what closes a stream that is whole. ping: what breaks a silence, where the format has such a thing."""

    content_type: str
    frame: Callable[[Any], bytes]
    failure: Callable[[BaseException], bytes]
    end: bytes = b""
    ping: bytes = b""


OPENAI = Framing("text/event-stream; charset=utf-8", event, error_event, DONE, PING)


class EventStream:
    """An ASGI response of events. events: yields their bytes. ping_s: silence after which a ping is sent. stall_s: how
    long a client may take no byte. at_end: called once, however it ended."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        ping_s: float,
        stall_s: float,
        at_end: Callable[[], None],
        headers: Mapping[str, str],
        framing: Framing = OPENAI,
    ) -> None:
        self._events = events
        self._ping_s = ping_s
        self._stall_s = stall_s
        self._at_end = at_end
        self._headers = {"content-type": framing.content_type, **HEADERS, **headers}
        self._ping = framing.ping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.ensure_future(until_left(receive))
        coming: asyncio.Future[bytes | None] | None = None
        try:
            await send(_start(200, self._headers))
            coming = asyncio.ensure_future(anext(self._events, None))
            while True:
                await asyncio.wait({coming, watch}, timeout=self._ping_s, return_when=asyncio.FIRST_COMPLETED)
                if watch.done():
                    return
                if not coming.done():
                    if self._ping:
                        await self._send(send, self._ping)
                    continue
                data = coming.result()
                if data is None:
                    break
                await self._send(send, data)
                coming = asyncio.ensure_future(anext(self._events, None))
            await send({"type": "http.response.body"})
        except TimeoutError:
            return  # the client reads nothing: the connection is given up
        finally:
            watch.cancel()
            if coming is not None:
                coming.cancel()
                await asyncio.wait({coming})
            await self._events.aclose()
            self._at_end()

    async def _send(self, send: Send, data: bytes) -> None:
        await asyncio.wait_for(send({"type": "http.response.body", "body": data, "more_body": True}), self._stall_s)


class LateJson:
    """An ASGI response of JSON that is computed while the client waits. body: makes it; an exception is an error's
    answer. After SILENCE_S a space goes out every ping_s; an error that comes later has status 200."""

    def __init__(
        self,
        body: Awaitable[Mapping[str, Any]],
        *,
        ping_s: float,
        at_end: Callable[[], None],
        headers: Mapping[str, str],
    ) -> None:
        self._body = body
        self._ping_s = ping_s
        self._at_end = at_end
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.ensure_future(until_left(receive))
        coming = asyncio.ensure_future(self._body)
        begun, silence = False, SILENCE_S
        try:
            while not coming.done():
                await asyncio.wait({coming, watch}, timeout=silence, return_when=asyncio.FIRST_COMPLETED)
                if watch.done():
                    return
                if not coming.done():
                    if not begun:
                        await send(_start(200, {"content-type": "application/json", **self._headers}))
                    begun, silence = True, self._ping_s
                    await send({"type": "http.response.body", "body": b" ", "more_body": True})
            if not begun:
                await send_json(send, 200, coming.result(), dict(self._headers))
                return
            try:
                body: object = coming.result()
            except Exception as error:
                body = error_body(refusal(error))
            await send({"type": "http.response.body", "body": msgspec.json.encode(body)})
        finally:
            watch.cancel()
            coming.cancel()
            await asyncio.wait({coming})
            self._at_end()


def _start(status: int, headers: Mapping[str, str]) -> Message:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": raw}
