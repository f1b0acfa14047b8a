"""Times of a video as users write them, `talk.mp4#00:10:00-00:20:00`, and as prompts name them. Knows no video."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from ..errors import BadVideo, shown

TimeStyle = Literal["hms", "hms.mmm", "seconds", "none"]
"""How a prompt names a frame's time: 00:12:34, 00:12:34.500, "754.5 s", or not at all."""

_CLOCK = r"(?:(?:(\d{1,3}):)?(\d{1,3}):)?(\d{1,6}(?:\.\d{1,6})?)"
_TIME = re.compile(_CLOCK)
_RANGE = re.compile(rf"({_CLOCK})?\s*-\s*({_CLOCK})?")


def seconds(text: str) -> float | None:
    """The seconds of "1:02:03.5", "2:03" or "123"; None for anything else."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    hours, minutes, rest = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest)


def parse_range(text: str, duration: float, label: str) -> tuple[float, float]:
    """The start and the end of a range, in seconds: "10:00-20:00", "10:00-", "-0:30".

    label: what messages call the video. Raises BadVideo (code "video.range").
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None or not (match[1] or match[5]):
        raise BadVideo(
            f"{label}: {shown(text)} is not a range of times: expected for example #00:10:00-00:20:00", "video.range"
        )
    start = (seconds(match[1]) or 0.0) if match[1] else 0.0
    end = duration if not match[5] else seconds(match[5]) or 0.0
    if start >= duration:
        raise BadVideo(f"{label}: starts at {clock(start)}, the video ends at {clock(duration)}", "video.range")
    if end <= start:
        raise BadVideo(f"{label}: {shown(text)} ends before it begins: write the earlier time first", "video.range")
    return start, min(end, duration)


def clock(time: float, *, milliseconds: bool = False) -> str:
    """00:12:34, or 00:12:34.500."""
    thousandths = round(time * 1000) if milliseconds else int(time + 1e-6) * 1000
    whole, rest = divmod(thousandths, 1000)
    text = f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{text}.{rest:03d}" if milliseconds else text


def labels(times: Sequence[float], style: TimeStyle) -> list[str]:
    """The text before each frame, with its newline. hms becomes hms.mmm where two frames share a second."""
    if style == "none":
        return [""] * len(times)
    if style == "seconds":
        return [f"{time:.1f} s\n" for time in times]
    short = [clock(time) for time in times]
    fine = style == "hms.mmm" or len(set(short)) < len(short)
    return [f"{clock(time, milliseconds=True)}\n" for time in times] if fine else [f"{one}\n" for one in short]
