"""A real X display: what is typed arrives, the pointer goes where it is sent, and its corner stops the agent."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from waiting import wait_until

from kimi_vl_cpp.agent import X11, DryRun, ScriptedPolicy, Step, everything, run
from kimi_vl_cpp.agent.actions import Click, Done, Drag, Hotkey, Move, Press, Scroll, Write
from kimi_vl_cpp.errors import AgentStopped

PROGRAMS = ("Xvfb", "xterm", "xdotool")
pytestmark = [
    pytest.mark.skipif(bool(missing := [one for one in PROGRAMS if not shutil.which(one)]), reason=f"no {missing}"),
]
pytest.importorskip("mss")


@pytest.fixture(scope="module")
def display():
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "640x480x24", "-nolisten", "tcp", "-noreset"]
    server = subprocess.Popen(command, pass_fds=(writer,), stderr=subprocess.DEVNULL)
    os.close(writer)
    with os.fdopen(reader) as said:
        name = f":{said.readline().strip()}"
    yield name
    server.terminate()
    server.wait()


@pytest.fixture
def typed(display, tmp_path):
    """The file in which a terminal that fills the display keeps what is typed, line by line."""
    file = tmp_path / "typed"
    environment = {**os.environ, "DISPLAY": display, "LC_ALL": "C.UTF-8"}
    command = ["xterm", "-u8", "-geometry", "200x80+0+0", "-e", f"touch {file}; cat >> {file}"]
    terminal = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_until(file.exists, "the terminal runs its command")
    with X11Closing(display) as screen:
        wait_until(lambda: len(screen.observe().picture().getcolors(1 << 20)) > 1, "the terminal is seen")
    yield file
    terminal.kill()
    terminal.wait()


class X11Closing(X11):
    """Closed at the end of a with block, and never waiting: the tests look until something is there."""

    def __init__(self, display):
        super().__init__(display, settle=0)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def test_what_is_typed_arrives(display, typed):
    text = "Ada's 3 + 4 (x) {y} -- ~/file #1"  # other scripts arrive too, on a machine that is not too busy
    steps = [
        Step((Click(0.3, 0.3), Write(text), Press(("enter",)))),
        Step((Scroll(0, 0.5), Hotkey(("shift", "a")))),
        Done("typed"),
    ]
    with X11Closing(display) as screen:
        taken = list(run("Type it", screen, ScriptedPolicy(steps), confirm=everything))
        assert [one.number for one in taken] == [1, 2, 3] and taken[0].observation.size == (640, 480)
        screen.perform(Press(("enter",)))
    wait_until(lambda: typed.read_text().count("\n") == 2, "both lines are typed")
    assert typed.read_text() == f"{text}\nA\n"


def test_the_pointer_goes_where_it_is_sent_and_its_corner_stops(display):
    with X11Closing(display) as screen:
        screen.perform(Move(1, 1))
        assert screen._pointer() == (639, 479)
        screen.perform(Drag(0.1, 0.1, 0.5, 0.5))
        assert screen._pointer() == (320, 240)
        DryRun(screen).perform(Move(0.9, 0.9))
        assert screen._pointer() == (320, 240)
        subprocess.run(["xdotool", "mousemove", "--sync", "0", "0"], env={**os.environ, "DISPLAY": display}, check=True)
        with pytest.raises(AgentStopped) as caught:
            screen.observe()
        assert caught.value.code == "agent.stopped"


def test_a_monitor_or_display_that_is_not_there_is_named(display):
    with pytest.raises(AgentStopped, match="monitor 2: there are 1, from 1"):
        X11(display, monitor=2)
    with pytest.raises(AgentStopped, match="display :99999 cannot be opened") as caught:
        X11(":99999")
    assert caught.value.code == "agent.display"
