"""The CUDA backend on whole models. Its library is built by tests/cuda.sh, which runs these tests on it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest


class Emulator:
    """What can be chosen and counted where the library is emulated."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.emulator_allocated.restype = ctypes.c_uint64
        library.emulator_launches.restype = ctypes.c_uint64
        self._library = library

    def order(self, name: str, seed: int = 1) -> None:
        """forward, backward or random: which thread runs next."""
        self._library.emulator_order(name.encode(), ctypes.c_uint64(seed))

    def memory(self, n_bytes: int) -> None:
        self._library.emulator_memory(ctypes.c_uint64(n_bytes))

    def fail(self, call: int) -> None:
        """The runtime call, counted from now on, that returns an error; -1: none."""
        self._library.emulator_fail(ctypes.c_int64(call))

    @property
    def allocated(self) -> int:
        return int(self._library.emulator_allocated())

    @property
    def launches(self) -> int:
        return int(self._library.emulator_launches())


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest) -> str:
    path = request.config.getoption("--cuda-library")
    if not path:
        pytest.skip("no CUDA library was named with --cuda-library: tests/cuda.sh builds one and runs these tests")
    return str(path)


@pytest.fixture
def emulator(library: str) -> Iterator[Emulator]:
    loaded = ctypes.CDLL(library)
    if not hasattr(loaded, "emulator_order"):
        pytest.skip("this library runs on a GPU")
    emulator = Emulator(loaded)
    yield emulator
    emulator.order("forward")
    emulator.memory(1 << 30)
    emulator.fail(-1)
