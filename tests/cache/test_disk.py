"""The cache folder: what is read is what was written, whole, or nothing; no fault of a disk is more than a notice."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import fake_core
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_vl_cpp.cache import disk, folder
from kimi_vl_cpp.cache.disk import DiskStore
from kimi_vl_cpp.cache.folder import entries, read_pages, sweep, verify, write_pages
from kimi_vl_cpp.cache.images import ImageCache
from kimi_vl_cpp.cache.keys import PAGE_POSITIONS, Picture, Positions, root_key
from kimi_vl_cpp.cache.records import Damaged, Record, page_of, page_record, unpack
from kimi_vl_cpp.errors import BadRequest

ROOT = root_key(model=b"m", arithmetic="a", kv_type="f16")
N_BYTES = 100_000


class Rows:
    """A page of memory with these rows."""

    def __init__(self, rows: bytes, n_filled: int = PAGE_POSITIONS) -> None:
        self.rows, self.n_filled = rows, n_filled

    def read(self) -> bytes:
        return self.rows


def sequence(n_pages: int, seed: int = 0) -> Positions:
    return Positions(ROOT, [(seed + i * i) % 1000 for i in range(n_pages * PAGE_POSITIONS)])


def rows_of(number: int, seed: int = 0, n: int = 2000) -> bytes:
    return np.random.default_rng([number, seed]).bytes(n)


def put(store: DiskStore, positions: Positions, number: int, rows: bytes | None = None) -> bool:
    given = rows_of(number) if rows is None else rows
    return store.put_page(positions.key(number), positions.key(number - 1), positions.content(number), Rows(given))


def get(store: DiskStore, positions: Positions, number: int):
    return store.page(positions.key(number), positions.key(number - 1), N_BYTES)


# Records


def record() -> bytes:
    positions = Positions(ROOT, [*range(100), Picture("digest", 28)])
    return page_record(positions.key(0), ROOT, positions.content(0), rows_of(0, n=60), PAGE_POSITIONS).pack()


def test_every_flipped_byte_and_every_cut_is_noticed():
    data = record()
    assert page_of(unpack(data), ROOT).rows == rows_of(0, n=60)
    for at in range(len(data)):
        with pytest.raises(Damaged):
            unpack(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(Damaged):
            unpack(data[:at])
    with pytest.raises(Damaged):
        unpack(data + b"\0")


@given(st.binary(max_size=200))
def test_other_bytes_are_no_record(data):
    with pytest.raises(Damaged):
        unpack(data)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "picture"},
        {"rows": 3},
        {"rows": 129},
        {"rows": "many"},
        {"tags": "!"},
        {"values": ""},
        {"parent": "ab"},
        {"parent": None},
        {"expanded": False},
        {"pictures": None},
        {"key": "00"},
    ],
)
def test_a_head_that_is_not_that_of_the_page_asked_for_is_damaged(change):
    good = unpack(record())
    with pytest.raises(Damaged):
        page_of(Record({**good.head, **change}, good.payload), ROOT)


# The store


def test_a_page_comes_back_with_its_content_and_rows(tmp_path):
    positions = sequence(3)
    store = DiskStore(tmp_path, ROOT)
    assert all(put(store, positions, number) for number in range(3))
    for opened in (store, DiskStore(tmp_path, ROOT)):
        for number in range(3):
            found = get(opened, positions, number)
            assert (found.content, found.rows) == (positions.content(number), rows_of(number))
        assert get(opened, sequence(3, seed=1), 0) is None
        assert not opened.notices
    assert store.n_bytes == DiskStore(tmp_path, ROOT).n_bytes == sum(entry.n_bytes for entry in entries(tmp_path))


def test_files_are_for_their_owner_alone(tmp_path):
    store = DiskStore(tmp_path / "new", ROOT)
    put(store, sequence(1), 0)
    (entry,) = entries(tmp_path / "new")
    assert stat.S_IMODE(entry.path.stat().st_mode) == 0o600
    for parent in (entry.path.parent, entry.path.parent.parent, tmp_path / "new" / folder.FOLDER):
        assert stat.S_IMODE(parent.stat().st_mode) & 0o077 == 0


def test_the_tail_of_a_sequence_is_found_by_the_page_before_it(tmp_path):
    store, positions = DiskStore(tmp_path, ROOT), sequence(2)
    content, parent = positions.content(1, 50), positions.key(0)
    store.put_page(content.key(parent), parent, content, Rows(b"r" * 70, 70))
    found = store.tail(positions.key(0), N_BYTES)
    assert (found.content, found.rows, found.n_rows) == (positions.content(1, 50), b"r" * 70, 70)
    assert store.tail(positions.key(1), N_BYTES) is None


def test_a_picture_comes_back_with_its_numbers(tmp_path):
    rows = np.random.default_rng(0).normal(size=(28, 8)).astype(np.float32)
    DiskStore(tmp_path, ROOT).put_picture("d", rows)
    store = DiskStore(tmp_path, ROOT)
    found = store.picture("d")
    assert found.dtype == np.float32 and np.array_equal(found, rows)
    assert store.picture("other") is None
    assert DiskStore(tmp_path, root_key(model=b"n", arithmetic="a", kv_type="f16")).picture("d") is None


@pytest.mark.parametrize(("largest", "width"), [(1, 2), (65504, 2), (65536, 4), (1e-9, 4)])
def test_a_picture_of_halves_takes_half_the_memory(tmp_path, largest, width):
    halves = np.random.default_rng(0).normal(size=(28, 8)).astype(np.float16).astype(np.float32)
    halves[3, 3] = largest
    cache = ImageCache(1 << 20, DiskStore(tmp_path, ROOT))
    cache.put("d", halves)
    after = ImageCache(1 << 20, DiskStore(tmp_path, ROOT))
    for found in (cache.get("d"), after.get("d"), after.get("d")):
        assert found.dtype == np.float32 and not found.flags.writeable and np.array_equal(found, halves)
    assert cache.n_bytes == after.n_bytes == width * halves.size
    (file,) = tmp_path.rglob("*.pic")
    assert file.stat().st_size < (width + 1) * halves.size + 200


def test_a_picture_is_known_to_be_there_without_being_read(tmp_path):
    rows = np.ones((28, 8), np.float32)
    ImageCache(1 << 20, DiskStore(tmp_path, ROOT)).put("d", rows)
    cache = ImageCache(1 << 20, DiskStore(tmp_path, ROOT))
    assert cache.holds("d") and not cache.holds("other")
    assert (len(cache), cache.store.counts.read, cache.n_looked_up) == (0, 0, 0)
    cache.put("kept", rows.copy())
    assert cache.holds("kept")


def spoil_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def spoil_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def spoil_swap(path: Path) -> None:
    """A page that is whole, under the name of another."""
    positions = sequence(1, seed=5)
    path.write_bytes(page_record(positions.key(0), ROOT, positions.content(0), rows_of(0), PAGE_POSITIONS).pack())


SPOILS = {
    "flipped": spoil_flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"GGUF" * 1000),
    "of another version": lambda path: path.write_bytes(b"kimi-vl\x02" + path.read_bytes()[8:]),
    "swapped": spoil_swap,
    "a link": spoil_link,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("kind", ["page", "picture"])
def test_a_file_that_is_not_what_it_should_be_is_a_miss_with_a_notice(tmp_path, spoil, kind):
    store, positions = DiskStore(tmp_path, ROOT), sequence(1)
    embedding = np.ones((4, 8), np.float32)
    if kind == "page":
        put(store, positions, 0)
    else:
        store.put_picture("d", embedding)
    (entry,) = entries(tmp_path)
    SPOILS[spoil](entry.path)
    assert (get(store, positions, 0) if kind == "page" else store.picture("d")) is None
    assert [notice.code in ("cache.damaged", "cache.read") for notice in store.notices] == [True]
    assert str(entry.path) in store.notices[0].text
    if spoil not in ("a link", "a folder"):  # what is damaged is replaced
        assert put(store, positions, 0) if kind == "page" else store.put_picture("d", embedding) is None
        assert (get(store, positions, 0) if kind == "page" else store.picture("d")) is not None


CALLS = ["open", "replace", "fsync", "utime", "fstat", "unlink"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOENT])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_costs_a_notice_and_no_wrong_page(tmp_path, monkeypatch, call, code):
    positions = sequence(4)
    store = DiskStore(tmp_path, ROOT)
    put(store, positions, 0)

    def fail(*args, **options):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        for number in range(4):
            put(store, positions, number)
            found = get(store, positions, number)
            assert found is None or found.rows == rows_of(number)
    assert not list(tmp_path.glob("**/.tmp-*")) or call == "unlink"
    later = DiskStore(tmp_path, ROOT)
    assert not list(tmp_path.glob("**/.tmp-*"))
    for number in range(4):
        assert put(later, positions, number) and get(later, positions, number).rows == rows_of(number)


def test_a_full_disk_stops_writing_for_a_while_and_says_so_once(tmp_path, monkeypatch):
    now = [0.0]
    store = DiskStore(tmp_path, ROOT, clock=lambda: now[0])
    usage = disk.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=usage.total // 100))
    positions = sequence(4)
    assert not any(put(store, positions, number) for number in range(4))
    assert [notice.code for notice in store.notices] == ["cache.full"] and store.counts.failed == 1
    monkeypatch.undo()
    assert not put(store, positions, 0)
    now[0] = 61.0
    assert put(store, positions, 0) and get(store, positions, 0) is not None


def test_a_folder_that_is_removed_is_made_again(tmp_path):
    store, positions = DiskStore(tmp_path / "cache", ROOT), sequence(2)
    put(store, positions, 0)
    folder.shutil.rmtree(tmp_path / "cache")
    assert get(store, positions, 0) is None
    assert put(store, positions, 1) and get(store, positions, 1) is not None


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadRequest, match="is not a folder") as caught:
        DiskStore(tmp_path / "file", ROOT)
    assert caught.value.code == "request.cache_dir"


# The quota


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_the_quota_holds_after_every_write_and_no_page_is_left_without_its_parent(tmp_path_factory, events):
    tmp_path = tmp_path_factory.mktemp("cache")
    quota = 40_000
    seconds = itertools.count()
    stores = [DiskStore(tmp_path, ROOT, quota, clock=lambda: next(seconds)) for _ in range(2)]
    for seed, number, other in events:
        positions, store = sequence(6, seed), stores[other]
        for one in range(number + 1):  # as a sequence is written, from its beginning
            put(store, positions, one, rows_of(one, seed, n=3000))
        found = entries(tmp_path)
        assert sum(entry.n_bytes for entry in found) <= quota
        heads = [entry.head() for entry in found]
        keys = {head["key"] for head in heads}
        assert all(head["parent"] in keys or head["parent"] == ROOT.hex() for head in heads)
        assert all(not store.notices for store in stores)


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    store = DiskStore(tmp_path, ROOT)
    for seed in range(4):
        put(store, sequence(1, seed), 0)
    for age, seed in enumerate((2, 0, 3, 1)):
        os.utime(store._path(sequence(1, seed).key(0), ".kv"), (age, age))
    get(store, sequence(1, 2), 0)  # used now
    n_bytes = entries(tmp_path)[0].n_bytes
    assert sweep(tmp_path, 2 * n_bytes)[1] == 2
    assert [get(store, sequence(1, seed), 0) is not None for seed in range(4)] == [False, True, True, False]


# Processes

WRITER = """
import sys
sys.path[:0] = sys.argv[2:]
from test_disk import *
store = DiskStore(sys.argv[1], ROOT)
for turn in range(1 << 30):
    positions = sequence(1, turn % 50)
    (entry := store._path(positions.key(0), ".kv")).unlink(missing_ok=True)
    put(store, positions, 0, rows_of(0, turn % 50, n=500_000))
    if turn == 0:
        print("ready", flush=True)
