"""The parts of a message that carry a video: `video_url`, and `video` as Qwen's clients write it.

Its options stand beside the url. What stands behind a url that is not a data: URL is for whoever opens it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from ..errors import BadRequest
from ..media import frames
from ..media.frames import FrameChoice, Sampling
from ..media.open import load_data_url
from ..media.processor import ProcessedImage
from ..media.times import TimeStyle
from .fields import about, bad, boolean, integer, number, shown, unsupported

VIDEO_PARTS = ("video_url", "video")
_MAX_RANGE = 64  # characters


@dataclass(frozen=True)
class VideoPart:
    """A video in a message. place: its field. source: its bytes, or the URL or path that names it. times: the range of
    it, None for all."""

    place: str
    source: bytes | str
    times: str | None
    choice: FrameChoice


OpenVideo = Callable[[VideoPart], tuple[list[ProcessedImage], list[str]]]
"""The frames of a video, each with its time as its label, and notices."""


def refuse(part: VideoPart) -> tuple[list[ProcessedImage], list[str]]:
    """An `OpenVideo` where videos are not opened."""
    raise unsupported(part.place, "a video is not opened here: send frames of it as pictures", "unsupported.part")


def read_video_part(
    where: str, part: Mapping[str, Any], max_patches: Callable[[str, Mapping[str, Any]], int | None]
) -> VideoPart:
    """Reads the part at `where`. max_patches: reads `detail` and `max_patches` of the options at a place. Raises
    BadRequest, BadImage (for base64 that is damaged), Unsupported."""
    kind = part["type"]
    place, inner = f"{where}.{kind}", part.get(kind)
    if isinstance(inner, (list, tuple)):
        raise unsupported(place, "a list of frames: send each as an image_url part", "unsupported.part")
    options = inner if isinstance(inner, Mapping) else part
    url = options.get("url") if isinstance(inner, Mapping) else inner
    if not isinstance(url, str):
        raise bad(place, f"got {shown(url)} as its url, expected a data:video/mp4;base64,... URL", "request.video_url")
    source: bytes | str = url
    if url.lstrip()[:5].lower() == "data:":
        with about(place):
            source = load_data_url(url, kinds=("video/",))
    times = options.get("range")
    if times is not None and (not isinstance(times, str) or len(times) > _MAX_RANGE):
        raise bad(
            f"{place}.range", f'got {shown(times)}, expected times such as "00:10:00-00:20:00"', "request.video_url"
        )
    return VideoPart(place, source, times, _choice(place, options, max_patches(place, options)))


def _choice(place: str, options: Mapping[str, Any], patches: int | None) -> FrameChoice:
    given = {name: value for name, value in options.items() if value is not None}
    fps = number(f"{place}.fps", given["fps"], 0.001, 1000) if "fps" in given else None
    styles = {"sampling": get_args(Sampling), "timestamps": get_args(TimeStyle)}
    for name, allowed in styles.items():
        if name in given and given[name] not in allowed:
            listed = ", ".join(f'"{one}"' for one in allowed)
            raise bad(f"{place}.{name}", f"got {shown(given[name])}, expected one of {listed}", "request.video_url")
    return FrameChoice(
        sampling=given.get("sampling", "uniform" if fps is None else "rate"),
        n=integer(f"{place}.frames", given.get("frames", frames.DEFAULT_FRAMES), 1, frames.MAX_FRAMES),
        fps=1.0 if fps is None else fps,
        patches=frames.DEFAULT_PATCHES if patches is None else patches,
        timestamps=given.get("timestamps", "hms"),
        dedupe=boolean(f"{place}.dedupe", given.get("dedupe", False)),
    )


def not_opened(part: VideoPart, hint: str) -> BadRequest:
    """The error of a URL or path that is not opened. hint: what to do."""
    return bad(part.place, f"got {shown(part.source)}, which is not opened here: {hint}", "request.video_url")
