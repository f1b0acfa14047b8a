"""Accuracy by length of reasoning, and by votes: exact counts on a scripted model."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kimi_vl_cpp import cli
from kimi_vl_cpp.errors import BadRequest
from kimi_vl_cpp.evaluation import reasoning
from kimi_vl_cpp.evaluation.judge import Judge
from kimi_vl_cpp.evaluation.questions import Question, read_questions
from kimi_vl_cpp.model import KimiVL

THOUGHT = "Three legs, so it is a stool. " * 4  # the fake model's tokens are bytes


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (56, 56), "white").save(tmp_path / "1.png")
    lines = [
        {"id": str(n), "task": "count", "image": "1.png", "question": "How many?", "answers": [str(n)]} for n in (3, 4)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return tmp_path


@pytest.fixture
def thinking(script):
    script.metadata = {"general.name": "Kimi VL Fake Thinking"}
    script.answer = f"◁think▷{THOUGHT}◁/think▷3"
    with KimiVL("fake-Thinking.gguf", n_ctx=4096) as model:
        yield model


def test_both_readings_of_every_length(thinking, folder):
    questions = read_questions(folder)
    three, four = reasoning.by_length(thinking, questions, Judge(questions), [1024, 16, 16])
    marks = len("◁think▷◁/think▷".encode())
    assert three.tokens == len(THOUGHT) + marks and three.closed
    assert three.cut == {16: False, 1024: True} and three.forced[1024] and not any(four.forced.values())
    assert three.answers[1024] == "3" and three.answers[16] != "3"  # the script goes on with its thoughts
    shares = reasoning.shares_by_length([three, four])
    assert {length: (cut.right, forced.n) for length, (cut, forced) in shares.items()} == {16: (0, 2), 1024: (1, 2)}


def test_a_reasoning_that_never_ends_counts_as_cut_at_every_length(thinking, script, folder):
    script.answer = "◁think▷" + THOUGHT * 20
    (question, _) = read_questions(folder)
    (found,) = reasoning.by_length(thinking, [question], Judge([question]), [16, 64])
    assert not found.closed and not any(found.cut.values())


def test_what_ended_a_reasoning_is_in_the_response(thinking, script):
    assert thinking.chat("x").thinking_closed_by == "model"
    assert thinking.chat("x", thinking_budget=5).thinking_closed_by == "budget"
    assert thinking.chat("x", max_new_tokens=30).thinking_closed_by == "never"
    script.answer = "just an answer"
    assert thinking.chat("x").thinking_closed_by is None


@pytest.mark.parametrize("lengths", [[], [0], [4000]])
def test_lengths_that_cannot_be_are_refused(thinking, lengths):
    with pytest.raises(BadRequest) as caught:
        reasoning.check_lengths(lengths, thinking)
    assert caught.value.code == "request.thinking"


def test_a_model_that_does_not_reason_is_refused(model):
    with pytest.raises(BadRequest):
        reasoning.check_lengths([16], model)


def test_answers_vote_by_what_the_judge_reads_in_them(model, monkeypatch, folder):
    questions = read_questions(folder)
    said = ["4", "There are three.", "three", "4 legs", "It is 3."]

    class Answered:
        def __init__(self):
            usage = type("Usage", (), {"completion_tokens": 2})
            self.responses = [type("Response", (), {"text": text, "usage": usage}) for text in said]

    monkeypatch.setattr(type(model), "answers", lambda self, *a, **o: Answered())
    three, four = reasoning.by_votes(model, questions, Judge(questions), 5)
    assert three.right == (False, False, True, False, True)  # of equals the earliest
    assert four.right == (True, True, False, True, False)
    assert three.agreement == 0.6 and three.tokens == 10


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_the_majority_is_one_of_the_commonest(said):
    winner = reasoning.majority(said)
    assert all(said.count(winner) >= said.count(one) for one in said)
    assert all(said.count(one) < said.count(winner) for one in said[: said.index(winner)])


@pytest.mark.parametrize(
    ("task", "box", "one", "other"),
    [
        ("count", None, "There are three.", "3"),
        ("prices", None, "It costs $5.00", "5.00"),
        ("button", (0, 0, 1, 1), "click(x=0.5, y=0.25)", "(0.5, 0.25)"),
        ("words", None, "Platform  9.", "platform 9"),
    ],
)
def test_answers_that_mean_the_same_are_the_same(task, box, one, other, tmp_path):
    question = Question("q", task, tmp_path, "?", ("3",), box)
    judge = Judge([question])
    assert judge.said(question, one) == judge.said(question, other)
    assert judge.said(question, one) != judge.said(question, "something else")


def test_the_command_prints_and_draws_the_curve(script, folder, tmp_path, capsys):
    script.metadata = {"general.name": "Kimi VL Fake Thinking"}
    script.answer = f"◁think▷{THOUGHT}◁/think▷3"
    (tmp_path / "m-Thinking.gguf").touch()
    line = ["eval", "-m", f"{tmp_path}/m-Thinking.gguf", "--data", str(folder)]
    assert cli.main([*line, "--thinking", "16,1k", "--plot", f"{tmp_path}/c.png"]) == 0
    out = capsys.readouterr().out
    assert "16 tokens" in out and "1,024 tokens" in out and "50.0 %" in out
    with Image.open(tmp_path / "c.png") as drawn:
        assert drawn.size == (720, 420)
    assert cli.main([*line, "--thinking", "16,1k", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["complete"] and [one["cut"] for one in found["lengths"]] == [0, 0.5]
    assert cli.main([*line, "--votes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["right"] == [0.5, 0.5]
    for more in (["--thinking", "x"], ["--thinking", "1k", "--votes", "2"], ["--plot", "c.png"], ["--votes", "1"]):
        assert cli.main([*line, *more]) == 2
