"""Documents in messages: which pages, what stands before them, and what is refused."""

from __future__ import annotations

import base64

import documents
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_vl_cpp.errors import KimiVLError
from kimi_vl_cpp.openai.messages import translate_messages

DATA = documents.pdf(["one", "two", "three"])
BASE64 = base64.b64encode(DATA).decode()
URL = f"data:application/pdf;base64,{BASE64}"


def translated(part):
    return translate_messages([{"role": "user", "content": [part, {"type": "text", "text": "Why?"}]}])


@pytest.mark.parametrize(
    ("part", "labels", "numbers"),
    [
        ({"type": "file", "file": {"file_data": URL, "pages": "3,1"}}, ["Page 3 of 3:\n", "Page 1 of 3:\n"], [3, 1]),
        ({"type": "file", "file": {"file_data": BASE64, "pages": "2", "markers": "none"}}, [], [2]),
        ({"type": "input_file", "file_data": URL, "filename": "a.pdf", "pages": "-1"}, ["a.pdf, page 1 of 3:\n"], [1]),
    ],
)
def test_pages_become_pictures_behind_their_numbers(part, labels, numbers):
    result = translated(part)
    content = result.messages[0]["content"]
    assert [one["text"] for one in content if one["type"] == "text"] == [*labels, "Why?"]
    assert [one["image"] for one in content if one["type"] == "image"] == list(range(len(numbers)))
    assert [picture.source.number for picture in result.pictures] == numbers


def test_the_text_of_a_page_stands_behind_it_where_it_is_asked_for():
    words = "What the file says that the page shows."
    url = f"data:;base64,{base64.b64encode(documents.pdf([words, ''], font_size=9)).decode()}"
    result = translated({"type": "file", "file": {"file_data": url, "markers": "none", "text_layer": "auto"}})
    first, text, second, question = result.messages[0]["content"]
    assert (first["type"], second["type"], question["text"]) == ("image", "image", "Why?")
    assert words in text["text"] and "text found on page 1" in text["text"]


def test_a_limit_of_patches_is_that_of_every_page():
    result = translated({"type": "file", "file": {"file_data": URL, "detail": "low"}})
    assert [picture.max_patches for picture in result.pictures] == [1024] * 3


@pytest.mark.parametrize(
    ("file", "place", "code"),
    [
        (5, "", "request.file"),
        ({}, ".file_data", "request.file_data"),
        ({"file_data": "!"}, ".file_data", "request.file_data"),
        ({"file_data": "data:application/msword;base64,AAAA"}, ".file_data", "document.format"),
        ({"file_data": "data:application/pdf;base64,AAAA"}, "", "document.format"),
        ({"file_data": URL, "pages": "4"}, "", "document.pages"),
        ({"file_data": URL, "pages": 4}, ".pages", "request.file"),
        ({"file_data": URL, "filename": 4}, ".filename", "request.file"),
        ({"file_data": URL, "markers": "all"}, ".markers", "request.file"),
        ({"file_data": URL, "text_layer": "only"}, ".text_layer", "request.file"),
        ({"file_data": URL, "max_patches": 1}, ".max_patches", "request.messages"),
        ({"file_id": "file-1"}, ".file_id", "unsupported.file_id"),
        ({"file_url": "https://a/b"}, ".file_url", "unsupported.file_url"),
    ],
)
def test_a_wrong_document_is_named_by_its_place(file, place, code):
    with pytest.raises(KimiVLError) as caught:
        translated({"type": "file", "file": file})
    assert caught.value.param == f"messages[0].content[0].file{place}" and caught.value.code == code
    assert str(caught.value).startswith(caught.value.param)


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(URL) | st.lists(st.integers())
FIELDS = st.sampled_from(["file_data", "filename", "pages", "markers", "detail", "max_patches", "file_id", "file"])


@given(st.dictionaries(FIELDS, VALUES | st.dictionaries(FIELDS, VALUES)), st.sampled_from(["file", "input_file"]))
@settings(max_examples=50, deadline=None)
def test_no_document_part_is_anything_but_pages_or_a_typed_error(fields, kind):
    try:
        assert translated({**fields, "type": kind}).pictures
    except KimiVLError as error:
        assert error.param and error.param.startswith("messages[0]")
