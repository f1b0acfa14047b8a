"""What the bytes of a picture file mean: which formats are decoded, and how damaged or hostile ones are refused.

Pillow decodes, from a list of formats. Sizes are checked from headers before anything is decoded. None of Pillow's
settings is changed: its warnings are caught while it works and become notices.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from ..errors import BadImage, KimiVLError, OutOfMemory, shown
from .structure import check_jpeg_size, check_structure

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF")
"""What is decoded. Everything else is refused, whatever this Pillow may know of it."""

SCALE_DOWN = "scale it down first, for example with ImageMagick: magick PICTURE -resize 4000x4000 SMALLER.png"

TO_PDF = "convert it to PDF: soffice --headless --convert-to pdf FILE"

_MAX_NOTICES = 4  # of Pillow's warnings about one picture

# First bytes -> the format they announce.
_MAGIC = {
    "PNG": rb"\x89PNG\r\n",
    "JPEG": rb"\xff\xd8\xff",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\x00|MM\x00[*+]",
    "AVIF": rb"....ftyp(?:avi[fs]|m[is]f1.{0,48}avi[fs])",
    "HEIC": rb"....ftyp(?:hei[cxms]|hev[cxms]|m[is]f1|miaf|avc[is]|j2k[is]|jpeg|jpgs)",
    "BMP": rb"BM",
    "ICO": rb"\x00\x00\x01\x00",
    "PPM": rb"P[1-6][\s#]",
}
_MAGIC_RE = {name: re.compile(pattern, re.DOTALL) for name, pattern in _MAGIC.items()}

# What people hand over by mistake, and what to do instead.
# They are tried before the formats above: a raw file may call itself a TIFF.
_STRANGERS = (
    (rb"%PDF", "a PDF document: give it as documents=[...] (in messages: a part of type file), or its pages as PNG"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript: export it as PNG"),
    (rb"8BPS", "a Photoshop document (PSD): export it as PNG"),
    (rb"gimp xcf", "a GIMP document (XCF): export it as PNG"),
    (rb"SIMPLE  =", "a FITS file: export it as PNG"),
    (rb".{128}DICM", "a DICOM file: export it as PNG"),
    (rb"(?:<\?xml.{0,900}?)?(?:<!--.{0,900}?)?<svg|(?i:<!doctype svg)", "an SVG drawing: render it to PNG"),
    (rb"<\?xml|(?i:<!doctype|<html)", "a page of markup, perhaps an answer to a download: save the picture itself"),
    (rb"data:", "a data URL given as bytes: give it as text"),
    (rb"version https://git-lfs", "a pointer to a file in Git LFS: fetch the file itself with git lfs pull"),
    (rb"PK\x03\x04.{26}mimetypeapplication/epub", "an EPUB book: convert it to PDF: ebook-convert BOOK.epub BOOK.pdf"),
    (
        rb"PK\x03\x04.{26}(?:\[Content_Types\]\.xml|_rels/|docProps/|word/|ppt/|xl/|mimetypeapplication/vnd\.oasis)",
        f"an office document: {TO_PDF}",
    ),
    (rb"PK\x03\x04", "a zip archive: unpack it"),
    (rb"\xd0\xcf\x11\xe0", f"an office document: {TO_PDF}"),
    (rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ|\x28\xb5\x2f\xfd|Rar!|7z\xbc\xaf", "a compressed archive: unpack it"),
    (rb"GGUF", "a model file"),
    (rb"\x00\x00\x00\x0cJXL |\xff\x0a", "JPEG XL: convert it to PNG"),
    (rb"II\xbc", "JPEG XR: convert it to PNG"),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000: convert it to PNG"),
    (rb"\xff\xd8\xff\xf7", "JPEG-LS: convert it to PNG"),
    (rb"qoif", "a QOI picture: convert it to PNG"),
    (rb"BPG\xfb", "a BPG picture: convert it to PNG"),
    (rb"FLIF", "a FLIF picture: convert it to PNG"),
    (rb"DDS ", "a DirectDraw texture (DDS): convert it to PNG"),
    (rb"icns", "an Apple icon (ICNS): export it as PNG"),
    (rb"\x76\x2f\x31\x01", "an OpenEXR picture: export it as PNG"),
    (rb"#\?R(?:ADIANCE|GBE)", "a Radiance HDR picture: export it as PNG"),
    (rb"P7\s|P[fF]\s", "a PAM or PFM picture: convert it to PNG"),
    (rb"\xd7\xcd\xc6\x9a|\x01\x00\x00\x00.{36} EMF", "a Windows metafile (WMF or EMF): export it as PNG"),
    (rb"/\* XPM", "an XPM picture: convert it to PNG"),
    (rb"\x8aMNG|\x8bJNG", "an MNG or JNG picture: convert it to PNG"),
    (
        rb"II\*\x00.{4}CR|II\x1a\x00\x00\x00HEAPCCDR|....ftypcrx|IIR[OS]|MMOR|IIU\x00|FUJIFILMCCD-RAW|FOVb|\x00MRM",
        "a camera's raw file: export it as JPEG or PNG",
    ),
    (
        rb"....ftyp(?!avi[fs]|hei|hev|m[is]f1|miaf|avc[is]|j2k[is]|jpeg|jpgs)|....(?:moov|mdat|wide|pnot)"
        rb"|\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|\x00\x00\x01[\xb3\xba]|\x30\x26\xb2\x75|\x47.{187}\x47",
        "a video: save a frame as PNG",
    ),
    (rb"OggS|ID3|fLaC|RIFF....WAVE", "a sound or video: give a picture file"),
)
_STRANGERS_RE = tuple((re.compile(pattern, re.DOTALL), what) for pattern, what in _STRANGERS)

# Catching warnings is a matter of the whole process, so one picture at a time is decoded.
_one_at_a_time = threading.Lock()


def _new_lock() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.Lock()


if hasattr(os, "register_at_fork"):  # another thread may have held it
    os.register_at_fork(after_in_child=_new_lock)


@contextlib.contextmanager
def pillow_at_work(notices: list[str] | None = None) -> Iterator[None]:
    """While inside, Pillow's warnings go to `notices` (or nowhere) instead of stderr; those of others pass."""
    quiet = logging.NullHandler()  # without any, Python prints what is logged as an error
    home = os.path.dirname(Image.__file__)
    with _one_at_a_time:
        caught: list[warnings.WarningMessage] = []
        logging.getLogger("PIL").addHandler(quiet)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.filterwarnings("always", module=r"PIL\b")
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a limit of our own
                yield
        finally:
            logging.getLogger("PIL").removeHandler(quiet)
            ours = [w for w in caught if w.filename.startswith(home)]
            if notices is not None:
                texts = dict.fromkeys(" ".join(str(w.message).split())[:160] for w in ours)
                said = (f"its decoder says: {text}" for text in list(texts)[:_MAX_NOTICES])
                notices.extend(notice for notice in said if notice not in notices)
            for w in caught:
                if w not in ours:
                    warnings.warn_explicit(w.message, w.category, w.filename, w.lineno, source=w.source)


