"""TIFF files of several pages, as scanners and fax programs write them: each page is a picture.

Owns the chain of pages. What the bytes of a page mean is for `decode`: a page is given to it as a file of its own, in
which the header names that page as the first, so that every limit of pictures holds for every page.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import BadDocument, BadImage
from .decode import check_pixels, decode, format_of, load_pixels
from .open import MAX_BYTES, MAX_PIXELS
from .paged import PagedDocument
from .pdf import MAX_PAGES
from .processor import scaled
from .regular_file import open_regular, opened
from .rgb import to_rgb, upright

_SUBFILE, _WIDTH, _HEIGHT, _ORIENTATION = 254, 256, 257, 274  # tags
_NO_PAGE = 1 | 4  # of _SUBFILE: a small preview, a mask
_ON_ITS_SIDE = 5  # orientations from here on swap width and height
_SHORT = 3  # a type of two bytes
_MOST_ENTRIES = 1 << 18  # of all directories; a page has some twenty


@dataclass(frozen=True)
class _Directory:
    """Where a page is described. link: where the file says which directory follows. size: width and height as it is to
    be seen."""

    at: int
    link: int
    n_entries: int
    follows: int
    size: tuple[int, int]
    is_page: bool


@dataclass(frozen=True)
class _Layout:
    """Widths of numbers in bytes: TIFF, or BigTIFF."""

    order: Literal["little", "big"]
    count: int
    number: int
    first: int  # where the header names the first directory


class TiffDocument(PagedDocument):
    """A TIFF file as a document. Previews and masks are no pages. All of it is held in memory."""

    def __init__(self, source: str | os.PathLike[str] | bytes | BinaryIO, *, name: str | None = None) -> None:
        """source: a path (`~` is expanded), the bytes of a file, or an open file. name: what messages and markers call
        it; None is the file's name.

        Raises BadDocument (codes document.*).
        """
        self.name, file = opened(source, name or "", "document", _open_file)
        with file:
            self._data = source if isinstance(source, bytes) else file.read(MAX_BYTES + 1)
        if len(self._data) > MAX_BYTES:
            raise BadDocument(f"{self.name}: more than {MAX_BYTES} bytes: split the file", "document.too_large")
        if format_of(self._data[:64]) != "TIFF":
            raise BadDocument(f"{self.name}: not a TIFF file: give it as a picture or a PDF", "document.format")
        self._layout = _layout(self._data)
        found = list(_directories(io.BytesIO(self._data), self._layout))
        self._pages = [one for one in found if one.is_page]
        self.n_pages = len(self._pages)
        self.notices: list[str] = []
        if found and found[-1].follows:
            self.notices.append(f"{self.name}: cut off or damaged behind page {self.n_pages}: what follows is not seen")
        if not self._pages:
            raise BadDocument(f"{self.name}: no page in it can be found: save or download it again", "document.damaged")
        if self.n_pages > MAX_PAGES:
            raise BadDocument(
                f"{self.name}: more than {MAX_PAGES} pages, expected at most {MAX_PAGES}: split the file",
                "document.too_large",
            )

    def close(self) -> None:
        self._data = b""

    def page_size(self, number: int) -> tuple[float, float]:
        width, height = self.native_size(number)
        return float(width), float(height)

    def native_size(self, number: int) -> tuple[int, int]:
        size = self._pages[number - 1].size
        check_pixels(size, f"{self.name}, page {number}", MAX_PIXELS)
        return size

    def draw(self, number: int, width: int, height: int) -> NDArray[np.uint8]:
        label = f"{self.name}, page {number}"
        notices: list[str] = []
        try:
            image = decode(self._as_file(number), label, MAX_PIXELS, notices)
            load_pixels(image, label, MAX_PIXELS, notices)
            rgb = upright(to_rgb(image, label, notices), image, notices)
        except BadImage as error:
            raise BadDocument(str(error), error.code) from None
        self.notices += [f"page {number}: {one}" for one in notices if f"page {number}: {one}" not in self.notices]
        return np.asarray(rgb if rgb.size == (width, height) else scaled(rgb, (width, height)))

    def text(self, number: int) -> str:
        return ""

    def _as_file(self, number: int) -> bytes:
        """The file with this page as its first and only one."""
        if not self._data:
            raise BadDocument(f"{self.name}: it was closed: keep it open while its pages are used", "document.closed")
        page, layout = self._pages[number - 1], self._layout
        named = page.at.to_bytes(layout.number, layout.order)
        last = bytes(layout.number)
        behind = layout.first + layout.number
        return b"".join(
            (
                self._data[: layout.first],
                named,
                self._data[behind : page.link],
                last,
                self._data[page.link + layout.number :],
            )
        )


def has_pages(file: BinaryIO) -> bool:
    """Whether a file, read from its beginning, is a TIFF of more than one page."""
    file.seek(0)
    head = file.read(16)
    if format_of(head) != "TIFF":
        return False
    found = (one for one in _directories(file, _layout(head)) if one.is_page)
    return next(found, None) is not None and next(found, None) is not None


def _layout(head: bytes) -> _Layout:
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    return _Layout(order, 8, 8, 8) if 0x2B in head[2:4] else _Layout(order, 2, 4, 4)


def _directories(file: BinaryIO, layout: _Layout) -> Iterator[_Directory]:
    """The directories in their order, up to one that is damaged or was met before; few more than MAX_PAGES."""
    file.seek(layout.first)
    at = int.from_bytes(file.read(layout.number), layout.order)
    met: set[int] = set()
    n_entries = 0
    while at >= layout.first + layout.number and at not in met and len(met) <= 2 * MAX_PAGES:
        met.add(at)
        found = _directory(file, layout, at)
        if found is None or n_entries > _MOST_ENTRIES:
            return
        n_entries += found.n_entries
        yield found
        at = found.follows


def _directory(file: BinaryIO, layout: _Layout, at: int) -> _Directory | None:
    file.seek(at)
    n = int.from_bytes(file.read(layout.count), layout.order)
    size = 4 + 2 * layout.number
    if not 0 < n <= 65535:
        return None
    entries = file.read(n * size)
    link = file.read(layout.number)
    if len(entries) < n * size or len(link) < layout.number:
        return None
    values = dict.fromkeys((_SUBFILE, _WIDTH, _HEIGHT, _ORIENTATION), 0)
    for start in range(0, len(entries), size):
        tag, kind = (int.from_bytes(entries[start + one : start + one + 2], layout.order) for one in (0, 2))
        if tag in values:
            value = start + 4 + layout.number
            width = 2 if kind == _SHORT else layout.number if kind == 16 else 4
            values[tag] = int.from_bytes(entries[value : value + width], layout.order)
    seen = values[_WIDTH], values[_HEIGHT]
    if values[_ORIENTATION] >= _ON_ITS_SIDE:
        seen = seen[::-1]
    follows = int.from_bytes(link, layout.order)
    return _Directory(at, at + layout.count + n * size, n, follows, seen, not values[_SUBFILE] & _NO_PAGE)


def _open_file(path: str | os.PathLike[str]) -> BinaryIO:
    return open_regular(path, MAX_BYTES, lambda text, problem: BadDocument(text, f"document.{problem}"), "a TIFF file")
