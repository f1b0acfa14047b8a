"""The page's files and its renderer over HTTP."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("starlette", reason="needs the extra [server]")
pytest.importorskip("httpx", reason="needs the extra [test-server]")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from kimi_vl_cpp.errors import KimiVLError
from kimi_vl_cpp.server import pages


def told(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, KimiVLError)
    return JSONResponse({"error": {"message": str(error), "kimi_code": error.code}}, status_code=400)


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=pages.routes(), exception_handlers={KimiVLError: told}))


def names() -> list[str]:
    return ["/" if name == "index.html" else f"/ui/{name}" for name in pages._page_files()]


def test_every_file_has_its_type_and_may_be_kept(client: TestClient) -> None:
    assert len(names()) > 10
    types = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "png": "image/png"}
    for name in names():
        answer = client.get(name)
        assert answer.status_code == 200 and answer.content
        kind = types.get(name.rpartition(".")[2], "text/html; charset=utf-8" if name == "/" else "image/svg+xml")
        assert answer.headers["content-type"] == kind
        assert answer.headers["cache-control"] == "no-cache"
        again = client.get(name, headers={"If-None-Match": f'"x", W/{answer.headers["etag"]}'})
        assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == answer.headers["etag"]
        assert client.get(name, headers={"If-None-Match": '"another"'}).status_code == 200
        head = client.head(name)
        assert head.content == b"" and head.headers["content-length"] == str(len(answer.content))


def test_the_policy_allows_nothing_inline_and_no_other_host(client: TestClient) -> None:
    for answer in (client.get("/"), client.get("/ui/main.js"), client.post("/ui/render", json={"text": "a"})):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' data: blob:;")
        assert "unsafe" not in policy and "//" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_files_keep_to_the_policy() -> None:
    for name, file in pages._page_files().items():
        if name.endswith(".png"):
            continue
        text = file.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://[a-z]", text), name
        if name.endswith(".html"):
            assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script>", text)
        if name.endswith(".js"):
            assert not re.search(r"\beval\(|new Function|setAttribute\(\"style", text), name


def test_the_files_are_small_and_every_file_one_screenful_of_ideas() -> None:
    files = {name: file.body for name, file in pages._page_files().items() if not name.endswith(".png")}
    assert sum(map(len, files.values())) < 200_000
    assert {name: body.count(b"\n") for name, body in files.items() if body.count(b"\n") > 400} == {}


def test_every_module_that_is_imported_is_served() -> None:
    files = pages._page_files()
    for name, file in files.items():
        if name.endswith(".js"):
            for imported in re.findall(r'from "\./([^"]+)"', file.body.decode()):
                assert imported in files, f"{name} imports {imported}"


@pytest.mark.parametrize(
    "path",
    [
        "/ui/",
        "/ui/index.html",
        "/ui/../pages.py",
        "/ui/..%2fpages.py",
        "/ui/%2e%2e/pages.py",
        "/ui/....//pages.py",
        "/ui//etc/passwd",
        "/ui/%2fetc%2fpasswd",
        "/ui/..\\pages.py",
        "/ui/main.js/",
        "/ui/main.js%00",
        "/ui/__init__.py",
        "/ui/page/main.js",
    ],
)
def test_no_other_path_leads_to_a_file(client: TestClient, path: str) -> None:
    assert client.get(path, follow_redirects=False).status_code in (404, 307, 405)
    assert client.get(path).status_code in (404, 405) or path == "/ui/main.js/"  # is sent to /ui/main.js


def test_rendering_over_http(client: TestClient) -> None:
    answer = client.post("/ui/render", json={"text": "# a\n\n*b*"})
    assert answer.json() == {
        "blocks": [{"line": 0, "html": "<h1>a</h1>\n"}, {"line": 2, "html": "<p><em>b</em></p>\n"}]
    }
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"text": 1}', b'{"text": "a", "html": 1}', b"[" * 100_000, b'{"text": "\xff"}', b"null"],
)
def test_a_wrong_body_is_refused_with_an_example(client: TestClient, body: bytes) -> None:
    answer = client.post("/ui/render", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["kimi_code"] == "request.json"
    assert 'expected JSON like {"text": "…"}' in answer.json()["error"]["message"]


def test_too_long_a_text_is_refused(client: TestClient) -> None:
    answer = client.post("/ui/render", json={"text": "a" * 500_000})
    assert (answer.status_code, answer.json()["error"]["kimi_code"]) == (400, "request.text_too_long")


def test_every_text_of_the_page_is_used() -> None:
    scripts = {name: file.body.decode() for name, file in pages._page_files().items() if name.endswith(".js")}
    texts = re.findall(r"^  (\w+):", scripts.pop("words.js"), flags=re.M)
    assert len(texts) > 100
    assert [name for name in texts if not any(f"words.{name}" in script for script in scripts.values())] == []
