"""Where the time of every answer went, as Chrome's trace events: open the file in chrome://tracing or ui.perfetto.dev.

A track for each answer: its states one after the other, and a mark for every piece that it gave out. One more for the
computing: decode steps, and layers of prompts and pictures. Holds no text.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import msgspec

from ..errors import BadRequest

_COMPUTING = 0  # the track of steps and layers


class Trace:
    """Writes the events of one server into a file, which is a whole trace after every line."""

    def __init__(self, path: str) -> None:
        """Raises BadRequest (code "serve.trace") for a file that cannot be written."""
        try:
            self._file = open(path, "w", encoding="ascii", buffering=1 << 16)  # noqa: SIM115 - closed by close
        except OSError as error:
            raise BadRequest(f"trace {path}: {error.strerror}", "serve.trace") from None
        self._lock = threading.Lock()
        self._zero = time.perf_counter()
        self._n_tracks = 0
        self._file.write("[\n")  # the end of the array may be missing
        self._name(_COMPUTING, "computing")

    def work(self, name: str, began: float, ended: float, n: int) -> None:
        """What the core did from `began` to `ended`: a step for n answers, a layer, a block. From any thread."""
        self._span(name, _COMPUTING, began, ended, {"answers": n} if name == "decode" else {})

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
        self._name(track, name)
        for (state, began), (_, ended) in pairwise(states):
            self._span(state, track, began, ended, about)
        for when, n_tokens in pieces:
            mark = {"ph": "i", "s": "t", "name": "piece", "pid": 1, "tid": track, "ts": self._us(when)}
            self._write({**mark, "args": {"tokens": n_tokens}})
        with suppress(OSError), self._lock:
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._file.close()

    def _name(self, track: int, name: str) -> None:
        self._write({"ph": "M", "name": "thread_name", "pid": 1, "tid": track, "args": {"name": name}})

    def _span(self, name: str, track: int, began: float, ended: float, about: dict[str, Any]) -> None:
        span = {"ph": "X", "name": name, "pid": 1, "tid": track, "ts": self._us(began)}
        self._write({**span, "dur": round((ended - began) * 1e6), "args": about})

    def _us(self, at: float) -> int:
        return round((at - self._zero) * 1e6)

    def _write(self, event: dict[str, Any]) -> None:
        with suppress(OSError), self._lock:  # a full disk: the server goes on
            self._file.write(msgspec.json.encode(event).decode() + ",\n")
