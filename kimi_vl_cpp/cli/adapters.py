"""`--lora` on the command line: DIR[=SCALE], and NAME=DIR[=SCALE] where each request picks one by its name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ..wording import printable
from . import exits

Scaled = tuple[str, float]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def scaled_path(text: str) -> Scaled:
    """DIR[=SCALE]; a path that exists may itself hold a '='. Raises UsageError."""
    if not text:
        raise exits.UsageError("--lora: the path is empty, expected the folder or the GGUF file of an adapter")
    path, equals, scale = text.rpartition("=")
    if not equals or os.path.lexists(text):
        return text, 1.0
    if not _is_number(scale):
        raise exits.UsageError(
            f"--lora {printable(text)}: {printable(scale)} is neither a number nor is the whole a path that exists",
            "For example: --lora ./my-adapter=0.8. Names, NAME=DIR, are for serve and batch.",
        )
    return path, float(scale)


def always(texts: Sequence[str] | None) -> list[Scaled] | None:
    """Adapters that count for everything, added up; None: none were given. Raises UsageError."""
    return [scaled_path(text) for text in texts] if texts else None


def always_or_named(texts: Sequence[str] | None) -> list[Scaled] | dict[str, Scaled] | None:
    """The same, or adapters by name. Raises UsageError for some with a name and some without."""
    named: dict[str, Scaled] = {}
    for text in texts or ():
        name, equals, rest = text.partition("=")
        if not equals or os.path.lexists(text) or _is_number(rest) or not _NAME.fullmatch(name):
            continue
        if name in named:
            raise exits.UsageError(f"--lora {name}=…: given twice: each adapter needs a name of its own")
        named[name] = scaled_path(rest)
    if not named:
        return always(texts)
    if len(named) < len(texts or ()):
        raise exits.UsageError(
            "--lora: some are named and some are not: give all of them as NAME=DIR, of which each request picks one, "
            "or none, to add them to every request"
        )
    return named


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
