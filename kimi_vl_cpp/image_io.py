"""Opening pictures: anything a person hands over becomes upright 8-bit RGB, or a `BadImage` that says why not.

Knows files, bytes, data URLs, PIL images and arrays; knows nothing of patches and of sizes that the model likes
(`processor`). Pillow decodes. None of its global settings is changed.
"""

from __future__ import annotations

import base64
import binascii
import errno
import io
import os
import stat
import threading
import urllib.parse
import warnings
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import BadImage, shown

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]"

#: What is decoded. Everything else is refused by name, whatever Pillow may know of it.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF")
#: Pixels of a picture before scaling. Decoding takes 3 to 8 bytes each.
MAX_PIXELS = 100_000_000
#: Bytes of a picture file or data URL.
MAX_BYTES = 256 << 20
#: Scans of a progressive JPEG; real files have about ten, each costs a pass over the whole picture.
MAX_JPEG_SCANS = 200

#: First bytes of what people hand over by mistake -> what to do instead.
_STRANGERS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF: export its pages as PNG first"),
    (b"%!PS", "PostScript: export it as PNG first"),
    (b"\xc5\xd0\xd3\xc6", "PostScript: export it as PNG first"),
    (b"8BPS", "a Photoshop document: export it as PNG first"),
    (b"SIMPLE  =", "a FITS file: export it as PNG first"),
    (b"<svg", "an SVG drawing: render it to PNG first"),
    (b"<?xml", "an XML file (SVG?): render it to PNG first"),
    (b"PK\x03\x04", "a zip archive or office document: export the picture as PNG or JPEG first"),
    (b"GGUF", "a model file, not a picture"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")

# catch_warnings changes a setting of the whole process for as long as it lasts.
_warnings_lock = threading.Lock()


@dataclass
class OpenedImage:
    """Upright RGB pixels, and what was done to the original to get them."""

    image: Image.Image  # mode RGB
    original_size: tuple[int, int]  # width, height, upright
    notices: list[str] = field(default_factory=list)


def open_image(source: ImageInput, max_pixels: int = MAX_PIXELS) -> OpenedImage:
    """Decode `source` to upright RGB.

    source: a path (`~` is expanded), a `data:` URL, the bytes of a file, a PIL image (left as it is), or a uint8 array
    [H, W, 3], [H, W, 4], [H, W, 1] or [H, W]. Raises BadImage with a code image.*.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _from_pil(source, "picture", max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), "picture", max_pixels)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _from_bytes(load_data_url(source), "data URL", max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _from_bytes(read_image_file(source), os.fspath(source), max_pixels)
    raise BadImage(
        f"picture: {type(source).__name__} is not a picture: give a path, the bytes of a file, a PIL image "
        "or a uint8 array [H, W, 3]",
        code="image.type",
    )


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file of at most MAX_BYTES. Raises BadImage; never waits on a pipe or a device."""
    name = os.fspath(path)
    if not isinstance(name, str):
        raise BadImage(f"picture path {shown(name)} must be text", code="image.type")
    if "://" in name and name.split("://", 1)[0].lower() in ("http", "https", "ftp", "file", "gopher", "s3"):
        raise BadImage(
            f"{shown(name)}: addresses are not fetched: download the picture and give its path", code="image.address"
        )
    if "\0" in name:
        raise BadImage(f"picture path {shown(name)} contains a zero character", code="image.not_found")
    expanded = os.path.expanduser(name)
    try:
        handle = os.open(expanded, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        code, text = {
            errno.ENOENT: ("image.not_found", "no such file"),
            errno.ENOTDIR: ("image.not_found", "no such file"),
            errno.EACCES: ("image.not_readable", "no permission to read it"),
            errno.ELOOP: ("image.not_found", "a loop of symbolic links"),
            errno.ENXIO: ("image.not_a_file", "not a regular file"),
            errno.ENAMETOOLONG: ("image.not_found", "the name is too long"),
        }.get(error.errno or 0, ("image.not_readable", error.strerror or "cannot be read"))
        raise BadImage(f"{shown(name)}: {text}: check the path of the picture", code=code) from None
    except ValueError as error:
        raise BadImage(f"{shown(name)}: {error}", code="image.not_found") from None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISDIR(status.st_mode):
            raise BadImage(f"{shown(name)}: a folder: name the picture in it", code="image.not_a_file")
        if not stat.S_ISREG(status.st_mode):
            raise BadImage(f"{shown(name)}: not a regular file: give a picture file", code="image.not_a_file")
        if status.st_size > MAX_BYTES:
            raise BadImage(
                f"{shown(name)}: {status.st_size} bytes, expected at most {MAX_BYTES}: give a smaller picture",
                code="image.too_large",
            )
        return file.read(MAX_BYTES + 1)


def load_data_url(url: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes that a `data:[type][;base64],...` URL carries. Raises BadImage (image.data_url, image.too_large)."""
    head, comma, body = url.partition(",")
    if head[:5].lower() != "data:" or not comma:
        raise BadImage(
            f"data URL {shown(url[:80])}: expected data:image/png;base64,... with a comma before the data",
            code="image.data_url",
        )
    mime, *parameters = head[5:].split(";")
    if mime and not mime.strip().lower().startswith("image/"):
        raise BadImage(
            f"data URL of type {shown(mime[:80])}: expected an image type such as image/png", code="image.data_url"
        )
    if len(body) > max_bytes * 4 // 3 + 4:
        raise BadImage(
            f"data URL of {len(body)} characters, expected at most {max_bytes} bytes: give a smaller picture",
            code="image.too_large",
        )
    if any(p.strip().lower() == "base64" for p in parameters):
        try:
            text = urllib.parse.unquote_to_bytes(body) if "%" in body else body.encode("ascii")
            text = b"".join(text.split()).replace(b"-", b"+").replace(b"_", b"/")
            return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise BadImage(
                "data URL: its base64 data is damaged: encode the picture again", code="image.data_url"
            ) from None
    return urllib.parse.unquote_to_bytes(body)


def _from_bytes(data: bytes, name: str, max_pixels: int) -> OpenedImage:
    if not data:
        raise BadImage(f"{shown(name)}: empty: nothing to decode, save the picture again", code="image.empty")
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, what in _STRANGERS:
        if head.startswith(magic):
            raise BadImage(f"{shown(name)}: {what}", code="image.format")
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        raise BadImage(
            f"{shown(name)}: HEIC pictures are not decoded: convert it to JPEG or PNG first", code="image.format"
        )
    scans = data.count(b"\xff\xda") if data[:2] == b"\xff\xd8" else 0
    if scans > MAX_JPEG_SCANS:
        raise BadImage(
            f"{shown(name)}: a JPEG of {scans} scans, expected at most {MAX_JPEG_SCANS}: save it again",
            code="image.too_large",
        )
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.init()
        try:
            image = Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN])
        except UnidentifiedImageError:
            raise BadImage(
                f"{shown(name)}: not a picture that can be decoded, or damaged at its start: expected one of "
                f"{', '.join(FORMATS)}",
                code="image.format",
            ) from None
        except Image.DecompressionBombError:
            raise BadImage(_too_large(name, None, max_pixels), code="image.too_large") from None
        except Exception as error:
            raise BadImage(f"{shown(name)}: damaged: {error}: save the picture again", code="image.truncated") from None
    return _from_pil(image, name, max_pixels)


def _too_large(name: str, size: tuple[int, int] | None, max_pixels: int) -> str:
    pixels = f"{size[0]} x {size[1]} pixels" if size else "more pixels than are ever decoded"
    return f"{shown(name)}: {pixels}, expected at most {max_pixels / 1e6:g} million: scale the picture down first"


def _from_pil(image: Image.Image, name: str, max_pixels: int) -> OpenedImage:
    notices: list[str] = []
    if image.width < 1 or image.height < 1:
        raise BadImage(f"{shown(name)}: {image.width} x {image.height} pixels: nothing to look at", code="image.empty")
    if image.width * image.height > max_pixels:
        raise BadImage(_too_large(name, image.size, max_pixels), code="image.too_large")
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if image.format not in (None, "MPO") and getattr(image, "is_animated", False):
                notices.append(f"{name}: an animation: only its first frame is used")
                image.seek(0)
            image.load()
        except Exception as error:
            raise BadImage(
                f"{shown(name)}: truncated or damaged: {error}: save or download the picture again",
                code="image.truncated",
            ) from None
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:
            upright = image
            notices.append(f"{name}: its EXIF data is damaged and was ignored")
        try:
            rgb = _to_rgb(upright, name, notices)
        except BadImage:
            raise
        except Exception as error:
            raise BadImage(
                f"{shown(name)}: mode {image.mode} cannot be shown as RGB: {error}: save it as PNG", code="image.mode"
            ) from None
    return OpenedImage(rgb, rgb.size, notices)


def _to_rgb(image: Image.Image, name: str, notices: list[str]) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_deep(image, name, notices)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
        rgba = (image.convert(straight) if straight else image).convert("RGBA")
        if int(np.asarray(rgba)[:, :, 3].min()) == 255:  # opaque throughout: the colours as they are
            return rgba.convert("RGB")
        notices.append(f"{name}: transparent parts are shown on white")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _scale_deep(image: Image.Image, name: str, notices: list[str]) -> Image.Image:
    """16-bit grey by its full range; wider integers and floats by their own range."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise BadImage(f"{shown(name)}: has values that are not finite: save it as 8-bit PNG", code="image.not_finite")
    low, high = float(values.min()), float(values.max())
    if image.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    if image.mode == "F" and low >= 0 and high <= 255:
        low, high = (0.0, 1.0) if high <= 1 else (0.0, 255.0)
    if image.mode == "F" or (low, high) != (0.0, 65535.0):
        notices.append(f"{name}: values {low:g} to {high:g} are shown as black to white")
    grey = np.rint((values - low) * (255.0 / (high - low if high > low else 1.0)))
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")


def _from_array(array: NDArray[Any], max_pixels: int) -> OpenedImage:
    shape = array.shape
    if array.dtype != np.uint8:
        hint = " (floats from 0 to 1: multiply by 255 and round)" if array.dtype.kind == "f" else ""
        raise BadImage(f"array of dtype {array.dtype}, expected uint8{hint}", code="image.array_dtype")
    channels_last = array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))
    if not channels_last:
        hint = ": channels come last, use array.transpose(1, 2, 0)" if array.ndim == 3 and shape[0] in (1, 3, 4) else ""
        hint = ": give one picture at a time" if array.ndim == 4 else hint
        raise BadImage(
            f"array of shape {list(shape)}, expected [H, W, 3], [H, W, 4], [H, W, 1] or [H, W]{hint}",
            code="image.array_shape",
        )
    if shape[0] == 0 or shape[1] == 0:
        raise BadImage(f"array of shape {list(shape)}: nothing to look at", code="image.empty")
    if shape[0] * shape[1] > max_pixels:
        raise BadImage(_too_large("array", (shape[1], shape[0]), max_pixels), code="image.too_large")
    plain = np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and shape[2] == 1 else array)
    return _from_pil(Image.fromarray(plain), "array", max_pixels)
