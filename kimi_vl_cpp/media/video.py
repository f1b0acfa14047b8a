"""Videos: frames at given times, at the size that the model sees.

Owns opening, the limits, and FFmpeg's errors in this package's words. Reads on rather than seeking, because a seek
decodes from the key frame before its target; times are those of the frames, never index x rate. Needs the extra `video`
(PyAV). Paths never reach FFmpeg and scripts that name other files are no videos, so it opens no other file.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import BadVideo, Unsupported
from . import hdr
from .decode import format_of
from .regular_file import open_regular, opened
from .timed import Shape, TimedVideo

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
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"skip", b"free")
_HDR: dict[int, hdr.Curve] = {16: "PQ", 18: "HLG"}  # AVCOL_TRC_SMPTE2084, AVCOL_TRC_ARIB_STD_B67
# Samples that are encrypted: entries of MP4's stsd, the encryption of a Matroska track, two objects of ASF.
_ENCRYPTED = re.compile(
    rb"stsd.{12}(?:encv|drmi)|\x6d\x80.{1,8}\x62\x40.{1,32}\x50\x33\x81\x01"
    rb"|\xfb\xb3\x11\x22\x23\xbd\xd2\x11\xb4\xb7\x00\xa0\xc9\x55\xfc\x6e"
    rb"|\x14\xe6\x8a\x29\x22\x26\x17\x4c\xb9\x35\xda\xe0\x7e\xe9\x28\x9c",
    re.DOTALL,
)
_MOST_BOXES = 1 << 18  # two for each second, or so, of a video in fragments
_MOST_INDEX = 64 << 20  # bytes in which encryption is looked for
_SEEK_KEY_FRAMES = 3  # a gap of this many is jumped over
_MOST_ERRORS = 0.5  # of the packets, above which a video counts as damaged


def is_video(head: bytes) -> bool:
    """Whether a file's first bytes, 1024 of them, are those of a video that is not a picture."""
    return _HEADS.match(head) is not None and format_of(head) is None


class Video(TimedVideo):
    """A video file. Use it as a context manager, or leave closing to the garbage collector."""

    def __init__(self, source: str | os.PathLike[str] | bytes | BinaryIO, *, name: str | None = None) -> None:
        """source: a path (`~` is expanded), the bytes of a file, or an open file. name: what messages call it, None for
        the file's name.

        Raises BadVideo (codes video.*), Unsupported (code "unsupported.extra") without PyAV.
        """
        self._av = _pyav()
        self.name, self._file = opened(source, name or "", "video", open_file)
        self.notices: list[str] = []
        self._can_seek = True
        try:
            self._check_encryption()
            self._index()
            self._look()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def frames(self, times: Sequence[float], shape: Shape) -> Iterator[tuple[float, NDArray[np.uint8]]]:
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
        due = [start]
        for time, frame in self._decoded(lambda: due[0] if due[0] < end else None):
            if time >= end:
                return
            if time >= due[0] - 1e-6:
                yield time, self._pixels(frame, shape)
                due[0] = max(due[0] + 1 / fps, time)

    # Inside

    def _check_encryption(self) -> None:
        if _ENCRYPTED.search(_index_of(self._file)):
            raise BadVideo(
                f"{self.name}: protected against copying (DRM), its frames are encrypted: give a copy without "
                "protection, or screenshots of it as pictures",
                "video.drm",
            )

    def _open(self) -> tuple[Any, Any]:
        self._file.seek(0)
        try:
            container = self._av.open(self._file, container_options={"format_whitelist": ",".join(_CONTAINERS)})
        except Exception as error:
            raise self._not_opened(error) from None
        if not set(container.format.name.split(",")) & set(_CONTAINERS):
            raise BadVideo(f"{self.name}: {container.format.name} is not a video format: {_EXPECTED}", "video.format")
        streams = [one for one in container.streams.video if not _is_cover(one)]
        if (not streams or streams[0].codec_context is None) and _is_cut(self._file):
            raise self._no_index()
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
        if curve := _curve(frame):
            self.notices.append(f"{self.name}: HDR ({curve}) is tone mapped to the range of ordinary pictures")

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
        curve = _curve(frame)
        depth = "rgb24" if curve is None else "rgb48le"
        scaled = frame.reformat(width=size[0], height=size[1], format=depth, interpolation="BICUBIC").to_ndarray()
        scaled = scaled if curve is None else hdr.to_sdr(scaled, curve)
        return np.ascontiguousarray(np.rot90(scaled, turns))

    def _check_errors(self, n: int, error: Exception) -> None:
        if isinstance(error, self._av.error.DecoderNotFoundError):
            raise BadVideo(f"{self.name}: its codec is not known here: convert it to H.264", "video.codec") from None
        if n > max(1, _MOST_ERRORS * self._n_packets):
            raise self._damaged(f"{n} of its {self._n_packets} packets cannot be decoded") from None

    def _not_opened(self, error: Exception) -> BadVideo:
        self._file.seek(0)
        head = self._file.read(_HEAD_BYTES)
        if not head:
            return BadVideo(f"{self.name}: the file is empty: download or save it again", "video.damaged")
        if head[4:8] in (b"ftyp", b"mdat"):
            return self._no_index()
        if is_video(head):
            return self._damaged(str(error))
        return BadVideo(f"{self.name}: not a video: {_EXPECTED}", "video.format")

    def _no_index(self) -> BadVideo:
        return BadVideo(
            f"{self.name}: cut off: its index, which stands at the end, is not there: download it again", "video.index"
        )

    def _damaged(self, reason: str) -> BadVideo:
        return BadVideo(f"{self.name}: damaged: {reason}: download it again, or convert it", "video.damaged")


