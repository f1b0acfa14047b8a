"""A server for tests of the page: it answers the chat route from a script, with what the built-in model cannot show.

Streams have the shape of `kimi-vl serve`'s. A question picks its script by its first word; `gate` holds a stream back
until a test lets it go on, so that nothing depends on time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from kimi_vl_cpp.errors import KimiVLError
from kimi_vl_cpp.server import pages

MARKDOWN = r"""## What the receipt says

The total is **$10.05**, paid *in cash*. See [the shop](https://shop.example/) or `total`.

| item | price |
|:-----|------:|
| Tea  | $3.25 |
| Bread and butter | $6.80 |

1. Add the prices: $3.25 + 6.80 = 10.05$
2. Check the tax, where $r$ is the rate:

$$
t = \frac{r}{1 + r} \cdot \sum_{i=1}^{n} p_i
$$

```python
def total(prices: list[float]) -> float:
    # cents, so that nothing is lost
    return sum(round(100 * p) for p in prices) / 100
```

<script>window.hacked = true</script> ![x](https://evil.example/p.png)
"""
POINTS = """The button is at the lower right:

```python
pyautogui.click(x=0.75, y=0.5)
```
"""
BOXES = '[{"bbox_2d": [0.1, 0.2, 0.5, 0.6], "label": "total"}, {"bbox_2d": [0.6, 0.7, 0.9, 0.95], "label": "shop"}]'
THOUGHT = (
    "The receipt lists two items. Their sum is 10.05, which is also what the last line says, so that is the total. "
)


class Scripted:
    """The application and what a test does to it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.key: str | None = None
        self.health: tuple[int, str] = (200, "ok")
        self.queue_ahead: int | None = None
        self.controls: list[dict[str, Any]] = []
        self.cancelled = 0
        self.gates: dict[str, threading.Event] = {}
        self.delay = 0.0  # between chunks, to watch a stream

    def gate(self, name: str) -> threading.Event:
        return self.gates.setdefault(name, threading.Event())

    def app(self) -> Starlette:
        routes = [
            *pages.routes(),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/chat/completions/control", self.control, methods=["POST"]),
            Route("/v1/chat/completions/input_tokens", self.tokens, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/status", self.status),
            Route("/health", self.healthy),
        ]
        return Starlette(routes=routes, exception_handlers={KimiVLError: self.told})

    @staticmethod
    def told(request: Request, error: Exception) -> Response:
        assert isinstance(error, KimiVLError)
        return JSONResponse({"error": {"message": str(error), "kimi_code": error.code}}, status_code=400)

    def refused(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        error = {"message": "the key is missing or wrong", "type": "authentication_error", "code": "invalid_api_key"}
        return JSONResponse({"error": error}, status_code=401)

    async def healthy(self, request: Request) -> Response:
        status, text = self.health
        if status == 200:
            return JSONResponse({"status": text})
        return JSONResponse({"error": {"message": text, "code": "unavailable"}}, status_code=status)

    async def models(self, request: Request) -> Response:
        model = {"id": "Kimi-VL-A3B-Thinking-2506", "object": "model", "max_model_len": 4096, "meta": {}}
        return self.refused(request) or JSONResponse({"object": "list", "data": [model]})

    async def status(self, request: Request) -> Response:
        ahead = self.queue_ahead
        streams = [] if ahead is None else [{"id": f"s{i}", "state": "queued"} for i in range(ahead + 1)]
        return JSONResponse({"streams": streams})

    async def control(self, request: Request) -> Response:
        self.controls.append(await request.json())
        self.gate("thought").set()
        return JSONResponse({"ok": True})

    async def tokens(self, request: Request) -> Response:
        return JSONResponse({"object": "response.input_tokens", "input_tokens": 80, "image_tokens": 56})

    async def chat(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        body = await request.json()
        self.requests.append(body)
        text = question_of(body)
        if text.startswith("refuse"):
            message = "messages[0].content[0].image_url: a JPEG that ends early: save or download it again"
            error = {"message": message, "type": "invalid_request_error", "kimi_code": "image.truncated"}
            return JSONResponse({"error": error}, status_code=400)
        return StreamingResponse(self.stream(text, body), media_type="text/event-stream; charset=utf-8")

    async def wait(self, name: str) -> None:
        while not self.gate(name).is_set():
            await asyncio.sleep(0.005)

    async def stream(self, text: str, body: dict[str, Any]) -> AsyncIterator[str]:
        shell = {"id": f"chatcmpl-{len(self.requests)}", "object": "chat.completion.chunk", "created": 1, "model": "m"}

        def sent(**fields: Any) -> str:
            return f"data: {json.dumps({**shell, 'usage': None, **fields})}\n\n"

        def delta(**fields: Any) -> str:
            return sent(choices=[{"index": 0, "delta": fields, "logprobs": None, "finish_reason": None}])

        try:
            async for item in self.script(text, body):
                if isinstance(item, tuple) and item[0] == "error":
                    yield f"data: {json.dumps({'error': {'message': item[1], 'code': 'unavailable'}})}\n\n"
                    return
                if isinstance(item, dict):
                    yield sent(choices=[], prompt_progress=item) if "stage" in item else ": ping\n\n"
                elif isinstance(item, tuple):
                    yield delta(**{item[0]: item[1]})
                    await asyncio.sleep(self.delay)
                else:
                    yield sent(
                        choices=[{"index": 0, "delta": {}, "logprobs": None, "finish_reason": item}],
                        timings={"cache_n": 64, "prompt_n": 20, "predicted_per_second": 38.24, "first_token_ms": 412.0},
                        kimi={"seed": 7, "notices": [], "images": [], "stop_reason": None},
                    )
                    details = {"cached_tokens": 64, "image_tokens": 56, "text_tokens": 28}
                    usage = {"prompt_tokens": 84, "completion_tokens": 21, "total_tokens": 105}
                    yield sent(choices=[], usage={**usage, "prompt_tokens_details": details})
                    yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def script(self, text: str, body: dict[str, Any]) -> AsyncIterator[Any]:
        word = text.split(" ")[0].strip("?.,").lower()
        if body.get("continue_final_message"):
            word = "continue"
        if word == "queue":
            yield {}
            await self.wait("queue")
        yield ("role", "assistant")
        if word in ("look", "queue"):
            yield {"stage": "encode", "done": 3, "total": 12, "cached": 0, "time_ms": 40}
            await self.wait("encode")
            yield {"stage": "prefill", "done": 1024, "total": 2048, "cached": 0, "time_ms": 90}
            await self.wait("prefill")
        if word == "think":
            for part in THOUGHT.split(" "):
                yield ("reasoning_content", part + " ")
            await self.wait("thought")
        if word == "break":
            yield ("content", "It begins ")
            yield (
                "error",
                "the stream had to end: no memory for 2,048 more positions: start kimi-vl serve with a smaller -c",
            )
            return
        answers = {
            "markdown": MARKDOWN,
            "where": POINTS,
            "boxes": BOXES,
            "long": "A line of the answer.\n\n" * 100,
            "think": "$10.05",
            "continue": " and so it goes on.",
        }
        answer = answers.get(word, f"You said: {text}")
        if word == "pixels":
            answer = "click(320, 240)"
        for count, part in enumerate(pieces(answer)):
            yield ("content", part)
            if word == "hold" and count == 2:
                await self.wait("hold")
            if word == "long" and count == 240:
                await self.wait("long")
        yield "length" if word == "short" else "stop"


def pieces(text: str) -> Iterator[str]:
    for at in range(0, len(text), 6):
        yield text[at : at + 6]


def question_of(body: dict[str, Any]) -> str:
    content = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
    return content if isinstance(content, str) else next(p["text"] for p in content if p["type"] == "text")


@contextlib.contextmanager
def served(app: Any, port: int = 0) -> Iterator[str]:
    """The address of a server of `app` in a thread."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)
        listener.close()
