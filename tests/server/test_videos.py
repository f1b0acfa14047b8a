"""Videos sent to a server, each of which is read by a process of its own."""

from __future__ import annotations

import base64
from functools import partial

import pytest
import videos
from server_support import RunningServer

from kimi_vl_cpp.media.isolated import IsolatedVideo
from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.server import attachments

DATA = videos.video(videos.coded(index) for index in range(20))
URL = f"data:video/mp4;base64,{base64.b64encode(DATA).decode()}"
OPTIONS = {"frames": 3, "max_patches": 36}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    (folder / "film.mp4").write_bytes(DATA)
    return folder


@pytest.fixture(scope="module")
def model():
    with KimiVL.builtin(n_ctx=1024) as model:
        yield model


@pytest.fixture(scope="module")
def server(folder):
    with RunningServer(lambda: KimiVL.builtin(n_ctx=1024), max_images=6, image_dirs=(str(folder),)) as running:
        yield running


def asking(url=URL, **fields):
    part = {"type": "video_url", "video_url": {"url": url, **OPTIONS, **fields}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}]


def refused(server, url=URL, **fields):
    response = server.post("/v1/chat/completions", messages=asking(url, **fields))
    assert response.status_code == 400
    return response.json()["error"]


def test_the_answer_about_a_video_is_the_library_s(server, model, folder):
    seen = model.frames(f"{folder}/film.mp4", n=3, patches=36)
    expected = model.chat("What is this?", seen, temperature=0, max_new_tokens=4)
    for url in (URL, f"file://{folder}/film.mp4"):
        answer = server.ask(asking(url), temperature=0, max_tokens=4, return_token_ids=True)
        assert answer["choices"][0]["token_ids"] == list(expected.token_ids)
        assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
        assert len(answer["kimi"]["images"]) == 3
    assert not server.state.attachments.reading
    here = model.create_chat_completion(asking(), temperature=0, max_tokens=4)
    named = model.create_chat_completion(asking(f"{folder}/film.mp4"), allow_local_images=True, max_tokens=1)
    assert here["usage"]["prompt_tokens"] == named["usage"]["prompt_tokens"] == expected.usage.prompt_tokens


def test_what_is_not_to_be_opened_is_refused(server, model, folder, tmp_path):
    (tmp_path / "film.mp4").write_bytes(DATA)
    assert refused(server, f"file://{tmp_path}/film.mp4")["code"] == "image.file_refused"
    for url in ("https://example.org/film.mp4", f"{folder}/film.mp4"):
        error = refused(server, url)
        assert error["code"] == "request.video_url" and error["param"] == "messages[0].content[0].video_url"
        with pytest.raises(Exception, match="which is not opened here: send a data:"):
            model.create_chat_completion(asking(url))
    assert refused(server, frames=8, fps=4, max_patches=16)["code"] == "request.too_many_images"


def test_a_video_that_hangs_or_crashes_its_process_is_400_and_the_next_is_read(server, monkeypatch):
    monkeypatch.setattr(attachments, "IsolatedVideo", partial(IsolatedVideo, limit_s=0))
    assert refused(server)["code"] == "video.timeout"
    monkeypatch.undo()

    class Crashing(IsolatedVideo):
        def frames(self, times, shape):
            self._process._child.kill()
            return super().frames(times, shape)

    monkeypatch.setattr(attachments, "IsolatedVideo", Crashing)
    error = refused(server)
    assert error["code"] == "video.crashed" and error["param"] == "messages[0].content[0].video_url"
    monkeypatch.undo()
    assert server.ask(asking(), max_tokens=1)["usage"]["completion_tokens"] == 1
