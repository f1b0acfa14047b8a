"""What stands at each position of a sequence, the form it is computed in, and the keys of its pages by content.

Owns the page rule (docs/architecture.md, "The same bits") and the chain of keys: two pages have the same key exactly
when their bits are the same, whoever computed them. Pure: knows no page of memory and no session.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._core import PAGE_POSITIONS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FORMAT = b"kimi_vl_cpp.kv/1"
_PROMPT, _ANSWER, _PICTURE = 0, 1, 2  # tags of a position; in a page's content pictures are numbered from _PICTURE on


@dataclass(frozen=True)
class Picture:
    """A picture's place in a prompt. digest: of its pixels. n_tokens: the positions it takes."""

    digest: str
    n_tokens: int


Item = int | Picture
"""One token, or one picture with all of its positions."""


def n_positions(items: Iterable[Item]) -> int:
    """How many positions of the context the items take."""
    return sum(item.n_tokens if isinstance(item, Picture) else 1 for item in items)


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


def root_key(*, model: bytes, arithmetic: str, kv_type: str) -> bytes:
    """The key that a chain begins with: pages of another model, arithmetic or cache type are other pages.

    model: a digest of the model's file. arithmetic: what decides the bits of a product (compiled code, instruction
    set, activations).
    """
    digest = hashlib.sha256(_FORMAT)
    for field in (model, arithmetic.encode(), kv_type.encode()):
        digest.update(len(field).to_bytes(8, "little") + field)
    return digest.digest()


def salted(key: bytes, salt: str) -> bytes:
    """A root or the digest of a picture for those alone who give this salt; without one, the key itself."""
    return hashlib.sha256(key + salt.encode("utf-8", "surrogatepass")).digest() if salt else key


@dataclass(frozen=True)
class PageContent:
    """What stands at the positions of one page, and their form.

    tags: a byte for each position, prompt, answer, or which picture of the page. values: int32 for each, the token id
    or the offset in the picture. pictures: the digests, in the order of the tags.
    """

    expanded: bool
    tags: bytes
    values: bytes
    pictures: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tags)

    def key(self, parent: bytes) -> bytes:
        """SHA-256 over the parent's key, the form and every position."""
        head = bytes([self.expanded]) + len(self.tags).to_bytes(2, "little")
        digest = hashlib.sha256(parent + head + self.tags + self.values)
        for picture in self.pictures:
            name = picture.encode()
            digest.update(len(name).to_bytes(4, "little") + name)
        return digest.digest()

    def agreement(self, other: PageContent) -> int:
        """How many positions at the start are the same in both, in the same form."""
        import numpy as np

        if self.expanded != other.expanded:
            return 0
        n = min(len(self), len(other))
        tags, values = (np.frombuffer(self.tags, np.uint8, n), np.frombuffer(self.values, "<i4", n))
        same = (tags == np.frombuffer(other.tags, np.uint8, n)) & (values == np.frombuffer(other.values, "<i4", n))
        for number, (mine, theirs) in enumerate(zip(self.pictures, other.pictures, strict=False), _PICTURE):
            if mine != theirs:
                same &= tags != number
        differing = np.flatnonzero(~same)
        return int(differing[0]) if len(differing) else n


