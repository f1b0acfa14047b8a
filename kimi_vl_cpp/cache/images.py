"""Encoded pictures by digest, the least recently used forgotten first, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from .disk import DiskStore
from .records import smallest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ImageCache:
    """digest -> float32 [n_tokens, hidden_size], read-only, held as halves where those are the same numbers.
    max_bytes 0 keeps nothing in memory. store: a folder that keeps them beyond this process. Thread-safe."""

    def __init__(self, max_bytes: int, store: DiskStore | None = None) -> None:
        self.max_bytes = max_bytes
        self.store = store
        self.n_bytes = 0
        self.n_encoded = 0  # pictures that were put here
        self.n_looked_up = self.n_found = 0  # by `find`
        self._lock = threading.Lock()
        self._items: OrderedDict[str, NDArray[np.float32] | NDArray[np.float16]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, digest: str) -> NDArray[np.float32] | None:
        """The encoded picture, or None."""
        with self._lock:
            item = self._items.get(digest)
            if item is not None:
                self._items.move_to_end(digest)
        if item is None and self.store is not None:
            item = self.store.picture(digest)
            if item is not None:
                self._keep(digest, item)
        return None if item is None else _as_floats(item)

    def holds(self, digest: str) -> bool:
        """Whether the encoded picture is there, without reading or counting it."""
        return digest in self._items or (self.store is not None and self.store.has_picture(digest))

    def find(self, digest: str) -> NDArray[np.float32] | None:
        """As `get`, for whoever encodes the picture otherwise: counted."""
        item = self.get(digest)
        self.n_looked_up += 1
        self.n_found += item is not None
        return item

    def put(self, digest: str, embedding: NDArray[np.float32]) -> None:
        """Keeps `embedding`, which becomes read-only. One that is larger than the whole cache is kept in the folder
        alone."""
        embedding.setflags(write=False)
        self.n_encoded += 1
        kept = smallest(embedding)
        if self.store is not None:
            self.store.put_picture(digest, kept)
        self._keep(digest, kept)

    def _keep(self, digest: str, embedding: NDArray[np.float32] | NDArray[np.float16]) -> None:
        with self._lock:
            old = self._items.pop(digest, None)
            if old is not None:
                self.n_bytes -= old.nbytes
            if embedding.nbytes > self.max_bytes:
                return
            self._items[digest] = embedding
            self.n_bytes += embedding.nbytes
            while self.n_bytes > self.max_bytes:
                _, dropped = self._items.popitem(last=False)
                self.n_bytes -= dropped.nbytes

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._items.clear()
            self.n_bytes = 0


def _as_floats(kept: NDArray[np.float32] | NDArray[np.float16]) -> NDArray[np.float32]:
    floats = kept.astype("float32", copy=False)
    floats.setflags(write=False)
    return floats
