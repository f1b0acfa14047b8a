"""Opening pictures: anything a caller passes becomes upright 8-bit RGB, or a `BadImage` that says why not.

Owns the doors: files, bytes, data URLs, PIL images and arrays. What the bytes mean is for `decode`, what colours
become for `rgb`, and what size the model likes for `processor`.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import re
import stat
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import BadImage, shown
from . import drawn
from .decode import check_pixels, decode, load_pixels
from .rgb import to_rgb, upright

ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8] | drawn.Drawn"
)

MAX_PIXELS = 128_000_000
"""Pixels of a picture before it is scaled: more than any phone's camera. Decoding takes 4 to 12 bytes each."""

MAX_BYTES = 256 << 20
"""Bytes of an encoded picture."""

MAX_URL_BYTES = 64 << 20
"""Bytes that a data URL may carry."""

_MAX_ESCAPED = 4 << 20  # characters of a data URL without base64: three for each byte, and slow to read
_ADDRESSES = ("http", "https", "ftp", "file", "gopher", "s3")
_URL_HEAD = re.compile(r"\s*(data:)", re.IGNORECASE)
# Enough characters of base64, of which the first are those of PNG, JPEG, GIF, RIFF (WebP), BMP or TIFF.
_BARE_BASE64 = re.compile(r"\s*(iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk[0-3]|SUkq|TU0A)[A-Za-z0-9+/_\r\n-]{60}")
_OPEN_ERRORS = {
    errno.ENOENT: ("image.not_found", "no such file: check the path of the picture"),
    errno.ENOTDIR: ("image.not_found", "no such file: check the path of the picture"),
    errno.EACCES: ("image.not_readable", "no permission to read it: change its permissions"),
    errno.ELOOP: ("image.not_found", "a loop of symbolic links: give the file itself"),
    errno.ENXIO: ("image.not_a_file", "not a regular file: give a picture file"),
    errno.ENAMETOOLONG: (
        "image.not_found",
        "too long for a path: give the bytes of a picture as bytes, base64 as data:image/png;base64,...",
    ),
}


@dataclass
class OpenedImage:
    """Upright RGB pixels, and what was done to the original to get them."""

    image: Image.Image
    """Mode RGB. May be the caller's own object: not to be changed."""
    notices: list[str] = field(default_factory=list)

    @property
    def original_size(self) -> tuple[int, int]:
        """Width and height of the upright picture."""
        return self.image.size


def open_image(
    source: ImageInput, max_pixels: int = MAX_PIXELS, accept: Callable[[int, int], object] | None = None
) -> OpenedImage:
    """Decode `source` to upright RGB.

    source: a path (`~` is expanded), a `data:` URL, the bytes of a picture file, a PIL image (its present frame; the
    object stays as it is), or a uint8 array [H, W, 3], [H, W, 4] (RGBA), [H, W, 1] or [H, W] (grey).
    accept: called with the two sides that the header states (not yet upright), to raise before the work of decoding.
    Raises BadImage with a code image.*, and OutOfMemory.
    """
    image, label, notices = _with_header(source, max_pixels)
    if accept is not None:
        accept(*image.size)
    load_pixels(image, label, max_pixels, notices)
    check_pixels(image.size, label, max_pixels)  # the headers of some containers are wrong
    return OpenedImage(upright(to_rgb(image, label, notices), image, notices), notices)


