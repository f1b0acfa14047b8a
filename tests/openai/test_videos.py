"""Videos in messages: which frames, what stands before them, and what is refused."""

from __future__ import annotations

import base64

import pytest
import videos
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_vl_cpp.errors import KimiVLError
from kimi_vl_cpp.media import frames
from kimi_vl_cpp.media.processor import ImageProcessor
from kimi_vl_cpp.media.video import Video
from kimi_vl_cpp.openai.messages import has_attachments, translate_messages

DATA = videos.video(videos.coded(index) for index in range(40))
URL = f"data:video/mp4;base64,{base64.b64encode(DATA).decode()}"


def opened(part):
    with Video(part.source) as video:
        return frames.choose(video, ImageProcessor(), part.choice, part.times)


def translated(part, **options):
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "Why?"}]}]
    assert has_attachments(messages)
    return translate_messages(messages, **({"open_video": opened} | options))


@pytest.mark.parametrize(
    ("part", "numbers", "labels"),
    [
        ({"video_url": {"url": URL, "frames": 2}}, [10, 30], ["00:00:01\n", "00:00:03\n"]),
        ({"video_url": URL, "frames": 2, "range": "0-2", "timestamps": "none"}, [5, 15], []),
        ({"video_url": {"url": URL, "fps": 1, "timestamps": "seconds"}}, [0, 10, 20, 30], ["0.0 s\n", "1.0 s\n"]),
        ({"type": "video", "video": URL, "frames": 1, "detail": "low"}, [20], ["00:00:02\n"]),
    ],
)
def test_frames_become_pictures_behind_their_times(part, numbers, labels):
    result = translated({"type": "video_url", **part})
    content = result.messages[0]["content"]
    texts = [one["text"] for one in content if one["type"] == "text"]
    assert texts[: len(labels)] == labels and texts[-1] == "Why?"
    assert [one["image"] for one in content if one["type"] == "image"] == list(range(len(numbers)))
    assert [videos.number_of(picture.source.pixels[:96, :128]) for picture in result.pictures] == numbers


@pytest.mark.parametrize(
    ("video", "place", "code"),
    [
        (5, "", "request.video_url"),
        ({}, "", "request.video_url"),
        ([URL], "", "unsupported.part"),
        ({"url": URL, "frames": 0}, ".frames", "request.messages"),
        ({"url": "data:text/plain;base64,AAAA"}, "", "image.data_url"),
        ({"url": "data:video/mp4;base64,AAAA"}, "", "video.format"),
        ({"url": URL, "frames": 513}, ".frames", "request.messages"),
        ({"url": URL, "fps": 0}, ".fps", "request.messages"),
        ({"url": URL, "range": "5-9"}, "", "video.range"),
        ({"url": URL, "range": 5}, ".range", "request.video_url"),
        ({"url": URL, "sampling": "all"}, ".sampling", "request.video_url"),
        ({"url": URL, "timestamps": 1}, ".timestamps", "request.video_url"),
        ({"url": URL, "dedupe": 1}, ".dedupe", "request.messages"),
        ({"url": URL, "fps": 100, "frames": 8}, "", "video.frames"),
    ],
)
def test_a_wrong_video_is_named_by_its_place(video, place, code):
    with pytest.raises(KimiVLError) as caught:
        translated({"type": "video_url", "video_url": video})
    assert caught.value.param == f"messages[0].content[0].video_url{place}" and caught.value.code == code
    assert str(caught.value).startswith(caught.value.param)


def test_videos_are_refused_where_nobody_opens_them():
    with pytest.raises(KimiVLError, match="send frames of it as pictures") as caught:
        translate_messages([{"role": "user", "content": [{"type": "video_url", "video_url": URL}]}])
    assert caught.value.code == "unsupported.part"


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers())
FIELDS = st.sampled_from(["url", "range", "frames", "fps", "sampling", "timestamps", "dedupe", "detail", "max_patches"])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(FIELDS, VALUES, max_size=6), st.sampled_from(["video_url", "video"]))
def test_any_options_give_frames_or_a_typed_error(options, kind):
    try:
        translated({"type": kind, kind: {"url": URL, "frames": 2, **options}})
    except KimiVLError as error:
        assert error.param and error.param.startswith("messages[0]")
