"""`kimi-vl eval`: reading questions, judging answers, asking a model."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kimi_vl_cpp import KimiVL, cli, errors
from kimi_vl_cpp.evaluation.judge import Judge
from kimi_vl_cpp.evaluation.questions import Question, check_pictures, read_questions
from kimi_vl_cpp.evaluation.run import Share, by_task, default_max_new_tokens, evaluate
from kimi_vl_cpp.testing import make_tiny_model


def line(**changes: Any) -> dict[str, Any]:
    values = {"id": "a", "task": "words", "image": "1.png", "question": "What does it say?", "answers": ["Hello"]}
    return {**values, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (112, 56), "white").save(tmp_path / "1.png")
    return tmp_path


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    (folder / "questions.jsonl").write_text(text)
    return folder


def question(task: str, answer: str, box: Any = None, image: Path = Path("1.png")) -> Question:
    return Question("q", task, image, "?", (answer,), box)


def judge(task: str, *answers: str) -> Judge:
    return Judge([question(task, answer) for answer in answers])


def test_questions_are_read_in_order_with_their_boxes(folder: Path) -> None:
    write(folder, line(), "", line(id="b", task="button", box=[1, 2, 3, 4.5]))
    first, second = read_questions(folder)
    assert (first.id, first.answers, first.image) == ("a", ("Hello",), folder / "1.png")
    assert second.box == (1.0, 2.0, 3.0, 4.5)


@pytest.mark.parametrize(
    "lines, words",
    [
        (["{"], "line 1: is not JSON"),
        (["[]"], "line 1: is [], expected an object"),
        ([line(), line()], "line 2: id 'a' occurs twice"),
        ([line(answers=[])], "answers is []"),
        ([line(answers="Hello")], "expected a list of texts"),
        ([line(question=3)], "question is 3"),
        ([line(image="../1.png")], "expected the name of a file in the same folder"),
        ([line(image="2.png")], "'2.png' is not in"),
        ([line(task="button")], "has no box"),
        ([line(box=[1, 2, 3])], "expected [x0, y0, x1, y1]"),
        ([line(box=[1, 2, 3, float("nan")])], "expected [x0, y0, x1, y1]"),
        ([""], "holds no questions"),
        (["[" * 100_000], "line 1: is not JSON"),
        (["1" * 5000], "line 1: is "),
        (["\x1b[2J"], "line 1: is not JSON"),
        ([line(), line(id="")], "line 2: id is ''"),
        ([line(id=None)], "id is missing"),
        ([line(question="\ud800")], "question is '\\ud800', expected a text"),
        ([line(question="x" * 10_001)], "expected a text"),
        ([line(answers=["a", 1])], "expected a list of texts"),
        ([line(image="/etc/passwd")], "expected the name of a file in the same folder"),
        ([line(image="..")], "expected the name of a file in the same folder"),
        ([line(image="1.png\0")], "expected the name of a file in the same folder"),
        ([line(image="x" * 5000 + ".png")], "is not in"),
        ([line(box=[1, 2, 10**400, 4])], "expected [x0, y0, x1, y1]"),
        ([line(box=[3, 4, 1, 2])], "with x0 < x1 and y0 < y1"),
        ([line(box=[True, 2, 3, 4])], "expected [x0, y0, x1, y1]"),
    ],
)
def test_a_bad_line_is_named(folder: Path, lines: list[Any], words: str) -> None:
    write(folder, *lines)
    with pytest.raises(errors.BadRequest) as caught:
        read_questions(folder)
    assert words in str(caught.value)
    assert str(folder / "questions.jsonl") in str(caught.value)
    assert caught.value.code == "eval.data"


def test_a_folder_without_questions_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.BadRequest, match=r"questions\.jsonl: cannot be read: No such file"):
        read_questions(tmp_path)


def test_what_is_no_file_of_questions_is_named_without_waiting(folder: Path) -> None:
    path = folder / "questions.jsonl"
    os.mkfifo(path)
    with pytest.raises(errors.BadRequest, match="is not a regular file"):
        read_questions(folder)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(errors.BadRequest, match="is not a regular file"):
        read_questions(folder)
    path.unlink()
    path.write_bytes(b'{"id": "\xff"}')
    with pytest.raises(errors.BadRequest, match="is not UTF-8 at byte 8"):
        read_questions(folder)
    path.write_bytes(b"\n" * ((64 << 20) + 1))
    with pytest.raises(errors.BadRequest, match="expected at most 67108864"):
        read_questions(folder)
    with pytest.raises(errors.BadRequest, match="cannot be read"):
        read_questions("a\0b")


def test_a_line_ends_at_a_line_feed_alone(folder: Path) -> None:
    text = json.dumps(line(question="one\u2028two"), ensure_ascii=False)
    (folder / "questions.jsonl").write_bytes(("\ufeff" + text + "\r\n").encode())
    assert read_questions(folder)[0].question == "one\u2028two"


def test_a_damaged_picture_is_named_with_its_line(folder: Path) -> None:
    (folder / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    questions = read_questions(write(folder, line(), "", line(id="b", image="2.png")))
    with pytest.raises(errors.BadRequest, match=r"questions\.jsonl: line 3: image .*2\.png") as caught:
        check_pictures(questions)
    assert caught.value.code == "eval.data"


@pytest.mark.parametrize(
    "task, accepted, answer, exact, lenient",
    [
        ("words", "Hello you", "  Hello   you. ", True, True),
        ("words", "Hello", "hello", False, True),
        ("words", "Hello", 'It says "Hello".', False, True),
        ("words", "Hello", "Help", False, False),
        ("words", "HERE", "There", False, False),
        ("words", "See you.", "See you", True, True),
        ("title", "Hello", "hello", False, True),
        ("prices", "$4.20", "$4.20", True, True),
        ("prices", "$4.20", "4.20", False, True),
        ("receipt_total", "4.20", "The total is 4,20.", False, True),
        ("receipt_total", "4.20", "4.20 or 5.30", False, False),
        ("receipt_total", "$4.20", "You bought 2 items for 4.20 $.", False, True),
        ("receipt_total", "$4.20", "\u20ac4.20", False, False),
        ("receipt_total", "$1204.20", "It is $1,204.20", False, True),
        ("receipt_total", "$4.20", "$4.205", False, False),
        ("receipt_total", "$4.20", "$14.20", False, False),
        ("prices", "$4.00", "It costs $4", False, True),
        ("prices", "$4.00", "It costs 4", False, False),
        ("shape", "circle", "Circle.", True, True),
        ("shape", "circle", "It is a circle, not a square.", False, False),
        ("shape", "circle", "There are circles.", False, True),
        ("colour", "gray", "It is grey.", False, True),
        ("colour", "red", "reddish", False, False),
        ("count", "3", "There are three of them", False, True),
        ("count", "3", "13", False, False),
        ("count", "3", "3.13", False, False),
        ("count", "3", "3 of 13", False, False),
        ("where", "top left", "In the upper-left corner", False, True),
        ("where", "left", "top left", False, False),
        ("where", "centre", "in the middle", False, True),
    ],
)
def test_answers_are_judged(task: str, accepted: str, answer: str, exact: bool, lenient: bool) -> None:
    others = ("circle", "square", "red", "gray", "3", "13", "top left", "left", "centre", "top")
    judging = judge(task, accepted, *others)
    assert judging.exact(question(task, accepted), answer) is exact
    assert judging.lenient(question(task, accepted), answer) is lenient


@pytest.mark.parametrize(
    "answer, exact, lenient",
    [
        ("(0.25, 0.50)", True, True),
        ("(0.25, 0.50).", True, True),
        ("(0.25,0.5)", False, True),
        ('{"x": 0.25, "y": 0.5}', False, True),
        ("(-0.25, 0.50)", False, False),
        ("[0.2, 0.4, 0.3, 0.6]", False, True),
        ('[{"bbox_2d": [0.2, 0.4, 0.3, 0.6], "label": "OK"}]', False, True),
        ("x=0.25, y=0.50", True, True),
        ("click(x=0.25, y=0.50)", False, True),
        ("## Action:\nClick it.\n## Code:\n```python\npyautogui.click(x=0.25, y=0.50)\n```", False, True),
        ("click(x=0.25, y=0.50) and again click(x=0.25, y=0.50)", False, True),
        ("click(x=0.25, y=0.50), then click(x=0.75, y=0.50)", False, False),
        ("click at 28, 28", False, True),
        ("x: 250, 500 of a thousand", False, True),
        ("(0.75, 0.50)", False, False),
        ("(0.25, 0.50) or (0.75, 0.50)", False, False),
        ("left", False, False),
    ],
)
def test_points_are_judged_by_their_box(folder: Path, answer: str, exact: bool, lenient: bool) -> None:
    asked = question("button", "(0.25, 0.50)", (20.0, 20.0, 40.0, 40.0), folder / "1.png")
    judging = Judge([asked])
    assert judging.exact(asked, answer) is exact
    assert judging.lenient(asked, answer) is lenient


def test_intervals_are_wilsons() -> None:
    # 8 of 10: 0.4902 to 0.9433 (Wilson 1927, computed by hand from the formula with z = 1.96).
    low, high = Share(8, 10).interval
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert Share(0, 10).interval[0] == 0 and Share(10, 10).interval[1] == pytest.approx(1)
    assert Share(0, 0).interval == (0, 1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), vision="single")


def test_a_model_is_asked_greedily_and_judged(folder: Path, tiny: Any) -> None:
    write(folder, line(), line(id="b", task="shape", answers=["circle"]))
    questions = read_questions(folder)
    with KimiVL(tiny.text, n_ctx=256) as model:
        seen: list[int] = []
        judged = list(
            evaluate(model, questions, Judge(questions), max_new_tokens=4, before=lambda i, _: seen.append(i))
        )
        alone = model.chat("What does it say?", images=[folder / "1.png"], temperature=0, max_new_tokens=4)
    assert seen == [0, 1]
    assert judged[0].answer == alone.text
    exact, _ = by_task(judged)["words"]
    assert (exact.right, exact.n) == (int(alone.text.strip() == "Hello"), 1)


def run_eval(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["eval", *arguments])
    return code, out.getvalue(), err.getvalue()


def test_the_command_prints_a_table_and_json(folder: Path, tiny: Any) -> None:
    write(folder, line(), line(id="b", task="count", answers=["3"]))
    options = ("-m", str(tiny.text), "--data", str(folder), "--max-tokens", "3")
    code, out, _ = run_eval(*options, "--failures")
    assert code == errors.EXIT_OK
    assert [row.split()[0] for row in out.splitlines()[1:5]] == ["task", "words", "count", "all"]
    code, out, _ = run_eval(*options, "--json", "--task", "count")
    report = json.loads(out)
    assert code == errors.EXIT_OK
    assert list(report["tasks"]) == ["count"]
    assert report["answers"][0]["accepted"] == ["3"]


def test_the_report_says_everything(folder: Path, tiny: Any) -> None:
    Image.new("RGB", (56, 56), "red").save(folder / "0.png")
    write(
        folder,
        line(),
        line(id="b", task="count", answers=["3"], image="0.png"),
        line(id="c", task="count", answers=["4"]),
        line(id="d", task="button", answers=["(0.5, 0.5)"], box=[1, 1, 9, 9]),
    )
    options = ("-m", str(tiny.text), "--data", str(folder), "--max-tokens", "3", "--json")
    code, out, err = run_eval(*options, "-n", "1")
    report = json.loads(out)
    assert (code, err, report["complete"]) == (errors.EXIT_OK, "", True)
    assert report["model"]["file"] == str(tiny.text) and report["data"] == str(folder)
    assert [answer["id"] for answer in report["answers"]] == ["b", "a", "d"]  # by the names of the pictures
    assert {task: row["n"] for task, row in report["tasks"].items()} == {"words": 1, "count": 1, "button": 1}
    row = report["all"]
    assert row["right"] == sum(answer["exact"] for answer in report["answers"]) and row["n"] == 3
    assert row["exact"] == round(row["right"] / 3, 4)
    assert 0 <= row["interval"][0] <= row["exact"] <= row["interval"][1] <= 1
    assert row["seconds_per_question"] > 0


def test_wrong_answers_are_listed_without_control_characters(folder: Path, tiny: Any) -> None:
    write(folder, line(task="a\x1b[2Jb", question="What\nis \x1b]0;x\x07 this?", answers=["\x1bHello"]))
    code, out, err = run_eval("-m", str(tiny.text), "--data", str(folder), "--max-tokens", "3", "--failures")
    assert code == errors.EXIT_OK
    assert "1 wrong answer, pictures in" in out and "1.png  What" in out and "expected" in out
    assert not any(ord(character) < 32 and character != "\n" for character in out + err)


@pytest.mark.parametrize(
    "failure, code", [(KeyboardInterrupt(), errors.EXIT_CANCELLED), (errors.ContextFull("full"), errors.EXIT_FAILED)]
)
def test_what_was_measured_is_printed_when_it_stops(
    folder: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch, failure: BaseException, code: int
) -> None:
    write(folder, line(), line(id="b"), line(id="c"))
    honest, asked = KimiVL.chat, []

    def chat(self: KimiVL, prompt: str, *arguments: Any, **options: Any) -> Any:
        asked.append(prompt)
        if len(asked) == 3:
            raise failure
        return honest(self, prompt, *arguments, **options)

    monkeypatch.setattr(KimiVL, "chat", chat)
    found, out, err = run_eval("-m", str(tiny.text), "--data", str(folder), "--max-tokens", "3")
    assert found == code
    assert "stopped after 2 of 3 questions" in err and "/2 " in out
    asked.clear()
    found, out, err = run_eval("-m", str(tiny.text), "--data", str(folder), "--max-tokens", "3", "--json")
    report = json.loads(out)
    assert (found, report["complete"], report["all"]["n"]) == (code, False, 2)


def test_a_picture_is_encoded_once_for_all_its_questions(
    folder: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, *(line(id=str(i), question=f"Question {i}?") for i in range(4)))
    questions = read_questions(folder)
    with KimiVL(tiny.text, n_ctx=256) as model:
        judged = list(evaluate(model, questions, Judge(questions), max_new_tokens=1))
        assert len(model.loaded.image_cache) == 1
        again = model.chat("Question 3?", images=[folder / "1.png"], temperature=0, max_new_tokens=1)
    assert len(judged) == 4 and again.timings.encode_s == 0


def test_a_model_that_sees_nothing_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    text_only = make_tiny_model(tmp_path / "blind", vision="none")
    write(folder, line())
    code, out, err = run_eval("-m", str(text_only.text), "--data", str(folder))
    assert (code, out) == (errors.EXIT_USAGE, "") and "[model.no_vision]" in err


@pytest.mark.parametrize("arguments", [["-n", "0"], ["-n", "x"], ["--max-tokens", "0"], ["--in-token-limit", "1"]])
def test_numbers_that_cannot_be_meant_are_refused(folder: Path, tiny: Any, arguments: list[str]) -> None:
    write(folder, line())
    code, out, _ = run_eval("-m", str(tiny.text), "--data", str(folder), *arguments)
    assert (code, out) == (errors.EXIT_USAGE, "")


def test_an_unknown_task_is_told_before_the_model_is_loaded(folder: Path) -> None:
    write(folder, line())
    code, _, err = run_eval("--data", str(folder), "--task", "poems")
    assert code == errors.EXIT_USAGE
    assert "--task poems: no such task; there are words" in err


@pytest.mark.parametrize("name, longest", [("Instruct", 256), ("Thinking", 4096), ("Thinking-2506", 4096), ("x", 256)])
def test_answers_have_room_for_a_sentence_or_for_reasoning(tmp_path: Path, name: str, longest: int) -> None:
    made = make_tiny_model(tmp_path / "m", vision="single", name=f"Kimi-VL-A3B-{name}")
    with KimiVL(made.text, n_ctx=256) as model:
        assert default_max_new_tokens(model) == longest


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"bbox_2d": [0.20, 0.65, 0.30, 0.85]}', True),
        ("[[80, 130, 120, 170]]", True),
        ("<box>(200, 650), (300, 850)</box>", True),
        ('{"x1": 80, "y1": 130, "x2": 120, "y2": 170}', True),
        ("box [0.20, 0.65, 0.30, 0.85], click (0.25, 0.75)", True),
        ("[0.70, 0.65, 0.90, 0.85]", False),
        ("click (0.25, 0.75), that is pyautogui.click(x=0.25, y=0.75)", True),
        ("(0.25, 0.75) or (0.8, 0.1)", False),
        ("[0.2, 0.65, 0.3, 0.85] or [0.7, 0.1, 0.8, 0.2]", False),
        ("(0.8, 0.1) and (0.8, 0.1)", False),
    ],
)
def test_a_box_stands_for_its_middle_and_a_place_may_be_named_twice(tmp_path, answer, right):
    from PIL import Image

    from kimi_vl_cpp.evaluation.judge import Judge
    from kimi_vl_cpp.evaluation.questions import Question

    Image.new("RGB", (400, 200)).save(tmp_path / "b.png")
    question = Question("b", "button", tmp_path / "b.png", "Click on Save.", ("(0.25, 0.75)",), (80, 130, 120, 170))
    assert Judge([question]).lenient(question, answer) is right
