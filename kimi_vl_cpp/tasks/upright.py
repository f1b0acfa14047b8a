"""Scans that lie on their side: which way up they are, by a look at them in small."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from PIL import Image

from ..media.drawn import Drawn, Turned
from ..media.open import open_image
from .looking import likelihoods

if TYPE_CHECKING:
    from ..media.processor import ImageInput
    from ..model import KimiVL

REQUEST = (
    "This page may have been scanned on its side. At which side of the picture is the top of the text? Answer with one "
    "word: top, right, bottom or left."
)
_SIDES = ("top", "right", "bottom", "left")  # and the quarter turns counter-clockwise that bring each to the top
_SURE = 0.5  # probability above which a page is turned
_TURN = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def quarter_turns(model: KimiVL, image: ImageInput) -> int:
    """The quarter turns counter-clockwise, 0 to 3, that make a page upright; 0 where the model is not sure. Raises what
    `KimiVL.chat` raises."""
    likely = likelihoods(model, image, REQUEST, _SIDES)
    sure = [turns for turns, side in enumerate(_SIDES) if likely[side] > math.log(_SURE)]
    return sure[0] if len(sure) == 1 else 0


def turned(image: ImageInput, turns: int) -> ImageInput:
    """The picture turned counter-clockwise by quarters. Raises BadImage."""
    if isinstance(image, Drawn):
        return Turned(image, turns)
    picture = open_image(image).image
    way = _TURN[turns % 4]
    return picture if way is None else picture.transpose(way)
