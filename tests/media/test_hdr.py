"""HDR frames as ordinary pictures: known brightnesses, greys that stay grey, and nothing brighter made darker."""

from __future__ import annotations

import numpy as np
import pytest
import videos
from hypothesis import given
from hypothesis import strategies as st

from kimi_vl_cpp.media import hdr
from kimi_vl_cpp.media.video import Video

CURVES = ("PQ", "HLG")


def seen(*signal: float, curve) -> list[int]:
    return hdr.to_sdr(np.round(np.array(signal).reshape(1, 1, 3) * 65535).astype(np.uint16), curve)[0, 0].tolist()


@pytest.mark.parametrize(
    ("signal", "curve", "value"),
    [
        (0.0, "PQ", 0),
        (0.508078, "PQ", 186),  # 100 candelas: 100 / 203 of white, in sRGB
        (0.580689, "PQ", 244),  # 203: white, 0.75 + 0.25 (1 - 1 / e) of the range
        (1.0, "PQ", 255),
        (0.0, "HLG", 0),
        (0.75, "HLG", 244),  # 203
        (1.0, "HLG", 255),
    ],
)
def test_greys_of_a_known_brightness_are_where_they_belong(signal, curve, value):
    assert seen(signal, signal, signal, curve=curve) == [value] * 3


@pytest.mark.parametrize("curve", CURVES)
def test_what_is_brighter_is_not_made_darker(curve):
    ramp = np.repeat(np.arange(0, 65536, 16, dtype=np.uint16)[None, :, None], 3, axis=2)
    values = hdr.to_sdr(ramp, curve)[0].astype(int)
    assert (np.diff(values[:, 0]) >= 0).all() and np.ptp(values, axis=1).max() <= 1


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.sampled_from(CURVES))
def test_any_colour_is_one(signal, curve):
    order = np.argsort(signal)
    low, _, high = (seen(*signal, curve=curve)[index] for index in order)
    assert low <= high + 1  # the strongest of the three stays it


def test_a_video_that_says_that_it_is_hdr_is_mapped_with_a_notice():
    def tagged(stream):
        stream.codec_context.color_trc, stream.codec_context.color_primaries, stream.codec_context.colorspace = 16, 9, 9

    grey = [np.full((64, 64, 3), 148, np.uint8)] * 2  # 203 candelas, 0.58 of the signal
    with Video(videos.video(grey, container="mkv", edit=tagged), name="x.mkv") as video:
        ((_, pixels),) = video.frames([0], lambda width, height: (width, height))
        assert abs(int(pixels.mean()) - 243) <= 3 and "x.mkv: HDR (PQ) is tone mapped" in video.notices[0]
    with Video(videos.video(grey, container="mkv")) as video:
        ((_, pixels),) = video.frames([0], lambda width, height: (width, height))
        assert abs(int(pixels.mean()) - 148) <= 2 and video.notices == []
