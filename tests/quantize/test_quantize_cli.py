"""`kimi-vl quantize`: options, streams, exit codes, the progress line."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoint_files import TinyCheckpoint, write_checkpoint

from kimi_vl_cpp import cli
from kimi_vl_cpp._core import GGUFFile
from kimi_vl_cpp.cli.progress import Bar
from kimi_vl_cpp.cli.terminal import Terminal

Run = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: TinyCheckpoint = write_checkpoint(tmp_path_factory.mktemp("in") / "Kimi-VL-A3B-Instruct", n_shards=2)
    return made.folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> SimpleNamespace:
        code = cli.main(["quantize", *map(str, arguments)])
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call


def test_a_run_prints_the_file_and_tells_the_types_on_the_side(folder: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out.gguf"
    done = run(folder, out, "-q", "Q8_0")
    assert done.code == 0
    assert done.out == f"{out}  {out.stat().st_size / 1000:.0f} kB\n"
    assert "Q8_0, vision F16: " in done.err and "bits per weight" in done.err
    assert " 1 tensors" not in done.err and "\x1b" not in done.err and "\r" not in done.err
    assert done.err.count("tensors") == 3  # F32, F16, Q8_0


def test_without_a_type_it_is_q4_k_m(folder: Path, tmp_path: Path, run: Run) -> None:
    assert run(folder, tmp_path / "out.gguf").code == 0
    assert GGUFFile(str(tmp_path / "out.gguf")).get("general.file_type") == 15


def test_every_option_reaches_the_tool(folder: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("old")
    options = ["-q", "Q4_0", "--vision", "BF16", "--split", "--type", "output=Q5_0", "--type", "token_embd=Q8_0"]
    options += ["--name", "My Thinking model", "--force", "--resume", "-t", "1"]
    done = run(folder, out, *options)
    assert done.code == 0 and done.out.splitlines()[1].startswith(str(tmp_path / "mmproj-out.gguf"))
    gguf = GGUFFile(str(out))
    types = {tensor.name: tensor.type for tensor in gguf.tensors}
    assert (types["output.weight"], types["token_embd.weight"]) == ("Q5_0", "Q8_0")
    assert gguf.get("general.name") == "My Thinking model"
    vision = {tensor.type for tensor in GGUFFile(str(tmp_path / "mmproj-out.gguf")).tensors}
    assert vision == {"BF16", "F32"}


def test_a_recipe_of_ours_gives_its_reason(folder: Path, tmp_path: Path, run: Run) -> None:
    done = run(folder, tmp_path / "out.gguf", "-q", "vocab-q8-rest-q4")
    assert done.code == 0 and "photographed sign" in done.err


def test_json_is_one_object_with_everything(folder: Path, tmp_path: Path, run: Run) -> None:
    done = run(folder, tmp_path / "out.gguf", "-q", "Q4_0", "--json")
    told = json.loads(done.out)
    assert done.code == 0 and told["type"] == "Q4_0" and told["n_bytes"] == (tmp_path / "out.gguf").stat().st_size
    assert len(told["files"][0]["tensors"]) == len(GGUFFile(str(tmp_path / "out.gguf")).tensors)


def test_loss_and_permission(folder: Path, tmp_path: Path, run: Run) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    assert run(folder, first, "-q", "Q8_0").code == 0
    refused = run(first, second, "-q", "Q4_0")
    assert refused.code == 2 and "(--allow-requantize) [quantize.requantize]" in refused.err
    allowed = run(first, second, "-q", "Q4_0", "--allow-requantize")
    assert allowed.code == 0 and allowed.err.startswith("warning: ") and "worse" in allowed.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "Missing argument 'SRC'"),
        (["in"], 2, "Missing argument 'DST'"),
        (["in", "out", "-q", "Q9"], 2, "[quantize.type]"),
        (["in", "out", "-q", "Q8_0", "--recipe", "x"], 2, "give one of them"),
        (["in", "out", "--recipe", "x.toml"], 3, "there is no such recipe"),
        (["in", "out", "--type", "attn_q"], 2, "expected PATTERN=TYPE"),
        (["in", "out", "--type", "=Q8_0"], 2, "expected PATTERN=TYPE"),
        (["in", "out", "--type", "attn_q=Q8_0"], 2, "did you mean blk.*.attn_q?"),
        (["in", "out", "-t", "-1"], 2, "(n_threads is the option -t)"),
        (["in", "out", "--name", ""], 2, "[quantize.name]"),
        (["in", "in"], 2, "is a folder, expected the path of the file to write"),
        (["in", "nowhere/out"], 2, "make it first"),
        (["In", "out"], 3, "did you mean in?"),
        (["nowhere", "out"], 3, "no such file"),
        (["in/config.json", "out"], 2, "give its folder in"),
        (["in", "out", "--mmproj", "x"], 2, "leave it out"),
        (["in", "out", "--imatrix", "x"], 3, "make one with kimi-vl imatrix"),
        (["in", "out", "--surprise"], 2, "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_line(
    folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "in").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert (done.code, done.out) == (code, "") and words in done.err, done.err
    assert done.err.startswith("error: ") and done.err.count("\n") <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_control_characters_of_a_checkpoint_do_not_reach_the_terminal(tmp_path: Path, run: Run) -> None:
    made = write_checkpoint(tmp_path / "a\x1b[31mb")
    done = run(made.folder, tmp_path / "out.gguf")
    assert done.code == 0 and "\x1b" not in done.out + done.err
    assert GGUFFile(str(tmp_path / "out.gguf")).get("general.name") == "a_[31mb"


# ---- the progress line ---------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    """A standard error that is a terminal of some width."""

    def isatty(self) -> bool:
        return True


def shown(width: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Bar, Screen, list[float]]:
    monkeypatch.setattr(Terminal, "width", lambda self: width)
    screen, now = Screen(), [0.0]
    terminal = Terminal(io.StringIO(), screen, {"NO_COLOR": "1"})
    return Bar(terminal, {"quantize": "quantizing"}, clock=lambda: now[0]), screen, now


def last_line(screen: Screen) -> str:
    return screen.getvalue().split("\r")[-1].removesuffix("\x1b[K")


@pytest.mark.parametrize(
    ("width", "want"),
    [
        (100, "quantizing [######..................]  25%  30 s left"),
        (44, "quantizing [###.........]  25%  30 s left"),
        (34, "quantizing  25%  30 s left"),
        (20, "quantizing  25%  30"),
    ],
)
def test_the_time_left_is_shown_before_the_bar(width: int, want: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bar, screen, now = shown(width, monkeypatch)
    bar("quantize", 0, 400)
    now[0] = 10
    bar("quantize", 100, 400)
    assert last_line(screen) == want
    bar.clear()
    assert last_line(screen) == ""


def test_the_time_left_counts_only_what_this_run_did(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, screen, now = shown(80, monkeypatch)
    bar("quantize", 300, 400)  # taken over
    now[0] = 10
    bar("quantize", 350, 400)
    assert "87%  10 s left" in last_line(screen)
    now[0] = 1000
    bar("quantize", 351, 400)
    assert "16 min left" in last_line(screen)


@pytest.fixture
def on_a_terminal(folder: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    main, side = pty.openpty()
    command = [sys.executable, "-m", "kimi_vl_cpp", "quantize", str(folder), str(tmp_path / "out.gguf")]
    environment: dict[str, Any] = {**os.environ, "TERM": "xterm"}
    environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True)
    os.close(side)
    yield process, main
    process.kill()
    process.wait()
    os.close(main)


def test_on_a_terminal_the_line_is_taken_away_at_the_end(
    on_a_terminal: tuple[subprocess.Popen[bytes], int], tmp_path: Path
) -> None:
    process, main = on_a_terminal
    told, end = b"", time.monotonic() + 120
    while time.monotonic() < end:
        ready, _, _ = select.select([main], [], [], 0.2)
        try:
            told += os.read(main, 4096) if ready else b""
        except OSError:  # the other side is closed
            break
    assert process.wait(60) == 0
    before, clear, after = told.partition(b"\r\x1b[K")
    assert "reading what the source holds…".encode() in before and b"quantizing [" in told
    assert clear and str(tmp_path / "out.gguf").encode() in after and b"quantizing" not in after.split(b"out.gguf")[-1]
