"""How a page of the KV cache, or an encoded picture, is written into a file: a head that says what it is, its bytes.

Every byte is under a checksum, and what a head says is compared with what was asked for: a record is what it should be,
whole, or nothing. Knows no folder and no memory.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._core import PAGE_POSITIONS
from .keys import PageContent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"kimi-vl\x01"  # the last byte is the version of this format
MAX_HEAD = 1 << 20
_FRONT = struct.Struct("<8sIIQ")  # magic, CRC-32 of the rest, bytes of the head, bytes of the payload
FRONT_BYTES = _FRONT.size


class Damaged(Exception):
    """A record that is not whole, or not of this format."""


@dataclass(frozen=True)
class Record:
    """head: what the payload is. payload: the rows of a page, or the numbers of a picture."""

    head: dict[str, Any]
    payload: bytes

    def pack(self) -> bytes:
        """The bytes of the file."""
        head = json.dumps(self.head, separators=(",", ":")).encode()
        crc = zlib.crc32(self.payload, zlib.crc32(head, zlib.crc32(struct.pack("<IQ", len(head), len(self.payload)))))
        return _FRONT.pack(MAGIC, crc, len(head), len(self.payload)) + head + self.payload


def sizes(front: bytes) -> tuple[int, int]:
    """(bytes of the head, bytes of the payload), by the first FRONT_BYTES of a record. Raises Damaged."""
    if len(front) < FRONT_BYTES:
        raise Damaged("it is cut off")
    magic, _, n_head, n_payload = _FRONT.unpack_from(front)
    if magic != MAGIC:
        raise Damaged("it is not of this format")
    if n_head > MAX_HEAD:
        raise Damaged(f"its head claims {n_head} bytes")
    return n_head, n_payload


def head_of(data: bytes) -> dict[str, Any]:
    """The head at the beginning of a record, unchecked: for lists. Raises Damaged."""
    n_head, _ = sizes(data)
    try:
        head = json.loads(data[FRONT_BYTES : FRONT_BYTES + n_head])
    except ValueError:
        raise Damaged("its head is not JSON") from None
    if not isinstance(head, dict):
        raise Damaged("its head is not an object")
    return head


def unpack(data: bytes) -> Record:
    """The record that is all of `data`. Raises Damaged."""
    n_head, n_payload = sizes(data)
    if len(data) != FRONT_BYTES + n_head + n_payload:
        raise Damaged(f"it has {len(data)} bytes, expected {FRONT_BYTES + n_head + n_payload}")
    if zlib.crc32(memoryview(data)[FRONT_BYTES:], zlib.crc32(data[12:FRONT_BYTES])) != _FRONT.unpack_from(data)[1]:
        raise Damaged("its checksum is wrong")
    return Record(head_of(data), data[FRONT_BYTES + n_head :])


def smallest(embedding: NDArray[np.float32]) -> NDArray[np.float32] | NDArray[np.float16]:
    """An encoded picture as halves if those are the same numbers, which they are where the tower multiplies bf16."""
    import numpy as np

    with np.errstate(over="ignore"):
        halves = embedding.astype(np.float16)
    return halves if np.array_equal(halves, embedding) else embedding


def picture_record(digest: str, embedding: NDArray[np.float32] | NDArray[np.float16]) -> Record:
    """The record of an encoded picture [n_tokens, hidden_size]."""
    dtype = embedding.dtype.newbyteorder("<")
    head = {"kind": "picture", "digest": digest, "dtype": dtype.str, "shape": list(embedding.shape)}
    return Record(head, embedding.astype(dtype, copy=False).tobytes())


def picture_of(record: Record, digest: str) -> NDArray[np.float32] | NDArray[np.float16]:
    """The encoded picture in a record, read-only. Raises Damaged when it is not that of `digest`."""
    import numpy as np

    head = record.head
    try:
        if (head["kind"], head["digest"]) != ("picture", digest) or head["dtype"] not in ("<f2", "<f4"):
            raise ValueError
        return np.frombuffer(record.payload, head["dtype"]).reshape([int(side) for side in head["shape"]])
    except (KeyError, TypeError, ValueError):
        raise Damaged("it is another picture than its name says") from None


@dataclass(frozen=True)
class StoredPage:
    """A page as it was read. key: by its content. rows: of all layers, of n_rows positions, which may be more than its
    content covers."""

    key: bytes
    content: PageContent
    rows: bytes
    n_rows: int


def page_record(key: bytes, parent: bytes, content: PageContent, rows: bytes, n_rows: int) -> Record:
    """A page: its key and that of the page before it, what stands at its positions, and its rows."""
    head = {
        "kind": "page",
        "key": key.hex(),
        "parent": parent.hex(),
        "rows": n_rows,
        "expanded": content.expanded,
        "tags": base64.b64encode(content.tags).decode(),
        "values": base64.b64encode(content.values).decode(),
        "pictures": list(content.pictures),
    }
    return Record(head, rows)


def page_of(record: Record, parent: bytes) -> StoredPage:
    """The page that follows `parent`. Raises Damaged."""
    head = record.head
    try:
        content = PageContent(
            expanded=bool(head["expanded"]),
            tags=base64.b64decode(head["tags"], validate=True),
            values=base64.b64decode(head["values"], validate=True),
            pictures=tuple(map(str, head["pictures"])),
        )
        n_rows = int(head["rows"])
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise Damaged("its head names no page") from None
    sound = 1 <= len(content) <= n_rows <= PAGE_POSITIONS and len(content.values) == 4 * len(content)
    if head.get("kind") != "page" or not sound:
        raise Damaged("its head names no page")
    key = content.key(parent)
    if head.get("parent") != parent.hex() or key.hex() != head.get("key"):
        raise Damaged("it is another page than its name says")
    return StoredPage(key, content, record.payload, n_rows)
