"""A Chromium for tests of the page: Debian's, driven by Playwright. Without one they are skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from page_support import PATIENCE

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
    expect.set_options(timeout=PATIENCE)


FLAGS = [
    "--no-sandbox",  # root in a container has none
    "--disable-dev-shm-usage",  # /dev/shm is small there
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
HERE = Path(__file__).parent
_open = ExitStack()
_shared: dict[str, Any] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Iterator[None]:
    """Closes what the tests of this folder share when the next test is another's. Playwright's event loop, which runs
    in the main thread, would be in its way."""
    yield
    if nextitem is None or not nextitem.path.is_relative_to(HERE):
        _open.close()
        _shared.clear()


def shared(name: str, make: Callable[[], Any]) -> Any:
    """What `make` opens, once for all tests of this folder."""
    if name not in _shared:
        _shared[name] = make()
    return _shared[name]


def slow_browser() -> str:
    """KIMI_SLOW_PAGE=400: what the browser stores and asks for takes that many ms more, as on a very busy machine. What
    fails then reads or reloads too early, the test or the page."""
    delay = int(os.environ.get("KIMI_SLOW_PAGE", 0))
    return (
        delay
        and f"""
      const {{ fetch }} = window;
      window.fetch = async (...asked) => (await new Promise((go) => setTimeout(go, {delay})), fetch(...asked));
      const {{ put }} = IDBObjectStore.prototype;
      IDBObjectStore.prototype.put = function (...record) {{
        const until = performance.now() + {delay};
        const linger = () => performance.now() < until && (this.count().onsuccess = linger);
        linger();
        return put.apply(this, record);
      }};
    """
    )


@pytest.fixture
def browser() -> Browser:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra [test-server]")
    programs = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, programs)), None)
    if program is None:
        pytest.skip(f"needs one of {', '.join(programs)}: apt-get install chromium")

    def launch() -> Browser:
        started = _open.enter_context(playwright.sync_playwright())
        launched: Browser = started.chromium.launch(executable_path=program, args=FLAGS)
        _open.callback(launched.close)
        return launched

    found: Browser = shared("browser", launch)
    return found


@pytest.fixture
def server() -> tuple[Scripted, str]:
    pytest.importorskip("uvicorn", reason="needs the extra [server]")
    from scripted_chat import Scripted, served

    def serve() -> tuple[Scripted, str]:
        scripted = Scripted()
        return scripted, _open.enter_context(served(scripted.app()))

    found: tuple[Scripted, str] = shared("server", serve)
    return found


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
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        for code in filter(None, (script, slow_browser())):
            context.add_init_script(code)
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
