"""A contact sheet: frames of a video in rows, each above its time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import BadRequest
from .times import clock

if TYPE_CHECKING:
    from PIL import Image

CELL_WIDTH = 240
MAX_SIDE = 16_000
_GAP, _TEXT = 8, 20


def cell(width: int, height: int) -> tuple[int, int]:
    """The size of a frame on the sheet, from that of the upright frame."""
    return CELL_WIDTH, max(1, round(height * CELL_WIDTH / width))


def contact_sheet(frames: Sequence[tuple[float, NDArray[np.uint8]]], columns: int = 6) -> Image.Image:
    """frames: times in seconds, and uint8 [height, width, 3] of the size that `cell` gives, at least one.

    Raises BadRequest (code "request.frames") for a sheet with a side above MAX_SIDE.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    height = frames[0][1].shape[0]
    size = (_GAP + columns * (CELL_WIDTH + _GAP), _GAP + rows * (height + _TEXT + _GAP))
    if max(size) > MAX_SIDE:
        raise BadRequest(
            f"frames: a sheet of {len(frames)} frames has {size[0]} x {size[1]} pixels, expected sides of at most "
            f"{MAX_SIDE}: take fewer frames",
            "request.frames",
        )
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for index, (time, pixels) in enumerate(frames):
        row, column = divmod(index, columns)
        x, y = _GAP + column * (CELL_WIDTH + _GAP), _GAP + row * (height + _TEXT + _GAP)
        sheet.paste(Image.fromarray(pixels), (x, y))
        pen.text((x, y + height + 2), clock(time), fill="black", font=font)
    return sheet
