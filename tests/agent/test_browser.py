"""A real Chromium on real pages: one browser for the file. Without one the tests are skipped."""

from __future__ import annotations

import http.server
import io
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from kimi_vl_cpp import cli
from kimi_vl_cpp.agent import ModelPolicy, ScriptedPolicy, everything, run
from kimi_vl_cpp.agent.actions import Click, Done, Drag, Hotkey, Navigate, Press, Scroll, Wait, Write
from kimi_vl_cpp.agent.environment.browser import PROGRAMS, Browser
from kimi_vl_cpp.errors import AgentStopped
from kimi_vl_cpp.model import KimiVL

WEB = Path(__file__).parent / "web"
WIDTH, HEIGHT = 640, 720

pytest.importorskip("playwright.sync_api", reason="needs the extra [agent]")
if not any(map(shutil.which, PROGRAMS)):
    pytest.skip(f"needs one of {', '.join(PROGRAMS)}", allow_module_level=True)


class Pages(http.server.SimpleHTTPRequestHandler):
    """The pages, and an address that leads elsewhere."""

    def do_GET(self):
        if self.path != "/leave":
            super().do_GET()
            return
        self.send_response(302)
        self.send_header("Location", "http://forbidden.example/")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Pages, directory=str(WEB)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/shop.html"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def shop(address):
    with Browser(address, allow=["127.0.0.1"], viewport=(WIDTH, HEIGHT), scale=1.5) as browser:
        yield browser


@pytest.fixture
def page(shop, address):
    shop._blocked = None  # of the test before
    shop.perform(Navigate(address))
    return shop


def at(x, y):
    """Shares of a place in CSS pixels."""
    return x / WIDTH, y / HEIGHT


def log(browser):
    """What the page noted."""
    return browser._do(lambda: browser._page.inner_text("#log"))


BUY, FIELD, SELECT, ALERT, MORE, FORBIDDEN, REDIRECT, FILE = (at(100, 100 + 60 * n) for n in range(8))
TASKS = [
    ([Click(*BUY)], "bought"),
    ([Click(*BUY, "right")], "menu"),
    ([Click(*BUY, count=2)], "bought bought twice"),
    ([Click(*FIELD), Write("Grüße 你好\n")], "sent Grüße 你好"),
    ([Click(*FIELD), Write("ab"), Hotkey(("ctrl", "a")), Press(("backspace", "x", "enter"))], "sent x"),
    ([Click(*SELECT), Press(("down", "enter"))], "chose two"),
    ([Scroll(0, 5), Click(*at(100, HEIGHT - 80))], "bottom"),
    ([Drag(*at(90, 580), *at(350, 580))], "down up"),
    ([Wait(0), Click(*at(5, 5))], ""),
]


@pytest.mark.parametrize(("script", "expected"), TASKS, ids=[task[1] or "nothing" for task in TASKS])
def test_a_scripted_task_is_done(page, script, expected):
    taken = list(run("Buy", page, ScriptedPolicy([*script, Done()]), confirm=everything))
    assert taken[-1].end == Done() and log(page) == expected


def test_a_screenshot_has_the_size_of_the_page_at_any_scale(page):
    seen = page.observe()
    with Image.open(io.BytesIO(seen.png)) as picture:
        assert picture.size == seen.size == (WIDTH, HEIGHT)
    assert seen.where.endswith("/shop.html") and seen.digest == page.observe().digest


def test_what_the_screen_does_not_show_is_in_the_outcome(page):
    assert page.perform(Click(*ALERT)).text == "the page said: 'Sold out'"
    assert "a file chooser opened" in page.perform(Click(*FILE)).text
    outcome = page.perform(Click(*MORE))
    assert "a new tab opened" in outcome.text and page.observe().where.endswith("/more.html")
    page._do(lambda: page._page.close())
    assert page.observe().where.endswith("/shop.html")


@pytest.mark.parametrize("action", [Click(*FORBIDDEN), Click(*REDIRECT), Navigate("http://forbidden.example/")])
def test_no_other_host_is_reached(page, action):
    with pytest.raises(AgentStopped) as caught:
        page.perform(action)
        page.observe()  # a slow page leaves after the action
    assert caught.value.code == "agent.host" and "forbidden.example" in str(caught.value)
    if action == Click(*FORBIDDEN):
        assert page.observe().where.endswith("/shop.html")  # the page is not lost


def test_a_model_does_a_task(page, script):
    script.context_length = 60000
    script.answer = (
        f"## Action:\nBuy.\n## Code:\n```python\npyautogui.click({BUY[0]:.3f}, {BUY[1]:.3f})\ncomputer.terminate()\n```"
    )
    with KimiVL("fake-Instruct.gguf", n_ctx=0) as model:
        taken = list(run("Buy", page, ModelPolicy(model, image_patches=64), confirm=everything))
    assert log(page) == "bought" and taken[0].step.action_text == "Buy."


class Kept:
    """The browser of all tests, which a command does not close."""

    notices = ("a notice",)

    def __init__(self, browser):
        self.observe, self.perform = browser.observe, browser.perform

    def close(self):
        pass


def test_the_command_leaves_a_trace_that_runs_again(page, address, script, tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("kimi_vl_cpp.agent.Browser", lambda url, **how: opened.append((url, how)) or Kept(page))
    script.context_length = 60000
    x, y = 100 / WIDTH, 100 / HEIGHT
    script.answer = f"```\nclick({x:.3f}, {y:.3f})\nterminate(answer='done it')\n```"
    (tmp_path / "m-Instruct.gguf").touch()
    line = ["agent", "-m", f"{tmp_path}/m-Instruct.gguf", "-c", "60000", "--url", address, "--allow", "127.0.0.1"]
    line += ["--viewport", f"{WIDTH}x{HEIGHT}", "--image-patches", "64"]
    assert cli.main([*line, "--yes", "click", "--trace", f"{tmp_path}/t", "Buy"]) == 0
    assert capsys.readouterr().out == "done it\n"
    how = {"allow": ("127.0.0.1",), "program": None, "viewport": (WIDTH, HEIGHT), "visible": False}
    assert opened == [(address, how)]
    assert cli.main([*line, "--replay", f"{tmp_path}/t", "--yes", "all"]) == 0
