"""Scenes of a video: the form of answers, times that do not fit together, the journal, the command."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import videos
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kimi_vl_cpp import cli
from kimi_vl_cpp.errors import BadRequest
from kimi_vl_cpp.media.frames import FrameChoice
from kimi_vl_cpp.media.sheet import contact_sheet
from kimi_vl_cpp.media.video import Video
from kimi_vl_cpp.tasks import scenes
from kimi_vl_cpp.tasks.journal import Journal
from kimi_vl_cpp.tasks.scenes import Scene


@pytest.mark.parametrize(
    "line",
    [
        "- (00:00:05 - 00:00:15) A dog runs.",
        "(0:05 – 0:15): A dog runs.",
        "1. [00:05 to 00:15] A dog runs.",
        "**00:00:05.000 - 00:00:15,000** A dog runs.",
        "* 00:05-00:15 - A dog runs.",
        "(00:00:05 - 00:00:15)\nA dog runs.",
    ],
)
def test_every_form_of_a_line_is_read(line):
    assert scenes.parse(line) == ([Scene(5, 15, "A dog runs.")], [])


def test_lines_that_are_no_scenes_are_kept():
    found, others = scenes.parse("Here are the scenes:\n\n- (00:00 - 00:05) One.\nThat is all.")
    assert [scene.description for scene in found] == ["One."] and others == ["Here are the scenes:", "That is all."]


@given(st.text(alphabet="0123456789:-() .\n*to,", max_size=80))
def test_any_answer_is_read(text):
    found, _ = scenes.parse(text)
    assert all(scene.start <= scene.end for scene in found)


def test_times_are_mended():
    found, notes = scenes.mended(
        [Scene(10.4, 20, "b"), Scene(0, 9.8, "a"), Scene(26, 99, "c"), Scene(200, 210, "d"), Scene(30, 30, "e")],
        0,
        60,
        [10.0, 26.5],
    )
    assert found == [Scene(0, 10, "a"), Scene(10, 20, "b", True), Scene(26.5, 60, "c", True)]
    assert notes == [
        "00:00:30 - 00:00:30 has no length: e",
        "00:03:20 - 00:03:30 is outside of 00:00:00 - 00:01:00: d",
        "nothing is said about 00:00:20 - 00:00:26",
    ]


some_scenes = st.builds(
    lambda a, b: Scene(min(a, b), max(a, b), "x"), st.floats(0, 200, width=32), st.floats(0, 200, width=32)
)


@given(st.lists(some_scenes, max_size=8), st.lists(st.floats(0, 200), max_size=6))
def test_every_scene_is_inside_of_its_window_or_in_the_notes(given_scenes, cuts):
    found, notes = scenes.mended(given_scenes, 50, 150, cuts)
    assert all(50 <= scene.start < scene.end <= 150 for scene in found)
    assert [scene.start for scene in found] == sorted(scene.start for scene in found)
    lost = sum("outside of" in note or "no length" in note for note in notes)
    assert len(found) + lost == len(given_scenes)


@given(st.floats(0, 1000), st.floats(0.1, 4000), st.integers(1, 32))
def test_windows_cover_the_video_once(start, length, size):
    parts = scenes.windows(start, start + length, scenes.FPS, size)
    assert all(1 <= len(part) <= size for part in parts)
    spans = scenes.spans(parts, start, start + length)
    assert spans[0][0] == start and spans[-1][1] == start + length
    assert all(one[1] == two[0] for one, two in itertools.pairwise(spans))
    assert all(first <= part[0] and part[-1] <= last for part, (first, last) in zip(parts, spans, strict=True))


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "talk.mp4"
    shown = (videos.coded(index, ground=(40, 120, 200, 250)[index // 50]) for index in range(200))
    path.write_bytes(videos.video(shown, fps=5, gop=25))
    return path


def test_no_window_is_asked_about_twice(model, script, talk, tmp_path):
    script.answer = "- (00:00:00 - 00:00:15) Grey."
    video, choice = Video(talk), FrameChoice(patches=16)
    parts = scenes.windows(0, 40, 0.5, 5)
    asked: list[int] = []
    with Journal(tmp_path / "j", {"video": "x"}) as journal:
        reading = scenes.read_windows(model, video, parts, choice, journal, before=asked.append)
        first = [next(reading), next(reading)]
    with Journal(tmp_path / "j", {"video": "x"}) as journal:
        again = list(scenes.read_windows(model, video, parts, choice, journal, before=asked.append))
    assert asked == [1, 2, 3, 4] and again[:2] == first
    found, notes = scenes.joined(again, scenes.spans(parts, 0, 40), [10.0, 20.0])
    assert found[0].description == "Grey." and any("outside of" in note for note in notes)


def test_subtitles_and_a_list():
    found = [Scene(0, 10.5, "a"), Scene(10.5, 3661, "b")]
    assert scenes.as_srt(found).startswith("1\n00:00:00,000 --> 00:00:10,500\na\n\n2\n00:00:10,500 --> 01:01:01,000\nb")
    text = scenes.as_markdown(found, ["a note"], "talk.mp4")
    assert "# talk.mp4" in text and "- **00:00:10 - 01:01:01** b" in text and "- a note" in text


def test_a_contact_sheet():
    shown = [(float(index), np.full((90, 240, 3), index * 20, np.uint8)) for index in range(8)]
    sheet = contact_sheet(shown)
    assert sheet.size == (8 + 6 * 248, 8 + 2 * 118) and sheet.getpixel((8 + 248 + 100, 50)) == (20, 20, 20)
    with pytest.raises(BadRequest):
        contact_sheet(shown * 120)


def test_the_command(script, talk, tmp_path, capsys):
    script.answer = "- (00:00:00 - 00:00:09.5) Dark.\n- (00:00:10 - 00:00:40) Lighter and lighter."
    script.context_length = 8192
    (tmp_path / "m-Instruct.gguf").touch()
    line = ["scenes", str(talk), "-m", str(tmp_path / "m-Instruct.gguf"), "--image-patches", "16", "-o"]
    assert cli.main([*line, f"{tmp_path}/x.json", "--sheet", f"{tmp_path}/x.png"]) == 0
    result = json.loads((tmp_path / "x.json").read_text())
    assert [(one["start"], one["end"], one["snapped"]) for one in result["scenes"]] == [(0, 10, False), (10, 40, True)]
    assert result["scenes"][1]["start_text"] == "00:00:10" and result["video"]["duration"] == pytest.approx(40)
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.width == 8 + 6 * 248
    n_asked = len(script.encoded)
    assert cli.main([*line, f"{tmp_path}/x.json"]) == 0 and len(script.encoded) == n_asked
    assert cli.main([*line, f"{tmp_path}/x.srt"]) == 0
    assert "Lighter and lighter." in (tmp_path / "x.srt").read_text()
    assert cli.main([*line, f"{tmp_path}/x.doc"]) == 2 and cli.main(line[:-1]) == 2
    assert cli.main(["scenes", str(talk), "--sheet", f"{tmp_path}/x.png"]) == 2
    assert "--force" in capsys.readouterr().err
