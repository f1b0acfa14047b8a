"""The settings of a server. Checked once, by `check`."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass

from ..checks import check_float, check_int
from ..errors import BadRequest
from .fetching import Fetcher
from .keys import Keys


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `kimi-vl serve`, which documents them; times in seconds, sizes in bytes."""

    host: str = "127.0.0.1"
    port: int = 8000
    unix_socket: str | None = None
    aliases: tuple[str, ...] = ()
    keys: Keys = Keys()  # noqa: RUF009 - immutable when empty
    no_auth: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    root_path: str = ""
    max_running: int = 16
    max_queue: int = 256
    max_queue_s: float = 600.0
    max_per_key: int = 0
    timeout: float = 0.0
    grace: float = 30.0
    slow_client: float = 60.0
    max_body: int = 64 << 20
    max_images: int = 64
    image_hosts: tuple[str, ...] = ()
    image_dirs: tuple[str, ...] = ()
    thinking_budget: int | None = None
    answer_reserve: int | None = None
    thinking_close: str = ""
    ping: float = 15.0
    strict: bool = False
    ui: bool = True
    metrics: bool = True
    metrics_per_key: bool = False
    log_json: bool = False
    reasoning_field: str = "reasoning_content"
    trace: str | None = None

    def check(self) -> None:
        """Raises BadRequest (code "request.<field>") for a wrong value, and for an open address without a key."""
        check_int("port", self.port, 0, 65535)
        check_int("max_running", self.max_running, 1, 1024)
        check_int("max_queue", self.max_queue, 0, 1 << 20)
        check_int("max_per_key", self.max_per_key, 0, 1 << 20)
        check_int("max_body", self.max_body, 1024, 1 << 40)
        check_int("max_images", self.max_images, 0, 10_000)
        for name in ("max_queue_s", "timeout", "grace"):
            check_float(name, getattr(self, name), 0, 1e9)
        for name in ("slow_client", "ping"):
            check_float(name, getattr(self, name), 0, 1e9, above=True)
        Fetcher(self.image_hosts)
        for folder in self.image_dirs:
            if not os.path.isdir(folder):
                raise BadRequest(f"image_dir: {folder} is not a folder", "request.image_dir")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise BadRequest("tls_cert and tls_key go together: one of them is missing", "request.tls_cert")
        if not self.reasoning_field.isidentifier() or self.reasoning_field in ("content", "role", "refusal"):
            raise BadRequest(f"reasoning_field: got {self.reasoning_field!r}", "request.reasoning_field")
        if not self.is_local and not self.keys and not self.no_auth:
            raise BadRequest(
                f"host {self.host} can be reached from other computers, and no key protects it: set one with "
                "--api-key-file FILE or KIMI_VL_API_KEY, or say --no-auth",
                "serve.no_key",
            )

    @property
    def is_local(self) -> bool:
        """Whether only this computer can reach the server."""
        if self.unix_socket is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False
