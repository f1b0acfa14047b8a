"""Asserts that a file is refused as it should be: typed, named, without memory."""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from kimi_vl_cpp import _core
from kimi_vl_cpp.errors import BadModelFile

MEMORY_BYTES = 64 << 20  # what opening any file may take on top
REMEDY = re.compile(
    r"download|convert|check the path|name a file|name the file|make the file|copy|give the parts|update|append|git lfs"
)
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")


@contextlib.contextmanager
def bounded_memory(file_bytes: int) -> Iterator[None]:
    """Allocations beyond the bound fail, and a test that expects BadModelFile sees OutOfMemory."""
    if SANITIZED:  # shadow memory does not fit any bound
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + file_bytes + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refusal(path: Path | str) -> BadModelFile:
    size = os.stat(path).st_size if os.path.isfile(path) else 0
    with bounded_memory(size), pytest.raises(BadModelFile) as caught:
        _core.GGUFFile(str(path))
    return caught.value


def check_refusal(path: Path | str, code: str, *mentions: str) -> None:
    error = refusal(path)
    message = str(error)
    assert error.code == code, message
    assert str(path) in message
    assert REMEDY.search(message), message
    for mention in mentions:
        assert mention in message
