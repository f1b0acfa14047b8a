"""What a model remembers, as its user sees it: figures, keeping, filling ahead, forgetting."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .._core import PAGE_POSITIONS
from ..cache.disk import DiskNotice, DiskStore
from ..cache.keys import Positions
from ..types import Usage
from .generation import Generation
from .request import Question, build_request
from .stream import PieceStream

if TYPE_CHECKING:
    from .loaded import LoadedModel


@dataclass(frozen=True)
class DiskInfo:
    """The state of the cache folder.

    bytes, quota: of all its files, those of other models included, and what they may take. read, written: files since
    the model was opened. damaged: files that were not what they should be, and were removed. removed: files that went
    to make room. failed: calls of the system that failed. notices: the last things that went wrong.
    """

    folder: str
    bytes: int
    quota: int
    read: int
    written: int
    damaged: int
    removed: int
    failed: int
    notices: tuple[DiskNotice, ...]


@dataclass(frozen=True)
class CacheInfo:
    """The state of the caches.

    pages: held in the KV cache, by requests under way and of the past. bytes, budget: theirs and what they may take.
    page_positions: positions of a page. pinned: pages that stay whatever room is needed. hit_positions,
    missed_positions: of all prompts so far, how many were held and how many were computed. evicted_pages: that went to
    make room. pictures, picture_bytes, picture_budget: encoded pictures that are kept. disk: the cache folder, None
    where there is none.
    """

    pages: int
    bytes: int
    budget: int
    page_positions: int
    pinned: int
    hit_positions: int
    missed_positions: int
    evicted_pages: int
    pictures: int
    picture_bytes: int
    picture_budget: int
    disk: DiskInfo | None = None


class ModelCache:
    """The KV cache and the encoded pictures of one model. From any thread."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    def info(self) -> CacheInfo:
        """The figures of this moment."""
        index, images = self._loaded.conductor.index, self._loaded.image_cache

        def read() -> CacheInfo:
            return CacheInfo(
                pages=index.pool.n_pages,
                bytes=index.pool.bytes_in_use,
                budget=index.pool.budget,
                page_positions=PAGE_POSITIONS,
                pinned=sum(1 for node in index.nodes() if node.pins),
                hit_positions=index.counts.hit_positions,
                missed_positions=index.counts.missed_positions,
                evicted_pages=index.counts.evicted_pages,
                pictures=len(images),
                picture_bytes=images.n_bytes,
                picture_budget=images.max_bytes,
                disk=None if index.disk is None else _disk_info(index.disk.store),
            )

        return self._loaded.conductor.between_turns(read)

    def prefetch(self, messages: Sequence[Any], images: Sequence[Any] = ()) -> Usage:
        """Computes a prompt without answering it, so that requests that begin the same find it held.

        messages, images: as for `KimiVL.start`. Raises like it.
        """
        return self._prefetch(messages, images)[1]

    def pin(self, messages: Sequence[Any], images: Sequence[Any] = ()) -> int:
        """As `prefetch`, and keeps the prompt's whole pages, whatever room is needed, until `unpin`. Returns how many
        positions those are. Pinned pages count in the budget, which other requests then have less of."""
        positions, _ = self._prefetch(messages, images)
        index = self._loaded.conductor.index

        def keep() -> int:
            match = index.match(positions, len(positions))
            whole = match.nodes[: match.n_positions // PAGE_POSITIONS]
            index.pin(whole)
            return len(whole) * PAGE_POSITIONS

        return self._loaded.conductor.between_turns(keep)

    def unpin(self) -> None:
        """Lets everything that was pinned go when room is needed."""
        index = self._loaded.conductor.index
        self._loaded.conductor.between_turns(index.unpin_all)

    def clear(self, *, disk: bool = False) -> None:
        """Forgets everything that no request is using and that is not pinned, pictures too. disk: and removes the files
        of the cache folder, of every model."""
        index = self._loaded.conductor.index
        self._loaded.conductor.between_turns(index.clear)
        self._loaded.image_cache.clear()
        if disk and index.disk is not None:
            index.disk.store.clear()

    def on_notice(self, function: Callable[[DiskNotice], None]) -> None:
        """Calls a function with what went wrong with the cache folder so far, and with what will: in the thread that
        computes, which it must not hold up."""
        index = self._loaded.conductor.index
        if index.disk is not None:
            index.disk.store.on_notice = function
            for notice in tuple(index.disk.store.notices):
                function(notice)

    def _prefetch(self, messages: Sequence[Any], images: Sequence[Any]) -> tuple[Positions, Usage]:
        started = time.perf_counter()
        loaded = self._loaded
        question = Question(messages=messages, images=images)
        request = build_request(loaded, question, options={"prompt_only": True}, started=started)
        usage = PieceStream(Generation(loaded, request, loaded.progress)).drain().usage
        return request.positions, usage


def _disk_info(store: DiskStore) -> DiskInfo:
    return DiskInfo(
        folder=str(store.folder),
        bytes=store.n_bytes,
        quota=store.quota,
        notices=tuple(store.notices),
        **asdict(store.counts),
    )
