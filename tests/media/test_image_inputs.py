"""Pictures as people and programs hand them over: damaged, hostile, odd, and right.

Whatever is refused is a `BadImage` with a stable code that says
what to do, prints nothing, changes none of Pillow's settings and leaves the processor usable.
Long, because it is one list.
"""

from __future__ import annotations

import base64
import io
import os
import struct
import subprocess
import sys
import time
import types
import urllib.parse
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import picture_files as files
import pytest
from numpy.typing import NDArray
from picture_files import encoded, png, scene
from PIL import Image, ImageFile

from kimi_vl_cpp.errors import BadImage, OutOfMemory
from kimi_vl_cpp.media.decode import FORMATS, pillow_at_work
from kimi_vl_cpp.media.open import load_data_url, open_image
from kimi_vl_cpp.media.processor import ImageProcessor

PROCESS = ImageProcessor()
SCENE = scene()


def opened(source: Any) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of a picture before scaling and padding."""
    return np.asarray(open_image(source).image)


def notices(source: Any) -> str:
    return "; ".join(PROCESS(source).notices)


@pytest.fixture(autouse=True)
def quiet_and_without_traces(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Holds every test here to: no word on stderr, Pillow and warnings as before."""

    def settings() -> tuple[Any, ...]:
        return (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.showwarning, tuple(warnings.filters))

    before = settings()
    yield
    assert settings() == before
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------------------------------------------------------------
# Refused: name -> (what makes it, in a folder of its own; the code; a part of the message)


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.png")
    return folder / "pipe.png"


