"""`kimi-vl chat` and `kimi-vl run` as a person meets them: a real terminal (pty), a real process, a tiny model."""

from __future__ import annotations

import json
import os
import re
import sys
import time

import numpy as np
import pytest
from PIL import Image

from kimi_vl_cpp.testing import make_tiny_model

pexpect = pytest.importorskip("pexpect")

READY = r"\x1b\[\?2004h.*?\x1b\[\?12l\x1b\[\?25h"  # the editor has taken the terminal and drawn itself
TAKEN = r"\x1b\[\?2004l"  # it has given the terminal back: a message was accepted
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[>=]|\x1b\][^\x07]*\x07")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my pictures")
    generator = np.random.default_rng(0)
    for index, (width, height) in enumerate([(56, 56), (84, 56), (56, 112)]):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photo {index}.png")
    return folder


@pytest.fixture
def spawn(tiny, tmp_path):
    """Starts `kimi-vl` on a pty of 24 x 100. model="": the built-in one."""
    children = []

    def start(*arguments, model=None, **environment):
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        env = {**os.environ, "HOME": str(home), "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **environment}
        for name in ("XDG_STATE_HOME", "NO_COLOR", "KIMI_VL_LOG"):
            if name not in environment:
                env.pop(name, None)
        named = [] if model == "" else ["-m", str(model or tiny.text)]
        command = ["-m", "kimi_vl_cpp", arguments[0], *named, *arguments[1:]]
        # Ctrl-C makes the terminal forget what it has not shown yet, be it half a character.
        child = pexpect.spawn(
            sys.executable,
            command,
            env=env,
            dimensions=(24, 100),
            encoding="utf-8",
            codec_errors="replace",
            timeout=120,
        )
        child.delaybeforesend = 0.05
        children.append(child)
        return child

    yield start
    for child in children:
        child.close(force=True)


def chat(spawn, *arguments, **environment):
    child = spawn("chat", "--temp", "0", "-n", "8", *arguments, **environment)
    child.expect("lists the commands")
    child.expect(READY)
    return child


def say(child, text):
    """Types a line and waits until the next one can be typed; returns what was shown in between, without escapes."""
    child.send(text)
    child.send("\r")
    child.expect(TAKEN)
    child.expect(READY)
    return ESCAPES.sub("", child.before)


def wait_for_the_answer(child):
    """Returns when a good part of the answer to what was typed has been shown."""
    child.expect(TAKEN)
    child.expect("(?s).{400}")


def leave_by_ctrl_c(child):
    """Ctrl-C until it leaves, which takes two within a second: a busy machine may be slower."""
    child.sendintr()
    while child.expect([pexpect.EOF, READY]) != 0:
        child.sendintr()
    child.wait()
    return child.exitstatus


def leave(child):
    child.sendeof()
    child.expect(pexpect.EOF)
    child.wait()
    return child.exitstatus


def test_a_conversation_over_three_pictures_and_five_turns(spawn, pictures):
    child = chat(spawn, "--timings")
    assert "tokens of context" not in say(child, "/help")
    assert "photo 0.png: 56x56" in say(child, f"'{pictures}/photo 0.png'")
    first = say(child, "What is this?")
    assert "pictures" in first
    assert "photo 1.png: 84x56" in say(child, f"/image {pictures}/photo 1.png")
    second = say(child, "And this?")
    assert "of them known" in second
    escaped = str(pictures).replace(" ", "\\ ")
    assert "photo 2.png: 56x112" in say(child, f"{escaped}/photo\\ 2.png")
    third = say(child, "Compare all three.")
    fourth = say(child, "Which is largest?")
    fifth = say(child, "Thank you.")
    for answer in (fourth, fifth):  # no picture is encoded again, and only the new part of the prompt is computed
        assert "pictures 0.00 s" in answer
        total, known = (
            int(n.replace(",", "")) for n in re.search(r"\(([\d,]+) tokens, ([\d,]+) of them", answer).groups()
        )
        assert total - known < 60 and known > 2 * (total - known)
    assert "of them known" in third
    stats = say(child, "/stats")
    assert "context" in stats and "memory" in stats
    assert leave(child) == 0


@pytest.fixture(scope="module")
def talkative(tiny, tmp_path_factory):
    """A model that never ends its answer, with room for minutes of it."""

    def silence_the_end(tensors):
        for token in ("<|im_end|>", "[EOS]", "<|im_user|>", "<|im_assistant|>", "[EOT]"):
            if token in tiny.special:
                tensors["output.weight"][tiny.special[token]] = 0  # a logit of 0 is never the largest

    folder = tmp_path_factory.mktemp("talkative")
    return make_tiny_model(folder, seed=0, edit=silence_the_end, max_position_embeddings=131072)


def test_ctrl_c_stops_the_answer_and_again_leaves(spawn, talkative):
    child = spawn("chat", "--temp", "0", "-n", "100000", "-c", "131072", model=talkative.text)
    child.expect(READY)
    child.send("hello\r")
    wait_for_the_answer(child)
    child.sendintr()
    child.expect("Stopped. /regen answers again, /undo takes the question back")
    child.expect(READY)
    time.sleep(1.1)  # longer than two Ctrl-C that leave may lie apart
    assert "0 questions left" in say(child, "/undo")
    child.send("hello\r")
    wait_for_the_answer(child)
    child.sendintr()
    child.expect("Stopped")
    child.expect(READY)
    assert leave_by_ctrl_c(child) == 130


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_at_once(spawn, talkative):
    child = spawn("chat", "--temp", "0", "-n", "100000", "-c", "131072", model=talkative.text)
    child.expect(READY)
    child.send("hello\r")
    wait_for_the_answer(child)
    started = time.monotonic()
    child.sendintr()
    child.expect("Stopped")
    assert time.monotonic() - started < 2  # 0.2 s are promised


def test_ctrl_c_at_an_empty_prompt_asks_once(spawn):
    child = chat(spawn)
    child.sendintr()
    child.expect("again to leave")
    child.expect(READY)
    assert "error" not in say(child, "hello")  # anything else in between disarms it
    time.sleep(1.1)  # longer than two Ctrl-C that leave may lie apart
    child.sendintr()
    child.expect("again to leave")
    child.expect(READY)
    assert leave_by_ctrl_c(child) == 130


def test_ctrl_c_clears_a_half_typed_message(spawn):
    child = chat(spawn)
    child.send("half a mess")
    child.sendintr()
    assert "context" in say(child, "/stats")
    assert leave(child) == 0


def test_undo_regen_clear_save_and_load(spawn, pictures, tmp_path):
    child = chat(spawn)
    say(child, f"'{pictures}/photo 0.png'")
    answer = say(child, "What is this?")
    file = tmp_path / "a talk.json"
    assert "Saved" in say(child, f"/save {file}")
    again = say(child, "/regen")
    assert [line for line in again.split("\r\n") if line][-1:] == [line for line in answer.split("\r\n") if line][-1:]
    assert "0 questions left" in say(child, "/undo")
    assert "nothing was asked" in say(child, "/undo")
    assert "1 question" in say(child, f"/load {file}")
    assert "forgotten" in say(child, "/clear")
    assert "did you mean /image" in say(child, "/imag")
    child.send("/exit\r")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def test_a_message_of_several_lines(spawn, tmp_path):
    child = chat(spawn)
    say(child, "first line\x1b\rsecond line")  # Alt-Enter
    say(child, "one\\\rtwo")
    say(child, "\x1b[200~pasted\rlines\x1b[201~")
    assert "2 questions left" in say(child, "/undo")
    file = tmp_path / "talk.json"
    say(child, f"/save {file}")
    assert [turn["text"] for turn in json.loads(file.read_text())["turns"]] == ["first line\nsecond line", "one\ntwo"]
    assert leave(child) == 0


def test_the_history_is_kept_for_the_next_time_and_is_private(spawn, tmp_path):
    child = chat(spawn)
    say(child, "remember me")
    assert leave(child) == 0
    history = tmp_path / "home" / ".local" / "state" / "kimi-vl" / "chat_history"
    assert "remember me" in history.read_text() and history.stat().st_mode & 0o077 == 0
    child = chat(spawn)
    child.send("\x1b[A")
    child.expect("remember me")
    child.sendintr()
    assert leave(child) == 0


def test_a_state_folder_that_cannot_be_written_does_no_harm(spawn, tmp_path):
    (tmp_path / "file").write_text("")
    child = chat(spawn, XDG_STATE_HOME=str(tmp_path / "file"))
    assert "Traceback" not in say(child, "hello")
    assert leave(child) == 0


def test_tab_completes_commands_and_paths(spawn, pictures):
    child = chat(spawn)
    child.send("/ima\t")
    child.expect("ge")
    child.send(f" {pictures}/photo 2\t")
    child.expect(r"\.png")
    child.send("\r")
    child.expect("photo 2.png: 56x112")
    child.expect(READY)
    assert "[1 picture] >" in ESCAPES.sub("", child.after)
    assert leave(child) == 0


def test_without_colour_nothing_is_coloured(spawn):
    child = chat(spawn, NO_COLOR="1")
    child.send("/nonsense\r")
    child.expect("error: unknown command")
    child.expect(READY)
    assert "\x1b[31m" not in child.before and "\x1b[2m" not in child.before
    assert leave(child) == 0


def test_a_dumb_terminal_gets_plain_lines(spawn):
    child = spawn("chat", "--temp", "0", "-n", "8", TERM="dumb")
    child.expect("> ")
    child.send("hello\r")
    child.expect("> ")
    assert "\x1b" not in child.before
    assert leave(child) == 0


def test_run_shows_progress_and_then_the_answer_alone(spawn, pictures):
    child = spawn("run", "--temp", "0", "-n", "8", "-i", f"{pictures}/photo 0.png", "What is this?")
    child.expect("loading the model")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
    shown = child.before
    assert "\x1b[K" in shown  # the progress line is taken away
    assert ESCAPES.sub("", shown.rsplit("\x1b[K", 1)[1]).strip() != ""


def test_a_wrong_picture_in_a_chat_is_told_and_the_talk_goes_on(spawn, pictures):
    child = chat(spawn)
    shown = say(child, f"{pictures}/photo 9.png")
    assert "no such file" in shown and "photo" in shown
    assert "is a folder" in say(child, f"/image '{pictures}'")
    assert "error" not in say(child, "hello")
    assert leave(child) == 0


def test_the_first_lines_of_a_chat_without_a_model_are_those_that_scripts_wait_for(spawn):
    child = spawn("chat", model="")
    child.expect("lists the commands")
    child.expect("tells what it can do and what it cannot")
    child.expect(READY)


def test_ctrl_z_at_the_prompt_suspends_and_fg_goes_on(tiny, tmp_path):
    env = {**os.environ, "HOME": str(tmp_path), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    shell = pexpect.spawn("bash", ["--norc", "--noprofile", "-i"], env=env, encoding="utf-8", timeout=120)
    try:
        shell.sendline(f"{sys.executable} -m kimi_vl_cpp chat -m {tiny.text} --temp 0 -n 4")
        shell.expect(READY)
        shell.send("half a mess\x1a")
        shell.expect("Stopped")
        shell.sendline("fg")
        shell.expect("half a mess")
        shell.send("age\r")
        shell.expect(TAKEN)
        shell.expect(READY)
    finally:
        shell.close(force=True)
