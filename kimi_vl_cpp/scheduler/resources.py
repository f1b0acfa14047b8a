"""What a model computes its answers with, handed down from the conductor to those who need a part of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..cache.disk import DiskStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .._core import Engine, PagePool, Session


class Features(Protocol):
    """Where encoded pictures are kept by digest. holds: whether one is, without reading it. find: as get, by which the
    look-ups are counted."""

    def get(self, digest: str) -> NDArray[np.float32] | None: ...
    def holds(self, digest: str) -> bool: ...
    def find(self, digest: str) -> NDArray[np.float32] | None: ...
    def put(self, digest: str, embedding: NDArray[np.float32]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Resources:
    """pool: the memory of positions. new_session(adapter): an empty sequence in it. store: a folder that keeps pages
    beyond this process. clock: seconds."""

    engine: Engine
    pool: PagePool
    features: Features
    new_session: Callable[[int], Session]
    store: DiskStore | None = None
    clock: Callable[[], float] = time.perf_counter
