"""`kimi-vl imatrix`: the table, what goes to which stream, and how it goes wrong."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pexpect
import pytest
from PIL import Image

from kimi_vl_cpp import cli, errors
from kimi_vl_cpp.quantize.importance.file import Imatrix, read_imatrix, write_imatrix


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(seed=3, routing="random")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "a.txt").write_text("Some words to read. " * 40)
    Image.fromarray(model.random_picture(56, 84)).save(root / "p.png")
    (root / "bad\x1b[31m.png").write_bytes(b"no picture")
    return root


@pytest.fixture
def run(capsys, model, folder, tmp_path):
    """run(*arguments) with the model and the folder: exit code, standard output, standard error."""

    def call(*arguments, plain=False):
        given = (
            [] if plain else ["-m", model.text, "--data", folder, "-c", "64", "--answer", "2", tmp_path / "out.imatrix"]
        )
        code = cli.main(["imatrix", *(str(a) for a in (*given, *arguments))])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_the_table_is_on_standard_output_and_the_rest_is_not(run, tmp_path):
    code, out, err = run("--few", "30")
    assert code == 0
    lines = out.splitlines()
    assert re.split(r"\s{2,}", lines[1].strip()) == [
        "layer",
        "least",
        "median",
        "most",
        "< 30",
        "never",
        "< 30 by text alone",
    ]
    assert [line.split()[0] for line in lines[2:4]] == ["1", "2"]
    assert len({len(line) for line in lines[1:4]}) == 1  # columns under each other
    assert "experts" in lines[-1] or "texts alone" in lines[-1]
    assert "1 picture" in err and "out.imatrix" in err
    assert "note: skipped" in err and "\x1b[31m" not in err  # the name of a file is data
    assert read_imatrix(tmp_path / "out.imatrix").n_prompts > 1


def test_a_file_can_be_shown_again(run, tmp_path):
    _, out, _ = run()
    code, again, err = run("--show", tmp_path / "out.imatrix", plain=True)
    assert code == 0 and again == out and "Tiny Kimi-VL" in err
    code, out, _ = run("--show", tmp_path / "out.imatrix", "--json", plain=True)
    values = json.loads(out)
    assert values["model"] == "Tiny Kimi-VL" and values["coverage"]["layers"][0]["layer"] == 1
    assert set(values["tokens"]) == {"text", "picture", "answer"}


def test_a_foreign_file_is_shown_without_what_it_does_not_say(run, tmp_path):
    sums = {"blk.1.ffn_gate_exps.weight": (np.ones((3, 4), np.float32), np.array([1, 2, 300]))}
    write_imatrix(tmp_path / "a.gguf", Imatrix(sums))
    code, out, _ = run("--show", tmp_path / "a.gguf", "--few", 100, plain=True)
    assert code == 0 and out.splitlines()[2].split() == ["1", "1", "2", "300", "2", "-", "?"]
    assert "2 of 3 experts" in out and "texts alone" not in out


def test_json_says_everything(run):
    code, out, _ = run("--json")
    report = json.loads(out)
    assert code == 0 and report["prompts"]["pictures"] == 1
    assert report["skipped"][0]["file"].endswith("bad\x1b[31m.png")
    assert report["tokens"]["picture"] == 6


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], errors.EXIT_USAGE, "no model"),
        (["-m", "MODEL"], errors.EXIT_USAGE, "--data"),
        (["-m", "MODEL", "--data", "FOLDER"], errors.EXIT_USAGE, "no output"),
        (["-m", "MODEL", "--data", "nowhere", "OUT"], errors.EXIT_USAGE, "no such folder"),
        (["-m", "absent.gguf", "--data", "FOLDER", "OUT"], errors.EXIT_BAD_MODEL_FILE, "no such file"),
        (["-m", "MODEL", "--data", "FOLDER", "-c", "3", "OUT"], errors.EXIT_USAGE, "ctx is 3"),
        (
            ["-m", "MODEL", "--data", "FOLDER", "-c", "many", "OUT"],
            errors.EXIT_USAGE,
            "-c many: expected a whole number",
        ),
        (["-m", "MODEL", "--data", "FOLDER", "MODEL"], errors.EXIT_USAGE, "exists already"),
        (["-m", "MODEL", "--data", "FOLDER", "--force", "MODEL"], errors.EXIT_USAGE, "same file as the input"),
        (["--show", "absent"], errors.EXIT_BAD_MODEL_FILE, "no such file"),
        (["--show", "MODEL"], errors.EXIT_BAD_MODEL_FILE, "this is a model"),
        (["--show", "MODEL", "OUT"], errors.EXIT_USAGE, "nothing else"),
    ],
)
def test_mistakes_are_told_with_an_exit_code(run, model, folder, tmp_path, arguments, code, said):
    names = {"MODEL": model.text, "FOLDER": folder, "OUT": tmp_path / "out.imatrix"}
    got, out, err = run(*(names.get(a, a) for a in arguments), plain=True)
    assert got == code and said in err and out == ""
    assert not (tmp_path / "out.imatrix").exists()


def test_ctrl_c_says_that_nothing_was_written(model, folder, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "long.txt").write_text("word " * 400_000)
    out = tmp_path / "out.imatrix"
    arguments = ["-m", "kimi_vl_cpp", "imatrix", "-m", str(model.text), "--data", str(tmp_path / "data"), str(out)]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", dimensions=(24, 200), timeout=120)
    child.expect("importance")  # the progress line
    child.sendintr()
    child.expect("nothing was written")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == errors.EXIT_CANCELLED and not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
