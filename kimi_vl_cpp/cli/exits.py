"""How a command goes wrong: mistakes of usage, and the words for files that are not there. Exit codes are those of
errors.py."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .. import errors

PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
MODEL_SUFFIXES = frozenset({".gguf"})

HOW_TO_GET_A_MODEL = (
    "Download a model and its vision file (mmproj), for example Kimi-VL-A3B-Thinking-2506-Q4_K_M.gguf (10.5 GB) and\n"
    "mmproj-Kimi-VL-A3B-Thinking-2506-Q8_0.gguf (0.6 GB), from https://huggingface.co/ggml-org/Kimi-VL-A3B-Thinking-2506-GGUF\n"
    'into one folder, then: kimi-vl run -m Kimi-VL-A3B-Thinking-2506-Q4_K_M.gguf -i photo.jpg "What is this?"'
)


class UsageError(errors.BadRequest):
    """The command line asks for something that cannot be meant. `hint` goes on the lines below the message."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, "usage")
        self.hint = hint


def nearest_names(path: str | os.PathLike[str], suffixes: Iterable[str] = (), n: int = 3) -> list[str]:
    """Names in the folder of `path` that look like what was meant; with `suffixes`, only files that end so, near or
    not."""
    wanted = Path(path)
    wanted_suffixes = set(suffixes)
    try:
        with os.scandir(wanted.parent) as entries:
            names = [e.name for _, e in zip(range(10_000), entries, strict=False)]
    except OSError:
        return []
    names = sorted(name for name in names if not wanted_suffixes or Path(name).suffix.lower() in wanted_suffixes)
    lower = {name.lower(): name for name in names}
    close = [lower[name] for name in difflib.get_close_matches(wanted.name.lower(), lower, n=n, cutoff=0.5)]
    return close or (names[:n] if wanted_suffixes else [])


def describe_missing(path: str | os.PathLike[str], what: str, suffixes: Sequence[str] | frozenset[str] = ()) -> str:
    """Says why `path` cannot be opened and what might have been meant. `what` is "model file", "picture", …"""
    text = os.fspath(path)
    folder = Path(text).parent
    if not folder.is_dir():
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        return f"{what} {text}: no such file (the path exists only as far as {folder})"
    names = nearest_names(text, suffixes)
    where = "this folder" if str(folder) == "." else str(folder)
    hint = f"; did you mean {' or '.join(names)}?" if names else f"; {where} holds no file like it"
    return f"{what} {text}: no such file{hint}"


def check_readable(path: str, what: str, suffixes: frozenset[str], error: type[errors.KimiVLError], code: str) -> None:
    """Raises `error` when `path` is not a file that can be opened; cheap, so that a typing mistake is told before a
    model is loaded."""
    try:
        if os.path.isdir(path):
            names = nearest_names(os.path.join(path, "-"), suffixes)
            found = f"; it holds {', '.join(names)}" if names else ""
            raise error(f"{what} {path}: is a folder, expected a file{found}", code)
        if not os.path.exists(path):
            raise error(describe_missing(path, what, suffixes), code)
        if not os.access(path, os.R_OK):
            raise error(f"{what} {path}: permission denied: you may not read this file", code)
    except (OSError, ValueError) as failure:  # ValueError: a NUL byte in the path
        raise error(f"{what} {path!r}: {failure}", code) from None


def describe_os_error(failure: OSError) -> str:
    """One line for an operating system error: name first, then the reason."""
    name = os.fspath(failure.filename) if isinstance(failure.filename, (str, os.PathLike)) else ""
    reason = failure.strerror or str(failure)
    if failure.errno == errno.ENOSPC:
        reason += ": free some space and try again"
    return f"{name}: {reason}" if name else reason
