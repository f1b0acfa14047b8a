"""A server with the hub's endpoints for one repository, whose connections break as a test wants."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """A repository and how its server behaves.

    files: name -> content. break_after: bytes of a file that one connection brings before it breaks; 0: it breaks
    before the first. token: that must be sent. spoil: whether a file's bytes are changed on the way. continues: whether
    a range is honoured. nonsense: what stands in every answer instead. requests: (method, path, range) of what was
    asked.
    """

    repository: str
    files: dict[str, bytes]
    break_after: int | None = None
    token: str = ""
    spoil: bool = False
    continues: bool = True
    nonsense: Any = None
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def downloads(self) -> list[tuple[str, str, str]]:
        return [request for request in self.requests if request[0] == "GET" and "/resolve/" in request[1]]

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            digest = hashlib.sha256(data).hexdigest()
            lfs = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append({"rfilename": name, "size": len(data), "blobId": "0" * 40, "lfs": lfs})
        return {"_id": "1", "id": self.repository, "modelId": self.repository, "sha": COMMIT, "siblings": siblings}


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """`hub` on a port of its own; hub.url is set."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            wanted = self.headers.get("Range") or ""
            hub.requests.append((self.command, self.path, wanted))
            path = self.path.partition("?")[0]
            if hub.nonsense is not None:
                self.plain(200, hub.nonsense, with_body)
            elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.plain(401, {"error": "no token"}, with_body)
            elif path in (f"/api/models/{hub.repository}", f"/api/models/{hub.repository}/revision/main"):
                self.plain(200, hub.info(), with_body)
            elif path.startswith(f"/{hub.repository}/resolve/") and path.split("/", 5)[5] in hub.files:
                self.file(hub.files[path.split("/", 5)[5]], wanted, with_body)
            else:
                self.plain(404, {"error": "Repository not found"}, with_body)

        def plain(self, status: int, value: Any, with_body: bool) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def file(self, data: bytes, wanted: str, with_body: bool) -> None:
            wanted = wanted if hub.continues else ""
            start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            self.send_response(206 if wanted else 200)
            digest = hashlib.sha256(data).hexdigest()
            for name, value in (
                ("ETag", f'"{digest}"'),
                ("X-Linked-Etag", f'"{digest}"'),
                ("X-Linked-Size", str(len(data))),
                ("X-Repo-Commit", COMMIT),
                ("Accept-Ranges", "bytes"),
                ("Content-Length", str(len(data) - start)),
            ):
                self.send_header(name, value)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if not with_body:
                return
            body = bytes(b ^ 1 for b in data[start:]) if hub.spoil else data[start:]
            if hub.break_after is None or len(body) <= hub.break_after:
                self.wfile.write(body)
                return
            self.wfile.write(body[: hub.break_after])
            self.wfile.flush()
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
