"""The lock around the core, and the door that closes.

Whoever calls into an engine holds the lock: a call of the tools for its own length, a driver of the conductor turn by
turn. Owns the lock, closing, the refusal to work in a forked child. Knows nothing about what is called.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ..errors import BadRequest, Cancelled

_YIELD_S = 0.0005  # long enough for a waiting thread to wake and take the lock
_EXIT_WAIT_S = 10.0  # how long the interpreter's exit waits for a running core call to notice

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Gate:
    """Serialises the calls into one engine. What `before_close` was given runs when the last call has left after
    `close()`, the last given first; each must be idempotent.

    lock: taken by `with` only. The C code of the lock leaves no place where a KeyboardInterrupt could lose it; anything
    cleverer written in Python would have such a place.
    """

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._on_close = [on_close]
        self.lock = threading.RLock()
        self._at_the_door: dict[int, bool] = {}  # threads that wait for the lock
        self.busy = False  # whether a call is inside, which may take long
        self._reporting: dict[int, bool] = {}  # threads inside a progress callback
        self._pid = os.getpid()
        self._closing = False
        _open_gates.add(self)

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._closing

    @property
    def holds_lock(self) -> bool:
        """Whether this thread holds the lock."""
        return bool(self.lock._is_owned())  # type: ignore[attr-defined]

    @property
    def someone_waits(self) -> bool:
        """Whether another thread waits for the lock."""
        return bool(self._at_the_door)

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that opened the model. In a forked child the lock may be held for good."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raises BadRequest when the model is closed ("engine.closed"), belongs to the process that this one was forked
        from ("engine.forked"), or this thread is inside a call already, which could otherwise never end
        ("engine.reentrant")."""
        if self._closing:
            raise BadRequest("the model is closed: open it again to go on", "engine.closed")
        if not self.is_ours:
            raise BadRequest(
                "the model was loaded before this process was forked and its threads stayed in the parent: "
                "load the model in this process",
                "engine.forked",
            )
        if self.holds_lock or threading.get_ident() in self._reporting:
            raise BadRequest(
                "this thread is already inside a call of the model: a progress callback must not call it",
                "engine.reentrant",
            )

    def check_running(self) -> None:
        """For progress callbacks: raises Cancelled when the model was closed while the call is running."""
        if self._closing:
            raise Cancelled("the model was closed while this call was running", "engine.closed")

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Waits for the lock and calls `function`. Raises like `check`."""
        self.check()
        me = threading.get_ident()
        try:
            self._at_the_door[me] = True
            with self.lock:
                self._at_the_door.pop(me, None)
                if self._closing:
                    self.check()
                self.busy = True
                try:
                    return function(*args, **kwargs)
                finally:
                    self.busy = False
        finally:
            self.leave()

    def leave(self) -> None:
        """To be called after the lock was given back: finishes a closing, or lets a waiting thread take the lock."""
        self._at_the_door.pop(threading.get_ident(), None)
        if self._closing:
            self.close()
        elif self._at_the_door:
            time.sleep(_YIELD_S)  # without this the same thread would take the lock again

    def knock(self) -> None:
        """To be called before the lock is taken, so that a driver that holds it for many turns gives it up."""
        self._at_the_door[threading.get_ident()] = True

    def enter(self) -> None:
        """To be called when the lock was taken after `knock`."""
        self._at_the_door.pop(threading.get_ident(), None)

    def before_close(self, function: Callable[[], None]) -> None:
        """Has `function` called at closing, before those given earlier."""
        self._on_close.insert(0, function)

    def report(self, callback: Callable[..., Any], *args: Any) -> None:
        """Calls a progress callback, in which this thread may not call the model."""
        me = threading.get_ident()
        self._reporting[me] = True
        try:
            callback(*args)
        finally:
            self._reporting.pop(me, None)

    def close(self, wait_s: float = -1) -> None:
        """Admits no new call, waits until the call inside has left, and frees what there is.

        wait_s: seconds to wait at most, -1 for no limit. From inside a call it does not wait: the call finishes the
        closing when it leaves. In a forked child it only marks the model as closed.
        """
        self._closing = True
        if not self.is_ours or self.holds_lock:
            return
        if self.lock.acquire(timeout=wait_s):
            try:
                for function in self._on_close:
                    function()
            finally:
                self.lock.release()


_open_gates: weakref.WeakSet[Gate] = weakref.WeakSet()


def _close_all_at_exit() -> None:
    # A daemon thread must not be inside the core when the interpreter goes away.
    for gate in list(_open_gates):
        gate.close(_EXIT_WAIT_S)


atexit.register(_close_all_at_exit)
