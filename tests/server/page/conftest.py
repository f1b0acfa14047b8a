"""A Chromium for tests of the page: Debian's, driven by Playwright. Without one they are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from scripted_chat import Scripted


@pytest.fixture(scope="module", autouse=True)
def patience() -> None:
    """Busy machines are slow: a test fails by what it sees, not by when."""
    try:
        from playwright.sync_api import expect
    except ImportError:
        return
    expect.set_options(timeout=20_000)


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
def url(server: tuple[Scripted, str], scripted: Scripted) -> str:
    return server[1]


@pytest.fixture
def open_page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    """open_page(width=…, base=address, **context options): a page of its own storage, of the scripted server unless
    `base` is another's. Fails on errors, breaches of the policy and foreign requests."""
    wrong: list[str] = []
    contexts = []

    def open_(width: int = 1280, height: int = 800, base: str = "", script: str = "", **options: Any) -> Page:
        base = base or request.getfixturevalue("url")
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        if script:
            context.add_init_script(script)
        page = context.new_page()

        def check(asked: str) -> None:
            if not asked.startswith((base, "blob:", "data:")):
                wrong.append(asked)

        page.on("request", lambda made: check(made.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
        page.goto(base)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()
