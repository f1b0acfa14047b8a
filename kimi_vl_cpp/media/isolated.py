"""Documents and videos of strangers, opened and read by a process of their own, which a damaged or hostile file may
crash or let hang. They are used like those that this process opens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from . import pdf, video
from .paged import PagedDocument
from .reader_process import LIMIT_S, TOTAL_S, ReaderProcess
from .timed import Shape, TimedVideo

PATIENT_LIMIT_S, PATIENT_TOTAL_S = 300.0, 86_400.0
"""Limits for files that somebody waits for, and can stop."""


def open_document(source: str | os.PathLike[str] | bytes, password: str | None = None) -> IsolatedDocument:
    """A document of a path or of bytes, with patient limits. Errors like `IsolatedDocument`."""
    with _patiently(source, pdf.open_file) as options:
        return IsolatedDocument(password=password, **options)


def open_video(source: str | os.PathLike[str] | bytes) -> IsolatedVideo:
    """A video of a path or of bytes, with patient limits. Errors like `IsolatedVideo`."""
    with _patiently(source, video.open_file) as options:
        return IsolatedVideo(**options)


@contextmanager
def _patiently(
    source: str | os.PathLike[str] | bytes, open_file: Callable[[str | os.PathLike[str]], BinaryIO]
) -> Iterator[dict[str, Any]]:
    limits = {"limit_s": PATIENT_LIMIT_S, "total_s": PATIENT_TOTAL_S}
    if isinstance(source, bytes):
        yield {"source": source, **limits}
        return
    with open_file(source) as file:  # which the process has of its own
        yield {"source": file, "name": os.path.basename(os.fspath(source)), **limits}


class IsolatedDocument(PagedDocument):
    """A document in a process of its own. Use it as a context manager, or leave closing to the garbage collector.

    `close` may be called from any thread; a step under way then raises Cancelled.
    """

    def __init__(
        self,
        source: bytes | BinaryIO,
        password: str | None = None,
        *,
        name: str = "document",
        limit_s: float = LIMIT_S,
        total_s: float = TOTAL_S,
    ) -> None:
        """source: the bytes of a file, or an open file. name: what messages and markers call it. limit_s, total_s:
        seconds for one step and for all of them.

        Raises BadDocument (codes document.*, of which "document.timeout" and "document.crashed" are this class's own),
        Unsupported (code "unsupported.extra") without pypdfium2.
        """
        pdf.check_installed()
        self.name = name
        self._process = ReaderProcess("document", source, name, password, limit_s=limit_s, total_s=total_s)
        self.n_pages = int(self._process.opened["n_pages"])
        self.notices = [str(notice) for notice in self._process.opened["notices"]]

    def close(self) -> None:
        self._process.close()

    def page_size(self, number: int) -> tuple[float, float]:
        (width, height), _ = self._process.step(f"reading page {number}", {"size": number})
        return float(width), float(height)

    def native_size(self, number: int) -> tuple[int, int] | None:
        size, _ = self._process.step(f"reading page {number}", {"native_size": number})
        return None if size is None else (int(size[0]), int(size[1]))

    def draw(self, number: int, width: int, height: int) -> NDArray[np.uint8]:
        _, data = self._process.step(f"drawing page {number}", {"draw": [number, width, height]})
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def text(self, number: int) -> str:
        return str(self._process.step(f"reading page {number}", {"text": number})[0])


class IsolatedVideo(TimedVideo):
    """A video in a process of its own. Use it as a context manager, or leave closing to the garbage collector.

    `close` may be called from any thread; a step under way then raises Cancelled.
    """

    def __init__(
        self, source: bytes | BinaryIO, *, name: str = "video", limit_s: float = LIMIT_S, total_s: float = TOTAL_S
    ) -> None:
        """source: the bytes of a file, or an open file. name: what messages call it. limit_s, total_s: seconds for one
        step and for all of them.

        Raises BadVideo (codes video.*, of which "video.timeout" and "video.crashed" are this class's own), Unsupported
        (code "unsupported.extra") without PyAV.
        """
        video.check_installed()
        self.name = name
        self._process = ReaderProcess("video", source, name, limit_s=limit_s, total_s=total_s)
        opened: dict[str, Any] = self._process.opened
        self.duration = float(opened["duration"])
        self.size = (int(opened["size"][0]), int(opened["size"][1]))
        self.has_audio = bool(opened["has_audio"])
        self.notices = [str(notice) for notice in opened["notices"]]

    def close(self) -> None:
        self._process.close()

    def frames(self, times: Sequence[float], shape: Shape) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        return self._frames("frames", [list(times)], shape)

    def every(self, start: float, end: float, fps: float, shape: Shape) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        return self._frames("every", [start, end, fps], shape)

    def _frames(self, name: str, which: list[Any], shape: Shape) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        width, height = shape(*self.size)
        self._process.step("reading frames", {name: [*which, [width, height]]})
        while True:
            time, data = self._process.step("reading the next frame", {"next": True})
            if time is None:
                break
            yield float(time), np.frombuffer(data, np.uint8).reshape(height, width, 3)
        notices, _ = self._process.step("reading frames", {"notices": True})
        self.notices += [str(notice) for notice in notices if notice not in self.notices]
