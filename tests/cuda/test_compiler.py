"""What nvcc makes of the kernels, without a GPU: no spills, registers within a budget, the instructions that are meant.

Skips where there is no nvcc. That of the wheels nvidia-cuda-nvcc, nvidia-cuda-crt, nvidia-cuda-runtime and nvidia-nvvm
will do.
"""

from __future__ import annotations

import re

import pytest

MOST_REGISTERS = 128
"""Of a thread: half of what there is, so that two blocks of 256 threads share a multiprocessor."""
LARGE_TILES = {"gemm_bf16": 255, "attend_heads_of_72": 168}
"""Kernels whose sums fill the registers by design; of 168, three blocks of 128 threads share a multiprocessor."""


@pytest.mark.parametrize("architecture", ["80", "90a"])
def test_no_kernel_spills_and_all_stay_within_their_registers(compiler, architecture):
    kernels = compiler.kernels(architecture)
    assert sum("product_int8" in name for name in kernels) == 2 * 13
    assert sum("gemm_int8" in name for name in kernels) == 13
    wrong = {}
    for name, (stack, spilled, registers) in kernels.items():
        most = next((n for kernel, n in LARGE_TILES.items() if kernel in name), MOST_REGISTERS)
        if stack or spilled or registers > most:
            wrong[name] = f"stack {stack}, spills {spilled}, registers {registers} of {most}"
    assert wrong == {}


def test_the_instructions_are_those_that_are_meant(compiler):
    bodies = {}
    for text in compiler.ptx("80").values():
        for name, body in re.findall(r"\.entry (\w+)\((.*?)\n}\n", text, flags=re.S):
            bodies[name] = body
    for name, body in bodies.items():
        if "product_int8" in name:
            assert body.count("dp4a") >= 8, name
            assert "ld.global.nc.L1::no_allocate.v4" in body or "ld.global.v2" in body, name  # of quants, 16 or 8 bytes
        if "gemm_int8" in name:
            assert "m16n8k32.row.col.s32.s8.s8.s32" in body and "cp.async" in body and "ldmatrix" in body, name
        if "gemm_bf16" in name or "attend_heads_of_72" in name:
            assert "m16n8k16.row.col.f32.bf16" in body and "cp.async" in body and "ldmatrix" in body, name
        assert ".local" not in body, f"{name} keeps an array in memory"
    assert len(bodies) > 60
