"""Finding the pages of a document that a question is about."""

from __future__ import annotations

import random

import documents
from hypothesis import given
from hypothesis import strategies as st

from kimi_vl_cpp import cli
from kimi_vl_cpp.media.pdf import Document
from kimi_vl_cpp.tasks import finding

NOUNS = "harbour glacier lantern orchard bishop violin cactus meteor saddle walnut ferry quarry beetle compass".split()
FILLER = "the report says that results of this year were as expected and that work on it goes on in the next".split()


def fifty_pages(number: int, fact: str) -> list[str]:
    """Pages of filler with names in it, and one that has the fact."""
    noise = random.Random(number)
    pages = [" ".join(noise.choices(FILLER, k=30) + noise.choices(NOUNS, k=3)) for _ in range(50)]
    pages[number] = " ".join(noise.choices(FILLER, k=25)) + " " + fact
    return pages


def test_the_page_with_the_fact_is_among_the_best_five():
    found = 0
    for number, noun in enumerate(NOUNS):
        texts = fifty_pages(number, f"the {noun} cost seventeen crowns")
        scores = finding.bm25(f"How many crowns did the {noun} cost?", texts)
        found += number in sorted(range(50), key=lambda index: -scores[index])[:5]
    assert found >= 0.95 * len(NOUNS)


@given(st.text(max_size=30), st.lists(st.text(max_size=40), max_size=6))
def test_any_texts_are_ranked(question, texts):
    scores = finding.bm25(question, texts)
    assert len(scores) == len(texts) and all(score >= 0 for score in scores)


def test_pages_with_text_are_found_without_looking(model, script):
    texts = [f"{' '.join(FILLER)} {noun}" for noun in NOUNS]
    pages = Document(documents.pdf(texts, font_size=6)).pages()
    assert [page.number for page in finding.best_pages(model, pages, "the lantern and the ferry", 2)] == [3, 11]
    assert finding.best_pages(model, pages[:2], "x", 2) == pages[:2] and script.encoded == []


def test_pages_without_text_are_looked_at_in_turn(model, script, monkeypatch):
    texts = ["", f"{' '.join(FILLER)} lantern", "", f"{' '.join(FILLER)} ferry", ""]
    pages = Document(documents.pdf(texts, (500, 60), font_size=6)).pages()
    likely = {1: -1.0, 3: 2.0, 5: 1.0}
    monkeypatch.setattr(finding, "_helps", lambda model, page, question: likely[page.number])
    skimmed = []
    found = finding.best_pages(model, pages, "the lantern", 3, skimmed.append)
    assert [page.number for page in found] == [2, 3, 4] and skimmed == [0, 1, 2]


def test_a_look_says_how_much_likelier_yes_is(model, script):
    (page,) = Document(documents.pdf([""], (60, 60))).pages()
    assert isinstance(finding._helps(model, page, "x"), float) and len(script.encoded) == 1


def test_the_command_names_the_pages_that_it_gives(script, tmp_path, capsys):
    script.context_length = 8192
    texts = [f"{' '.join(FILLER)} {noun}" for noun in NOUNS[:4]]
    (tmp_path / "a.pdf").write_bytes(documents.pdf(texts, (500, 60), font_size=6))
    (tmp_path / "m-Instruct.gguf").touch()
    line = ["run", "-m", f"{tmp_path}/m-Instruct.gguf", "--image-patches", "16", "-n", "4"]
    assert cli.main([*line, "-i", f"{tmp_path}/a.pdf", "--find", "2", "the glacier and the lantern"]) == 0
    assert "of 4 pages, those that the question seems to be about are given: 2, 3" in capsys.readouterr().err
    assert len(script.encoded) == 2
    for bad in (["-i", f"{tmp_path}/a.pdf", "--find", "0"], ["--find", "2"]):
        assert cli.main([*line, *bad, "x"]) == 2
