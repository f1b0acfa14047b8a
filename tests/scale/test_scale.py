"""The examples of docs/scale-out.md, on a Ray cluster of two nodes of this machine."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ray = pytest.importorskip("ray", reason="needs the extra [ray]")
serve = pytest.importorskip("ray.serve", reason="needs the extra [ray]")
from ray.cluster_utils import Cluster  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    cluster.add_node(num_cpus=4)
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    yield cluster
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def url(cluster):
    spec = importlib.util.spec_from_file_location("serve_app", EXAMPLES / "scale" / "serve_app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_app"] = module
    spec.loader.exec_module(module)
    ray.cloudpickle.register_pickle_by_value(module)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"port": port})
    serve.run(module.build({"copies": "2", "threads": "1"}))
    return f"http://127.0.0.1:{port}/v1/chat/completions"


def ask(url, *turns, **fields):
    messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)]
    response = httpx.post(url, json={"messages": messages, "temperature": 0, **fields}, timeout=120, trust_env=False)
    return response.status_code, response


def test_a_conversation_goes_on_where_its_beginning_is_cached(url):
    copies = set()
    for name in ("one", "two", "three", "four", "five", "six"):
        first = f"Tell me about number {name}. " + "It is a number. " * 12
        status, response = ask(url, first, max_tokens=8)
        assert status == 200
        answer = response.json()["choices"][0]["message"]["content"]
        usage = ask(url, first, answer, "And what else?", max_tokens=8)[1].json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] / 2
        serve_app = sys.modules["serve_app"]
        copies.add(
            serve_app.order_of(serve_app.conversation_of({"messages": [{"role": "user", "content": first}]}), 2)[0]
        )
    assert copies == {0, 1}


def test_many_questions_at_once_are_all_answered(url):
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: ask(url, "Hello!", max_tokens=8), range(24)))
    assert {status for status, _ in answers} == {200}
    assert len({response.json()["choices"][0]["message"]["content"] for _, response in answers}) == 1


def test_streams_and_errors_come_through(url):
    whole = ask(url, "Hello!", max_tokens=12)[1].json()["choices"][0]["message"]["content"]
    lines = [line for line in ask(url, "Hello!", max_tokens=12, stream=True)[1].text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole
    status, response = ask(url, "Hello!", temperature="hot")
    assert status == 400 and response.json()["error"]["param"] == "temperature"


def test_a_folder_is_read_once_and_gone_on_with(cluster, tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for name in ("receipt.png", "sale.png", "square.png"):
        shutil.copy(EXAMPLES / name, folder)
    (folder / "broken.png").write_bytes(b"no picture")

    def read() -> str:
        command = [
            sys.executable,
            str(EXAMPLES / "scale" / "read_folder.py"),
            str(folder),
            str(out),
            "What is the total?",
        ]
        environment = {"RAY_ADDRESS": cluster.address, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "4 to read" in read()
    results = {path.name: json.loads(path.read_text()) for path in out.iterdir()}
    assert len(results) == 4 and all(name.endswith(".json") for name in results)
    texts = {Path(one["path"]).name: one.get("text") for one in results.values()}
    assert texts["receipt.png"] == "$10.05" and texts["broken.png"] is None
    (out / next(iter(results))).unlink()
    assert "1 to read" in read()
    assert {path.name: json.loads(path.read_text()) for path in out.iterdir()} == results
