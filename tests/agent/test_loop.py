"""The loop: what the policy is told, refusals, limits, the trace, and the model's answers."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from kimi_vl_cpp import cli
from kimi_vl_cpp.agent import DryRun, ModelPolicy, Observation, Outcome, ScriptedPolicy, Step, everything, replay, run
from kimi_vl_cpp.agent.actions import Ask, Click, Done, Fail, Write
from kimi_vl_cpp.agent.environment.x11 import X11
from kimi_vl_cpp.agent.prompts import SYSTEM
from kimi_vl_cpp.errors import AgentStopped
from kimi_vl_cpp.model import KimiVL

CLICK = "## Thought:\nA button.\n## Action:\nPress it.\n## Code:\n```python\npyautogui.click(x=0.5, y=0.5)\n```"
DONE = '## Action:\nStop.\n## Code:\n```python\ncomputer.terminate(status="success", answer="ok")\n```'


class Screen:
    """A screen of one colour, which changes with every action."""

    def __init__(self, still=False):
        self.done, self.still, self.text = [], still, ""

    def observe(self):
        file = io.BytesIO()
        Image.new("RGB", (80, 60), (0 if self.still else len(self.done) * 20, 90, 90)).save(file, "PNG")
        return Observation(file.getvalue(), (80, 60), "a screen")

    def perform(self, action):
        self.done.append(action)
        return Outcome(self.text)

    def close(self):
        pass


def all_of(task, screen, policy, **options):
    return list(run(task, screen, policy, confirm=options.pop("confirm", everything), **options))


def test_steps_are_taken_until_the_task_is_done():
    screen = Screen()
    taken = all_of("Buy", screen, ScriptedPolicy([Click(0.5, 0.5), Step((Write("a"), Done("fine"), Write("b")))]))
    assert screen.done == [Click(0.5, 0.5), Write("a")] and taken[-1].end == Done("fine")
    assert [one.number for one in taken] == [1, 2]
    for end in (Fail("no"), Ask("which?")):
        assert all_of("Buy", Screen(), ScriptedPolicy([end]))[-1].end == end


def test_a_refused_action_is_not_performed_and_the_policy_learns_of_it():
    screen, seen = Screen(), []

    class Watching(ScriptedPolicy):
        def next(self, task, past, observation):
            seen.append([one.result for one in past])
            return super().next(task, past, observation)

    answers = iter(["no", "yes"])
    script = [Step((Click(0.1, 0.1), Write("x"))), Click(0.2, 0.2), Done()]
    all_of("Buy", screen, Watching(script), confirm=lambda action, marked: next(answers))
    assert screen.done == [Click(0.2, 0.2)]
    assert seen == [[], ["the user refused this action"], ["the user refused this action", ""]]


def test_every_stop_has_a_code():
    def code_of(screen, script, **options):
        with pytest.raises(AgentStopped) as caught:
            all_of("Buy", screen, ScriptedPolicy(script), **options)
        return caught.value.code

    assert code_of(Screen(still=True), [Click(0.5, 0.5)] * 5) == "agent.stuck"
    assert code_of(Screen(), [Click(0.5, 0.5)] * 5, max_steps=4) == "agent.limit"
    assert code_of(Screen(), [Click(0.5, 0.5)] * 5, max_minutes=0) == "agent.limit"
    assert code_of(Screen(), [Click(0.5, 0.5)]) == "agent.script"
    assert code_of(Screen(), [Click(0.5, 0.5)], confirm=lambda action, marked: "stop") == "agent.stopped"
    assert code_of(Screen(), [Write("{{B}}")], secrets={"A": "x"}) == "agent.secret"


def test_a_dry_run_performs_nothing():
    screen = Screen()
    taken = all_of("Buy", DryRun(screen), ScriptedPolicy([Click(0.5, 0.5), Done()]))
    assert screen.done == [] and not taken[0].outcomes[0].performed


def test_a_trace_holds_the_run_without_its_secrets_and_runs_again(tmp_path):
    screen = Screen()
    screen.text = "the page said: 'hunter2'"
    script = [Step((Click(0.5, 0.5),), "t", "Press <it>", "", "raw"), Write("{{PASS}}"), Done("ok")]
    all_of("Buy", screen, ScriptedPolicy(script), secrets={"PASS": "hunter2"}, trace=tmp_path / "t")
    assert screen.done[1] == Write("hunter2")
    names = sorted(path.name for path in (tmp_path / "t").iterdir())
    numbered = [f"{n:03d}{kind}.png" for n in (1, 2, 3) for kind in ("-overlay", "")]
    assert names == [*numbered, "index.html", "steps.jsonl"]
    kept = b"".join(path.read_bytes() for path in (tmp_path / "t").iterdir())
    assert b"hunter2" not in kept and b"Press &lt;it&gt;" in kept
    with Image.open(tmp_path / "t" / "001-overlay.png") as marked:
        assert marked.size == (80, 60) and marked.getpixel((40, 30)) == (0, 90, 90)
        assert len(marked.getcolors()) > 1
    task, steps = replay(tmp_path / "t")
    assert (
        task.startswith("Buy")
        and steps[0] == script[0]
        and [s.actions for s in steps[1:]] == [(Write("{{PASS}}"),), (Done("ok"),)]
    )
    with pytest.raises(AgentStopped) as caught:
        all_of("Buy", screen, ScriptedPolicy(script), trace=tmp_path / "t")
    assert caught.value.code == "agent.trace"


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "x\n",
        '{"schema": "other"}\n',
        '{"schema": "kimi-vl agent 1"}\n',
        '{"schema": "kimi-vl agent 1", "task": "t"}\n{}\n',
    ],
)
def test_a_damaged_trace_is_refused(tmp_path, lines):
    (tmp_path / "steps.jsonl").write_text(lines)
    with pytest.raises(AgentStopped) as caught:
        replay(tmp_path)
    assert caught.value.code == "agent.trace"
    bad = {"do": "click", "x": "0", "y": 0, "button": "left", "count": 1}
    one = {"actions": [bad], "thought": "", "action": "", "thinking": "", "raw": ""}
    (tmp_path / "steps.jsonl").write_text(f'{{"schema": "kimi-vl agent 1", "task": "t"}}\n{json.dumps(one)}\n')
    with pytest.raises(AgentStopped):
        replay(tmp_path)


# A model


def prompts_of(monkeypatch, model):
    """The messages and pictures of every request."""
    asked = []
    start = type(model).start

    def noting(self, messages, images=(), **options):
        asked.append((messages, list(images), options))
        return start(self, messages, images, **options)

    monkeypatch.setattr(type(model), "start", noting)
    return asked


@pytest.fixture
def model(script):
    script.context_length = 60000
    with KimiVL("fake-Instruct.gguf", n_ctx=0) as loaded:
        yield loaded


def test_a_model_sees_the_last_three_screenshots_and_no_code_of_the_past(model, script, monkeypatch):
    asked = prompts_of(monkeypatch, model)
    script.answer = CLICK
    screen = Screen()
    with pytest.raises(AgentStopped):
        all_of("Buy two", screen, ModelPolicy(model, max_new_tokens=200), max_steps=5)
    messages, images, options = asked[-1]
    assert len(images) == 3 and options["temperature"] == 0
    assert [one["role"] for one in messages] == ["system"] + ["user", "assistant"] * 3 + ["user"]
    assert messages[0]["content"] == SYSTEM and messages[1]["content"] == "# Task Instruction:\nBuy two"
    earlier = messages[2]["content"]
    assert "# Step 1:" in earlier and "# Step 2:" in earlier and "# Step 3:" not in earlier
    assert "click" not in json.dumps(messages[1:]).lower() and "Press it." in messages[4]["content"]
    assert [p["image"] for m in messages for p in m["content"] if isinstance(p, dict) and p["type"] == "image"] == [
        0,
        1,
        2,
    ]


def test_an_answer_that_cannot_be_performed_is_asked_for_again(model, script, monkeypatch):
    asked = prompts_of(monkeypatch, model)
    script.answer = "I would press the button."
    with pytest.raises(AgentStopped) as caught:
        all_of("Buy", Screen(), ModelPolicy(model))
    assert caught.value.code == "agent.action" and len(asked) == 3
    messages, _, options = asked[1]
    assert messages[-2]["content"] == script.answer and "no code" in messages[-1]["content"]
    assert options["temperature"] == 0.2 and options["seed"] == 1


# The command and the display


def test_the_command_says_what_is_missing(script, tmp_path, capsys, monkeypatch):
    (tmp_path / "m-Instruct.gguf").touch()
    line = ["agent", "-m", f"{tmp_path}/m-Instruct.gguf"]
    monkeypatch.delenv("DISPLAY", raising=False)
    for more, code, word in (
        (["Buy"], 2, "--url PAGE"),
        (["--url", "x.html"], 2, "no task"),
        (["--url", "x.html", "--yes", "clicks", "Buy"], 2, "request.yes"),
        (["--url", f"{tmp_path}/none.html", "Buy"], 1, "agent.url"),
        (["--url", "http://localhost", "Buy"], 1, "agent.host"),
        (["--url", "http://localhost", "--allow", "localhost", "--browser", "nothing", "Buy"], 1, "agent.browser"),
        (["--x11", "", "Buy"], 1, "agent.display"),
        (["--url", "x.html", "--secret", "NO_SUCH_VARIABLE", "Buy"], 2, "--secret"),
        (["--url", "x.html", "--replay", f"{tmp_path}/none"], 1, "agent.trace"),
    ):
        assert cli.main([*line, *more]) == code, more
        assert word in capsys.readouterr().err


class Xdotool:
    """Notes what is asked of it, and where the pointer is."""

    def __init__(self):
        self.asked, self.at, self.lost = [], (5, 50), False

    def __call__(self, arguments):
        self.asked.append(list(arguments))
        if arguments[0] == "mousemove" and not self.lost:
            self.at = int(arguments[2]), int(arguments[3])
        return f"X={self.at[0]}\nY={self.at[1]}\nSCREEN=0\n" if arguments[0] == "getmouselocation" else ""


@pytest.fixture
def display():
    """A display of which only xdotool's commands are seen."""
    made = X11.__new__(X11)
    made._area = {"left": 100, "top": 0, "width": 1000, "height": 500}
    made._run, made._settle, made._expected, made.notices = Xdotool(), 0, None, []
    return made


