"""Picture files made by hand, for what Pillow does not write: odd headers, bombs, depths and orientations."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def scene(width: int = 60, height: int = 40, seed: int = 5) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: something with shapes and some noise, the same for the same arguments."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([120 + 80 * np.sin(x / (5 + 3 * c) + c) * np.cos(y / (9 - 2 * c)) for c in range(3)], -1)
    noise = np.random.default_rng(seed).integers(-30, 31, waves.shape)
    return np.clip(np.rint(waves) + noise, 0, 255).astype(np.uint8)


def encoded(image: Image.Image | NDArray[Any], format: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, format, **options)
    return out.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file. rows: each row's bytes behind a zero (no filter). chunks: those before the data."""
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
            *(png_chunk(kind, data) for kind, data in chunks),
            png_chunk(b"IDAT", zlib.compress(rows)),
            png_chunk(b"IEND", b""),
        )
    )


def png_bomb(width: int, height: int) -> bytes:
    """A grey PNG of one colour, whole and small: its pixels compress to nothing."""
    packer = zlib.compressobj(9)
    parts, block = [], bytes(1 + width) * 100
    for _ in range(height // 100):
        parts.append(packer.compress(block))
    parts.append(packer.compress(bytes(1 + width) * (height % 100)) + packer.flush())
    head = png(width, height, 8, 0, b"")
    at = head.index(b"IDAT") - 4
    return head[:at] + png_chunk(b"IDAT", b"".join(parts)) + png_chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    """A small JPEG whose header says another size."""
    data = bytearray(encoded(scene(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_scans(n: int) -> bytes:
    """A progressive JPEG with its last scan n times."""
    data = encoded(scene(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * n + b"\xff\xd9"


def gif_of_frames(n: int) -> bytes:
    """n frames of 1 x 1."""
    frame = b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    return b"GIF89a\1\0\1\0\x80\0\0" + b"\xff\0\0\0\0\0" + frame * n + b";"


def bmp_header(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def webp_header(width: int, height: int) -> bytes:
    body = b"WEBPVP8X" + struct.pack("<IB3x", 10, 0)
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(entries: dict[int, tuple[int, int]], data: bytes = b"") -> bytes:
    """A little-endian TIFF. entries: tag -> (type 3 or 4, value); `data` follows at offset 1024."""
    body = struct.pack("<H", len(entries))
    for tag, (kind, value) in sorted(entries.items()):
        body += struct.pack("<HHII", tag, kind, 1, value)
    return (b"II*\0" + struct.pack("<I", 8) + body + bytes(4)).ljust(1024, b"\0") + data


def grey_tiff(width: int, height: int, more: dict[int, tuple[int, int]] | None = None) -> bytes:
    """An uncompressed 8-bit grey TIFF of mid grey, at most 64 kB of data whatever it claims."""
    data = b"\x80" * min(width * height, 1 << 16)
    entries = {256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 1024)}
    entries |= {277: (3, 1), 278: (4, height), 279: (4, len(data))}
    return tiff(entries | (more or {}), data)


def tiff_with_values(tag: int, kind: int, count: int, order: str = "<") -> bytes:
    """A grey TIFF of 8 x 8 with `count` values in one tag, that all are there."""
    values = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 1024, 277: 1, 278: 8, 279: 64, tag: 1024}
    entries = {key: (4, 1, value) for key, value in values.items()} | {tag: (kind, count, 1024)}
    body = b"".join(struct.pack(order + "HHII", key, *entry) for key, entry in sorted(entries.items()))
    head = b"II*\0" if order == "<" else b"MM\0*"
    head += struct.pack(order + "IH", 8, len(entries)) + body + bytes(4)
    return head.ljust(1024, b"\0") + bytes([0, 0, 0, 1]) * (2 * count)


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """`pixels` as a camera stores them when the EXIF orientation is to turn them back."""
    flipped = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[::-1],  # is shown turned by 90 degrees clockwise
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a.transpose(1, 0, 2)[:, ::-1],  # is shown turned by 90 degrees counter-clockwise
    }
    return np.ascontiguousarray(flipped[orientation](pixels))


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def ico_of(picture: bytes) -> bytes:
    """An icon that holds one file and says nothing true about its size."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(picture), 22) + picture
