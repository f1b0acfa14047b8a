"""Questions about one of several pictures in a chat."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kimi_vl_cpp.cli import app
from kimi_vl_cpp.evaluation.judge import Judge
from kimi_vl_cpp.evaluation.questions import Question
from kimi_vl_cpp.evaluation.run import evaluate


class Listening:
    """A model that answers yes and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def chat(self, text: str, images: list[Path], **_: Any) -> Any:
        self.asked.append((text, [image.name for image in images]))
        return SimpleNamespace(text="yes", timings=SimpleNamespace(first_token_s=0.0, decode_s=0.0))


def asked(n_pictures: int, names: str) -> list[tuple[str, list[str]]]:
    questions = [Question(str(i), "words", Path(name), f"q{i}", ("yes",)) for i, name in enumerate(names)]
    model: Any = Listening()
    judged = list(evaluate(model, questions, Judge(questions), max_new_tokens=1, n_pictures=n_pictures))
    assert all(one.exact for one in judged)
    return model.asked


def test_the_picture_that_is_meant_is_named_and_changes_its_place() -> None:
    assert asked(3, "aabcd") == [
        ("Picture 1: q0", ["a", "b", "c"]),
        ("Picture 2: q1", ["b", "a", "c"]),
        ("Picture 3: q2", ["c", "d", "b"]),
        ("Picture 1: q3", ["c", "d", "a"]),
        ("Picture 2: q4", ["a", "d", "b"]),
    ]


def test_one_picture_is_asked_about_as_ever_and_fewer_are_taken_where_there_are_no_more() -> None:
    assert asked(1, "ab") == [("q0", ["a"]), ("q1", ["b"])]
    assert asked(4, "ab") == [("Picture 1: q0", ["a", "b"]), ("Picture 2: q1", ["a", "b"])]
    assert asked(2, "aa") == [("Picture 1: q0", ["a"]), ("Picture 1: q1", ["a"])]


@pytest.mark.parametrize("arguments", [["--pictures", "0"], ["--pictures", "2", "--votes", "3"]])
def test_other_numbers_and_two_runs_at_once_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["eval", *arguments]) == 2 and "--pictures" in capsys.readouterr().err