def written(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def loop(folder: Path) -> Path:
    (folder / "a.png").symlink_to(folder / "b.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    return folder / "a.png"


def closed_file(folder: Path) -> Image.Image:
    path = written("x.png", encoded(SCENE))(folder)
    with path.open("rb") as file:
        return Image.open(file)


def closed_image(folder: Path) -> Image.Image:
    image = Image.open(written("x.png", encoded(SCENE))(folder))
    image.close()
    return image


def released(folder: Path) -> memoryview:
    view = memoryview(b"abc")
    view.release()
    return view


def data_url(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"/nowhere.png"


class NumberPath(os.PathLike[str]):
    def __fspath__(self) -> str:
        return 5  # type: ignore[return-value]


PNG = encoded(SCENE)
JPEG = encoded(SCENE, "JPEG")

REFUSED_BYTES: dict[str, tuple[bytes, str, str]] = {
    "no bytes": (b"", "image.empty", "save the picture again"),
    "one byte": (b"\x89", "image.format", "known format"),
    "text": (b"a cat on a mat", "image.format", "expected PNG, JPEG"),
    "random bytes": (np.random.default_rng(1).bytes(4096), "image.format", "known format"),
    "zeros": (bytes(4096), "image.format", "known format"),
    "only the signature of a PNG": (b"\x89PNG\r\n\x1a\n", "image.truncated", "starts like PNG"),
    "only the start of a JPEG": (b"\xff\xd8\xff\xe0", "image.truncated", "starts like JPEG"),
    "only the start of a GIF": (b"GIF89a", "image.truncated", "starts like GIF"),
    "text that starts like a BMP": (b"BMW is a car", "image.truncated", "starts like BMP"),
    "PDF": (b"%PDF-1.7\n1 0 obj", "image.format", "a part of type file), or its pages as PNG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image.format", "export it as PNG"),
    "EPS with a preview": (b"\xc5\xd0\xd3\xc6" + bytes(30), "image.format", "PostScript"),
    "Photoshop": (b"8BPS\0\1" + bytes(40), "image.format", "export it as PNG"),
    "FITS": (b"SIMPLE  =                    T".ljust(2880), "image.format", "export it as PNG"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image.format", "render it to PNG"),
    "SVG behind an XML header": (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg/>', "image.format", "render it to PNG"),
    "a web page": (b"<!DOCTYPE html><html>404", "image.format", "save the picture itself"),
    "a zip archive": (b"PK\x03\x04" + bytes(50), "image.format", "unpack"),
    "an office document": (b"PK\x03\x04" + bytes(26) + b"word/document.xml", "image.format", "convert it to PDF"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "image.format", "unpack"),
    "a model file": (b"GGUF\3\0\0\0", "image.format", "model file"),
    "JPEG XL": (b"\xff\x0a" + bytes(20), "image.format", "convert it to PNG"),
    "JPEG 2000": (encoded(SCENE, "JPEG2000"), "image.format", "convert it to PNG"),
    "MP4": (b"\0\0\0\x20ftypisom" + bytes(40), "image.format", "save a frame"),
    "a data URL as bytes": (data_url(PNG).encode(), "image.format", "give it as text"),
    "TGA, which Pillow knows and the list does not": (encoded(SCENE, "TGA"), "image.format", "known format"),
    "PCX, too": (encoded(SCENE, "PCX"), "image.format", "known format"),
    "a DNG": (files.grey_tiff(8, 8, {50706: (4, 0x401)}), "image.format", "export it as JPEG"),
    "a raw file's preview": (files.grey_tiff(8, 8, {254: (4, 1)}), "image.format", "export it as JPEG"),
    "PNG of 0 x 5": (png(0, 5, 8, 0, bytes(5)), "image.truncated", "save or download"),
    "PNG with a wrong checksum": (PNG[:29] + b"abcd" + PNG[33:], "image.truncated", "save or download"),
    "PNG with damaged data": (PNG[:60] + b"\0" * 40 + PNG[100:], "image.truncated", "save or download"),
    "JPEG without its end": (JPEG[:-200], "image.truncated", "truncated"),
    "PNG of 65535 x 65535": (png(65535, 65535, 8, 2, b""), "image.too_large", "more than 128 million pixels"),
    "PNG of 2147483647 x 2147483647": (png(2**31 - 1, 2**31 - 1, 8, 2, b""), "image.too_large", "scale it down"),
    "PNG of 300 megapixels": (png(20000, 15000, 8, 0, b""), "image.too_large", "scale it down"),
    "PNG of 150 megapixels": (png(15000, 10000, 8, 0, b""), "image.too_large", "at most 128 million"),
    "ICO with a PNG of 30000 x 30000 in it": (files.ico_of(png(30000, 30000, 8, 2, b"")), "image.too_large", "scale"),
    "JPEG that claims 65500 x 65500": (files.jpeg_claiming(65500, 65500), "image.too_large", "scale it down"),
    "JPEG that claims 12000 x 12000": (files.jpeg_claiming(12000, 12000), "image.too_large", "12000 x 12000"),
    "GIF of 65535 x 65535": (b"GIF89a" + b"\xff" * 4 + files.gif_of_frames(1)[10:], "image.too_large", "scale"),
    "GIF with a frame outside": (
        files.gif_of_frames(1)[:24] + b"\xff\xff\xff\xff" + files.gif_of_frames(1)[28:],
        "image.too_large",
        "scale",
    ),
    "BMP of 30000 x 30000": (files.bmp_header(30000, 30000), "image.too_large", "scale it down"),
    "TIFF of 40000 x 40000": (files.grey_tiff(40000, 40000), "image.too_large", "scale it down"),
    "TIFF with tiles of 65520 x 65520": (
        files.grey_tiff(16, 16, {322: (4, 65520), 323: (4, 65520), 324: (4, 1024), 325: (4, 256)}),
        "image.too_large",
        "65520 x 65520",
    ),
    "WebP of 16383 x 16383": (files.webp_header(16383, 16383), "image.too_large", "scale it down"),
    "PPM of 99999 x 99999": (b"P6 99999 99999 255\n" + bytes(99), "image.too_large", "scale it down"),
    "JPEG that claims 600 x 400": (files.jpeg_claiming(600, 400), "image.truncated", "too short for the size"),
    "JPEG that claims 11000 x 11000": (files.jpeg_claiming(11000, 11000), "image.truncated", "too short for the size"),
    "PPM as text that ends in a number": (b"P3 1 1 255\n1 2 3", "image.truncated", "within a number"),
    "PNG with an iTXt bomb of 64 MB": (
        png(1, 1, 8, 0, b"\0\0", (b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(64 << 20)))),
        "image.truncated",
        "save or download",
    ),
    "TIFF with 65535 tags": (
        b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 256, 4, 1, 8) * 65535 + bytes(4),
        "image.truncated",
        "starts like TIFF",
    ),
    "progressive JPEG of 10,000 scans": (
        files.jpeg_of_scans(10_000),
        "image.too_large",
        "JPEG: 101, expected at most 100",
    ),
    "TIFF of a float that is no number": (
        encoded(Image.fromarray(np.array([[0, np.nan], [1, 2]], np.float32)), "TIFF"),
        "image.not_finite",
        "8-bit PNG",
    ),
    "TIFF of an infinite float": (
        encoded(Image.fromarray(np.array([[0, np.inf], [1, 2]], np.float32)), "TIFF"),
        "image.not_finite",
        "8-bit PNG",
    ),
    "PNG with 65 MB of text": (
        png(1, 1, 8, 0, b"\0\0", *[(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20)))] * 66),
        "image.truncated",
        "save or download",
    ),
    "TIFF of a thousand samples": (
        files.grey_tiff(4, 4, {277: (3, 1000)}),
        "image.truncated",
        "damaged",
    ),
}

N = 2_000_000  # pieces or bytes of a flood: seconds or minutes, if a decoder were to see them
ONE = png(1, 1, 8, 0, b"\0\0")
GIF = files.gif_of_frames(1)  # its first frame begins at 19

FLOODS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a JPEG with fill in its header": (lambda: JPEG[:2] + b"\xff" * N + JPEG[2:], "bytes between the segments"),
    "a JPEG with escapes in its header": (lambda: JPEG[:2] + b"\xff\0" * N + JPEG[2:], "bytes between the segments"),
    "a JPEG with restarts in its header": (lambda: JPEG[:2] + b"\xff\xd0" * N + JPEG[2:], "bytes between the segments"),
    "a JPEG of comments": (lambda: JPEG[:2] + b"\xff\xfe\0\2" * N + JPEG[2:], "segments of a JPEG"),
    "a JPEG of starts": (lambda: b"\xff\xd8" * N + JPEG, "segments of a JPEG"),
    "a PNG of unknown chunks": (lambda: ONE[:33] + files.png_chunk(b"abCd", b"") * N + ONE[33:], "chunks of a PNG"),
    "a PNG of chunks behind its data": (
        lambda: ONE[:-12] + files.png_chunk(b"abCd", b"") * N + ONE[-12:],
        "chunks of a PNG beside its data",
    ),
    "a PNG of empty data chunks": (
        lambda: ONE[:33] + files.png_chunk(b"IDAT", b"") * N + ONE[33:],
        "data chunks of a PNG",
    ),
    "a PNG of colour profiles": (
        lambda: png(1, 1, 8, 0, b"\0\0", *[(b"iCCP", b"k\0\0" + zlib.compress(bytes(1 << 20)))] * 400),
        "colour profiles of a PNG",
    ),
    "a GIF with junk before its frame": (lambda: GIF[:19] + bytes(N) + GIF[19:], "bytes between the blocks"),
    "a GIF with junk behind its frame": (lambda: GIF[:-1] + bytes(N), "bytes between the blocks"),
    "a GIF of extensions": (lambda: GIF[:19] + b"!\xf9\4\0\0\0\0\0" * N + GIF[19:], "beside its frames"),
    "a GIF with a comment in bytes": (lambda: GIF[:19] + b"!\xfe" + b"\1a" * N + b"\0" + GIF[19:], "beside its frames"),
    "a GIF with pixels in bytes": (lambda: GIF[:-2] + b"\1\5" * N + b"\0;", "blocks of a GIF's frame"),
    "a PPM with a long comment": (lambda: b"P6\n#" + b"a" * N, "bytes of a PPM's header"),
    "a PPM of spaces": (lambda: b"P6" + b" " * N + b"1 1 255\n123", "bytes of a PPM's header"),
    "a PPM as text of comments": (lambda: b"P3 2 2 255\n" + b"#\n" * N + b"1 " * 12, "comments of a PPM"),
    "a PPM as text of 20 MB": (lambda: b"P3 9999 999 255\n" + b"1 " * (10 << 20), "bytes of a PPM as text"),
    "a TIFF of fractions": (lambda: files.tiff_with_values(282, 5, N), "values of the TIFF tag 282"),
    "a TIFF of strips": (lambda: files.tiff_with_values(273, 4, N), "values of the TIFF tag 273"),
    "a TIFF of strips, big-endian": (lambda: files.tiff_with_values(273, 4, N, ">"), "values of the TIFF tag 273"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_files_of_nothing_but_pieces_are_refused(name: str) -> None:
    make, text = FLOODS[name]
    check_refusal(make(), "image.too_large", text)


def test_pieces_of_ordinary_number_pass() -> None:
    comment = b"\xff\xfe\0\7hello"
    np.testing.assert_array_equal(opened(JPEG[:2] + comment * 300 + b"\xff" * 99 + JPEG[2:]), opened(JPEG))
    texts = files.png_chunk(b"tEXt", b"k\0v") * 300
    np.testing.assert_array_equal(opened(PNG[:33] + texts + PNG[33:]), SCENE)
    np.testing.assert_array_equal(opened(GIF[:19] + b"!\xfe" + b"\5hello" * 999 + b"\0" + GIF[19:]), [[[255, 0, 0]]])
    plain = b"P3 # of two pixels\n2 1\n255 1 2 3\n4 5 6\n"
    np.testing.assert_array_equal(opened(plain), [[[1, 2, 3], [4, 5, 6]]])


@pytest.mark.parametrize(
    "options", [{}, {"optimize": True}, {"progressive": True}, {"optimize": True, "subsampling": 0}]
)
@pytest.mark.parametrize("size", [(1, 1), (17, 9), (1000, 800)])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_the_smallest_jpegs_that_there_can_be_pass(mode: str, size: tuple[int, int], options: dict[str, Any]) -> None:
    data = encoded(Image.new(mode, size, 0), "JPEG", **options)  # of one colour: near the fewest bits for a block
    assert opened(data).shape == (size[1], size[0], 3)


def test_exif_of_many_megabytes_is_not_read() -> None:
    exif = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x112, 3, N, 26) + bytes(4) + b"\1\0" * (2 * N)
    data = PNG[:33] + files.png_chunk(b"eXIf", exif) + PNG[33:]
    np.testing.assert_array_equal(opened(data), SCENE)
    assert "EXIF data of more than 4 MiB" in notices(data)


REFUSED: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no such file": (lambda folder: folder / "cat.png", "image.not_found", "check the path"),
    "a file as a folder": (lambda folder: written("a", b"")(folder) / "b.png", "image.not_found", "check the path"),
    "a folder": (lambda folder: folder, "image.not_a_file", "name the picture in it"),
    "an empty path": (lambda folder: "", "image.not_found", "check the path"),
    "a named pipe": (fifo, "image.not_a_file", "regular file"),
    "/dev/zero": (lambda folder: "/dev/zero", "image.not_a_file", "regular file"),
    "/dev/null": (lambda folder: "/dev/null", "image.not_a_file", "regular file"),
    "an empty file": (written("e.png", b""), "image.empty", "e.png"),
    "a file of text": (written("e.png", b"hello"), "image.format", "e.png"),
    "a zero character in the path": (lambda folder: "a\0b.png", "image.not_found", "no file can have this name"),
    "a lone surrogate in the path": (lambda folder: "a\ud800.png", "image.not_found", "no"),
    "a path of 100,000 characters": (lambda folder: "a" * 100_000, "image.not_found", "data:image/png;base64"),
    "a loop of links": (loop, "image.not_found", "loop"),
    "an address": (lambda folder: "https://example.com/cat.png", "image.url", "download"),
    "a file address": (lambda folder: "FILE:///etc/passwd", "image.url", "give its path"),
    "a path of bytes": (lambda folder: BytesPath(), "image.type", "text"),
    "a path of a number": (lambda folder: NumberPath(), "image.type", "give it as text"),
    "an address behind a space": (lambda folder: " https://example.com/cat.png", "image.url", "download"),
    "nothing": (lambda folder: None, "image.type", "NoneType"),
    "a number": (lambda folder: 5, "image.type", "expected a path"),
    "a list": (lambda folder: [[1, 2, 3]], "image.type", "expected a path"),
    "an open file": (lambda folder: io.BytesIO(PNG), "image.type", "read()"),
    "a released view": (released, "image.closed", "while it is valid"),
    "an image whose file is closed": (closed_file, "image.closed", "while it is open"),
    "an image that is closed": (closed_image, "image.closed", "while it is open"),
    "a lazy image of a truncated file": (
        lambda folder: Image.open(io.BytesIO(JPEG[:-200])),
        "image.truncated",
        "save or download",
    ),
    "an image of 0 x 5": (lambda folder: Image.new("RGB", (0, 5)), "image.empty", "0 x 5"),
    "an image with a float that is no number": (
        lambda folder: Image.fromarray(np.full((2, 2), np.nan, np.float32)),
        "image.not_finite",
        "8-bit",
    ),
    "an array of floats": (lambda folder: np.zeros((9, 9, 3), np.float32), "image.array_dtype", "0..255"),
    "an array of NaN": (lambda folder: np.full((9, 9, 3), np.nan), "image.array_dtype", "uint8"),
    "an array of int64": (lambda folder: np.zeros((9, 9, 3), np.int64), "image.array_dtype", "int64"),
    "an array of int8": (lambda folder: np.zeros((9, 9, 3), np.int8), "image.array_dtype", "int8"),
    "an array of bool": (lambda folder: np.zeros((9, 9), np.bool_), "image.array_dtype", "np.uint8(255)"),
    "an array of objects": (lambda folder: np.array([[None]]), "image.array_dtype", "object"),
    "an array of strings": (lambda folder: np.array(["cat.png"]), "image.array_dtype", "expected uint8"),
    "channels first": (lambda folder: np.zeros((3, 9, 8), np.uint8), "image.array_shape", "transpose(1, 2, 0)"),
    "a batch": (lambda folder: np.zeros((2, 9, 9, 3), np.uint8), "image.array_shape", "one picture at a time"),
    "two channels": (lambda folder: np.zeros((9, 9, 2), np.uint8), "image.array_shape", "[9, 9, 2]"),
    "five channels": (lambda folder: np.zeros((9, 9, 5), np.uint8), "image.array_shape", "[9, 9, 5]"),
    "a row": (lambda folder: np.zeros(9, np.uint8), "image.array_shape", "[H, W, 3]"),
    "a scalar": (lambda folder: np.array(9, np.uint8), "image.array_shape", "[]"),
    "an array without rows": (lambda folder: np.zeros((0, 9, 3), np.uint8), "image.empty", "nothing to see"),
    "an array without columns": (lambda folder: np.zeros((9, 0), np.uint8), "image.empty", "nothing to see"),
    "an array of 2^33 elements": (
        lambda folder: np.broadcast_to(np.zeros(3, np.uint8), (1 << 16, 1 << 16, 3)),
        "image.too_large",
        "65536 x 65536",
    ),
    "a bytearray of 300 MB": (lambda folder: memoryview(np.empty(300 << 20, np.uint8)), "image.too_large", "smaller"),
    "a file of 1 TB": (lambda folder: sparse(folder / "big.png", 1 << 40), "image.too_large", "big.png"),
    "a data URL without a comma": (lambda folder: "data:image/png;base64", "image.data_url", "comma"),
    "a data URL with a head of 1 MB": (lambda folder: "data:" + "a" * (1 << 20), "image.data_url", "comma"),
    "base64 without its head": (
        lambda folder: base64.b64encode(PNG).decode(),
        "image.not_found",
        "put data:image/png;base64, in front",
    ),
    "a data URL of text": (lambda folder: "data:text/plain;base64,aGk=", "image.data_url", "text/plain"),
    "a data URL of HTML": (lambda folder: "data:text/html,<p>", "image.data_url", "image/png"),
    "a data URL of SVG": (lambda folder: data_url(b"<svg/>", "image/svg+xml"), "image.format", "render"),
    "a data URL of nothing": (lambda folder: "data:image/png;base64,", "image.empty", "empty"),
    "a data URL of bad base64": (lambda folder: "data:image/png;base64,@@@@", "image.data_url", "encode it again"),
    "a data URL cut in its base64": (lambda folder: "data:image/png;base64,AAAAA", "image.data_url", "damaged"),
    "a data URL cut in its picture": (lambda folder: data_url(JPEG[:-200]), "image.truncated", "data URL"),
    "a data URL beyond ASCII": (lambda folder: "data:image/png;base64,ÄÖÜ", "image.data_url", "damaged"),
    "a data URL with a lone surrogate": (lambda folder: "data:image/png,\ud800", "image.format", "data URL"),
    "a data URL with bad escapes": (lambda folder: "data:image/png;base64,%zz%2", "image.data_url", "damaged"),
    "a data URL in a data URL": (lambda folder: data_url(data_url(PNG).encode()), "image.format", "give it as text"),
    "a data URL of 30 MB": (lambda folder: "data:image/png;base64," + "A" * (30 << 20), "image.format", "data URL"),
    "a data URL of 100 MB": (lambda folder: "data:image/png;base64," + "A" * (100 << 20), "image.too_large", "URL"),
    "a data URL of spaces": (lambda folder: "data:image/png;base64," + "A " * (8 << 20), "image.format", "URL"),
    "a data URL of 30 MB of escapes": (lambda folder: "data:image/png," + "%41" * (10 << 20), "image.too_large", "use"),
    "a data URL of percent signs": (lambda folder: "data:image/png," + "%" * (1 << 20), "image.format", "data URL"),
}


