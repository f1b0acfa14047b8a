"""The files of a cache folder: reading and writing one whole, listing, checking and removing them.

FOLDER/kimi-vl-cache-v1/<12 hex of the model>/<2 hex>/<32 hex of the key>.kv, .tail (pages), .pic (pictures)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .records import FRONT_BYTES, Damaged, Record, head_of, page_of, sizes, unpack

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FOLDER = "kimi-vl-cache-v1"
_KINDS = (".kv", ".tail", ".pic")


@dataclass(frozen=True)
class Entry:
    """A file of the folder. used_s: when it was last used. model: the folder that it lies in."""

    path: Path
    n_bytes: int
    used_s: float

    @property
    def model(self) -> str:
        """The 12 digits of the model that it belongs to."""
        return self.path.parent.parent.name

    def head(self) -> dict[str, object]:
        """What it says it is, unchecked. Raises Damaged, OSError."""
        with self.path.open("rb") as file:
            front = file.read(FRONT_BYTES)
            return head_of(front + file.read(sizes(front)[0]))


def touch(path: Path) -> None:
    """Notes that a file was used, more finely than the system's own clock of files. Raises OSError."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def make_private(path: Path) -> None:
    """Makes a folder inside a cache folder, and those above it, for their owner alone. Raises OSError."""
    if path.is_dir():
        return
    if path.name == FOLDER:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    else:
        make_private(path.parent)
    path.mkdir(exist_ok=True, mode=0o700)


def read_record(path: Path, n_bytes: int | None = None) -> Record:
    """The record in a file. n_bytes: the most that its payload may take. Raises Damaged, OSError."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise Damaged("it is not a file")
        front = file.read(FRONT_BYTES)
        n_head, n_payload = sizes(front)
        if (n_bytes is not None and n_payload > n_bytes) or state.st_size != FRONT_BYTES + n_head + n_payload:
            raise Damaged(f"it has {state.st_size} bytes, which is not what a record of this cache has")
        return unpack(front + file.read())


def entries(folder: Path) -> list[Entry]:
    """All files of a cache folder; [] where there is none."""
    found: list[Entry] = []
    waiting = [(folder / FOLDER, 0)]
    while waiting:
        place, depth = waiting.pop()
        with contextlib.suppress(OSError), os.scandir(place) as inside:
            for one in inside:
                if depth < 2 and one.is_dir(follow_symlinks=False):
                    waiting.append((Path(one.path), depth + 1))
                elif depth == 2 and one.name.endswith(_KINDS):
                    state = one.stat(follow_symlinks=False)
                    found.append(Entry(Path(one.path), state.st_size, state.st_mtime))
    return found


def sweep(folder: Path, n_bytes: int, keep: bytes = b"") -> tuple[int, int]:
    """Removes the files that were not used for longest until no more than n_bytes are left, and of pages those first
    that none follows. keep: the key of a page that another is about to follow. Returns the bytes that are left and how
    many files were removed."""
    found = entries(folder)
    left = sum(entry.n_bytes for entry in found)
    n_children: dict[str, int] = {keep.hex(): 1}
    heads: dict[Path, tuple[str, str]] = {}
    for entry in found:
        with contextlib.suppress(OSError, Damaged):
            head = entry.head()
            heads[entry.path] = (str(head.get("key", "")), str(head.get("parent", "")))
            n_children[heads[entry.path][1]] = n_children.get(heads[entry.path][1], 0) + 1
    by_key = {heads[entry.path][0]: entry for entry in found if entry.path in heads and entry.path.suffix == ".kv"}

    def is_leaf(entry: Entry) -> bool:
        return entry.path not in heads or not n_children.get(heads[entry.path][0])

    leaves = [(entry.used_s, str(entry.path), entry) for entry in found if is_leaf(entry)]
    heapq.heapify(leaves)
    n_removed = 0
    while left > n_bytes and leaves:
        _, _, entry = heapq.heappop(leaves)
        with contextlib.suppress(OSError):
            entry.path.unlink()
        left -= entry.n_bytes
        n_removed += 1
        parent = heads.get(entry.path, ("", ""))[1]
        if parent:
            n_children[parent] -= 1
            above = by_key.get(parent)
            if above is not None and not n_children[parent]:
                heapq.heappush(leaves, (above.used_s, str(above.path), above))
    return left, n_removed


def clear(folder: Path) -> int:
    """Removes everything that a cache has written into a folder. Returns how many bytes that were."""
    n_bytes = sum(entry.n_bytes for entry in entries(folder))
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    return n_bytes


def verify(entry: Entry) -> None:
    """Reads a file as a cache does. Raises Damaged, OSError."""
    record = read_record(entry.path)
    name = entry.path.stem
    if entry.path.suffix == ".pic":
        if record.head.get("kind") != "picture":
            raise Damaged("its head names no picture")
        return
    try:
        parent = bytes.fromhex(str(record.head.get("parent")))
    except ValueError:
        raise Damaged("its head names no page") from None
    page = page_of(record, parent)
    key = tail_key(parent) if entry.path.suffix == ".tail" else page.key
    if key.hex()[:32] != name:
        raise Damaged("it is another page than its name says")


def write_pages(path: Path, pages: Iterator[Record]) -> None:
    """Writes pages one after another into one file, whole or not at all, and makes sure that the disk has it. Raises
    OSError."""
    packed = (record.pack() for record in pages)
    write_whole(path, (len(one).to_bytes(8, "little") + one for one in packed), sync=True)


def read_pages(path: Path) -> Iterator[Record]:
    """The pages that `write_pages` wrote, up to the first that is not whole. Raises OSError."""
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size
        while (record := _next_record(file, left)) is not None:
            left -= 8 + FRONT_BYTES + len(record.payload)
            yield record


def _next_record(file: BinaryIO, left: int) -> Record | None:
    front = file.read(8)
    n = int.from_bytes(front, "little")
    if len(front) < 8 or n > left:
        return None
    try:
        return unpack(file.read(n))
    except Damaged:
        return None


def tail_key(parent: bytes) -> bytes:
    return hashlib.sha256(b"tail" + parent).digest()


def write_whole(path: Path, pieces: Iterable[bytes], *, sync: bool = False) -> None:
    """A file that appears under its name when all of it is there, for its owner alone."""
    for number in range(1 << 16):
        beside = path.with_name(f".tmp-{os.getpid()}-{threading.get_ident()}-{number}")
        try:
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            break
        except FileExistsError:
            continue
    else:
        raise OSError(errno.EEXIST, "no name is free for a new file")
    try:
        with os.fdopen(handle, "wb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # says that its writer lives
            file.writelines(pieces)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def remove_abandoned(folder: Path) -> None:
    """Removes what writers that were killed have left half done."""
    for path in (folder / FOLDER).glob("*/*/.tmp-*"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder among processes, where the system has one."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(os.fdopen(os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600), "rb"))
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
