"""Pages on their way between the index and a folder: written when they are whole, read when a prompt begins with them.

Owns what is worth a file. Not thread-safe: the scheduler is its only user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .._core import PAGE_POSITIONS
from ..errors import KimiVLError
from .disk import DiskStore
from .keys import Positions
from .records import StoredPage

if TYPE_CHECKING:
    from .index import Node, PrefixIndex

LEAST_POSITIONS = 512
"""Shorter beginnings are computed again sooner than they are worth a file."""


class DiskTier:
    """The folder behind an index."""

    def __init__(self, index: PrefixIndex, store: DiskStore) -> None:
        self.store = store
        self.least = LEAST_POSITIONS
        self._index = index

    def keep(self, node: Node) -> None:
        """Writes a page, and those before it that are not there, where the sequence up to it is worth it."""
        if (node.depth - 1) * PAGE_POSITIONS + node.n_filled < self.least:
            return
        missing: list[Node] = []
        at = node
        while at.parent is not None and not (at.on_disk and (at is node or self.store.has_page(at.key))):
            missing.append(at)
            at = at.parent
        for one in reversed(missing):
            assert one.parent is not None and one.page is not None
            one.on_disk = self.store.put_page(one.key, one.parent.key, one.content, one.page)
            if not one.on_disk:
                return

    def restore(self, positions: Positions, limit: int, n_most: int, make_room: Callable[[int], bool]) -> int | None:
        """Reads what the folder has of the first `limit` positions beyond what the index holds, n_most pages at most.

        make_room(n_held): makes room for all pages of the sequence but the first n_held. Returns how many positions
        were read, None when there was no room.
        """
        index = self._index
        nodes = index.whole_pages(positions, limit)
        if nodes and nodes[-1].on_disk:
            self.store.touch(nodes[-1].key)
        if not self._has_more(positions, len(nodes), limit):
            return 0
        n_before = len(nodes)
        index.acquire(nodes)  # room for the next page is not to be made of these
        try:
            if not make_room(n_before):
                return None
            while len(nodes) - n_before < n_most and (len(nodes) + 1) * PAGE_POSITIONS <= limit:
                node = self._read(nodes, positions)
                if node is None:
                    break
                index.acquire([node])
                nodes.append(node)
            n_restored = (len(nodes) - n_before) * PAGE_POSITIONS
            if len(nodes) - n_before < n_most:
                n_restored += self._restore_tail(nodes, positions, limit)
        finally:
            index.release(nodes)
        return n_restored

    def _has_more(self, positions: Positions, n_held: int, limit: int) -> bool:
        """Whether there is a file of what comes after n_held pages."""
        if (n_held + 1) * PAGE_POSITIONS <= limit and self.store.has_page(positions.key(n_held)):
            return True
        return self.store.has_tail(positions.key(n_held - 1))

    def _read(self, nodes: list[Node], positions: Positions) -> Node | None:
        """The whole page after these."""
        number = len(nodes)
        found = self.store.page(positions.key(number), positions.key(number - 1), self._index.pool.page_bytes)
        return None if found is None else self._insert(nodes, positions, found)

    def _restore_tail(self, nodes: list[Node], positions: Positions, limit: int) -> int:
        n_whole = len(nodes) * PAGE_POSITIONS
        n_held = self._index.match(positions, limit).n_positions - n_whole
        if n_held >= min(limit - n_whole, PAGE_POSITIONS):
            return 0
        found = self.store.tail(positions.key(len(nodes) - 1), self._index.pool.page_bytes)
        if found is None:
            return 0
        n = min(found.content.agreement(positions.content(len(nodes))), limit - n_whole)
        if n <= n_held or self._insert(nodes, positions, found) is None:
            return 0
        return n - max(n_held, 0)

    def _insert(self, nodes: list[Node], positions: Positions, found: StoredPage) -> Node | None:
        """A page that was read, in the index. None when there is no room, or its rows are not what a page has."""
        index = self._index
        try:
            if not index.make_room(1):
                return None
            page = index.pool.page_from(found.rows, found.n_rows)
            node = index.insert(nodes[-1] if nodes else None, positions.root, found.key, found.content, page)
        except KimiVLError:
            return None
        node.on_disk = True
        return node
