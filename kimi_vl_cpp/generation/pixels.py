"""The pixels of a request's pictures, until each has been encoded.

Owns how much of them is kept. Does not know in which order they are wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..errors import BadImage, shown
from ..media.processor import ProcessedImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..media.processor import ImageInput, ImageProcessor, LimitedImage

KEPT_PIXEL_BYTES = 32 << 20


class PixelSource:
    """KEPT_PIXEL_BYTES are kept; other pictures are opened again when their turn comes, so that memory does not grow
    with their number. getters: digest -> what returns the picture's uint8 [H, W, 3], or raises BadImage."""

    def __init__(self, processor: ImageProcessor) -> None:
        self.getters: dict[str, Callable[[], NDArray[np.uint8]]] = {}
        self._processor = processor
        self._room = KEPT_PIXEL_BYTES

    def add(self, digest: str, image: ImageInput | LimitedImage | ProcessedImage, seen: ProcessedImage) -> None:
        """digest: what asks for it. image: what was given. seen: the same as processed."""
        if digest in self.getters:
            return
        if isinstance(image, ProcessedImage):  # whose pixels the caller keeps, or that makes them itself
            self.getters[digest] = lambda: seen.pixels
        elif seen.pixels.nbytes <= self._room:
            self._room -= seen.pixels.nbytes
            self.getters[digest] = lambda: seen.pixels
        else:
            self.getters[digest] = partial(self._again, image, seen.digest)

    def _again(self, image: ImageInput | LimitedImage | ProcessedImage, digest: str) -> NDArray[np.uint8]:
        seen = self._processor(image)
        if seen.digest != digest:
            raise BadImage(
                f"picture {shown(image)}: it changed while the request was running: ask again", "image.changed"
            )
        return seen.pixels
