"""The picture as the model sees it: scaled to the patch budget, then padded to whole blocks of patches.

Owns the geometry, which is that of the Hugging Face processor: the same bytes for every upright RGB picture. Pillow's
bicubic filter scales, because it defines those bytes. What the bytes of a file mean is for `open`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import BadImage, BadRequest, OutOfMemory, shown
from .drawn import Drawn, text_around
from .open import MAX_PIXELS, ImageInput, is_bare_base64, load_data_url, open_image

__all__ = ["ImageInput", "ImageProcessor", "LimitedImage", "ProcessedImage", "is_bare_base64", "load_data_url"]


@dataclass(frozen=True)
class ProcessedImage:
    """One picture, ready to be encoded. Two are equal when the model sees the same."""

    source: NDArray[np.uint8] | Callable[[], NDArray[np.uint8]] = field(repr=False, compare=False)
    """The pixels, or what makes them again, see `ImageProcessor.redrawable`."""
    grid_hw: tuple[int, int] = field(compare=False)
    """Patches down and across."""
    n_tokens: int = field(compare=False)
    """Positions that it takes in the context."""
    original_size: tuple[int, int] = field(compare=False)
    """Width and height of the upright picture."""
    resized_size: tuple[int, int] = field(compare=False)
    """Width and height before padding."""
    digest: str
    """SHA-256 of grid and pixels: the same digest, the same embeddings."""
    notices: list[str] = field(default_factory=list, compare=False)
    """What the caller may want to know: first frame only, transparency on white, ..."""
    label: str = field(default="", compare=False)
    """The text that stands before it in a prompt, such as its page number."""
    caption: str = field(default="", compare=False)
    """The text that stands behind it, such as the text layer of its page."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """[H, W, 3], read-only; H and W are multiples of merge * patch_size (28)."""
        return self.source() if callable(self.source) else self.source


@dataclass(frozen=True)
class LimitedImage:
    """A picture with a limit of its own: max_patches, above which it is scaled down, where that is less than the
    processor's in_token_limit."""

    image: ImageInput
    max_patches: int

    @property
    def label(self) -> str:
        """The picture's own."""
        return text_around(self.image)[0]

    @property
    def caption(self) -> str:
        """The picture's own."""
        return text_around(self.image)[1]


