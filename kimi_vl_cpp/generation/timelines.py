"""Which timeline serves a request: the main one, which keeps the beginning of the last prompt, or one of its own.

Owns the sessions of a model that no request holds. Does not know what is computed on them.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from .. import _core
from ..errors import BadRequest, OutOfMemory
from .gate import Gate
from .sequence import Timeline

MIN_N_CTX = 1024  # a default context is not made smaller than this when memory is short


class Timelines:
    """The timelines of one model. n_ctx: positions of the main one and of those that conversations take."""

    def __init__(self, engine: _core.Engine, gate: Gate, kv_type: str, n_ctx: int, *, may_shrink: bool) -> None:
        """may_shrink: n_ctx is halved, down to MIN_N_CTX, while the memory for it is refused.

        Raises BadRequest (code "request.n_ctx") beyond what the model was trained for, OutOfMemory.
        """
        self._engine = engine
        self._gate = gate
        self._kv_type = kv_type
        main = self._first(n_ctx, may_shrink)
        self.n_ctx = main.n_ctx
        self._main: weakref.ref[Timeline] | None = weakref.ref(main)
        self._idle: deque[Timeline] = deque([main], maxlen=1)  # the main one when no request holds it

    @property
    def n_idle(self) -> int:
        """Timelines that are kept for a later request."""
        return len(self._idle)

    def close(self) -> None:
        """Frees the timeline that no request holds."""
        self._idle.clear()

    def take(self) -> Timeline:
        """A timeline of full size for a conversation: the main one if it is free, else a new one."""
        try:
            timeline = self._idle.pop()
        except IndexError:
            return self.new(self.n_ctx)
        self._main = None
        return timeline

    def give_back(self, timeline: Timeline) -> None:
        """Takes a timeline of full size as the main one for later requests, unless there is one."""
        if self._gate.closed:
            return
        main = None if self._main is None else self._main()
        if main is None or main is timeline:
            self._main = weakref.ref(timeline)
            self._idle.append(timeline)

    @contextmanager
    def lease(self, n_positions: int) -> Iterator[Timeline]:
        """A timeline for one request of n_positions at most; full size when it becomes the main one."""
        try:
            timeline = self._idle.pop()
        except IndexError:
            if self._main is None or self._main() is None:  # a conversation took it along
                timeline = self.new(self.n_ctx)
                self._main = weakref.ref(timeline)
            else:
                timeline = self.new(min(n_positions, self.n_ctx))
        try:
            yield timeline
        finally:
            self.give_back(timeline)

    def new(self, n_ctx: int) -> Timeline:
        """A fresh timeline of n_ctx positions. Raises OutOfMemory."""
        return Timeline(self._gate.call(_core.Session, self._engine, n_ctx, self._kv_type))

    def _first(self, n_ctx: int, may_shrink: bool) -> Timeline:
        context_length = int(self._engine.config["context_length"])
        if n_ctx > context_length:
            raise BadRequest(
                f"n_ctx: got {n_ctx}, but the model was trained for {context_length} tokens: "
                f"use n_ctx <= {context_length}, or 0 for all of them",
                "request.n_ctx",
            )
        while True:
            try:
                return self.new(n_ctx)
            except OutOfMemory:
                if not may_shrink or n_ctx // 2 < MIN_N_CTX:
                    raise
                n_ctx //= 2
