"""What -v names: videos, a range of their times, and the frames of them that are asked about."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from ..media.named_part import split
from . import exits, opening

if TYPE_CHECKING:
    from ..media.frames import FrameChoice
    from ..media.subtitles import Cue
    from ..media.timed import TimedVideo
    from ..model import KimiVL

SUFFIXES = exits.VIDEO_SUFFIXES | {".ts", ".gif"}  # which are more often something else where no video is asked for
_SMALLER_PATCHES = 256
_BESIDE = "auto"

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
Subtitles = Annotated[
    str | None,
    typer.Option(
        "--subtitles",
        metavar="FILE",
        help="What is said in the video, .srt or .vtt; auto: the file of that kind beside the video.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """The options that say which frames of videos are taken."""

    frames: int | None = None
    sample: str = "uniform"
    fps: float | None = None
    timestamps: str = "hms"
    dedupe: bool = False
    subtitles: str | None = None

    def choice(self, patches: int | None) -> FrameChoice:
        """The same as the library takes it. patches: of a frame, None for the default. Raises BadRequest."""
        from ..media.frames import DEFAULT_FRAMES, DEFAULT_PATCHES, FrameChoice

        given: dict[str, Any] = {
            "sampling": "rate" if self.fps is not None else self.sample,
            "n": DEFAULT_FRAMES if self.frames is None else self.frames,
            "fps": 1.0 if self.fps is None else self.fps,
            "patches": DEFAULT_PATCHES if patches is None else patches,
            "timestamps": self.timestamps,
            "dedupe": self.dedupe,
        }
        chosen = FrameChoice(**given)
        chosen.check()
        return chosen


@dataclass(frozen=True)
class Asked:
    """Times of one video that are asked about, and its subtitles. part: the range that the times are from."""

    video: TimedVideo
    times: list[float]
    part: tuple[float, float]
    cues: Sequence[Cue] = ()


def is_video(path: str) -> bool:
    """Whether a regular file begins like a video that is not a picture; a pipe is not touched. False for what cannot be
    read: opening it says why."""
    from ..media.video import is_video

    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return is_video(file.read(1024))
    except (OSError, ValueError):
        return False


def open_video(name: str, isolate: bool = False) -> tuple[TimedVideo, float, float]:
    """The video that -v names, and the range of its times. isolate: --isolate. Raises BadVideo, Unsupported."""
    from ..media import isolated
    from ..media.frames import range_of
    from ..media.video import Video

    path, named = split(name)
    path = opening.resolve_picture(path)
    exits.check_readable(path, "video", SUFFIXES, errors.BadVideo, "video.missing")
    video = isolated.open_video(path) if isolate else Video(path)
    return video, *range_of(video, named)


def open_subtitles(name: str, given: str | None) -> tuple[list[Cue], list[str]]:
    """The subtitles of the video that `name` names, and a notice when they lie beside it and were not asked for. given:
    --subtitles. Raises BadVideo, UsageError."""
    from ..media import subtitles

    path = opening.resolve_picture(split(name)[0])
    found = subtitles.beside(path)
    if given is None:
        if found is None:
            return [], []
        return [], [f"{opening.display_name(found)} lies beside the video: --subtitles auto gives the model its text"]
    if given != _BESIDE:
        return subtitles.read(given), []
    if found is None:
        wanted = " or ".join(os.path.splitext(path)[0] + suffix for suffix in subtitles.SUFFIXES)
        raise errors.BadVideo(f"--subtitles auto: there is no {wanted}: name the file", "video.subtitles")
    return subtitles.read(found), []


def plan(
    names: Sequence[str], chosen: FrameChoice, subtitles: str | None = None, isolate: bool = False
) -> tuple[list[Asked], list[str]]:
    """Opens the videos, chooses the times of their frames, and reads subtitles; notices. Raises BadVideo, Unsupported,
    UsageError."""
    from ..media.frames import times_of

    if subtitles not in (None, _BESIDE) and len(names) > 1:
        raise exits.UsageError(f"--subtitles is for one video, but {len(names)} were given: name it auto")
    found, notices = [], []
    for name in names:
        cues, said = open_subtitles(name, subtitles)
        notices += said
        video, start, end = open_video(name, isolate)
        found.append(Asked(video, times_of(video, start, end, chosen), (start, end), cues))
    return found, notices


def positions(asked: Sequence[Asked], chosen: FrameChoice, model: KimiVL) -> int:
    """Positions that the frames take, with the subtitles between them."""
    from ..media import frames
    from ..media.subtitles import between

    processor = model.loaded.processor
    total = 0
    for one in asked:
        total += frames.positions(one.video, len(one.times), processor, chosen.patches)
        total += sum(len(model.tokenize(text)) for text in between(one.cues, one.times, *one.part))
    return total


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
        seen, said = frames.pictures(one.video, model.loaded.processor, one.times, chosen, one.cues, one.part)
        found += seen
        notices += said
    return found, notices
