"""The index of pages: what is found again, what stays, what goes."""

from __future__ import annotations

import fake_core
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_vl_cpp.cache.disk import DiskStore
from kimi_vl_cpp.cache.index import PrefixIndex
from kimi_vl_cpp.cache.keys import PageContent, Positions

ROOT = b"root"


def pool_of(n_pages: int) -> fake_core.PagePool:
    return fake_core.PagePool(None, n_pages * fake_core.PAGE_BYTES)


def leave(index: PrefixIndex, items: list[int], answer: list[int] = ()) -> list:
    """Publishes a whole sequence, as one that has ended does; returns its nodes."""
    positions = Positions(ROOT, items)
    for token in answer:
        positions.append(token)
    nodes = []
    for number in range(-(-len(positions) // 128)):
        n = min(128, len(positions) - 128 * number)
        index.make_room(1)
        page = index.pool.take([b"row"] * n)
        nodes.append(index.publish(nodes[-1] if nodes else None, positions, number, page, n))
    return nodes


def held(index: PrefixIndex, items: list[int], limit: int | None = None) -> int:
    return index.match(Positions(ROOT, items), len(items) if limit is None else limit).n_positions


def test_whole_pages_and_the_rows_of_one_more_that_agree_are_found():
    index = PrefixIndex(pool_of(100))
    leave(index, [1] * 300)
    assert held(index, [1] * 300) == 300
    assert held(index, [1] * 300, limit=299) == 299
    assert held(index, [1] * 128) == 128
    assert held(index, [1] * 200) == 128  # its second page is not whole, so its rows have the other form
    assert held(index, [1] * 290 + [2] * 10) == 290
    assert held(index, [1] * 200 + [2] * 56) == 200  # a whole page in both
    assert held(index, [2] * 300) == 0
    assert Positions(b"other root", [1] * 300).key(0) != Positions(ROOT, [1] * 300).key(0)
    assert index.match(Positions(b"other root", [1] * 300), 300).n_positions == 0


def test_an_answer_is_found_as_an_answer_only():
    index = PrefixIndex(pool_of(100))
    leave(index, [1] * 100, [2] * 200)
    again = Positions(ROOT, [1] * 100)
    for token in [2] * 200:
        again.append(token)
    assert index.match(again, 300).n_positions == 300
    assert held(index, [1] * 100 + [2] * 200) == 0  # whole pages without an answer: the other form


def test_a_page_that_two_sequences_computed_is_kept_once():
    index = PrefixIndex(pool_of(100))
    assert leave(index, [1] * 256) == leave(index, [1] * 256)
    assert len(index) == index.pool.n_pages == 2


def test_a_longer_tail_takes_the_place_of_the_shorter_one_that_it_begins_with():
    index = PrefixIndex(pool_of(100))
    for n in (10, 20, 30):
        leave(index, [1] * 128, [2] * n)
    assert len(index) == index.pool.n_pages == 2
    leave(index, [1] * 128, [2] * 5 + [3] * 5)
    assert len(index) == 3  # another tail stays beside it


def test_leaves_go_first_and_never_what_is_used_or_pinned():
    index = PrefixIndex(pool_of(8))
    old, used, pinned = leave(index, [1] * 256), leave(index, [2] * 256), leave(index, [3] * 256)
    index.acquire(used[:1])
    index.pin(pinned)
    assert index.n_evictable == 3
    assert index.make_room(5)
    assert held(index, [1] * 256) == 0 and held(index, [2] * 256) == 128 and held(index, [3] * 256) == 256
    assert old[0].page is None
    assert not index.make_room(6)
    index.release(used[:1])
    index.pin(pinned, -1)
    assert index.make_room(8) and len(index) == index.pool.n_pages == 0


def test_of_two_pages_asked_for_equally_long_ago_the_deeper_one_stays():
    index = PrefixIndex(pool_of(100))
    deep = leave(index, [1] * 128 * 20)
    shallow = leave(index, [2] * 128)
    index.make_room(index.n_free + 1)
    assert shallow[0].page is None and deep[-1].page is not None


def test_what_was_asked_for_again_stays_longer():
    index = PrefixIndex(pool_of(4))
    for item in range(4):
        leave(index, [item] * 128)
    for item in range(4, 40):
        assert held(index, [0] * 128) == 128
        leave(index, [item] * 128)
    assert held(index, [0] * 128) == 128


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["leave", "match", "hold", "let go", "pin", "unpin", "room", "clear"]),
            st.integers(0, 5),
            st.integers(0, 400),
        ),
        max_size=40,
    )
)
def test_counts_and_budget_are_exact_after_every_event(events):
    index = PrefixIndex(pool_of(9))
    holders: list[list] = []
    for event, which, n in events:
        items = [which // 2] * (n // 2 + 1) + [which] * (n // 2)
        if event == "leave" and index.make_room(4):
            leave(index, items)
        elif event == "match":
            index.match(Positions(ROOT, items), n)
        elif event == "hold":
            nodes = index.match(Positions(ROOT, items), n).nodes
            index.acquire(nodes)
            holders.append(nodes)
        elif event == "let go" and holders:
            index.release(holders.pop(n % len(holders)))
        elif event == "pin":
            index.pin(index.match(Positions(ROOT, items), n).nodes)
        elif event == "unpin":
            index.pin(index.nodes(), -1)
        elif event == "room":
            before = index.n_evictable
            expected = min(which, index.n_free + before) == which
            assert index.make_room(which) == expected
        elif event == "clear":
            n_evictable = index.n_evictable
            assert index.clear() == n_evictable
        nodes = list(index.nodes())
        assert len(nodes) == len(index) == index.pool.n_pages == len({node.key for node in nodes})
        assert index.pool.bytes_in_use <= index.pool.budget
        for node in nodes:
            assert node.n_users == sum(held.count(node) for held in holders)
            assert node.parent.children[node.key] is node


def test_a_page_is_never_published_under_a_parent_that_is_gone():
    index = PrefixIndex(pool_of(3))
    nodes = leave(index, [1] * 128)
    index.acquire(nodes)
    assert not index.make_room(3)
    positions = Positions(ROOT, [1] * 256)
    index.publish(nodes[0], positions, 1, index.pool.take([]), 128)
    assert held(index, [1] * 256) == 256


def test_a_page_is_hashed_when_it_is_looked_for_and_not_again(tmp_path, monkeypatch):
    """Not to leave it in the index, nor to write it; one that is read is hashed once more, to check it."""
    hashed: list[PageContent] = []
    key = PageContent.key
    monkeypatch.setattr(PageContent, "key", lambda self, parent: (hashed.append(self), key(self, parent))[1])
    index = PrefixIndex(pool_of(100), DiskStore(tmp_path, ROOT))
    leave(index, [1] * 700)
    assert len(hashed) == 6  # five whole pages, and the one that the sequence ends in

    hashed.clear()
    again = PrefixIndex(pool_of(100), DiskStore(tmp_path, ROOT))
    positions = Positions(ROOT, [1] * 700)
    again.disk.restore(positions, 640, 10, lambda n_held: True)
    assert again.match(positions, 640).n_positions == 640 and len(hashed) == 5 + 5
