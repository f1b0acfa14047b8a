"""Pages and encoded pictures in a folder: what was computed once outlives the process that computed it.

One immutable file a page, named by its key, written beside its place and renamed into it, so that it is there whole or
not at all; no index file: the folder is the index. What cannot be read or written is computed again, with a notice; no
error of a disk ever reaches a request. Several processes may use one folder. Knows nothing about memory or sequences.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .._core import PAGE_POSITIONS
from ..errors import BadRequest
from .folder import (
    FOLDER,
    clear,
    entries,
    locked,
    make_private,
    read_record,
    remove_abandoned,
    sweep,
    tail_key,
    touch,
    write_whole,
)
from .keys import PageContent
from .records import Damaged, Record, StoredPage, page_of, page_record, picture_of, picture_record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .._core import Page

DEFAULT_QUOTA = 10 << 30
_PAUSE_S = 60.0  # without writing, after a write has failed
_LEAST_FREE = 0.05  # of the volume, which stays free
_SCAN_S = 1.0  # between two looks at what other processes have written


@dataclass(frozen=True)
class DiskNotice:
    """Something that went wrong with the folder and cost time only. code: "cache.damaged", "cache.read", "cache.write",
    "cache.full"."""

    code: str
    text: str


@dataclass
class DiskCounts:
    """What happened since the folder was opened."""

    read: int = 0
    written: int = 0
    damaged: int = 0
    removed: int = 0
    failed: int = 0


class DiskStore:
    """The files of one model in a cache folder. root: what the keys of its pages begin with. quota: bytes of all files
    in the folder, those of other models included. on_notice: called with each notice, in the thread that met it.
    Thread-safe."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        root: bytes,
        quota: int = DEFAULT_QUOTA,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes the folder if it is not there. Raises BadRequest "request.cache_dir" for what is not a folder."""
        self.folder = Path(folder)
        self.quota = quota
        self.counts = DiskCounts()
        self.notices: deque[DiskNotice] = deque(maxlen=20)
        self.on_notice: Callable[[DiskNotice], None] = lambda notice: None
        self._root = root
        self._own = self.folder / FOLDER / root.hex()[:12]
        self._clock = clock
        self._lock = threading.RLock()
        self._write_again_s = 0.0
        self._scanned_s = clock()
        if self.folder.exists() and not self.folder.is_dir():
            raise BadRequest(f"cache_dir: {self.folder} is not a folder", "request.cache_dir")
        with self._forgiving("cache.write", f"{self.folder} cannot be used as a cache"):
            make_private(self._own)
            remove_abandoned(self.folder)
        self.n_bytes = sum(entry.n_bytes for entry in entries(self.folder))

    # Pages

    def page(self, key: bytes, parent: bytes, n_bytes: int) -> StoredPage | None:
        """The whole page of this key, or None. n_bytes: the most that its rows may take."""
        path = self._path(key, ".kv")
        found = self._read_page(path, parent, n_bytes)
        if found is not None and found.key != key:
            self._damaged(path, "it is another page than its name says")
            return None
        return found

    def tail(self, parent: bytes, n_bytes: int) -> StoredPage | None:
        """The page, not yet whole, that a sequence ended with after `parent`, or None."""
        return self._read_page(self._path(tail_key(parent), ".tail"), parent, n_bytes)

    def has_page(self, key: bytes) -> bool:
        """Whether a file of this key is there."""
        return self._path(key, ".kv").exists()

    def has_tail(self, parent: bytes) -> bool:
        """Whether there is a tail of this page."""
        return self._path(tail_key(parent), ".tail").exists()

    def put_page(self, key: bytes, parent: bytes, content: PageContent, page: Page) -> bool:
        """Keeps a page. key: that of its content after `parent`. Whether it is there now."""
        whole = len(content) == PAGE_POSITIONS
        path = self._path(key, ".kv") if whole else self._path(tail_key(parent), ".tail")
        if whole and not self.counts.damaged and self._touched(path):
            return True  # else what lies there may be damaged too, and was not read: it is written anew
        if not self._may_write():
            return False
        return self._write(path, page_record(key, parent, content, page.read(), page.n_filled).pack(), parent)

    def touch(self, key: bytes) -> None:
        """Notes that a page was used."""
        self._touched(self._path(key, ".kv"))

    # Pictures

    def has_picture(self, digest: str) -> bool:
        """Whether a file of this picture is there."""
        return self._path(_picture_key(self._root, digest), ".pic").exists()

    def picture(self, digest: str) -> NDArray[np.float32] | NDArray[np.float16] | None:
        """An encoded picture [n_tokens, hidden_size], read-only, or None."""
        path = self._path(_picture_key(self._root, digest), ".pic")
        record = self._read(path, None)
        if record is None:
            return None
        try:
            return picture_of(record, digest)
        except Damaged as error:
            self._damaged(path, str(error))
            return None

    def put_picture(self, digest: str, embedding: NDArray[np.float32] | NDArray[np.float16]) -> None:
        """Keeps an encoded picture."""
        path = self._path(_picture_key(self._root, digest), ".pic")
        if not path.exists() and self._may_write():
            self._write(path, picture_record(digest, embedding).pack())

    # The whole folder

    def clear(self) -> int:
        """Removes every file of every model. Returns how many bytes that were."""
        with self._lock:
            n_bytes = clear(self.folder)
            self.n_bytes = sum(entry.n_bytes for entry in entries(self.folder))
            return n_bytes

    # Inside

    def _path(self, key: bytes, kind: str) -> Path:
        name = key.hex()[:32]
        return self._own / name[:2] / (name + kind)

    def _touched(self, path: Path) -> bool:
        """Notes the use of a file. False where there is none."""
        try:
            touch(path)
        except OSError:
            return False
        return True

    def _read_page(self, path: Path, parent: bytes, n_bytes: int) -> StoredPage | None:
        record = self._read(path, n_bytes)
        if record is None:
            return None
        try:
            return page_of(record, parent)
        except Damaged as error:
            self._damaged(path, str(error))
            return None

    def _read(self, path: Path, n_bytes: int | None) -> Record | None:
        """The record in a file, whose use is noted. n_bytes: the most that its payload may take."""
        with self._lock, self._forgiving("cache.read", f"{path} cannot be read"):
            try:
                record = read_record(path, n_bytes)
                touch(path)
                self.counts.read += 1
                return record
            except FileNotFoundError:
                return None
            except Damaged as error:
                self._damaged(path, str(error))
        return None

    def _damaged(self, path: Path, why: str) -> None:
        self.counts.damaged += 1
        self._notice("cache.damaged", f"{path}: {why}; it is removed, and computed again")
        with contextlib.suppress(OSError):
            path.unlink()

    def _may_write(self) -> bool:
        return self._clock() >= self._write_again_s

    def _write(self, path: Path, data: bytes, parent: bytes = b"") -> bool:
        """Puts a file in its place, removing old ones where there is no room, its parent excepted. False when it could
        not."""
        with self._lock:
            for is_last in (False, True):
                try:
                    make_private(path.parent)
                    if not self._make_room(len(data), parent):
                        raise OSError(errno.ENOSPC, "there is no room left for the cache")
                    write_whole(path, (data,))
                except OSError as error:
                    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                    if not is_last and full and self._sweep(max(self.n_bytes - 2 * len(data), 0), parent):
                        continue
                    if not is_last and error.errno == errno.ENOENT:  # somebody has removed the folder
                        continue
                    self._give_up_writing("cache.full" if full else "cache.write", path, error)
                    return False
                self.counts.written += 1
                self.n_bytes += len(data)
                return True
            return False

    def _give_up_writing(self, code: str, path: Path, error: OSError) -> None:
        self.counts.failed += 1
        self._write_again_s = self._clock() + _PAUSE_S
        self._notice(code, f"{path.parent}: {error.strerror}; nothing is written for {_PAUSE_S:.0f} s")

    def _make_room(self, n_bytes: int, parent: bytes) -> bool:
        """Whether n_bytes more are within the quota, and the volume keeps some room for others."""
        now = self._clock()
        if now - self._scanned_s >= _SCAN_S or self.n_bytes + n_bytes > 0.9 * self.quota:
            self._scanned_s = now
            self.n_bytes = sum(entry.n_bytes for entry in entries(self.folder))
        if n_bytes > self.quota:
            return False
        if self.n_bytes + n_bytes > self.quota:
            self._sweep(max(int(0.9 * self.quota) - n_bytes, 0), parent)
        volume = shutil.disk_usage(self.folder)
        return self.n_bytes + n_bytes <= self.quota and volume.free - n_bytes >= _LEAST_FREE * volume.total

    def _sweep(self, n_bytes: int, parent: bytes) -> int:
        """Removes files until no more than n_bytes are left. Returns how many were."""
        with locked(self.folder / FOLDER):
            left, n_removed = sweep(self.folder, n_bytes, parent)
        self.n_bytes = left
        self.counts.removed += n_removed
        return n_removed

    @contextlib.contextmanager
    def _forgiving(self, code: str, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.counts.failed += 1
            self._notice(code, f"{what}: {error.strerror}")

    def _notice(self, code: str, text: str) -> None:
        if all(notice.text != text for notice in self.notices):
            self.notices.append(DiskNotice(code, text))
            self.on_notice(self.notices[-1])


def why_not_written(folder: Path) -> str:
    """Why a folder cannot be written as a cache; "" when it can. One that is not there is made when it is needed."""
    if not folder.exists():
        return "it is not there: it is made when a model is opened with it"
    if not folder.is_dir():
        return "it is not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "it cannot be written: what it holds is read, and nothing is added"
    volume = shutil.disk_usage(folder)
    if volume.free < _LEAST_FREE * volume.total:
        return f"less than {_LEAST_FREE:.0%} of its volume is free: nothing is added"
    return ""


def _picture_key(root: bytes, digest: str) -> bytes:
    return hashlib.sha256(b"picture" + root + json.dumps(digest).encode()).digest()