def check_refusal(source: Any, code: str, text: str) -> None:
    with pytest.raises(BadImage) as caught:
        PROCESS(source)
    assert caught.value.code == code, str(caught.value)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.__suppress_context__ or caught.value.__context__ is None  # no traceback of a decoder
    assert PROCESS(SCENE).n_tokens == 6


@pytest.mark.parametrize("name", REFUSED_BYTES)
def test_bytes_are_refused(name: str) -> None:
    check_refusal(*REFUSED_BYTES[name])


@pytest.mark.parametrize("name", REFUSED)
def test_inputs_are_refused(name: str, tmp_path: Path) -> None:
    make, code, text = REFUSED[name]
    if "1 TB" in name and os.name == "nt":
        pytest.skip("no sparse files here")
    check_refusal(make(tmp_path), code, text)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REFUSED_BYTES, *REFUSED, *FLOODS])
def test_a_refusal_takes_a_moment(name: str, tmp_path: Path) -> None:
    if name in REFUSED_BYTES:
        source: Any = REFUSED_BYTES[name][0]
    else:
        source = REFUSED[name][0](tmp_path) if name in REFUSED else FLOODS[name][0]()
    started = time.thread_time()
    with pytest.raises(BadImage):
        PROCESS(source)
    assert time.thread_time() - started < 10  # 1 s at most; without the limits seconds to minutes


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written("x.png", PNG)(tmp_path)
    path.chmod(0)

    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        if os.geteuid() == 0:  # who may read everything
            patch.setattr(os, "open", refuse)
        check_refusal(path, "image.not_readable", "permission")