class ImageProcessor:
    """Turns any `ImageInput` into a `ProcessedImage`.

    in_token_limit: patches (before the 2 x 2 merge) above which a picture is scaled down; 4096 or 16384 by the
        model's variant.
    max_grid_side: patches a side that the model's rotary table knows; longer pictures are refused.
    max_pixels: largest picture that is decoded at all.
    """

    def __init__(
        self,
        patch_size: int = 14,
        merge: int = 2,
        in_token_limit: int = 4096,
        max_grid_side: int = 512,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        for name, value, low in (("in_token_limit", in_token_limit, merge * merge), ("max_pixels", max_pixels, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise BadRequest(
                    f"{name} is {shown(value)}, expected a whole number of at least {low}", code=f"request.{name}"
                )
        self.patch_size = patch_size
        self.merge = merge
        self.in_token_limit = in_token_limit
        self.max_grid_side = max_grid_side
        self.max_pixels = max_pixels

    def plan(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(width, height) of an upright picture -> its size after scaling and after padding, both (width, height).

        The budget is held against the patches that fit whole into the picture, so padding may exceed it a little.

        Raises BadImage (image.too_many_patches) for a side of max_grid_side patches or more.
        """
        patches = (width // self.patch_size) * (height // self.patch_size)
        resized = (width, height)
        if patches > self.in_token_limit:
            scale = math.sqrt(self.in_token_limit / patches)
            resized = (max(1, int(width * scale)), max(1, int(height * scale)))
        padded = self._whole_blocks(*resized)
        if max(padded) // self.patch_size >= self.max_grid_side:
            limit = self.max_grid_side * self.patch_size
            raise BadImage(
                f"picture of {width} x {height} pixels becomes {padded[0]} x {padded[1]}: a side must stay "
                f"below {limit} pixels ({self.max_grid_side} patches): scale it down or cut it into parts",
                code="image.too_many_patches",
            )
        return resized, padded

    def __call__(self, image: ImageInput | ProcessedImage | LimitedImage) -> ProcessedImage:
        """Decode, scale and pad; what is processed already comes back as it is. Raises BadImage and OutOfMemory."""
        if isinstance(image, ProcessedImage):
            return image
        if isinstance(image, LimitedImage):
            return self.limited(image.max_patches)(image.image)
        if isinstance(image, Drawn):
            size = self.largest(image)
            resized, padded = self.plan(*size)
            return self._padded(image.draw(*resized), size, padded, [], text_around(image))
        # Planned twice: by the header, so that a picture that is refused is never decoded, and by what was decoded, as
        # EXIF may have turned it and the headers of some containers are wrong.
        opened = open_image(image, self.max_pixels, accept=self.plan)
        size = opened.original_size
        resized, padded = self.plan(*size)
        rgb = opened.image if resized == size else scaled(opened.image, resized)
        return self._padded(np.asarray(rgb), size, padded, opened.notices)

    def padded(self, pixels: NDArray[np.uint8]) -> ProcessedImage:
        """Pixels that were made in the size after scaling which `plan` gave, uint8 [H, W, 3]: they are only padded."""
        size = (pixels.shape[1], pixels.shape[0])
        return self._padded(pixels, size, self._whole_blocks(*size), [])

    def redrawable(self, image: ImageInput | ProcessedImage | LimitedImage) -> ProcessedImage:
        """The same for a picture that is kept for long: the pixels of a page are let go and drawn again when they are
        wanted. Raises like a call."""
        seen = self(image)
        drawn = image.image if isinstance(image, LimitedImage) else image
        return replace(seen, source=lambda: self(image).pixels) if isinstance(drawn, Drawn) else seen

    def limited(self, max_patches: int) -> ImageProcessor:
        """This one with a limit of max_patches where its own is higher."""
        limit = min(self.in_token_limit, max_patches)
        return ImageProcessor(self.patch_size, self.merge, limit, self.max_grid_side, self.max_pixels)

    def largest(self, image: Drawn) -> tuple[int, int]:
        """The largest size, in pixels, that a picture is worth drawing at: one that is not scaled down, and its own
        where it has one. Raises BadImage when it cannot be drawn."""
        if image.native_size is not None:
            return image.native_size
        width, height = image.size
        scale = self.patch_size * math.sqrt(self.in_token_limit / (width * height))
        return max(1, int(width * scale)), max(1, int(height * scale))

    def _whole_blocks(self, width: int, height: int) -> tuple[int, int]:
        """The size after padding: whole blocks of merge x merge patches."""
        unit = self.patch_size * self.merge
        return -(-width // unit) * unit, -(-height // unit) * unit

    def _padded(
        self,
        rgb: NDArray[np.uint8],
        original: tuple[int, int],
        padded: tuple[int, int],
        notices: list[str],
        around: tuple[str, str] = ("", ""),
    ) -> ProcessedImage:
        height, width = rgb.shape[:2]
        pixels = np.zeros((padded[1], padded[0], 3), np.uint8)
        pixels[:height, :width] = rgb
        pixels.setflags(write=False)
        grid = (padded[1] // self.patch_size, padded[0] // self.patch_size)
        digest = hashlib.sha256(f"{grid[0]}x{grid[1]}:".encode())
        digest.update(pixels.data)
        tokens = grid[0] * grid[1] // (self.merge * self.merge)
        return ProcessedImage(pixels, grid, tokens, original, (width, height), digest.hexdigest(), notices, *around)


def scaled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Pillow's bicubic filter, first along the rows, then along the columns, with 8 bits between the two.

    Pillow below 13 does the same in one call. Pillow 13 begins with the columns of pictures that are more than twice as
    high as wide (python-pillow/Pillow#9549), which moves bytes by one; the model is older than that.
    """
    try:
        rows = image.resize((size[0], image.height), Image.Resampling.BICUBIC)
        return rows.resize(size, Image.Resampling.BICUBIC)
    except MemoryError:
        raise OutOfMemory("picture: not enough memory to scale it: scale it down first", code="memory.image") from None
