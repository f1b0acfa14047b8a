"""The process that opens and reads one document or video for `reader_process`: commands on its input, answers on its
output.

A command is a line of JSON. The first is
    {"open": "document" or "video", "name", "password", "limit_s": seconds, "n_bytes": N} and the N bytes of the file,
    or with "descriptor" in place of "n_bytes" when it was handed the open file
Of a document it answers with {"n_pages", "notices"}, and then to
    {"size": page} -> [width, height]
    {"native_size": page} -> [width, height] or null
    {"draw": [page, width, height]} -> null, and the bytes of RGB
    {"text": page} -> a string
Of a video with {"duration", "size", "has_audio", "notices"}, and then to
    {"frames": [times, [width, height]]} and {"every": [start, end, fps, [width, height]]} -> null
    {"next": true} -> the time of the next of these frames, and its bytes of RGB; null behind the last
    {"notices": true} -> a list
An answer is a line of JSON, {"value", "n_bytes"} and that many bytes, or {"error": {"code", "message"}}. The process
limits its own memory and its processor time, so that it ends even when the one that started it is gone.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import KimiVLError, OutOfMemory
from .documents import open_document
from .paged import PagedDocument
from .video import Video

MAX_MEMORY = 2 << 30
"""Bytes of address space."""

_NOTHING = np.zeros(0, np.uint8)
_Answer = tuple[Any, NDArray[np.uint8]]


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
        self._limit_s = 0
        self._kind = "document"
        self._opened: PagedDocument | Video | None = None
        self._frames: Iterator[tuple[float, NDArray[np.uint8]]] = iter(())

    def serve(self) -> None:
        while line := self._commands.readline():
            command = json.loads(line)
            pixels = _NOTHING
            try:
                value, pixels = self._answer(command)
                answer: dict[str, Any] = {"value": value, "n_bytes": pixels.nbytes}
            except (MemoryError, OutOfMemory):
                message = f"it needs more than {MAX_MEMORY >> 20} MiB of memory: give a smaller file, or parts of it"
                answer = {"error": {"code": f"{self._kind}.too_large", "message": message}}
            except KimiVLError as error:
                answer = {"error": {"code": error.code, "message": str(error)}}
            self._answers.write(json.dumps(answer).encode() + b"\n")
            self._answers.write(np.ascontiguousarray(pixels).data)
            self._answers.flush()

    def _answer(self, command: dict[str, Any]) -> _Answer:
        """The value of a command, and the bytes behind it."""
        if "open" in command:
            self._kind = command["open"]
            self._limit_s = (math.ceil(command["limit_s"]) + 1) * (os.cpu_count() or 1)  # videos take several threads
            self._limit_time()
            return self._open(command), _NOTHING
        self._limit_time()
        ((name, given),) = command.items()
        assert self._opened is not None
        if isinstance(self._opened, Video):
            return self._of_video(self._opened, name, given)
        return self._of_document(self._opened, name, given)

    def _open(self, command: dict[str, Any]) -> dict[str, Any]:
        descriptor = command.get("descriptor")
        source = self._commands.read(command["n_bytes"]) if descriptor is None else os.fdopen(descriptor, "rb")
        if self._kind == "video":
            video = self._opened = Video(source, name=command["name"])
            facts = {"duration": video.duration, "size": video.size, "has_audio": video.has_audio}
            return {**facts, "notices": video.notices}
        document = self._opened = open_document(source, command.get("password"), name=command["name"])
        return {"n_pages": document.n_pages, "notices": document.notices}

    def _of_document(self, document: PagedDocument, name: str, given: Any) -> _Answer:
        if name == "draw":
            return None, document.draw(*given)
        ask = {"size": document.page_size, "native_size": document.native_size, "text": document.text}
        return ask[name](given), _NOTHING

    def _of_video(self, video: Video, name: str, given: Any) -> _Answer:
        if name == "notices":
            return video.notices, _NOTHING
        if name == "next":
            return next(self._frames, (None, _NOTHING))
        *which, size = given
        self._frames = getattr(video, {"frames": "frames", "every": "every"}[name])(*which, lambda *_: tuple(size))
        return None, _NOTHING

    def _limit_time(self) -> None:
        """One step may take its own time only, also when nobody waits for it any more."""
        _limit(resource.RLIMIT_CPU, math.ceil(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + self._limit_s)


if __name__ == "__main__":
    main()
