"""The pages of all sequences by content: what a prompt begins with is looked up here, and what was computed is left.

Owns the tree of pages, who uses them, and which go when room is needed (GreedyDual: the cheapest to compute again, of
those that nobody asked for longest). A page is in it under one key and its parent too. Not thread-safe: the scheduler
is its only user. Does not know how pages are computed or what a request is.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._core import PAGE_POSITIONS
from .disk import DiskStore
from .keys import PageContent, Positions
from .tier import DiskTier

if TYPE_CHECKING:
    from .._core import Page, PagePool

# Seconds to compute a page at depth 0, and what a thousand positions of depth add to it. Only their ratio matters: it
# is that of the full model on two cores (docs/performance.md).
_BASE_S, _DEPTH_S = 0.56, 0.07
_READ_S = 0.006  # to read a page of it from a disk


class Node:
    """A page of the tree. n_users: sequences that hold it. pins: see PrefixIndex.pin. on_disk: whether the folder has
    it too."""

    __slots__ = (
        "children",
        "content",
        "depth",
        "key",
        "n_users",
        "offered",
        "on_disk",
        "page",
        "parent",
        "pins",
        "value",
    )

    def __init__(self, parent: Node | None, key: bytes, content: PageContent, page: Page | None) -> None:
        self.parent, self.key, self.content, self.page = parent, key, content, page
        self.children: dict[bytes, Node] = {}
        self.depth: int = 0 if parent is None else parent.depth + 1  # pages up to and with this one
        self.n_users = self.pins = self.offered = 0
        self.on_disk = False
        self.value = 0.0

    @property
    def n_filled(self) -> int:
        """Positions that the page holds."""
        return len(self.content)

    @property
    def evictable(self) -> bool:
        """Whether nothing needs it: no page after it, no sequence, no pin."""
        return not (self.children or self.n_users or self.pins or self.parent is None)


@dataclass(frozen=True)
class Match:
    """The beginning of a prompt that is held. nodes: its pages. n_positions: how many positions of them agree."""

    nodes: list[Node]
    n_positions: int


@dataclass
class Counts:
    """What happened, in pages and positions, since the index was made."""

    hit_positions: int = 0
    missed_positions: int = 0
    published_pages: int = 0
    evicted_pages: int = 0


class PrefixIndex:
    """The tree over the pages of one pool. store: a folder that keeps pages beyond this process."""

    def __init__(self, pool: PagePool, store: DiskStore | None = None) -> None:
        self.pool = pool
        self.counts = Counts()
        self.disk = None if store is None else DiskTier(self, store)
        self._roots: dict[bytes, Node] = {}
        self._n_nodes = self._n_used = 0
        self._clock = 0.0
        self._heap: list[tuple[float, int, Node]] = []  # of pages that could go; checked again when taken
        self._n_offered = 0

    def __len__(self) -> int:
        return self._n_nodes

    def nodes(self) -> Iterator[Node]:
        """All pages, parents first."""
        waiting = [node for root in self._roots.values() for node in root.children.values()]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())

    # Looking up

    def match(self, positions: Positions, limit: int) -> Match:
        """The longest beginning of `positions`, of `limit` positions at most, that is held in the same forms: whole
        pages, and of one more page the positions that agree."""
        nodes: list[Node] = []
        node = self._roots.get(positions.root)
        if node is None:
            return Match(nodes, 0)
        while len(nodes) < limit // PAGE_POSITIONS:
            child = node.children.get(positions.key(len(nodes)))
            if child is None:
                break
            node = child
            nodes.append(node)
        n = len(nodes) * PAGE_POSITIONS
        content = positions.content(len(nodes))
        agreed, best = 0, None
        for child in node.children.values():
            rows = min(content.agreement(child.content), limit - n)
            if rows > agreed:
                agreed, best = rows, child
        if best is not None:
            nodes.append(best)
        for used in nodes:
            self._touch(used)
        return Match(nodes, n + agreed)

    def whole_pages(self, positions: Positions, limit: int) -> list[Node]:
        """The whole pages among the first `limit` of `positions` that are held."""
        nodes: list[Node] = []
        node = self._roots.get(positions.root)
        while node is not None and len(nodes) < min(limit, len(positions)) // PAGE_POSITIONS:
            node = node.children.get(positions.key(len(nodes)))
            if node is not None:
                nodes.append(node)
        return nodes

    # Keeping

    def publish(self, parent: Node | None, positions: Positions, index: int, page: Page, n_filled: int) -> Node:
        """Keeps `page`, which holds the first n_filled positions of page `index`, under its parent (None: the root).

        Returns the page's node: the one that was there already if another sequence was faster. Shorter pages that
        `page` begins with and that nobody uses are dropped for it.
        """
        content = positions.content(index, n_filled)
        # A whole page's key was made when it was looked for.
        key = positions.key(index) if len(content) == PAGE_POSITIONS else content.key(positions.key(index - 1))
        node = self.insert(parent, positions.root, key, content, page)
        if self.disk is not None:
            self.disk.keep(node)
        return node

    def insert(self, parent: Node | None, root: bytes, key: bytes, content: PageContent, page: Page) -> Node:
        """As `publish`, in memory alone. key: that of the content after its parent's."""
        above = self._root(root) if parent is None else parent
        known = above.children.get(key)
        if known is not None:
            self._touch(known)
            return known
        node = Node(above, key, content, page)
        above.children[key] = node
        self._n_nodes += 1
        for other in list(above.children.values()):
            if other.evictable and other.n_filled < len(content) and content.agreement(other.content) == other.n_filled:
                self._remove(other)
        self.counts.published_pages += 1
        self._touch(node)
        return node

    def acquire(self, nodes: Iterable[Node]) -> None:
        """Counts a sequence among the users of these pages, which then stay."""
        for node in nodes:
            self._n_used += node.n_users == 0 and node.page is not None
            node.n_users += 1

    def release(self, nodes: Iterable[Node]) -> None:
        """Takes a sequence off the users of these pages."""
        for node in nodes:
            node.n_users -= 1
            self._n_used -= node.n_users == 0 and node.page is not None
            self._offer(node)

    def pin(self, nodes: Iterable[Node], pins: int = 1) -> None:
        """Keeps pages whatever room is needed; pins -1 takes one pin away."""
        for node in nodes:
            node.pins = max(node.pins + pins, 0)
            self._offer(node)

    def unpin_all(self) -> None:
        """Takes every pin away."""
        for node in self.nodes():
            node.pins = 0
            self._offer(node)

    # Making room

    @property
    def bytes_kept(self) -> int:
        """Memory of the pages that no sequence holds: they are here to be found again. From any thread."""
        return (self._n_nodes - self._n_used) * self.pool.page_bytes

    @property
    def bytes_held(self) -> int:
        """Memory of the pages that sequences hold. From any thread."""
        return max(self.pool.bytes_in_use - self.bytes_kept, 0)

    @property
    def n_free(self) -> int:
        """Pages that the pool could still hand out without dropping any."""
        return max(self.pool.budget - self.pool.bytes_in_use, 0) // self.pool.page_bytes

    @property
    def n_evictable(self) -> int:
        """Pages that would go if all the room were needed."""
        kept: set[int] = set()
        n = 0
        for node in self.nodes():
            n += 1
            if node.n_users or node.pins:
                above: Node | None = node
                while above is not None and above.parent is not None and id(above) not in kept:
                    kept.add(id(above))
                    above = above.parent
        return n - len(kept)

    def make_room(self, n_pages: int) -> bool:
        """Drops pages until n_pages more fit the pool's budget. False when they do not, with all dropped that could
        be."""
        while self.n_free < n_pages:
            victim = self._cheapest()
            if victim is None:
                return False
            self._clock = victim.value
            if self.disk is not None:
                self.disk.keep(victim)
            self.counts.evicted_pages += 1
            self._remove(victim)
        return True

    def clear(self) -> int:
        """Drops everything that nobody uses or has pinned. Returns how many pages that were."""
        before = self._n_nodes
        while (victim := self._cheapest()) is not None:
            self._remove(victim)
        return before - self._n_nodes

    def forget_all(self) -> None:
        """Drops every page, used and pinned ones too."""
        for node in self.nodes():
            node.page = None  # parents and children refer to each other: the pages should not wait for a collection
        self._roots.clear()
        self._heap.clear()
        self._n_nodes = self._n_used = 0

    def recount(self, users: Iterable[Iterable[Node]]) -> None:
        """Counts the pages anew, and their users, from the pages that each sequence holds."""
        self._n_nodes = self._n_used = 0
        for node in self.nodes():
            node.n_users = 0
            self._n_nodes += 1
        for nodes in users:
            self.acquire(nodes)
        for node in self.nodes():
            self._offer(node)

    # Inside

    def _root(self, key: bytes) -> Node:
        if key not in self._roots:
            self._roots[key] = Node(None, key, PageContent(False, b"", b"", ()), None)
        return self._roots[key]

    def _touch(self, node: Node) -> None:
        computing_s = _BASE_S + _DEPTH_S * (node.depth - 1) * PAGE_POSITIONS / 1000
        node.value = self._clock + (_READ_S if node.on_disk else computing_s)
        self._offer(node)

    def _offer(self, node: Node) -> None:
        if node.evictable:
            self._n_offered += 1
            node.offered = self._n_offered
            heapq.heappush(self._heap, (node.value, node.offered, node))
            if len(self._heap) > 8 * self._n_nodes + 64:
                self._heap = [entry for entry in self._heap if entry[1] == entry[2].offered]
                heapq.heapify(self._heap)

    def _cheapest(self) -> Node | None:
        while self._heap:
            _, offered, node = heapq.heappop(self._heap)
            if node.page is not None and node.evictable and node.offered == offered:
                return node
        return None

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.key]
        node.page = None
        self._n_nodes -= 1
        if parent.parent is None and not parent.children:
            self._roots.pop(parent.key, None)
        self._offer(parent)
