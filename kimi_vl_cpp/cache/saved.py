"""The pages of one sequence in a file of its own, beside a conversation that was saved. Called between turns."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from .._core import PAGE_POSITIONS
from ..errors import OutOfMemory
from .folder import read_pages, write_pages
from .keys import Positions
from .records import Damaged, Record, page_of, page_record

if TYPE_CHECKING:
    from .index import Node, PrefixIndex


def save_pages(index: PrefixIndex, positions: Positions, path: Path) -> int:
    """Writes what the index holds of a sequence. Returns how many positions that are. Raises OSError."""
    match = index.match(positions, len(positions))

    def record(node: Node) -> Record:
        assert node.parent is not None and node.page is not None
        return page_record(node.key, node.parent.key, node.content, node.page.read(), node.page.n_filled)

    write_pages(path, map(record, match.nodes))
    return match.n_positions


def load_pages(index: PrefixIndex, positions: Positions, path: Path) -> int:
    """Takes pages of a file into the index, as far as they are whole and those of the sequence. Returns how many
    positions the index then holds of it. Raises OSError."""
    nodes: list[Node] = []
    try:
        with contextlib.suppress(Damaged, OutOfMemory):
            for record in read_pages(path):
                found = page_of(record, positions.key(len(nodes) - 1))
                if not found.content.agreement(positions.content(len(nodes))) or not index.make_room(1):
                    break
                page = index.pool.page_from(found.rows, found.n_rows)
                node = index.insert(nodes[-1] if nodes else None, positions.root, found.key, found.content, page)
                index.acquire([node])
                nodes.append(node)
                if node.n_filled < PAGE_POSITIONS:
                    break
    finally:
        index.release(nodes)
    return index.match(positions, len(positions)).n_positions
