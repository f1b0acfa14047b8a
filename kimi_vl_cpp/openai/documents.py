"""The parts of a message that carry a document, PDF or TIFF: `file` of chat completions, `input_file` of Responses."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BadDocument
from ..media.documents import open_document
from ..media.paged import MARKERS, TEXT_LAYERS, Markers, PagedDocument, TextLayer
from ..media.processor import load_data_url
from .fields import about, bad, shown, unsupported

FILE_PARTS = ("file", "input_file")
_TYPES = ("", "application/pdf", "application/x-pdf", "image/tiff", "application/octet-stream", "binary/octet-stream")
_MAX_NAME = 200

OpenDocument = Callable[[bytes, str], PagedDocument]
"""Opens the bytes of a document under the name that messages call it."""


def open_here(data: bytes, name: str) -> PagedDocument:
    """Opens a document in this process."""
    return open_document(data, name=name)


@dataclass(frozen=True)
class FilePart:
    """A document in a message. place: its field. options: the object that has its fields. pages: which of them, None
    for all. markers: what stands before each page in the prompt. text_layer: whether its text stands behind it."""

    place: str
    options: Mapping[str, Any]
    data: bytes
    name: str
    pages: str | None
    markers: Markers
    text_layer: TextLayer


def read_file_part(where: str, part: Mapping[str, Any]) -> FilePart:
    """Reads the part at `where`. Raises BadRequest, BadDocument, BadImage (for base64 that is damaged), Unsupported."""
    place, options = where, part
    if part["type"] == "file":
        place, inner = f"{where}.file", part.get("file")
        if not isinstance(inner, Mapping):
            raise bad(place, f"got {shown(inner)}, expected an object with file_data", "request.file")
        options = inner
    for name, instead in (("file_id", "no file is stored here"), ("file_url", "documents are not fetched")):
        if options.get(name) is not None:
            hint = "send the document itself as file_data, a data:application/pdf;base64,... URL"
            raise unsupported(f"{place}.{name}", f"{instead}: {hint}", f"unsupported.{name}")
    given = _text(place, options, "filename")
    pages = _text(place, options, "pages")
    markers = options.get("markers") or ("full" if given else "short")
    if markers not in MARKERS:
        raise bad(f"{place}.markers", f"got {shown(markers)}, expected one of {', '.join(MARKERS)}", "request.file")
    text_layer = options.get("text_layer") or "never"
    if text_layer not in TEXT_LAYERS:
        problem = f"got {shown(text_layer)}, expected one of {', '.join(TEXT_LAYERS)}"
        raise bad(f"{place}.text_layer", problem, "request.file")
    with about(f"{place}.file_data"):
        data = _data(options.get("file_data"))
    name = "".join(character for character in given or "document" if character.isprintable())[:_MAX_NAME]
    return FilePart(place, options, data, name, pages, markers, text_layer)


def _text(place: str, options: Mapping[str, Any], name: str) -> str | None:
    value = options.get(name)
    if value is not None and not isinstance(value, str):
        raise bad(f"{place}.{name}", f"got {shown(value)}, expected a string", "request.file")
    return value


def _data(value: Any) -> bytes:
    """The bytes of file_data: a data: URL, or base64 alone."""
    if not isinstance(value, str):
        raise BadDocument(f"got {shown(value)}, expected a data:application/pdf;base64,... URL", "request.file_data")
    if value.lstrip()[:5].lower() == "data:":
        kind = value.lstrip()[5:200].partition(",")[0].partition(";")[0].strip().lower()
        if kind not in _TYPES:
            raise BadDocument(
                f"got a file of type {shown(kind)}, expected application/pdf or image/tiff: send text as text parts, "
                "pictures as image_url parts, and print other documents to PDF",
                "document.format",
            )
        return load_data_url(value)
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadDocument(
            f"got {shown(value)}, expected a data:application/pdf;base64,... URL", "request.file_data"
        ) from None
