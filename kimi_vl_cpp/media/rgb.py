"""From whatever mode a picture is in to upright 8-bit RGB: orientation, transparency, deep greys.

docs/pictures.md says the same for users. An upright RGB or grey picture passes through bit by bit; where a picture has
more than that (alpha, 16 bits), what a viewer would show decides, not what the Hugging Face processor does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
_WHITES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)  # of 8, 10, 12, 14 and 16 bits, in whatever type they are kept
_BAND = 1 << 20  # pixels that are held as floats at a time


def upright(rgb: Image.Image, image: Image.Image, notices: list[str]) -> Image.Image:
    """`rgb` turned as the EXIF orientation of `image`, which it was made from, says; itself when that is upright."""
    if len(image.info.get("exif") or b"") > _MAX_EXIF:
        notices.append(f"its EXIF data of more than {_MAX_EXIF >> 20} MiB was not used")
        return rgb
    try:
        with pillow_at_work(notices):
            method = _TO_UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # the decoder of EXIF raises all sorts of things
        notices.append("its EXIF data is damaged and was not used")
        return rgb
    if method is None:
        return rgb
    try:
        return rgb.transpose(method)
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
    """Composited on white. A picture whose alpha is opaque throughout keeps its colours bit by bit, and so does one
    that is transparent throughout although it has colours: programs that do not use alpha leave it at 0.
    """
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    rgba = (image.convert(straight) if straight else image).convert("RGBA")
    alpha = rgba.getchannel("A")
    lowest, highest = alpha.getextrema()
    if lowest == 255:
        return rgba.convert("RGB")
    if highest == 0:
        rgb = rgba.convert("RGB")
        if any(low != high for low, high in map(Image.Image.getextrema, rgb.split())):
            notices.append("all of it is transparent: its colours are seen as if it were opaque")
            return rgb
        notices.append("all of it is transparent and is seen as white")
        return Image.new("RGB", rgba.size, (255, 255, 255))
    notices.append("transparent parts are seen as white")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=alpha)
    return white


def _grey8(image: Image.Image, label: str, notices: list[str]) -> NDArray[np.uint8]:
    """Integers and floats as 8-bit grey [H, W], by the range that they seem to have."""
    values: NDArray[Any] = np.asarray(image)
    if _unsigned(image):
        values = values.view(np.uint32)
    grey = np.empty(values.shape, np.uint8)
    low, high = _extrema(values, label)
    black, white = _black_and_white(low, high, (1.0, *_WHITES) if image.mode == "F" else _WHITES)
    usual = {"F": (1, 255), "I": (255, 65535) if not image.format else (65535,)}.get(image.mode, (65535,))
    if high > low and (black, white) not in [(0, full) for full in usual]:
        notices.append(
            f"its grey values lie between {low:g} and {high:g}: {black:g} is seen as black, {white:g} as white"
        )
    scale = 255 / (white - black if white > black else 1)
    for rows in _bands(values):
        grey[rows] = np.rint((values[rows].astype(np.float64) - black) * scale)
    return grey


def _unsigned(image: Image.Image) -> bool:
    """Whether the numbers of mode I are those of an unsigned TIFF, which Pillow gives as signed ones."""
    tags = getattr(image, "tag_v2", None)
    return image.mode == "I" and tags is not None and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,)


def _extrema(values: NDArray[Any], label: str) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for rows in _bands(values):
        low, high = min(low, float(values[rows].min())), max(high, float(values[rows].max()))
        if not np.isfinite((low, high)).all() or np.isnan(values[rows]).any():
            raise BadImage(f"{label}: some values are not finite: save it as 8-bit PNG", code="image.not_finite")
    return low, high


def _black_and_white(low: float, high: float, whites: Sequence[float]) -> tuple[float, float]:
    """The values that are black and white: 0 and the smallest of `whites` that all values fit below, as far as they
    use a quarter of that; else their own range."""
    if low < 0 or high > whites[-1]:
        return low, high
    white = next(full for full in whites if high <= full)
    return 0, white if 4 * high >= white or high == 0 else high


def _bands(values: NDArray[Any]) -> Iterator[slice]:
    step = max(1, _BAND // values.shape[1])
    return (slice(row, row + step) for row in range(0, values.shape[0], step))
