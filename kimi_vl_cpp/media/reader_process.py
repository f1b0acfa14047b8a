"""A process of its own that reads one file of a stranger's, which may crash it or let it hang.

Owns the process's life and its limits of time. What it does is in `reader_child`; they exchange lines of JSON, and
pixels. Whose pages or frames these are is for `isolated`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from typing import Any, BinaryIO, Literal

from ..errors import BadDocument, BadImage, BadVideo, Cancelled
from . import reader_child

LIMIT_S = 30.0
"""Seconds for one step: opening, drawing one page, finding the next frame."""
TOTAL_S = 120.0
"""Seconds for all steps of one file."""

Kind = Literal["document", "video"]

_ERRORS: dict[Kind, type[BadImage]] = {"document": BadDocument, "video": BadVideo}
_INSTEAD: dict[Kind, str] = {
    "document": "print it to PDF from another program, or give its pages as pictures",
    "video": "give a shorter part of it, convert it to H.264, or give frames as pictures",
}
_MAX_LINE = 16 << 20
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")


class ReaderProcess:
    """The process, with its file open. opened: what it said about the file."""

    def __init__(
        self,
        kind: Kind,
        source: bytes | BinaryIO,
        name: str,
        password: str | None = None,
        *,
        limit_s: float = LIMIT_S,
        total_s: float = TOTAL_S,
    ) -> None:
        """source: the bytes of a file, or an open one, which the process reads from its beginning. name: what messages
        call it. limit_s, total_s: seconds for one step and for all of them.

        Raises BadDocument or BadVideo: as opening it here would, and with the codes KIND.timeout and KIND.crashed.
        """
        self._kind: Kind = kind
        self._name = name
        self._limit_s, self._left_s = limit_s, total_s
        self._lock = threading.Lock()
        self._closed = False
        descriptor = None if isinstance(source, bytes) else source.fileno()
        if descriptor is not None:
            os.lseek(descriptor, 0, os.SEEK_SET)
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", reader_child.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            pass_fds=() if descriptor is None else (descriptor,),
        )
        self._end = weakref.finalize(self, _end, self._child)
        command = {"open": kind, "name": name, "password": password, "limit_s": limit_s}
        handed = {"n_bytes": len(source)} if isinstance(source, bytes) else {"descriptor": descriptor}
        try:
            data = source if isinstance(source, bytes) else b""
            self.opened, _ = self.step("opening it", {**command, **handed}, data)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the process, whatever it does. From any thread; a step under way then raises Cancelled."""
        self._closed = True
        self._end()

    def step(self, what: str, command: dict[str, Any], data: bytes = b"") -> tuple[Any, bytes]:
        """The process's answer to a command: a value, and bytes. what: the step in messages."""
        with self._lock:
            limit = min(self._limit_s, self._left_s)
            out_of_time = threading.Event()

            def give_up() -> None:
                out_of_time.set()
                self._child.kill()

            timer = threading.Timer(min(limit, threading.TIMEOUT_MAX), give_up)
            timer.daemon = True
            timer.start()
            started = time.monotonic()
            try:
                return self._exchange(command, data)
            except (OSError, ValueError, KeyError, TypeError):  # it ended, or says what it never says
                self._child.kill()
                if self._closed:
                    raise Cancelled(f"{self._name}: {what} was cancelled", "request.cancelled") from None
                raise self._lost(what, limit if out_of_time.is_set() else None) from None
            finally:
                timer.cancel()
                self._left_s = max(0.0, self._left_s - (time.monotonic() - started))

    def _exchange(self, command: dict[str, Any], data: bytes) -> tuple[Any, bytes]:
        writer, reader = self._child.stdin, self._child.stdout
        assert writer is not None and reader is not None
        writer.write(json.dumps(command).encode() + b"\n" + data)
        writer.flush()
        answer = json.loads(reader.readline(_MAX_LINE))
        if "error" in answer:
            raise _ERRORS[self._kind](str(answer["error"]["message"]), str(answer["error"]["code"]))
        n_bytes = int(answer["n_bytes"])
        payload = reader.read(n_bytes)
        if len(payload) != n_bytes:
            raise EOFError
        return answer["value"], payload

    def _lost(self, what: str, limit: float | None) -> BadImage:
        """The error of a step that took too long, or that ended the process."""
        problem = "timeout" if limit is not None else "crashed"
        happened = (
            f"took longer than {limit:g} s"
            if limit is not None
            else f"crashed its reader, or needed more than {reader_child.MAX_MEMORY >> 20} MiB"
        )
        return _ERRORS[self._kind](
            f"{self._name}: {what} {happened}: {_INSTEAD[self._kind]}", f"{self._kind}.{problem}"
        )


def environment() -> dict[str, str]:
    """What the process needs to start; keys and tokens of this process are not among it."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT_VARIABLES or name.startswith("PYTHON")}
    return {**kept, "OPENBLAS_NUM_THREADS": "1"}


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdout, child.stdin):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was not written yet
                continue