def check_pixels(size: tuple[int, int], label: str, max_pixels: int) -> None:
    """Refuse a picture without pixels (image.empty) or with too many (image.too_large)."""
    width, height = size
    if width < 1 or height < 1:
        raise BadImage(f"{label}: {width} x {height} pixels, there is nothing to see", code="image.empty")
    if width * height > max_pixels:
        raise BadImage(
            f"{label}: {width} x {height} pixels, expected at most {max_pixels / 1e6:g} million: {SCALE_DOWN}",
            code="image.too_large",
        )


def format_of(head: bytes) -> str | None:
    """The picture format that the first bytes of a file announce (64 are enough), or None."""
    return next((name for name, start in _MAGIC_RE.items() if start.match(head)), None)


def decode(data: bytes, label: str, max_pixels: int, notices: list[str]) -> Image.Image:
    """The first frame of the picture in `data`, with its pixels still to be loaded. label: what messages call it.

    Raises BadImage: image.format (none of FORMATS), image.truncated (damaged), image.too_large, image.empty.
    """
    _refuse_stranger(data, label)
    magic = format_of(data)
    check_structure(data, magic, label)
    if magic == "WEBP" and data[12:16] == b"VP8X":  # its decoder takes memory for all of it when it opens
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        check_pixels((width, height), label, max_pixels)
    with _errors(label, magic, max_pixels), pillow_at_work(notices):
        if magic == "HEIC":
            image = _open_heic(data, label)
        else:
            Image.init()
            image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
        check_pixels(image.size, label, max_pixels)
        if magic == "JPEG":
            check_jpeg_size(data, label)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiff(image, label, max_pixels)
        if image.format != "MPO" and getattr(image, "is_animated", False):
            several = "several pictures in one file" if image.format in ("TIFF", "HEIF") else "an animation"
            all_of_them = "; documents=[...] gives all pages" if image.format == "TIFF" else ""
            notices.append(f"{several}: only the first is seen{all_of_them}")
            image.seek(0)
    return image


