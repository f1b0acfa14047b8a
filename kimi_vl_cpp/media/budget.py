"""How large pictures may be so that all of them fit: patches a picture, on a fixed ladder. Arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BadImage
from .drawn import Drawn
from .processor import ImageProcessor

LADDER = (256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
"""The budgets that are chosen from, so that a picture is met again in the same size."""

DOCUMENT_FLOOR = 2048
"""Patches of a page below which print is hard to read: an A4 page has 64 dots an inch there."""


def rungs(floor: int, top: int) -> list[int]:
    """`top` and the ladder's budgets below it down to `floor`, the highest first."""
    return [top, *(rung for rung in reversed(LADDER) if min(floor, top) <= rung < top)]


def tokens_at(processor: ImageProcessor, images: Sequence[Drawn], patches: int) -> int:
    """Positions that pictures drawn for `patches` each take, without the template's tokens around them."""
    total = 0
    limited = processor.limited(patches)
    for image in images:
        _, (width, height) = limited.plan(*limited.largest(image))
        total += width * height // (processor.patch_size * processor.merge) ** 2
    return total


def largest(processor: ImageProcessor, images: Sequence[Drawn], floor: int) -> int:
    """The highest rung at which every picture can be drawn: a long strip has too long a side at higher ones. Raises
    BadImage (code "image.too_many_patches") when there is none."""
    *higher, lowest = rungs(floor, processor.in_token_limit)
    for rung in higher:
        try:
            tokens_at(processor, images, rung)
        except BadImage:
            continue
        return rung
    tokens_at(processor, images, lowest)
    return lowest


def fit(processor: ImageProcessor, images: Sequence[Drawn], room: int, floor: int) -> int | None:
    """The highest rung at which all pictures take at most `room` positions, or None below `floor`. Raises like
    `largest`."""
    top = largest(processor, images, floor)
    for rung in rungs(floor, processor.in_token_limit):
        if rung <= top and tokens_at(processor, images, rung) <= room:
            return rung
    return None
