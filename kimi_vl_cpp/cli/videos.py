"""What -v names: videos, a range of their times, and the frames of them that are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from ..media import times as clock
from . import exits, opening

if TYPE_CHECKING:
    from ..media.frames import FrameChoice
    from ..media.video import Video
    from ..model import KimiVL

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".gif"})
_SMALLER_PATCHES = 256

Videos = Annotated[
    list[str] | None,
    typer.Option(
        "-v",
        "--video",
        metavar="FILE",
        help="A video, perhaps with a range: talk.mp4#00:10:00-00:20:00. May be given several times.",
    ),
]
Frames = Annotated[
    int | None,
    typer.Option("--frames", metavar="N", help="Frames of a video at most. Default: 32.", show_default=False),
]
Sample = Annotated[
    str,
    typer.Option(
        "--sample",
        metavar="KIND",
        help="Which frames: uniform (equal parts of the video), rate (see --fps), scenes (of every shot).",
    ),
]
Fps = Annotated[
    float | None,
    typer.Option("--fps", metavar="R", help="Frames a second. Implies --sample rate.", show_default=False),
]
Timestamps = Annotated[
    str,
    typer.Option("--timestamps", metavar="STYLE", help="Text before a frame: hms (00:12:34), hms.mmm, seconds, none."),
]
Dedupe = Annotated[bool, typer.Option("--dedupe", help="Leave out frames that show the same as the one before.")]


@dataclass(frozen=True)
class Asked:
    """Times of one video that are asked about."""

    video: Video
    times: list[float]


def choice(
    frames: int | None, sample: str, fps: float | None, timestamps: str, dedupe: bool, patches: int | None
) -> FrameChoice:
    """The options as one. Raises BadRequest for a wrong value."""
    from ..media.frames import DEFAULT_FRAMES, DEFAULT_PATCHES, FrameChoice

    given: dict[str, Any] = {
        "sampling": "rate" if fps is not None else sample,
        "n": DEFAULT_FRAMES if frames is None else frames,
        "fps": 1.0 if fps is None else fps,
        "patches": DEFAULT_PATCHES if patches is None else patches,
        "timestamps": timestamps,
        "dedupe": dedupe,
    }
    chosen = FrameChoice(**given)
    chosen.check()
    return chosen


def open_video(name: str) -> tuple[Video, float, float]:
    """The video that -v names, and the range of its times. Raises BadVideo, Unsupported."""
    from ..media.frames import range_of
    from ..media.video import Video

    path, named = clock.split(name)
    path = opening.resolve_picture(path)
    exits.check_readable(path, "video", VIDEO_SUFFIXES, errors.BadVideo, "video.missing")
    video = Video(path)
    return video, *range_of(video, named)


def plan(names: Sequence[str], chosen: FrameChoice) -> list[Asked]:
    """Opens the videos and chooses the times of their frames. Raises BadVideo, Unsupported."""
    from ..media.frames import times_of

    found = []
    for name in names:
        video, start, end = open_video(name)
        found.append(Asked(video, times_of(video, start, end, chosen)))
    return found


def positions(asked: Sequence[Asked], chosen: FrameChoice, model: KimiVL) -> int:
    """Positions that the frames take."""
    from ..media import frames

    processor = model.loaded.processor
    return sum(frames.positions(one.video, len(one.times), processor, chosen.patches) for one in asked)


def pictures(
    asked: Sequence[Asked], chosen: FrameChoice, model: KimiVL, room: int, *, may_shrink: bool
) -> tuple[list[Any], list[str]]:
    """The frames as pictures, and notices. room: positions that there are for them. may_shrink: whether their size may
    be lowered, which a notice reports, so that they fit."""
    from ..media import frames

    notices = []
    if may_shrink and positions(asked, chosen, model) > room and chosen.patches > _SMALLER_PATCHES:
        notices.append(f"frames are seen at {_SMALLER_PATCHES} patches each, not {chosen.patches}, so that they fit")
        chosen = replace(chosen, patches=_SMALLER_PATCHES)
    found: list[Any] = []
    for one in asked:
        seen, said = frames.pictures(one.video, model.loaded.processor, one.times, chosen)
        found += seen
        notices += said
    return found, notices
