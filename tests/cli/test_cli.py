"""The command line, without a terminal: exit codes, what goes to which stream, inspect and doctor.

Runs `kimi_vl_cpp.cli.main` in this process, and a real process where pipes, signals or start-up are the matter.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import documents
import numpy as np
import pytest
import videos
from PIL import Image

from kimi_vl_cpp import builtin, cli, errors, wording
from kimi_vl_cpp.cli import answer, attachments, exits, opening, terminal
from kimi_vl_cpp.cli import progress as progress_line
from kimi_vl_cpp.cli.chat import store
from kimi_vl_cpp.files import rules
from kimi_vl_cpp.machine import system
from kimi_vl_cpp.testing import make_tiny_model

COMMAND = [sys.executable, "-m", "kimi_vl_cpp"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0)


@pytest.fixture(scope="module")
def model_path(tiny):
    return str(tiny.text)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    rows, columns = np.mgrid[0:60, 0:90]
    pixels = np.stack([rows * 4, columns * 2, (rows * columns) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def run(capsys):
    """Runs a command line here: .code, .out, .err."""

    def call(*arguments, stdin=None):
        before = sys.stdin
        if stdin is not None:
            data = stdin if isinstance(stdin, bytes) else stdin.encode()
            sys.stdin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
        try:
            code = cli.main([str(a) for a in arguments])
        finally:
            sys.stdin = before
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call


def greedy(*more):
    return ["--temp", "0", "-n", "8", *more]


# Start-up


def test_help_and_version_load_nothing_heavy():
    heavy = ["numpy", "PIL", "tiktoken", "sentencepiece", "prompt_toolkit", "kimi_vl_cpp._core"]
    program = (
        "import sys; from kimi_vl_cpp.cli import main\n"
        "codes = [main(['--version']), main(['--help']), main(['run', '--help'])]\n"
        f"print(codes, [name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[0, 0, 0] []"


def test_every_command_is_in_the_help(run):
    assert all(name in run("--help").out for name in ("run", "chat", "inspect", "doctor"))


def test_no_command_is_a_mistake_of_usage(run):
    assert run().code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--tempp", "1"],
        ["nonsense"],
        ["run", "-c", "many", "-m", "x.gguf", "hi"],
        ["run", "-c"],
    ],
)
def test_a_wrong_command_line_is_told_in_one_line_without_a_traceback(run, arguments):
    result = run(*arguments)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err and result.out == ""


# run: what is asked


def test_the_answer_alone_is_on_standard_output(run, model_path, photo):
    from kimi_vl_cpp import KimiVL

    with KimiVL(model_path) as model:
        expected = model.chat("What is this?", images=[photo], temperature=0, max_new_tokens=8).text
    result = run("run", "-m", model_path, "-i", photo, *greedy(), "What is this?")
    assert result.code == 0
    assert result.out == expected + ("" if expected.endswith("\n") else "\n")
    assert "\x1b" not in result.out + result.err


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(run, model_path):
    def ask(seed):
        return run("run", "-m", model_path, "--temp", "1", "-n", "12", "--seed", seed, "hello", "--json").out

    assert json.loads(ask(7))["text"] == json.loads(ask(7))["text"]
    assert len({json.loads(ask(seed))["text"] for seed in range(5)}) > 1


def test_json_is_one_object_with_everything(run, model_path, photo):
    result = run("run", "-m", model_path, "-i", photo, "-i", photo, *greedy(), "--json", "Compare.")
    assert result.code == 0
    answer = json.loads(result.out)
    assert set(answer) == {"text", "thinking", "finish_reason", "usage", "timings", "notices", "seed", "model"}
    assert answer["usage"]["image_tokens"] > 0
    assert answer["usage"]["completion_tokens"] <= 8
    assert answer["model"]["file"] == model_path
    assert result.err == ""


def test_several_answers_have_seeds_of_their_own_and_a_vote_prints_one(run, model_path):
    arguments = ("run", "-m", model_path, "-n", "3", "--seed", "5", "hello")
    one = run(*arguments)
    three = run(*arguments, "--answers", "3", "--json")
    found = json.loads(three.out)
    assert len({answer["seed"] for answer in found["answers"]}) == 3
    assert found["answers"][0]["text"] == one.out.rstrip("\n")
    plain = run(*arguments, "--answers", "3")
    assert plain.code == 0 and f"answer 3 of 3, seed {found['answers'][2]['seed']}" in plain.err
    voted = run("run", *greedy("-m", model_path, "--vote", "hello"))
    assert voted.code == 0
    for wrong in (("--answers", "0"), ("--answers", "65"), ("--answers", "1", "--vote")):
        assert run(*arguments, *wrong).code == 2


def test_a_cache_folder_serves_the_next_run_and_can_be_looked_at(run, model_path, tmp_path):
    folder = tmp_path / "cache"
    arguments = ("run", "-m", model_path, "-n", "4", "--temp", "0", "--cache-dir", str(folder), "--json", "word " * 150)
    first, second = (json.loads(run(*arguments).out) for _ in range(2))
    assert second["text"] == first["text"]
    assert first["usage"]["restored_tokens"] == 0
    assert second["usage"]["restored_tokens"] == second["usage"]["prompt_tokens"] - 1
    info = json.loads(run("cache", "info", str(folder), "--json").out)
    rows = [json.loads(line) for line in run("cache", "list", str(folder), "--json").out.splitlines()]
    assert info["files"] == len(rows) >= 5 and info["bytes"] == sum(row["bytes"] for row in rows)
    assert run("cache", "verify", str(folder)).code == 0
    Path(rows[0]["file"]).write_bytes(b"x")
    broken = run("cache", "verify", str(folder))
    assert broken.code == 1 and rows[0]["file"] in broken.out and "1 damaged" in broken.out
    assert json.loads(run(*arguments).out)["text"] == first["text"]
    (folder / "mine.txt").write_text("kept")
    assert run("cache", "clear", str(folder)).code == 0
    assert json.loads(run("cache", "info", str(folder), "--json").out)["files"] == 0
    assert (folder / "mine.txt").exists()
    assert run("cache", "info", str(tmp_path / "nowhere")).code == 2
    assert run(*arguments, "--kv-memory", "3XB").code == 2
    assert run("run", "-m", model_path, "--cache-disk", "1GiB", "hello").code == 2


def test_timings_are_one_line_on_standard_error(run, model_path):
    result = run("run", "-m", model_path, *greedy(), "--timings", "hi")
    lines = [line for line in result.err.splitlines() if line.startswith("load ")]
    assert len(lines) == 1 and "first token after" in lines[0]


def test_words_file_and_pipe_give_the_same_prompt(run, model_path, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes("\ufeffWhat is this?\r\n".encode())
    ways = [
        run("run", "-m", model_path, *greedy("--json"), "What is this?"),
        run("run", "-m", model_path, *greedy("--json"), "What", "is", "this?"),
        run("run", "-m", model_path, *greedy("--json"), "-f", file),
        run("run", "-m", model_path, *greedy("--json"), "-f", "-", stdin="What is this?\n"),
        run("run", "-m", model_path, *greedy("--json"), stdin="What is this?\n"),
    ]
    assert [w.code for w in ways] == [0] * 5
    answers = [json.loads(w.out) for w in ways]
    assert len({(a["text"], a["usage"]["prompt_tokens"]) for a in answers}) == 1


def test_a_question_and_a_file_are_joined(run, model_path, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("some text")
    together = json.loads(run("run", "-m", model_path, *greedy("--json"), "-f", file, "Summarise:").out)
    spelled = json.loads(run("run", "-m", model_path, *greedy("--json"), "Summarise:\n\nsome text").out)
    assert together["usage"] == spelled["usage"]


def test_a_picture_from_standard_input_is_the_picture_in_the_file(run, model_path, photo):
    from_file = run("run", "-m", model_path, "-i", photo, *greedy("--json"), "What?")
    from_pipe = run("run", "-m", model_path, "-i", "-", *greedy("--json"), "What?", stdin=Path(photo).read_bytes())
    assert from_pipe.code == 0
    assert json.loads(from_file.out)["text"] == json.loads(from_pipe.out)["text"]


def test_pages_of_a_scan_are_chosen_wherever_it_comes_from(run, model_path, tmp_path):
    scan = tmp_path / "scan.tif"
    pages = [Image.new("RGB", (56 + 28 * n, 56), (n * 60, 9, 9)) for n in range(4)]
    pages[0].save(scan, save_all=True, append_images=pages[1:])
    asked = ("run", "-m", model_path, *greedy("--json"), "-n", "1", "What?")
    named = run(*asked, "-i", f"{scan}#2,4")
    chosen = run(*asked, "-i", "-", "--pages", "2,4", stdin=scan.read_bytes())
    usages = [json.loads(one.out)["usage"] for one in (named, chosen)]
    assert usages[0]["image_tokens"] == (3 * 2) + (5 * 2) == usages[1]["image_tokens"]
    refused = run(*asked, "-i", "-", "--pages", "2", stdin=b"GIF89a")
    assert refused.code == 2 and "standard input is none" in refused.err


def test_pages_are_given_as_pictures_with_their_text_or_as_text_alone(run, model_path, tmp_path):
    file = tmp_path / "list.pdf"
    file.write_bytes(documents.pdf(["Item one costs seven dollars.", ""], (84, 56), font_size=4))
    asked = ("run", "-m", model_path, *greedy("--json"), "-n", "1", "--image-patches", "24", "What?")
    usages = {
        kind: json.loads(run(*asked, "-i", f"{file}#1", "--text-layer", kind).out)["usage"]
        for kind in ("never", "auto", "only")
    }
    tokens = {kind: (usage["image_tokens"], usage["prompt_tokens"]) for kind, usage in usages.items()}
    assert tokens["never"][0] == tokens["auto"][0] > tokens["only"][0] == 0
    assert tokens["auto"][1] > tokens["never"][1] and tokens["auto"][1] > tokens["only"][1] > 10
    refused = run(*asked, "-i", file, "--text-layer", "only")
    assert refused.code == 4 and "for page 2: give these" in refused.err and "document.scanned" in refused.err
    assert "expected never, auto or only" in run(*asked, "-i", file, "--text-layer", "yes").err


def test_files_that_are_not_trusted_are_opened_apart_to_the_same_answer(run, model_path, tmp_path, monkeypatch):
    (tmp_path / "a.pdf").write_bytes(documents.pdf(["Item one costs seven dollars."], (84, 56), font_size=4))
    (tmp_path / "a.mp4").write_bytes(videos.video(videos.coded(index) for index in range(10)))
    files = ("-i", f"{tmp_path}/a.pdf", "-v", f"{tmp_path}/a.mp4", "--frames", "2", "--image-patches", "24")
    line = ("run", "-m", model_path, *greedy("--json"), "-n", "2", *files, "What?")
    here = json.loads(run(*line).out)
    monkeypatch.setattr("kimi_vl_cpp.media.documents.open_document", None)
    monkeypatch.setattr("kimi_vl_cpp.media.video.Video.__init__", None)
    apart = json.loads(run(*line, "--isolate").out)
    assert (apart["text"], apart["usage"]) == (here["text"], here["usage"])
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 cut")
    refused = run("run", "-m", model_path, "-i", f"{tmp_path}/bad.pdf", "--isolate", "What?")
    assert refused.code == 4 and "bad.pdf: damaged or cut off" in refused.err
    sheet = run("scenes", f"{tmp_path}/a.mp4", "--sheet", f"{tmp_path}/s.png", "--isolate")
    assert sheet.code == 0 and (tmp_path / "s.png").exists()


@pytest.mark.skipif(not os.path.exists("/dev/fd/0"), reason="needs /dev/fd")
def test_a_picture_from_a_pipe_of_the_shell(run, model_path, photo):
    reader, writer = os.pipe()
    with open(reader, "rb"):
        with open(writer, "wb") as pipe:  # small enough for the pipe's buffer
            pipe.write(Path(photo).read_bytes())
        from_pipe = run("run", "-m", model_path, "-i", f"/dev/fd/{reader}", *greedy("--json"), "What?")
    from_file = run("run", "-m", model_path, "-i", photo, *greedy("--json"), "What?")
    assert from_pipe.code == 0
    assert json.loads(from_file.out)["text"] == json.loads(from_pipe.out)["text"]


def test_standard_input_is_not_read_when_the_question_is_on_the_command_line(model_path):
    with subprocess.Popen(
        [*COMMAND, "run", "-m", model_path, *greedy(), "hi"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:  # the pipe stays open: reading it would wait for ever
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["hi", "-i", "-", "-f", "-"], b"", "standard input can be read once"),
        (["hi", "-i", "-", "-i", "-"], b"", "standard input can be read once"),
        ([], b"", "no question"),
        ([], b"  \n", "no question"),
        ([], b"\xff\xfe\xfa", "not UTF-8"),
        (["-f", "no-such-file.txt"], b"", "no such file"),
        (["-f", "."], b"", "is a folder"),
        (["hi", "--temp", "-1"], b"", "temperature"),
        (["hi", "--temp", "nan"], b"", "temperature"),
        (["hi", "--top-p", "-1"], b"", "top_p"),
        (["hi", "--top-k", "-1"], b"", "top_k"),
        (["hi", "--min-p", "2"], b"", "min_p"),
        (["hi", "--repeat-penalty", "0"], b"", "repeat_penalty"),
        (["hi", "--seed", "-5"], b"", "seed"),
        (["hi", "-n", "0"], b"", "max_new_tokens"),
        (["hi", "--stop", ""], b"", "stop"),
        (["hi", "-c", "-1"], b"", "n_ctx"),
        (["hi", "-t", "-1"], b"", "n_threads"),
        (["hi", "--in-token-limit", "0"], b"", "in_token_limit"),
        (["hi", "--isa", "sse9"], b"", "sse9"),
        (["hi", "--device", "tpu"], b"", "tpu"),
    ],
)
def test_a_request_that_cannot_be_meant_exits_2(run, model_path, arguments, stdin, words):
    result = run("run", "-m", model_path, *arguments, stdin=stdin)
    assert (result.code, result.out) == (2, "")
    assert words in result.err and "Traceback" not in result.err


def test_a_gpu_that_this_installation_cannot_use_is_told_by_what_is_missing(run, model_path):
    result = run("run", "-m", model_path, "--device", "cuda", "hi")
    assert (result.code, result.out) == (errors.EXIT_FAILED, "")
    assert "device.plugin" in result.err and "no CUDA backend" in result.err and "use the device cpu" in result.err


def test_a_picture_given_as_the_question_is_noticed(run, model_path, photo):
    result = run("run", "-m", model_path, photo, "What is this?")
    assert result.code == 2 and f"-i {photo}" in result.err


# run: files that are not right


def test_without_a_model_it_says_where_models_come_from(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kimi.gguf").write_bytes(b"")
    (tmp_path / "mmproj-kimi.gguf").write_bytes(b"")
    monkeypatch.setattr(builtin, "_root", lambda: tmp_path / "nothing")
    for command, code in (("run", 3), ("chat", 3), ("inspect", 3), ("bench", 2)):
        result = run(command, stdin="hi")
        assert (result.code, result.out) == (code, "")
        assert "-m" in result.err and "huggingface.co" in result.err
        assert "In this folder: kimi.gguf\n" in result.err


def test_a_mistyped_model_path_is_answered_with_the_nearest_name(run, model_path, tmp_path):
    (tmp_path / "Kimi-VL-Q4_K_M.gguf").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    result = run("run", "-m", tmp_path / "kimi-vl-q4_k_m.ggu", "hi")
    assert result.code == 3
    assert "did you mean Kimi-VL-Q4_K_M.gguf?" in result.err
    result = run("run", "-m", tmp_path / "no" / "such" / "kimi.gguf", "hi")
    assert result.code == 3 and f"only as far as {tmp_path}" in result.err


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all, just text that goes on for a while"])
def test_a_file_that_is_no_model_exits_3(run, tmp_path, content):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    for command in (["run", "-m", path, "hi"], ["chat", "-m", path], ["inspect", path]):
        result = run(*command, stdin="")
        assert (result.code, result.out) == (3, "")
        assert "bad.gguf" in result.err and "Traceback" not in result.err


def test_a_folder_given_as_the_model_exits_3_and_names_what_is_in_it(run, tiny):
    result = run("run", "-m", Path(tiny.text).parent, "hi")
    assert result.code == 3 and "is a folder" in result.err and Path(tiny.text).name in result.err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.png", None, "no such file"),
        ("empty.png", b"", "empty.png"),
        ("text.png", b"hello", "text.png"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "cut.png"),
    ],
)
def test_a_bad_picture_exits_4(run, model_path, tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    result = run("run", "-m", model_path, "-i", path, "What?")
    assert (result.code, result.out) == (4, "")
    assert words in result.err and "Traceback" not in result.err


def test_a_missing_picture_is_told_before_the_model_is_opened(run, model_path, tmp_path, photo):
    result = run("run", "-m", model_path, "-i", Path(photo).parent / "foto.png", "What?")
    assert result.code == 4 and "did you mean photo.png?" in result.err
    result = run("run", "-m", model_path, "-i", "https://example.org/cat.jpg", "What?")
    assert result.code == 4 and "nothing is fetched" in result.err
    result = run("run", "-m", model_path, "-i", "-", "What?", stdin=b"")
    assert result.code == 4 and "empty" in result.err


def test_a_prompt_that_does_not_fit_says_the_numbers(run, model_path):
    result = run("run", "-m", model_path, "-c", "64", "word " * 400)
    assert result.code == 1 and "64" in result.err and "n_ctx is the option -c" in result.err


def test_a_picture_without_a_vision_file_says_what_is_missing(run, photo, tmp_path):
    text = make_tiny_model(tmp_path / "alone", seed=0, vision="none")
    result = run("run", "-m", text.text, "-i", photo, "What?")
    assert result.code != 0 and "vision file" in result.err


# run: when things go wrong outside


def test_unexpected_failures_are_short_and_the_traceback_is_on_demand(run, monkeypatch, model_path):
    from kimi_vl_cpp.cli import run as run_module

    def explode(options, terminal):
        raise RuntimeError("boom")

    monkeypatch.setattr(run_module, "run", explode)
    result = run("run", "-m", model_path, "hi")
    assert result.code == 1 and "boom" in result.err and "KIMI_VL_LOG=debug" in result.err
    assert "Traceback" not in result.err
    monkeypatch.setenv("KIMI_VL_LOG", "debug")
    assert "Traceback" in run("run", "-m", model_path, "hi").err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BadModelFile("m", "x.y"), 3),
        (errors.BadImage("m", "x.y"), 4),
        (errors.OutOfMemory("m", "x.y"), 5),
        (MemoryError(), 5),
        (errors.ContextFull("m", "x.y"), 1),
        (errors.BadRequest("m", "x.y"), 2),
        (errors.Unsupported("m", "x.y"), 1),
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device"), 1),
    ],
)
def test_every_error_has_its_exit_code(run, monkeypatch, model_path, error, code):
    from kimi_vl_cpp.cli import run as run_module

    def fail(options, terminal):
        raise error

    monkeypatch.setattr(run_module, "run", fail)
    result = run("run", "-m", model_path, "hi")
    assert result.code == code
    assert ("[x.y]" in result.err) == isinstance(error, errors.KimiVLError)


def test_a_reader_that_leaves_early_is_no_error(model_path):
    """`kimi-vl run … | head -c 1`, with a standard output that is closed before anything is written."""
    with subprocess.Popen(
        [*COMMAND, "run", "-m", model_path, "--temp", "0", "-n", "64", "hi"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        message = process.stderr.read()
        assert (process.wait(timeout=60), message) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_standard_output_is_an_error(model_path):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*COMMAND, "run", "-m", model_path, "--temp", "0", "-n", "4", "hi"],
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert result.returncode == 1
    assert "No space left" in result.stderr and "Traceback" not in result.stderr


def test_closed_standard_streams_do_not_crash(model_path):
    line = f'"{sys.executable}" -m kimi_vl_cpp run -m "{model_path}" --temp 0 -n 4 hi >&- 2>&- <&-'
    assert subprocess.run(["sh", "-c", line], timeout=60).returncode in (0, 1)


def test_an_odd_locale_does_not_break_the_answer(model_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = subprocess.run(
        [*COMMAND, "run", "-m", model_path, "--temp", "0", "-n", "16", "日本語"],
        stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


# Terminal


class FakeTerminal(io.StringIO):
    def isatty(self):
        return True


def make_terminal(out_tty=False, err_tty=False, **env):
    out = FakeTerminal() if out_tty else io.StringIO()
    err = FakeTerminal() if err_tty else io.StringIO()
    return terminal.Terminal(out, err, {"TERM": "xterm", **env})


def test_progress_is_silent_unless_standard_error_is_a_terminal():
    quiet = make_terminal(out_tty=True)
    progress = progress_line.Progress(quiet, delay=0)
    for done in range(3):
        progress("prefill", done, 3)
    assert quiet.err.getvalue() == ""


def test_progress_rewrites_one_line_within_the_width_and_takes_it_away():
    clock = iter(x / 10 for x in range(1000))
    shown = make_terminal(err_tty=True)
    progress = progress_line.Progress(shown, delay=0, clock=lambda: next(clock))
    for done in range(100):
        progress("prefill", done, 100)
    progress("prefill", 100, 100)
    text = shown.err.getvalue()
    assert "reading the prompt" in text and " 50%" in text and "left" in text
    assert "\n" not in text and text.endswith("\r\x1b[K")


def test_a_stage_that_is_over_at_once_is_never_shown():
    shown = make_terminal(err_tty=True)
    progress = progress_line.Progress(shown, delay=10)
    for done in range(5):
        progress("encode", done, 4)
    assert shown.err.getvalue() == ""


def test_no_color_and_dumb_terminals_get_no_escapes():
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain = make_terminal(True, True, **env)
        plain.error("message", "a.code")
        plain.note("something")
        assert "\x1b" not in plain.err.getvalue()
        writer = answer.AnswerWriter(plain, progress_line.Progress(plain))
        writer.write("thinking", "hm")
        writer.write("text", "yes")
        writer.finish()
        assert plain.out.getvalue() == "◁think▷hm◁/think▷\n\nyes\n"
    dumb = make_terminal(True, True, TERM="dumb")
    progress = progress_line.Progress(dumb)
    progress.show("working")
    progress.clear()
    assert "\x1b" not in dumb.err.getvalue()


DIMMED = "\x1b[2mh\x1b[0m\x1b[2mm\x1b[0m\n\n"


@pytest.mark.parametrize(
    ("out_tty", "err_tty", "mode", "out", "err"),
    [
        (True, True, "auto", DIMMED + "yes\n", ""),
        (True, True, "show", DIMMED + "yes\n", ""),
        (False, False, "auto", "yes\n", ""),
        (False, True, "auto", "yes\n", DIMMED),
        (False, False, "show", "◁think▷hm◁/think▷\n\nyes\n", ""),
        (False, True, "hide", "yes\n", ""),
    ],
)
def test_reasoning_goes_where_a_person_sees_it_and_never_into_a_pipe(out_tty, err_tty, mode, out, err):
    streams = make_terminal(out_tty, err_tty)
    writer = answer.AnswerWriter(streams, progress_line.Progress(streams), mode)
    for kind, text in (("thinking", "h"), ("thinking", "m"), ("text", "ye"), ("text", "s")):
        writer.write(kind, text)
    writer.finish()
    assert (streams.out.getvalue(), streams.err.getvalue()) == (out, err)


def test_hidden_reasoning_shows_on_a_terminal_that_something_happens():
    streams = make_terminal(True, True)
    writer = answer.AnswerWriter(streams, progress_line.Progress(streams), "hide")
    writer.write("thinking", "secret")
    writer.write("text", "yes")
    writer.finish()
    assert "thinking…" in streams.err.getvalue()
    assert streams.out.getvalue() == "yes\n" and "secret" not in streams.err.getvalue()


def test_an_answer_cannot_command_the_terminal():
    evil = "a\x1b]0;title\x07b\x9b31mc\x7f"
    shown, piped = make_terminal(out_tty=True), make_terminal()
    for streams in (shown, piped):
        writer = answer.AnswerWriter(streams, progress_line.Progress(streams))
        writer.write("text", evil)
        writer.finish()
    assert shown.out.getvalue() == "a�]0;title�b�31mc�\n"
    assert piped.out.getvalue() == evil + "\n"


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (10_539_572_544, "10.54 GB"), (618_098_272, "618 MB")],
)
def test_sizes_are_written_as_disks_count(n, text):
    assert wording.human_bytes(n) == text


# Paths of pictures


@pytest.fixture
def pictures(tmp_path):
    for name in ("a.png", "my photo.jpg", "it's.png", "notes.txt", "ü.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_names_near_a_mistyped_one_are_found(pictures):
    assert exits.nearest_names(pictures / "A.PNG", exits.PICTURE_SUFFIXES)[0] == "a.png"
    assert exits.nearest_names(pictures / "no" / "a.png") == []


# Chat, line by line


@pytest.fixture
def talk(run, model_path):
    def call(*lines, arguments=()):
        text = "".join(f"{line}\n" for line in lines)
        return run("chat", "-m", model_path, *greedy(), *arguments, stdin=text)

    return call


def test_a_piped_chat_answers_line_by_line_like_the_api(talk, model_path, photo):
    from kimi_vl_cpp import KimiVL

    with KimiVL(model_path) as model:
        conversation = model.conversation()
        first = conversation.ask("What is this?", images=[photo], temperature=0, max_new_tokens=8).text
        second = conversation.ask("And now?", temperature=0, max_new_tokens=8).text
    result = talk(f"/image {photo}", "What is this?", "", "And now?")
    assert result.code == 0
    assert result.out == "".join(text + ("" if text.endswith("\n") else "\n") for text in (first, second) if text)
    assert "photo.png: 90x60" in result.err


def test_a_later_turn_computes_only_what_is_new(talk, photo):
    result = talk(photo, "What is this?", "And now?", "/stats", arguments=["--timings"])
    lines = [line for line in result.err.splitlines() if "first token after" in line and not line.startswith("last")]
    assert len(lines) == 2
    assert "known" not in lines[0] and "of them known" in lines[1]
    assert "pictures 0.00 s" in lines[1]
    assert "context " in result.err and "memory " in result.err


def test_a_backslash_continues_the_message_on_the_next_line(talk, tmp_path):
    talk("one \\", "two\\", "three", f"/save {tmp_path}/talk.json")
    assert [turn["text"] for turn in json.loads((tmp_path / "talk.json").read_text())["turns"]] == ["one \ntwo\nthree"]


def test_unknown_commands_are_explained_and_the_chat_goes_on(talk):
    result = talk("/imagine x", "/xyzzy", "/clear now", "hello")
    assert "did you mean /image?" in result.err
    assert "/help lists the commands" in result.err
    assert "/clear takes nothing after it" in result.err
    assert result.out.strip() != "" and result.code == 2


def test_help_names_every_command(talk):
    from kimi_vl_cpp.cli.chat import commands

    text = talk("/help").err
    assert all(name in text for name in commands.NAMES if name != "/quit")


def test_exit_leaves_at_once(talk):
    assert talk("/exit", "hello").out == ""
    assert talk("/quit", "hello").code == 0


def test_undo_takes_back_a_waiting_picture_then_questions_then_says_there_is_none(talk, photo):
    result = talk("hello", photo, "/undo", "/undo", "/undo")
    assert "photo.png is no longer waiting" in result.err
    assert "0 questions left" in result.err
    assert "nothing was asked yet" in result.err


def test_a_question_with_a_bad_picture_keeps_the_conversation(talk, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    result = talk(bad, str(tmp_path / "missing.png"), "hello")
    assert result.code == 4
    assert "bad.png" in result.err and "missing.png: no such file" in result.err
    assert result.out.strip() != ""


def test_a_video_is_attached_like_a_picture_and_taken_back_whole(talk, tmp_path):
    (tmp_path / "talk.mp4").write_bytes(videos.video([videos.coded(index) for index in range(40)]))
    named = f"{tmp_path}/talk.mp4#1-3"
    result = talk(named, "/undo", f"{named} What happens?", "/stats", arguments=["--frames", "3", "--dedupe"])
    assert result.code == 0 and result.out.strip() != ""
    assert result.err.count("talk.mp4#1-3: 3 frames, ") == 2 and "talk.mp4#1-3 is no longer waiting" in result.err
    assert talk(f"{tmp_path}/talk.mp4#9-12", "hello").code == 4
    assert "talk.mp4: 2 frames" in talk("hello", arguments=["-v", f"{tmp_path}/talk.mp4", "--frames", "2"]).err


def test_a_missing_file_is_called_by_its_kind(run, model_path, tmp_path):
    for name, kind, code in (
        ("a.pdf", "document", "document"),
        ("a.mp4", "video", "video"),
        ("a.png", "picture", "image"),
    ):
        result = run("run", "-m", model_path, "-i", tmp_path / name, "hi")
        assert result.code == 4 and f"error: {kind} {tmp_path}" in result.err and f"[{code}.missing]" in result.err


def test_regen_answers_the_last_question_again(talk):
    greedily = talk("hello", "/regen")
    lines = greedily.out.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    assert "nothing was asked yet" in talk("/regen").err


def test_a_saved_conversation_goes_on_where_it_was(talk, photo, tmp_path):
    file = tmp_path / "talk.json"
    whole = talk(f"/image {photo}", "What is this?", f"/save {file}", "And now?")
    rest = talk(f"/load {file}", "And now?")
    assert rest.code == 0 and "1 question." in rest.err
    assert whole.out.endswith(rest.out)
    again = talk("And now?", "/save", arguments=["--load", str(file)])
    assert again.out == rest.out
    assert len(json.loads(file.read_text())["turns"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["talk.json"]


def test_saving_never_replaces_anything_but_a_conversation(talk, photo, tmp_path):
    before = Path(photo).read_bytes()
    for target in (photo, str(tmp_path), str(tmp_path / "no" / "talk.json"), ""):
        assert talk("hello", f"/save {target}").code == 2
    assert Path(photo).read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * 100_000,
        b'{"format": "kimi_vl_cpp.conversation", "version": 99}',
        b'{"format": "kimi_vl_cpp.conversation", "version": 1, "turns": [{"text": 5}]}',
        b"\xff\xfe",
    ],
)
def test_loading_what_is_no_conversation_leaves_the_present_one(talk, tmp_path, content):
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    result = talk("hello", f"/load {file}", "/regen")
    assert result.code == 2 and "bad.json" in result.err and "Traceback" not in result.err
    lines = result.out.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :] != []


def test_a_failed_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    file = tmp_path / "talk.json"
    store.write_atomically(str(file), b"old")
    file.chmod(0o640)

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        store.write_atomically(str(file), b"new")
    assert file.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["talk.json"]
    monkeypatch.undo()
    store.write_atomically(str(file), b"new")
    assert file.read_bytes() == b"new" and file.stat().st_mode & 0o777 == 0o640


def test_a_save_through_a_link_keeps_the_link(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_bytes(b"old")
    link.symlink_to(real)
    store.write_atomically(str(link), b"new")
    assert link.is_symlink() and real.read_bytes() == b"new"


def test_a_conversation_that_is_full_says_how_to_make_room(talk):
    result = talk("word " * 200, arguments=["-c", "64"])
    assert result.code == 1 and "/undo or /clear" in result.err


# inspect


def test_the_card_of_a_good_model(run, tiny):
    result = run("inspect", tiny.text)
    assert result.code == 0
    assert "deepseek2" in result.out and "works with Kimi-VL" in result.out
    assert "special tokens present" in result.out
    assert Path(tiny.mmproj).name in result.out


def test_the_card_of_a_vision_file(run, tiny):
    result = run("inspect", tiny.mmproj)
    assert result.code == 0 and "This vision file works" in result.out and "patches of 14x14" in result.out


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "legacy_kv_b"},
        {"layout": "fused_gate_up"},
        {"vision": "single"},
        {"vision": "none"},
        {"vision": "kimik25"},
        {"with_bos_eos": False},
        {"shards": 2},
        {"text_type": "Q8_0"},
        {"vocab": "spm"},
        {"version": 2},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_every_layout_that_loads_is_said_to_work(run, tmp_path, options):
    made = make_tiny_model(tmp_path / "m", seed=0, **options)
    for path in filter(None, {made.text, made.mmproj}):
        result = run("inspect", path, "--json")
        report = json.loads(result.out)
        assert (result.code, report["works"]) == (0, True), report["findings"]


def test_inspect_as_json_lists_everything(run, tiny):
    report = json.loads(run("inspect", tiny.text, "--json", "--tensors").out)
    assert report["n_tensors"] == len(report["tensors"]) == sum(row["n_tensors"] for row in report["types"])
    assert report["n_parameters"] == sum(int(np.prod(t["ne"])) for t in report["tensors"])
    assert report["text"]["layers"] > 0 and report["text"]["special_tokens_missing"] == []


def test_the_table_of_tensors(run, tiny):
    out = run("inspect", tiny.text, "--tensors").out
    assert "token_embd.weight" in out and "blk.0.attn_norm.weight" in out


def test_check_names_the_tensor_with_the_nan(run, tmp_path):
    from kimi_vl_cpp._core import GGUFFile

    made = make_tiny_model(tmp_path / "m", seed=0, vision="none")
    assert "Every value in it is finite" in run("inspect", made.text, "--check").out
    tensor = next(t for t in GGUFFile(str(made.text)).tensors if t.name == "blk.1.attn_q.weight")
    with open(made.text, "r+b") as file:
        file.seek(tensor.offset + 4 * 5)
        file.write(np.array([np.nan, np.inf], "<f4").tobytes())
    result = run("inspect", made.text, "--check")
    assert result.code == 3
    assert "blk.1.attn_q.weight (F32): 2 values not finite" in result.out and "the first at [0, 5]" in result.out


def test_a_file_of_another_family_is_described_and_refused(run, tmp_path):
    import gguf

    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("evil\x1b[2Jname\nnext line")
    writer.add_tensor("x.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = run("inspect", path)
    assert result.code == 3
    assert "'llama'" in result.out and "not a Kimi-VL file" in result.out
    assert "\x1b" not in result.out and "next line" in result.out.splitlines()[0]


def fake_tensor(name, ne, type_name="F32", supported=True):
    return SimpleNamespace(name=name, ne=tuple(ne), type=type_name, supported=supported)


class FakeGguf:
    def __init__(self, values):
        self.values = values

    def get(self, key):
        return self.values.get(key)

    def keys(self):
        return list(self.values)


@pytest.fixture
def parts(tiny):
    """Metadata, tensors and tokens of a good model, to be broken."""
    from kimi_vl_cpp._core import GGUFFile

    file = GGUFFile(str(tiny.text))
    values = {key: file.get(key) for key in sorted(file.keys())}
    tensors = {t.name: fake_tensor(t.name, t.ne, t.type) for t in file.tensors}
    return values, tensors, list(values["tokenizer.ggml.tokens"])


def verdict(values, tensors, tokens):
    return rules.judge(FakeGguf(values), list(tensors.values()), tokens)


def test_a_good_model_has_no_faults(parts):
    assert [f for f in verdict(*parts) if f.severity != "note"] == []


UNREADABLE = {"type": "NVFP4", "supported": False}


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda v, t, k: t.pop("blk.1.ffn_down_exps.weight"), "tensor blk.1.ffn_down_exps.weight: missing"),
        (lambda v, t, k: [t.pop(f"blk.{i}.attn_norm.weight") for i in range(3)], "tensors blk.N.attn_norm.weight: 3"),
        (lambda v, t, k: setattr(t["output_norm.weight"], "ne", (3,)), "tensor output_norm.weight: shape [3], "),
        (lambda v, t, k: vars(t["blk.0.attn_q.weight"]).update(UNREADABLE), "NVFP4 cannot be read: blk.0.attn_q."),
        (lambda v, t, k: v.pop("deepseek2.block_count"), "key deepseek2.block_count: missing"),
        (lambda v, t, k: v.update({"deepseek2.expert_count": "many"}), "expert_count: 'many', expected a whole number"),
        (lambda v, t, k: v.update({"deepseek2.attention.q_lora_rank": 1536}), "q_lora_rank"),
        (lambda v, t, k: v.update({"deepseek2.block_count": 10**6}), "makes no sense"),
        (lambda v, t, k: v.update({"deepseek2.expert_gating_func": 99}), "expert_gating_func: 99"),
        (lambda v, t, k: k.__setitem__(k.index("<|im_end|>"), "x"), "special token <|im_end|>"),
        (lambda v, t, k: t.pop("output.weight"), "tensor output.weight: missing"),
        (lambda v, t, k: t.pop("blk.1.exp_probs_b.bias"), "tensor blk.1.exp_probs_b.bias: missing"),
        (lambda v, t, k: t.update({"blk.0.x": fake_tensor("blk.0.x", [1])}), "blk.0.x; ignoring them would change"),
        (lambda v, t, k: k.clear(), "tokenizer.ggml.tokens"),
        (lambda v, t, k: v.update({"general.architecture": None}), "general.architecture: missing"),
    ],
)  # fmt: skip
def test_every_fault_is_named(parts, break_it, words):
    break_it(*parts)
    faults = [f.message for f in verdict(*parts) if f.severity == "error"]
    assert any(words in message for message in faults), faults


def test_unknown_tensors_are_a_warning(parts):
    values, tensors, tokens = parts
    tensors["extra.weight"] = fake_tensor("extra.weight", [1])
    found = verdict(values, tensors, tokens)
    assert [f.severity for f in found if "extra.weight" in f.message] == ["warning"]


def test_a_vocabulary_without_the_tokens_of_pictures_is_a_note(parts):
    values, tensors, tokens = parts
    tokens[tokens.index("<|media_pad|>")] = "x"
    found = [f for f in verdict(values, tensors, tokens) if "pictures cannot be placed" in f.message]
    assert [f.severity for f in found] == ["note"]


# Wrong values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--find", "word", "hi"], "--find word: expected a whole number"),
        (["run", "-n", "1.5", "hi"], "-n 1.5: expected a whole number"),
        (["run", "--temp", "hot", "hi"], "--temp hot: expected a number"),
        (["serve", "--port", "http"], "--port http: expected a whole number"),
        (["batch", "in", "out", "--concurrency", ""], "--concurrency : expected a whole number"),
        (["fit", "-c", "0"], "-c 0: expected 1 token or more"),
        (["fit", "--bandwidth", "-1"], "--bandwidth -1: expected GB/s above 0"),
        (["cache", "info"], "Missing argument 'FOLDER'"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(run, arguments, message):
    result = run(*arguments)
    assert result.code == 2 and result.err.splitlines()[0] == f"error: {message}"


def test_a_group_without_a_command_shows_its_help_as_the_program_does(run):
    for command in ([], ["cache"]):
        alone, asked = run(*command), run(*command, "--help")
        assert (alone.code, alone.out, alone.err) == (2, asked.out, "")
        assert "..." not in asked.out.partition("Commands:")[2]  # no sentence is cut off


def test_an_option_that_has_the_name_of_its_parameter_is_not_explained(run, model_path):
    assert "is the option" not in run("run", "-m", model_path, "--kv-type", "x", "hi").err
    assert "(n_ctx is the option -c)" in run("run", "-m", model_path, "-c", "-5", "hi").err


def test_a_file_of_no_known_kind_is_said_to_be_no_document_either(run, model_path, tmp_path):
    (tmp_path / "scan.pdf").write_bytes(b"garbage")
    result = run("run", "-m", model_path, "-i", str(tmp_path / "scan.pdf"), "hi")
    assert result.code == 4 and "PDF documents and videos" in result.err


# doctor


@pytest.mark.slow
def test_doctor_takes_seconds(run):
    started = time.monotonic()
    assert run("doctor").code == 0
    assert time.monotonic() - started < 100  # ten are promised


def test_doctor_finds_this_computer_fit(run):
    result = run("doctor", "--json")
    report = json.loads(result.out)
    assert (result.code, report["ok"]) == (0, True), report["self_test"]
    tested = {row["isa"] for row in report["self_test"]["results"]}
    assert tested == {isa["name"] for isa in report["processor"]["isas"] if isa["supported"]}
    assert report["self_test"]["chosen_isa"] in tested
    assert report["gpu"]["code"] == "device.plugin"  # the package carries no library for one


def test_doctor_in_words(run, tmp_path):
    result = run("doctor", "--cache-dir", tmp_path / "absent")
    assert "0 files" in result.out and "it is made when a model is opened with it" in result.out
    assert result.code == 0
    for words in (
        "Versions",
        "Processor",
        "threads",
        "GPU",
        "libkimi_cuda.so",
        "Memory",
        "Q4_K_M",
        "Self-test",
        "passed in",
    ):
        assert words in result.out


def test_doctor_says_so_when_an_instruction_set_computes_wrong(run, monkeypatch):
    from kimi_vl_cpp import model

    honest = model.KimiVL.logits

    def wrong(self, parts, **options):
        factor = 1.0 if self.isa == "generic" else 1.01
        return honest(self, parts, **options) * factor

    monkeypatch.setattr(model.KimiVL, "logits", wrong)
    result = run("doctor")
    if result.out.count("text, picture and answer in") < 2:
        pytest.skip("only one instruction set here: nothing to compare")
    assert result.code == 1 and "results differ from generic" in result.out and "FAILED" in result.out


def test_memory_limits_of_cgroups_are_seen(tmp_path):
    def write(path, text):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/meminfo", "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n")
    assert system.memory(tmp_path) == system.Memory(16_384_000_000, 8_192_000_000, None, None)
    write("proc/self/cgroup", "0::/outer/inner\n")
    write("sys/fs/cgroup/outer/memory.max", "4000000000\n")
    write("sys/fs/cgroup/outer/memory.current", "1500000000\n")
    write("sys/fs/cgroup/outer/memory.stat", "anon 1\ninactive_file 500000000\n")
    write("sys/fs/cgroup/outer/inner/memory.max", "max\n")
    seen = system.memory(tmp_path)
    assert (seen.limit, seen.limit_used, seen.usable) == (4_000_000_000, 1_000_000_000, 3_000_000_000)
    write("proc/self/cgroup", "5:memory:/m\n4:cpu:/c\n")
    write("sys/fs/cgroup/memory/m/memory.limit_in_bytes", "2000000000\n")
    write("sys/fs/cgroup/memory/m/memory.usage_in_bytes", "0\n")
    assert system.memory(tmp_path).limit == 2_000_000_000


def test_a_computer_without_proc_is_unknown_not_a_crash(tmp_path):
    assert system.memory(tmp_path) == system.Memory(None, None, None, None)
    assert system.cpu_name(tmp_path) == "" and system.cpu_features(tmp_path) == []


# Signals


def test_ctrl_c_while_working_exits_130_quietly(tiny, tmp_path):
    """The interrupt arrives while the answer is being written: a small model that writes for several seconds."""
    program = (
        "import sys, time\n"
        "from kimi_vl_cpp.cli import main\n"
        "from kimi_vl_cpp.cli.answer import AnswerWriter\n"
        "honest = AnswerWriter.write\n"
        "def slow(self, kind, text):\n"
        "    honest(self, kind, text); sys.stderr.write('+'); sys.stderr.flush(); time.sleep(30)\n"
        "AnswerWriter.write = slow\n"
        f"sys.exit(main(['run', '-m', {str(tiny.text)!r}, '--temp', '0', '-n', '64', 'hi']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr.read(1) == b"+"
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert (process.wait(timeout=60), rest) == (130, b"")


def test_every_path_on_the_command_line_may_begin_with_a_tilde(monkeypatch):
    """A shell expands ~x but leaves --model=~x as it is."""
    import typer

    from kimi_vl_cpp.cli import app

    monkeypatch.setenv("HOME", "/home/somebody")
    command = app.expanding_home(typer.main.get_command(app.app))
    expanded = set()
    for name, child in command.commands.items():
        for parameter in child.params:
            if parameter.callback is not None:
                assert parameter.callback(None, parameter, "~/x") == "/home/somebody/x"
                assert parameter.callback(None, parameter, ["~/x", "y"]) == ["/home/somebody/x", "y"]
                assert parameter.callback(None, parameter, None) is None
                expanded.add((name, parameter.name))
    assert {("run", "model"), ("run", "image"), ("chat", "load"), ("inspect", "file"), ("bench", "plot")} <= expanded
    assert {name for name, _ in expanded} >= {"quantize", "imatrix", "compare", "eval"}


# Columns, standard input, Ctrl-C


def test_columns_stand_under_each_other_whatever_the_characters(capsys):
    from kimi_vl_cpp.cli.evaluate_output import Measured, print_table
    from kimi_vl_cpp.evaluation.questions import Question
    from kimi_vl_cpp.evaluation.run import Judged

    tasks = ("words", "読み取り", "각도", "é" + "e\u0301" * 3, "長" * 40)
    model = {"name": "m", "quantization": "", "bytes": 1}
    asked = [Judged(Question(task, task, Path("a.png"), "?", ("x",)), "x", True, True, 0.1) for task in tasks]
    print_table(Measured(model, tasks, len(asked), asked), terminal.Terminal())
    rows = [line for line in capsys.readouterr().out.splitlines() if "100.0 %" in line]
    assert len(rows) == len(tasks) + 1
    assert len({wording.columns(row[: row.index("%")]) for row in rows}) == 1


@pytest.mark.parametrize(
    ("text", "n", "expected"), [("日本語", 5, "日本"), ("abc", 2, "ab"), ("日", 1, ""), ("", 3, "")]
)
def test_text_is_cut_by_the_columns_it_takes(text, n, expected):
    assert wording.cut(text, n) == expected
    assert wording.columns(wording.padded(expected, n)) == n


def test_ctrl_c_while_the_commands_are_imported_is_no_traceback(monkeypatch):
    class Interrupted:
        def find_spec(self, name, path=None, target=None):
            if name == "kimi_vl_cpp.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "kimi_vl_cpp.cli.app")
    monkeypatch.delattr("kimi_vl_cpp.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert cli.main(["doctor"]) == errors.EXIT_CANCELLED


def test_doctor_says_that_it_cannot_write_and_accuses_nobody(tmp_path):
    program = """import sys, tempfile
