"""Documents and videos of requests: each opened and read by a process of its own, in threads of their own.

Owns how many of them a request may have and how many requests are read at once, so that files that take long keep
nobody waiting who sends none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO, TypeVar

from ..errors import BadRequest, Cancelled
from ..media.isolated import IsolatedDocument, IsolatedVideo
from ..media.paged import PagedDocument
from ..media.timed import TimedVideo

_T = TypeVar("_T")
MAX_ATTACHMENTS = 8
"""Documents and videos in one request, each of which is a process while the request is read."""
_AT_ONCE = 2
"""Requests whose attachments are read at the same time."""


class RequestAttachments:
    """The documents and videos of one request while it is read. A context manager: all are closed at its end."""

    def __init__(self, owner: Attachments) -> None:
        self._owner = owner
        self._open: list[IsolatedDocument | IsolatedVideo] = []
        self._n = 0
        self._closed = False

    def open(self, data: bytes, name: str) -> PagedDocument:
        """A document of the request. Raises BadDocument, BadRequest (code "request.too_many_documents")."""
        self._count()
        document = IsolatedDocument(data, name=name)
        self._open.append(document)
        self._check()  # its request may have ended meanwhile
        return document

    def open_video(self, source: bytes | BinaryIO) -> TimedVideo:
        """A video of the request. source: see `IsolatedVideo`. Raises BadVideo, BadRequest (code
        "request.too_many_documents")."""
        self._count()
        video = IsolatedVideo(source)
        self._open.append(video)
        self._check()
        return video

    def _count(self) -> None:
        self._n += 1
        if self._n > MAX_ATTACHMENTS:
            raise BadRequest(
                f"got more than {MAX_ATTACHMENTS} documents and videos in one request: put them into fewer files, or "
                "send the pages and frames that matter as pictures",
                "request.too_many_documents",
            )
        self._check()

    async def prepare(self, function: Callable[[], _T]) -> _T:
        """`function()` in one of the threads for attachments."""
        return await asyncio.get_running_loop().run_in_executor(self._owner.threads, function)

    def close(self) -> None:
        """Ends their processes, whatever they do."""
        self._closed = True
        for attached in self._open:
            attached.close()

    def _check(self) -> None:
        if self._closed:
            self.close()
            raise Cancelled("the request has ended", "request.cancelled")

    def __enter__(self) -> RequestAttachments:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner.reading.discard(self)
        self.close()


class Attachments:
    """The documents and videos of one server."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(_AT_ONCE, "attachments")
        self.reading: set[RequestAttachments] = set()

    def request(self) -> RequestAttachments:
        """A place for those of a request. On the event loop."""
        attached = RequestAttachments(self)
        self.reading.add(attached)
        return attached

    def close(self) -> None:
        """Ends what is read, and takes nothing more. On the event loop."""
        for attached in self.reading:
            attached.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
