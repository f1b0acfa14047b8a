"""PDF documents of requests: each opened and drawn by a process of its own, in threads of their own.

Owns how many documents a request may have and how many requests are read at once, so that files that take long keep
nobody waiting who sends none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from ..errors import BadRequest, Cancelled
from ..media.isolated import IsolatedDocument
from ..media.paged import PagedDocument

_T = TypeVar("_T")
MAX_DOCUMENTS = 8
"""Documents in one request, each of which is a process while the request is read."""
_AT_ONCE = 2
"""Requests whose documents are read at the same time."""


class RequestDocuments:
    """The documents of one request while it is read. A context manager: all of them are closed at its end."""

    def __init__(self, owner: Documents) -> None:
        self._owner = owner
        self._open: list[IsolatedDocument] = []
        self._closed = False

    def open(self, data: bytes, name: str) -> PagedDocument:
        """A document of the request. Raises BadDocument, BadRequest (code "request.too_many_documents")."""
        if len(self._open) >= MAX_DOCUMENTS:
            raise BadRequest(
                f"got more than {MAX_DOCUMENTS} documents in one request: put them into fewer files, or send the pages "
                "that matter as pictures",
                "request.too_many_documents",
            )
        self._check()
        document = IsolatedDocument(data, name=name)
        self._open.append(document)
        self._check()  # its request may have ended meanwhile
        return document

    async def prepare(self, function: Callable[[], _T]) -> _T:
        """`function()` in one of the threads for documents."""
        return await asyncio.get_running_loop().run_in_executor(self._owner.threads, function)

    def close(self) -> None:
        """Ends their processes, whatever they do."""
        self._closed = True
        for document in self._open:
            document.close()

    def _check(self) -> None:
        if self._closed:
            self.close()
            raise Cancelled("the request has ended", "request.cancelled")

    def __enter__(self) -> RequestDocuments:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner.reading.discard(self)
        self.close()


class Documents:
    """The documents of one server."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(_AT_ONCE, "documents")
        self.reading: set[RequestDocuments] = set()

    def request(self) -> RequestDocuments:
        """A place for the documents of a request. On the event loop."""
        documents = RequestDocuments(self)
        self.reading.add(documents)
        return documents

    def close(self) -> None:
        """Ends what is read, and takes nothing more. On the event loop."""
        for documents in self.reading:
            documents.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
