"""How fast a server is, beside the library on the same machine in the same run:

    python tests/server/figures.py [-m FILE]

Starts `kimi-vl serve` and opens the same model here. Each figure stands beside what it should be, as "ok" or "MISSED".
On a machine that does other work only the ratios mean something.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from kimi_vl_cpp import KimiVL

CHAT = "/v1/chat/completions"
N_ROUNDS = 7
IDLE_S = 20
_TICKS = os.sysconf("SC_CLK_TCK")


def report(what: str, value: float, unit: str, limit: float | None = None, *, least: bool = False) -> None:
    """Prints a figure; limit: the most that it should be, or the least."""
    verdict = ""
    if limit is not None:
        ok = value >= limit if least else value <= limit
        verdict = f"   {'ok' if ok else 'MISSED'}: at {'least' if least else 'most'} {limit:g}"
    print(f"{what:<68} {value:10.3f} {unit}{verdict}", flush=True)


def picture(side: int, seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class Server:
    """A `kimi-vl serve` of its own. health_s: seconds from its start to its first answer."""

    def __init__(self, model: str | None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "kimi_vl_cpp", "serve", "--port", str(port), *(["-m", model] if model else [])]
        started = time.perf_counter()
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=3600, trust_env=False)
        self.health_s = 0.0
        while (status := self._health()) != 200:
            if status and not self.health_s:
                self.health_s = time.perf_counter() - started
            time.sleep(0.005)
        self.health_s = self.health_s or time.perf_counter() - started

    def _health(self) -> int:
        try:
            return self.client.get("/health").status_code
        except httpx.TransportError:
            return 0

    def events(self, messages: list[Any], **fields: Any) -> Iterator[tuple[float, Any]]:
        """The chunks of a stream, each with its time."""
        body = {"messages": messages, "stream": True, "temperature": 0, "ignore_eos": True, **fields}
        with self.client.stream("POST", CHAT, json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    yield time.perf_counter(), json.loads(line.removeprefix("data: "))

    def first_token(self, messages: list[Any], **fields: Any) -> tuple[float, Any]:
        """Milliseconds to the first text, and the last chunk."""
        started, first, last = time.perf_counter(), 0.0, None
        for at, last in self.events(messages, **fields):
            if not first and last["choices"][0]["delta"].get("content"):
                first = at
        return (first - started) * 1000, last

    def rate(self, n: int, seed: int) -> float:
        """Tokens a second of one stream, as its reader sees them."""
        times = [at for at, chunk in self.events(ask(f"Number {seed}"), max_tokens=n)]
        return (n - 1) / (times[-1] - times[1])

    def encoded(self) -> float:
        text = self.client.get("/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if "images_encoded_total{" in line)

    def idle(self) -> tuple[float, float]:
        """Share of a core and wake-ups a second while nothing is asked."""
        before = self._used()
        time.sleep(IDLE_S)
        ticks, switches = (after - old for after, old in zip(self._used(), before, strict=True))
        return ticks / _TICKS / IDLE_S, switches / IDLE_S

    def _used(self) -> tuple[int, int]:
        process = Path(f"/proc/{self.process.pid}")
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        lines = [(thread / "status").read_text().splitlines() for thread in (process / "task").iterdir()]
        switches = sum(int(line.split()[1]) for one in lines for line in one if line.startswith("voluntary_ctxt"))
        return int(fields[11]) + int(fields[12]), switches


def ask(text: str, *pictures: str) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def library_rate(model: KimiVL, n: int, seed: int) -> float:
    pieces = model.chat(f"Number {seed}", stream=True, temperature=0, max_new_tokens=n, ignore_eos=True)
    times = [time.perf_counter() for _ in pieces]
    return (n - 1) / (times[-1] - times[0])


def speed(server: Server, model: KimiVL, n: int) -> None:
    pairs = [(server.rate(n, seed), library_rate(model, n, seed)) for seed in range(N_ROUNDS)]
    share = statistics.median(one / other for one, other in pairs)
    report("one stream over HTTP, tokens/s", statistics.median(one for one, _ in pairs), "t/s")
    report("  share of the library's rate", share, "", 0.97 if n < 100 else 0.6, least=True)


def first_tokens(server: Server) -> None:
    own = []
    for seed in range(4 * N_ROUNDS):
        wall, last = server.first_token(ask(f"What is {seed}?"), max_tokens=1)
        own.append(wall - last["timings"]["prompt_ms"] - last["timings"]["encode_ms"])
    report("the server's own part of the first token, median", statistics.median(own), "ms", 5)
    shares, steps = [], []
    for seed in range(3):
        shown = picture(896, seed)
        first, _ = server.first_token(ask("What is this?", shown), max_tokens=4)
        before = server.encoded()
        second, _ = server.first_token(ask("Which colour is it?", shown), max_tokens=4)
        again, last = server.first_token(ask("Which colour is it?", shown), max_tokens=4)
        assert server.encoded() == before, "a picture was encoded twice"
        shares.append(second / first)
        steps.append(again - 1000 / last["timings"]["predicted_per_second"])
    report("first token of a second question about a picture, of the first's", statistics.median(shares), "", 0.12)
    report("first token of the same question again, beyond one step", statistics.median(steps), "ms", 10)


def while_another_is_read(server: Server, n: int) -> None:
    """The gaps of one answer while a long prompt is computed."""
    gaps: list[float] = []

    def long_one() -> None:
        server.first_token(ask("word " * 1900), max_tokens=1)

    reader = server.events(ask("Count."), max_tokens=n)
    last = next(reader)[0]
    other = threading.Thread(target=long_one)
    for index, (at, _) in enumerate(reader):
        if index == 5:
            other.start()
        if index > 5 and other.is_alive():
            gaps.append((at - last) * 1000)
        last = at
    other.join()
    if gaps:
        report("largest gap of an answer while 1,900 positions are computed", max(gaps), "ms", 400)
    else:
        print("largest gap of an answer while 1,900 positions are computed: not seen, the answer had ended")


def under_load(server: Server) -> None:
    threads = [threading.Thread(target=lambda: server.rate(100, 7)) for _ in range(64)]
    for one in threads:
        one.start()
    times = [timed(lambda: server.client.get("/metrics")) for _ in range(20)]
    for one in threads:
        one.join()
    report("/metrics under 64 streams, median", statistics.median(times) * 1000, "ms", 50)


def timed(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", dest="model")
    asked = parser.parse_args()
    n = 32 if asked.model else 256
    server = Server(asked.model)
    try:
        report("first answer of /health after the start", server.health_s, "s", 0.5)
        model = KimiVL(asked.model) if asked.model else KimiVL.builtin()
        with model:
            speed(server, model, n)
        first_tokens(server)
        while_another_is_read(server, 8 * n)
        under_load(server)
        share, wakes = server.idle()
        report(f"share of a core during {IDLE_S} s without requests", share * 100, "%", 0.1)
        report("  wake-ups a second", wakes, "")
    finally:
        server.process.terminate()
        server.process.wait(60)
    return 0


if __name__ == "__main__":
    sys.exit(main())
