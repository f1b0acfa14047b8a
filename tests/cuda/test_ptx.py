"""The compiler's PTX, interpreted, beside the emulated source: the same bits, or the inline assembly is wrong.

Skips where there is no nvcc, or no emulated library.
"""

from __future__ import annotations

import ctypes
import struct

import gguf
import numpy as np
import pytest
from ptx_interpreter import Memory, launch, parse

FORMATS = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
BLOCKS_OF_256 = {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"}
WIDEST_ROW = 34 * 512 // 32 + 512  # bytes of a row of 512 elements in planes, of any format

APPROXIMATE = {30, 35}
"""Columns of the probe that a device computes to 2 ulp: exp2_fast and error_function."""


@pytest.fixture(scope="module", params=["80", "90a"])
def ptx(compiler, request):
    kernels = {}
    for text in compiler.ptx(request.param).values():
        kernels |= parse(text)
    return kernels


class Emulated:
    """Arrays and launches in the emulator, with the interface of the interpreter's memory."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)
        self.library.emulator_put.restype = ctypes.c_uint64
        self.held: list[int] = []

    def put(self, array: np.ndarray) -> int:
        array = np.ascontiguousarray(array)
        self.held.append(
            self.library.emulator_put(array.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint64(array.nbytes))
        )
        return self.held[-1]

    def get(self, address: int, dtype, shape) -> np.ndarray:
        out = np.empty(shape, dtype)
        self.library.emulator_get(
            out.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint64(address), ctypes.c_uint64(out.nbytes)
        )
        return out

    def give(self) -> None:
        while self.held:
            self.library.emulator_give(ctypes.c_uint64(self.held.pop()))


@pytest.fixture
def emulated(library, emulator):
    if not hasattr(ctypes.CDLL(library), "emulator_put"):
        pytest.skip("this library launches no single kernels")
    memory = Emulated(library)
    yield memory
    memory.give()


class Case:
    """A kernel with its arrays. layout: of its struct of arguments, in which arrays stand for their addresses."""

    def __init__(self, name, mangled, layout, args, result, grid, threads, shared=0):
        self.name, self.mangled, self.layout, self.args = name, mangled, layout, args
        self.result, self.grid, self.threads, self.shared = result, grid, threads, shared

    def _bytes(self, memory) -> tuple[bytes, int]:
        addresses = {id(a): memory.put(a) for a in self.args if isinstance(a, np.ndarray)}
        packed = struct.pack(self.layout, *(addresses[id(a)] if isinstance(a, np.ndarray) else a for a in self.args))
        return packed, addresses[id(self.result)]

    def emulate(self, memory: Emulated) -> np.ndarray:
        args, at = self._bytes(memory)
        buffer = ctypes.create_string_buffer(args, len(args))
        sizes = (*(ctypes.c_uint(n) for n in (*self.grid, self.threads)), ctypes.c_uint64(self.shared))
        assert memory.library.emulator_launch(self.name.encode(), *sizes, buffer, ctypes.c_uint64(len(args)))
        return memory.get(at, self.result.dtype, self.result.shape)

    def interpret(self, kernels) -> np.ndarray:
        memory = Memory()
        args, at = self._bytes(memory)
        kernel = next(kernel for name, kernel in kernels.items() if self.mangled in name)
        launch(kernel, memory, self.grid, (self.threads,), self.shared, args)
        return memory.get(at, self.result.dtype, self.result.shape)


def bf16(x: np.ndarray) -> np.ndarray:
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def result(dtype, *shape: int) -> np.ndarray:
    """What a kernel that writes nothing leaves."""
    return np.full(shape, -1, np.int64).astype(dtype)


def product(format_name: str) -> Case:
    """Random planes; no half in them is infinite or no number, since bit 6 of every byte is clear."""
    rng = np.random.default_rng(5)
    rows, k = 6, 512
    w = rng.integers(0, 256, rows * WIDEST_ROW, dtype=np.uint8) & 0xBF
    q = rng.integers(-127, 128, k).astype(np.int8)
    scale = np.abs(floats(k // 32)) * np.float32(0.01)
    half_sum = q.reshape(-1, 16).sum(1).astype(np.int32)
    out = result(np.float32, rows)
    kind = int(gguf.GGMLQuantizationType[format_name])
    args = [w, 0, 0, rows, k, q, scale, half_sum, 0, 0, 0, 0, 1, 1, 0, rows, 0, out]
    mangled = f"product_int8ILNS_5quant4TypeE{kind}ELi1E"
    return Case(f"product_int8 {format_name}", mangled, "<QqqiiQQQQqQQiiixxxxqqQ", args, out, (2, 1), 128)


def int8_gemm(format_name: str) -> Case:
    """The same for several rows of x, with a k of one step and a half."""
    rng = np.random.default_rng(6)
    rows, k, n = 40, 256 if format_name in BLOCKS_OF_256 else 96, 5
    w = rng.integers(0, 256, rows * WIDEST_ROW, dtype=np.uint8) & 0xBF
    q = rng.integers(-127, 128, (n, k)).astype(np.int8)
    scale = np.abs(floats(n, k // 32)) * np.float32(0.01)
    half_sum = q.reshape(-1, 16).sum(1).astype(np.int32)
    out = result(np.float32, n, rows)
    kind = int(gguf.GGMLQuantizationType[format_name])
    args = [w, 0, 0, rows, k, q, scale, half_sum, 0, 0, 0, 0, n, 1, 0, rows, 0, out]
    mangled = f"gemm_int8ILNS_5quant4TypeE{kind}E"
    shared = 2 * (128 + 64) * 64 + 2 * 2 * 2 * 2 * 128 * 4 + 2 * 2 * 3 * 64 * 4
    return Case(f"gemm_int8 {format_name}", mangled, "<QqqiiQQQQqQQiiixxxxqqQ", args, out, (1, 1), 256, shared)


def gemm() -> Case:
    m, n, k = 40, 37, 168
    out = result(np.float32, m, n)
    args = [bf16(floats(m, k)), bf16(floats(n, k)), floats(n), out, m, n, k]
    return Case("gemm_bf16", "gemm_bf16ILi32", "<QQQQiiixxxx", args, out, (2, 2), 64, 3 * 64 * 64)


def attention() -> Case:
    n, heads = 150, 2
    out = result(np.float32, n, heads, 72)
    args = [*(bf16(floats(heads, n, 72) * s) for s in (1.0, 0.9, 1.1)), out, n, heads, 72**-0.5 * np.log2(np.e)]
    shared = 64 * 144 + 128 + 2 * (64 * 144 + 16) + 512 + 2 * 64 * 144
    return Case("attend_heads_of_72", "attend_heads_of_72ILi4", "<QQQQiifxxxx", args, out, (3, heads), 128, shared)


def norm() -> Case:
    x, out = floats(3, 200), result(np.float32, 3, 200)
    return Case("rms_norm", "8rms_norm", "<QQQfiQ", [x, floats(200), 0, 1e-5, 200, out], out, (3, 1), 128, 16)


def quantization() -> Case:
    n, k = 3, 96
    q = result(np.int8, n, k)
    args = [floats(n, k), k, n, k, q, result(np.float32, n, k // 32), result(np.int32, n, k // 16)]
    return Case("quantize_rows", "13quantize_rows", "<QqqixxxxQQQ", args, q, (1, 1), 128)


CASES = {"gemm": gemm, "attention": attention, "norm": norm, "quantization": quantization}


@pytest.mark.parametrize("name", CASES)
def test_the_compiler_s_output_gives_the_emulator_s_bits(ptx, emulated, name):
    case = CASES[name]()
    got, want = case.interpret(ptx), case.emulate(emulated)
    assert np.array_equal(got.view(np.uint8), want.view(np.uint8))


@pytest.mark.parametrize("make", [product, int8_gemm])
@pytest.mark.parametrize("format_name", FORMATS)
def test_products_with_every_format_give_the_emulator_s_bits(ptx, emulated, format_name, make):
    case = make(format_name)
    got, want = case.interpret(ptx), case.emulate(emulated)
    assert np.isfinite(want).all() and np.array_equal(got.view(np.uint32), want.view(np.uint32))


def test_every_word_of_the_vocabulary_means_the_same(ptx, emulated):
    x = np.random.default_rng(1).integers(0, 2**32, (32, 16), dtype=np.uint32)
    x[:, 3:5] = floats(32, 2).view(np.uint32)
    out = result(np.uint32, 32, 36)
    case = Case("probe", "5probe", "<QQ", [x, out], out, (1, 1), 32, 1024)
    got, want = case.interpret(ptx), case.emulate(emulated)
    different = {c for c in range(36) if not np.array_equal(got[:, c], want[:, c])}
    assert different <= APPROXIMATE
    for column in APPROXIMATE:
        a, b = (v[:, column].copy().view(np.float32) for v in (got, want))
        assert np.allclose(a, b, rtol=1e-6)
