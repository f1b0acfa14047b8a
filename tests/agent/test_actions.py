"""What an answer's code means: parsed, never executed; the words of actions, keys, confirmation, secrets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_vl_cpp.agent import actions, code, confirm, keys
from kimi_vl_cpp.agent.actions import (
    Ask,
    Click,
    Done,
    Drag,
    Fail,
    Hotkey,
    Move,
    Navigate,
    Press,
    Scroll,
    Wait,
    Write,
)
from kimi_vl_cpp.agent.environment.hosts import Hosts
from kimi_vl_cpp.agent.secrets import Secrets
from kimi_vl_cpp.errors import AgentStopped, BadRequest

CALLS = [
    ("click(x=0.884, y=0.144)", Click(0.884, 0.144)),
    ("pyautogui.click(0.5, .25)", Click(0.5, 0.25)),
    ("pyautogui.click((0.5, 0.25), clicks=2, button='right')", Click(0.5, 0.25, "right", 2)),
    ("pyautogui.doubleClick(x=0.5, y=0.25, interval=0.1)", Click(0.5, 0.25, "left", 2)),
    ("computer.triple_click(0.5, 0.25)", Click(0.5, 0.25, "left", 3)),
    ("rightClick(1, 0)", Click(1, 0, "right")),
    ("middleClick(1.004, -0.004)", Click(1, 0, "middle")),
    ("pyautogui.moveTo(0.1, 0.2, duration=0.5)", Move(0.1, 0.2)),
    ("dragTo(0.1, 0.2, button='left')", Drag(None, None, 0.1, 0.2)),
    ("drag(from_coord=[0.1, 0.2], to_coord=[0.3, 0.4])", Drag(0.1, 0.2, 0.3, 0.4)),
    ("scroll(-5)", Scroll(0, 0.5)),
    ("pyautogui.scroll(3, x=0.5, y=0.5)", Scroll(0, pytest.approx(-0.3), 0.5, 0.5)),
    ("scroll(page=-0.1)", Scroll(0, 0.1)),
    ("pyautogui.hscroll(10)", Scroll(1, 0)),
    ("pyautogui.write('Gr\u00fc\u00dfe, \u4f60\u597d', interval=0.05)", Write("Gr\u00fc\u00dfe, \u4f60\u597d")),
    ("typewrite(message='a')", Write("a")),
    ("press('Return')", Press(("enter",))),
    ("press(['tab', 'a'], presses=2)", Press(("tab", "a", "tab", "a"))),
    ("pyautogui.hotkey('ctrl', 'C')", Hotkey(("ctrl", "c"))),
    ("hotkey(keys=['command', '+'])", Hotkey(("win", "+"))),
    ("computer.wait()", Wait(1)),
    ("time.sleep(600)", Wait(20)),
    ("browser.goto('http://localhost/')", Navigate("http://localhost/")),
    ('computer.terminate(status="success", answer="42")', Done("42")),
    ("terminate('failure')", Fail()),
    ("ask('Which?')", Ask("Which?")),
]


@pytest.mark.parametrize(("source", "expected"), CALLS)
def test_a_known_call_is_an_action(source, expected):
    (found,) = code.parse(f"import pyautogui\n{source}")
    assert found == expected and actions.in_words(found)
    assert actions.from_dict(actions.to_dict(found)) == found


REFUSED = [
    "",
    "import os",
    "os.system('id')",
    "__import__('os').system('id')",
    "pyautogui.click(__import__('os').getpid(), 0)",
    "exec('1')",
    "x = click(0.5, 0.5)",
    "while True: click(0.5, 0.5)",
    "click(x=0.5, y=0.5) or 1",
    "click(*[0.5, 0.5])",
    "click(**{'x': 0.5, 'y': 0.5})",
    "click(x=screen_width * 0.5, y=0.5)",
    "click(x=412, y=88)",
    "click(x=1e999, y=0)",
    "click(x=True, y=0)",
    "click(x=0.5)",
    "click(0.5, 0.5, 0.5, 0.5, 9)",
    "click(0.5, 0.5, clicks=99)",
    "click(0.5, 0.5, button='wheel')",
    "click(0.5, 0.5, colour='red')",
    "press('Quux')",
    "press([])",
    "keyDown('ctrl')",
    "scroll(0)",
    "scroll('down')",
    "write(5)",
    "write('" + "a" * 3000 + "')",
    "wait(-1)",
    "terminate(status='maybe')",
    "click(0.5, 0.5)\n" * 21,
    "click(0.5, 0.5)  # " + "a" * 5000,
    "-" * 3000 + "1",
    "(" * 3000,
    'write("\\ud800")',
    "click(0.5, 0.5",
]


@pytest.mark.parametrize("source", REFUSED)
def test_anything_else_is_refused_with_its_source(source):
    with pytest.raises(AgentStopped) as caught:
        code.parse(source)
    assert caught.value.code == "agent.action" and len(str(caught.value)) < 500


@given(st.text(alphabet="click(xy=0.5,)'\"[]{}*\n pyautogui.write\\-e9_", max_size=80))
def test_any_code_gives_actions_or_a_typed_error(source):
    try:
        found = code.parse(source)
    except AgentStopped:
        return
    assert found


def test_sections_and_the_last_block_of_an_answer():
    answer = (
        "## Thought\nA button (pyautogui.click(0.9, 0.9)).\n\n## Action:\nPress it.\n\n## Code:\n"
        "```python\npyautogui.click(x=0.1, y=0.1)\n```\nor better\n```python\npyautogui.click(x=0.2, y=0.2)\n```"
    )
    found = code.read_answer(answer)
    assert (found.thought[:8], found.action_text, found.actions) == ("A button", "Press it.", (Click(0.2, 0.2),))
    paper = "Thought: There it is.\nAction: Press it.\nToolcall: click(x=0.884, y=0.144)"
    assert code.read_answer(paper) == code.Written("There it is.", "Press it.", (Click(0.884, 0.144),))
    with pytest.raises(AgentStopped):
        code.read_answer("I would click(0.5, 0.5) on the button.")


def test_every_key_has_a_name_in_a_browser_and_on_a_display():
    found = {name: keys.canonical(name) for name in ("ctrl", "Enter", "PgDn", "F12", "A", "7", "+", " ", "command")}
    assert [keys.for_browser(name) for name in found.values()] == [
        "Control", "Enter", "PageDown", "F12", "a", "7", "+", "Space", "Meta"
    ]  # fmt: skip
    assert [keys.for_x11(name) for name in found.values()] == [
        "ctrl", "Return", "Next", "F12", "a", "7", "plus", "space", "super"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("action", "grave"),
    [
        (Click(0, 0), False),
        (Write("a"), False),
        (Write("a\n"), True),
        (Press(("a",)), False),
        (Press(("a", "enter")), True),
        (Hotkey(("ctrl", "enter")), True),
        (Drag(0, 0, 1, 1), True),
        (Navigate("http://localhost"), True),
    ],
)
def test_what_may_send_something_is_asked_about_unless_all_is_allowed(action, grave):
    asked = []
    decide = confirm.relaxed(actions.KINDS, lambda action, marked: asked.append(action) or "no")
    assert decide(action, None) == ("no" if grave else "yes") and bool(asked) == grave
    assert confirm.relaxed(["all"])(action, None) == "yes"
    assert confirm.relaxed([], lambda action, marked: "stop")(action, None) == "stop"


def test_nobody_is_asked_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(AgentStopped) as caught:
        confirm.ask(Click(0.5, 0.5), None)
    assert caught.value.code == "agent.confirm"
    with pytest.raises(BadRequest):
        confirm.relaxed(["clicks"])


def test_secrets_are_put_in_and_taken_out():
    secrets = Secrets({"PASS": "hunter2"})
    assert secrets.revealed(Write("my {{PASS}} and {{ PASS }}")) == Write("my hunter2 and hunter2")
    assert secrets.hidden("you typed hunter2") == "you typed {{PASS}}"
    assert Secrets().revealed(Write("{{x}}")) == Write("{{x}}")
    with pytest.raises(AgentStopped) as caught:
        secrets.revealed(Write("{{OTHER}}"))
    assert caught.value.code == "agent.secret"
    for bad in ({"a b": "x"}, {"a": ""}):
        with pytest.raises(BadRequest):
            Secrets(bad)


ALLOWED = [
    ("http://localhost/x", True),
    ("https://LOCALHOST.:9/x", True),
    ("ws://localhost/x", True),
    ("http://shop.example:8080/", True),
    ("http://shop.example/", False),
    ("http://localhost@evil.example/", False),
    ("http://user@localhost/", False),
    ("http://localhost.evil.example/", False),
    ("http://[::1]/", False),
    ("http://[broken/", False),
    ("ftp://localhost/", False),
    ("chrome://settings", False),
    ("javascript:alert(1)", False),
    ("data:text/html,x", False),
    ("about:blank", True),
]


@pytest.mark.parametrize(("url", "expected"), ALLOWED)
def test_only_allowed_hosts_are_visited(url, expected):
    assert Hosts(["localhost", "shop.example:8080"]).allows(url, visit=True) == expected


def test_files_are_visited_below_the_first_folder_alone(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "out").symlink_to(tmp_path)
    hosts = Hosts([], tmp_path / "site")
    base = f"file://{tmp_path}/site"
    assert hosts.allows(f"{base}/a.html", visit=True)
    for outside in (f"file://{tmp_path}/a.html", f"{base}/../a.html", f"{base}/%2e%2e/a.html", f"{base}/out/a.html"):
        assert not hosts.allows(outside, visit=True)
    assert not Hosts([]).allows(f"{base}/a.html", visit=True) and hosts.allows("data:image/png,x", visit=False)
    for bad in ("", "http://localhost", "a b", "a/b"):
        with pytest.raises(AgentStopped):
            Hosts([bad])
