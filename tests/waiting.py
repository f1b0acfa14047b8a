"""Waiting for what another thread does: a test waits for the condition, never for a length of time."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 60.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Returns when the condition is true; fails with `what` was to come true when it never is."""
    deadline = time.monotonic() + PATIENCE_S
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert met, what
