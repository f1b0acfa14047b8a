"""Many requests of all kinds to one server, and what its memory, descriptors and threads do meanwhile:

    python tests/server/soak.py 10000

A quarter of the requests have pictures, a tenth are left by their client, a tenth are wrong. The caches are small, so
that they are full after the first fifth; from there to the end memory may grow by 8 MiB, descriptors and threads not
at all.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from server_support import with_picture

MOST_GROWTH = 8 << 20
CHAT = "/v1/chat/completions"
WRONG: list[dict[str, Any]] = [
    {"messages": []},
    {"messages": [{"role": "user", "content": "x"}], "temperature": "hot"},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]},
    {"messages": [{"role": "user", "content": "word " * 20_000}]},
]


def held(pid: int) -> dict[str, int]:
    """Bytes of memory of its own, swapped out or not; descriptors; threads."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib = {name: int(value) for name, value in re.findall(r"^(RssAnon|VmSwap|Threads):\s+(\d+)", status, re.M)}
    n_files = len(os.listdir(f"/proc/{pid}/fd"))
    return {"bytes": (kib["RssAnon"] + kib["VmSwap"]) << 10, "descriptors": n_files, "threads": kib["Threads"]}


async def one(client: httpx.AsyncClient, index: int) -> None:
    draw = random.Random(index)
    kind = draw.random()
    if kind < 0.1:
        assert (await client.post(CHAT, json=draw.choice(WRONG))).status_code == 400
        return
    messages: Any = [{"role": "user", "content": f"Number {draw.randrange(500)}, please."}]
    if kind < 0.35:
        messages = with_picture(draw.randrange(200))
    body = {"messages": messages, "max_tokens": draw.randrange(1, 24), "seed": index, "stream": draw.random() < 0.5}
    if kind > 0.9:
        body |= {"stream": True, "max_tokens": 500, "ignore_eos": True}
        async with client.stream("POST", CHAT, json=body) as response:
            async for _ in response.aiter_raw():
                if draw.random() < 0.3:
                    return
        return
    assert (await client.post(CHAT, json=body)).status_code == 200


async def ask_all(url: str, pid: int, n: int, n_at_once: int) -> tuple[dict[str, int], dict[str, int]]:
    """What the server holds after a fifth of the requests, and at the end."""
    limits = httpx.Limits(max_connections=n_at_once, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False, limits=limits) as client:
        indices = iter(range(n))

        async def work(last: int) -> None:
            for index in indices:
                await one(client, index)
                if index % 1000 == 999:
                    print(f"{index + 1}: {held(pid)}", flush=True)
                if index >= last:
                    return

        await asyncio.gather(*(work(n // 5) for _ in range(n_at_once)))
        await at_rest(client)
        before = held(pid)
        await asyncio.gather(*(work(n) for _ in range(n_at_once)))
        await at_rest(client)
        return before, held(pid)


async def at_rest(client: httpx.AsyncClient) -> None:
    while (await client.get("/v1/status")).json()["streams"]:
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)


def serve_small() -> None:
    """The server: the built-in model with room for few pages and pictures. Says its address on standard output."""
    from kimi_vl_cpp.model import KimiVL
    from kimi_vl_cpp.server.serving import serve
    from kimi_vl_cpp.server.settings import Settings

    serve(
        Settings(port=0),
        lambda: KimiVL.builtin(n_ctx=1024, kv_memory=48 << 20, image_cache_bytes=4 << 20),
        lambda state, address: print(address, flush=True),
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("requests", type=int, nargs="?", default=10_000)
    parser.add_argument("--at-once", type=int, default=16)
    asked = parser.parse_args()
    command = [sys.executable, __file__, "--serve"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            before, after = asyncio.run(ask_all(url, server.pid, asked.requests, asked.at_once))
        finally:
            server.terminate()
    growth = {name: after[name] - before[name] for name in before}
    seconds = time.perf_counter() - started
    print(f"{asked.requests} requests in {seconds:.0f} s; held {after}; grown since the first fifth {growth}")
    return int(growth["bytes"] > MOST_GROWTH or growth["descriptors"] > 0 or growth["threads"] > 0)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve_small()
    else:
        sys.exit(main())
