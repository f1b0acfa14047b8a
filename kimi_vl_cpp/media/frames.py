"""Frames of a video as pictures for a prompt, each behind its time.

Owns which frames: uniform, by rate, by scene, without those that show the same as the one before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..checks import check_int
from ..errors import BadRequest, BadVideo, shown
from . import cuts, sampling, subtitles
from .named_part import split
from .processor import ImageProcessor, ProcessedImage
from .subtitles import Cue
from .timed import TimedVideo
from .times import TimeStyle, labels, parse_range
from .video import Video

Sampling = Literal["uniform", "rate", "scenes"]

MAX_FRAMES = 512
DEFAULT_FRAMES = 32
DEFAULT_PATCHES = 512
_AROUND = 16  # tokens of a frame's time and of the template around it


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """Which frames are taken, and how they are given.

    sampling: "uniform" (n equal parts), "rate" (fps a second), "scenes" (of every shot). n: frames at most, 1 to 512.
    fps: for "rate". patches: 14x14 patches of a frame at most. timestamps: the text before a frame. dedupe: leaves out
    frames that show the same as the one before.
    """

    sampling: Sampling = "uniform"
    n: int = DEFAULT_FRAMES
    fps: float = 1.0
    patches: int = DEFAULT_PATCHES
    timestamps: TimeStyle = "hms"
    dedupe: bool = False

    def check(self) -> None:
        """Raises BadRequest (code "request.<field>")."""
        check_int("frames", self.n, 1, MAX_FRAMES)
        check_int("image_patches", self.patches, 4, 512 * 512)
        if isinstance(self.fps, bool) or not isinstance(self.fps, (int, float)) or not 0 < self.fps <= 1000:
            raise BadRequest(f"fps: got {shown(self.fps)}, expected frames a second above 0 to 1000", "request.fps")
        for name, value, allowed in (
            ("sampling", self.sampling, get_args(Sampling)),
            ("timestamps", self.timestamps, get_args(TimeStyle)),
        ):
            if value not in allowed:
                listed = ", ".join(map(repr, allowed))
                raise BadRequest(f"{name}: got {shown(value)}, expected one of {listed}", f"request.{name}")


def open_named(source: TimedVideo | str | os.PathLike[str]) -> tuple[TimedVideo, str | None]:
    """The video of a path, and the range of times that stands behind a "#" there."""
    if isinstance(source, TimedVideo):
        return source, None
    path, named = split(os.fspath(source))
    return Video(path), named


def range_of(video: TimedVideo, text: str | None) -> tuple[float, float]:
    """The start and end, in seconds, that a text names; None is all of the video. Raises BadVideo."""
    return (0.0, video.duration) if text is None else parse_range(text, video.duration, video.name)


def times_of(video: TimedVideo, start: float, end: float, choice: FrameChoice) -> list[float]:
    """The times of [start, end) to look at. Raises BadVideo (code "video.frames") for a rate that gives too many."""
    choice.check()
    if choice.sampling == "rate":
        times = sampling.by_rate(start, end, choice.fps)
        if len(times) > choice.n:
            raise BadVideo(
                f"{video.name}: {choice.fps:g} frames a second of {end - start:.0f} s are {len(times)} frames, "
                f"expected at most {choice.n}: allow more (up to {MAX_FRAMES}), or take a lower rate or a shorter part",
                "video.frames",
            )
        return times
    if choice.sampling == "scenes":
        return sampling.by_scene(start, end, find_cuts(video, start, end), choice.n)
    return sampling.uniform(start, end, choice.n)


def find_cuts(video: TimedVideo, start: float, end: float) -> list[float]:
    """The times of cuts in [start, end)."""
    times: list[float] = []

    def frames() -> Iterator[NDArray[np.float32]]:
        for time, pixels in video.every(start, end, cuts.SCAN_FPS, lambda width, height: cuts.SIZE):
            times.append(time)
            yield cuts.grey(pixels)

    small = list(frames())
    return cuts.find_cuts(times, small)


def positions(video: TimedVideo, n: int, processor: ImageProcessor, patches: int) -> int:
    """Positions that n frames take in a prompt, with the text and the template's tokens around each."""
    _, (width, height) = processor.limited(patches).plan(*video.size)
    return n * (width * height // (processor.patch_size * processor.merge) ** 2 + _AROUND)


def pictures(
    video: TimedVideo,
    processor: ImageProcessor,
    times: Sequence[float],
    choice: FrameChoice,
    cues: Sequence[Cue] = (),
    part: tuple[float, float] | None = None,
) -> tuple[list[ProcessedImage], list[str]]:
    """The frames at the times, each with the text before it as its label, and notices.

    cues: subtitles, which stand behind the time of the frame that they are nearest to. part: the start and end of what
    the times are from; None is all of the video. Subtitles of elsewhere are left out.
    """
    limited = processor.limited(choice.patches)
    found = list(_kept(video.frames(times, lambda width, height: limited.plan(width, height)[0]), choice.dedupe))
    seen = [limited.padded(pixels) for _, pixels in found]
    named = labels([time for time, _ in found], choice.timestamps)
    if cues:
        said = subtitles.between(cues, [time for time, _ in found], *(part or (0.0, video.duration)))
        named = [f"{label}{text}\n" if text else label for label, text in zip(named, said, strict=True)]
    notices = list(video.notices)
    if len(found) < len(times):
        notices.append(
            f"{video.name}: {len(times) - len(found)} of {len(times)} frames show the same as the one before and are "
            "left out"
        )
    return [
        replace(one, label=label, original_size=video.size) for one, label in zip(seen, named, strict=True)
    ], notices


def choose(
    video: TimedVideo, processor: ImageProcessor, choice: FrameChoice, part: str | None, cues: Sequence[Cue] = ()
) -> tuple[list[ProcessedImage], list[str]]:
    """The frames of a part of a video, see `range_of`, `times_of` and `pictures`."""
    start, end = range_of(video, part)
    return pictures(video, processor, times_of(video, start, end, choice), choice, cues, (start, end))


def _kept(frames: Iterable[tuple[float, NDArray[np.uint8]]], dedupe: bool) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Each frame once, without those that show the same as the last that was kept."""
    last_time, last_small = -1.0, None
    for time, pixels in frames:
        if time == last_time:
            continue
        small = _thumbnail(pixels) if dedupe else None
        if small is not None and last_small is not None and cuts.is_same(small, last_small):
            continue
        last_time, last_small = time, small
        yield time, pixels


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """32 x 18 means of blocks, grey."""
    light = cuts.grey(pixels)
    rows, columns = (np.linspace(0, n, parts + 1).astype(int) for n, parts in zip(light.shape, (18, 32), strict=True))
    if min(light.shape) < 32:
        return light
    sums = np.add.reduceat(np.add.reduceat(light, rows[:-1], axis=0), columns[:-1], axis=1)
    counts = np.diff(rows)[:, None] * np.diff(columns)[None, :]
    result: NDArray[np.float32] = (sums / counts).astype(np.float32)
    return result
