"""The benchmarks' own files, made up: what is asked, that the right answers score full marks and wrong ones none."""

from __future__ import annotations

import base64
import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import documents
import pytest
from PIL import Image

from kimi_vl_cpp import KimiVL, builtin, errors
from kimi_vl_cpp.cli import app
from kimi_vl_cpp.evaluation.boards import run
from kimi_vl_cpp.evaluation.boards.board import BOARDS, Item, board


def picture_bytes(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (100, 50), colour).save(out, "PNG")
    return out.getvalue()


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


RED, BLUE = (base64.b64encode(picture_bytes(colour)).decode() for colour in ("red", "blue"))

# benchmark -> (rows, right answers)
FILES: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "mmmu": (
        [
            {"index": "1", "image": f"['{RED}', '{BLUE}']", "question": "<image 2> or <image 1>?", "A": "x", "B": "y"}
            | {"answer": "B", "category": "Art"},
            {"index": "2", "image": RED, "question": "Name it.", "answer": "red", "category": "Art"},
        ],
        ["(B)", "The answer is red."],
    ),
    "mathvista": (
        [
            {"pid": "1", "image": "p.png", "query": "Question: 1+1?", "choices": None, "answer": "2"}
            | {"answer_type": "integer", "precision": None, "metadata": {"task": "math word problem"}},
            {
                "pid": "2",
                "image": "p.png",
                "query": "Which?",
                "choices": ["a", "b"],
                "answer": "b",
                "answer_type": "text",
            }
            | {"precision": None},
        ],
        ["The answer is 2", "(B)"],
    ),
    "infovqa": ([{"questionId": 7, "image_local_name": "p.png", "question": "?", "answers": ["Paris"]}], ["paris"]),
    "ocrbench": (
        [{"image_path": "p.png", "question": "?", "answers": ["STOP"], "type": "Scene", "dataset_name": "x"}],
        ["It says Stop"],
    ),
    "screenspot": (
        [{"img_filename": "p.png", "instruction": "close", "bbox": [10, 10, 20, 10], "data_type": "icon"}],
        ["click(x=0.2, y=0.3)"],
    ),
    "screenspot-pro": (
        [{"img_filename": "p.png", "instruction": "close", "bbox": [10, 10, 30, 20], "group": "CAD", "id": "a"}],
        ["click(x=0.2, y=0.3)"],
    ),
    "mmlongbench-doc": (
        [{"doc_id": "d.pdf", "question": "?", "answer": "12", "answer_format": "Int", "doc_type": "Report"}],
        ["12"],
    ),
}


def write(folder: Path, name: str) -> Path:
    (folder / "p.png").write_bytes(picture_bytes())
    (folder / "d.pdf").write_bytes(b"%PDF-1.4")
    rows = FILES[name][0]
    if name == "mmmu":
        return write_tsv(folder / "data.tsv", rows)
    value: Any = (
        {"data": rows} if name == "infovqa" else {row["pid"]: row for row in rows} if name == "mathvista" else rows
    )
    (folder / "data.json").write_text(json.dumps(value))
    return folder / "data.json"


@pytest.mark.parametrize("name", BOARDS)
def test_right_answers_score_everything_and_wrong_ones_nothing(tmp_path: Path, name: str) -> None:
    items = list(board(name).items(write(tmp_path, name), tmp_path))
    right = FILES[name][1]
    assert len(items) == len(right)
    good = run.table(board(name), [(i, run.Answer(a)) for i, a in zip(items, right, strict=True)], "instruct")
    bad = run.table(board(name), [(i, run.Answer("zzz")) for i in items], "instruct")
    assert good["all"]["value"] == board(name).scale == good["all"]["low"]
    assert bad["all"]["low"] == 0 and good["paper"] == board(name).paper["instruct"]
    failed = run.total([(i, run.Answer("", "context.full")) for i in items])
    assert failed.value == 0 and failed.failed == len(items) and failed.undecided == 0


def test_pictures_stand_where_the_question_names_them(tmp_path: Path) -> None:
    first, second = board("mmmu").items(write(tmp_path, "mmmu"), tmp_path)
    assert [part if isinstance(part, str) else part[:4] for part in first.content][:4] == [
        "Question: ",
        b"\x89PNG",
        " or ",
        b"\x89PNG",
    ]
    assert first.content[1] == base64.b64decode(BLUE) and first.content[3] == base64.b64decode(RED)
    assert second.content == (base64.b64decode(RED), "Question: Name it.\n")


