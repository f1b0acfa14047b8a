"""Scans on their side: which way they are turned, and that everything about them is turned along."""

from __future__ import annotations

import io

import documents
import numpy as np
import pytest
from PIL import Image

from kimi_vl_cpp import cli
from kimi_vl_cpp.media.drawn import Turned
from kimi_vl_cpp.media.pdf import Document
from kimi_vl_cpp.media.tiff import TiffDocument
from kimi_vl_cpp.tasks import looking, recipes, upright
from kimi_vl_cpp.tasks.journal import Journal
from kimi_vl_cpp.tasks.reading import read_pages

ARROW = np.zeros((40, 60, 3), np.uint8)
ARROW[:10] = 255  # white on its top


@pytest.mark.parametrize("turns", range(4))
def test_what_lies_on_its_side_is_turned_until_its_top_is_above(model, script, turns):
    lying = np.rot90(ARROW, -turns)
    side = ("top", "right", "bottom", "left")[turns]
    edges = {"top": lying[0], "bottom": lying[-1], "left": lying[:, 0], "right": lying[:, -1]}
    assert edges[side].mean() == 255
    script.answer = side
    assert upright.quarter_turns(model, lying) == turns
    assert np.array_equal(np.asarray(upright.turned(Image.fromarray(lying), turns)), ARROW)


def test_a_model_that_names_no_side_leaves_a_page_as_it_is(model, script):
    script.answer = "What?"
    assert upright.quarter_turns(model, ARROW) == 0
    script.answer = ""
    assert upright.quarter_turns(model, ARROW) == 0


def test_a_page_is_drawn_at_the_size_that_it_has_when_it_is_turned():
    (page,) = Document(documents.pdf(["A"], (200, 100))).pages()
    lying = Turned(page, 1)
    assert lying.size == (100, 200) and lying.label == page.label and lying.native_size is None
    assert np.array_equal(lying.draw(50, 100), np.rot90(page.draw(100, 50)))
    file = io.BytesIO()
    Image.fromarray(ARROW).save(file, "TIFF")
    (scan,) = TiffDocument(file.getvalue()).pages()
    assert (Turned(scan, 3).native_size, Turned(scan, 2).native_size) == ((40, 60), (60, 40))


def test_reading_looks_once_and_says_what_was_turned(model, script, tmp_path):
    pages = [(page.number, page) for page in Document(documents.pdf(["A", "B"], (120, 60))).pages()]
    script.answer = "left is the top"
    with Journal(tmp_path / "j", {}) as journal:
        found = list(read_pages(model, pages, recipes.RECIPES["text"], journal, patches=16, upright=True))
    assert [page.turned for page in found] == [3, 3] and [page.attempts for page in found] == [1, 1]
    assert found[0].text == "left is the top"
    script.encoded.clear()
    with Journal(tmp_path / "j", {}) as journal:
        assert list(read_pages(model, pages, recipes.RECIPES["text"], journal, patches=16, upright=True)) == found
    assert script.encoded == []


def test_a_journal_without_turning_is_not_taken_for_one_with_it(script, tmp_path, capsys):
    (tmp_path / "a.pdf").write_bytes(documents.pdf(["A"], (60, 60)))
    (tmp_path / "m-Instruct.gguf").touch()
    line = ["read", "-m", f"{tmp_path}/m-Instruct.gguf", f"{tmp_path}/a.pdf", "-o", f"{tmp_path}/a.txt"]
    script.answer = "right"
    assert cli.main([*line, "--upright"]) == 0
    assert "page 1: turned 90° to the left before reading" in capsys.readouterr().err
    assert cli.main(line) == 2
    assert "journal" in capsys.readouterr().err


def test_words_are_known_by_how_they_begin(model, script):
    script.answer = "yes"
    found = looking.likelihoods(model, ARROW, "Is it?", ("yes", "no"))
    assert found["yes"] > found["no"]
