"""A session together with what it holds, so that a prompt with a known beginning is prefilled from where it is new.

Owns the record of token ids and picture digests against the session's positions, and the rule of which form each
position is computed in (docs/architecture.md, "The same bits"): a position is reused only in the form that a new
session would compute it in, so an answer is the same whatever was held. Does not know how pictures are encoded or who
takes turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._core import PAGE_POSITIONS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .._core import Session


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


def expanded_positions(is_answer: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The page rule: bool [n], True where a position's page is whole and holds no position of an answer.

    is_answer: bool [n], True for the contents of assistant turns. Appending to a prompt an answer that begins right
    after it never changes the form of a position before.
    """
    import numpy as np

    n_pages = len(is_answer) // PAGE_POSITIONS
    whole = is_answer[: n_pages * PAGE_POSITIONS].reshape(n_pages, PAGE_POSITIONS)
    expanded = np.zeros(len(is_answer), dtype=np.bool_)
    expanded[: n_pages * PAGE_POSITIONS] = np.repeat(~whole.any(axis=1), PAGE_POSITIONS)
    return expanded


class Timeline:
    """One session and the record of its positions.

    The record may be ahead of the session, by what an interrupted call did not compute; never behind it.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.keys: list[Key] = []
        self._expanded = bytearray()  # of each position of the keys, whether it is (to be) computed expanded

    @property
    def n_ctx(self) -> int:
        """Positions that fit."""
        return self.session.n_ctx

    @property
    def n_past(self) -> int:
        """Positions held."""
        return self.session.n_past

    def begin(self, keys: Sequence[Key], expanded: NDArray[np.bool_], reuse: bool = True) -> int:
        """Takes a prompt in place of what it holds. Returns how many positions of it are held already.

        expanded: bool [n_positions(keys)], see expanded_positions. Keeps the common beginning as far as its forms are
        the same too, at most all but the last position: that one gives the logits. reuse: False keeps nothing.
        """
        import numpy as np

        keys = list(keys)
        common = n_positions(self.keys[: common_prefix(self.keys, keys)]) if reuse else 0
        kept = min(common, self.session.n_past, max(len(expanded) - 1, 0))
        held = np.frombuffer(self._expanded, dtype=np.bool_, count=kept)
        differing = np.flatnonzero(held != expanded[:kept])
        if len(differing):
            kept = int(differing[0])
        del held  # a bytearray that is looked at cannot be replaced
        if kept < self.session.n_past:
            self.session.truncate(kept)
        self.keys, self._expanded = keys, bytearray(expanded.tobytes())
        return kept

    def pending_pictures(self) -> list[Picture]:
        """The pictures of the record that are not computed, or not to their end."""
        pending, end = [], 0
        for key in self.keys:
            end += key.n_tokens if isinstance(key, Picture) else 1
            if isinstance(key, Picture) and end > self.session.n_past:
                pending.append(key)
        return pending

    def prefill(
        self,
        embeddings: Callable[[Picture], NDArray[np.float32]],
        progress: Callable[[int, int], None] | None = None,
        rows: Callable[[int, NDArray[np.float32]], None] | None = None,
    ) -> None:
        """Computes what the record is ahead of the session, which then has the logits of the last position.

        embeddings(picture): float32 [picture.n_tokens, hidden_size]. rows(start, logits): called page by page with the
        logits of every position, float32 [n, n_vocab]; only for a prompt without pictures. After an error or
        KeyboardInterrupt the session holds what was computed, and `begin` makes use of it.
        """
        import numpy as np

        past = self.session.n_past
        arrays: list[NDArray[Any]] = []
        ids: list[int] = []
        end = 0
        for key in self.keys:
            start, end = end, end + (key.n_tokens if isinstance(key, Picture) else 1)
            if end <= past:
                continue
            if isinstance(key, Picture):
                if ids:
                    arrays.append(np.asarray(ids, dtype=np.int32))
                    ids = []
                arrays.append(embeddings(key)[max(past - start, 0) :])
            else:
                ids.append(key)
        if ids:
            arrays.append(np.asarray(ids, dtype=np.int32))
        expanded = np.frombuffer(bytes(self._expanded[past:]), dtype=np.bool_)
        if rows is None:
            self.session.prefill(arrays, logits="last", progress=progress, expanded=expanded)
            return
        (tokens,) = arrays
        for start in range(0, len(tokens), PAGE_POSITIONS):
            page = slice(start, start + PAGE_POSITIONS)
            logits = self.session.prefill([tokens[page]], logits="all", expanded=expanded[page])
            assert logits is not None
            rows(past + start, logits)
            if progress is not None:
                progress(start + len(logits), len(tokens))

    def decode(self, token: int) -> None:
        """Appends one token of an answer."""
        self.keys.append(token)
        self._expanded.append(False)
        self.session.decode(token)
