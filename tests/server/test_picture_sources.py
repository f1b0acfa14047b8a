"""Pictures that are named instead of sent: by the digest of an earlier request, by a file, by an address."""

from __future__ import annotations

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from server_support import RunningServer, picture_url, with_picture

from kimi_vl_cpp.media.processor import ProcessedImage
from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.server.pictures import EarlierPictures


def png(seed: int = 0) -> bytes:
    return base64.b64decode(picture_url(seed).partition(",")[2])


class Host(BaseHTTPRequestHandler):
    n_asked = 0

    def do_GET(self) -> None:
        Host.n_asked += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(png(7) if self.path == "/picture" else b"a secret of the host")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "a picture.png").write_bytes(png(5))
    (folder / "note.txt").write_text("not a picture")
    (folder / "inner").mkdir()
    (folder / "link.png").symlink_to("a picture.png")
    outside = folder.parent / f"{folder.name}-outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(png(6))
    (folder / "leak.png").symlink_to(outside / "secret.png")
    (folder / "circle").symlink_to(folder / "circle")
    return folder


@pytest.fixture(scope="module")
def server(host, folder):
    settings = {"keys": ("ann:one", "bob:two"), "image_hosts": (host,), "image_dirs": (str(folder),)}
    with RunningServer(lambda: KimiVL.builtin(n_ctx=1024), **settings) as running:
        yield running


def ask(server, url, key="one", **fields):
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0, **fields}
    with server.client(headers={"Authorization": f"Bearer {key}"}) as client:
        return client.post("/v1/chat/completions", json=body)


def image_of(response):
    assert response.status_code == 200, response.text
    return response.json()["kimi"]["images"][0]


def content_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def refused(response, code):
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["kimi_code"] == code and error["param"] == "messages[0].content[0].image_url"
    return error["message"]


# Digests


def test_a_picture_sent_before_is_named_by_its_digest(server):
    sent = ask(server, picture_url(1))
    image = image_of(sent)
    named = ask(server, f"sha256:{image['digest']}")
    assert content_of(named) == content_of(sent)
    assert {**image_of(named), "cached": None} == {**image, "cached": None}
    assert named.json()["usage"]["prompt_tokens"] == sent.json()["usage"]["prompt_tokens"]


def test_a_digest_is_known_to_its_own_key_and_salt_alone(server):
    digest = image_of(ask(server, picture_url(2), cache_salt="x"))["digest"]
    content_of(ask(server, f"sha256:{digest.upper()}", cache_salt="x"))
    for other in ({"cache_salt": "y"}, {}, {"cache_salt": "x", "key": "two"}):
        message = refused(ask(server, f"sha256:{digest}", **other), "image.unknown_digest")
        assert "send it again" in message
    refused(ask(server, "sha256:nothing"), "image.unknown_digest")


def test_pictures_of_a_request_that_was_refused_are_not_kept(server):
    """Those beyond the context are never decoded to their end."""
    digest = image_of(ask(server, picture_url(11), key="two"))["digest"]
    urls = [*(picture_url(seed, (280, 280)) for seed in range(20)), picture_url(11)]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    with server.client(headers={"Authorization": "Bearer one"}) as client:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
        response = client.post("/v1/chat/completions", json=body)
    assert response.json()["error"]["code"] == "context_length_exceeded"
    refused(ask(server, f"sha256:{digest}"), "image.unknown_digest")


def test_earlier_pictures_are_forgotten_by_their_size():
    def picture(name: str) -> ProcessedImage:
        pixels = np.zeros((10, 10, 3), np.uint8)
        return ProcessedImage(pixels, (1, 1), 1, (10, 10), (10, 10), name)

    kept, owner = EarlierPictures(max_bytes=700), ("ann", "")
    for name in "ab":
        kept.put(owner, picture(name))
    kept.put(owner, picture("a"))  # used again, and counted once
    kept.put(owner, picture("c"))
    assert [kept.get(owner, name) is not None for name in "abc"] == [True, False, True]


