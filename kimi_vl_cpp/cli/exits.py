"""How a command goes wrong: mistakes of usage, and the words for files that are not there. Exit codes are those of
errors.py."""

from __future__ import annotations

import difflib
import errno
import itertools
import os
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .. import errors

PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
DOCUMENT_SUFFIXES = frozenset({".pdf"})
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".flv"})
ATTACHMENT_SUFFIXES = PICTURE_SUFFIXES | DOCUMENT_SUFFIXES | VIDEO_SUFFIXES
MODEL_SUFFIXES = frozenset({".gguf"})

ONE_PICTURE = "the demonstration model knows one picture in a conversation: of several, it may answer about a wrong one"

HOW_TO_GET_A_MODEL = (
    "Download Kimi-VL and its vision file (10.5 and 0.6 GB; `kimi-vl fit` shows what suits this machine):\n"
    "  kimi-vl pull ggml-org/Kimi-VL-A3B-Thinking-2506-GGUF:Q4_K_M\n"
    '  kimi-vl run -m hf:ggml-org/Kimi-VL-A3B-Thinking-2506-GGUF:Q4_K_M -i photo.jpg "What is this?"\n'
    "or both files from https://huggingface.co/ggml-org/Kimi-VL-A3B-Thinking-2506-GGUF into one folder, for -m FILE"
)


class UsageError(errors.BadRequest):
    """The command line asks for something that cannot be meant. `hint` goes on the lines below the message."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, "usage")
        self.hint = hint


class NoModel(errors.BadModelFile):
    """No model was named and there is none built in. `hint` as in UsageError."""

    def __init__(self, message: str, code: str, hint: str) -> None:
        super().__init__(message, code)
        self.hint = hint


def nearest_names(path: str | os.PathLike[str], suffixes: Collection[str] = (), n: int = 3) -> list[str]:
    """Names in the folder of `path` that look like what was meant; with `suffixes`, only names that end so."""
    wanted = Path(path)
    lower = {name.lower(): name for name in names_beside(wanted, suffixes)}
    return [lower[name] for name in difflib.get_close_matches(wanted.name.lower(), lower, n=n, cutoff=0.6)]


def names_beside(path: str | os.PathLike[str], suffixes: Collection[str] = ()) -> list[str]:
    """Names in the folder of `path`, sorted; with `suffixes`, only names that end so. At most 10,000 are looked at."""
    try:
        with os.scandir(Path(path).parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, 10_000)]
    except OSError:
        return []
    return sorted(name for name in names if not suffixes or Path(name).suffix.lower() in suffixes)


def describe_missing(path: str, what: str, suffixes: Collection[str] = ()) -> str:
    """Says why `path` cannot be opened and what might have been meant. `what` is "model file", "picture", …"""
    folder = Path(path).parent
    if not folder.is_dir():
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        return f"{what} {path}: no such file (the path exists only as far as {folder})"
    near = nearest_names(path, suffixes)
    if near:
        return f"{what} {path}: no such file; did you mean {' or '.join(near)}?"
    where = "this folder" if str(folder) == "." else str(folder)
    others = names_beside(path, suffixes)[:5] if suffixes else []
    holds = f"{where} holds {', '.join(others)}" if others else f"{where} holds no file like it"
    return f"{what} {path}: no such file; {holds}"


def check_readable(
    path: str, what: str, suffixes: Collection[str], error: Callable[[str, str], errors.KimiVLError], code: str
) -> None:
    """Raises `error` when `path` is not a file that can be opened; cheap, so that a typo is reported before a
    model is loaded."""
    if not path or "\0" in path:
        raise error(f"{what}: {path!r} is not the name of a file", code)
    if os.path.isdir(path):
        names = names_beside(os.path.join(path, "-"), suffixes)[:5] if suffixes else []
        found = f"; it holds {', '.join(names)}" if names else ""
        raise error(f"{what} {path}: is a folder, expected a file{found}", code)
    if not os.path.exists(path):
        raise error(describe_missing(path, what, suffixes), code)
    if not os.access(path, os.R_OK):
        raise error(f"{what} {path}: permission denied: you may not read this file", code)


def describe_os_error(failure: OSError) -> str:
    """One line for an operating system error: name first, then the reason."""
    name = os.fspath(failure.filename) if isinstance(failure.filename, (str, os.PathLike)) else ""
    reason = failure.strerror or str(failure)
    if failure.errno == errno.ENOSPC:
        reason += ": free some space and try again"
    return f"{name}: {reason}" if name else reason


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM stops the work as Ctrl-C does, so that it can be taken up again."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise errors.Cancelled("stopped by SIGTERM", "quantize.terminated")

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
