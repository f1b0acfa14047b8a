"""Where the time of every answer went, as Chrome's trace events: open the file in chrome://tracing or ui.perfetto.dev.

A track for each answer: its states one after the other, and a mark for every piece that it gave out. Holds no text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import msgspec

from ..errors import BadRequest


class Trace:
    """Writes the events of one server into a file, which is a whole trace after every line."""

    def __init__(self, path: str) -> None:
        """Raises BadRequest (code "serve.trace") for a file that cannot be written."""
        try:
            self._file = open(path, "w", encoding="ascii", buffering=1 << 16)  # noqa: SIM115 - closed by close
        except OSError as error:
            raise BadRequest(f"trace {path}: {error.strerror}", "serve.trace") from None
        self._zero = time.perf_counter()
        self._n_tracks = 0
        self._file.write("[\n")  # the end of the array may be missing

    def answer(
        self,
        name: str,
        states: Sequence[tuple[str, float]],
        pieces: Sequence[tuple[float, int]] = (),
        **about: Any,
    ) -> None:
        """One answer that has ended. name: its id. states: each with the time.perf_counter() at which it began, the
        last of them its end. pieces: (when, tokens)."""
        self._n_tracks += 1
        track = self._n_tracks
        self._write({"ph": "M", "name": "thread_name", "pid": 1, "tid": track, "args": {"name": name}})
        for (state, begun), (_, ended) in pairwise(states):
            span = {"ph": "X", "name": state, "pid": 1, "tid": track, "ts": self._us(begun)}
            self._write({**span, "dur": round((ended - begun) * 1e6), "args": about})
        for when, n_tokens in pieces:
            mark = {"ph": "i", "s": "t", "name": "piece", "pid": 1, "tid": track, "ts": self._us(when)}
            self._write({**mark, "args": {"tokens": n_tokens}})
        with suppress(OSError):
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _us(self, at: float) -> int:
        return round((at - self._zero) * 1e6)

    def _write(self, event: dict[str, Any]) -> None:
        with suppress(OSError):  # a full disk: the server goes on
            self._file.write(msgspec.json.encode(event).decode() + ",\n")
