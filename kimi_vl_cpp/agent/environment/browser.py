"""A page in Chromium, driven by Playwright: the extra `agent` and a Chromium that is installed.

Owns what the browser may reach, dialogs, new tabs, and waiting for the page to settle. Everything of Playwright happens
in one thread of its own, because its synchronous interface wants one without an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from ...errors import AgentStopped, Unsupported
from .. import actions
from ..actions import Action
from ..keys import for_browser
from .base import Observation, Outcome, pixel
from .hosts import Hosts

VIEWPORT = (1280, 720)
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge", "microsoft-edge")

_SETTLE_S = 1.0  # at most, for two equal screenshots
_NETWORK_MS = 2000
_TIMEOUT_MS = 30_000

T = TypeVar("T")


class Browser:
    """An `Environment`: one page, which follows new tabs. Nothing but the allowed hosts is reached, downloads and file
    choosers are refused, and nothing outlives it."""

    def __init__(
        self,
        url: str,
        *,
        allow: Iterable[str] = (),
        program: str | os.PathLike[str] | None = None,
        viewport: tuple[int, int] = VIEWPORT,
        scale: float = 1.0,
        visible: bool = False,
    ) -> None:
        """url: the page to begin with, an address or the path of an HTML file. allow: hosts that may be reached; the
        first page's has to be among them, and files may be below its folder. program: the browser, None for the first
        of PROGRAMS on the PATH. scale: device pixels a CSS pixel. visible: in a window.

        Raises AgentStopped (codes "agent.browser", "agent.host"), Unsupported (code "unsupported.extra").
        """
        self._start = _address(url)
        parts = urlsplit(self._start)
        folder = Path(unquote(parts.path)).resolve().parent if parts.scheme == "file" else None
        self.hosts = Hosts(allow, folder)
        if not self.hosts.allows(self._start, visit=True):
            raise self.hosts.refused(self._start)
        self._program = _find_program(program)
        self._viewport, self._scale, self._visible = viewport, scale, visible
        self.notices: list[str] = []
        self._said: list[str] = []  # what happened since the last action and is not on the screen
        self._blocked: str | None = None
        self._api = _playwright()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="browser")
        try:
            self._do(self._launch)
        except BaseException:
            self.close()
            raise

    def observe(self) -> Observation:
        """The viewport, in CSS pixels."""
        return self._do(self._observe)

    def perform(self, action: Action) -> Outcome:
        """Raises AgentStopped (code "agent.host") when the page was to go where it may not."""
        return self._do(self._perform, action)

    def close(self) -> None:
        """Ends the browser."""
        self._thread.submit(self._end)
        self._thread.shutdown(wait=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # In the thread

    def _do(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return self._thread.submit(work, *arguments).result()
        except self._api.Error as error:
            raise AgentStopped(f"the browser: {_first_line(error)}", "agent.browser") from None

    def _launch(self) -> None:
        self._playwright = self._api.sync_playwright().start()
        with contextlib.suppress(RuntimeError):  # a driver that Ctrl-C has ended too need not be reported by its loop
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        excluded = ", ".join(f"EXCLUDE {name}" for name in self.hosts.names)
        flags = [
            "--disable-dev-shm-usage",
            f"--host-resolver-rules=MAP * ~NOTFOUND{', ' + excluded if excluded else ''}",
        ]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")
            self.notices.append("the browser runs as root and so without its sandbox: use another account")
        self._browser = self._playwright.chromium.launch(
            executable_path=self._program, args=flags, headless=not self._visible
        )
        width, height = self._viewport
        self._context = self._browser.new_context(
            viewport={"width": width, "height": height},
            device_scale_factor=self._scale,
            accept_downloads=False,
            service_workers="block",
        )
        self._context.set_default_timeout(_TIMEOUT_MS)
        self._context.route("**/*", self._route)
        self._context.route_web_socket(re.compile(".*"), self._route_socket)
        self._context.on("request", self._watch)
        self._context.on("page", self._follow)
        self._page = self._context.new_page()
        self._page.goto(self._start)
        self._settle()
        self._said.clear()

    def _end(self) -> None:
        for owner, name in ((getattr(self, "_browser", None), "close"), (getattr(self, "_playwright", None), "stop")):
            if owner is not None:
                getattr(owner, name)()

    def _route(self, route: Any) -> None:
        """Lets a request through or not. A page that may not be visited is answered with nothing, which leaves the tab
        where it is: aborting would lose the page."""
        request = route.request
        visit = self._is_visit(request)
        if self.hosts.allows(request.url, visit=visit):
            route.continue_()
        elif visit:
            self._blocked = request.url
            route.fulfill(status=204)
        else:
            route.abort()

    def _route_socket(self, socket: Any) -> None:
        if self.hosts.allows(socket.url, visit=False):
            socket.connect_to_server()
        else:
            socket.close()

    def _watch(self, request: Any) -> None:
        """Redirects do not pass through `_route`; the resolver's rules stop them, and this says where they went."""
        redirected = request.redirected_from is not None and self._is_visit(request)
        if redirected and not self.hosts.allows(request.url, visit=True):
            self._blocked = request.url

    def _is_visit(self, request: Any) -> bool:
        """Whether a request is for what the tab is to show, not for a part of the page."""
        if not request.is_navigation_request():
            return False
        try:
            return request.frame.parent_frame is None
        except self._api.Error:  # a new tab, which has no frame yet
            return True

    def _follow(self, page: Any) -> None:
        """Makes a new tab the current one."""
        if hasattr(self, "_page"):
            self._said.append("a new tab opened, and is shown now")
        self._page = page
        page.on("dialog", self._dismiss)
        page.on("filechooser", lambda chooser: self._said.append("a file chooser opened and was closed"))
        page.on("download", lambda download: self._said.append("a download was refused"))
        page.on("close", lambda closed: self._back())

    def _back(self) -> None:
        if self._context.pages:
            self._page = self._context.pages[-1]
            self._said.append("the tab was closed; the one before is shown")

    def _dismiss(self, dialog: Any) -> None:
        self._said.append(f"the page said: {dialog.message[:500]!r}")
        if dialog.type in ("alert", "beforeunload"):
            dialog.accept()
        else:
            self._said[-1] += " and was answered with cancel"
            dialog.dismiss()

    def _observe(self) -> Observation:
        png = self._page.screenshot(scale="css")
        self._check_blocked()
        return Observation(png, self._viewport, self._page.url)

    def _perform(self, action: Action) -> Outcome:
        self._check_blocked()
        self._said.clear()
        if isinstance(action, actions.Navigate) and not self.hosts.allows(action.url, visit=True):
            raise self.hosts.refused(action.url)
        try:
            self._act(action)
            if not isinstance(action, actions.Wait):
                self._settle()
        except self._api.Error:  # a page that was not let go where it wanted may end the call too
            self._check_blocked()
            raise
        self._check_blocked()
        if not self.hosts.allows(self._page.url, visit=True):
            raise self.hosts.refused(self._page.url)
        return Outcome("; ".join(self._said))

    def _check_blocked(self) -> None:
        """Raises AgentStopped when the page was to go where it may not, once: a slow page may try after the action that
        made it."""
        blocked, self._blocked = self._blocked, None
        if blocked is not None:
            raise self.hosts.refused(blocked)

    def _act(self, action: Action) -> None:
        page = self._page
        mouse, keyboard = page.mouse, page.keyboard
        match action:
            case actions.Click(x, y, button, count):
                mouse.click(*self._at(x, y), button=button, click_count=count)
            case actions.Move(x, y):
                mouse.move(*self._at(x, y))
            case actions.Drag(x0, y0, x1, y1):
                if x0 is not None and y0 is not None:
                    mouse.move(*self._at(x0, y0))
                mouse.down()
                mouse.move(*self._at(x1, y1), steps=10)
                mouse.up()
            case actions.Scroll(dx, dy, x, y):
                mouse.move(*self._at(0.5 if x is None else x, 0.5 if y is None else y))
                mouse.wheel(dx * self._viewport[0], dy * self._viewport[1])
            case actions.Write(text):
                keyboard.type(text)
            case actions.Press(keys):
                for key in keys:
                    keyboard.press(for_browser(key))
            case actions.Hotkey(keys):
                keyboard.press("+".join(map(for_browser, keys)))
            case actions.Wait(seconds):
                page.wait_for_timeout(seconds * 1000)
            case actions.Navigate(url):
                page.goto(url)
            case _:
                raise AgentStopped(f"a browser cannot do this: {actions.in_words(action)}", "agent.action")

    def _at(self, x: float, y: float) -> tuple[int, int]:
        """The CSS pixel of shares, at any scale of the screen."""
        return pixel(x, self._viewport[0]), pixel(y, self._viewport[1])

    def _settle(self) -> None:
        """Waits until the network is idle, and then for two equal screenshots, for a second at most."""
        with contextlib.suppress(self._api.TimeoutError):
            self._page.wait_for_load_state("networkidle", timeout=_NETWORK_MS)
        deadline, before = time.monotonic() + _SETTLE_S, b""
        while (shown := self._page.screenshot(scale="css")) != before and time.monotonic() < deadline:
            before = shown


def _address(url: str) -> str:
    """An address as it is; a file's path as one."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url):
        return url
    path = Path(url).expanduser()
    if not path.is_file():
        raise AgentStopped(f"{url}: no such file, and not an address: expected http://... or an HTML file", "agent.url")
    return path.resolve().as_uri()


def _find_program(program: str | os.PathLike[str] | None) -> str:
    if program is not None:
        found = shutil.which(os.path.expanduser(os.fspath(program)))
        if found is None:
            raise AgentStopped(f"{os.fspath(program)}: not a program: name a Chromium or Chrome", "agent.browser")
        return found
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise AgentStopped(
            f"no browser: none of {', '.join(PROGRAMS)} is installed: apt install chromium, or name one",
            "agent.browser",
        )
    return found


def _playwright() -> Any:
    try:
        return importlib.import_module("playwright.sync_api")
    except ImportError:
        raise Unsupported(
            "an agent in a browser needs Playwright: pip install 'kimi-vl-cpp[agent]'", "unsupported.extra"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
