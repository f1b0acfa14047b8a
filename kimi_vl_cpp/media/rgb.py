"""From whatever mode a picture is in to upright 8-bit RGB: orientation, transparency, deep greys.

docs/pictures.md says the same for users. An upright RGB or grey picture passes through bit by bit; where a picture has
more than that (alpha, 16 bits), what a person would see in a viewer decides, not what the Hugging Face processor does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import BadImage, OutOfMemory
from .decode import pillow_at_work

_ORIENTATION_TAG = 0x0112
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_EXIF = 4 << 20  # bytes: all of its numbers become objects
_BAND = 1 << 20  # pixels that are held as floats at a time


def upright(image: Image.Image, notices: list[str]) -> Image.Image:
    """A loaded image turned as its EXIF orientation says; the image itself when there is nothing to turn."""
    if len(image.info.get("exif") or b"") > _MAX_EXIF:
        notices.append(f"its EXIF data of more than {_MAX_EXIF >> 20} MiB was not used")
        return image
    try:
        with pillow_at_work(notices):
            method = _TO_UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # the decoder of EXIF raises all sorts of things
        notices.append("its EXIF data is damaged and was not used")
        return image
    if method is None:
        return image
    try:
        return image.transpose(method)
    except MemoryError:
        raise OutOfMemory("picture: not enough memory to turn it upright: scale it down", code="memory.image") from None


def to_rgb(image: Image.Image, label: str, notices: list[str]) -> Image.Image:
    """A loaded image as mode RGB; the image itself when it is. Raises BadImage (image.mode, image.not_finite)."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    try:
        with pillow_at_work():
            if image.mode.startswith("I") or image.mode == "F":
                return Image.fromarray(_grey8(image, label, notices)).convert("RGB")
            if image.has_transparency_data:
                return _on_white(image, notices)
            return image.convert("RGB")
    except BadImage:
        raise
    except MemoryError:
        raise OutOfMemory(f"{label}: not enough memory to convert it: scale it down", code="memory.image") from None
    except Exception as error:
        raise BadImage(
            f"{label}: a picture of mode {image.mode} cannot become RGB ({error}): save it as RGB", code="image.mode"
        ) from None


def _on_white(image: Image.Image, notices: list[str]) -> Image.Image:
    """Composited on white. A picture whose alpha is opaque throughout keeps its colours bit by bit."""
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    rgba = (image.convert(straight) if straight else image).convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return rgba.convert("RGB")
    notices.append("transparent parts are seen as white")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=alpha)
    return white


def _grey8(image: Image.Image, label: str, notices: list[str]) -> NDArray[np.uint8]:
    """Integers and floats as 8-bit grey [H, W]: 16 bits by their full range, others by the range they seem to have."""
    values: NDArray[Any] = np.asarray(image)
    grey = np.empty(values.shape, np.uint8)
    low, high = _range(image, values, label)
    if (low, high) not in ((0, 1), (0, 255), (0, 65535)):
        notices.append(f"values from {low:g} to {high:g} are seen as black to white")
    scale = 255 / (high - low if high > low else 1)
    for rows in _bands(values):
        grey[rows] = np.rint((values[rows].astype(np.float64) - low) * scale)
    return grey


def _range(image: Image.Image, values: NDArray[Any], label: str) -> tuple[float, float]:
    """The values that are black and white."""
    if image.mode.startswith("I;16"):
        return 0, 65535
    low, high = np.inf, -np.inf
    for rows in _bands(values):
        low, high = min(low, float(values[rows].min())), max(high, float(values[rows].max()))
        if not np.isfinite((low, high)).all() or np.isnan(values[rows]).any():
            raise BadImage(f"{label}: some values are not finite: save it as 8-bit PNG", code="image.not_finite")
    if low < 0:
        return low, high
    full_ranges = [1, 255]
    if image.mode == "I":  # in files 16 bits or more, made in memory often 8
        full_ranges = [65535] if image.format else [255, 65535]
    return next(((0, full) for full in full_ranges if high <= full), (low, high))


def _bands(values: NDArray[Any]) -> Iterator[slice]:
    step = max(1, _BAND // values.shape[1])
    return (slice(row, row + step) for row in range(0, values.shape[0], step))
