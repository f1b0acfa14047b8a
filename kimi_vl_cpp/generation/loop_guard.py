"""Notices an answer that repeats itself: its end is the same few tokens over and over."""

from __future__ import annotations

LONGEST_PERIOD = 256
IN_REASONING = (4, 256)
"""Copies of the period, and tokens in all, from which a reasoning counts as repeating itself."""
IN_ANSWER = (8, 1024)
"""The same of an answer."""


class LoopGuard:
    """Fed with the tokens of a reply, one by one."""

    def __init__(self) -> None:
        import numpy as np

        self._last = np.full(LONGEST_PERIOD, -1, dtype=np.int64)  # [p - 1]: the token p places before the next one
        self._same = np.zeros(LONGEST_PERIOD, dtype=np.int64)  # [p - 1]: tokens in a row equal to the one p before
        self._periods = np.arange(1, LONGEST_PERIOD + 1)

    def push(self, token: int) -> None:
        """Takes the next token."""
        import numpy as np

        self._same = np.where(self._last == token, self._same + 1, 0)
        self._last[1:] = self._last[:-1]
        self._last[0] = token

    def repeats(self, copies: int, tokens: int) -> bool:
        """Whether the end of the reply is the same stretch, of any length up to LONGEST_PERIOD, `copies` times and over
        `tokens` tokens at least."""
        import numpy as np

        return bool((self._same + self._periods >= np.maximum(tokens, copies * self._periods)).any())
