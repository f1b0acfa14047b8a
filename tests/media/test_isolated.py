"""Documents and videos in a process of their own: the same pages and frames, and what a file can do to us."""

from __future__ import annotations

import io
import subprocess

import documents
import numpy as np
import pytest
import videos
from PIL import Image

from kimi_vl_cpp.errors import BadDocument, BadVideo, Cancelled, KimiVLError, Unsupported
from kimi_vl_cpp.media import frames, reader_process
from kimi_vl_cpp.media.isolated import IsolatedDocument, IsolatedVideo
from kimi_vl_cpp.media.pdf import Document
from kimi_vl_cpp.media.processor import ImageProcessor, LimitedImage
from kimi_vl_cpp.media.tiff import TiffDocument
from kimi_vl_cpp.media.video import Video

THREE = documents.pdf(["one", "two", "three"])
FILM = videos.video((videos.coded(index) for index in range(20)), fps=10, sound=True)


def test_pages_are_those_that_this_process_would_draw():
    with IsolatedDocument(THREE, name="x.pdf") as apart, Document(THREE, name="x.pdf") as here:
        assert (apart.n_pages, apart.notices, len(apart)) == (here.n_pages, here.notices, 3)
        assert apart.page_size(2) == here.page_size(2) and apart.text(3) == here.text(3) == "three"
        pages = [document.pages("2")[0] for document in (apart, here)]
        first, second = (ImageProcessor()(LimitedImage(page, 512)) for page in pages)
        assert first == second and first.label == second.label == "Page 2 of 3:\n"
        with pytest.raises(BadDocument) as caught:
            apart.pages("4")
        assert caught.value.code == "document.pages"
        # The process is killed by the file, as far as anybody can tell from here.
        apart._process._child.kill()
        with pytest.raises(BadDocument, match=r"x\.pdf: drawing page 1 crashed its reader") as caught:
            apart.draw(1, 10, 10)
        assert caught.value.code == "document.crashed"
        apart.close()
        with pytest.raises(Cancelled):
            apart.draw(1, 10, 10)


def test_what_is_wrong_with_a_file_is_said_in_the_same_words(monkeypatch):
    monkeypatch.setenv("KIMI_VL_API_KEY", "secret")
    assert "KIMI_VL_API_KEY" not in reader_process.environment()
    cut = THREE[: len(THREE) // 3]
    errors = []
    for opened in (Document, IsolatedDocument):
        with pytest.raises(BadDocument) as caught:
            opened(cut, name="cut.pdf")
        errors.append((str(caught.value), caught.value.code))
    assert errors[0] == errors[1] and errors[0][1] == "document.damaged"


@pytest.mark.parametrize(
    ("Isolated", "data", "code"),
    [(IsolatedDocument, THREE, "document.timeout"), (IsolatedVideo, FILM, "video.timeout")],
)
def test_a_step_that_takes_too_long_is_given_up_and_its_process_is_gone(monkeypatch, Isolated, data, code):
    started = []
    start = subprocess.Popen
    monkeypatch.setattr("subprocess.Popen", lambda *given, **more: started.append(start(*given, **more)) or started[0])
    with pytest.raises(KimiVLError, match="opening it took longer than 0 s") as caught:
        Isolated(data, limit_s=0)
    assert caught.value.code == code and started[0].returncode is not None


@pytest.mark.parametrize("Isolated", [IsolatedDocument, IsolatedVideo])
def test_without_the_library_no_process_is_started(monkeypatch, Isolated):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(Unsupported, match=r"kimi-vl-cpp\[(pdf|video)\]"):
        Isolated(THREE)


def test_frames_are_those_that_this_process_would_decode(tmp_path):
    (tmp_path / "film").write_bytes(FILM)
    times = [0.3, 0.5, 1.6]
    with (
        Video(FILM, name="x.mp4") as here,
        open(tmp_path / "film", "rb") as file,
        IsolatedVideo(file, name="x.mp4") as apart,
    ):
        assert (apart.duration, apart.size, apart.has_audio) == (here.duration, here.size, here.has_audio)
        assert apart.notices == here.notices
        for one, other in zip(apart.frames(times, plain), here.frames(times, plain), strict=True):
            assert one[0] == other[0] and np.array_equal(one[1], other[1])
        next(apart.frames(times, plain))  # and the rest is not taken
        small = [(time, pixels.shape) for time, pixels in apart.every(0.5, 1.2, 5, lambda width, height: (32, 18))]
        assert small == [(time, (18, 32, 3)) for time, _ in here.every(0.5, 1.2, 5, plain)]
        processor = ImageProcessor()
        choice = frames.FrameChoice(n=3, dedupe=True)
        seen = [
            frames.pictures(video, processor, frames.times_of(video, 0, 2, choice), choice) for video in (apart, here)
        ]
        assert seen[0] == seen[1] and len(seen[0][0]) == 3
        apart.close()
        with pytest.raises(Cancelled):
            list(apart.frames(times, plain))


def test_what_is_wrong_with_a_video_is_said_in_the_same_words():
    errors = []
    for opened in (Video, IsolatedVideo):
        with pytest.raises(BadVideo) as caught:
            opened(FILM[: len(FILM) // 2], name="cut.mp4")
        errors.append((str(caught.value), caught.value.code))
    assert errors[0] == errors[1] and errors[0][1] == "video.index"


def test_a_scan_is_read_apart_too():
    file = io.BytesIO()
    pages = [Image.new("RGB", (56, 28 * n), "red") for n in (1, 2)]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    with IsolatedDocument(file.getvalue(), name="scan.tif") as apart, TiffDocument(file.getvalue()) as here:
        assert (apart.n_pages, apart.native_size(2)) == (2, (56, 56))
        assert ImageProcessor()(apart.pages("2")[0]) == ImageProcessor()(here.pages("2")[0])


def plain(width, height):
    return width, height
