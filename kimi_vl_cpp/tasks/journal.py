"""The journal of a long reading: a line of JSON for every page that is done, so that a run that was killed goes on.

Owns the file's format, its durability, and the check that a journal belongs to the run. Knows no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checks import Closeable
from ..errors import BadRequest, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 1


class Journal(Closeable):
    """An open journal. done: page -> its record, of this run and of those before. Use it as a context manager."""

    _instead = "open it by its path"

    def __init__(self, path: Path, head: Mapping[str, Any], *, restart: bool = False) -> None:
        """Opens or begins the journal of a run. head: what the run is about; another run's journal is refused.

        restart: throws away what is there. Raises BadRequest (code "document.journal"), OSError.
        """
        self.path = path
        self.done: dict[int, dict[str, Any]] = {}
        head = {"journal": FORMAT, **head}
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        self._file = os.fdopen(handle, "r+b")
        try:
            self._lock()
            if restart:
                self._file.truncate(0)
            self._read(head)
        except BaseException:
            self._file.close()
            raise

    def add(self, page: int, record: Mapping[str, Any]) -> None:
        """Keeps the record of a page; it is on the disk when this returns."""
        self._write({"page": page, **record})
        self.done[page] = dict(record)

    def close(self) -> None:
        """Closes the file, and removes one that holds nothing. Calling it again does nothing."""
        if not self.done and not self._file.closed:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadRequest(
                f"{self.path}: another program is working with this journal: wait for its end, or write to another "
                "file",
                "document.journal_busy",
            ) from None

    def _read(self, head: Mapping[str, Any]) -> None:
        data = self._file.read()
        whole, _, _ = data.rpartition(b"\n")  # a line that was cut by a crash is computed again
        lines = whole.split(b"\n") if whole else []
        if not lines:
            self._file.seek(0)
            self._file.truncate()
            self._write(head)
            return
        self._check(lines[0], head)
        for line in lines[1:]:
            record = _parsed(line)
            page = record.pop("page", None)
            if not isinstance(page, int):
                raise self._foreign(f"a line of it is {shown(line[:60])}")
            self.done[page] = record
        self._file.seek(len(whole) + 1)
        self._file.truncate()

    def _check(self, line: bytes, head: Mapping[str, Any]) -> None:
        found = _parsed(line)
        if "journal" not in found:
            raise self._foreign("it does not begin like a journal")
        for name, value in head.items():
            if found.get(name) != value:
                raise self._foreign(f"it has {name} {shown(found.get(name))}, this run has {shown(value)}")

    def _foreign(self, reason: str) -> BadRequest:
        return BadRequest(
            f"{self.path}: the journal of another run: {reason}. Give the same options to go on with it, --restart to "
            "throw it away, or another output file",
            "document.journal",
        )

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
