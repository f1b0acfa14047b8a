"""Videos: frames at given times, at the size that the model sees.

Owns opening, the limits, and FFmpeg's errors in this package's words. Reads on rather than seeking, because a seek
decodes from the key frame before its target; times are those of the frames, never index x rate. Needs the extra `video`
(PyAV). Paths never reach FFmpeg and scripts that name other files are no videos, so it opens no other file.
"""

from __future__ import annotations

import importlib
import io
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import NotPicklable
from ..errors import BadVideo, Unsupported
from .decode import format_of
from .regular_file import open_regular

MAX_BYTES = 1 << 40
MAX_SIDE = 8192
MAX_SECONDS = 12 * 3600.0
_HEAD_BYTES = 1024
_CONTAINERS = "mov matroska avi mpegts mpeg flv asf ogg gif".split()  # of FFmpeg's names
_HEADS = re.compile(
    rb"....(?:ftyp|moov|mdat|wide|skip|free)|\x1aE\xdf\xa3|RIFF....AVI |\x47.{187}\x47|FLV\x01|OggS|\x00\x00\x01\xba"
    rb"|\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    re.DOTALL,
)
_HDR = {16: "PQ", 18: "HLG"}  # AVCOL_TRC_SMPTE2084, AVCOL_TRC_ARIB_STD_B67
_SEEK_KEY_FRAMES = 3  # a gap of so many is jumped over
_MOST_ERRORS = 0.5  # of the packets, above which a video counts as damaged

Shape = Callable[[int, int], tuple[int, int]]
"""(width, height) of the upright frame -> the size it is scaled to."""


def is_video(head: bytes) -> bool:
    """Whether a file's first bytes, 1024 of them, are those of a video that is no picture."""
    return _HEADS.match(head) is not None and format_of(head) is None


