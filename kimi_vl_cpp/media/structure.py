"""What the structure of a picture file costs, read before a decoder sees it.

Pillow reads chunks, markers, comments and headers piece by piece, some of it byte by byte, so a file of nothing but
pieces takes minutes. The walks here stop early, cost little for real files, and refuse those. Damage they leave to the
decoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from ..errors import BadImage

MAX_JPEG_SCANS = 100
"""Scans of a progressive JPEG. Real files have about ten; each costs a pass over the whole picture."""

# Far above what real files have.
_MAX_JPEG_SEGMENTS = 10_000
_MAX_PNG_DATA = 100_000  # chunks of pixels: 8 kB each in most files
_MAX_PNG_OTHERS = 500  # some programs write a text for each EXIF tag
_MAX_PNG_PROFILES = 10  # each is decompressed, and one is allowed
_MAX_GIF_BLOCKS = 20_000  # of 255 bytes, in the comments and extensions
_MAX_GIF_DATA = 1_000_000  # of 255 bytes, in the pixels of the first frame
_MAX_PPM_COMMENTS = 100
_MAX_PPM_TEXT = 16 << 20  # bytes of a picture as text: a million a second
_MAX_TIFF_NUMBERS = 1_000_000  # in a tag: strips, or the colours of a palette
_MAX_TIFF_FRACTIONS = 1_000
_MAX_JUNK = 1 << 16  # bytes that mean nothing, or of a text header

# A marker in or between the compressed data of a JPEG: neither an escaped ff, nor padding, nor a restart.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_PPM_COMMENT = re.compile(rb"#[^\r\n]*")


def check_structure(data: bytes, kind: str | None, label: str) -> None:
    """Refuse a file of more pieces than any real one has (image.too_large), or text that was cut (image.truncated).

    kind: the format that the first bytes announce.
    """
    walks = {"JPEG": _check_jpeg, "PNG": _check_png, "GIF": _check_gif, "PPM": _check_ppm, "TIFF": _check_tiff}
    if kind in walks:
        walks[kind](data, label)


def check_jpeg_size(data: bytes, label: str) -> None:
    """Refuse a JPEG too short for the size that it claims (image.truncated): it would be grey almost everywhere."""
    bits = 0
    for kind, _, at in _jpeg_segments(data):
        if kind in (0xC0, 0xC1, 0xC2):
            bits = _least_jpeg_bits(data[at : at + 1024], progressive=kind == 0xC2)
        if kind == 0xDA:
            if bits > 8 * (len(data) - at):
                raise BadImage(
                    f"{label}: a JPEG whose data of {len(data) - at} bytes is too short for the size in its header: "
                    "save or download it again",
                    code="image.truncated",
                )
            return


def _limit(label: str, what: str, n: int, allowed: int) -> None:
    if n > allowed:
        raise BadImage(f"{label}: {what}: {n}, expected at most {allowed}: save it again", code="image.too_large")


def _check_jpeg(data: bytes, label: str) -> None:
    scans = junk = end = 0
    for segments, (kind, start, at) in enumerate(_jpeg_segments(data), 1):
        if not scans:  # fill between the segments of the header is read byte by byte
            junk += start - (end or 2)
            _limit(label, "bytes between the segments of a JPEG", junk, _MAX_JUNK)
        _limit(label, "segments of a JPEG", segments, _MAX_JPEG_SEGMENTS)
        scans += kind == 0xDA
        _limit(label, "scans of a JPEG", scans, MAX_JPEG_SCANS)
        end = _jpeg_segment_end(data, kind, at)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The kind of each marker, where it starts and where what it holds starts, up to the end of the first picture:
    a phone may have put a video behind it."""
    at = 2
    while marker := _JPEG_MARKER.search(data, at):
        kind = data[marker.start() + 1]
        if kind == 0xD9:
            return
        yield kind, marker.start(), marker.end()
        at = _jpeg_segment_end(data, kind, marker.end())


def _jpeg_segment_end(data: bytes, kind: int, at: int) -> int:
    if kind in (0x01, 0xD8):  # all others have a length
        return at
    return at + max(2, int.from_bytes(data[at : at + 2], "big"))


