"""Opening files of weights and of what belongs to them: only regular ones, read by position, never mapped.

A mapped file that somebody truncates ends the process; one that is read by position gives an error here. It also keeps
the memory of the process apart from the 32 GB of its input.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import BadModelFile, shown

_LFS = b"version https://git-lfs.github.com/spec/"
DOWNLOAD_AGAIN = "download the file again"


def bad_file(path: str | os.PathLike[str], problem: str, code: str) -> NoReturn:
    """Raises BadModelFile `PATH: PROBLEM` with a code under "checkpoint."."""
    raise BadModelFile(f"{os.fspath(path)}: {problem}", f"checkpoint.{code}")


class InputFile:
    """A regular file open for reading. `identity` is (device, inode); size and time show whether it was changed.

    what: it should be; advice: what to do where there is none.

    Raises BadModelFile with codes "checkpoint.missing", "checkpoint.unreadable" and "checkpoint.not_a_file".
    """

    def __init__(self, path: Path, what: str = "file", advice: str = f"{DOWNLOAD_AGAIN} into this folder") -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block
        except FileNotFoundError:
            bad_file(path, f"there is no such {what}{': ' if advice else ''}{advice}", "missing")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            bad_file(path, f"the {what} cannot be opened: {reason}", "unreadable")
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            bad_file(path, f"is not a regular file, expected a {what}", "not_a_file")
        self.n_bytes = status.st_size
        self.identity = (status.st_dev, status.st_ino)
        self.modified_ns = status.st_mtime_ns
        if self.n_bytes < 1024 and self.read(0, min(self.n_bytes, len(_LFS))).tobytes() == _LFS:
            self.close()
            bad_file(
                path, f"is a Git LFS pointer, not the {what} itself: run 'git lfs pull' in its folder", "lfs_pointer"
            )

    def read(self, offset: int, n_bytes: int) -> NDArray[np.uint8]:
        """uint8 [n_bytes]. Raises BadModelFile "checkpoint.truncated" when the file has become shorter."""
        out = np.empty(n_bytes, np.uint8)
        view, done = out.data, 0
        while done < n_bytes:
            try:
                n = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                bad_file(self.path, f"reading at byte {offset + done} failed: {error.strerror}", "unreadable")
            if n == 0:
                bad_file(
                    self.path,
                    f"the file ends at byte {offset + done}, expected {n_bytes - done} bytes more: it was truncated "
                    "while being read; restore it and start again",
                    "truncated",
                )
            done += n
        return out

    def check_unchanged(self) -> None:
        """Raises BadModelFile "checkpoint.changed" when somebody has written to the file since it was opened."""
        if self._fd < 0:
            return
        status = os.fstat(self._fd)
        if (status.st_size, status.st_mtime_ns) != (self.n_bytes, self.modified_ns):
            bad_file(self.path, "was changed while it was being read: start again when it is complete", "changed")

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_small(path: Path, what: str, limit: int, advice: str | None = None) -> tuple[bytes, InputFile]:
    """The whole of a file of at most `limit` bytes, and the (closed) file for its identity. advice: as InputFile's."""
    file = InputFile(path, what) if advice is None else InputFile(path, what, advice)
    try:
        if file.n_bytes > limit:
            bad_file(path, f"has {file.n_bytes} bytes, expected at most {limit} for a {what}", "too_large")
        return file.read(0, file.n_bytes).tobytes(), file
    finally:
        file.close()


def parse_json(raw: bytes, complain: Callable[[str], NoReturn]) -> dict[str, Any]:
    """A JSON object. `complain` raises for everything else: duplicate keys, NaN, endless nesting, wrong bytes."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    complain(f"the key {shown(key)} occurs twice")
                seen.add(key)
        return found

    def no_constant(text: str) -> NoReturn:
        complain(f"holds {text}, which JSON has no number for")

    try:
        value = json.loads(raw.decode(), object_pairs_hook=unique, parse_constant=no_constant)
    except RecursionError:
        complain("is nested too deep")
    except UnicodeDecodeError as error:
        complain(f"is not UTF-8 at byte {error.start}")
    except ValueError as error:  # JSONDecodeError, and integers of too many digits
        complain(f"is not JSON: {error}")
    if not isinstance(value, dict):
        complain(f"is a JSON {type(value).__name__}, expected an object")
    return value


def read_json(path: Path, what: str, limit: int = 1 << 20) -> tuple[dict[str, Any], InputFile]:
    """A JSON object from a file. Raises BadModelFile, for its contents with code "checkpoint.json"."""
    raw, file = read_small(path, what, limit)

    def complain(problem: str) -> NoReturn:
        bad_file(path, f"{what} {problem}: {DOWNLOAD_AGAIN}", "json")

    return parse_json(raw, complain), file
