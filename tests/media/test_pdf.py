"""PDF documents: which pages, drawn how large, and what bad ones say."""

from __future__ import annotations

import importlib
import sys

import documents
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_vl_cpp.errors import BadDocument, BadImage, KimiVLError, Unsupported
from kimi_vl_cpp.media import budget, paged, ranges
from kimi_vl_cpp.media.drawn import Drawn
from kimi_vl_cpp.media.named_part import split
from kimi_vl_cpp.media.pdf import Document
from kimi_vl_cpp.media.processor import ImageProcessor, LimitedImage

THREE = documents.pdf(["one", "two", "three"])


@pytest.mark.parametrize(
    ("text", "pages"),
    [("3", [3]), ("2-4", [2, 3, 4]), ("9-", [9, 10]), ("last", [10]), ("-2", [1, 2]), ("5, 1-2", [5, 1, 2])],
)
def test_page_numbers_are_read_in_the_order_they_are_written(text, pages):
    assert ranges.parse(text, 10, "x.pdf") == (pages, [])


def test_a_page_named_twice_is_used_once_with_a_notice():
    pages, notices = ranges.parse("2,1-3,2", 5, "x.pdf")
    assert pages == [2, 1, 3] and "page 2 is named twice" in notices[0]


@pytest.mark.parametrize("text", ["", "0", "4", "3-1", "a", "1-2-3", "--", "1,,2", "9" * 30])
def test_page_numbers_that_cannot_be_meant_are_refused(text):
    with pytest.raises(BadDocument) as caught:
        ranges.parse(text, 3, "x.pdf")
    assert caught.value.code == "document.pages" and "x.pdf" in str(caught.value)


@given(st.text(alphabet="0123456789-, last#", max_size=20), st.integers(1, 50))
def test_any_text_gives_pages_of_the_document_or_a_typed_error(text, n_pages):
    try:
        pages, _ = ranges.parse(text, n_pages, "x")
    except BadDocument:
        return
    assert pages and len(set(pages)) == len(pages) and all(1 <= page <= n_pages for page in pages)


def test_a_file_that_really_has_the_whole_name_wins(tmp_path):
    (tmp_path / "a.pdf").touch()
    assert split(str(tmp_path / "a.pdf#2")) == (str(tmp_path / "a.pdf"), "2")
    (tmp_path / "a.pdf#2").touch()
    assert split(str(tmp_path / "a.pdf#2")) == (str(tmp_path / "a.pdf#2"), None)


class Sheet(Drawn):
    """Something to be drawn, of a size."""

    label = ""

    def __init__(self, *size, native=None):
        self._size, self._native = size, native

    @property
    def size(self):
        return self._size

    @property
    def native_size(self):
        return self._native

    def draw(self, width, height):
        return np.zeros((height, width, 3), np.uint8)


@pytest.mark.parametrize(("patches", "tokens"), [(4096, 1053), (8192, 2106), (16384, 4158)])
def test_an_a4_page_fills_the_budget(patches, tokens):
    (page,) = Document(THREE).pages([1])
    assert ImageProcessor(in_token_limit=patches)(page).n_tokens == tokens


def test_a_page_is_drawn_in_one_step_at_the_planned_size():
    document = Document(THREE)
    (page,) = document.pages("2")
    seen = ImageProcessor(in_token_limit=1024)(page)
    width, height = seen.resized_size
    np.testing.assert_array_equal(seen.pixels[:height, :width], document.draw(2, width, height))
    assert (seen.pixels[:height, :width] < 128).any() and seen.pixels[0, 0].tolist() == [255, 255, 255]
    assert not seen.pixels[height:].any() and seen.original_size == seen.resized_size
    assert seen.label == "Page 2 of 3:\n"


def test_the_size_of_a_page_is_read_from_the_file_once(monkeypatch):
    (page,) = Document(THREE).pages("2")
    read, asked = Document.page_size, []
    monkeypatch.setattr(Document, "page_size", lambda document, number: asked.append(number) or read(document, number))
    assert budget.fit(ImageProcessor(), [page], 8192, budget.DOCUMENT_FLOOR) == 4096
    ImageProcessor()(LimitedImage(page, 4096))
    assert asked == [2]


def test_a_limit_of_its_own_makes_a_page_smaller():
    (page,) = Document(THREE).pages([1])
    limited = ImageProcessor()(LimitedImage(page, 512))
    assert limited.digest == ImageProcessor(in_token_limit=512)(page).digest
    assert limited.label == "Page 1 of 3:\n"


def test_a_turned_page_is_drawn_upright():
    (page,) = Document(documents.pdf(["turned"], rotate=90)).pages()
    width, height = page.size
    assert width > height


def test_text_of_the_text_layer_and_none_of_a_blank_page():
    document = Document(documents.pdf(["Grand total (EUR)", ""]))
    assert (document.text(1).strip(), document.text(2)) == ("Grand total (EUR)", "")