def test_a_row_may_name_the_picture_of_another(tmp_path: Path) -> None:
    rows = [{"index": "5", "image": RED}, {"index": "6", "image": "5"}, {"index": "7", "image": "9"}]
    path = write_tsv(tmp_path / "d.tsv", [row | {"question": "?", "answer": "['x']"} for row in rows])
    items = board("infovqa").items(path, tmp_path)
    assert next(items).content[0] == next(items).content[0] == base64.b64decode(RED)
    with pytest.raises(errors.BadRequest, match="row '7': image names row '9', which is not before it"):
        next(items)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("d.json", "[]", "holds no questions"),
        ("d.json", "{", "is not JSON"),
        ("d.json", "[1]", "expected an object"),
        ("d.json", '[{"question": "?"}]', "has no picture|has no 'answer'"),
        ("d.json", '[{"question": "?", "answers": ["x"], "image": "../x.png"}]', "lies outside"),
        ("d.json", '[{"question": "?", "answers": ["x"], "image": "x.png"}]', "--images"),
        ("d.txt", "", "expected a .tsv"),
        ("d.tsv", "index\timage\tquestion\tanswer\n1\t" + "!" * 70 + "\t?\tx\n", "is not base64"),
    ],
)
def test_a_file_that_is_not_the_benchmarks_is_refused_by_row(
    tmp_path: Path, name: str, content: str, match: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(errors.BadRequest, match=match) as caught:
        list(board("infovqa").items(tmp_path / name, tmp_path))
    assert caught.value.code == "eval.data"


def test_parquet_and_unknown_benchmarks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.Unsupported, match="to_json"):
        list(board("mmmu").items(tmp_path / "x.parquet", tmp_path))
    with pytest.raises(errors.BadRequest, match="there are mmmu, mathvista"):
        board("mmbench")


def test_a_stopped_run_resumes_to_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.png").write_bytes(picture_bytes())
    rows = [{"image": "p.png", "question": f"q{i}", "answers": [str(i % 3)]} for i in range(6)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    asked: list[str] = []

    def answer(_model: object, item: Item, _longest: int) -> run.Answer:
        asked.append(item.id)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return run.Answer(f"it says {int(item.id) % 2}")

    monkeypatch.setattr(run, "ask", answer)

    def evaluate(journal: str) -> tuple[int, str]:
        path, kept = str(tmp_path / "data.json"), str(tmp_path / journal)
        code = app.main(["eval", "--bench", "ocrbench", "--data", path, "--journal", kept, "--json"])
        return code, capsys.readouterr().out

    assert evaluate("a.jsonl") == (errors.EXIT_CANCELLED, "")
    resumed = evaluate("a.jsonl")
    assert asked == ["0", "1", "2", "3", "3", "4", "5"]
    whole = evaluate("b.jsonl")
    assert resumed == whole and json.loads(whole[1])["all"]["value"] == 333.33


def test_the_built_in_model_answers_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(builtin.questions_folder())
    lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    chosen = [one for one in lines if one["task"] == "count"][:2]
    rows = [{"image": one["image"], "question": one["question"], "answers": one["answers"]} for one in chosen]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    arguments = ["eval", "--bench", "infovqa", "--data", str(tmp_path / "d.json"), "--images", str(folder)]
    assert app.main([*arguments, "--journal", str(tmp_path / "j.jsonl"), "--max-tokens", "8"]) == 0
    shown = capsys.readouterr().out
    assert "InfographicVQA" in shown and "Instruct 83.2" in shown and "n 2" in shown


def test_points_are_read_both_ways_from_the_same_answers(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "p.png").write_bytes(picture_bytes())  # 100 x 50 pixels, padded to 112 x 56
    row = {"img_filename": "p.png", "instruction": "close", "bbox": [40, 20, 2, 2], "data_type": "icon"}
    (tmp_path / "d.json").write_text(json.dumps([row]))
    x, y = 41 / 112, 21 / 56
    monkeypatch.setattr(run, "ask", lambda model, item, longest: run.Answer(f"click(x={x}, y={y})"))
    line = ["eval", "--bench", "screenspot", "--data", f"{tmp_path}/d.json", "--journal", f"{tmp_path}/j", "--json"]
    assert app.main([*line, "--mapping", "both"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["mapping"], report["all"]["value"], report["padded"]["all"]["value"]) == ("unpadded", 0, 100)
    assert app.main([*line[:-1], "--mapping", "padded"]) == 0
    assert "shares of the padded picture\n  all                           100.0 %" in capsys.readouterr().out
    for bad in (["--mapping", "other"], ["--mapping", "both", "--bench", "ocrbench"]):
        assert app.main([*line, *bad]) == 2 and "--mapping" in capsys.readouterr().err
    assert app.main(["eval", "--mapping", "both"]) == 2


def test_the_pages_of_a_document_are_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, pages in (("one.pdf", ["$4.50"]), ("two.pdf", ["$4.50", "$12.75"])):
        (tmp_path / name).write_bytes(documents.pdf(pages, (150, 90), font_size=30))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing")
    rows = [
        {"doc_id": name, "question": "What is the price?", "answer": "4.5", "answer_format": "Float", "doc_type": kind}
        for name, kind in (("one.pdf", "a"), ("two.pdf", "a"), ("broken.pdf", "b"))
    ]
    (tmp_path / "samples.json").write_text(json.dumps(rows))
    seen = []
    ask = KimiVL.chat

    def chat(model: KimiVL, *arguments: Any, **options: Any) -> Any:
        seen.append(ask(model, *arguments, **options))
        return replace(seen[-1], text="Answer: $4.50")

    monkeypatch.setattr(KimiVL, "chat", chat)
    line = ["eval", "--bench", "mmlongbench-doc", "--data", f"{tmp_path}/samples.json", "--images", str(tmp_path)]
    assert app.main([*line, "--journal", f"{tmp_path}/j", "--max-tokens", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(seen) == 2 and seen[1].usage.image_tokens == 2 * seen[0].usage.image_tokens > 0
    assert report["groups"]["a"]["value"] == 100 and report["all"]["failed"] == report["groups"]["b"]["failed"] == 1
    assert report["all"]["value"] == pytest.approx(66.67)
