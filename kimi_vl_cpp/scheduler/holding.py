"""A session and the pages of the index that it stands on: taken when a prompt begins, published as they fill."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .._core import PAGE_POSITIONS
from ..cache.index import Node, PrefixIndex
from ..cache.keys import Positions

if TYPE_CHECKING:
    from .._core import Session


def n_pages(n_positions: int) -> int:
    """Pages that n_positions take."""
    return -(-n_positions // PAGE_POSITIONS)


class Holding:
    """The memory of one sequence. session: its rows. nodes: its whole pages in the index, which stay there for it."""

    def __init__(
        self,
        index: PrefixIndex,
        positions: Positions,
        new_session: Callable[[], Session],
        *,
        limit: int,
        whole_pages: bool = False,
        publishes: bool = True,
    ) -> None:
        """Takes over what the index has of the first `limit` positions. whole_pages: only them, as the part of a page
        costs a page more until it is copied. publishes: whether the index gets what is computed."""
        self.publishes = publishes
        self._index = index
        self._positions = positions
        self.nodes: list[Node] = []
        self.has_copies = False  # whether it has pages that the index has from another sequence
        self._n_shared = -1  # positions at which its last page was another sequence's too
        match = index.match(positions, limit)
        self.session = new_session()
        whole = match.nodes[: match.n_positions // PAGE_POSITIONS]
        n_adopted = len(whole) * PAGE_POSITIONS if whole_pages else match.n_positions
        if n_adopted:
            taken = match.nodes[: n_pages(n_adopted)]
            self.session.adopt([node.page for node in taken if node.page is not None], n_adopted)
            self._n_shared = n_adopted
        self.nodes.extend(whole)
        index.acquire(whole)

    @classmethod
    def fork_of(cls, other: Holding, positions: Positions) -> Holding:
        """The same rows and logits for another sequence, on the same pages. positions: the same as the other's."""
        fork = cls.__new__(cls)
        fork._index, fork._positions, fork.publishes = other._index, positions, other.publishes
        fork.session = other.session.fork()
        fork.nodes, fork.has_copies = list(other.nodes), other.has_copies
        fork._n_shared = other._n_shared = other.n_past
        fork._index.acquire(fork.nodes)
        return fork

    @property
    def n_past(self) -> int:
        """Positions that are computed."""
        return self.session.n_past

    @property
    def shares_last_page(self) -> bool:
        """Whether its last page is another sequence's too, so that writing into it takes a copy."""
        return self.n_past == self._n_shared and self.n_past % PAGE_POSITIONS != 0

    @property
    def needs_page(self) -> bool:
        """Whether one more position takes a page."""
        return self.n_past % PAGE_POSITIONS == 0 or self.shares_last_page

    def publish(self) -> None:
        """Leaves the pages that have become whole to other sequences."""
        n_whole = min(self.n_past // PAGE_POSITIONS, self._positions.n_whole_pages)
        if not self.publishes or n_whole <= len(self.nodes):
            return
        pages = self.session.pages
        for number in range(len(self.nodes), n_whole):
            n_published = self._index.counts.published_pages
            node = self._publish(number, pages[number], PAGE_POSITIONS)
            self.has_copies |= self._index.counts.published_pages == n_published
            self.nodes.append(node)
            self._index.acquire([node])

    def release(self) -> None:
        """Publishes everything, the page that is not whole included, and gives the session up."""
        self.publish()
        n_whole, n_rest = divmod(min(self.n_past, len(self._positions)), PAGE_POSITIONS)
        if self.publishes and n_rest and n_whole == len(self.nodes):
            self._publish(n_whole, self.session.pages[n_whole], n_rest)
        self.drop()

    def drop(self) -> None:
        """Gives the session up with what it computed since its last whole page."""
        nodes, self.nodes = self.nodes, []
        self._index.release(nodes)
        del self.session

    def _publish(self, number: int, page: object, n_filled: int) -> Node:
        parent = self.nodes[-1] if self.nodes else None
        return self._index.publish(parent, self._positions, number, page, n_filled)  # type: ignore[arg-type]
