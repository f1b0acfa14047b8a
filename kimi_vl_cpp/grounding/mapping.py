"""From shares to pixels of the upright source picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..media.processor import ProcessedImage

Mapping = Literal["unpadded", "padded"]
"""What a share is a share of: the picture (as the maker's scripts compute it), or the picture with the black margin
that fills it up to whole patches, which is what the model sees. They differ by up to 27 pixels of the scaled side."""


Plan = Callable[[int, int], tuple[tuple[int, int], tuple[int, int]]]
"""Width and height of a picture -> its size after scaling, and after padding: `ImageProcessor.plan`."""


def unpadded(share: tuple[float, float], resized: tuple[int, int], padded: tuple[int, int]) -> tuple[float, float]:
    """The shares of the picture that shares of the padded picture mean; above 1 in the margin. Sizes: width, height."""
    return share[0] * padded[0] / resized[0], share[1] * padded[1] / resized[1]


def to_pixel(share: tuple[float, float], seen: ProcessedImage, mapping: Mapping = "unpadded") -> tuple[int, int]:
    """The pixel (x, y) of the upright source that shares of width and height mean."""
    width, height = seen.original_size
    x, y = unpadded(share, seen.resized_size, seen.pixels.shape[1::-1]) if mapping == "padded" else share
    return _pixel(x, width), _pixel(y, height)


def to_share(pixel: tuple[int, int], seen: ProcessedImage, mapping: Mapping = "unpadded") -> tuple[float, float]:
    """The shares of width and height that a pixel of the upright source is at: the way back."""
    width, height = seen.original_size
    x, y = pixel[0] / width, pixel[1] / height
    if mapping == "padded":
        x *= seen.resized_size[0] / seen.pixels.shape[1]
        y *= seen.resized_size[1] / seen.pixels.shape[0]
    return x, y


def _pixel(share: float, n: int) -> int:
    return max(0, min(n - 1, round(share * n)))