def test_a_display_is_acted_on_by_checked_commands(display):
    from kimi_vl_cpp.agent.actions import Drag, Hotkey, Press, Scroll

    for action in (Click(0.5, 1, "right", 2), Write("-x é"), Press(("enter",)), Hotkey(("ctrl", "+")), Scroll(0, -0.2)):
        display.perform(action)
    done = [one for one in display._run.asked if one[0] != "getmouselocation"]
    assert done == [
        ["mousemove", "--sync", "600", "499"],
        ["click", "--repeat", "2", "--delay", "80", "3"],
        ["type", "--delay", "12", "--", "-x "],
        ["type", "--delay", "150", "--", "é"],
        ["key", "--", "Return"],
        ["key", "--", "ctrl+plus"],
        ["mousemove", "--sync", "600", "250"],
        ["click", "--repeat", "2", "4"],
    ]
    display.perform(Drag(0.1, 0.1, 0.2, 0.2))
    assert [one[0] for one in display._run.asked[-7:] if one[0] != "getmouselocation"][-3:] == [
        "mousedown",
        "mousemove",
        "mouseup",
    ]
    display._run.lost = True
    with pytest.raises(AgentStopped) as caught:
        display.perform(Click(0.9, 0.9))
    assert caught.value.code == "agent.display"


def test_a_pointer_pushed_into_the_corner_stops_the_agent(display):
    display.perform(Click(0.5, 0.5))
    display._run.at = (100, 0)
    with pytest.raises(AgentStopped) as caught:
        display.perform(Write("x"))
    assert caught.value.code == "agent.stopped"
