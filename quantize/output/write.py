"""An output file that is either whole at its path or not there.

The weights go to PATH.kimi-vl-partial, in the same folder, which begins with zeros instead of a header; a journal
beside it gets a line for every tensor that is complete, with its checksum. At the end: header, fsync, rename, fsync of
the folder, and the journal goes away. A run that was stopped at any moment leaves nothing at PATH, and `resume` takes
up the tensors that the journal lists and whose bytes still have the checksums written there.

Refuses to know what the weights are.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kimi_vl_cpp.errors import BadRequest, KimiVLError
from kimi_vl_cpp.files.input_file import InputFile

from .layout import Layout

SUFFIX = ".kimi-vl-partial"
JOURNAL_VERSION = 1
_CHECK_BYTES = 16 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def partial_path(path: Path) -> Path:
    """Where the weights are collected."""
    return path.with_name(path.name + SUFFIX)


def journal_path(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX + ".journal")


def check_output(path: str | os.PathLike[str], inputs: Iterable[InputFile], resume: bool, force: bool) -> Path:
    """The real path to write, symbolic links followed. resume: what an interrupted run left there does not matter.

    Raises BadRequest: "quantize.output_is_input" when it, or a file that is needed beside it, is one of `inputs` by any
    name; "quantize.output_exists" without `force`; "quantize.output" for what cannot be a file to write.
    """
    try:
        real = Path(os.path.realpath(path))
    except (ValueError, OSError) as error:
        raise BadRequest(f"{os.fspath(path)!r}: not a path: {error}", "quantize.output") from None
    if not real.parent.is_dir():
        raise BadRequest(f"{real}: the folder {real.parent} does not exist: make it first", "quantize.output")
    if real.is_dir():
        raise BadRequest(f"{real}: is a folder, expected the path of the file to write", "quantize.output")
    used = {file.identity: file.path for file in inputs}
    for candidate in (real, partial_path(real), journal_path(real)):
        try:
            status = candidate.stat()
        except OSError:
            continue
        source = used.get((status.st_dev, status.st_ino))
        if source is not None:
            raise BadRequest(
                f"{candidate}: is the same file as the input {source}: give the output another path",
                "quantize.output_is_input",
            )
        if not stat.S_ISREG(status.st_mode):
            raise BadRequest(f"{candidate}: not a regular file: give the output another path", "quantize.output")
    if not force and not (resume and journal_path(real).exists()):
        _refuse_existing(real)
    if not os.access(real.parent, os.W_OK | os.X_OK):
        raise BadRequest(f"{real}: the folder {real.parent} may not be written to", "quantize.output")
    return real


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        finished = journal_path(path).exists()
        resume = ", or resume=True (--resume) if an interrupted run left it" if finished else ""
        raise BadRequest(
            f"{path}: exists already: give another path, or force=True (--force) to replace it{resume}",
            "quantize.output_exists",
        )


def check_space(layouts: Sequence[Layout]) -> None:
    """Raises KimiVLError "quantize.disk_space" when the file system has not enough room for what is to be written."""
    needed = sum(layout.n_bytes for layout in layouts)
    have = 0
    for layout in layouts:
        with contextlib.suppress(OSError):
            have += partial_path(layout.path).stat().st_blocks * 512
    folder = layouts[0].path.parent
    status = os.statvfs(folder)
    available = status.f_bavail * status.f_frsize
    if needed - have > available:
        raise KimiVLError(
            f"{folder}: {needed - have} bytes are needed for {layouts[0].path.name}, {available} are available: free "
            f"{needed - have - available} bytes, or write to another disk",
            "quantize.disk_space",
        )


class OutputFile:
    """The file of a layout while it is written. What is not renamed stays for a later resume.

    Raises BadRequest "quantize.busy", "quantize.resume"; KimiVLError "quantize.disk_full", "quantize.io".
    """

    def __init__(self, layout: Layout, fingerprint: str, resume: bool, force: bool) -> None:
        self.layout = layout
        self.partial, self.journal = partial_path(layout.path), journal_path(layout.path)
        self.checksums: list[int] = []
        self._fd = self._journal_fd = -1
        self._force = force
        digest = plan_digest(layout, fingerprint)
        try:
            self._renamed = resume and self._was_renamed(digest)
            if self._renamed:
                return
            self._fd = self._open(self.partial, os.O_RDWR)
            self._lock()
            self._check_free()
            self._begin(digest, resume)
        except BaseException:
            self.close()
            raise

    @property
    def n_done(self) -> int:
        """Tensors that are already written."""
        return len(self.checksums)

    def close(self) -> None:
        """Idempotent."""
        for fd in (self._fd, self._journal_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._journal_fd = -1

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Puts bytes at their place in the file."""
        view = memoryview(data)
        with self._disk_errors(self.partial):
            while view:
                n = os.pwrite(self._fd, view, offset)
                view, offset = view[n:], offset + n

    def tensor_done(self, checksum: int) -> None:
        """The next tensor is complete."""
        line = json.dumps({"tensor": self.layout.tensors[self.n_done].target.name, "crc32": checksum}) + "\n"
        self._append(line)
        self.checksums.append(checksum)

    def prepare(self) -> None:
        """Header and length, all of it on the disk: what is left is the rename."""
        if self._renamed:
            return
        self.write(0, self.layout.header(self.checksums))
        with self._disk_errors(self.partial):
            os.ftruncate(self._fd, self.layout.n_bytes)
            os.fsync(self._fd)

    def rename(self) -> None:
        """Puts the prepared file at its path, for good. The journal stays: with it a later run knows the file."""
        if self._renamed:
            return
        self._check_free()
        with self._disk_errors(self.layout.path):
            os.replace(self.partial, self.layout.path)
            _sync_folder(self.layout.path.parent)
        self._renamed = True

    def forget(self) -> None:
        """The end, when all files of a run are at their paths."""
        with contextlib.suppress(OSError):
            os.unlink(self.journal)

    def _check_free(self) -> None:
        """Another process may have put a file there while this one was busy."""
        if not self._force:
            _refuse_existing(self.layout.path)

    def _open(self, path: Path, flags: int, *, create: bool = True) -> int:
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if create else 0)
        with self._disk_errors(path):
            return os.open(path, flags, 0o666)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadRequest(
                f"{self.partial}: another process is writing it: wait for its end, or give another output path",
                "quantize.busy",
            ) from None
        except OSError:  # a file system without locks
            pass
        # The process that held the lock may have renamed the file after we opened it.
        with self._disk_errors(self.partial):
            here, there = os.fstat(self._fd), os.stat(self.partial, follow_symlinks=False)
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise BadRequest(f"{self.partial}: another process has just finished it: look again", "quantize.busy")

    def _was_renamed(self, digest: str) -> bool:
        """Whether an interrupted run of the same inputs and options came as far as the rename of this file (and not of
        its other one): its journal is there, and the file is what the journal says, byte for byte."""
        if os.path.lexists(self.partial) or not self.layout.path.is_file():
            return False
        lines = [line for line, _ in self._read_journal()]
        if len(lines) != len(self.layout.tensors) + 1 or lines[0] != {"version": JOURNAL_VERSION, "plan": digest}:
            return False
        self._fd = self._open(self.layout.path, os.O_RDONLY, create=False)
        self.checksums = list(self._verified(lines[1:]))
        header = self.layout.header(self.checksums) if len(self.checksums) == len(self.layout.tensors) else b""
        with self._disk_errors(self.layout.path):
            n_bytes, found = os.fstat(self._fd).st_size, os.pread(self._fd, len(header), 0)
        if header and header == found and n_bytes == self.layout.n_bytes:
            return True
        self.close()
        self.checksums = []
        return False

    def _begin(self, digest: str, resume: bool) -> None:
        lines = self._read_journal() if resume else []
        kept = 0  # bytes of the journal
        if lines:
            if lines[0][0] != {"version": JOURNAL_VERSION, "plan": digest}:
                raise BadRequest(
                    f"{self.journal}: was left by a run with other inputs or options: run it with the same ones, or "
                    "without resume (--resume) to start anew",
                    "quantize.resume",
                )
            self.checksums = list(self._verified([line for line, _ in lines[1:]]))
            kept = lines[self.n_done][1]
        self._journal_fd = self._open(self.journal, os.O_WRONLY | os.O_APPEND)
        with self._disk_errors(self.journal):
            os.ftruncate(self._journal_fd, kept)
        if self.n_done == 0:
            with self._disk_errors(self.partial):
                os.ftruncate(self._fd, 0)
        if kept == 0:
            self._append(json.dumps({"version": JOURNAL_VERSION, "plan": digest}) + "\n")
        # A header is only ever there in a file that is whole.
        self.write(0, bytes(len(self.layout.blank_header)))

    def _read_journal(self) -> list[tuple[Any, int]]:
        """Its lines, each with where it ends in bytes; a last one that was cut off does not count."""
        try:
            raw = self.journal.read_bytes() if self.journal.is_file() else b""
        except OSError:
            return []
        lines, end = [], 0
        for line in raw.split(b"\n")[:-1]:
            end += len(line) + 1
            try:
                lines.append((json.loads(line), end))
            except (ValueError, RecursionError):
                break
        return lines

    def _verified(self, lines: list[Any]) -> Iterator[int]:
        """The checksums of the tensors that the journal lists and the file really holds, up to the first that fails."""
        for tensor, line in zip(self.layout.tensors, lines, strict=False):
            if not isinstance(line, dict) or line.get("tensor") != tensor.target.name:
                return
            checksum = line.get("crc32")
            if not isinstance(checksum, int) or checksum != self._checksum(tensor.offset, tensor.n_bytes):
                return
            yield checksum

    def _checksum(self, offset: int, n_bytes: int) -> int | None:
        checksum, end = 0, offset + n_bytes
        while offset < end:
            with self._disk_errors(self.partial):
                data = os.pread(self._fd, min(_CHECK_BYTES, end - offset), offset)
            if not data:
                return None
            checksum = zlib.crc32(data, checksum)
            offset += len(data)
        return checksum

    def _append(self, line: str) -> None:
        data = line.encode()
        with self._disk_errors(self.journal):
            while data:
                data = data[os.write(self._journal_fd, data) :]

    @contextlib.contextmanager
    def _disk_errors(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._fail(path, error)

    def _fail(self, path: Path, error: OSError) -> NoReturn:
        if error.errno in _FULL:
            raise KimiVLError(
                f"{path}: {error.strerror}: nothing was written to {self.layout.path}. Free space and run it again "
                f"with resume (--resume), or delete {self.partial}",
                "quantize.disk_full",
            ) from None
        raise KimiVLError(
            f"{path}: {error.strerror}: nothing was written to {self.layout.path}", "quantize.io"
        ) from None


def plan_digest(layout: Layout, fingerprint: str) -> str:
    """Tells runs apart that would write other bytes. fingerprint: of inputs and options."""
    return hashlib.sha256(layout.blank_header + fingerprint.encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
