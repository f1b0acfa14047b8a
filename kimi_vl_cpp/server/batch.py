"""A file of requests, answered into another: OpenAI's batch lines, on the machinery of the server without its socket.

The output is written line by line and is whole after every one, so that a batch that was stopped goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
from starlette.types import ASGIApp, Message

from ..errors import BadRequest
from ..model import KimiVL
from .app import create_app
from .engine import Engine
from .logs import Log
from .metrics import Metrics
from .settings import Settings
from .state import State

URLS = ("/v1/chat/completions", "/v1/completions")
MAX_LINE_BYTES = 256 << 20


@dataclass
class Counts:
    """Lines of a batch: done before, answered, refused."""

    before: int = 0
    answered: int = 0
    refused: int = 0


def run_batch(
    model: KimiVL,
    source: Path,
    target: Path,
    *,
    concurrency: int = 8,
    on_line: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Answers every line of `source` that has no line in `target` yet. on_line: called after every line.

    The answers of a line do not depend on the others. Raises BadRequest (code "batch.*") for files that cannot be used.
    """
    if source.resolve() == target.resolve():
        raise BadRequest(f"{target}: is the input too: name another file", "batch.same_file")
    try:
        done = finished_ids(target)
        with source.open("rb") as lines, target.open("ab") as out:
            return asyncio.run(_Batch(model, out, done, concurrency, on_line).run(lines))
    except OSError as error:
        raise BadRequest(f"{error.filename}: {error.strerror}", "batch.file") from None


def finished_ids(target: Path) -> set[str]:
    """The custom_ids that a file has lines of. A last line that is not whole is cut off.

    Raises BadRequest (code "batch.not_a_batch") for a file of something else.
    """
    if not target.exists():
        return set()
    done: set[str] = set()
    whole = 0
    with target.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                done.add(str(msgspec.json.decode(line)["custom_id"]))
            except (msgspec.MsgspecError, KeyError, TypeError):
                raise BadRequest(
                    f"{target}, line {number}: is not a line of a batch's output: name another file",
                    "batch.not_a_batch",
                ) from None
            whole += len(line)
    if whole < target.stat().st_size:
        os.truncate(target, whole)
    return done


class _Batch:
    def __init__(
        self,
        model: KimiVL,
        out: IO[bytes],
        done: set[str],
        concurrency: int,
        on_line: Callable[[Counts], None],
    ) -> None:
        self._model = model
        self._out = out
        self._done = done
        self._seen: set[str] = set()
        self._on_line = on_line
        self._n = concurrency
        self._counts = Counts(before=len(done))

    async def run(self, lines: IO[bytes]) -> Counts:
        settings = Settings(max_running=self._n, max_queue=self._n * 64, max_body=MAX_LINE_BYTES, max_queue_s=0)
        state = State(settings, _Silent(), Metrics())
        state.engine = Engine(self._model, settings, state.metrics)
        app = create_app(state)
        waiting: set[asyncio.Task[None]] = set()
        try:
            for number, line in self._lines(lines):
                if len(waiting) >= self._n:
                    _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                waiting.add(asyncio.ensure_future(self._one(app, number, line)))
            if waiting:
                await asyncio.wait(waiting)
            for task in waiting:
                task.result()
        finally:
            for task in waiting:
                task.cancel()
            state.attachments.close()
            await asyncio.to_thread(state.engine.stop)
        return self._counts

    def _lines(self, lines: IO[bytes]) -> Iterator[tuple[int, bytes]]:
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            if line.strip():
                yield number, line

    async def _one(self, app: ASGIApp, number: int, line: bytes) -> None:
        name = f"line-{number}"  # of a line without a custom_id of its own
        try:
            asked = _object(line)
            given = asked.get("custom_id")
            if not isinstance(given, str) or not given:
                raise _bad("custom_id", "is missing, expected a string")
            if given in self._seen:
                raise _bad("custom_id", f"{given[:100]!r} is there twice")
            self._seen.add(given)
            name = given
            url, body = _request(asked)
        except BadRequest as error:
            if name not in self._done:
                self._write(name, None, {"code": error.code, "message": f"line {number}: {error}"})
            return
        if name in self._done:
            return
        status, answer = await _call(app, url, msgspec.json.encode(body))
        response = {"status_code": status, "request_id": f"req-{secrets.token_hex(12)}", "body": answer}
        self._write(name, response, None)

    def _write(self, custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> None:
        row = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": custom_id, "response": response, "error": error}
        self._out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._out.flush()
        if error is None and response is not None and response["status_code"] == 200:
            self._counts.answered += 1
        else:
            self._counts.refused += 1
        self._on_line(self._counts)


def _object(line: bytes) -> dict[str, Any]:
    """A line's JSON object. Raises BadRequest (code "batch.line")."""
    try:
        asked = msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _bad("line", f"is not JSON: {error}") from None
    if not isinstance(asked, dict):
        raise _bad("line", "is not a JSON object")
    return asked


def _request(asked: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The path and the body that a line asks for. Raises BadRequest (code "batch.line")."""
    url, body = asked.get("url", URLS[0]), asked.get("body")
    if asked.get("method", "POST") != "POST":
        raise _bad("method", "expected POST")
    if url not in URLS:
        raise _bad("url", f"expected one of {', '.join(URLS)}")
    if not isinstance(body, dict):
        raise _bad("body", "is missing, expected an object")
    return url, {**body, "stream": False}


def _bad(name: str, problem: str) -> BadRequest:
    return BadRequest(f"{name}: {problem}", "batch.line")


async def _call(app: ASGIApp, path: str, body: bytes) -> tuple[int, Any]:
    """Status and JSON of one request, as a socket would have brought it."""
    sent = False
    status, parts = 0, []

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # this client never leaves
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    headers = [(b"host", b"localhost"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
    }
    await app(scope, receive, send)
    return status, msgspec.json.decode(b"".join(parts))


class _Silent(Log):
    """A log that only says what went wrong."""

    def request(self, context: Any) -> None:
        pass
