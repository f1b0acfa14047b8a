"""One answer under way: its state, its events, its end, and the pause while its client does not read.

`events` is read on the event loop; the worker thread that iterates the stream calls `work`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..types import Piece, Response

if TYPE_CHECKING:
    from ..generation.stream import PieceStream
    from .engine import Engine

RunState = Literal["preparing", "queued", "encode", "prefill", "decode", "ended"]
MAX_UNREAD = 256 << 10
"""Bytes of an answer that wait for its client before no more of it is computed."""
_PIECE_BYTES = 256  # what a piece takes as an event, beside its text


@dataclass(frozen=True)
class ProgressEvent:
    """How far a stage of the prompt is."""

    stage: str
    done: int
    total: int


Event = Piece | ProgressEvent | Response | BaseException
"""What comes out of a run: pieces and progress, then its response or an error, once."""


class Run:
    """One answer, from its arrival to its end. `events` is read on the event loop; the rest is for any thread.

    index: which of the answers to one request. end_reason: why it was ended from outside. pieces: for the trace, when
    each came, and its tokens.
    """

    def __init__(self, engine: Engine, key: str, index: int, events: asyncio.Queue[tuple[int, Event]]) -> None:
        self.key = key
        self.index = index
        self._state: RunState = "preparing"
        self.end_reason: str | None = None
        self.arrived = time.perf_counter()
        self.history: list[tuple[RunState, float]] = [("preparing", self.arrived)]
        self.pieces: list[tuple[float, int]] = []
        self.queued = self.started = self.first_token = 0.0
        self.n_done = 0
        self.wants_progress = False
        self.stream: PieceStream | None = None
        self.waiting_timer: asyncio.TimerHandle | None = None
        self._engine = engine
        self._events = events
        self._unread = 0
        self._read = threading.Condition()

    @property
    def state(self) -> RunState:
        """What is done for it now. `history` has every state with the time at which it began."""
        return self._state

    @state.setter
    def state(self, state: RunState) -> None:
        if state != self._state:
            self._state = state
            self.history.append((state, time.perf_counter()))

    @property
    def queue_s(self) -> float:
        """Seconds that it waited for its turn, so far or in all."""
        return (self.started or time.perf_counter()) - self.queued if self.queued else 0.0

    @property
    def paused(self) -> bool:
        """Whether it waits for its client to read."""
        return self._unread > MAX_UNREAD

    def progress(self, stage: str, done: int, total: int) -> None:
        """The progress callback of its stream; may be called before the stream is known."""
        if stage in ("encode", "prefill"):
            self.state = "encode" if stage == "encode" else "prefill"
        self._engine.note_progress()
        if self.wants_progress:
            self.give(ProgressEvent(stage, done, total))

    def taken(self, piece: Piece) -> None:
        """The reader has taken a piece and got rid of it."""
        with self._read:
            self._unread -= len(piece.text.encode()) + _PIECE_BYTES
            self._read.notify()

    def end(self, reason: str) -> None:
        """Ends it, in whatever state; what there is of it comes as its response. From any thread, on the loop when it
        is queued."""
        if self.state == "ended":
            return
        self.end_reason = self.end_reason or reason
        if self.stream is not None:
            self.stream.cancel()
        with self._read:
            self._read.notify()
        self._engine.withdraw(self)

    def stop_waiting(self) -> None:
        """It no longer waits: the clock of its waiting is dropped, which would keep all of it in memory."""
        if self.waiting_timer is not None:
            self.waiting_timer.cancel()
            self.waiting_timer = None

    def end_thinking(self) -> None:
        """Ends its reasoning at the next token."""
        if self.stream is not None:
            self.stream.end_thinking()

    def work(self) -> None:
        """Reads its stream to the end. In a worker thread."""
        stream = self.stream
        assert stream is not None
        self.started = time.perf_counter()
        self.state = "prefill"
        outcome: Event
        try:
            for piece in stream:
                self._note(piece)
                self.give(piece)
                self._wait_for_reader()
            assert stream.result is not None
            outcome = stream.result
        except BaseException as error:  # whatever it is, it is the outcome
            outcome = error
        finally:
            stream.close()
        self._engine.finished(self, outcome)

    def _note(self, piece: Piece) -> None:
        if not self.first_token:
            self.first_token = time.perf_counter()
        self.state = "decode"
        self.n_done += len(piece.token_ids)
        if self._engine.trace is not None:
            self.pieces.append((time.perf_counter(), len(piece.token_ids)))
        self._engine.note_progress()
        with self._read:
            self._unread += len(piece.text.encode()) + _PIECE_BYTES

    def _wait_for_reader(self) -> None:
        if self._unread <= MAX_UNREAD:
            return
        deadline = time.monotonic() + self._engine.settings.slow_client
        with self._read:
            while self.paused and self.end_reason is None and (left := deadline - time.monotonic()) > 0:
                self._read.wait(left)
        if self.paused and self.end_reason is None:
            self.end("slow_client")

    def give(self, event: Event) -> None:
        """Puts an event out."""
        self._engine.post(self._events, (self.index, event))
