"""Opening a file of the user's that a library is to read: a regular one, of a bounded size, without ever waiting."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from typing import BinaryIO

from ..errors import BadImage, shown


def open_regular(
    path: str | os.PathLike[str], max_bytes: int, refuse: Callable[[str, str], BadImage], expected: str
) -> io.BufferedReader:
    """A regular file of at most max_bytes. refuse(message, problem): the error for "not_found", "not_readable",
    "not_a_file" and "too_large". expected: what kind of file is meant."""
    name = os.path.expanduser(os.fspath(path))
    flags = os.O_RDONLY
    for flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):  # not all exist everywhere
        flags |= getattr(os, flag, 0)
    try:
        handle = os.open(name, flags)
    except FileNotFoundError:
        raise refuse(f"{shown(name)}: no such file: check the path", "not_found") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise refuse(f"{shown(name)}: cannot be read: {reason}", "not_readable") from None
    status = os.fstat(handle)
    problem = None
    if not stat.S_ISREG(status.st_mode):
        problem = (f"not a regular file: give {expected}", "not_a_file")
    elif status.st_size > max_bytes:
        problem = (f"{status.st_size} bytes, expected at most {max_bytes}: split the file", "too_large")
    if problem:
        os.close(handle)
        raise refuse(f"{shown(name)}: {problem[0]}", problem[1])
    return os.fdopen(handle, "rb")


def opened(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    name: str,
    nameless: str,
    open_path: Callable[[str | os.PathLike[str]], BinaryIO],
) -> tuple[str, BinaryIO]:
    """What messages call a source, and the file to read it from. name: "" for the file's own, or `nameless`."""
    if isinstance(source, bytes):
        return name or nameless, io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        return name or os.path.basename(os.fspath(source)), open_path(source)
    return name or nameless, source
