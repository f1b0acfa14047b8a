"""One call at a time into one engine, and the door that closes.

Requests on one model are separate sessions. Their core calls (a picture, a prefill, a token) take turns here, so two
streams on one model advance side by side and neither can lock the other out: a turn is held during a core call only,
never while a caller reads a stream. Owns: the turn, closing, the refusal to work in a forked child. Knows nothing
about what is called.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ..errors import BadRequest, Cancelled

_YIELD_S = 0.0005  # long enough for a waiting thread to wake and take its turn
_EXIT_WAIT_S = 10.0  # how long the interpreter's exit waits for a running core call to notice

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Gate:
    """Serialises the calls into one engine. `on_close` runs when the last call has left after `close()`; it must be
    harmless when run twice."""

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._on_close = on_close
        # Taken by `with` only: the C code of the lock leaves no place where a KeyboardInterrupt could lose it. Anything
        # cleverer written in Python would have such a place.
        self._lock = threading.RLock()
        self._asked_last = 0
        self._pid = os.getpid()
        self._closing = False
        _open_gates.add(self)

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._closing

    @property
    def inside(self) -> bool:
        """Whether this thread is inside a call right now."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def check(self) -> None:
        """Raises BadRequest when the model is closed or belongs to the process that this one was forked from."""
        if self._closing:
            raise BadRequest("the model is closed: open it again to go on", "engine.closed")
        if os.getpid() != self._pid:
            raise BadRequest(
                "the model was loaded before this process was forked and its threads stayed in the parent: "
                "load the model in this process",
                "engine.forked",
            )

    def check_running(self) -> None:
        """For progress callbacks: raises Cancelled when the model was closed while the call is running."""
        if self._closing:
            raise Cancelled("the model was closed while this call was running", "engine.closed")

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Waits for the turn and calls `function`.

        Raises BadRequest: "engine.closed", "engine.forked", or "engine.reentrant" when this thread is already inside
        a call (a progress callback that calls the model), which could otherwise never end.
        """
        self.check()
        if self.inside:
            raise BadRequest(
                "this thread is already inside a call of the model: a progress callback must not call it",
                "engine.reentrant",
            )
        me = threading.get_ident()
        self._asked_last = me
        try:
            with self._lock:
                self.check()
                return function(*args, **kwargs)
        finally:
            if self._closing:
                self.close()
            elif self._asked_last != me:
                time.sleep(_YIELD_S)  # somebody waits: without this the same thread would take the lock again

    def close(self, wait_s: float = -1) -> None:
        """Lets nobody in any more, waits until the call inside has left, and runs `on_close`.

        wait_s: seconds to wait at most, -1 for no limit. From inside a call it does not wait: the call finishes the
        closing when it leaves. In a forked child it only marks the model as closed.
        """
        self._closing = True
        if os.getpid() != self._pid or self.inside:
            return
        if self._lock.acquire(timeout=wait_s):
            try:
                self._on_close()
            finally:
                self._lock.release()


_open_gates: weakref.WeakSet[Gate] = weakref.WeakSet()


def _close_all_at_exit() -> None:
    # A daemon thread must not be inside the core when the interpreter goes away.
    for gate in list(_open_gates):
        gate.close(_EXIT_WAIT_S)


atexit.register(_close_all_at_exit)
