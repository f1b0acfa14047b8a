"""A video split into scenes: asking about windows of frames, reading the answers, and mending their times.

Owns the request, the form of an answer, and what is done about times that do not fit together. The journal keeps what
is done, and the caller writes files.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..media import frames, sampling
from ..media.times import clock, seconds
from .journal import Journal

if TYPE_CHECKING:
    from ..media.frames import FrameChoice
    from ..media.timed import TimedVideo
    from ..model import KimiVL

WINDOW = 32
"""Frames of one request."""
FPS = 0.5
LEAST_FRAMES = 8
REQUEST = (
    "These are frames of a part of a video, each behind its time. Split the part into scenes. Write one line for each "
    "scene, with its start, its end and a detailed description of what is seen, like this:\n"
    "- (00:00:00 - 00:00:15) description"
)

_LONGEST_ANSWER = 2048  # tokens
_TEMPLATE_TOKENS = 64
_NEAR_S = 1.0  # starts this near to a cut are at the cut; smaller gaps and overlaps are closed
_CLOCK = r"((?:\d{1,3}:)?\d{1,3}:\d{2}(?:[.,]\d{1,3})?)"
_LINE = re.compile(
    rf"\s*(?:[-*•]|\d{{1,3}}[.)])?\s*\**[\[(]?\s*{_CLOCK}\s*(?:[-–—~]|to)\s*{_CLOCK}\s*[\])]?\**\s*[:–—-]?\s*(.*)"
)


@dataclass(frozen=True)
class Scene:
    """A part of a video: seconds from its beginning, and what is seen. snapped: whether the start is that of a cut that
    was found in the pictures."""

    start: float
    end: float
    description: str
    snapped: bool = False


def window_size(model: KimiVL, video: TimedVideo, patches: int) -> int:
    """Frames of one request: WINDOW, or as many as fit into the context beside an answer."""
    room = model.n_ctx - _longest(model) - len(model.tokenize(REQUEST)) - _TEMPLATE_TOKENS
    return max(1, min(WINDOW, room // frames.positions(video, 1, model.loaded.processor, patches)))


def windows(start: float, end: float, fps: float, size: int = WINDOW) -> list[list[float]]:
    """The times of the frames of each request, at most `size`, over [start, end)."""
    n = max(math.ceil((end - start) * fps), LEAST_FRAMES)
    times = sampling.uniform(start, end, n)
    n_windows = math.ceil(len(times) / size)
    edges = [round(index * len(times) / n_windows) for index in range(n_windows + 1)]
    return [times[first:last] for first, last in itertools.pairwise(edges)]


def read_windows(
    model: KimiVL,
    video: TimedVideo,
    parts: Sequence[Sequence[float]],
    choice: FrameChoice,
    journal: Journal,
    progress: Callable[[str, int, int], None] | None = None,
    before: Callable[[int], None] | None = None,
) -> Iterator[Mapping[str, Any]]:
    """Asks about the windows that the journal does not hold yet and yields the records of all in order: {"text",
    "frames", "problem"}. before: called with the number of a window, from 1, before it is asked about."""
    for number, times in enumerate(parts, 1):
        record = journal.done.get(number)
        if record is None:
            if before is not None:
                before(number)
            seen, _ = frames.pictures(video, model.loaded.processor, times, choice)
            response = model.chat(
                REQUEST, seen, temperature=0, seed=0, loop_guard=True, max_new_tokens=_longest(model), progress=progress
            )
            problem = response.stop_reason or ("length" if response.finish_reason == "length" else "")
            record = {"text": response.text, "frames": [round(time, 3) for time in times], "problem": problem}
            journal.add(number, record)
        yield record


def _longest(model: KimiVL) -> int:
    return min(_LONGEST_ANSWER, model.n_ctx // 4)


def parse(text: str) -> tuple[list[Scene], list[str]]:
    """The scenes of an answer as it gives them, and the lines that are none."""
    scenes: list[Scene] = []
    others: list[str] = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            if scenes and not scenes[-1].description and line.strip():
                scenes[-1] = replace(scenes[-1], description=line.strip())
            elif line.strip():
                others.append(line.strip())
            continue
        start, end = (seconds(group.replace(",", ".")) or 0.0 for group in match.groups()[:2])
        scenes.append(Scene(min(start, end), max(start, end), match[3].strip()))
    return scenes, others


def mended(scenes: Sequence[Scene], start: float, end: float, cuts: Sequence[float]) -> tuple[list[Scene], list[str]]:
    """The scenes of one window in order and inside of it: starts near a cut are at the cut, small gaps and overlaps are
    closed. Returns notes on what does not fit: scenes outside of the window, larger gaps and overlaps."""
    notes: list[str] = []
    inside: list[Scene] = []
    for scene in sorted(scenes, key=lambda scene: (scene.start, scene.end)):
        if scene.start >= end or scene.end <= start:
            notes.append(f"{_span(scene)} is outside of {clock(start)} - {clock(end)}: {scene.description}")
            continue
        cut = min(cuts, key=lambda time: abs(time - scene.start), default=math.inf)
        at = cut if abs(cut - scene.start) <= _NEAR_S else scene.start
        kept = replace(scene, start=max(at, start), end=min(scene.end, end), snapped=at == cut)
        if kept.end > kept.start:
            inside.append(kept)
        else:
            notes.append(f"{_span(scene)} has no length: {scene.description}")
    inside.sort(key=lambda scene: (scene.start, scene.end))
    for index, (one, following) in enumerate(itertools.pairwise(list(inside))):
        gap = following.start - one.end
        if abs(gap) <= _NEAR_S and following.start > one.start:
            inside[index] = replace(one, end=following.start)
        else:
            what = "nothing is said about" if gap > 0 else "two scenes share"
            first, last = sorted((one.end, following.start))
            notes.append(f"{what} {clock(first)} - {clock(last)}")
    return inside, notes


def joined(
    records: Sequence[Mapping[str, Any]], spans: Sequence[tuple[float, float]], cuts: Sequence[float]
) -> tuple[list[Scene], list[str]]:
    """The scenes of all windows. spans: the start and the end of each window."""
    scenes: list[Scene] = []
    notes: list[str] = []
    for record, (start, end) in zip(records, spans, strict=True):
        found, others = parse(record["text"])
        if record["problem"]:
            notes.append(f"{clock(start)} - {clock(end)}: the answer ended early ({record['problem']})")
        if not found:
            notes.append(f"{clock(start)} - {clock(end)}: the answer names no scene")
        here, said = mended(found, start, end, cuts)
        scenes += here
        notes += [*others, *said]
    return scenes, notes


def spans(parts: Sequence[Sequence[float]], start: float, end: float) -> list[tuple[float, float]]:
    """The start and the end of each window: they meet in the middle between their frames."""
    edges = [start, *((one[-1] + two[0]) / 2 for one, two in itertools.pairwise(parts)), end]
    return list(itertools.pairwise(edges))


def as_srt(scenes: Sequence[Scene]) -> str:
    """SubRip subtitles."""
    blocks = []
    for number, scene in enumerate(scenes, 1):
        start, end = (clock(time, milliseconds=True).replace(".", ",") for time in (scene.start, scene.end))
        blocks.append(f"{number}\n{start} --> {end}\n{scene.description}\n")
    return "\n".join(blocks)


def as_markdown(scenes: Sequence[Scene], notes: Sequence[str], title: str) -> str:
    """A list of the scenes."""
    lines = [f"# {title}", "", *(f"- **{_span(scene)}** {scene.description}" for scene in scenes)]
    if notes:
        lines += ["", "Notes:", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _span(scene: Scene) -> str:
    return f"{clock(scene.start)} - {clock(scene.end)}"
