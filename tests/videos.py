"""Videos for tests, made with PyAV. Each frame carries its number as a bar code, so that a test knows which it got."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

BITS = 12
_BLOCK = 8  # pixels of a bar


def coded(number: int, width: int = 128, height: int = 96, ground: Any = 90) -> np.ndarray:
    """A frame with its number in black and white blocks along the top."""
    frame = np.full((height, width, 3), ground, np.uint8)
    for bit in range(BITS):
        frame[:16, 8 + bit * _BLOCK : 8 + (bit + 1) * _BLOCK] = 255 if number >> bit & 1 else 0
    return frame


def number_of(pixels: np.ndarray) -> int:
    """The number in a frame, at any size of it."""
    height, width = pixels.shape[:2]
    row = pixels[round(height * 8 / 96)].mean(axis=-1)
    return sum(int(row[round((8 + (bit + 0.5) * _BLOCK) * width / 128)] > 128) << bit for bit in range(BITS))


def video(
    frames: Iterable[np.ndarray],
    *,
    times: Sequence[float] | None = None,
    fps: int = 10,
    container: str = "mp4",
    codec: str = "mpeg4",
    gop: int = 12,
    start: float = 0.0,
    aspect: Fraction | None = None,
    rotation: int = 0,
    sound: bool = False,
    edit: Callable[[Any], None] = lambda stream: None,
) -> bytes:
    """A file. times: of the frames, in seconds; None is one every 1 / fps."""
    file = io.BytesIO()
    base = Fraction(1, 1000)
    with av.open(file, "w", format={"mkv": "matroska", "ts": "mpegts"}.get(container, container)) as out:
        stream = out.add_stream(codec, rate=fps)
        stream.codec_context.time_base = base
        stream.codec_context.gop_size = gop
        audio = out.add_stream("aac", rate=8000) if sound else None
        edit(stream)
        for index, pixels in enumerate(frames):
            if index == 0:
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
                stream.bit_rate = 4_000_000
                if aspect is not None:
                    stream.codec_context.sample_aspect_ratio = aspect
                if rotation:
                    stream.set_display_rotation(rotation)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = round((start + (index / fps if times is None else times[index])) * 1000)
            frame.time_base = base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            out.mux(audio.encode(silence))
            out.mux(audio.encode(None))
    return file.getvalue()