def load_pixels(image: Image.Image, label: str, max_pixels: int, notices: list[str]) -> None:
    """Decode the pixels of `image`. Raises BadImage (image.truncated, image.closed) and OutOfMemory."""
    if ImageFile.LOAD_TRUNCATED_IMAGES and isinstance(image, ImageFile.ImageFile):
        notices.append("this program lets Pillow fill truncated pictures with grey (LOAD_TRUNCATED_IMAGES)")
    with _errors(label, image.format, max_pixels), pillow_at_work(notices):
        try:
            image.load()
        except ValueError as error:
            if "closed" in str(error):
                raise BadImage(f"{label}: {error}: pass it while it is open", code="image.closed") from None
            raise


@contextlib.contextmanager
def _errors(label: str, kind: str | None, max_pixels: int) -> Iterator[None]:
    """Everything that a decoder may raise, in our words. kind: the format that the first bytes announce."""
    try:
        yield
    except KimiVLError:
        raise
    except MemoryError:
        raise OutOfMemory(
            f"{label}: not enough memory to decode it: scale it down, or close other programs", code="memory.image"
        ) from None
    except Image.DecompressionBombError:  # Pillow's limit, which is above the usual max_pixels
        allowed = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        by = " (PIL.Image.MAX_IMAGE_PIXELS as this program sets it)" if allowed < max_pixels else ""
        raise BadImage(
            f"{label}: more than {allowed / 1e6:g} million pixels{by}: {SCALE_DOWN}",
            code="image.too_large",
        ) from None
    except UnidentifiedImageError:
        module = {"AVIF": "PIL._avif", "WEBP": "PIL._webp"}.get(kind or "")
        if module and importlib.util.find_spec(module) is None:
            raise BadImage(
                f"{label}: the installed Pillow cannot decode {kind}: pip install -U pillow, or convert it to PNG",
                code="image.format",
            ) from None
        if kind:
            raise BadImage(
                f"{label}: starts like {kind}, but is damaged or cut off: save or download it again",
                code="image.truncated",
            ) from None
        raise BadImage(
            f"{label}: not a picture of a known format: expected {', '.join(FORMATS)}", code="image.format"
        ) from None
    except Exception as error:
        reason = shown(str(error) or type(error).__name__)
        raise BadImage(
            f"{label}: truncated or damaged ({reason}): save or download it again", code="image.truncated"
        ) from None


def stranger(data: bytes) -> str | None:
    """What a file that is not a picture is by its first bytes, and what to do with it; None when they say nothing."""
    head = data[:1024]
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((what for start, what in _STRANGERS_RE if start.match(head) or start.match(text)), None)


def _refuse_stranger(data: bytes, label: str) -> None:
    what = stranger(data)
    if what is not None:
        raise BadImage(f"{label}: not a picture but {what}", code="image.format")


def _check_tiff(image: TiffImagePlugin.TiffImageFile, label: str, max_pixels: int) -> None:
    """Refuse what a TIFF may hide: the small preview of a camera's raw file, and tiles far larger than the picture."""
    tags = image.tag_v2
    if 50706 in tags or int(tags.get(254, 0)) & 1:  # DNGVersion; NewSubfileType: reduced resolution
        raise BadImage(
            f"{label}: a camera's raw file, of which only a small preview would be seen: export it as JPEG or PNG",
            code="image.format",
        )
    width, height = (int(tags.get(tag, 0)) for tag in (322, 323))
    if width * height > max_pixels:
        raise BadImage(f"{label}: TIFF tiles of {width} x {height} pixels: save it again", code="image.too_large")


def _open_heic(data: bytes, label: str) -> Image.Image:
    try:
        heif = importlib.import_module("pillow_heif")
    except ImportError:
        raise BadImage(
            f"{label}: a HEIC picture: pip install pillow-heif, or convert it to JPEG", code="image.format"
        ) from None
    image: Image.Image = heif.HeifImageFile(io.BytesIO(data))
    return image
