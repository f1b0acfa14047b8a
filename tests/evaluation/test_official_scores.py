"""Scores against those that the benchmarks' own scripts gave to the same answers (vectors/boards.json)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from vectors import VECTORS

from kimi_vl_cpp.evaluation.boards import rules

OFFICIAL: dict[str, Any] = json.loads((VECTORS / "boards.json").read_text())


def differing(name: str, score: Any) -> list[tuple[Any, Any]]:
    """The cases of a benchmark to which `score` gives another score, and which."""
    cases = OFFICIAL[name]
    assert len(cases) >= 10
    found = [(case, score(*case[:-1])) for case in cases]
    return [(case, got) for case, got in found if got != pytest.approx(case[-1])]


def test_letters_of_mmmu() -> None:
    options = OFFICIAL["mmmu_options"]
    assert differing("mmmu_letter", lambda answer: rules.letter(answer, options)) == []


def test_open_questions_of_mmmu() -> None:
    assert differing("mmmu_open", rules.open_question) == []


def test_mathvista_after_its_extraction() -> None:
    def score(answer: str, want: str, choices: list[str], kind: str, precision: int) -> bool | None:
        return rules.mathvista(f"The answer is {answer}", want, choices=choices, answer_type=kind, precision=precision)

    assert differing("mathvista", score) == []


def test_mmlongbench_doc_after_its_extraction() -> None:
    assert differing("documents", rules.document) == []


def test_infographicvqa() -> None:
    assert differing("anls", rules.anls) == []


def test_ocrbench() -> None:
    assert differing("ocrbench", lambda answer, want, formula: rules.contains(answer, want, formula=formula)) == []


def test_a_point_on_the_edge_of_its_box_is_inside_whatever_the_rounding() -> None:
    """Official scripts divide the box by the size: 7 of 100 is 0.07, though 0.07 * 100 is not 7."""
    for size in (100, 1000):
        for edge in range(1, size, size // 100):
            answer = f"click(x={edge / size}, y=0.5)"
            assert rules.inside(answer, [edge, 0, edge, size], (size, size)), (edge, size)


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        ("So \\boxed{2√{3}}.", "2√{3}"),
        ("The answer is \\boxed{8}", "8"),
        ("Answer: 7. No: \\boxed{8", "8"),
        ("\\boxed{7}, but the answer is 8.", "8"),
        ("Answer: 2√{3}", "2√{3}"),
        ("'eight'", "eight"),
    ],
)
def test_what_an_answer_says_that_it_is(answer: str, want: str) -> None:
    assert rules.final(answer) == want
