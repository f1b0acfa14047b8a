"""Documents of every kind: which a file is, and opening it. The bytes of a file decide, not its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import BinaryIO

from ..errors import BadRequest
from . import tiff
from .decode import format_of
from .named_part import split
from .paged import Markers, Page, PagedDocument
from .pdf import Document, is_pdf
from .tiff import TiffDocument

_HEAD_BYTES = 1024

DocumentInput = PagedDocument | str | os.PathLike[str]
"""What a request takes as a document: an open one, or a path that may end in "#3,7-9"."""


def is_document(file: BinaryIO) -> bool:
    """Whether a file, read from its beginning, is a PDF or a TIFF of several pages."""
    file.seek(0)
    return is_pdf(file.read(_HEAD_BYTES)) or tiff.has_pages(file)


def open_document(
    source: str | os.PathLike[str] | bytes | BinaryIO, password: str | None = None, *, name: str | None = None
) -> PagedDocument:
    """Opens a PDF or a TIFF. Arguments and errors like `Document`."""
    if format_of(_head(source)) == "TIFF":
        return TiffDocument(source, name=name)
    return Document(source, password, name=name)


def open_named(source: str | os.PathLike[str], password: str | None = None) -> tuple[PagedDocument, str | None]:
    """The document of a path, and the pages that stand behind a "#" there."""
    path, which = split(os.fspath(source))
    return open_document(path, password), which


def open_pages(documents: Sequence[DocumentInput]) -> tuple[list[Page], list[str]]:
    """All pages of documents in order, and notices about them. Raises like `Document`."""
    if isinstance(documents, (str, bytes, os.PathLike, PagedDocument)):
        raise BadRequest(
            f"documents: got {type(documents).__name__}, expected a list: documents=[document]", "request.documents"
        )
    found: list[Page] = []
    notices: list[str] = []
    markers: Markers = "short" if len(documents) == 1 else "full"
    for source in documents:
        document, which = (source, None) if isinstance(source, PagedDocument) else open_named(source)
        found += document.pages(which, markers)
        notices += document.notices
    return found, notices


def _head(source: str | os.PathLike[str] | bytes | BinaryIO) -> bytes:
    """The first bytes of a regular file; b"" for what cannot be read, which opening it reports."""
    if isinstance(source, bytes):
        return source[:_HEAD_BYTES]
    if not isinstance(source, (str, os.PathLike)):
        source.seek(0)
        head = source.read(_HEAD_BYTES)
        source.seek(0)
        return head
    path = os.path.expanduser(os.fspath(source))
    try:
        if not os.path.isfile(path):
            return b""
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except (OSError, ValueError):
        return b""
