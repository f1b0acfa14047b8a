"""PDF documents: pages that are drawn at the size that the model sees, and their text.

Owns opening, the limits, and PDFium's errors in this package's words. PDFium is not thread-safe: one lock for the whole
process. Paths never reach it, so it opens no other file. Needs the extra `pdf` (pypdfium2).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import BadDocument, BadImage, OutOfMemory, Unsupported
from .decode import format_of, stranger
from .paged import PagedDocument
from .regular_file import open_regular, opened

MAX_BYTES = 1 << 30
MAX_PAGES = 2000
MIN_SIDE, MAX_SIDE = 10.0, 14_400.0  # points
_HEAD_BYTES = 1024  # within which a PDF has its mark
_ERR_PASSWORD = 4  # FPDF_ERR_PASSWORD
_NO_PAGES = re.compile(rb"/Type\s*/Pages\b(?=[^>]*/Count\s+0\b)")
_A_PAGE = re.compile(rb"/Type\s*/Page\b")
_MOST_LOOKED_AT = 1 << 20  # bytes
_XFA_FORMS = (2, 3)  # FORMTYPE_XFA_FULL, FORMTYPE_XFA_FOREGROUND

_lock = threading.RLock()


def _new_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # another thread may have held it
    os.register_at_fork(after_in_child=_new_lock)


def is_pdf(head: bytes) -> bool:
    """Whether a file's first bytes, 1024 of them, are those of a PDF."""
    return b"%PDF-" in head[:_HEAD_BYTES] and format_of(head) is None


class Document(PagedDocument):
    """A PDF document. Use it as a context manager, or leave closing to the garbage collector."""

    def __init__(
        self, source: str | os.PathLike[str] | bytes | BinaryIO, password: str | None = None, *, name: str | None = None
    ) -> None:
        """source: a path (`~` is expanded), the bytes of a file, or an open file. password: of a protected document.
        name: what messages and markers call it; None is the file's name.

        Raises BadDocument (codes document.*), Unsupported (code "unsupported.extra") without pypdfium2.
        """
        self.name, self._file = opened(source, name or "", "document", open_file)
        try:
            self._check_head()
            with _lock:
                self._pdf = self._open(password)
                self.n_pages = len(self._pdf)
            self._check_pages()
        except BaseException:
            self._file.close()
            raise
        self.notices: list[str] = []
        self._closed = False
        with _lock:
            kind = self._pdf.get_formtype()
            if kind:
                self._pdf.init_forms()
        if kind in _XFA_FORMS:
            self.notices.append(f"{self.name}: an XFA form, which may show only a request to wait: print it to PDF")

    def close(self) -> None:
        self._closed = True
        with _lock:
            self._pdf.close()
        self._file.close()

    def page_size(self, number: int) -> tuple[float, float]:
        with self._page(number) as page:
            width, height = page.get_size()
        if not (min(width, height) >= MIN_SIDE and max(width, height) <= MAX_SIDE):
            raise BadDocument(
                f"{self.name}, page {number}: {width:g} x {height:g} points, expected sides of {MIN_SIDE:g} to "
                f"{MAX_SIDE:g}: print it to PDF on a common paper size",
                "document.page_size",
            )
        return float(width), float(height)

    def draw(self, number: int, width: int, height: int) -> NDArray[np.uint8]:
        raw = importlib.import_module("pypdfium2.raw")
        flags = raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER
        with self._page(number) as page:
            bitmap = _pdfium().PdfBitmap.new_native(width, height, raw.FPDFBitmap_BGR, rev_byteorder=True)
            bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
            raw.FPDF_RenderPageBitmap(bitmap, page, 0, 0, width, height, 0, flags)
            if page.formenv:
                raw.FPDF_FFLDraw(page.formenv, bitmap, page, 0, 0, width, height, 0, flags)
            pixels: NDArray[np.uint8] = bitmap.to_numpy()[:, :width, :3].copy()
            bitmap.close()
        return pixels

    def text(self, number: int) -> str:
        with self._page(number) as page:
            text_page = page.get_textpage()
            text: str = text_page.get_text_bounded()
            text_page.close()
        return text.replace("\r\n", "\n")

    @contextmanager
    def _page(self, number: int) -> Iterator[Any]:
        if self._closed:
            raise BadDocument(f"{self.name}: it was closed: keep it open while its pages are used", "document.closed")
        with _lock:
            try:
                page = self._pdf[number - 1]
            except Exception as error:
                raise self._damaged(f"page {number} cannot be read ({error})") from None
            try:
                yield page
            except BadImage:
                raise
            except MemoryError:
                raise OutOfMemory(f"{self.name}, page {number}: not enough memory to draw it", "memory.image") from None
            except Exception as error:
                raise self._damaged(f"page {number} cannot be drawn ({error})") from None
            finally:
                page.close()

    def _check_head(self) -> None:
        head = self._file.read(_HEAD_BYTES)
        self._file.seek(0)
        if not head:
            raise BadDocument(f"{self.name}: the file is empty: download or save it again", "document.damaged")
        if not is_pdf(head):
            kind = format_of(head)
            what = f"a picture ({kind}): give it as a picture" if kind else stranger(head)
            raise BadDocument(f"{self.name}: not a PDF but {what or 'a file of another kind'}", "document.format")

    def _open(self, password: str | None) -> Any:
        pdfium = _pdfium()
        try:
            return pdfium.PdfDocument(self._file, password=password)
        except pdfium.PdfiumError as error:
            if getattr(error, "err_code", None) == _ERR_PASSWORD:
                given = "the password given does not open it" if password is not None else "protected with a password"
                raise BadDocument(f"{self.name}: {given}: give the right password", "document.password") from None
            if self._says_no_pages():  # PDFium has no error of its own for that
                raise self._empty() from None
            raise self._damaged(str(error).rstrip(".:")) from None

    def _check_pages(self) -> None:
        if self.n_pages == 0:
            raise self._empty()
        if self.n_pages > MAX_PAGES:
            raise BadDocument(
                f"{self.name}: {self.n_pages} pages, expected at most {MAX_PAGES}: split the file", "document.too_large"
            )

    def _says_no_pages(self) -> bool:
        """Whether the file has a tree of pages, and none in it."""
        self._file.seek(0)
        data = self._file.read(_MOST_LOOKED_AT)
        return _NO_PAGES.search(data) is not None and _A_PAGE.search(data) is None

    def _empty(self) -> BadDocument:
        return BadDocument(f"{self.name}: it has no pages: check that it is the right file", "document.empty")

    def _damaged(self, reason: str) -> BadDocument:
        return BadDocument(
            f"{self.name}: damaged or cut off: {reason}: download it again, or open it in another program and print it "
            "to PDF",
            "document.damaged",
        )


def check_installed() -> None:
    """Raises Unsupported (code "unsupported.extra") without pypdfium2, which it does not load."""
    if importlib.util.find_spec("pypdfium2") is None:
        raise _not_installed()


def _pdfium() -> Any:
    try:
        return importlib.import_module("pypdfium2")
    except ImportError:
        raise _not_installed() from None


def _not_installed() -> Unsupported:
    return Unsupported("reading a PDF needs pypdfium2: pip install 'kimi-vl-cpp[pdf]'", "unsupported.extra")


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A file that may be a PDF. Raises BadDocument."""
    return open_regular(path, MAX_BYTES, lambda text, problem: BadDocument(text, f"document.{problem}"), "a PDF file")
