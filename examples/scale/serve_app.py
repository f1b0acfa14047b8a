"""Ray Serve: several copies of the engine behind one address, each conversation at the copy that holds its beginning.

    pip install 'kimi-vl-cpp[server,ray]'
    serve run serve_app:app                          # the built-in model, 2 copies
    serve run serve_app:build model=/models/kimi.gguf copies=4 threads=16

Ingress reads a request and names its conversation. The name puts the copies in an order of its own, the same for every
request of the conversation; the first copy with room answers, so that what it computed of the conversation before is
found in its cache. A copy that dies is restarted by Serve in its place.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from kimi_vl_cpp import KimiVL, KimiVLError

AT_ONCE = 16
"""Answers that one copy decodes together."""


def conversation_of(body: dict[str, Any]) -> str:
    """The name of a conversation: what its system messages and its first question say, pictures included."""
    beginning = []
    for message in body.get("messages") or ():
        beginning.append(message)
        if isinstance(message, dict) and message.get("role") == "user":
            break
    return hashlib.sha256(json.dumps(beginning, sort_keys=True).encode()).hexdigest()


def order_of(conversation: str, n_copies: int) -> list[int]:
    """The copies as a conversation prefers them. One copy more or less moves few conversations (rendezvous hashing)."""
    return sorted(range(n_copies), key=lambda copy: hashlib.sha256(f"{conversation} {copy}".encode()).digest())


@serve.deployment(max_ongoing_requests=AT_ONCE)
class Engine:
    """One copy of the model."""

    def __init__(self, model: str | None, threads: int | None) -> None:
        self.model = KimiVL(model, n_threads=threads) if model else KimiVL.builtin(n_threads=threads)

    async def answer(self, body: dict[str, Any]) -> AsyncIterator[tuple[int, Any]]:
        """(status, JSON) of a whole answer, or of every chunk of a stream."""
        messages = body.pop("messages", None)
        found: asyncio.Queue[tuple[int, Any] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        left = threading.Event()

        def work() -> None:
            try:
                for one in self._all(messages, body):
                    if left.is_set():
                        return
                    loop.call_soon_threadsafe(found.put_nowait, (200, one))
            except KimiVLError as error:
                fields = {"message": str(error), "type": "invalid_request_error", "param": error.param}
                loop.call_soon_threadsafe(found.put_nowait, (400, {"error": {**fields, "code": error.code}}))
            finally:
                loop.call_soon_threadsafe(found.put_nowait, None)

        threading.Thread(target=work, daemon=True).start()
        try:
            while (one := await found.get()) is not None:
                yield one
        finally:
            left.set()

    def _all(self, messages: Any, body: dict[str, Any]) -> Iterator[Any]:
        answer = self.model.create_chat_completion(messages, **body)
        if not body.get("stream"):
            yield answer
            return
        try:
            yield from answer
        finally:
            answer.close()  # type: ignore[union-attr]


@serve.deployment(max_ongoing_requests=1000)
class Ingress:
    """The address: OpenAI's chat completions, over the copies."""

    def __init__(self, *engines: DeploymentHandle) -> None:
        self._engines = [engine.options(stream=True) for engine in engines]
        self._under_way = [0] * len(engines)

    async def __call__(self, request: Request) -> Response:
        if request.url.path.rstrip("/") != "/v1/chat/completions" or request.method != "POST":
            return JSONResponse({"error": {"message": "only POST /v1/chat/completions is served here"}}, 404)
        try:
            body = await request.json()
            order = order_of(conversation_of(body), len(self._engines))
        except (ValueError, AttributeError):
            return JSONResponse({"error": {"message": "the body is not a JSON object"}}, 400)
        copy = next((one for one in order if self._under_way[one] < AT_ONCE), order[0])
        answers = self._answers(copy, body)
        status, first = await anext(answers)
        if status != 200 or not body.get("stream"):
            await answers.aclose()
            return JSONResponse(first, status)

        async def events() -> AsyncIterator[bytes]:
            yield _event(first)
            async for _, chunk in answers:
                yield _event(chunk)
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _answers(self, copy: int, body: dict[str, Any]) -> AsyncGenerator[tuple[int, Any], None]:
        self._under_way[copy] += 1
        try:
            async for one in self._engines[copy].answer.remote(body):
                yield one
        finally:
            self._under_way[copy] -= 1


def _event(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def build(arguments: dict[str, str]) -> serve.Application:
    """The application; arguments: model (a file; the built-in model by default), copies, threads of each."""
    threads = int(arguments["threads"]) if "threads" in arguments else None
    engines = [
        Engine.options(name=f"engine-{index}", ray_actor_options={"num_cpus": threads or 1}).bind(
            arguments.get("model"), threads
        )
        for index in range(int(arguments.get("copies", 2)))
    ]
    return Ingress.bind(*engines)


app = build({})
