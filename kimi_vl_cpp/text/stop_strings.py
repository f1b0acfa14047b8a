"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Lets text through up to the first stop string, however the text is cut into pieces.

    The stop string that is complete first wins; of several complete at the same character, the longest. What could
    still become a stop string is held back. `hit` is the stop string met, or None.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.hit: str | None = None

    def push(self, text: str) -> str:
        """Takes the next piece, returns what is certain. After a hit it returns nothing."""
        if self.hit is not None:
            return ""
        if not self._stop:
            return text
        buffer = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stop if (start := buffer.find(stop)) >= 0]
        if found:
            _, start, self.hit = min(found)
            self._held = ""
            return buffer[:start]
        n_held = max(_overlap(buffer, stop) for stop in self._stop)
        self._held = buffer[len(buffer) - n_held :]
        return buffer[: len(buffer) - n_held]

    def flush(self) -> str:
        """The text has ended: returns what was held back."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, and not all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
