"""API keys: read from options, the environment or a file, compared in constant time, never shown.

Only digests of the keys are kept.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import BadRequest

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_MAX_FILE_BYTES = 1 << 20


class Keys:
    """The keys that are accepted. Without any, every request is."""

    def __init__(self, given: Iterable[str] = (), file: Path | None = None) -> None:
        """given: keys, as `key` or `name:key`. file: lines of the same, # begins a comment. Raises BadRequest
        (code "serve.key")."""
        self._given = [_named(text, "a key") for text in given]
        self._file = file
        self._digests: list[tuple[str, bytes]] = []
        self.reload()

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __repr__(self) -> str:
        return f"<{len(self._digests)} keys>"

    @property
    def names(self) -> list[str]:
        """The names of the keys; "default" is one without a name."""
        return [name for name, _ in self._digests]

    def reload(self) -> None:
        """Reads the file again. Raises BadRequest and keeps the keys as they are when it cannot be read."""
        found = [*self._given, *(self._read_file(self._file) if self._file is not None else ())]
        self._digests = [(name, hashlib.sha256(key.encode()).digest()) for name, key in found]

    def _read_file(self, file: Path) -> list[tuple[str, str]]:
        try:
            with file.open("rb") as opened:
                lines = opened.read(_MAX_FILE_BYTES).decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadRequest(f"key file {file}: cannot be read: {error}", "serve.key") from None
        named = [(number, line.strip()) for number, line in enumerate(lines, 1)]
        keys = [_named(line, f"key file {file}, line {n}") for n, line in named if line and not line.startswith("#")]
        if not keys:
            raise BadRequest(f"key file {file}: it holds no key", "serve.key")
        return keys

    def name_of(self, key: bytes) -> str | None:
        """The name of a key that is accepted, else None. Compares with all keys, whichever fits."""
        digest = hashlib.sha256(key).digest()
        found: str | None = None
        for name, known in self._digests:
            if hmac.compare_digest(digest, known):
                found = name
        return found


def key_of(headers: Mapping[str, str]) -> bytes | None:
    """The key that a request carries: `Authorization: Bearer KEY`, or `X-Api-Key`."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    given = headers.get("x-api-key")
    return None if given is None else given.strip().encode("latin-1")


def _named(text: str, what: str) -> tuple[str, str]:
    name, separator, key = text.partition(":")
    if not separator:
        name, key = "default", text
    key = key.strip()
    if not _NAME.match(name) or not key or not key.isprintable() or not key.isascii() or " " in key:
        raise BadRequest(f"{what}: expected KEY or NAME:KEY in printable ASCII without spaces", "serve.key")
    return name, key