class Video(NotPicklable):
    """A video file. Use it as a context manager, or leave closing to the garbage collector.

    duration: seconds. size: width and height of the upright frame with square pixels. has_audio: whether there is
    sound, which nothing here hears. notices: what is worth knowing about the file.
    """

    _instead = "open the file in the other process"

    def __init__(self, source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> None:
        """source: a path (`~` is expanded) or the bytes of a file. name: what messages call it, None for the
        file's name.

        Raises BadVideo (codes video.*), Unsupported (code "unsupported.extra") without PyAV.
        """
        self._av = _pyav()
        self.name = name or ("video" if isinstance(source, bytes) else os.path.basename(os.fspath(source)))
        self._file = io.BytesIO(source) if isinstance(source, bytes) else _open_file(source)
        self.notices: list[str] = []
        self._can_seek = True
        try:
            self._index()
            self._look()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Video {self.name!r}, {self.duration:.1f} s, {self.size[0]} x {self.size[1]}>"

    def frames(self, times: Sequence[float], shape: Shape) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """The frames nearest to the times, in one pass: their own times and uint8 [height, width, 3].

        times: seconds from the beginning, ascending. Raises BadVideo (code "video.damaged").
        """
        waiting = list(reversed(times))
        last: tuple[float, Any] | None = None
        for time, frame in self._decoded(lambda: waiting[-1] if waiting else None):
            while waiting and time >= waiting[-1]:
                wanted = waiting.pop()
                nearest = last if last is not None and wanted - last[0] < time - wanted else (time, frame)
                yield nearest[0], self._pixels(nearest[1], shape)
            last = time, frame
        if last is None:
            raise self._damaged("no frame of it can be decoded")
        for _ in waiting:
            yield last[0], self._pixels(last[1], shape)

    def every(self, start: float, end: float, fps: float, shape: Shape) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """All frames of [start, end), at most fps a second, with their times."""
        due = [start]
        for time, frame in self._decoded(lambda: due[0] if due[0] < end else None):
            if time >= end:
                return
            if time >= due[0] - 1e-6:
                yield time, self._pixels(frame, shape)
                due[0] = max(due[0] + 1 / fps, time)

    # Inside

    def _open(self) -> tuple[Any, Any]:
        self._file.seek(0)
        try:
            container = self._av.open(self._file, container_options={"format_whitelist": ",".join(_CONTAINERS)})
        except Exception as error:
            raise self._not_opened(error) from None
        if not set(container.format.name.split(",")) & set(_CONTAINERS):
            raise BadVideo(f"{self.name}: {container.format.name} is not a video format: {_EXPECTED}", "video.format")
        streams = [one for one in container.streams.video if not _is_cover(one)]
        if not streams:
            raise BadVideo(f"{self.name}: it has no pictures, only sound: give a video", "video.none")
        stream = streams[0]
        if stream.codec_context is None:
            raise BadVideo(f"{self.name}: its codec is not known here: convert it to H.264", "video.codec")
        stream.thread_type = "SLICE"  # frame threads hang when decoding is left early
        self.has_audio = bool(container.streams.audio)
        return container, stream

    def _index(self) -> None:
        """Start, duration and key frames from the packets, as headers may lack them or be wrong."""
        container, stream = self._open()
        base = float(stream.time_base or 0)
        first, last, keys, self._n_packets = None, 0.0, [], 0
        with container:
            try:
                for packet in container.demux(stream):
                    if packet.pts is None or packet.size == 0:
                        continue
                    time = packet.pts * base
                    self._n_packets += 1
                    first = time if first is None else min(first, time)
                    last = max(last, time + (packet.duration or 0) * base)
                    if packet.is_keyframe:
                        keys.append(time)
            except self._av.error.FFmpegError:
                self.notices.append(f"{self.name}: it is cut off or damaged at {last - (first or 0.0):.0f} s")
        if first is None:
            raise self._damaged("it has no frames")
        self._start = first
        self.duration = max(last - first, 1e-3)
        self._keys = sorted(time - first for time in keys)
        if self.duration > MAX_SECONDS:
            hours = self.duration / 3600
            raise BadVideo(f"{self.name}: {hours:.1f} hours, expected at most 12: cut it", "video.too_large")

    def _look(self) -> None:
        """Size and oddities from the first frame."""
        _, frame = next(self._decoded(lambda: 0.0), (0.0, None))
        if frame is None:
            raise self._damaged("no frame of it can be decoded")
        width, height = round(frame.width * self._aspect), frame.height
        self.size = (height, width) if _turns(frame) % 2 else (width, height)
        if max(self.size) > MAX_SIDE:
            raise BadVideo(
                f"{self.name}: {width} x {height} pixels, expected sides of at most {MAX_SIDE}: scale it down",
                "video.too_large",
            )
        if self.has_audio:
            self.notices.append(f"{self.name}: the sound is not used")
        if int(getattr(frame, "color_trc", 0) or 0) in _HDR:
            name = _HDR[int(frame.color_trc)]
            self.notices.append(f"{self.name}: HDR ({name}) is shown without tone mapping and looks washed out")

    def _decoded(self, wanted: Callable[[], float | None]) -> Iterator[tuple[float, Any]]:
        """Frames with their times, in order, until `wanted` returns None. A long gap before the time that it returns is
        jumped over."""
        container, stream = self._open()
        aspect = stream.codec_context.sample_aspect_ratio
        self._aspect = float(aspect) if aspect and 0.05 < float(aspect) < 20 else 1.0
        with container:
            packets = container.demux(stream)
            now, sought, n_errors = 0.0, False, 0
            while (target := wanted()) is not None:
                jump = self._jump(now, target)
                if jump is not None and self._seek(container, stream, jump):
                    packets, now, sought = container.demux(stream), jump, True
                try:
                    packet = next(packets, None)
                    frames = [] if packet is None else packet.decode()
                except self._av.error.FFmpegError as error:
                    n_errors += 1
                    self._check_errors(n_errors, error)
                    continue
                for frame in frames:
                    if frame.pts is None:
                        continue
                    time = frame.pts * float(frame.time_base) - self._start
                    if sought and time > target + 1e-6:  # the seek went too far: read on from the beginning instead
                        self._can_seek = False
                        yield from self._decoded(wanted)
                        return
                    sought, now = False, max(now, time)
                    yield time, frame
                if packet is None:
                    break
        if n_errors:
            self.notices.append(f"{self.name}: {n_errors} of its {self._n_packets} packets are damaged")

    def _jump(self, now: float, target: float) -> float | None:
        """The key frame to seek to, None where reading on is as quick."""
        if not self._can_seek:
            return None
        here, there = bisect_right(self._keys, now), bisect_right(self._keys, target)
        return self._keys[there - 1] if there - here >= _SEEK_KEY_FRAMES else None

    def _seek(self, container: Any, stream: Any, time: float) -> bool:
        try:
            container.seek(round((time + self._start) / float(stream.time_base)), stream=stream, backward=True)
        except self._av.error.FFmpegError:
            self._can_seek = False
        return self._can_seek

    def _pixels(self, frame: Any, shape: Shape) -> NDArray[np.uint8]:
        turns = _turns(frame)
        width, height = round(frame.width * self._aspect), frame.height
        size = shape(height, width)[::-1] if turns % 2 else shape(width, height)
        scaled = frame.reformat(width=size[0], height=size[1], format="rgb24", interpolation="BICUBIC").to_ndarray()
        return np.ascontiguousarray(np.rot90(scaled, turns))

    def _check_errors(self, n: int, error: Exception) -> None:
        if isinstance(error, self._av.error.DecoderNotFoundError):
            raise BadVideo(f"{self.name}: its codec is not known here: convert it to H.264", "video.codec") from None
        if n > max(1, _MOST_ERRORS * self._n_packets):
            raise self._damaged(f"{n} of its {self._n_packets} packets cannot be decoded") from None

    def _not_opened(self, error: Exception) -> BadVideo:
        self._file.seek(0)
        head = self._file.read(_HEAD_BYTES)
        if head[4:8] in (b"ftyp", b"mdat"):
            return BadVideo(
                f"{self.name}: cut off: its index, which stands at the end, is not there: download it again",
                "video.index",
            )
        if is_video(head):
            return self._damaged(str(error))
        return BadVideo(f"{self.name}: not a video: {_EXPECTED}", "video.format")

    def _damaged(self, reason: str) -> BadVideo:
        return BadVideo(f"{self.name}: damaged: {reason}: download it again, or convert it", "video.damaged")


_EXPECTED = "expected MP4, MOV, MKV, WebM, AVI, MPEG, FLV, ASF, Ogg or GIF"


def _turns(frame: Any) -> int:
    """Quarter turns counter-clockwise that make the frame upright."""
    return round((frame.rotation or 0) / 90) % 4


def _is_cover(stream: Any) -> bool:
    """Whether a video stream is the picture of an album."""
    return "attached_pic" in str(getattr(stream, "disposition", "")).lower()


def _pyav() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError:
        raise Unsupported("reading a video needs PyAV: pip install 'kimi-vl-cpp[video]'", "unsupported.extra") from None


def _open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    return open_regular(path, MAX_BYTES, lambda text, problem: BadVideo(text, f"video.{problem}"), "a video file")
