"""A session together with what it holds, so that a prompt with a known beginning is prefilled from where it is new.

Owns the bookkeeping of token ids and picture digests against the session's positions. A picture counts as a whole: it
is kept or forgotten, never cut. Does not know how pictures are encoded or who takes turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ._core import Session


@dataclass(frozen=True)
class Picture:
    """A picture's place in a prompt. digest: what tells it from other pictures. n_tokens: the positions it takes."""

    digest: str
    n_tokens: int


PromptPart = list[int] | Picture
Key = int | Picture  # one token, or one picture with all of its positions


def flatten(parts: Sequence[PromptPart]) -> list[Key]:
    """The parts as one list of tokens and pictures."""
    keys: list[Key] = []
    for part in parts:
        if isinstance(part, Picture):
            keys.append(part)
        else:
            keys.extend(part)
    return keys


def n_positions(keys: Sequence[Key]) -> int:
    """How many positions of the context the keys take."""
    return sum(key.n_tokens if isinstance(key, Picture) else 1 for key in keys)


def common_prefix(a: Sequence[Key], b: Sequence[Key]) -> int:
    """How many keys at the start are the same."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))


class Timeline:
    """One session and the keys that its positions hold."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.keys: list[Key] = []  # never behind the session, except inside rewind()

    @property
    def n_ctx(self) -> int:
        """Positions that fit."""
        return self.session.n_ctx

    @property
    def n_past(self) -> int:
        """Positions held."""
        return self.session.n_past

    def sync(self) -> None:
        """Brings record and session together after a call that may have been interrupted: forgets what is recorded
        but not computed, and the computed part of a picture that is not whole."""
        n_past = self.session.n_past
        n_recorded = n_positions(self.keys)
        while n_recorded > n_past:
            key = self.keys.pop()
            n_recorded -= key.n_tokens if isinstance(key, Picture) else 1
        if n_recorded < n_past:
            self.session.truncate(n_recorded)

    def shared(self, keys: Sequence[Key]) -> int:
        """How many of `keys` it holds already, at most all but the last: the last one gives the logits."""
        return min(common_prefix(self.keys, keys), max(len(keys) - 1, 0))

    def rewind(self, keys: Sequence[Key]) -> int:
        """Forgets everything but the common beginning with `keys`; returns the number of keys kept."""
        self.sync()
        kept = self.shared(keys)
        n_kept = n_positions(self.keys[:kept])
        if n_kept < self.session.n_past:
            self.session.truncate(n_kept)
        del self.keys[kept:]
        return kept

    def extend(
        self,
        keys: Sequence[Key],
        embeddings: Callable[[Picture], NDArray[np.float32]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Prefills `keys` after what it holds; the session then has the logits of the last position.

        embeddings(picture): float32 [picture.n_tokens, hidden_size]. On an error or KeyboardInterrupt the timeline
        holds what was computed; `sync()` (or `rewind()`) makes it whole again.
        """
        import numpy as np

        arrays: list[NDArray[Any]] = []
        ids: list[int] = []
        for key in keys:
            if isinstance(key, Picture):
                if ids:
                    arrays.append(np.asarray(ids, dtype=np.int32))
                    ids = []
                arrays.append(embeddings(key))
            else:
                ids.append(key)
        if ids:
            arrays.append(np.asarray(ids, dtype=np.int32))
        self.keys.extend(keys)  # recorded first: an interrupted call leaves more in the record than in the session
        self.session.prefill(arrays, logits="last", progress=progress)

    def decode(self, token: int) -> None:
        """Appends one token."""
        self.keys.append(token)
        self.session.decode(token)
