"""Paths of pictures in messages: however they are written they are found, and prose is left alone."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kimi_vl_cpp.cli import paths

NAMES = ("a.png", "my photo.jpg", "it's.png", "ü.png", "a, b.png", "odd (1).png", "x;y.png", 'say "hi".png')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pictures")
    for name in (*NAMES, "photo"):
        Image.new("RGB", (4, 4)).save(made / name, "PNG")
    (made / "notes.txt").write_text("x")
    return made


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def read(message: str, folder: Path, **options: bool) -> tuple[list[str], str, list[str]]:
    found = paths.read_message(message.replace("{d}", str(folder)), **options)
    return [os.path.basename(path) for path in found.pictures], found.text.replace(str(folder), "{d}"), found.notes


@pytest.mark.parametrize(
    ("message", "names", "text"),
    [
        ("{d}/a.png", ["a.png"], ""),
        ("  {d}/a.png \n", ["a.png"], ""),
        ("a.png", ["a.png"], ""),
        ("'{d}/my photo.jpg'", ["my photo.jpg"], ""),
        ('"{d}/my photo.jpg"', ["my photo.jpg"], ""),
        ("{d}/my\\ photo.jpg", ["my photo.jpg"], ""),
        ("{d}/my photo.jpg", ["my photo.jpg"], ""),
        ("{d}/my photo.jpg what is this?", ["my photo.jpg"], "what is this?"),
        ('"{d}/it\'s.png"', ["it's.png"], ""),
        ("'{d}/it'\\''s.png'", ["it's.png"], ""),
        ("{d}/it\\'s.png what?", ["it's.png"], "what?"),
        ("file://{d}/my%20photo.jpg", ["my photo.jpg"], ""),
        ("file://localhost{d}/%C3%BC.png", ["ü.png"], ""),
        ("file://{d}/my%20photo.jpg\nfile://{d}/a.png\n", ["my photo.jpg", "a.png"], ""),
        ("'{d}/my photo.jpg' '{d}/a.png' ", ["my photo.jpg", "a.png"], ""),
        ("{d}/my photo.jpg\n{d}/odd (1).png", ["my photo.jpg", "odd (1).png"], ""),
        ("{d}/a.png {d}/my\\ photo.jpg", ["a.png", "my photo.jpg"], ""),
        ("./a.png, ./ü.png", ["a.png", "ü.png"], ""),
        ("./a.png,./ü.png", ["a.png", "ü.png"], ""),
        ("{d}/a, b.png", ["a, b.png"], ""),
        ("{d}/a.png what is this?", ["a.png"], "what is this?"),
        ("./a.png: what is this?", ["a.png"], "what is this?"),
        ("./photo what is this?", ["photo"], "what is this?"),
        ("what is this? '{d}/my photo.jpg'", ["my photo.jpg"], "what is this?"),
        ("what is in ./a.png?", ["a.png"], "what is in"),
        ("what is in (./a.png)", ["a.png"], "what is in"),
        ("{d}/a.png compare with {d}/ü.png", ["a.png", "ü.png"], "compare with"),
        ("what is in {d}/a.png exactly?", ["a.png"], "what is in {d}/a.png exactly?"),
        ("it's in ./a.png isn't it", ["a.png"], "it's in ./a.png isn't it"),
        ("what? ./missing.png", ["missing.png"], "what?"),
        ("./reciept.png What is it?", ["reciept.png"], "What is it?"),
        ("{d}/my phto.jpg What is it?", ["my phto.jpg"], "What is it?"),
        ("missing.png", ["missing.png"], ""),
        ("https://example.org/x.png What is it?", ["x.png"], "What is it?"),
        ("file://elsewhere{d}/a.png", ["a.png"], ""),
        ("C:\\Users\\me\\cat.png what is it?", ["C:\\Users\\me\\cat.png"], "what is it?"),
        ("{d}/missing.png", ["missing.png"], ""),
    ],
)  # fmt: skip
def test_pictures_are_found_in_a_message_however_they_are_written(here, message, names, text):
    found, left, _ = read(message, here)
    assert (found, left) == (names, text)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("what is in a.png", "a.png"),
        ("a.png what is it?", "a.png"),
        ("what is in missing.png now", "missing.png"),
        ("see photos/cat.png for more", "photos/cat.png"),
        ("is https://example.org/x.png a picture of a cat?", "https://example.org/x.png"),
        ("./notes.txt what does it say?", "./notes.txt"),
        ("what is in ./a.png exactly?", "./a.png"),
        ("./phto what is it?", "./phto"),
    ],
)
def test_what_looks_like_a_picture_is_never_passed_over_in_silence(here, message, named):
    assert any(named in note for note in read(message, here)[2])


PROSE = [
    *(
        "is it's 5 o'clock?",
        "yes and/or no",
        "1/2 of 3/4",
        "on 2024/05/06 at 24/7",
        "km/h",
        "s/foo/bar/",
        "...",
        "a. b",
    ),
    *(
        "what is https://example.org/about?",
        "see https://example.org",
        "http://",
        "~",
        "~ 5",
        "C: drive",
        "50% w/o tax",
    ),
    *(
        "'quoted' and \"quoted\"",
        "é/ü",
        "[1, 2]",
        "a\\ b",
        "the file in /etc",
        "ratio 16:9",
        "$10.05?",
        "\0",
        "\\alpha",
    ),
    *("don't 'do", "/ or \\", "x@y.org", "a. b: c, d; e!"),
]


@pytest.mark.parametrize("message", PROSE)
def test_prose_is_left_as_it_is(here, message):
    assert read(message, here) == ([], message, [])


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from("ab '\"\\/~.:,;()[]?#%\n\t\0éx😀"), max_size=40))
def test_any_text_is_read_and_nothing_is_lost(text):
    found = paths.read_message(text)
    assert found.pictures or found.text == text or not text.strip()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("write", [shlex.quote, lambda p: "file://" + quote(p), lambda p: "".join(
    f"\\{c}" if c in " '\"();,&" else c for c in p)])  # fmt: skip
@pytest.mark.parametrize(("before", "behind"), [("", ""), ("", " What is it?"), ("What is it? ", "")])
def test_any_name_in_any_terminals_spelling_is_attached(folder, name, write, before, behind):
    found = paths.read_message(before + write(str(folder / name)) + behind)
    assert found.pictures == [str(folder / name)]
    assert found.text == (before + behind).strip()


def test_a_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    for text in ("~/a.png", "'~/a.png'", "~/my\\ photo.jpg"):
        assert os.path.isfile(paths.resolve(text))


@pytest.mark.parametrize(
    ("rest", "names", "text"),
    [
        ("a.png What does it say?", ["a.png"], "What does it say?"),
        ("my photo.jpg", ["my photo.jpg"], ""),
        ("a.png ü.png", ["a.png", "ü.png"], ""),
        ("missing.png", ["missing.png"], ""),
        ("photo", ["photo"], ""),
    ],
)
def test_the_image_command_takes_bare_names_and_a_question(here, rest, names, text):
    assert read(rest, here, named=True)[:2] == (names, text)
