"""The process that opens and draws one PDF document for `isolated`: commands on its input, answers on its output.

A command is a line of JSON, one of
    {"open": N, "name": name, "limit_s": seconds} and the N bytes of the document -> {"n_pages", "notices"}
    {"size": page} -> [width, height] in points
    {"draw": [page, width, height]} -> width * height * 3, and as many bytes of RGB behind the line
    {"text": page} -> a string
An answer is a line of JSON: {"value": ...} or {"error": {"code", "message"}}. The process limits its own memory and its
processor time, so that it ends even when the one that started it is gone.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from typing import Any, BinaryIO

from ..errors import KimiVLError, OutOfMemory
from .documents import open_document
from .paged import PagedDocument

MAX_MEMORY = 2 << 30
"""Bytes of address space."""


def main() -> None:
    """Answers commands until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints gets among them
    _limit(resource.RLIMIT_AS, MAX_MEMORY)
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        _limit(limit, 0)
    _Child(sys.stdin.buffer, answers).serve()


def _limit(what: int, value: int) -> None:
    """Sets a soft limit, within the hard one."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


class _Child:
    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self._commands = commands
        self._answers = answers
        self._document: PagedDocument | None = None
        self._limit_s = 0

    def serve(self) -> None:
        while line := self._commands.readline():
            command = json.loads(line)
            try:
                value, pixels = self._answer(command)
                answer: dict[str, Any] = {"value": value}
            except (MemoryError, OutOfMemory):
                pixels = b""
                message = f"it needs more than {MAX_MEMORY >> 20} MiB of memory: give fewer pages, or pages as pictures"
                answer = {"error": {"code": "document.too_large", "message": message}}
            except KimiVLError as error:
                pixels = b""
                answer = {"error": {"code": error.code, "message": str(error)}}
            self._answers.write(json.dumps(answer).encode() + b"\n" + pixels)
            self._answers.flush()

    def _answer(self, command: dict[str, Any]) -> tuple[Any, bytes]:
        """The value of a command, and the bytes behind it."""
        if "open" in command:
            data = self._commands.read(command["open"])
            self._limit_s = math.ceil(command["limit_s"]) + 1
            self._limit_time()
            self._document = open_document(data, name=command["name"])
            return {"n_pages": self._document.n_pages, "notices": self._document.notices}, b""
        assert self._document is not None
        self._limit_time()
        if "size" in command:
            return self._document.page_size(command["size"]), b""
        if "text" in command:
            return self._document.text(command["text"]), b""
        number, width, height = command["draw"]
        pixels = self._document.draw(number, width, height)
        return pixels.nbytes, pixels.tobytes()

    def _limit_time(self) -> None:
        """One step may take its own time only, also when nobody waits for it any more."""
        _limit(resource.RLIMIT_CPU, math.ceil(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + self._limit_s)


if __name__ == "__main__":
    main()