# What is told of the caches


def test_an_answer_says_where_its_picture_was_cached(server):
    first = ask(server, picture_url(3))
    assert image_of(first)["cached"] is None
    assert image_of(ask(server, picture_url(3)))["cached"] == "kv"
    system = {"role": "system", "content": "Be brief."}
    other = [system, *with_picture(3)]
    with server.client(headers={"Authorization": "Bearer one"}) as client:
        response = client.post("/v1/chat/completions", json={"messages": other, "max_tokens": 1})
    assert image_of(response)["cached"] == "embedding"


def test_salts_share_nothing_and_change_no_answer(server):
    plain = ask(server, picture_url(4))
    for fields in ({"cache_salt": "a"}, {"cache_prompt": False}, {"cache_prompt": False}):
        salted = ask(server, picture_url(4), **fields)
        assert image_of(salted)["cached"] is None
        assert salted.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert content_of(salted) == content_of(plain)
    again = ask(server, picture_url(4), cache_salt="a")
    assert image_of(again)["cached"] == "kv"
    assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert "kimi" in again.json() and again.json()["kimi"]["notices"] == []


def test_wrong_salts_are_named(server):
    for fields, param in (({"cache_salt": "x" * 257}, "cache_salt"), ({"cache_prompt": 1}, "cache_prompt")):
        response = ask(server, picture_url(), **fields)
        assert response.status_code == 400 and response.json()["error"]["param"] == param


# Files


def test_a_file_below_a_folder_of_pictures_is_read(server, folder):
    sent = content_of(ask(server, picture_url(5)))
    assert content_of(ask(server, f"file://{folder}/a%20picture.png")) == sent
    assert content_of(ask(server, f"file://localhost{folder}/link.png")) == sent
    assert content_of(ask(server, f"file://{folder}/inner/../a%20picture.png")) == sent


@pytest.mark.parametrize(
    "path",
    ["leak.png", "../x-outside/secret.png", "inner", "missing.png", "circle", "a%00b", "%2e%2e/%2e%2e/etc/passwd", ""],
)
def test_what_is_not_below_it_is_refused_in_the_same_words(server, folder, path):
    message = refused(ask(server, f"file://{folder}/{path}"), "image.file_refused")
    assert message.endswith("is not a file below a folder of pictures")


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "file://elsewhere/etc/passwd", "file:///dev/zero", "file:", "file://[x"]
)
def test_no_other_file_is_opened(server, url):
    refused(ask(server, url), "image.file_refused")


# Addresses


def test_a_picture_is_fetched_from_a_listed_host(server, host):
    fetched = ask(server, f"http://{host}/picture")
    assert content_of(fetched) == content_of(ask(server, picture_url(7)))
    with server.client(headers={"Authorization": "Bearer one"}) as client:
        content = [{"type": "image_url", "image_url": f"http://{host}/picture"}]
        body = {"messages": [{"role": "user", "content": content}]}
        counted = client.post("/v1/chat/completions/input_tokens", json=body)
        ids = client.post("/tokenize", json=body)
    assert counted.json()["image_tokens"] > 0 and ids.json()["tokens"].count(-1) == counted.json()["image_tokens"]


def test_errors_of_fetching_name_the_picture(server, host):
    refused(ask(server, "http://pictures.example/a"), "image.fetch_refused")
    assert "secret" not in refused(ask(server, f"http://{host}/other"), "image.format")


def test_nothing_is_fetched_or_opened_by_default(host, folder):
    before = Host.n_asked
    with RunningServer(lambda: KimiVL.builtin(n_ctx=512)) as plain:
        refused(ask(plain, f"http://{host}/picture"), "request.image_url_remote")
        refused(ask(plain, f"file://{folder}/a%20picture.png"), "request.image_url_local")
    assert Host.n_asked == before
