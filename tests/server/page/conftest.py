"""A Chromium for tests of the page: Debian's, driven by Playwright. Without one they are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from scripted_chat import Scripted

FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra [test-server]")
    programs = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, programs)), None)
    if program is None:
        pytest.skip(f"needs one of {', '.join(programs)}: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Scripted, str]]:
    pytest.importorskip("uvicorn", reason="needs the extra [server]")
    from scripted_chat import Scripted, served

    scripted = Scripted()
    with served(scripted.app()) as url:
        yield scripted, url


@pytest.fixture
def scripted(server: tuple[Scripted, str]) -> Scripted:
    server[0].reset()
    return server[0]


@pytest.fixture
def url(server: tuple[Scripted, str]) -> str:
    return server[1]


@pytest.fixture
def open_page(browser: Browser, url: str, scripted: Scripted) -> Iterator[Callable[..., Page]]:
    """open_page(width=…, **context options): a page of its own storage. Fails on errors and foreign requests."""
    wrong: list[str] = []
    contexts = []

    def open_(width: int = 1280, height: int = 800, path: str = "/", script: str = "", **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        if script:
            context.add_init_script(script)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith((url, "blob:", "data:")) else wrong.append(request.url),
        )
        page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
        page.goto(url + path)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()
