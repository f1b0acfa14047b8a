"""Fetching of pictures: nothing that only this machine may reach is ever reached."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kimi_vl_cpp.errors import BadImage, Unsupported
from kimi_vl_cpp.server import fetching
from kimi_vl_cpp.server.fetching import Fetcher, is_public

httpcore = pytest.importorskip("httpcore", reason="needs the extra [fetch]")
PUBLIC = "93.184.215.14"
PICTURE = b"bytes of a picture"
CERTIFICATE = Path(__file__).with_name("pictures_test.pem")


class Host(BaseHTTPRequestHandler):
    """Answers as the path says; notes what it was asked."""

    asked: list[tuple[str, str]]  # Host header and path

    def do_GET(self) -> None:
        self.asked.append((self.headers["Host"], self.path))
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest if "://" in rest else f"/{rest}")
            self.end_headers()
            return
        if kind == "status":
            self.send_response(int(rest))
            self.end_headers()
            self.wfile.write(b"secret of the host")
            return
        self.send_response(200)
        if kind == "gzip":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        with contextlib.suppress(OSError):
            if kind == "endless":
                while True:
                    self.wfile.write(bytes(1 << 20))
            self.wfile.write(PICTURE)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host() -> Iterator[ThreadingHTTPServer]:
    Host.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


class World:
    """Names and what is behind them: every connection goes to the local server, and is noted."""

    def __init__(self, host: ThreadingHTTPServer, names: dict[str, list[str]] | None = None) -> None:
        self.port = host.server_address[1]
        self.names = {"pictures.test": [PUBLIC], **(names or {})}
        self.resolved: list[str] = []
        self.connected: list[tuple[str, int]] = []

    def fetcher(self, *hosts: str) -> Fetcher:
        return Fetcher(hosts or ("pictures.test",), self.resolve, self.connect)

    def fetch(self, url: str, *hosts: str) -> bytes:
        return asyncio.run(self.fetcher(*hosts).fetch(url))

    async def resolve(self, name: str, port: int) -> list[str]:
        self.resolved.append(name)
        addresses = self.names.get(name, [])
        if addresses and isinstance(addresses[0], list):  # another answer every time
            return addresses.pop(0)
        return addresses

    async def connect(self, address: str, port: int) -> httpcore.AsyncNetworkStream:
        self.connected.append((address, port))
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", self.port)


def test_a_picture_comes_from_the_address_that_was_checked(host):
    world = World(host)
    assert world.fetch("http://Pictures.test/cat.png?size=1#top") == PICTURE
    assert world.connected == [(PUBLIC, 80)] and world.resolved == ["pictures.test"]
    assert Host.asked == [("pictures.test", "/cat.png?size=1")]


def test_tls_is_held_to_the_name_that_was_asked_not_to_the_address(host, monkeypatch):
    told = []
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(CERTIFICATE)
    served.sni_callback = lambda connection, name, context: told.append(name)
    host.socket = served.wrap_socket(host.socket, server_side=True)
    monkeypatch.setattr(fetching, "_tls", lambda: ssl.create_default_context(cafile=str(CERTIFICATE)))
    world = World(host, {"other.test": [PUBLIC]})
    assert world.fetch("https://pictures.test/a") == PICTURE
    assert world.connected == [(PUBLIC, 443)] and told == ["pictures.test"]
    with pytest.raises(BadImage, match="the connection failed"):  # whose certificate is for another name
        world.fetch("https://other.test/a", "other.test")
    assert told == ["pictures.test", "other.test"] and Host.asked == [("pictures.test", "/a")]


def test_a_name_is_resolved_once_whatever_it_answers_next(host):
    world = World(host, {"pictures.test": [[PUBLIC], ["127.0.0.1"]]})
    assert world.fetch("http://pictures.test/a") == PICTURE
    assert world.connected == [(PUBLIC, 80)]


INTERNAL = """127.0.0.1 127.1.2.3 0.0.0.0 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1
192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 240.0.0.1 255.255.255.255 ::1 :: fe80::1 fe80::1%eth0 fc00::1
fd12:3456::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:7f00:1 64:ff9b::7f00:1 64:ff9b::10.0.0.1 2002:7f00:1::
2002:a00:1::1 2001:db8::1 ::127.0.0.1 ::7f00:1 2001:0:4136:e378:8000:63bf:80ff:fffe""".split()


@pytest.mark.parametrize("address", INTERNAL)
def test_no_connection_is_made_to_an_address_that_is_not_public(host, address):
    assert not is_public(address)
    world = World(host, {"pictures.test": [PUBLIC, address]})  # one is enough
    with pytest.raises(BadImage, match="not public") as raised:
        world.fetch("http://pictures.test/a")
    assert raised.value.code == "image.fetch_refused" and world.connected == []


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_public_addresses_are_told_from_others(address):
    assert is_public(address)


SPELLINGS = """http://127.0.0.1/ http://127.1/ http://2130706433/ http://0x7f000001/ http://0x7f.0.0.1/ http://0177.0.0.1/
http://0/ http://[::1]/ http://[::]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/ http://localhost/ http://LOCALHOST/
http://localhost./ http://127.0.0.1.nip.io/ http://169.254.169.254/latest/meta-data/ http://metadata.google.internal/
http://pictures.test@127.0.0.1/ http://127.0.0.1@pictures.test/ http://user:secret@pictures.test/ http://pictures.test%00.evil/
http://pictures.test\\@127.0.0.1/ http://pictures.test\\evil/ http://pictures.test%2f@127.0.0.1/ http://pictures.test:22/
http://pictures.test:443/ https://pictures.test:80/ http://pictures.test:8080/ http://notpictures.test/ http://pictures.test.evil/
http://sub.pictures.test/ http://\uff11\uff12\uff17.0.0.1/ http://127\u30020\u30020\u30021/ http://pictures.test\u2024evil/
http:///a http://?a http://:80/ http://[pictures.test]/ http://[::1 http://pictures.test:99999/ http://pictures.test:-1/
ftp://pictures.test/ gopher://pictures.test/ file:///etc/passwd //pictures.test/ http:pictures.test http:/pictures.test
https:\\\\pictures.test/ jar:http://pictures.test!/ dict://pictures.test:11211/""".split()


