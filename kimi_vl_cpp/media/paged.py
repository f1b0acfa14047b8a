"""A document as the rest of the package sees it: numbered pages, each a picture that is drawn on demand.

Owns the choice of pages and what stands before them in a prompt. How a file is opened and drawn is for `pdf` and `tiff`
(in this process) and `isolated` (in another one).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from ..checks import Closeable
from . import ranges
from .drawn import Drawn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Markers = Literal["none", "short", "full"]
"""What stands before a page in a prompt: nothing, "Page 3 of 50:", or that with the document's name."""
MARKERS: tuple[Markers, ...] = get_args(Markers)
TextLayer = Literal["never", "auto"]
"""Whether the text layer of a page stands behind its picture in a prompt: where it is text, see `is_usable`."""
TEXT_LAYERS: tuple[TextLayer, ...] = get_args(TextLayer)

_MAX_LAYER = 6000  # bytes of a page's text layer in a prompt: about 1,500 tokens
_Self = TypeVar("_Self", bound="PagedDocument")


class PagedDocument(Closeable):
    """An open document. name: what messages and markers call it. n_pages. notices: what its reader should know."""

    _instead = "open the file in the other process"
    name: str
    n_pages: int
    notices: list[str]

    @abstractmethod
    def close(self) -> None:
        """Frees the document; its pages can no longer be drawn."""

    @abstractmethod
    def page_size(self, number: int) -> tuple[float, float]:
        """Width and height of a page that is turned as it is to be seen, in points or pixels. Raises BadDocument (code
        "document.page_size"), BadImage."""

    def native_size(self, number: int) -> tuple[int, int] | None:
        """See `Drawn.native_size`."""
        return None

    @abstractmethod
    def draw(self, number: int, width: int, height: int) -> NDArray[np.uint8]:
        """A page on white as uint8 [height, width, 3], with annotations and filled-in forms, stretched to the size."""

    @abstractmethod
    def text(self, number: int) -> str:
        """The text layer of a page, "" for a scan without one. It need not be what the page shows."""

    def __len__(self) -> int:
        return self.n_pages

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.n_pages} pages>"

    def pages(
        self,
        which: str | Sequence[int] | None = None,
        markers: Markers = "short",
        text_layer: TextLayer = "never",
    ) -> list[Page]:
        """Pages as pictures for a request, counted from 1. which: "3,7-9,40-", numbers, or None for all of them.
        text_layer: whether the text of the file stands behind each page.

        Raises BadDocument (code "document.pages").
        """
        if which is None:
            numbers: Sequence[int] = range(1, self.n_pages + 1)
        else:
            text = which if isinstance(which, str) else ",".join(str(int(number)) for number in which)
            numbers, notices = ranges.parse(text, self.n_pages, self.name)
            self.notices += [notice for notice in notices if notice not in self.notices]
        return [Page(self, number, markers, text_layer) for number in numbers]


class Page(Drawn):
    """A page of a document, to be given as a picture. number: from 1."""

    def __init__(
        self, document: PagedDocument, number: int, markers: Markers = "short", text_layer: TextLayer = "never"
    ) -> None:
        self.document = document
        self.number = number
        self.markers = markers
        self.text_layer = text_layer

    @cached_property  # fitting asks for it, and drawing: the file need not be read for each
    def size(self) -> tuple[float, float]:
        return self.document.page_size(self.number)

    @cached_property
    def native_size(self) -> tuple[int, int] | None:
        return self.document.native_size(self.number)

    @property
    def label(self) -> str:
        if self.markers == "none":
            return ""
        name = f"{self.document.name}, page" if self.markers == "full" else "Page"
        return f"{name} {self.number} of {self.document.n_pages}:\n"

    @cached_property
    def caption(self) -> str:
        layer = self.text().strip() if self.text_layer == "auto" else ""
        return fenced(self.number, layer) if is_usable(layer) else ""

    def draw(self, width: int, height: int) -> NDArray[np.uint8]:
        return self.document.draw(self.number, width, height)

    def text(self) -> str:
        """Its text layer, see `PagedDocument.text`."""
        return self.document.text(self.number)

    def __repr__(self) -> str:
        return f"<Page {self.number} of {self.document!r}>"


def is_usable(layer: str) -> bool:
    """Whether a text layer is text: long enough, and nearly all of it characters that can be printed."""
    if len(layer) < 20:
        return False
    odd = sum(character == "\ufffd" or "\ue000" <= character <= "\uf8ff" for character in layer)
    printable = sum(character.isprintable() or character.isspace() for character in layer)
    return odd < 0.05 * len(layer) and printable > 0.9 * len(layer)


def fenced(number: int, layer: str, n_bytes: int | None = _MAX_LAYER) -> str:
    """The text layer of a page for a prompt, marked as such, so that it is no part of the question. n_bytes: where it
    is cut."""
    if n_bytes is not None:
        layer = layer.encode("utf-8", "replace")[:n_bytes].decode("utf-8", "ignore")
    fence = "```"
    while fence in layer:
        fence += "`"
    return f"\n{fence} text found on page {number}\n{layer}\n{fence}\n"