def full(*a, **k): raise OSError(28, "No space left on device", "/tmp/x")
tempfile.mkdtemp = full
from kimi_vl_cpp.cli import main; sys.exit(main(["doctor"]))"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert "INCOMPLETE" in done.stdout and "No space left" in done.stdout
    assert "do not trust" not in done.stdout and done.returncode == errors.EXIT_FAILED


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_standard_input_has_several_names(name):
    assert opening.resolve_picture(name) == "-"


def test_a_fork_goes_its_own_way_and_back_returns(talk):
    result = talk("hello", "/fork", "more", "/stats", "/back", "/back", "/undo")
    assert "Forked after 1 question" in result.err and "Back after 1 question" in result.err
    assert "/back: nothing was forked" in result.err and "0 questions left" in result.err


@pytest.mark.parametrize(
    ("about", "said"), [(lambda: 150.0, "takes about 3 min"), (lambda: None, "takes about 12 min"), (lambda: 9.0, "")]
)
def test_a_wait_of_more_than_a_minute_is_announced_once(about, said):
    now = [0.0]
    err = io.StringIO()
    shown = terminal.Terminal(io.StringIO(), err, {})
    line = progress_line.Progress(shown, clock=lambda: now[0])
    wait = attachments.LongWait(line, shown, 0, about)
    for done in range(5):
        wait("prefill", done, 1000)
        now[0] += 0.75 if done < 4 else 0
    assert err.getvalue().count("the prompt (1,000 tokens) takes about") == bool(said) and said in err.getvalue()


def test_a_chat_says_once_what_is_wrong_with_its_cache_folder(talk, tmp_path):
    folder, question = tmp_path / "cache", "hello " * 150
    talk(question, arguments=["--cache-dir", folder])
    for file in folder.glob("**/*.kv"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    result = talk(question, "/clear", question, arguments=["--cache-dir", folder])
    assert result.code == 0 and result.err.count("its checksum is wrong; it is removed, and computed again") == 1
    assert "checksum" not in talk(question, arguments=["--cache-dir", folder]).err


def test_a_chat_saved_with_its_pages_goes_on_at_once(talk, tmp_path):
    file = tmp_path / "talk.json"
    first = talk("hello " * 40, f"/save {file} --pages")
    assert "need not be computed again" in first.err and (tmp_path / "talk.json.pages").exists()
    plain = talk("more", arguments=["--load", file, "--timings"])
    (tmp_path / "talk.json.pages").unlink()
    computed = talk("more", arguments=["--load", file, "--timings"])
    assert plain.out == computed.out
    assert "of them known" in plain.err and "of them known" not in computed.err
