"""The built-in model: it answers the examples on every instruction set, it is as good as measured, and it is found.

What needs the model's own file skips while the package has none; figures of it make the file's absence a failure.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kimi_vl_cpp import KimiVL, _core, builtin, cli, errors
from kimi_vl_cpp.cli import exits
from kimi_vl_cpp.evaluation.judge import Judge
from kimi_vl_cpp.evaluation.questions import Question, read_questions
from kimi_vl_cpp.evaluation.run import evaluate, shares
from kimi_vl_cpp.files.variants import KEY_CARD, KEY_DEMO, KEY_MAX_NEW_TOKENS, KEY_TEMPERATURE
from kimi_vl_cpp.testing import TinyModel, make_tiny_model

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
MEASURED = ROOT / "tests" / "builtin_accuracy.json"
"""What `kimi-vl eval --json` printed of the built-in model and the bundled questions."""
MODEL = Path(builtin.__file__).parent / builtin.MODEL_NAME
ISAS = [isa["name"] for isa in _core.isas() if isa["supported"]]
MAX_MODEL_BYTES = 16_000_000

needs_model = pytest.mark.skipif(
    not MODEL.exists(), reason=f"there is no {MODEL.name} in the package yet: it is trained by demo/ and committed last"
)


def run(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(arguments))
    return code, out.getvalue(), err.getvalue()


# The trained model.


def test_figures_of_the_model_are_there_if_and_only_if_the_model_is() -> None:
    """So that a checkout which lost the file does not pass by skipping."""
    assert MODEL.is_file() == MEASURED.is_file()


def examples() -> list[tuple[Question, bool]]:
    """The questions of examples/, each with whether it is labelled as answered right."""
    entries: list[dict[str, Any]] = json.loads((EXAMPLES / "questions.json").read_text())
    return [
        (
            Question(
                f"{entry['image']}: {entry['question']}",
                "example",
                EXAMPLES / entry["image"],
                entry["question"],
                tuple(entry["answers"]),
                tuple(entry["box"]) if "box" in entry else None,
            ),
            entry.get("right", True),
        )
        for entry in entries
    ]


@needs_model
def test_at_least_a_dozen_examples_are_right_and_two_are_labelled_wrong() -> None:
    right = {question.image for question, is_right in examples() if is_right}
    wrong = {question.image for question, is_right in examples() if not is_right} - right
    assert len(right) >= 12 and len(wrong) >= 2
    assert all(image.is_file() for image in right | wrong)


@needs_model
@pytest.mark.parametrize("isa", ISAS)
def test_the_examples_are_answered_as_they_are_labelled(isa: str) -> None:
    """Right ones on every instruction set. Wrong ones may be near ties, so they are held to their label on the plainest
    alone."""
    labelled = {question.id: is_right for question, is_right in examples()}
    asked = [question for question, is_right in examples() if is_right or isa == "generic"]
    with KimiVL.builtin(isa=isa) as model:
        found = {one.question.id: (one.exact, one.answer) for one in evaluate(model, asked, Judge(asked))}
    unlike = {name: answer for name, (exact, answer) in found.items() if exact is not labelled[name]}
    assert not unlike, "not as labelled (right: true or false) in examples/questions.json"


@needs_model
def test_accuracy_on_the_bundled_questions_is_what_was_measured() -> None:
    """At least the measured share minus three standard errors (binomial), of all questions together."""
    measured = json.loads(MEASURED.read_text())["all"]
    questions = read_questions(builtin.questions_folder())
    assert len(questions) == measured["n"] >= 300
    with KimiVL.builtin() as model:
        exact, _ = shares(list(evaluate(model, questions, Judge(questions))))
    share = measured["right"] / measured["n"]
    error = (share * (1 - share) / measured["n"]) ** 0.5
    assert exact.value >= share - 3 * error


@needs_model
def test_it_is_one_small_file_that_says_what_it_is() -> None:
    assert MODEL.stat().st_size <= MAX_MODEL_BYTES
    gguf = _core.GGUFFile(str(MODEL))
    assert gguf.get(KEY_DEMO) is True
    assert gguf.get(KEY_TEMPERATURE) == 0 and 0 < gguf.get(KEY_MAX_NEW_TOKENS) <= 64
    with KimiVL.builtin() as model:
        assert model.has_vision and model.variant == "demo" and model.loaded.processor.in_token_limit < 1024
        assert (model.defaults.temperature, model.defaults.max_new_tokens) == (0, gguf.get(KEY_MAX_NEW_TOKENS))
    card = gguf.get(KEY_CARD).lower()
    assert all(word in card for word in ("demonstration", "not kimi-vl", "trained on", "cannot", "accuracy"))
    code, out, _ = run("inspect")
    assert code == errors.EXIT_OK and gguf.get(KEY_CARD).strip().splitlines()[-1] in out


@needs_model
def test_doctor_has_it_read_a_receipt_on_every_instruction_set() -> None:
    code, out, _ = run("doctor", "--json")
    rows = json.loads(out)["self_test"]["builtin"]
    assert code == errors.EXIT_OK
    assert {row["isa"]: row["answer"] for row in rows} == dict.fromkeys(ISAS, builtin.CHECK_ANSWER)


@needs_model
def test_the_first_command_of_the_readme_is_answered_right() -> None:
    code, out, err = run("run", "-i", str(EXAMPLES / "receipt.png"), "What is the total?")
    assert (code, out) == (errors.EXIT_OK, "$10.05\n")
    assert len(err.splitlines()) == 1 and "demonstration model" in err and "-m FILE" in err


def test_the_receipt_of_doctor_is_that_of_the_examples() -> None:
    if not EXAMPLES.is_dir():
        pytest.skip("there is no examples/ yet")
    assert builtin.check_picture().read_bytes() == (EXAMPLES / "receipt.png").read_bytes()


# What holds for any model in its place.


def test_the_page_gets_its_figures_and_the_file_the_card(tmp_path: Path, demo: TinyModel) -> None:
    card = pytest.importorskip("demo.card", reason="demo/ is not installed with the package")
    row = {"n": 40, "exact": 0.925, "interval": [0.801, 0.974]}
    page = card.with_figures((ROOT / "docs" / "builtin-model.md").read_text(), {"tasks": {"words": row}, "all": row})
    assert page.count("| 92.5 %") == 2 and "| 80.1 to 97.4" in page and "mean KL" in page.split("## What")[1]
    assert card.with_figures(page, {"tasks": {}, "all": row}).count("| 92.5 %") == 1
    text = card.card_of(page)
    assert "not Kimi-VL" in text and "## Using it" not in text and "<!--" not in text
    assert max(map(len, text.splitlines())) <= 100  # for terminals
    source = make_tiny_model(tmp_path / "m", vision="single", text_type="Q8_0")
    card.add_card(source.text, text, tmp_path / "carded.gguf")
    with KimiVL(source.text) as before, KimiVL(tmp_path / "carded.gguf") as after:
        assert after.variant == "demo" and after.defaults.temperature == 0
        picture = source.random_picture(56, 84)
        assert (before.encode_image(picture) == after.encode_image(picture)).all()
        asked = [before.tokenize("Hello")]
        assert (before.logits(asked) == after.logits(asked)).all()
    assert _core.GGUFFile(str(tmp_path / "carded.gguf")).get(KEY_CARD) == text


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A random model with the keys of the built-in one."""
    keys = {
        KEY_DEMO: True,
        KEY_TEMPERATURE: 0.0,
        KEY_MAX_NEW_TOKENS: 3,
        KEY_CARD: "# A card\n\nIt cannot \x1b[2J fly.",
        "kimi_vl.vision.in_token_limit": 100,
    }
    return make_tiny_model(tmp_path_factory.mktemp("demo"), vision="single", metadata=keys)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: TinyModel) -> Path:
    """A folder that stands for the package's, with the random model and one question."""
    (tmp_path / "eval").mkdir()
    (tmp_path / builtin.MODEL_NAME).symlink_to(demo.text)
    Image.new("RGB", (56, 56), "white").save(tmp_path / "eval" / "1.png")
    question = {"id": "a", "task": "words", "image": "1.png", "question": "What does it say?", "answers": ["Hello"]}
    (tmp_path / "eval" / "questions.jsonl").write_text(json.dumps(question) + "\n")
    monkeypatch.setattr(builtin, "_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_model_the_builtin_one_answers_and_says_so(package: Path) -> None:
    code, out, err = run("run", "Hello")
    with KimiVL.builtin() as model:
        assert out.strip() == model.chat("Hello").text.strip()
    assert code == errors.EXIT_OK
    assert err.splitlines()[0].startswith("note: the small built-in demonstration model answers, not Kimi-VL; -m FILE")
    code, out, err = run("run", "--json", "Hello")
    assert json.loads(out)["model"] == {"name": "Tiny Kimi-VL", "variant": "demo", "file": str(package / "model.gguf")}
    code, out, err = run("eval", "--json")
    report = json.loads(out)
    assert (code, report["data"], report["all"]["n"]) == (errors.EXIT_OK, None, 1) and "built-in" in err


def test_a_real_model_in_the_folder_is_named_in_the_note(package: Path) -> None:
    (package / "Kimi-VL-Q4_K_M.gguf").write_bytes(b"")
    (package / "model.gguf").rename(package / "mmproj-x.gguf")  # no model's name
    (package / "model.gguf").symlink_to((package / "mmproj-x.gguf").resolve())
    assert "-m FILE names a real one, here Kimi-VL-Q4_K_M.gguf" in run("run", "Hello")[2]


def test_a_named_copy_is_still_the_demonstration_model(demo: TinyModel) -> None:
    code, _, err = run("run", "-m", str(demo.text), "Hello")
    assert code == errors.EXIT_OK and "note: this is the small demonstration model, not Kimi-VL" in err


def test_what_the_file_says_of_sampling_is_the_default(demo: TinyModel) -> None:
    with KimiVL(demo.text) as model:
        assert (model.defaults.temperature, model.defaults.max_new_tokens) == (0, 3)
        assert model.loaded.processor.in_token_limit == 100
        first = model.chat("Hello")
        assert len(first.token_ids) <= 3 and model.chat("Hello").text == first.text
        assert len(model.chat("Hello", max_new_tokens=5).token_ids) <= 5


@pytest.mark.parametrize(
    "keys",
    [
        {KEY_TEMPERATURE: float("nan"), KEY_MAX_NEW_TOKENS: 0},
        {KEY_TEMPERATURE: -1.0, KEY_MAX_NEW_TOKENS: (1 << 32) - 1},
        {KEY_TEMPERATURE: "hot", KEY_MAX_NEW_TOKENS: True, KEY_CARD: 7, KEY_DEMO: "yes"},
    ],
)
def test_keys_that_cannot_be_meant_are_passed_over(tmp_path: Path, keys: dict[str, Any]) -> None:
    made = make_tiny_model(tmp_path / "m", vision="single", metadata=keys)
    with KimiVL(made.text) as model:
        assert (model.variant, model.defaults.temperature, model.defaults.max_new_tokens) == ("unknown", 0.6, 2048)
    assert run("inspect", str(made.text))[0] == errors.EXIT_OK


def test_inspect_shows_the_card_without_control_characters(package: Path, demo: TinyModel) -> None:
    for arguments in ([], [str(demo.text)]):
        code, out, err = run("inspect", *arguments)
        assert code == errors.EXIT_OK
        assert "# A card\n\nIt cannot" in out and "\x1b" not in out + err
        assert "scaled down to 100 patches" in out and ", demo)" in out
        assert ("huggingface.co" in err) == (not arguments)
    assert "It cannot" in json.loads(run("inspect", "--json")[1])["card"]


def test_chat_opens_with_it_and_says_so(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
    code, out, err = run("chat")
    assert code == errors.EXIT_OK and out and "demonstration model" in err


def test_doctor_reports_a_model_that_reads_wrong_and_one_that_is_missing(package: Path) -> None:
    (package / builtin.CHECK_PICTURE_NAME).write_bytes((package / "eval" / "1.png").read_bytes())
    code, out, _ = run("doctor")
    assert code == errors.EXIT_FAILED and "asked for the total of a receipt, answers" in out and "FAILED" in out
    (package / builtin.MODEL_NAME).unlink()
    code, out, _ = run("doctor")
    assert code == errors.EXIT_OK and "the built-in model is not in this installation" in out


def test_a_file_named_builtin_means_nothing_special(package: Path, demo: TinyModel) -> None:
    (package / "builtin").write_bytes(b"no model")
    with KimiVL.builtin() as model:
        assert model.files.text == package / "model.gguf"
    with pytest.raises(errors.BadModelFile):
        KimiVL("builtin")
    assert run("run", "-m", "builtin", "Hello")[0] == errors.EXIT_BAD_MODEL_FILE


def test_a_vision_file_without_a_model_is_a_mistake(package: Path) -> None:
    code, _, err = run("run", "--mmproj", "x.gguf", "Hello")
    assert code == errors.EXIT_USAGE and "--mmproj names a vision file, but no model was named" in err


def test_an_installation_without_the_files_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builtin, "_root", lambda: tmp_path)
    for ask in (KimiVL.builtin, builtin.model_path, builtin.questions_folder, builtin.check_picture):
        with pytest.raises(errors.BadModelFile, match="install the package again") as caught:
            ask()
        assert caught.value.code == "builtin.missing" and str(tmp_path) in str(caught.value)
    code, _, err = run("run", "Hello")
    assert code == errors.EXIT_BAD_MODEL_FILE and "name a model of your own" in err
    assert exits.HOW_TO_GET_A_MODEL in err
    code, _, err = run("eval")
    assert code == errors.EXIT_BAD_MODEL_FILE and "--data" in err


def test_a_zipped_package_works_from_copies(package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = tmp_path / "package.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("model.gguf", "eval/1.png", "eval/questions.jsonl"):
            file.write(package / name, f"builtin/{name}")
    monkeypatch.setattr(builtin, "_root", lambda: zipfile.Path(archive, "builtin/"))
    with KimiVL.builtin() as model:
        assert model.has_vision
    assert builtin.model_path() == builtin.model_path() and builtin.model_path().suffix == ".gguf"
    assert [question.id for question in read_questions(builtin.questions_folder())] == ["a"]


def test_the_package_data_is_tracked_by_git_and_so_in_the_wheel() -> None:
    """scikit-build-core takes what git does not ignore."""
    folder = "kimi_vl_cpp/builtin"
    names = [f"{folder}/{name}" for name in ("model.gguf", "receipt.png", "eval/questions.jsonl", "eval/00001.png")]
    try:
        inside = subprocess.run(["git", "rev-parse", "--git-dir"], cwd=ROOT, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no git here")
    if inside.returncode != 0:
        pytest.skip("this is no checkout")
    ignored = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True)
    assert (ignored.returncode, ignored.stdout) == (1, "")
