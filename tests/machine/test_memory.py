"""The estimate before loading: what is refused, and that the three ways out that it names do fit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from kimi_vl_cpp.errors import OutOfMemory
from kimi_vl_cpp.files.model_files import ModelFiles
from kimi_vl_cpp.machine import memory

FULL = ModelFiles(
    text=Path("kimi-q4_k_m.gguf"),
    mmproj=None,
    why_no_mmproj="",
    file_bytes=11_000_000_000,
    kv_bytes_per_token=31_104,
    context_length=131_072,
)


def limited(monkeypatch, limit: int | None) -> None:
    monkeypatch.setattr(memory, "memory_limit_bytes", lambda: limit)


def test_what_fits_is_not_refused(monkeypatch):
    limited(monkeypatch, 24 << 30)
    memory.check_memory(FULL, 131_072)
    limited(monkeypatch, None)
    memory.check_memory(FULL, 131_072)


def test_refusal_names_a_context_that_fits_and_a_file_size_that_fits(monkeypatch):
    limited(monkeypatch, 14_000_000_000)
    with pytest.raises(OutOfMemory) as caught:
        memory.check_memory(FULL, 131_072)
    assert caught.value.code == "memory.estimate"
    n_ctx = int(re.search(r"n_ctx=(\d+)", str(caught.value))[1])
    memory.check_memory(FULL, n_ctx)
    with pytest.raises(OutOfMemory):
        memory.check_memory(FULL, n_ctx + 1024)
    size = int(float(re.search(r"files of ([\d.]+) GB", str(caught.value))[1]) * 1e9)
    memory.check_memory(replace(FULL, file_bytes=size - 50_000_000), 131_072)  # the message rounds to 0.1 GB


def test_weights_that_do_not_fit_at_all_are_said_so(monkeypatch):
    limited(monkeypatch, 8_000_000_000)
    with pytest.raises(OutOfMemory, match="no n_ctx is small enough"):
        memory.check_memory(FULL, 4096)


def test_a_default_context_shrinks_until_it_fits_or_to_the_least(monkeypatch):
    limited(monkeypatch, memory.estimate_bytes(FULL.file_bytes, FULL.kv_bytes_per_token, 3000))
    assert memory.shrink_to_fit(FULL, 8192, 1024) == 2048
    limited(monkeypatch, 1)
    assert memory.shrink_to_fit(FULL, 8192, 1024) == 1024
    limited(monkeypatch, 1 << 40)
    assert memory.shrink_to_fit(FULL, 8192, 1024) == 8192


def test_the_memory_of_a_gpu_is_the_limit_of_what_it_holds(monkeypatch):
    limited(monkeypatch, 1)
    memory.check_memory(FULL, 8192, gpu_bytes=16_000_000_000)
    limited(monkeypatch, 1 << 40)
    with pytest.raises(OutOfMemory, match=r"the GPU has only 8\.0 GB free.*the device cpu"):
        memory.check_memory(FULL, 8192, gpu_bytes=8_000_000_000)
    assert memory.shrink_to_fit(FULL, 8192, 1024, gpu_bytes=8_000_000_000) == 1024


def test_a_cgroup_limit_counts_on_every_level(monkeypatch, tmp_path):
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    (tmp_path / "a" / "memory.max").write_text("5000\n")
    (group / "memory.max").write_text("max\n")
    (tmp_path / "proc").write_text("0::/a/b\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUPS", tmp_path / "proc")
    assert memory._cgroup_bytes() == 5000
    (tmp_path / "proc").write_text("4:cpu,memory:/x/y\n0::/\n")
    (tmp_path / "memory" / "x").mkdir(parents=True)
    (tmp_path / "memory" / "x" / "memory.limit_in_bytes").write_text("3000")
    assert memory._cgroup_bytes() == 3000


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
def test_memory_refused_at_any_size_is_a_typed_error_and_the_model_goes_on(tmp_path):
    """Runs every memory-hungry call under 40 limits of the address space, in a process of its own."""
    from kimi_vl_cpp.testing import make_tiny_model

    tiny = make_tiny_model(tmp_path, seed=1)
    script = tmp_path / "limits.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import resource
            import numpy as np
            from kimi_vl_cpp import KimiVL, OutOfMemory

            model = KimiVL({str(tiny.text)!r}, n_ctx=4096, n_threads=2, image_cache_bytes=0)
            rng = np.random.default_rng(0)
            picture = rng.integers(0, 255, (560, 560, 3), dtype=np.uint8)
            ids = rng.integers(0, 300, 3000).tolist()

            def calls():
                yield lambda: model.chat("Hello", images=[picture], max_new_tokens=4, temperature=0).token_ids
                yield lambda: model.logits([ids]).shape
                yield lambda: model.generate([ids], max_new_tokens=4, temperature=0)
                yield lambda: model.conversation().ask("Hello", max_new_tokens=4, temperature=0).token_ids

            expected = [call() for call in calls()]
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            seen = dict.fromkeys(("fits", "refused"), 0)
            for step in range(40):
                used = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
                for call, answer in zip(calls(), expected):
                    resource.setrlimit(resource.RLIMIT_AS, (used + step * 300_000, hard))
                    try:
                        assert call() == answer
                        seen["fits"] += 1
                    except MemoryError:  # OutOfMemory is one; NumPy raises its own
                        seen["refused"] += 1
                    finally:
                        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            assert [call() for call in calls()] == expected
            assert seen["fits"] and seen["refused"], seen
            print("done", seen)
            """
        )
    )
    # glibc would serve a refused request from what it holds: a thread's arena keeps 64 MiB of addresses. With these
    # settings every large buffer is asked of the system and given back, whatever threads ran before.
    allocator = {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "MALLOC_TOP_PAD_": "0",
    }
    environment = {**os.environ, **allocator, "PYTHONPATH": str(Path(memory.__file__).parents[2])}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("done")
