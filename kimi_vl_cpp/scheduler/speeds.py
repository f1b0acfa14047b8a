"""How long prompts and pictures take here, by those that were computed. Owns the estimate; decides nothing with it."""

from __future__ import annotations

_DEPTH = 8000
"""Positions of depth at which a row takes twice the time that it takes at the beginning: of the full model on two
cores (docs/performance.md)."""

_PICTURE_ROW = 1.6
"""A picture's row in the tower, in rows of a prompt: of the same, until a picture was encoded."""

_MEMORY = 4096
"""Rows that a mean remembers: few rows, which take longer each, are soon outweighed by many."""


class _Mean:
    """Seconds of a row, by the rows that were seen last; 0 before there were any."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._n = 0

    def note(self, n: int, seconds: float) -> None:
        """n rows took so long each."""
        self.seconds += (seconds - self.seconds) * n / (n + self._n)
        self._n = min(self._n + n, _MEMORY)


class Speeds:
    """Of one model. Read from any thread."""

    def __init__(self) -> None:
        self._row = _Mean()  # at depth 0, through all layers
        self._picture_row = _Mean()

    def note_rows(self, first: int, n: int, seconds: float) -> None:
        """n positions from `first` on took so long, or would at the pace of the layers that are done."""
        self._row.note(n, seconds / _at_depth_0(first, first + n))

    def note_picture(self, n_rows: int, seconds: float) -> None:
        """As `note_rows`, for a picture of n_rows positions."""
        self._picture_row.note(n_rows, seconds / n_rows)

    def seconds(self, first: int, end: int, n_picture_rows: float) -> float | None:
        """What positions [first, end) take, and encoding pictures of n_picture_rows. None before anything was
        computed."""
        row_s = self._row.seconds
        if row_s <= 0:
            return None
        picture_row_s = self._picture_row.seconds or _PICTURE_ROW * row_s
        return row_s * _at_depth_0(first, end) + picture_row_s * n_picture_rows


def _at_depth_0(first: int, end: int) -> float:
    """How many rows at depth 0 take as long as positions [first, end)."""
    return (end - first) * (1 + (first + end) / (2 * _DEPTH))
