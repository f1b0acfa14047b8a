"""Citations by page: found, and held against the pages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kimi_vl_cpp.tasks import citations

PAGES = {3: "The revenue grew by 12 percent in March", 4: "", 7: "Costs fell"}


def test_a_citation_belongs_to_the_words_before_it():
    found = citations.check("Revenue grew by 12 percent [p. 3]. Costs fell [p. 7]. Staff doubled [p. 7].", PAGES)
    assert [(one.page, one.given, one.supported) for one in found] == [
        (3, True, True),
        (7, True, True),
        (7, True, False),
    ]
    assert found[2].claim == "Staff doubled"
    assert citations.problems(found) == ["[p. 7] does not have these words in its text layer: Staff doubled"]


def test_a_page_that_was_not_given_is_reported_and_a_scan_proves_nothing():
    found = citations.check("It rained [p. 9]. It snowed [page 4].", PAGES)
    assert [(one.given, one.supported) for one in found] == [(False, None), (True, None)]
    assert "not one of the pages given" in citations.problems(found)[0]


def test_several_pages_in_one_bracket():
    assert [one.page for one in citations.check("x [pp. 3-5, 7]", PAGES)] == [3, 4, 5, 7]


@given(st.text(alphabet="[p. 0123456789-,;]ab\n", max_size=80))
def test_any_answer_gives_citations(text):
    assert all(one.page >= 0 for one in citations.check(text, PAGES))