def _least_jpeg_bits(frame: bytes, progressive: bool) -> int:
    """The fewest bits that Huffman codes can spend on a frame: one for the mean of each block of 8 x 8, and unless
    it is progressive another for the block's end. frame: behind the marker. 0 when there is none."""
    height, width, n = int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[5:7], "big"), frame[7:8]
    factors = [(byte >> 4, byte & 15) for byte in frame[9 : 8 + 3 * (n[0] if n else 0) : 3]]
    if not factors or not all(x and y for x, y in factors):
        return 0
    most_x, most_y = (max(pair[i] for pair in factors) for i in (0, 1))
    blocks = sum(-(-width * x // (8 * most_x)) * -(-height * y // (8 * most_y)) for x, y in factors)
    return blocks if progressive else 2 * blocks


def _check_png(data: bytes, label: str) -> None:
    at, pixels, others, profiles = 8, 0, 0, 0
    while at + 8 <= len(data):
        kind = data[at + 4 : at + 8]
        if kind == b"IEND":
            break
        if kind in (b"IDAT", b"fdAT", b"fcTL"):
            pixels += 1
            _limit(label, "data chunks of a PNG", pixels, _MAX_PNG_DATA)
        else:
            others += 1
            _limit(label, "chunks of a PNG beside its data", others, _MAX_PNG_OTHERS)
            profiles += kind == b"iCCP"
            _limit(label, "colour profiles of a PNG", profiles, _MAX_PNG_PROFILES)
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _check_gif(data: bytes, label: str) -> None:
    """Up to the second frame: more is not read."""
    at, junk, blocks, frames = 13 + _gif_table(data[10:11]), 0, 0, 0
    while at < len(data) and (kind := data[at]) != 0x3B:
        if kind == 0x2C and frames:
            break
        if kind == 0x2C:
            frames = 1
            at += 11 + _gif_table(data[at + 9 : at + 10])
            at, n = _skip_gif_blocks(data, at, _MAX_GIF_DATA)
            _limit(label, "blocks of a GIF's frame", n, _MAX_GIF_DATA)
        elif kind == 0x21:
            at, n = _skip_gif_blocks(data, at + 2, _MAX_GIF_BLOCKS)
            blocks += n
            _limit(label, "blocks of a GIF beside its frames", blocks, _MAX_GIF_BLOCKS)
        else:
            at, junk = at + 1, junk + 1
            _limit(label, "bytes between the blocks of a GIF", junk, _MAX_JUNK)


def _gif_table(flags: bytes) -> int:
    """Bytes of the table of colours that `flags` (one byte, or none) announces."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _skip_gif_blocks(data: bytes, at: int, allowed: int) -> tuple[int, int]:
    """Where a row of blocks ends, and how many there were, its end included; at most allowed + 1."""
    n = 0
    while at < len(data) and n <= allowed:
        size = data[at]
        at, n = at + 1 + size, n + 1
        if not size:
            break
    return at, n


def _check_ppm(data: bytes, label: str) -> None:
    """Text is read byte by byte, and its comments are cut out by copying all that follows."""
    plain = data[1:2] in b"123"
    if plain:
        _limit(label, "bytes of a PPM as text", len(data), _MAX_PPM_TEXT)
        _limit(label, "comments of a PPM as text", data.count(b"#"), _MAX_PPM_COMMENTS)
        if data[1:2] in b"23" and not data[-1:].isspace():  # else 25 could be the start of 255
            raise BadImage(
                f"{label}: a PPM as text that ends within a number: save or download it again, or end it with a line",
                code="image.truncated",
            )
    numbers = 3 if data[1:2] in b"14" else 4
    head = _PPM_COMMENT.sub(b"", data[:_MAX_JUNK])
    if len(data) > _MAX_JUNK and len(head.split(None, numbers)) < numbers:
        _limit(label, "bytes of a PPM's header", _MAX_JUNK + 1, _MAX_JUNK)


def _check_tiff(data: bytes, label: str) -> None:
    """The counts of the first page's tags: each number becomes an object. Tags of bytes and text do not."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    large = 0x2B in data[2:4]
    count_size, value_size = (8, 8) if large else (2, 4)
    entry_size = 4 + 2 * value_size
    start = 8 if large else 4
    at = int.from_bytes(data[start : start + value_size], order)
    n = min(int.from_bytes(data[at : at + count_size], order), 65535)
    at += count_size
    for entry in range(at, min(at + n * entry_size, len(data)), entry_size):
        kind = int.from_bytes(data[entry + 2 : entry + 4], order)
        count = int.from_bytes(data[entry + 4 : entry + 4 + value_size], order)
        fractions = kind in (5, 10)
        if kind in (1, 2, 6, 7) or count * (8 if fractions else 2) > len(data):  # such a tag is skipped
            continue
        tag = int.from_bytes(data[entry : entry + 2], order)
        allowed = _MAX_TIFF_FRACTIONS if fractions else _MAX_TIFF_NUMBERS
        _limit(label, f"values of the TIFF tag {tag}", count, allowed)
