"""Pictures from other hosts, for a server that was started with the names of those hosts.

Owns every rule that keeps a request from reaching what only this machine may reach: which hosts, ports and addresses,
redirects, limits of time and size. A name is resolved once; all of its addresses have to be public; the connection goes
to the address that was checked, with the name in the Host header and in TLS. No proxies, no cookies, no compression.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from ..errors import BadImage, Unsupported, shown

if TYPE_CHECKING:
    import httpcore

MAX_BYTES = 20 << 20
MAX_REDIRECTS = 3
CONNECT_S = 5.0
TOTAL_S = 15.0
_AT_ONCE = 8
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HEADERS = [("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "kimi-vl-cpp")]

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a name."""
Connect = Callable[[str, int], Awaitable["httpcore.AsyncNetworkStream"]]
"""A connection to an address and port."""


@dataclass(frozen=True)
class _Target:
    """A URL that may be asked for. literal: the host is an IP address, which the server's own list names."""

    scheme: str
    host: str
    port: int
    path: str
    literal: bool


class Fetcher:
    """Fetches pictures from the hosts that `hosts` names: a name, `*.name` for its subdomains, or an IP address, each
    with the ports of http and https, or with one of its own after a colon.

    resolve, connect: for tests.
    """

    def __init__(self, hosts: Iterable[str], resolve: Resolve | None = None, connect: Connect | None = None) -> None:
        self._hosts = [_listed(host) for host in hosts]
        self._resolve = resolve or _resolve
        self._connect = connect or _connect
        self._slots = asyncio.Semaphore(_AT_ONCE)
        if self._hosts:
            try:
                import httpcore  # noqa: F401
            except ModuleNotFoundError:
                raise Unsupported(
                    "fetching pictures needs httpcore, which is not installed: pip install 'kimi-vl-cpp[fetch]'",
                    "serve.fetch_not_installed",
                ) from None

    def __bool__(self) -> bool:
        """Whether anything may be fetched."""
        return bool(self._hosts)

    def check(self, url: str) -> None:
        """Raises BadImage (code "image.fetch_refused") for a URL that is not fetched."""
        self._target(url)

    async def fetch(self, url: str) -> bytes:
        """What is behind a URL. Raises BadImage ("image.fetch_refused", "image.fetch_failed"); its message never quotes
        what came back."""
        async with self._slots:
            try:
                async with asyncio.timeout(TOTAL_S):
                    return await self._follow(url)
            except TimeoutError:
                raise _failed(url, f"it took more than {TOTAL_S:g} s") from None

    async def _follow(self, url: str) -> bytes:
        asked, target = url, self._target(url)
        for _ in range(MAX_REDIRECTS + 1):
            status, headers, body = await self._ask(target, asked)
            if status == 200:
                return body
            location = headers.get(b"location")
            if status not in _REDIRECTS or location is None:
                raise _failed(asked, f"the host answered with status {status}")
            before, url = target, urljoin(url, location.decode("latin-1"))
            try:
                target = self._target(url)
            except BadImage:
                raise _refused(asked, "it redirects to where pictures are not fetched from") from None
            if (before.scheme, target.scheme) == ("https", "http"):
                raise _refused(asked, "it redirects from https to http")
        raise _failed(asked, f"it redirects more than {MAX_REDIRECTS} times")

    def _target(self, url: str) -> _Target:
        """The parts of a URL, which is parsed here alone: what is checked is what is asked."""
        if not url.isascii() or not url.isprintable() or any(character in url for character in '\\ "<>^`{|}'):
            raise _refused(url, "it has characters that a URL may not have: write them as %XX, a host in Punycode")
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            raise _refused(url, "it is not a URL") from None
        scheme = parts.scheme
        if scheme not in _PORTS:
            raise _refused(url, "expected http or https")
        if "@" in parts.netloc or "%" in parts.netloc:
            raise _refused(url, "it has a user name or an escape in its host")
        literal = _is_address(host)
        if not literal and not _NAME.fullmatch(host):
            raise _refused(url, "its host is not a name")
        port = port or _PORTS[scheme]
        if not any(one.allows(host, port, scheme) for one in self._hosts):
            raise _refused(url, "no --image-host of the server names this host and port")
        return _Target(scheme, host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), literal)

    async def _ask(self, target: _Target, asked: str) -> tuple[int, dict[bytes, bytes], bytes]:
        """One request without redirects."""
        import httpcore

        address = target.host if target.literal else await self._public_address(target, asked)
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        backend = _pinned(self._connect, address)
        try:
            async with (
                httpcore.AsyncConnectionPool(network_backend=backend, ssl_context=_tls()) as pool,
                pool.stream("GET", url, headers=_HEADERS) as response,
            ):
                headers = {name.lower(): value for name, value in response.headers}
                if response.status != 200:
                    return response.status, headers, b""
                if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                    raise _failed(asked, "it came compressed, although that was not asked for")
                return 200, headers, await _read(response, asked)
        except (OSError, ssl.SSLError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
            raise _failed(asked, "the connection failed") from None

    async def _public_address(self, target: _Target, asked: str) -> str:
        try:
            addresses = await self._resolve(target.host, target.port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise _failed(asked, "the name of its host is not known")
        if not all(is_public(address) for address in addresses):
            raise _refused(asked, "its host has an address that is not public")
        return addresses[0]


async def _read(response: httpcore.Response, asked: str) -> bytes:
    parts: list[bytes] = []
    n_bytes = 0
    async for part in response.aiter_stream():
        n_bytes += len(part)
        if n_bytes > MAX_BYTES:
            raise _failed(asked, f"it has more than {MAX_BYTES >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


@dataclass(frozen=True)
class _Listed:
    """An entry of the server's list. port None: that of the scheme."""

    name: str
    port: int | None
    subdomains: bool

    def allows(self, host: str, port: int, scheme: str) -> bool:
        """Whether a host (in lower case) and port may be asked."""
        same = host.endswith(f".{self.name}") if self.subdomains else host == self.name
        return same and port == (self.port or _PORTS[scheme])


def _listed(entry: str) -> _Listed:
    subdomains = entry.startswith("*.")
    try:
        parts = urlsplit(f"//{entry.removeprefix('*.')}")
        name, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        name, port, parts = "", None, urlsplit("")
    whole = parts.netloc and not (parts.path or parts.query or parts.fragment or parts.username)
    if not whole or not (_is_address(name) or _NAME.fullmatch(name)) or (subdomains and _is_address(name)):
        raise Unsupported(
            f"image host {shown(entry)}: expected a name as pictures.example, *.example or pictures.example:8080",
            "serve.image_host",
        )
    return _Listed(name, port, subdomains)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where it carries an IPv4 address inside."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if int(found) >> 32 == 0:  # ::a.b.c.d
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


async def _resolve(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(one[4][0]) for one in found]


async def _connect(address: str, port: int) -> httpcore.AsyncNetworkStream:
    import httpcore

    return await httpcore.AnyIOBackend().connect_tcp(address, port, timeout=CONNECT_S)


def _pinned(connect: Connect, address: str) -> Any:
    """A network whose only host is the address that was checked."""
    import httpcore

    class Pinned(httpcore.AsyncNetworkBackend):
        async def connect_tcp(self, host: str, port: int, *_: Any, **options: Any) -> httpcore.AsyncNetworkStream:
            return await connect(address, port)

    return Pinned()


def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _refused(url: str, why: str) -> BadImage:
    return BadImage(f"{shown(url)} is not fetched: {why}: send the picture as a data: URL", "image.fetch_refused")


def _failed(url: str, why: str) -> BadImage:
    return BadImage(f"{shown(url)} could not be fetched: {why}", "image.fetch_failed")
