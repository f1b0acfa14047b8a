"""`kimi-vl pull` and -m hf:REPO, in processes of their own against a server with the hub's endpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import FakeHub, serving

pytest.importorskip("huggingface_hub", reason="needs the extra [hub]")

from kimi_vl_cpp.testing import make_tiny_model
from kimi_vl_cpp.testing.shapes import SMALLEST


def test_a_pulled_model_answers_offline(tmp_path: Path) -> None:
    made = make_tiny_model(tmp_path / "Kimi-VL-Q8_0.gguf", text_type="F16", vision="none", **SMALLEST)
    files = {"Kimi-VL-Q8_0.gguf": made.text.read_bytes()}
    with serving(FakeHub("someone/Kimi-VL-GGUF", files)) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": ""}
        environment = {name: value for name, value in environment.items() if value and name != "HF_HUB_OFFLINE"}

        def kimi(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "kimi_vl_cpp", *arguments]
            return subprocess.run(command, env=environment | extra, capture_output=True, text=True, timeout=100)

        pulled = kimi("pull", "someone/Kimi-VL-GGUF:Q8_0")
        assert pulled.returncode == 0, pulled.stderr
        path = Path(pulled.stdout.strip())
        assert path.read_bytes() == files["Kimi-VL-Q8_0.gguf"] and tmp_path / "home" in path.parents
        hub.requests.clear()
        ran = kimi("run", "-m", "hf:someone/Kimi-VL-GGUF", "hello", "-n", "2", "--seed", "1", HF_HUB_OFFLINE="1")
        assert ran.returncode == 0, ran.stderr
        assert hub.requests == []
