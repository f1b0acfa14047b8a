"""Subtitles: what is said in a video, as text between its frames. SubRip (.srt) and WebVTT (.vtt). Knows no video."""

from __future__ import annotations

import html
import itertools
import os
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadVideo, shown
from .regular_file import open_regular
from .times import seconds

SUFFIXES = (".srt", ".vtt")
MAX_BYTES = 16 << 20

_CLOCK = r"((?:\d{1,3}:)?\d{1,2}:\d{2}[.,]\d{1,3})"
_TIMES = re.compile(rf"\s*{_CLOCK}\s+-->\s+{_CLOCK}(?:\s.*)?")
_MARKUP = re.compile(r"</?[A-Za-z][^<>\n]{0,200}>|<[\d:.]{5,15}>|\{\\[^{}\n]{0,200}\}")
_NOT_CUES = ("NOTE", "STYLE", "REGION")


@dataclass(frozen=True)
class Cue:
    """What is said from start to end, in seconds."""

    start: float
    end: float
    text: str


def beside(video: str | os.PathLike[str]) -> str | None:
    """The subtitles that lie beside a video under its name: talk.srt or talk.vtt beside talk.mp4."""
    for suffix in SUFFIXES:
        path = Path(os.fspath(video)).with_suffix(suffix)
        if path.is_file():
            return str(path)
    return None


def read(path: str | os.PathLike[str]) -> list[Cue]:
    """The cues of a file. Raises BadVideo (code "video.subtitles")."""
    name = os.path.basename(os.fspath(path))
    with open_regular(path, MAX_BYTES, lambda text, problem: BadVideo(text, "video.subtitles"), "subtitles") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadVideo(
            f"{name}: not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}): save it as UTF-8",
            "video.subtitles",
        ) from None
    return parse(text, name)


def parse(text: str, name: str) -> list[Cue]:
    """The cues of a text in the order of their starts, without markup; empty ones are left out.

    name: what messages call it. Raises BadVideo (code "video.subtitles") for a text without cues.
    """
    cues = []
    for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.strip("\n").split("\n")
        at = next((index for index, line in enumerate(lines[:2]) if _TIMES.fullmatch(line)), None)
        if at is None or lines[0].startswith(_NOT_CUES):
            continue
        match = _TIMES.fullmatch(lines[at])
        assert match is not None
        start, end = (seconds(clock.replace(",", ".")) or 0.0 for clock in match.groups())
        said = " ".join(html.unescape(_MARKUP.sub("", "\n".join(lines[at + 1 :]))).split())
        if said:
            cues.append(Cue(start, end, said))
    if not cues:
        said = shown(" ".join(text.split())[:60])
        raise BadVideo(
            f"{name}: no subtitles in it (it begins with {said}): expected SubRip or WebVTT, cues under lines like "
            "00:00:01,000 --> 00:00:04,000",
            "video.subtitles",
        )
    return sorted(cues, key=lambda cue: (cue.start, cue.end))


def between(cues: Sequence[Cue], times: Sequence[float], start: float, end: float) -> list[str]:
    """For each frame the text of the cues that begin nearer to it than to another: each cue of [start, end) once. A cue
    that repeats the one before is left out.

    times: of the frames, ascending.
    """
    middles = [(first + second) / 2 for first, second in itertools.pairwise(times)]
    found: list[list[str]] = [[] for _ in times]
    before = ""
    for cue in cues:
        if cue.end <= start or cue.start >= end or not times:
            continue
        if cue.text != before:
            found[bisect_left(middles, max(cue.start, start))].append(cue.text)
        before = cue.text
    return ["\n".join(texts) for texts in found]