"""


def test_a_writer_that_is_killed_leaves_whole_pages_and_nothing_else(tmp_path):
    here = Path(__file__).resolve()
    for turn in range(6):
        arguments = [str(tmp_path), str(here.parent), str(here.parent.parent)]
        writer = subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(0.02 + 0.013 * turn)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        store = DiskStore(tmp_path, ROOT)
        assert not list(tmp_path.glob("**/.tmp-*"))
        for seed in range(50):
            found = store.page(sequence(1, seed).key(0), ROOT, 1 << 20)
            assert found is None or found.rows == rows_of(0, seed, n=500_000)
        assert not store.notices
        for entry in entries(tmp_path):
            verify(entry)
    assert entries(tmp_path)


def test_a_writer_that_lives_keeps_its_file(tmp_path):
    DiskStore(tmp_path, ROOT)
    place = tmp_path / folder.FOLDER / "model" / "ab"
    place.mkdir(parents=True)
    with (place / ".tmp-1").open("wb") as living, (place / ".tmp-2").open("wb"):
        folder.fcntl.flock(living, folder.fcntl.LOCK_EX)
        DiskStore(tmp_path, ROOT)
        assert [path.name for path in place.iterdir()] == [".tmp-1"]


# Pages in one file


def test_pages_in_one_file_are_read_up_to_the_first_that_is_not_whole(tmp_path):
    path, positions = tmp_path / "talk.pages", sequence(3)
    records = [
        page_record(positions.key(n), positions.key(n - 1), positions.content(n), rows_of(n), 128) for n in range(3)
    ]
    write_pages(path, iter(records))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    data = path.read_bytes()
    assert [one.payload for one in read_pages(path)] == [rows_of(n) for n in range(3)]
    sizes = [8 + len(one.pack()) for one in records]
    for cut in (0, 5, sizes[0] - 1, sizes[0], sizes[0] + 20, len(data) - 1):
        path.write_bytes(data[:cut])
        assert len(list(read_pages(path))) == sum(cut >= sum(sizes[: n + 1]) for n in range(3))
    path.write_bytes(data[: sizes[0] + 50] + b"?" + data[sizes[0] + 51 :])
    assert len(list(read_pages(path))) == 1


def test_the_fake_rows_are_only_a_handle():
    """The fake core's pages go through the store as any bytes."""
    pool = fake_core.PagePool(fake_core.Engine("fake.gguf"), 10_000)
    page = pool.take([b"one", b"other"])
    assert pool.page_from(page.read(), 2).rows == page.rows
