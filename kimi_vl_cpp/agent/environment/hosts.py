"""Which addresses an agent may visit: the hosts that are allowed, and files below the folder of the start page."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...errors import AgentStopped, shown

_HARMLESS = frozenset({"about", "data", "blob"})  # what a page makes itself: nothing is fetched


class Hosts:
    """allowed: names as in an address, with a port or without (any port). folder: below which files may be opened."""

    def __init__(self, allowed: Iterable[str], folder: str | os.PathLike[str] | None = None) -> None:
        """Raises AgentStopped (code "agent.host") for what is not the name of a host."""
        self.allowed = frozenset(one.strip().lower().rstrip(".") for one in allowed)
        for one in self.allowed:
            if not one or any(sign in one for sign in "/@?#* ") or urlsplit(f"http://{one}").hostname is None:
                raise AgentStopped(
                    f"{shown(one)} is not the name of a host: expected for example localhost or shop.example:8080",
                    "agent.host",
                )
        self._folder = None if folder is None else Path(folder).resolve()

    @property
    def names(self) -> list[str]:
        """The allowed names, without their ports."""
        return sorted({urlsplit(f"http://{one}").hostname or "" for one in self.allowed})

    def allows(self, url: str, *, visit: bool) -> bool:
        """visit: whether it is to be the page, not only a part of one."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            return False
        if parts.scheme in _HARMLESS:
            return not visit or url == "about:blank"
        if parts.scheme == "file":
            return self._folder is not None and host in ("", "localhost") and self._is_below(parts.path)
        if parts.scheme not in ("http", "https", "ws", "wss") or parts.username is not None:
            return False
        port = port or {"http": 80, "ws": 80}.get(parts.scheme, 443)
        name = f"[{host}]" if ":" in host else host
        return name in self.allowed or f"{name}:{port}" in self.allowed

    def refused(self, url: str) -> AgentStopped:
        """The error for an address that is not allowed."""
        parts = urlsplit(url)
        what = parts.netloc or url
        listed = ", ".join(sorted(self.allowed)) or "no host"
        return AgentStopped(
            f"{shown(url)} may not be visited: {listed} is allowed; allow {what} if it belongs to the task",
            "agent.host",
        )

    def _is_below(self, path: str) -> bool:
        assert self._folder is not None
        return Path(unquote(path)).resolve().is_relative_to(self._folder)