def _with_header(source: ImageInput, max_pixels: int) -> tuple[Image.Image, str, list[str]]:
    """The picture with its header read and its size checked, what messages call it, and notices."""
    if isinstance(source, np.ndarray):
        return _image_of_array(source, max_pixels), "array", []
    if isinstance(source, Image.Image):
        check_pixels(source.size, "PIL image", max_pixels)
        return source, "PIL image", ["one frame of an animation"] if _frame(source) else []
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decoded(_bytes_of(source), "picture", max_pixels)
    if isinstance(source, str) and _URL_HEAD.match(source):
        return _decoded(load_data_url(source), "data URL", max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _decoded(read_image_file(source), shown(os.fspath(source)), max_pixels)
    hint = ": pass what its read() returns" if hasattr(source, "read") else ""
    raise BadImage(
        f"picture of type {type(source).__name__}{hint}: expected a path, the bytes of a picture file, a PIL image "
        "or a uint8 array [H, W, 3]",
        code="image.type",
    )


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file of at most MAX_BYTES. Never waits on a pipe or a device. Raises BadImage."""
    try:
        name = os.fspath(path)
    except TypeError as error:
        raise BadImage(f"picture path: {error}: give it as text", code="image.type") from None
    if not isinstance(name, str):
        raise BadImage(f"picture path {shown(name)}: expected text, not bytes", code="image.type")
    if "://" in name and name.split("://", 1)[0].strip().lower() in _ADDRESSES:
        raise BadImage(f"{shown(name)}: addresses are not fetched: download it and give its path", code="image.url")
    flags = os.O_RDONLY
    for flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):  # not all exist everywhere
        flags |= getattr(os, flag, 0)
    if is_bare_base64(name) and not os.path.exists(name):
        raise BadImage(
            f"{shown(name)}: base64 without its head, and no such file: put data:image/png;base64, in front of it",
            code="image.not_found",
        )
    try:
        handle = os.open(os.path.expanduser(name), flags)
    except OSError as error:
        code, text = _OPEN_ERRORS.get(error.errno or 0, ("image.not_readable", f"cannot be read: {error.strerror}"))
        raise BadImage(f"{shown(name)}: {text}", code=code) from None
    except ValueError as error:  # a zero character, a lone surrogate
        raise BadImage(f"{shown(name)}: no file can have this name ({error})", code="image.not_found") from None
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise BadImage(f"{shown(name)}: a folder: name the picture in it", code="image.not_a_file")
        if not stat.S_ISREG(status.st_mode):
            raise BadImage(f"{shown(name)}: not a regular file: give a picture file", code="image.not_a_file")
        _check_bytes(shown(name), status.st_size, MAX_BYTES)
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise BadImage(f"{shown(name)}: cannot be read: {error.strerror}", code="image.not_readable") from None
    finally:
        os.close(handle)


def load_data_url(url: str, max_bytes: int = MAX_URL_BYTES, kinds: tuple[str, ...] = ("image/",)) -> bytes:
    """The bytes that a `data:[image type][;base64],...` URL carries; they are not decoded as a picture here.

    kinds: how its type may begin.

    The base64 may be of the URL alphabet, without padding, wrapped, or percent-encoded; white space before the URL is
    skipped. Its type may be any that does not say that it is something else: the bytes decide what a picture is.
    Raises BadImage (image.data_url, image.too_large).
    """
    found = _URL_HEAD.match(url)
    url = url[found.start(1) :] if found else url
    head, comma, body = url[:1024].partition(",")
    if not found or not comma:
        problem = "no comma before the data" if found else "it does not begin with data:"
        raise BadImage(
            f"data URL {shown(url[:80])}: {problem}: expected data:image/png;base64,...",
            code="image.data_url",
        )
    body = url[len(head) + 1 :]
    mime, *parameters = (part.strip().lower() for part in head[5:].split(";"))
    if mime and not mime.startswith((*kinds, "application/", "binary/")):
        expected = "a picture's, such as image/png" if "image/" in kinds else f"{kinds[0]}..."
        raise BadImage(f"data URL of type {shown(mime)}: expected {expected}", code="image.data_url")
    if "base64" not in parameters:
        if len(body) > _MAX_ESCAPED:
            raise BadImage(
                f"data URL of {len(body)} characters without base64, expected at most {_MAX_ESCAPED}: use base64",
                code="image.too_large",
            )
        return _unescape(body)
    _check_bytes("data URL", len(body) // 4 * 3, max_bytes)
    for escape, character in (("%2b", "+"), ("%2f", "/"), ("%3d", "="), ("%0a", ""), ("%0d", ""), ("%20", "")):
        if "%" not in body:
            break
        body = body.replace(escape, character).replace(escape.upper(), character)
    try:
        text = body.encode("ascii").translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n\f\v")
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImage(f"data URL: its base64 is damaged ({error}): encode it again", code="image.data_url") from None


def is_bare_base64(text: str) -> bool:
    """Whether this is the base64 of a picture file without the head of a data URL."""
    return _BARE_BASE64.match(text) is not None


def _unescape(url: str) -> bytes:
    """Percent-decoding in pieces: the library's function holds one object for each escape."""
    text, out, start = url.encode("utf-8", "replace"), bytearray(), 0
    while start < len(text):
        end = start + 65536
        cut = text.rfind(b"%", end - 2, end)
        end = cut if cut >= 0 else end  # no escape is cut
        out += urllib.parse.unquote_to_bytes(text[start:end])
        start = end
    return bytes(out)


def _bytes_of(source: bytes | bytearray | memoryview) -> bytes:
    try:
        _check_bytes("picture", memoryview(source).nbytes, MAX_BYTES)
        return bytes(source)  # which copies no bytes
    except ValueError as error:  # a memoryview that was released
        raise BadImage(f"picture: {error}: pass it while it is valid", code="image.closed") from None


def _check_bytes(label: str, n: int, allowed: int) -> None:
    if n > allowed:
        raise BadImage(f"{label}: {n} bytes, expected at most {allowed}: give a smaller file", code="image.too_large")


def _decoded(data: bytes, label: str, max_pixels: int) -> tuple[Image.Image, str, list[str]]:
    """data: the bytes of a file, whose number the door that they came by has checked."""
    if not data:
        raise BadImage(f"{label}: empty, there is nothing to decode: save the picture again", code="image.empty")
    notices: list[str] = []
    return decode(data, label, max_pixels, notices), label, notices


def _frame(image: Image.Image) -> bool:
    """Whether the image is one of several frames. Asking moves nothing; a closed image has none."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:
        return False


def _image_of_array(array: NDArray[Any], max_pixels: int) -> Image.Image:
    """A PIL image over a contiguous copy or view of a uint8 array."""
    shape = array.shape
    if array.dtype != np.uint8:
        hint = {"f": ": scale to 0..255, round and use .astype(np.uint8)", "b": ": use array * np.uint8(255)"}
        raise BadImage(
            f"array of dtype {array.dtype}, expected uint8{hint.get(array.dtype.kind, '')}", code="image.array_dtype"
        )
    if array.ndim != 2 and (array.ndim != 3 or shape[2] not in (1, 3, 4)):
        hint_shape = {4: ": give one picture at a time"}.get(array.ndim, "")
        if array.ndim == 3 and shape[0] in (1, 3, 4):
            hint_shape = ": channels come last, use array.transpose(1, 2, 0)"
        raise BadImage(
            f"array of shape {list(shape)}, expected [H, W, 3], [H, W, 4], [H, W, 1] or [H, W]{hint_shape}",
            code="image.array_shape",
        )
    check_pixels((shape[1], shape[0]), f"array of shape {list(shape)}", max_pixels)
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and shape[2] == 1 else array))
