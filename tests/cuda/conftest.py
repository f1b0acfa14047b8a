"""The CUDA backend on whole models. Its library is built by tests/cuda.sh, which runs these tests on it."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*sorted((ROOT / "csrc/backend/cuda/ops").glob("*.cu")), ROOT / "tests/cuda_emulator/words.cu"]


class Compiler:
    """What nvcc and ptxas make of the kernels; each architecture is compiled once, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ptx = functools.cache(self._ptx)
        self.kernels = functools.cache(self._kernels)

    def _ptx(self, architecture: str) -> dict[str, str]:
        """The PTX of each source, by its name without the suffix."""
        flags = ["-std=c++20", "-fmad=false", f"-arch=compute_{architecture}", "-ptx"]
        flags += [f"-I{ROOT}/csrc", f"-I{ROOT}/tests"]

        def one(source: Path) -> tuple[str, str]:
            out = self._folder / f"{source.stem}.{architecture}.ptx"
            _run("nvcc", *flags, str(source), "-o", str(out))
            return source.stem, out.read_text()

        with ThreadPoolExecutor(2) as pool:
            return dict(pool.map(one, SOURCES))

    def _kernels(self, architecture: str) -> dict[str, tuple[int, int, int]]:
        """kernel -> (bytes of its stack, bytes spilled, registers) in machine code."""

        def one(name: str) -> dict[str, tuple[int, int, int]]:
            ptx = str(self._folder / f"{name}.{architecture}.ptx")
            log = _run("ptxas", "-v", f"-arch=sm_{architecture}", ptx, "-o", ptx + ".cubin")
            found = {}
            for kernel, said in re.findall(r"Compiling entry function '(\w+)'.*?\n((?:(?!.*Compiling).*\n)*)", log):
                stack, spilled = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", said).groups()
                found[kernel] = (int(stack), int(spilled), int(re.search(r"Used (\d+) registers", said)[1]))
            return found

        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(one, self.ptx(architecture)))
        return {name: numbers for kernels in found for name, numbers in kernels.items()}


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


@pytest.fixture(scope="session")
def compiler(tmp_path_factory) -> Compiler:
    if not shutil.which("nvcc") or not shutil.which("ptxas"):
        pytest.skip("no nvcc")
    return Compiler(tmp_path_factory.mktemp("nvcc"))


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
