"""Which times of a video are looked at. Arithmetic only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

FPS_CAP = 2.0
"""Frames a second that uniform sampling takes at most: a short clip does not need as many as it may have."""


def uniform(start: float, end: float, n: int, fps_cap: float = FPS_CAP) -> list[float]:
    """The middles of n equal parts of [start, end), in seconds; fewer where that were more than fps_cap a second."""
    n = max(1, min(n, math.ceil((end - start) * fps_cap)))
    return [start + (index + 0.5) * (end - start) / n for index in range(n)]


def by_rate(start: float, end: float, fps: float) -> list[float]:
    """A time every 1 / fps seconds, the first at the start."""
    return [start + index / fps for index in range(max(1, math.ceil((end - start) * fps - 1e-9)))]


def by_scene(start: float, end: float, cuts: Sequence[float], n: int) -> list[float]:
    """At most n times: of every shot between cuts its middle, then of the longest shots first the middles of their
    thirds."""
    edges = [start, *(cut for cut in cuts if start < cut < end), end]
    shots = sorted(itertools.pairwise(edges), key=lambda shot: shot[0] - shot[1])
    times = [(first + last) / 2 for first, last in shots[:n]]
    for first, last in shots:
        if len(times) + 2 > n:
            break
        times += [first + (last - first) / 6, last - (last - first) / 6]
    return sorted(times)
