"""What nvcc makes of the kernels, without a GPU: no spills, registers within a budget, the instructions that are meant.

Skips where there is no nvcc. That of the wheels nvidia-cuda-nvcc, nvidia-cuda-crt, nvidia-cuda-runtime and nvidia-nvvm
will do.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CUDA = Path(__file__).resolve().parents[2] / "csrc" / "backend" / "cuda"
SOURCES = sorted((CUDA / "ops").glob("*.cu"))
MOST_REGISTERS = 128
"""Of a thread: half of what there is, so that two blocks of 256 threads share a multiprocessor."""
LARGE_TILES = {"gemm_bf16": 255}
"""Kernels whose sums fill the registers by design."""


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = shutil.which("nvcc")
    if not found:
        pytest.skip("no nvcc")
    return found


def compile_all(nvcc: str, architecture: str, kind: str, folder: Path) -> dict[str, tuple[str, str]]:
    """name of the source -> (what the compiler said, what it wrote as text where that is PTX)."""

    def one(source: Path) -> tuple[str, tuple[str, str]]:
        out = folder / f"{source.stem}.{kind}"
        command = [nvcc, "-std=c++20", "-fmad=false", f"-I{CUDA.parents[1]}", f"-arch={architecture}", f"-{kind}"]
        command += ["-Xptxas", "-v", str(source), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return source.stem, (done.stderr, out.read_text() if kind == "ptx" else "")

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(one, SOURCES))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_no_kernel_spills_and_all_stay_within_their_registers(nvcc, tmp_path, architecture):
    kernels = {}
    for log, _ in compile_all(nvcc, architecture, "cubin", tmp_path).values():
        for name, said in re.findall(r"Compiling entry function '(\w+)'.*?\n((?:(?!.*Compiling).*\n)*)", log):
            stack, spilled = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", said).groups()
            kernels[name] = (int(stack), int(spilled), int(re.search(r"Used (\d+) registers", said)[1]))
    assert sum("product_int8" in name for name in kernels) == 2 * 13
    wrong = {}
    for name, (stack, spilled, registers) in kernels.items():
        most = next((n for kernel, n in LARGE_TILES.items() if kernel in name), MOST_REGISTERS)
        if stack or spilled or registers > most:
            wrong[name] = f"stack {stack}, spills {spilled}, registers {registers} of {most}"
    assert wrong == {}


def test_the_instructions_are_those_that_are_meant(nvcc, tmp_path):
    ptx = {name: text for name, (_, text) in compile_all(nvcc, "compute_80", "ptx", tmp_path).items()}
    bodies = {}
    for text in ptx.values():
        for name, body in re.findall(r"\.entry (\w+)\((.*?)\n}\n", text, flags=re.S):
            bodies[name] = body
    for name, body in bodies.items():
        if "product_int8" in name:
            assert body.count("dp4a") >= 8, name
            assert "ld.global.nc.L1::no_allocate.v4" in body or "ld.global.v2" in body, name  # of quants, 16 or 8 bytes
        if "gemm_bf16" in name:
            assert "mma.sync" in body and "cp.async" in body and "ldmatrix" in body, name
        assert ".local" not in body, f"{name} keeps an array in memory"
    assert len(bodies) > 60
