"""PDF documents of strangers, opened and drawn by a child process, which a damaged or hostile file may crash or hang.

Owns the child's life and its limits of time. What it does is in `pdf_child`; they exchange lines of JSON, and pixels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadDocument, Cancelled
from . import pdf_child
from .paged import PagedDocument
from .pdf import check_installed

LIMIT_S = 30.0
"""Seconds for one step: opening, or drawing one page."""
TOTAL_S = 120.0
"""Seconds for all steps of one document."""
_MAX_LINE = 16 << 20
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")


class IsolatedDocument(PagedDocument):
    """A PDF document in a process of its own. Use it as a context manager, or leave closing to the garbage collector.

    `close` may be called from any thread; a step under way then raises Cancelled.
    """

    def __init__(
        self, source: bytes, *, name: str = "document", limit_s: float = LIMIT_S, total_s: float = TOTAL_S
    ) -> None:
        """source: the bytes of a file. name: what messages and markers call it. limit_s, total_s: seconds for one step
        and for all of them.

        Raises BadDocument (codes document.*, of which "document.timeout" and "document.crashed" are this class's own),
        Unsupported (code "unsupported.extra") without pypdfium2.
        """
        check_installed()
        self.name = name
        self._limit_s, self._left_s = limit_s, total_s
        self._lock = threading.Lock()
        self._closed = False
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", pdf_child.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
        self._end = weakref.finalize(self, _end, self._child)
        try:
            opened = self._step("opening it", {"open": len(source), "name": name, "limit_s": limit_s}, source)
            self.n_pages = int(opened["n_pages"])
            self.notices = [str(notice) for notice in opened["notices"]]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._closed = True
        self._end()

    def page_size(self, number: int) -> tuple[float, float]:
        width, height = self._step(f"reading page {number}", {"size": number})
        return float(width), float(height)

    def draw(self, number: int, width: int, height: int) -> NDArray[np.uint8]:
        command = {"draw": [number, width, height]}
        data: bytes = self._step(f"drawing page {number}", command, n_bytes=width * height * 3)
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def text(self, number: int) -> str:
        return str(self._step(f"reading page {number}", {"text": number}))

    def _step(self, what: str, command: dict[str, Any], data: bytes = b"", n_bytes: int = 0) -> Any:
        """The child's answer to a command: a value, or n_bytes of pixels. what: the step in messages."""
        with self._lock:
            limit = min(self._limit_s, self._left_s)
            out_of_time = threading.Event()

            def give_up() -> None:
                out_of_time.set()
                self._child.kill()

            timer = threading.Timer(limit, give_up)
            timer.start()
            started = time.monotonic()
            try:
                return self._exchange(command, data, n_bytes)
            except (OSError, ValueError, KeyError, TypeError):  # it ended, or says what it never says
                self._child.kill()
                if self._closed:
                    raise Cancelled(f"{self.name}: {what} was cancelled", "request.cancelled") from None
                raise self._lost(what, limit if out_of_time.is_set() else None) from None
            finally:
                timer.cancel()
                self._left_s = max(0.0, self._left_s - (time.monotonic() - started))

    def _exchange(self, command: dict[str, Any], data: bytes, n_bytes: int) -> Any:
        writer, reader = self._child.stdin, self._child.stdout
        assert writer is not None and reader is not None
        writer.write(json.dumps(command).encode() + b"\n" + data)
        writer.flush()
        line = reader.readline(_MAX_LINE)
        answer = json.loads(line)
        if "error" in answer:
            raise BadDocument(str(answer["error"]["message"]), str(answer["error"]["code"]))
        if not n_bytes:
            return answer["value"]
        pixels = reader.read(n_bytes)
        if len(pixels) != n_bytes:
            raise EOFError
        return pixels

    def _lost(self, what: str, limit: float | None) -> BadDocument:
        """The error of a step that took too long, or that ended the child."""
        hint = "print it to PDF from another program, or give its pages as pictures"
        if limit is not None:
            return BadDocument(f"{self.name}: {what} took longer than {limit:g} s: {hint}", "document.timeout")
        return BadDocument(
            f"{self.name}: {what} crashed the PDF reader, or needed more than {pdf_child.MAX_MEMORY >> 20} MiB: {hint}",
            "document.crashed",
        )


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdout, child.stdin):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was not written yet
                continue


def _environment() -> dict[str, str]:
    """What the child needs to start; keys and tokens of this process are not among it."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT_VARIABLES or name.startswith("PYTHON")}
    return {**kept, "OPENBLAS_NUM_THREADS": "1"}
