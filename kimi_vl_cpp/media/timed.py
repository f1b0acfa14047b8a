"""A video as the rest of the package sees it: how long it is, how large, and its frames at given times. How a file is
opened and decoded is for `video` (in this process) and `isolated` (in another one)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..checks import Closeable

Shape = Callable[[int, int], tuple[int, int]]
"""(width, height) of the upright frame -> the size it is scaled to."""

_Self = TypeVar("_Self", bound="TimedVideo")


class TimedVideo(Closeable):
    """An open video. name: what messages call it. duration: seconds. size: width and height of the upright frame with
    square pixels. has_audio: whether there is sound, which nothing here hears. notices: what is worth knowing about the
    file."""

    _instead = "open the file in the other process"
    name: str
    duration: float
    size: tuple[int, int]
    has_audio: bool
    notices: list[str]

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""

    @abstractmethod
    def frames(self, times: Sequence[float], shape: Shape) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """The frames nearest to the times, in one pass: their own times and uint8 [height, width, 3].

        times: seconds from the beginning, ascending. Raises BadVideo (code "video.damaged").
        """

    @abstractmethod
    def every(self, start: float, end: float, fps: float, shape: Shape) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """All frames of [start, end), at most fps a second, with their times."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.duration:.1f} s, {self.size[0]} x {self.size[1]}>"
