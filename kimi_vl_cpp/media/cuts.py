"""Cuts between shots, and frames that show the same as the one before, from small grey pictures. Knows no video."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

SIZE = (64, 36)
"""Width and height of the frames that are compared."""
SCAN_FPS = 8.0
LEAST_SHOT_S = 1.0

_BINS = 32
_WINDOW_S = 5.0
_LEAST = 0.15  # of a distance that can be a cut
_SPREADS = 6.0  # above the median of its window
_SAME_MEAN, _SAME_MOST = 2.0, 12.0  # of 255


def grey(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [H, W, 3] -> luma, float32 [H, W], 0 to 255."""
    result: NDArray[np.float32] = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return result


def distance(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """How different two grey frames are, 0 to 2: chi-square of their histograms plus their mean difference."""
    first, second = (np.histogram(one, _BINS, (0, 256))[0] / one.size for one in (before, after))
    total = first + second
    chi = float((((first - second) ** 2)[total > 0] / total[total > 0]).sum() / 2)
    return chi + float(np.abs(before - after).mean()) / 255


def find_cuts(times: Sequence[float], frames: Iterable[NDArray[np.float32]]) -> list[float]:
    """The times of frames that begin a shot, except the first. frames: grey, of SIZE, at most SCAN_FPS a second."""
    distances = [0.0]
    before = None
    for frame in frames:
        if before is not None:
            distances.append(distance(before, frame))
        before = frame
    scores = np.array(distances)
    cuts: list[float] = []
    for index in range(1, len(scores)):
        near = [at for at in _within(times, index) if at != index]
        around = scores[near]
        median = float(np.median(around)) if len(around) else 0.0
        spread = float(np.median(np.abs(around - median))) if len(around) else 0.0
        peak = scores[index] >= max(scores[index - 1 : index + 2])
        stands_out = peak and scores[index] > max(_LEAST, median + _SPREADS * spread)
        if stands_out and times[index] - (cuts[-1] if cuts else times[0]) >= LEAST_SHOT_S:
            cuts.append(times[index])
    return cuts


def _within(times: Sequence[float], index: int) -> range:
    """The indices of half a window on both sides."""
    first = last = index
    while first > 1 and times[index] - times[first - 1] <= _WINDOW_S / 2:
        first -= 1
    while last + 1 < len(times) and times[last + 1] - times[index] <= _WINDOW_S / 2:
        last += 1
    return range(first, last + 1)


def is_same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether two grey frames show the same, noise of compression aside."""
    difference = np.abs(one - other)
    return bool(difference.mean() < _SAME_MEAN and difference.max() < _SAME_MOST)
