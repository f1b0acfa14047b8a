"""A real server on a real socket, in a thread of the test, and what asks it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
from PIL import Image

from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.server.keys import Keys
from kimi_vl_cpp.server.serving import Serving, open_socket
from kimi_vl_cpp.server.settings import Settings
from kimi_vl_cpp.server.state import State

HI = [{"role": "user", "content": "Hi"}]


class RunningServer:
    """Serves what `load` opens until it is closed; a context manager. settings: the fields of Settings."""

    def __init__(self, load: Callable[[], KimiVL], *, keys: tuple[str, ...] = (), **settings: Any) -> None:
        self.settings = Settings(port=0, keys=Keys(keys), **settings)
        self._bound = open_socket(self.settings)
        self.port = self._bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.failure: BaseException | None = None
        self._ready = threading.Event()
        self._load = load
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        async def run() -> None:
            self.loop = asyncio.get_running_loop()
            self.serving = Serving(self.settings, self._load, lambda state, address: self._ready.set())
            await self.serving.run(self._bound, signals=False)

        try:
            asyncio.run(run())
        except BaseException as error:
            self.failure = error
        finally:
            self._ready.set()
            self._bound.close()

    def __enter__(self) -> RunningServer:
        assert self._ready.wait(120)
        if self.failure is not None:
            raise self.failure
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.join()

    @property
    def state(self) -> State:
        return self.serving.state

    def stop(self) -> None:
        """As SIGTERM does."""
        self.loop.call_soon_threadsafe(self.serving.stop)

    def join(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()
        assert self.failure is None

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False, verify=False, **options)

    def ask(self, messages: list[dict[str, Any]] = HI, *, path: str = "/v1/chat/completions", **fields: Any) -> Any:
        """The JSON of an answer, which has to be one."""
        with self.client() as client:
            response = client.post(path, json={"messages": messages, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path: str, **fields: Any) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=fields)

    def stream(self, messages: list[dict[str, Any]] = HI, **fields: Any) -> list[Any]:
        """The events of a stream; the last is "[DONE]" where it came."""
        body = {"messages": messages, "stream": True, **fields}
        with self.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            return list(events_of(response.iter_lines()))


def events_of(lines: Iterator[str]) -> Iterator[Any]:
    for line in lines:
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)
        else:
            assert line == "" or line.startswith(":")


def text_of(chunks: list[Any], index: int = 0, name: str = "content") -> str:
    """The text of one choice of a stream."""
    choices = [choice for chunk in chunks if isinstance(chunk, dict) for choice in chunk.get("choices", ())]
    return "".join(choice["delta"].get(name, "") for choice in choices if choice["index"] == index)


def picture_url(seed: int = 0, size: tuple[int, int] = (84, 56)) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def with_picture(seed: int = 0, text: str = "What is this?", **part: Any) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": picture_url(seed), **part}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]