_EXPECTED = "expected MP4, MOV, MKV, WebM, AVI, MPEG, FLV, ASF, Ogg or GIF"


def _curve(frame: Any) -> hdr.Curve | None:
    """The transfer curve of an HDR frame."""
    return _HDR.get(int(getattr(frame, "color_trc", 0) or 0))


def _turns(frame: Any) -> int:
    """Quarter turns counter-clockwise that make the frame upright."""
    return round((frame.rotation or 0) / 90) % 4


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """The kinds of an MP4 or MOV file's outermost boxes, where they begin, and where they say that they end. Nothing
    for other files."""
    end = file.seek(0, os.SEEK_END)
    at = 0
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        size = end - at if size == 0 else size
        if at >= end or size < 8 or (at == 0 and kind not in _FIRST_BOXES):
            return
        yield kind, at, at + size
        at += size


def _is_cut(file: BinaryIO) -> bool:
    """Whether an MP4 or MOV file ends before its last box does."""
    length = file.seek(0, os.SEEK_END)
    return max((end for _, _, end in _boxes(file)), default=length) > length


def _index_of(file: BinaryIO) -> bytes:
    """What says how the samples of a file are kept: its index, or its beginning."""
    at, size = next(((at, end - at) for kind, at, end in _boxes(file) if kind == b"moov"), (0, _HEAD_BYTES << 6))
    file.seek(at)
    return file.read(min(size, _MOST_INDEX))


def _is_cover(stream: Any) -> bool:
    """Whether a video stream is the picture of an album."""
    return "attached_pic" in str(getattr(stream, "disposition", "")).lower()


def _pyav() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError:
        raise _not_installed() from None


def check_installed() -> None:
    """Raises Unsupported (code "unsupported.extra") without PyAV, which it does not load."""
    if importlib.util.find_spec("av") is None:
        raise _not_installed()


def _not_installed() -> Unsupported:
    return Unsupported("reading a video needs PyAV: pip install 'kimi-vl-cpp[video]'", "unsupported.extra")


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A file that may be a video. Raises BadVideo."""
    return open_regular(path, MAX_BYTES, lambda text, problem: BadVideo(text, f"video.{problem}"), "a video file")