BAD = {
    "empty": (b"", "document.damaged", "empty"),
    "text": (b"hello, this is no PDF", "document.format", "not a PDF"),
    "header only": (b"%PDF-1.7\n", "document.damaged", "print it"),
    "cut off": (THREE[:300], "document.damaged", "print it"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(50), "document.format", "a picture (PNG)"),
    "word": (b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml", "document.format", "soffice --headless"),
    "writer": (
        b"PK\x03\x04" + bytes(26) + b"mimetypeapplication/vnd.oasis.opendocument.text",
        "document.format",
        "soffice --headless",
    ),
    "old office": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "document.format", "soffice --headless"),
    "book": (b"PK\x03\x04" + bytes(26) + b"mimetypeapplication/epub+zip", "document.format", "ebook-convert"),
    "no pages": (documents.pdf([]), "document.", ""),
    "too many pages": (documents.pdf([""] * 2001), "document.too_large", "2001 pages"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_document_says_what_it_is_and_what_to_do(name, tmp_path):
    data, code, words = BAD[name]
    (tmp_path / "x.pdf").write_bytes(data)
    with pytest.raises(BadDocument) as caught:
        Document(tmp_path / "x.pdf")
    assert caught.value.code.startswith(code) and words in str(caught.value) and "x.pdf" in str(caught.value)


@pytest.mark.parametrize(
    ("size", "code"),
    [
        ((200_000, 10), "document.page_size"),
        ((0.5, 400), "document.page_size"),
        ((14_000, 12), "image.too_many_patches"),
    ],
)
def test_a_page_of_an_impossible_size_is_refused_before_it_is_drawn(size, code, monkeypatch):
    monkeypatch.setattr(Document, "draw", lambda *_: pytest.fail("drawn"))
    (page,) = Document(documents.pdf(["x"], size)).pages()
    with pytest.raises(BadImage) as caught:
        ImageProcessor()(page)
    assert caught.value.code == code


def test_a_document_that_is_not_a_file_is_refused(tmp_path):
    for path, code in ((tmp_path, "document.not_"), (tmp_path / "none.pdf", "document.not_found")):
        with pytest.raises(BadDocument) as caught:
            Document(path)
        assert caught.value.code.startswith(code)


def test_a_missing_extra_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(Unsupported) as caught:
        Document(THREE)
    assert caught.value.code == "unsupported.extra" and "pip install 'kimi-vl-cpp[pdf]'" in str(caught.value)


def test_a_password_is_asked_for(monkeypatch):
    pdfium = importlib.import_module("pypdfium2")

    def refuse(*_: object, **__: object) -> None:
        raise pdfium.PdfiumError("Incorrect password error", err_code=4)

    monkeypatch.setattr(pdfium, "PdfDocument", refuse)
    with pytest.raises(BadDocument, match="protected with a password") as caught:
        Document(THREE)
    assert caught.value.code == "document.password"


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_document_opens_or_is_a_typed_error(data):
    damaged = bytearray(THREE)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    del damaged[data.draw(st.integers(1, len(damaged))) :]
    try:
        with Document(bytes(damaged)) as document:
            for page in document.pages():
                ImageProcessor(in_token_limit=64)(page)
                page.text()
    except KimiVLError:
        pass


def test_a_strip_whose_side_would_be_too_long_is_drawn_smaller():
    processor = ImageProcessor(in_token_limit=16384)
    assert budget.fit(processor, [Sheet(100, 1588)], 130_000, budget.DOCUMENT_FLOOR) == 12288
    with pytest.raises(BadImage) as caught:
        budget.fit(processor, [Sheet(10, 14_000)], 130_000, budget.DOCUMENT_FLOOR)
    assert caught.value.code == "image.too_many_patches"


@given(
    st.lists(st.tuples(st.floats(100, 2000), st.floats(100, 2000)), min_size=1, max_size=60),
    st.integers(100, 130_000),
    st.sampled_from([480, 4096, 16384]),
)
def test_the_highest_rung_at_which_all_pages_fit_is_taken(sizes, room, top):
    processor = ImageProcessor(in_token_limit=top)
    sheets = [Sheet(*size) for size in sizes]
    chosen = budget.fit(processor, sheets, room, budget.DOCUMENT_FLOOR)
    rungs = budget.rungs(budget.DOCUMENT_FLOOR, top)
    drawable = [rung for rung in rungs if rung <= budget.largest(processor, sheets, budget.DOCUMENT_FLOOR)]
    fitting = [rung for rung in drawable if budget.tokens_at(processor, sheets, rung) <= room]
    assert chosen == (fitting[0] if fitting else None)
    assert rungs == sorted(rungs, reverse=True) and rungs[0] == top


def test_what_has_pixels_of_its_own_is_never_drawn_larger():
    small = Sheet(280.0, 140.0, native=(280, 140))
    assert ImageProcessor()(small).resized_size == (280, 140)
    assert budget.tokens_at(ImageProcessor(), [small], 4096) == ImageProcessor()(small).n_tokens == 50


LAYER = "The price of item three is three dollars."


def test_the_text_layer_stands_behind_a_page_where_it_is_text():
    document = Document(documents.pdf([LAYER, "short", ""], font_size=9))
    digital, short, _ = document.pages(text_layer="auto")
    assert digital.caption == f"\n``` text found on page 1\n{LAYER}\n```\n" and short.caption == ""
    assert paged.fenced(3, "a ```` b").startswith("\n````` text found on page 3\n")
    assert ImageProcessor()(LimitedImage(digital, 64)).caption == digital.caption
    assert all(page.caption == "" for page in document.pages())
    assert len(paged.fenced(1, "é" * 9000).encode()) < 6100


def test_a_document_without_pages_is_called_that():
    with pytest.raises(BadDocument, match="it has no pages") as caught:
        Document(documents.pdf([]))
    assert caught.value.code == "document.empty"