def test_memory_that_runs_out_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(OutOfMemory, match="scale it down") as caught:
        patch.setattr(ImageFile.ImageFile, "load", fail)
        PROCESS(PNG)
    assert caught.value.code == "memory.image"


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs the peak memory that Linux tells")
def test_bombs_take_no_memory() -> None:
    """In a process of its own, whose peak says what refusing all of them took: 64 MiB are allowed for a bad file."""
    code = """
import picture_files as files
from kimi_vl_cpp.errors import BadImage
from kimi_vl_cpp.media.processor import ImageProcessor
bombs = [files.png_bomb(20000, 15000), files.png(65535, 65535, 8, 2, b""), files.jpeg_claiming(65500, 65500),
         files.jpeg_claiming(12000, 12000), files.webp_header(16383, 16383), files.bmp_header(30000, 30000),
         files.jpeg_of_scans(10000), files.grey_tiff(40000, 40000), b"P6 99999 99999 255\\n",
         files.gif_of_frames(10000), files.tiff_with_values(282, 5, 2_000_000),
         files.grey_tiff(16, 16, {322: (4, 65520), 323: (4, 65520), 324: (4, 1024), 325: (4, 256)})]


def peak_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))


processor = ImageProcessor()
processor(files.encoded(files.scene(), "PNG"))
before = peak_kib()
refused = 0
for bomb in bombs:
    try:
        processor(bomb)
    except BadImage:
        refused += 1
after = peak_kib()
assert refused == len(bombs) - 1, refused  # the GIF is no bomb: its first frame is small
assert after - before < 64 << 10, (before, after)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Truncated: a picture is whole or refused, never half grey

WHOLE = {
    "PNG": PNG,
    "PNG, 8-bit palette": encoded(Image.fromarray(SCENE).quantize(64)),
    "JPEG": JPEG,
    "JPEG, progressive": encoded(SCENE, "JPEG", progressive=True),
    "WebP": encoded(SCENE, "WEBP"),
    "WebP, lossless": encoded(SCENE, "WEBP", lossless=True),
    "GIF": encoded(SCENE, "GIF"),
    "BMP": encoded(SCENE, "BMP"),
    "TIFF": encoded(SCENE, "TIFF"),
    "TIFF, LZW": encoded(SCENE, "TIFF", compression="tiff_lzw"),
    "TIFF, deflate": encoded(SCENE, "TIFF", compression="tiff_deflate"),
    "PPM": encoded(SCENE, "PPM"),
    "PPM as text": b"P3 60 40 255\n" + b" ".join(b"%d" % value for value in SCENE.ravel()) + b"\n",
    "ICO": encoded(Image.fromarray(SCENE).resize((32, 32)), "ICO"),
}
if "AVIF" in Image.SAVE:
    WHOLE["AVIF"] = encoded(SCENE, "AVIF")


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_files_are_refused_at_64_points(name: str) -> None:
    data = WHOLE[name]
    whole, refused = opened(data), 0
    for point in range(64):
        cut = data[: len(data) * point // 64]
        try:
            pixels = opened(cut)
        except BadImage as error:
            refused += 1
            assert error.code in ("image.empty", "image.format", "image.truncated")
            assert error.code == "image.truncated" or len(cut) < 16
        else:  # only what follows the pixels was cut
            np.testing.assert_array_equal(pixels, whole)
    assert refused >= 32


def heic(size: int = 400) -> bytes:
    return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(size)


def test_truncated_heic_is_refused_at_64_points() -> None:
    for point in range(1, 64):
        with pytest.raises(BadImage):
            PROCESS(heic()[: 424 * point // 64])


def test_heic_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    check_refusal(heic(), "image.format", "pip install pillow-heif")


def test_heic_is_opened_once_its_plugin_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = types.ModuleType("pillow_heif")
    monkeypatch.setattr(plugin, "HeifImageFile", lambda file: Image.fromarray(SCENE), raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    np.testing.assert_array_equal(opened(heic()), SCENE)


def test_a_program_that_accepts_truncated_pictures_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        assert "LOAD_TRUNCATED_IMAGES" in notices(JPEG)
    assert notices(JPEG) == ""


# ---------------------------------------------------------------------------------------------------------------------
# Accepted: doors


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (13, 13), (27, 29), (28, 28)])
@pytest.mark.parametrize("format", ["PNG", "BMP"])
def test_small_and_thin_pictures(size: tuple[int, int], format: str) -> None:
    pixels = scene(*size)
    np.testing.assert_array_equal(opened(encoded(pixels, format)), pixels)
    assert PROCESS(pixels).n_tokens == -(-size[0] // 28) * -(-size[1] // 28)


DOORS: dict[str, Callable[[Path], Any]] = {
    "a path": lambda folder: written("x.png", PNG)(folder),
    "a path as text": lambda folder: str(written("x.png", PNG)(folder)),
    "a path with another suffix": lambda folder: written("x.jpeg", PNG)(folder),
    "a path with odd characters": lambda folder: written("ä b'\n%20🐈.png", PNG)(folder),
    "bytes": lambda folder: PNG,
    "a bytearray": lambda folder: bytearray(PNG),
    "a memoryview": lambda folder: memoryview(PNG),
    "a strided memoryview": lambda folder: memoryview(bytes(b for byte in PNG for b in (byte, 0)))[::2],
    "a PIL image": lambda folder: Image.fromarray(SCENE),
    "a lazy PIL image": lambda folder: Image.open(io.BytesIO(PNG)),
    "a data URL": lambda folder: data_url(PNG),
    "a data URL in capitals": lambda folder: data_url(PNG).replace("data:image/png;base64", "DATA:IMAGE/PNG;BASE64"),
    "a data URL without a type": lambda folder: data_url(PNG, ""),
    "a data URL of another type": lambda folder: data_url(PNG, "image/webp"),
    "a data URL with a parameter": lambda folder: data_url(PNG, "image/png;name=a.png"),
    "a data URL without padding": lambda folder: data_url(PNG).rstrip("="),
    "a wrapped data URL": lambda folder: data_url(PNG)[:99] + "\r\n \t" + data_url(PNG)[99:],
    "a data URL in the URL alphabet": lambda folder: "data:image/png;base64," + base64.urlsafe_b64encode(PNG).decode(),
    "a data URL of escaped base64": lambda folder: (
        "data:image/png;base64," + urllib.parse.quote(base64.b64encode(PNG).decode(), safe="")
    ),
    "a data URL of an unknown type": lambda folder: data_url(PNG, "application/octet-stream"),
    "a data URL behind white space": lambda folder: " \n" + data_url(PNG),
    "a data URL of escapes": lambda folder: "data:image/png," + urllib.parse.quote(PNG, safe=""),
    "an array": lambda folder: SCENE,
    "an array in Fortran's order": lambda folder: np.asfortranarray(SCENE),
    "an array with negative strides": lambda folder: SCENE[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
    "every other pixel of an array": lambda folder: SCENE.repeat(2, 0).repeat(2, 1)[::2, ::2],
    "an opaque RGBA array": lambda folder: np.dstack([SCENE, np.full(SCENE.shape[:2], 255, np.uint8)]),
}


@pytest.mark.parametrize("name", DOORS)
def test_the_picture_is_the_same_through_every_door(name: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(opened(DOORS[name](tmp_path)), SCENE)


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written("x.png", PNG)(tmp_path)
    np.testing.assert_array_equal(opened("~/x.png"), SCENE)


def test_a_link_is_followed(tmp_path: Path) -> None:
    written("x.png", PNG)(tmp_path)
    (tmp_path / "y.png").symlink_to("x.png")
    np.testing.assert_array_equal(opened(tmp_path / "y.png"), SCENE)


def test_escapes_are_never_cut_where_a_long_data_url_is_read_in_pieces() -> None:
    data = bytes(range(256)) * 300
    for shift in range(3):
        body = "x" * shift + "".join(f"%{byte:02x}" for byte in data)
        assert load_data_url("data:," + body) == b"x" * shift + data


def test_a_read_only_array_is_fine_and_no_array_is_written_to() -> None:
    pixels = SCENE.copy()
    pixels.setflags(write=False)
    assert PROCESS(pixels).digest == PROCESS(SCENE).digest
    writable = SCENE.copy()
    out = PROCESS(writable).pixels
    writable[:] = 0
    np.testing.assert_array_equal(out[:40, :60], SCENE)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1)])
def test_grey_arrays(shape: tuple[int, ...]) -> None:
    grey = np.arange(600, dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(opened(grey), np.repeat(grey.reshape(20, 30, 1), 3, 2))


def test_the_pixel_limit_can_be_raised_and_lowered() -> None:
    with pytest.raises(BadImage, match=r"60 x 40 pixels, expected at most 0.0023 million: scale it down first"):
        ImageProcessor(max_pixels=2300)(PNG)
    assert ImageProcessor(max_pixels=2400)(PNG).n_tokens == 6
    with pytest.raises(BadImage):
        ImageProcessor(max_pixels=2399)(SCENE)
    with pytest.raises(BadImage):
        ImageProcessor(max_pixels=2399)(Image.fromarray(SCENE))


# ---------------------------------------------------------------------------------------------------------------------
# Accepted: PIL images stay as they are


def test_a_callers_image_is_not_changed() -> None:
    plain, clear = Image.fromarray(SCENE), Image.new("RGBA", (50, 50), (9, 9, 9, 9))
    for image in (plain, plain.convert("P"), plain.convert("F"), clear):
        before, info, mode = image.tobytes(), dict(image.info), image.mode
        ImageProcessor(in_token_limit=4)(image)
        assert (image.tobytes(), image.info, image.mode) == (before, info, mode)


def test_a_callers_turned_image_is_not_changed() -> None:
    image = Image.open(io.BytesIO(encoded(files.turned(SCENE, 6), exif=files.exif_of(6))))
    np.testing.assert_array_equal(opened(image), SCENE)
    assert image.size == (40, 60) and image.getexif()[0x0112] == 6
    np.testing.assert_array_equal(opened(image), SCENE)


def test_a_callers_animation_stays_at_its_frame() -> None:
    image = Image.open(io.BytesIO(animated("GIF")))
    image.seek(1)
    np.testing.assert_array_equal(opened(image)[0, 0], [0, 255, 0])
    assert image.tell() == 1
    assert "one frame of an animation" in notices(image)


# ---------------------------------------------------------------------------------------------------------------------
# Accepted: orientation


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_exif_orientations_give_the_same_upright_pixels(orientation: int, format: str) -> None:
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    data = encoded(files.turned(SCENE, orientation), format, exif=files.exif_of(orientation), **options)
    processed = PROCESS(data)
    np.testing.assert_array_equal(processed.pixels[:40, :60], SCENE)
    assert processed.original_size == (60, 40) and processed.notices == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_of_jpegs(orientation: int) -> None:
    data = encoded(files.turned(SCENE, orientation), "JPEG", exif=files.exif_of(orientation), quality=95)
    decoded = np.asarray(Image.open(io.BytesIO(data)))
    pixels = opened(data)
    assert pixels.shape == SCENE.shape
    np.testing.assert_array_equal(files.turned(pixels, orientation), decoded)


def test_the_picture_is_turned_before_it_is_scaled() -> None:
    pixels = scene(300, 100)
    data = encoded(files.turned(pixels, 8), exif=files.exif_of(8))
    assert ImageProcessor(in_token_limit=64)(data).digest == ImageProcessor(in_token_limit=64)(pixels).digest


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    np.testing.assert_array_equal(opened(encoded(SCENE, exif=files.exif_of(orientation))), SCENE)


BAD_EXIF = {
    "no TIFF header": b"garbage" * 9,
    "empty": b"",
    "an offset outside": b"II*\0\xff\xff\xff\x7f",
    "a directory of 65535": b"II*\0\x08\0\0\0\xff\xff" + bytes(40),
    "an orientation of text": b"II*\0\x08\0\0\0\1\0\x12\1\2\0\x04\0\0\0abc\0" + bytes(4),
    "an orientation of no values": b"II*\0\x08\0\0\0\1\0\x12\1\3\0\0\0\0\0" + bytes(8),
    "values outside": b"II*\0\x08\0\0\0\1\0\x12\1\3\0\xff\xff\xff\x7f\xff\xff\xff\x7f" + bytes(4),
}


@pytest.mark.parametrize("name", BAD_EXIF)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_corrupt_exif_does_not_matter(name: str, format: str) -> None:
    data = BAD_EXIF[name]
    plain = encoded(SCENE, format)
    np.testing.assert_array_equal(opened(encoded(SCENE, format, exif=b"Exif\0\0" + data)), opened(plain))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_corrupt_exif_is_one_notice(format: str) -> None:
    data = encoded(SCENE, format, exif=b"Exif\0\0" + BAD_EXIF["a directory of 65535"])
    (notice,) = PROCESS(data).notices
    assert "Corrupt EXIF" in notice


# ---------------------------------------------------------------------------------------------------------------------
# Accepted: transparency

HALF = np.dstack([SCENE, np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))])


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    opaque = Image.fromarray(SCENE).convert("RGBA")
    assert PROCESS(encoded(opaque)).digest == PROCESS(SCENE).digest
    assert PROCESS(encoded(opaque)).notices == []


@pytest.mark.parametrize("source", [HALF, Image.fromarray(HALF), encoded(HALF)], ids=["array", "PIL", "PNG"])
def test_transparency_is_seen_on_white(source: Any) -> None:
    alpha = HALF[:, :, 3:] / 255
    expected = HALF[:, :, :3] * alpha + 255 * (1 - alpha)
    assert np.abs(opened(source) - expected).max() <= 1  # rounding of 8-bit blending
    assert (opened(source)[:, 0] == 255).all() and (opened(source)[:, -1] == SCENE[:, -1]).all()
    assert "white" in notices(source)


def test_black_text_on_nothing_stays_readable() -> None:
    page = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    page.paste((0, 0, 0, 255), (10, 10, 20, 20))
    pixels = opened(encoded(page))
    assert (pixels[12, 12] == 0).all() and (pixels[30, 30] == 255).all()


@pytest.mark.parametrize("mode", ["LA", "La", "RGBa", "PA"])
def test_other_modes_with_alpha(mode: str) -> None:
    straight = Image.new("RGBA", (4, 4), (100, 100, 100, 255))
    straight.putpixel((0, 0), (0, 0, 0, 0))
    image = straight.convert("P").convert("PA") if mode == "PA" else straight.convert(mode if mode[-1] == "A" else "LA")
    if mode == "RGBa":
        image = straight.convert("RGBa")
    elif mode == "La":
        image = image.convert("La")
    elif mode == "PA":
        image.putalpha(straight.getchannel("A"))
    pixels = opened(image)
    assert image.mode == mode
    assert (pixels[0, 0] == 255).all() and np.abs(pixels[2, 2].astype(int) - 100).max() <= 3  # the web palette


TRANSPARENT_PNG = {
    "palette with tRNS": (png(2, 1, 8, 3, b"\0\0\1", (b"PLTE", b"\x09\x08\x07\1\2\3"), (b"tRNS", b"\0")), [1, 2, 3]),
    "RGB with tRNS": (png(2, 1, 8, 2, b"\0\0\0\5\1\2\3", (b"tRNS", b"\0\0\0\0\0\5")), [1, 2, 3]),
    "grey with tRNS": (png(2, 1, 8, 0, b"\0\7\x46", (b"tRNS", b"\0\7")), [70, 70, 70]),
    "grey and alpha": (png(2, 1, 8, 4, b"\0\7\0\x46\xff"), [70, 70, 70]),
    "16-bit RGBA": (png(2, 1, 16, 6, b"\0" + bytes(8) + b"\1\0\2\0\3\0\xff\xff"), [1, 2, 3]),
}


@pytest.mark.parametrize("name", TRANSPARENT_PNG)
def test_transparency_of_png(name: str) -> None:
    data, opaque = TRANSPARENT_PNG[name]
    pixels = opened(data)
    np.testing.assert_array_equal(pixels[0], [[255, 255, 255], opaque])
    assert "white" in notices(data)


def test_a_transparent_colour_of_gif() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    data = encoded(image, "GIF", transparency=0)
    np.testing.assert_array_equal(opened(data)[0], [[255, 255, 255], [40, 50, 60]])


# ---------------------------------------------------------------------------------------------------------------------
# Accepted: palettes, depths, colour spaces


def test_palettes() -> None:
    palette = Image.fromarray(SCENE).quantize(256)
    for format in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(opened(encoded(palette, format)), np.asarray(palette.convert("RGB")), format)


def test_an_index_beyond_the_palette_is_black() -> None:
    data = png(2, 1, 8, 3, b"\0\1\xc8", (b"PLTE", bytes([9, 8, 7, 1, 2, 3])))
    np.testing.assert_array_equal(opened(data)[0], [[1, 2, 3], [0, 0, 0]])


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "GIF", "PPM"])
def test_two_valued_pictures(format: str) -> None:
    image = Image.fromarray(SCENE).convert("1")
    np.testing.assert_array_equal(opened(encoded(image, format)), np.asarray(image.convert("RGB")))


RAMP = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "PIL", "big-endian PIL", "PIL of 32 bits"])
def test_16_bit_greys_are_scaled_not_clipped(format: str) -> None:
    source: Any = Image.fromarray(RAMP)
    if format == "PIL of 32 bits":
        source = Image.fromarray(RAMP.astype(np.int32))
    elif format == "big-endian PIL":
        source = Image.frombytes("I;16B", (40, 30), RAMP.astype(">u2").tobytes())
    elif format == "PPM":
        source = b"P5 40 30 65535\n" + RAMP.astype(">u2").tobytes()
    elif format != "PIL":
        source = encoded(source, format)
    assert np.abs(opened(source)[:, :, 0] - RAMP / 257.0).max() <= 0.5  # v * 255 / 65535, rounded


def test_32_bit_integers_made_from_8_bits_keep_their_values() -> None:
    grey = Image.fromarray(SCENE).convert("L")
    np.testing.assert_array_equal(opened(grey.convert("I")), np.asarray(grey.convert("RGB")))


def test_wide_integers_are_seen_by_their_own_range_with_a_notice() -> None:
    wide = Image.fromarray(np.array([[-1000, 1000], [0, 500]], np.int32))
    np.testing.assert_array_equal(opened(wide)[:, :, 0], [[0, 255], [128, 191]])
    assert "between -1000 and 1000" in notices(wide)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-2.0, 0.0, 2.0], [0, 128, 255]),
        ([0.0, 5e4, 1e5], [0, 128, 255]),
        ([7e9, 7e9, 7e9], [0, 0, 0]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_floats(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    for source in (image, encoded(image, "TIFF")):
        np.testing.assert_array_equal(opened(source)[0, :, 0], expected)


def test_large_deep_pictures_are_converted_in_bands() -> None:
    deep = np.arange(1100 * 1000, dtype=np.int32).reshape(1100, 1000)
    expected = np.rint(deep * (255 / (1100 * 1000 - 1))).astype(np.uint8)
    np.testing.assert_array_equal(opened(Image.fromarray(deep))[:, :, 0], expected)


def test_16_bit_rgb_keeps_its_upper_bytes() -> None:
    data = png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 0x1234, 0x8000, 0xFFFF))
    np.testing.assert_array_equal(opened(data)[0, 0], [0x12, 0x80, 0xFF])


@pytest.mark.parametrize("colour", [(255, 0, 0), (250, 250, 250), (10, 10, 10), (0, 90, 200)])
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(colour: tuple[int, int, int], format: str) -> None:
    image = Image.new("RGB", (32, 32), colour).convert("CMYK")
    options = {"quality": 100} if format == "JPEG" else {}
    pixels = opened(encoded(image, format, **options)).astype(int)
    assert np.abs(pixels - colour).max() <= 3  # JPEG's own loss


def test_ycck_of_adobe() -> None:
    cmyk = Image.merge("CMYK", [Image.new("L", (16, 16), v) for v in (90, 127, 127, 255 - 200)])
    data = bytearray(encoded(cmyk, "JPEG", quality=100))
    at = data.index(b"Adobe")
    data[at + 11] = 2  # the same numbers, now luma, neutral chroma and black
    pixels = opened(bytes(data)).astype(int)
    assert np.ptp(pixels.reshape(-1, 3), axis=0).max() <= 2
    assert np.ptp(pixels[0, 0]) <= 3  # neutral
    assert abs(pixels[0, 0, 0] - 90 * 200 // 255) <= 4  # Adobe's inks are inverted: stored as 165 and 200


@pytest.mark.parametrize("mode", ["HSV", "YCbCr", "RGBX"])
def test_other_colour_modes(mode: str) -> None:
    image = Image.fromarray(SCENE).convert(mode)
    assert np.abs(opened(image).astype(int) - SCENE).max() <= 8  # what the conversion there and back loses


def test_a_mode_that_cannot_become_rgb_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("conversion from LAB to RGB not supported")

    with monkeypatch.context() as patch, pytest.raises(BadImage, match="mode LAB") as caught:
        patch.setattr(Image.Image, "convert", fail)
        PROCESS(Image.new("LAB", (9, 9)))
    assert caught.value.code == "image.mode"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colour_profiles_are_not_applied_even_broken_ones(format: str) -> None:
    broken = encoded(SCENE, format, icc_profile=b"broken" * 50)
    np.testing.assert_array_equal(opened(broken), opened(encoded(SCENE, format)))


# ---------------------------------------------------------------------------------------------------------------------
# Accepted: several frames


def animated(format: str) -> bytes:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if format == "WEBP" else {"compression": "tiff_lzw"} if format == "TIFF" else {}
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_seen(format: str) -> None:
    np.testing.assert_array_equal(opened(animated(format))[0, 0], [255, 0, 0])
    assert "only the first is seen" in notices(animated(format))


def test_10000_frames_cost_no_more_than_one() -> None:
    data = files.gif_of_frames(10_000)
    np.testing.assert_array_equal(opened(data), [[[255, 0, 0]]])
    assert "animation" in notices(data)


def test_a_still_gif_has_no_notice() -> None:
    assert notices(files.gif_of_frames(1)) == ""


def test_a_phones_video_behind_a_jpeg_does_not_matter() -> None:
    video = np.random.default_rng(3).bytes(40 << 20)  # says "start of scan" 600 times by chance
    np.testing.assert_array_equal(opened(JPEG + video), opened(JPEG))


def test_two_pictures_in_one_jpeg_are_no_animation() -> None:
    data = encoded(SCENE, "MPO", save_all=True, append_images=[Image.fromarray(SCENE[::-1].copy())])
    assert notices(data) == ""
    assert np.abs(opened(data).astype(int) - opened(JPEG)).max() <= 40


def test_a_progressive_jpeg_of_an_ordinary_number_of_scans() -> None:
    np.testing.assert_array_equal(
        opened(encoded(SCENE, "JPEG", progressive=True)), opened(encoded(SCENE, "JPEG", progressive=False))
    )


# ---------------------------------------------------------------------------------------------------------------------
# Manners


def test_warnings_of_pillow_become_notices_and_those_of_others_pass() -> None:
    told: list[str] = []
    with pytest.warns(UserWarning, match="of somebody else") as seen, pillow_at_work(told):
        warnings.warn("of somebody else", UserWarning, stacklevel=1)
        warnings.warn_explicit("odd tag", UserWarning, Image.__file__, 1, module="PIL.Image")
    assert len(seen) == 1
    assert told == ["its decoder says: odd tag"]


def test_warnings_that_a_program_made_errors_stay_notices() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert PROCESS(encoded(SCENE, "JPEG", exif=b"Exif\0\0" + BAD_EXIF["a directory of 65535"])).n_tokens == 6


def test_a_picture_that_pillow_warns_of_passes_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
        assert notices(PNG) == ""


def test_a_lower_limit_of_the_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(BadImage, match=r"more than 0.002 million.*PIL.Image.MAX_IMAGE_PIXELS"):
            PROCESS(PNG)


def test_the_formats_are_those_that_the_documentation_names() -> None:
    text = (Path(__file__).parents[2] / "docs" / "pictures.md").read_text()
    assert [name for name in FORMATS if name not in text] == []


def test_the_same_picture_twice_is_the_same_digest() -> None:
    assert PROCESS(PNG).digest == PROCESS(PNG).digest


def test_at_least_seventy_named_cases() -> None:
    assert len(REFUSED) + len(REFUSED_BYTES) + len(DOORS) >= 70


def rgba(alpha: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    image = scene_image(size)
    image.putalpha(alpha)
    return image


def scene_image(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(SCENE).resize(size)


@pytest.mark.parametrize("kind", ["array", "PIL", "PNG", "TIFF", "WEBP", "grey and alpha"])
def test_alpha_that_is_0_everywhere_is_ignored_with_a_notice(kind: str) -> None:
    image = rgba(0)
    source: Any = {"array": np.asarray(image), "PIL": image, "grey and alpha": image.convert("LA")}.get(kind)
    if source is None:
        out = io.BytesIO()
        image.save(out, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
        source = out.getvalue()
    seen = open_image(source)
    expected = scene_image((6, 4)).convert("L").convert("RGB") if kind == "grey and alpha" else scene_image((6, 4))
    np.testing.assert_array_equal(np.asarray(seen.image), np.asarray(expected))
    assert seen.notices == ["all of it is transparent: its colours are seen as if it were opaque"]


def test_a_transparent_picture_of_one_colour_is_white_with_a_notice() -> None:
    seen = open_image(Image.new("RGBA", (6, 4), (0, 0, 0, 0)))
    assert np.asarray(seen.image).min() == 255
    assert seen.notices == ["all of it is transparent and is seen as white"]


def test_one_visible_pixel_makes_transparency_count() -> None:
    image = rgba(0)
    image.putpixel((0, 0), (1, 2, 3, 255))
    seen = np.asarray(open_image(image).image)
    assert seen[0, 0].tolist() == [1, 2, 3] and seen[1:].min() == 255


GREY = np.asarray(Image.fromarray(SCENE).convert("L"))


def deep(dtype: str, factor: float, kind: str = "TIFF") -> bytes:
    image = Image.fromarray((GREY.astype(np.float64) * factor).astype(dtype))
    return encoded(image, kind)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_of_fewer_bits_in_16_is_seen_by_those_bits(bits: int, kind: str) -> None:
    seen = open_image(deep("uint16", (2**bits - 1) / 255, kind))
    np.testing.assert_allclose(np.asarray(seen.image)[..., 0], GREY, atol=1)  # the lower bits are cut off
    assert bool(seen.notices) == (bits < 16)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_12_bits_in_a_picture_in_memory_are_seen_by_those_bits(mode: str) -> None:
    values = (GREY.astype(np.float64) * 4095 / 255).astype(np.uint16)
    code = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}[mode]
    seen = open_image(Image.frombytes(mode, (GREY.shape[1], GREY.shape[0]), values.astype(code).tobytes()))
    np.testing.assert_allclose(np.asarray(seen.image)[..., 0], GREY, atol=1)
    assert "4095 as white" in seen.notices[0]


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [("float32", 1 / 255), ("float32", 1 / 2550), ("float32", 1.2 / 255), ("float32", 1), ("float32", 16),
     ("float32", 257), ("int32", 16), ("int32", 257), ("int32", 1e6), ("float32", 1e6), ("uint16", 0.1)],
)  # fmt: skip
def test_deep_greys_of_any_scale_are_seen(dtype: str, factor: float) -> None:
    grey = np.asarray(open_image(deep(dtype, factor)).image)[..., 0].astype(int)
    wanted = GREY / GREY.max() if factor < 0.02 or factor >= 1e6 or factor == 0.1 else GREY / 255
    if factor == 1 / 255:
        wanted = GREY / 255
    step = 12 if factor == 0.1 else 1  # 25 values are left
    if factor >= 1e6:
        wanted = (GREY - GREY.min()) / (int(GREY.max()) - int(GREY.min()))
    assert abs(grey - 255 * wanted).max() <= step + 0.5


def test_unsigned_32_bit_tiff_is_not_read_as_negative() -> None:
    data = bytearray(files.grey_tiff(4, 1, {258: (3, 32), 278: (4, 1), 279: (4, 16)}))
    at = data.find(struct.pack("<HHII", 273, 4, 1, 0)[:8])
    (start,) = struct.unpack_from("<I", data, at + 8)
    data[start : start + 16] = struct.pack("<4I", 0, 2**30, 2**31, 2**32 - 1)
    assert np.asarray(open_image(bytes(data)).image)[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        *((b"\0\0\0\x1cftyp" + brand + b"\0\0\0\0mif1heicmiaf" + bytes(200), "HEIC") for brand in
          (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"avci")),
        *((b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0" + bytes(200), "video") for brand in
          (b"isom", b"iso6", b"mp42", b"M4V ", b"M4VH", b"qt  ", b"avc1", b"3gp4", b"3g2a", b"dash", b"MSNV")),
        (b"\0\0\0\x08wide\0\0\0\0mdat" + bytes(50), "video"),
        (b"\x1a\x45\xdf\xa3" + bytes(50), "video"),
        (b"RIFF\n\n\n\nAVI LIST" + bytes(50), "video"),
        (b"FLV\x01\x05" + bytes(50), "video"),
        (b"\0\0\x01\xba" + bytes(50), "video"),
        (b"\x47" + bytes(187) + b"\x47" + bytes(187), "video"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(50), "video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0" + bytes(50), "raw file"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(50), "raw file"),
        (b"IIRO\x08\0\0\0" + bytes(50), "raw file"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(50), "raw file"),
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL"),
        (b"8BPS\0\1" + bytes(50), "PSD"),
        (b"gimp xcf v011" + bytes(50), "GIMP"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<?xml version='1.0'?>\n<!-- x -->\n<svg xmlns=''/>", "SVG"),
        (b"\n  <svg></svg>", "SVG"),
        (b"qoif" + bytes(20), "QOI"),
        (b"DDS |" + bytes(50), "DDS"),
        (b"\x76\x2f\x31\x01" + bytes(20), "OpenEXR"),
        (bytes(128) + b"DICM" + bytes(20), "DICOM"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
    ],
)  # fmt: skip
def test_what_is_not_decoded_is_called_by_its_name(data: bytes, name: str) -> None:
    with pytest.raises(BadImage, match=name) as caught:
        open_image(data)
    assert caught.value.code == "image.format"
