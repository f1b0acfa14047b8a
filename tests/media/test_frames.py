"""Frames of a video for a prompt: cuts, what is left out, and what stands before each."""

from __future__ import annotations

import numpy as np
import pytest
import videos

from kimi_vl_cpp import cli
from kimi_vl_cpp.errors import BadRequest, BadVideo
from kimi_vl_cpp.media import cuts, frames
from kimi_vl_cpp.media.frames import FrameChoice
from kimi_vl_cpp.media.processor import ImageProcessor
from kimi_vl_cpp.media.video import Video


def landscape(seed: int, width: int = 400) -> np.ndarray:
    """Smooth noise, wider than a frame, to pan over: float32 [36, width]."""
    noise = np.random.default_rng(seed)
    coarse = noise.uniform(20, 235, (5, width // 16 + 2))
    columns, rows = np.linspace(0, coarse.shape[1] - 1, width), np.linspace(0, 4, 36)
    wide = np.stack([np.interp(columns, range(coarse.shape[1]), row) for row in coarse])
    return np.stack([np.interp(rows, range(5), column) for column in wide.T], axis=1).astype(np.float32)


def filmed(n_shots: int, fps: float = 8.0) -> tuple[list[float], list[np.ndarray], list[float]]:
    """Shots of 2 to 5 s, each a pan; every fifth cut is a fade of a second. Times, frames and the hard cuts."""
    noise = np.random.default_rng(7)
    shown: list[np.ndarray] = []
    hard = []
    for shot in range(n_shots):
        view = landscape(shot)
        pan = [view[:, at : at + 64] for at in range(int(fps * noise.uniform(2, 5)))]
        if shot and shot % 5 == 0:
            last = shown[-1]
            shown += [last + (pan[0] - last) * step / 9 for step in range(1, 9)]
        elif shot:
            hard.append(len(shown) / fps)
        shown += [frame + noise.normal(0, 1, frame.shape).astype(np.float32) for frame in pan]
    return [index / fps for index in range(len(shown))], shown, hard


def test_hard_cuts_are_found_among_pans_and_fades():
    times, shown, hard = filmed(51)
    assert len(hard) == 40
    found = cuts.find_cuts(times, shown)
    right = sum(any(abs(cut - time) <= 0.25 for time in found) for cut in hard)
    precision, recall = sum(any(abs(cut - time) <= 0.25 for cut in hard) for time in found) / len(found), right / 40
    assert 2 * precision * recall / (precision + recall) >= 0.95


def test_a_long_pan_has_no_cut():
    view = landscape(3, 600)
    shown = [view[:, at : at + 64] for at in range(480)]
    assert cuts.find_cuts([index / 8 for index in range(480)], shown) == []
    assert cuts.find_cuts([], []) == [] and cuts.find_cuts([0.0], shown[:1]) == []


@pytest.fixture(scope="module")
def slides():
    """Ten seconds of each of four grounds, 5 frames a second."""
    shown = (videos.coded(index, ground=(40, 120, 200, 250)[index // 50]) for index in range(200))
    return videos.video(shown, fps=5, gop=25)


def test_cuts_of_a_file_are_at_their_times(slides):
    found = frames.find_cuts(Video(slides), 0, 40)
    assert found == pytest.approx([10, 20, 30], abs=0.01)
    assert frames.find_cuts(Video(slides), 12, 28) == pytest.approx([20], abs=0.01)


def seen(data: bytes, start: float = 0, end: float = 40, **choice):
    video, chosen = Video(data, name="x.mp4"), FrameChoice(**choice)
    return frames.pictures(video, ImageProcessor(), frames.times_of(video, start, end, chosen), chosen)


def test_each_frame_stands_behind_its_time(slides):
    found, notices = seen(slides, n=4)
    assert [picture.label for picture in found] == [f"00:00:{second:02d}\n" for second in (5, 15, 25, 35)]
    assert [videos.number_of(picture.pixels[:96, :128]) for picture in found] == [25, 75, 125, 175]
    assert notices == [] and found[0].original_size == (128, 96)
    found, _ = seen(slides, 10, 12, sampling="rate", fps=2, timestamps="seconds")
    named = [float(picture.label.removesuffix(" s\n")) for picture in found]
    assert named == pytest.approx([10, 10.5, 11, 11.5], abs=0.11)


def test_frames_that_show_the_same_are_left_out_and_counted():
    still = videos.video([videos.coded(5)] * 100 + [videos.coded(9, ground=200)] * 100, fps=10)
    found, notices = seen(still, 0, 20, n=20, dedupe=True)
    assert [videos.number_of(picture.pixels[:96, :128]) for picture in found] == [5, 9]
    assert "18 of 20 frames" in notices[0]


def test_every_scene_gets_a_frame(slides):
    found, _ = seen(slides, sampling="scenes", n=4)
    assert [videos.number_of(picture.pixels[:96, :128]) // 50 for picture in found] == [0, 1, 2, 3]


def test_a_rate_that_gives_too_many_frames_is_refused_with_the_number(slides):
    with pytest.raises(BadVideo, match="80 frames, expected at most 32") as caught:
        seen(slides, sampling="rate", fps=2)
    assert caught.value.code == "video.frames"
    assert len(seen(slides, sampling="rate", fps=2, n=100)[0]) == 80


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("n", 0, "frames"),
        ("n", 513, "frames"),
        ("fps", 0, "fps"),
        ("patches", 3, "image_patches"),
        ("sampling", "best", "sampling"),
        ("timestamps", "utc", "timestamps"),
    ],
)
def test_wrong_choices(field, value, code):
    with pytest.raises(BadRequest) as caught:
        FrameChoice(**{field: value}).check()
    assert caught.value.code == f"request.{code}"


def test_positions_are_counted_before_a_frame_is_decoded(slides):
    video = Video(slides)
    found, _ = seen(slides, n=8)
    assert frames.positions(video, 8, ImageProcessor(), 512) == sum(one.n_tokens + 16 for one in found)


@pytest.mark.parametrize(("width", "height", "patches"), [(384, 288, 512), (176, 132, 100)])
def test_a_frame_is_scaled_once(width, height, patches):
    """Sizes that rounding leaves above the limit, so that a second scaling would make them smaller again."""
    data = videos.video([videos.coded(3, width, height)] * 4)
    (found,), _ = seen(data, 0, 0.4, n=1, patches=patches)
    resized, padded = ImageProcessor(in_token_limit=patches).plan(width, height)
    assert found.resized_size == resized and found.pixels.shape == (padded[1], padded[0], 3)
    assert frames.positions(Video(data), 1, ImageProcessor(), patches) == found.n_tokens + 16


def test_frames_go_into_a_question(model, script, slides, tmp_path):
    (tmp_path / "talk.mp4").write_bytes(slides)
    found = model.frames(f"{tmp_path}/talk.mp4#10-30", n=2, patches=16)
    stream = model.chat("What?", found, stream=True, max_new_tokens=1)
    text = model.detokenize([token for token in stream.prompt_ids if token >= 0])
    assert text.index("00:00:15\n") < text.index("00:00:25\n") < text.index("What?")


def test_the_command_asks_about_a_part_of_a_video(slides, tmp_path, capsys):
    (tmp_path / "talk.mp4").write_bytes(slides)
    line = ["run", "-t", "1", "-n", "2", "What is this?", "--json", "-v"]
    assert cli.main([*line, f"{tmp_path}/talk.mp4#10-30", "--frames", "3", "--image-patches", "40"]) == 0
    assert '"image_tokens": ' in capsys.readouterr().out
    assert cli.main([*line, f"{tmp_path}/talk.mp4#50-"]) == 4
    assert "video.range" in capsys.readouterr().err
    assert cli.main([*line, f"{tmp_path}/talk.mp4", "--sample", "best"]) == 2
    assert cli.main([*line, f"{tmp_path}/none.mp4"]) == 4