@pytest.mark.parametrize(
    "url", [*SPELLINGS, "http://pictures.test/a b", "http://pictures.test/\r\nX: y", "http://pictures.test\t/", ""]
)
def test_a_url_of_another_host_is_refused_however_it_is_written(host, url):
    world = World(host)
    with pytest.raises(BadImage) as raised:
        world.fetch(url)
    assert raised.value.code == "image.fetch_refused"
    assert world.resolved == [] and world.connected == []


@pytest.mark.parametrize(
    ("listed", "url", "allowed"),
    [
        ("*.pictures.test", "http://a.pictures.test/", True),
        ("*.pictures.test", "http://a.b.pictures.test/", True),
        ("*.pictures.test", "http://pictures.test/", False),
        ("*.pictures.test", "http://apictures.test/", False),
        ("pictures.test:8080", "http://pictures.test:8080/", True),
        ("pictures.test:8080", "http://pictures.test/", False),
        ("pictures.test", "http://PICTURES.TEST./", True),
        ("10.1.2.3", "http://10.1.2.3/", True),
        ("[fd00::5]:8080", "http://[fd00::5]:8080/", True),
    ],
)
def test_hosts_are_listed_by_name_subdomains_port_and_address(host, listed, url, allowed):
    world = World(host, {"a.pictures.test": [PUBLIC], "a.b.pictures.test": [PUBLIC]})
    if allowed:
        assert world.fetch(url, listed) == PICTURE
        assert len(world.connected) == 1
        return
    with pytest.raises(BadImage):
        world.fetch(url, listed)
    assert world.connected == []


@pytest.mark.parametrize(
    "listed", ["", "*", "*.", "http://pictures.test", "pictures.test/a", "*.10.0.0.1", "a b", "x:y"]
)
def test_a_list_that_names_no_host_is_refused_at_the_start(listed):
    with pytest.raises(Unsupported):
        Fetcher([listed])


def test_redirects_are_followed_three_times_each_checked_anew(host):
    world = World(host, {"other.test": [PUBLIC]})
    assert world.fetch("http://pictures.test/to/to/to/a") == PICTURE
    with pytest.raises(BadImage, match="more than 3"):
        world.fetch("http://pictures.test/to/to/to/to/a")
    assert world.fetch("http://pictures.test/to/http://other.test/a", "pictures.test", "other.test") == PICTURE


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/a",
        "http://other.test/a",
        "http://inside.test/a",
        "file:///etc/passwd",
        "http://pictures.test:22/a",
    ],
)
def test_a_redirect_to_where_nothing_is_fetched_from_is_not_followed(host, location):
    world = World(host, {"inside.test": ["10.0.0.1"]})
    with pytest.raises(BadImage) as raised:
        world.fetch(f"http://pictures.test/to/{location}", "pictures.test", "inside.test")
    assert raised.value.code == "image.fetch_refused" and world.connected == [(PUBLIC, 80)]
    assert location not in str(raised.value).replace(f"to/{location}", "")


def test_https_is_not_left_for_http(host, monkeypatch):
    async def ask(self, target, asked):
        return 302, {b"location": b"http://pictures.test/a"}, b""

    monkeypatch.setattr(Fetcher, "_ask", ask)
    with pytest.raises(BadImage, match="from https to http"):
        World(host).fetch("https://pictures.test/a")


@pytest.mark.parametrize(
    ("path", "why"),
    [("status/404", "status 404"), ("status/500", "status 500"), ("status/204", "status 204"), ("gzip", "compressed")],
)
def test_what_is_no_picture_is_said_without_a_word_of_it(host, path, why):
    with pytest.raises(BadImage, match=why) as raised:
        World(host).fetch(f"http://pictures.test/{path}")
    assert "secret" not in str(raised.value) and raised.value.code == "image.fetch_failed"


def test_too_much_is_not_read_to_its_end(host, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_BYTES", 3 << 20)
    with pytest.raises(BadImage, match="more than 3 MiB"):
        World(host).fetch("http://pictures.test/endless")


def test_a_host_that_says_nothing_is_given_up(host, monkeypatch):
    monkeypatch.setattr(fetching, "TOTAL_S", 0.2)

    async def connect(address: str, port: int) -> httpcore.AsyncNetworkStream:
        await asyncio.sleep(3600)
        raise AssertionError

    fetcher = Fetcher(["pictures.test"], World(host).resolve, connect)
    with pytest.raises(BadImage, match="more than"):
        asyncio.run(fetcher.fetch("http://pictures.test/a"))


def test_an_unknown_name_and_a_closed_port_are_failures(host):
    world = World(host)
    with pytest.raises(BadImage, match="not known"):
        world.fetch("http://nobody.test/", "nobody.test")
    with pytest.raises(BadImage, match="connection failed"):
        asyncio.run(Fetcher(["127.0.0.1:9"]).fetch("http://127.0.0.1:9/"))


def test_nothing_is_fetched_with_an_empty_list(host):
    world = World(host)
    assert not Fetcher([])
    with pytest.raises(BadImage):
        asyncio.run(Fetcher([], world.resolve, world.connect).fetch("http://pictures.test/"))
    assert world.connected == []
