"""Subtitles: the two formats, which frame a cue stands before, and what is refused."""

from __future__ import annotations

import json

import pytest
import videos
from hypothesis import given
from hypothesis import strategies as st

from kimi_vl_cpp import cli
from kimi_vl_cpp.errors import BadVideo
from kimi_vl_cpp.media import subtitles
from kimi_vl_cpp.media.subtitles import Cue

SRT = (
    "\ufeff1\r\n00:00:01,000 --> 00:00:03,500\r\nHello <i>there</i>\r\nyou\r\n\r\n"
    "2\r\n01:00:00,000 --> 01:00:01,000\r\nBye\r\n"
)
VTT = """WEBVTT - a talk

NOTE
00:00:09.000 --> 00:00:10.000
not said

STYLE
::cue { color: red }

intro
00:01.000 --> 00:03.500 align:start position:10%
<v Ann>Hello <00:00:02.000><c>there</c> you

01:00:00.000 --> 01:00:01.000
Bye

01:00:02.000 --> 01:00:03.000
{\\an8}
"""


@pytest.mark.parametrize("text", [SRT, VTT])
def test_both_formats_are_read_without_markup(text, tmp_path):
    (tmp_path / "s").write_text(text, encoding="utf-8")
    assert subtitles.read(tmp_path / "s") == [Cue(1, 3.5, "Hello there you"), Cue(3600, 3601, "Bye")]


@pytest.mark.parametrize("data", [b"", b"no cues", b"\xff\xff", b"WEBVTT\n", b"1\n00:00 -> 00:01\nx"])
def test_what_holds_no_subtitles_is_refused(data, tmp_path):
    (tmp_path / "s.srt").write_bytes(data)
    with pytest.raises(BadVideo) as caught:
        subtitles.read(tmp_path / "s.srt")
    assert caught.value.code == "video.subtitles" and str(caught.value).startswith("s.srt")


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 10)), max_size=12),
    st.lists(st.floats(20, 80), min_size=1, max_size=8, unique=True).map(sorted),
)
def test_every_cue_of_the_part_stands_before_one_frame(spans, times):
    cues = [Cue(start, start + length, str(index)) for index, (start, length) in enumerate(sorted(spans))]
    placed = subtitles.between(cues, times, 20, 80)
    named = [name for text in placed for name in text.split()]
    assert named == [cue.text for cue in cues if cue.end > 20 and cue.start < 80]


def test_a_cue_stands_before_the_nearest_frame():
    cues = [Cue(0, 1, "a"), Cue(4.9, 6, "b"), Cue(5.1, 6, "c"), Cue(9, 10, "c")]
    assert subtitles.between(cues, [0, 10], 0, 20) == ["a\nb", "c"]


def test_subtitles_beside_a_video_are_named_and_used_when_asked(script, tmp_path, capsys):
    (tmp_path / "talk.mp4").write_bytes(videos.video([videos.coded(i) for i in range(20)]))
    (tmp_path / "talk.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nHello\n")
    (tmp_path / "m-Instruct.gguf").touch()
    line = ["run", "-m", f"{tmp_path}/m-Instruct.gguf", "-i", f"{tmp_path}/talk.mp4", "--frames", "1", "--json", "Hi"]
    line += ["--image-patches", "16"]
    assert cli.main(line) == 0
    without = capsys.readouterr()
    assert "talk.srt lies beside the video" in without.err
    assert cli.main([*line, "--subtitles", "auto"]) == 0
    found = capsys.readouterr()
    assert "lies beside" not in found.err
    tokens = [json.loads(one.out)["usage"]["prompt_tokens"] for one in (without, found)]
    assert tokens[1] - tokens[0] == len("Hello\n")  # the fake model's tokens are bytes
    (tmp_path / "talk.srt").unlink()
    assert cli.main([*line, "--subtitles", "auto"]) == 4
    assert "video.subtitles" in capsys.readouterr().err