class Positions:
    """The positions of one sequence, growing at its end; the prompt first, then tokens of an answer."""

    def __init__(self, root: bytes, items: Sequence[Item], is_answer: NDArray[np.bool_] | None = None) -> None:
        """root: see root_key. is_answer: bool [n_positions(items)], None where no position is an answer's."""
        self.root = root
        self._tags = bytearray()
        self._values = array("i")
        self._pictures: list[tuple[int, Picture]] = []  # with the position at which each begins
        self._keys: list[bytes] = []  # of the whole pages asked for so far
        for item in items:
            if isinstance(item, Picture):
                self._pictures.append((len(self._tags), item))
                self._tags += bytes([_PICTURE]) * item.n_tokens
                self._values.extend(range(item.n_tokens))
            else:
                self._tags.append(_PROMPT)
                self._values.append(item)
        if is_answer is not None:
            for position in is_answer.nonzero()[0].tolist():
                self._tags[position] = max(self._tags[position], _ANSWER)

    def __len__(self) -> int:
        return len(self._tags)

    def copy(self) -> Positions:
        """The same positions, to grow by themselves."""
        other = Positions(self.root, ())
        other._tags[:], other._values[:] = self._tags, self._values
        other._pictures, other._keys = list(self._pictures), list(self._keys)
        return other

    @property
    def pictures(self) -> list[tuple[int, Picture]]:
        """Every picture, with the position at which it begins."""
        return list(self._pictures)

    def same_as(self, other: Positions) -> bool:
        """Whether the same stands at every position of both."""
        return (
            self.root == other.root
            and self._tags == other._tags
            and self._values == other._values
            and self._pictures == other._pictures
        )

    @property
    def n_whole_pages(self) -> int:
        """Pages of which every position is known."""
        return len(self) // PAGE_POSITIONS

    def append(self, token: int) -> None:
        """One more token of an answer. Interrupted and called again it appends one."""
        self._values[len(self._tags) :] = array("i", [token])
        self._tags.append(_ANSWER)

    def tokens(self, first: int) -> list[int]:
        """The token ids from position `first` on, -1 at the positions of pictures."""
        ids = self._values[first:].tolist()
        for start, picture in self._pictures_between(first, len(self)):
            for position in range(max(start, first), start + picture.n_tokens):
                ids[position - first] = -1
        return ids

    def cut(self, n: int) -> None:
        """Forgets what comes after the first n positions, which are tokens."""
        del self._tags[n:], self._values[n:]
        del self._keys[n // PAGE_POSITIONS :]

    def expanded(self) -> NDArray[np.bool_]:
        """bool [n], the form of each position."""
        import numpy as np

        return expanded_positions(np.frombuffer(bytes(self._tags), np.uint8) == _ANSWER)

    def content(self, index: int, n: int = PAGE_POSITIONS) -> PageContent:
        """Of page `index`, its first n positions as far as they are known. The form is the page's own in this
        sequence, however few of its positions are taken."""
        first = index * PAGE_POSITIONS
        whole = bytes(self._tags[first : first + PAGE_POSITIONS])
        expanded = len(whole) == PAGE_POSITIONS and _ANSWER not in whole
        tags = bytearray(whole[:n])
        names: list[str] = []
        for start, picture in self._pictures_between(first, first + len(tags)):
            number = _PICTURE + len(names)
            names.append(picture.digest)
            for position in range(max(start - first, 0), min(start + picture.n_tokens - first, len(tags))):
                tags[position] = number
        values = array("i", self._values[first : first + len(tags)])
        return PageContent(expanded, bytes(tags), values.tobytes(), tuple(names))

    def key(self, index: int) -> bytes:
        """The key of whole page `index`; that of page -1 is the root."""
        while len(self._keys) <= index:
            done = len(self._keys)
            self._keys.append(self.content(done).key(self._keys[-1] if done else self.root))
        return self._keys[index] if index >= 0 else self.root

    def pictures_in(self, first: int, end: int) -> list[Picture]:
        """The pictures of which positions [first, end) are part, each digest once."""
        found = [picture for _, picture in self._pictures_between(first, end)]
        return list({picture.digest: picture for picture in found}.values())

    def parts(self, first: int, end: int, embeddings: Callable[[Picture], NDArray[Any]]) -> list[NDArray[Any]]:
        """Positions [first, end) as the core takes them: int32 [n] token ids and the rows [n, hidden_size] that
        embeddings(picture) has for its positions."""
        import numpy as np

        parts: list[NDArray[Any]] = []
        at = first
        for start, picture in self._pictures_between(first, end):
            if start > at:
                parts.append(np.array(self._values[at:start], dtype=np.int32))
            at = max(at, start)
            parts.append(embeddings(picture)[at - start : end - start])
            at = min(start + picture.n_tokens, end)
        if at < end:
            parts.append(np.array(self._values[at:end], dtype=np.int32))
        return parts

    def _pictures_between(self, first: int, end: int) -> list[tuple[int, Picture]]:
        if first >= end:
            return []
        return [(at, picture) for at, picture in self._pictures if at < end and at + picture.n_tokens > first]
