"""Videos: which frame is taken, whatever the container does, and files that are none."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import videos
from hypothesis import given
from hypothesis import strategies as st

from kimi_vl_cpp.errors import BadVideo
from kimi_vl_cpp.media import sampling, times
from kimi_vl_cpp.media.video import Video, is_video


def same(width: int, height: int) -> tuple[int, int]:
    return width, height


def coded(n: int, **options) -> list[np.ndarray]:
    return [videos.coded(number, **options) for number in range(n)]


VARIABLE = [sum(0.05 + 0.11 * (i % 5) for i in range(n)) for n in range(40)]
FILES = {
    "mp4": {"codec": "libx264"},
    "b-frames": {"codec": "libx264", "gop": 30},
    "one gop": {"gop": 400},
    "mkv that begins late": {"container": "mkv", "start": 101.4},
    "transport stream": {"container": "ts", "codec": "libx264", "start": 1.47},
    "webm": {"container": "webm", "codec": "libvpx"},
    "avi": {"container": "avi"},
    "gif": {"container": "gif", "codec": "gif"},
    "variable rate": {"times": VARIABLE, "container": "mkv"},
    "sound": {"sound": True},
}


@pytest.mark.parametrize("name", FILES)
def test_the_frame_nearest_to_each_time_is_taken(name):
    options = FILES[name]
    video = Video(videos.video(coded(40), **options), name="x")
    shown = options.get("times") or [index / 10 for index in range(40)]
    wanted = [0.0, 0.31, 0.98, 1.52, 2.97, 3.3, 3.31, shown[-1]]
    found = list(video.frames(wanted, same))
    assert len(found) == len(wanted) and video.size == (128, 96)
    for time, (at, pixels) in zip(wanted, found, strict=True):
        number = videos.number_of(pixels)
        assert abs(at - shown[number]) < 0.02
        assert abs(at - time) <= min(abs(one - time) for one in shown) + 0.02
    assert abs(video.duration - (shown[-1] + 0.1)) < 0.15 or name == "variable rate"


def test_far_times_are_sought_and_give_the_frames_of_reading_on():
    data = videos.video(coded(600), gop=10, codec="libx264")
    wanted = [3.0, 20.04, 21.0, 40.5, 59.9]
    video = Video(data)
    decoded = []
    original = video._decoded
    video._decoded = lambda until: (decoded.append(time) or (time, frame) for time, frame in original(until))
    found = [videos.number_of(pixels) for _, pixels in video.frames(wanted, same)]
    assert len(decoded) < 150
    video._can_seek = False
    assert found == [videos.number_of(pixels) for _, pixels in video.frames(wanted, same)] == [30, 200, 210, 405, 599]


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_frames_are_turned_upright(degrees):
    frames = coded(3)
    frames[0][-16:, :16] = (250, 0, 0)  # a corner at the bottom left
    video = Video(videos.video(frames, rotation=degrees))
    ((_, pixels),) = video.frames([0], same)
    assert video.size == ((96, 128) if degrees != 180 else (128, 96))
    assert pixels.shape[:2] == (video.size[1], video.size[0])
    red = pixels[..., 0].astype(int) - pixels[..., 1]
    y, x = np.unravel_index(red.argmax(), red.shape)
    turned = np.rot90(np.zeros((96, 128)), 1)  # where the corner is after a turn
    expected = {90: (turned.shape[0], turned.shape[1]), -90: (0, 0), 180: (0, 128)}[degrees]
    assert abs(y - expected[0]) <= 16 and abs(x - expected[1]) <= 16


def test_pixels_that_are_not_square_are_stretched():
    video = Video(videos.video(coded(3), aspect=Fraction(2, 1)))
    ((_, pixels),) = video.frames([0], same)
    assert video.size == (256, 96) and pixels.shape == (96, 256, 3)


def test_one_frame_is_a_video():
    video = Video(videos.video(coded(1)))
    assert [videos.number_of(pixels) for _, pixels in video.frames([0, 5], same)] == [0, 0]


def test_decoding_may_be_left_at_any_frame():
    video = Video(videos.video(coded(30), codec="libx264"))
    for n in range(30):
        frames = video.frames([index / 10 for index in range(30)], same)
        for _ in range(n % 7):
            next(frames)
        frames.close()


# Files


def test_a_video_with_flipped_bits_gives_what_can_be_decoded():
    data = bytearray(videos.video(coded(60), container="mkv"))
    noise = np.random.default_rng(1)
    for at in noise.integers(1000, len(data) - 500, 40):
        data[at] ^= 0xFF
    video = Video(bytes(data))
    assert len(list(video.frames([0, 1, 2, 3], same))) == 4


def test_a_video_cut_off_behind_its_index_gives_its_beginning():
    data = videos.video(coded(60), container="mkv")
    video = Video(data[: len(data) // 2])
    assert 1 < video.duration < 5
    assert [videos.number_of(pixels) for _, pixels in video.frames([0, 1], same)] == [0, 10]


WHOLE = videos.video(coded(30))
MATROSKA = videos.video(coded(3), container="mkv")
ASF_PROTECTION = bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e")
REFUSED = {
    "empty": (b"", "video.damaged"),
    "text": (b"hello", "video.format"),
    "a list of files": (b"ffconcat version 1.0\nfile '/etc/hostname'\n", "video.format"),
    "a playlist": (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n", "video.format"),
    "cut off before its index": (videos.video(coded(30))[:2000], "video.index"),
    "cut off in its index": (WHOLE[: WHOLE.index(b"stsd")], "video.index"),
    "cut off in what its codec is": (WHOLE[: WHOLE.index(b"stsd") + 12], "video.index"),
    "protected, MP4": (WHOLE.replace(b"mp4v", b"encv"), "video.drm"),
    "protected, Matroska": (
        MATROSKA[: MATROSKA.index(b"V_MPEG4")] + bytes.fromhex("6d80866240 8350338101") + MATROSKA[200:],
        "video.drm",
    ),
    "protected, ASF": (bytes.fromhex("3026b2758e66cf11") + bytes(92) + ASF_PROTECTION, "video.drm"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_video_is_refused(name):
    data, code = REFUSED[name]
    with pytest.raises(BadVideo) as caught:
        Video(data, name="x.mp4")
    assert caught.value.code == code and str(caught.value).startswith("x.mp4")


def test_files_that_are_not_there_or_not_files(tmp_path):
    for path, code in ((tmp_path / "none.mp4", "video.not_found"), (tmp_path, "video.not_a_file")):
        with pytest.raises(BadVideo) as caught:
            Video(path)
        assert caught.value.code == code


@given(st.integers(0, 5000), st.binary(max_size=30))
def test_damaged_files_raise_typed_errors(at, junk):
    data = DAMAGED[: at % len(DAMAGED)] + junk + DAMAGED[at % len(DAMAGED) + len(junk) :]
    try:
        list(Video(data).frames([0, 0.3], same))
    except BadVideo:
        return


DAMAGED = videos.video(coded(5, width=112, height=48))


def test_the_bytes_decide_what_a_video_is():
    assert is_video(DAMAGED[:1024]) and not is_video(b"\0\0\0\x18ftypavif") and not is_video(b"%PDF-")


# Times


@given(st.floats(0, 5000), st.floats(0.01, 5000), st.integers(1, 600))
def test_uniform_times_lie_inside_in_order_and_are_not_too_many(start, length, n):
    found = sampling.uniform(start, start + length, n)
    assert len(found) <= n and len(found) <= max(1, length * sampling.FPS_CAP + 1)
    assert found == sorted(found) and all(start <= time <= start + length for time in found)


@given(st.lists(st.floats(1, 99), max_size=60, unique=True), st.integers(1, 100))
def test_every_shot_is_seen_while_there_are_frames(cuts, n):
    cuts = sorted(cuts)
    found = sampling.by_scene(0, 100, cuts, n)
    assert len(found) <= n and found == sorted(found)
    edges = [0, *cuts, 100]
    if n > len(cuts):
        assert all(any(first <= time <= last for time in found) for first, last in itertools.pairwise(edges))


def test_a_rate_gives_a_time_for_each_of_its_steps():
    assert sampling.by_rate(2, 4, 2) == [2, 2.5, 3, 3.5] and sampling.by_rate(0, 0.1, 1) == [0]


def test_ranges_of_times():
    parse = times.parse_range
    assert parse("00:00:10-00:00:20", 60, "x") == (10, 20)
    assert parse("1:30-", 100, "x") == (90, 100) and parse("-0:05.5", 60, "x") == (0, 5.5)
    assert parse("10-999", 60, "x") == (10, 60)
    for wrong in ("", "-", "a-b", "20-10", "50:00-", "1:2:3:4-"):
        with pytest.raises(BadVideo) as caught:
            parse(wrong, 60, "x")
        assert caught.value.code == "video.range"
    with pytest.raises(BadVideo, match="starts at 00:50:00, the video ends at 00:35:55"):
        parse("50:00-", 35 * 60 + 55, "x")


@given(st.floats(0, 90_000))
def test_a_clock_reads_as_the_time(time):
    assert times.seconds(times.clock(time)) == pytest.approx(time, abs=1.001)
    assert times.seconds(times.clock(time, milliseconds=True)) == pytest.approx(time, abs=0.0006)


def test_frames_that_share_a_second_are_named_to_the_millisecond():
    assert times.labels([1, 62.5], "hms") == ["00:00:01\n", "00:01:02\n"]
    assert times.labels([1, 1.5], "hms") == ["00:00:01.000\n", "00:00:01.500\n"]
    assert times.labels([1, 1.5], "seconds") == ["1.0 s\n", "1.5 s\n"] and times.labels([1], "none") == [""]
