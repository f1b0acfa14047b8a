"""Scores by the published rules, on cases worked out by hand from them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_vl_cpp.evaluation.boards import rules

FRUIT = {"A": "apple", "B": "banana", "C": "cherry pie", "D": "date"}


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("The answer is (C).", "C"),
        ("(A) is wrong, so it is (D)", "D"),
        ("The correct option is B", "B"),
        ("Answer: B", "B"),
        ("B: banana", "B"),
        ("C. cherry pie", "C"),
        ("'D'", "D"),
        ("It is clearly the cherry pie in the picture.", "C"),
        ("Not the apple but the banana is ripe, I think.", "B"),
        ("banana", "B"),
        ("BANANA", "B"),
        ("I cannot tell.", None),
        ("", None),
        ("E", None),
        ("Because of the dish", None),
    ],
)
def test_a_letter_is_found_by_mmmus_rule(answer: str, want: str | None) -> None:
    assert rules.letter(answer, FRUIT) == want


@pytest.mark.parametrize(
    ("answer", "accepted", "want"),
    [
        ("Paris", ["paris"], 1.0),
        ("  PARIS ", ["Paris", "London"], 1.0),
        ("Pariss", ["Paris"], 1 - 1 / 6),
        ("42", ["43"], 0.5),
        ("42", ["73"], 0.0),
        ("Berlin", ["Paris"], 0.0),
        ("", ["Paris"], 0.0),
        ("new  york", ["New York"], 1.0),
        ("abcd", ["ab"], 0.5),
    ],
)
def test_similarity_is_infographicvqas(answer: str, accepted: list[str], want: float) -> None:
    assert rules.anls(answer, accepted) == pytest.approx(want)


@pytest.mark.parametrize(
    ("answer", "accepted", "formula", "want"),
    [
        ("The sign says CENTRE.", ["centre"], False, True),
        ("The sign says CENTER.", ["centre"], False, False),
        ("two\nlines", ["two lines"], False, True),
        ("\\frac { a } { b } = 1", ["\\frac{a}{b}"], True, True),
        ("\\FRAC{a}{b}", ["\\frac{a}{b}"], True, False),
        ("x ^ 2", ["x^2"], False, False),
    ],
)
def test_ocrbench_looks_for_the_text(answer: str, accepted: list[str], formula: bool, want: bool) -> None:
    assert rules.contains(answer, accepted, formula=formula) is want


@pytest.mark.parametrize(
    ("answer", "want", "choices", "kind", "precision", "right"),
    [
        ("The answer is 1.2", "1.2", [], "float", 1, True),
        ("The answer is 1.23", "1.2", [], "float", 1, True),
        ("1.3", "1.2", [], "float", 1, False),
        ("There are 8 of them.", "8", [], "integer", 0, True),
        ("8.0", "8", [], "integer", 0, True),
        ("1,000", "1000", [], "integer", 0, True),
        ("5 + 3 = 8", "8", [], "integer", 0, None),
        ("5 + 3, so the answer is 8", "8", [], "integer", 0, True),
        ("\\boxed{8}", "8", [], "integer", 0, True),
        ("no idea", "8", [], "integer", 0, None),
        ("(B) 145°", "145°", ["135°", "145°"], "text", 0, True),
        ("B", "145°", ["135°", "145°"], "text", 0, True),
        ("145°", "145°", ["135°", "145°"], "text", 0, True),
        ("(A)", "145°", ["135°", "145°"], "text", 0, False),
        ("neither", "145°", ["135°", "145°"], "text", 0, None),
        ("[1, 2]", "[1, 2]", [], "list", 0, True),
        ("[1, 3]", "[1, 2]", [], "list", 0, False),
        ("one and two", "[1, 2]", [], "list", 0, None),
    ],
)
def test_mathvista_compares_by_type(
    answer: str, want: str, choices: list[str], kind: str, precision: int, right: bool | None
) -> None:
    assert rules.mathvista(answer, want, choices=choices, answer_type=kind, precision=precision) is right


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        ("click(x=0.25, y=0.5)", True),
        ("```python\npyautogui.click(x=0.204, y=0.449)\n```", True),
        ("(0.9, 0.5)", False),
        ('{"bbox_2d": [0.1, 0.4, 0.3, 0.6]}', True),
        ("I cannot see it.", False),
        ("click(x=250, y=250)", False),
    ],
)
def test_a_point_counts_inside_its_box(answer: str, want: bool) -> None:
    assert rules.inside(answer, [200, 200, 300, 300], (1000, 500)) is want


@pytest.mark.parametrize(
    ("answer", "want", "kind", "score"),
    [
        ("12", "12", "Int", 1.0),
        ("There were 12 of them", "12", "Int", 1.0),
        ("13", "12", "Int", 0.0),
        ("none", "12", "Int", 0.0),
        ("25%", "0.25", "Float", 1.0),
        ("0.25", "25%", "Float", 1.0),
        ("24.9", "25", "Float", 1.0),
        ("24.5", "25", "Float", 0.0),
        ("$1,200.5", "1200.50", "Float", 1.0),
        ("Population Growth (2010)", "population growth", "Str", 1.0),
        ("'population growth'", "Population growth", "Str", 1.0),
        ("growth (in", "growth (in", "Str", 1.0),
        ("me@example.org", "me@example.com", "Str", 0.0),
        ("2021-05", "2021-06", "Str", 0.0),
        ("population grwth", "population growth", "Str", 1 - 1 / 17),
        ("something else", "population growth", "Str", 0.0),
        ("Page 12", "page 12", "Str", 1.0),
        ("Page 13", "page 12", "Str", 0.0),
        ("Not answerable", "Not answerable", "None", 1.0),
        ("The document does not say; it is not answerable.", "Not answerable", "None", 1.0),
        ("['b', 'A']", "['a', 'b']", "List", 1.0),
        ("red, blue", "['blue', 'red']", "List", 1.0),
        ("red", "['blue', 'red']", "List", 0.0),
        ("[1, 2]", "['1', '3']", "List", 0.0),
    ],
)
def test_documents_score_by_the_format_of_the_answer(answer: str, want: str, kind: str, score: float) -> None:
    assert rules.document(answer, want, kind) == pytest.approx(score)


@settings(max_examples=40)
@given(st.text(max_size=40), st.text(max_size=20))
def test_no_answer_breaks_a_rule(answer: str, want: str) -> None:
    rules.letter(answer, FRUIT)
    assert 0.0 <= rules.anls(answer, [want]) <= 1.0
    for kind in ("Int", "Float", "Str", "None", "List"):
        assert 0.0 <= rules.document(answer, want, kind) <= 1.0
    for kind in ("integer", "float", "text", "list"):
        rules.mathvista(answer, want, choices=[], answer_type=kind, precision=2)
    rules.inside(answer, [0, 0, 1, 1], (10, 10))


@settings(max_examples=40)
@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_distance_is_a_metric(a: str, b: str) -> None:
    assert rules.distance(a, b) == rules.distance(b, a) <= max(len(a), len(b))
    assert (rules.distance(a, b) == 0) == (a == b)
