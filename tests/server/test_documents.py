"""PDF documents sent to a server, each of which is read by a process of its own."""

from __future__ import annotations

import base64
from functools import partial

import documents
import pytest
from server_support import RunningServer

from kimi_vl_cpp.media.isolated import IsolatedDocument
from kimi_vl_cpp.media.pdf import Document
from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.server import attachments

DATA = documents.pdf([f"${number}.{number:02}" for number in range(1, 5)], size=(200, 60), font_size=30)
URL = "data:application/pdf;base64," + base64.b64encode(DATA).decode()
QUESTION = "What is the price?"


@pytest.fixture(scope="module")
def model():
    with KimiVL.builtin(n_ctx=1024) as model:
        yield model


@pytest.fixture(scope="module")
def server():
    with RunningServer(lambda: KimiVL.builtin(n_ctx=1024), max_images=6) as running:
        yield running


def asking(n=1, **fields):
    part = {"type": "file", "file": {"file_data": URL, **fields}}
    return [{"role": "user", "content": [*[part] * n, {"type": "text", "text": QUESTION}]}]


def refused(server, n=1, **fields):
    response = server.post("/v1/chat/completions", messages=asking(n, **fields))
    assert response.status_code == 400
    return response.json()["error"]


def test_the_answer_about_a_document_is_the_library_s(server, model):
    with Document(DATA) as document:
        expected = model.chat(QUESTION, documents=[document], temperature=0, max_new_tokens=8)
    answer = server.ask(asking(), temperature=0, max_tokens=8, return_token_ids=True)
    assert answer["choices"][0]["token_ids"] == list(expected.token_ids)
    assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert answer["kimi"]["notices"] == expected.notices and len(answer["kimi"]["images"]) == 4
    input_file = {"type": "input_file", "file_data": URL, "pages": "2"}
    messages = [{"role": "user", "content": [input_file, {"type": "input_text", "text": QUESTION}]}]
    response = server.post("/v1/responses", input=messages, max_output_tokens=4).json()
    assert response["status"] in ("completed", "incomplete")


def test_too_many_pages_and_documents_are_refused_with_what_to_do(server, monkeypatch):
    assert refused(server, 2)["code"] == "request.too_many_images"
    monkeypatch.setattr(attachments, "MAX_ATTACHMENTS", 1)
    error = refused(server, 2, pages="1")
    assert error["code"] == "request.too_many_documents" and error["param"] == "messages[0].content[1].file"
    assert not server.state.attachments.reading


def test_a_document_that_hangs_or_crashes_its_process_is_400_and_the_next_is_read(server, monkeypatch):
    monkeypatch.setattr(attachments, "IsolatedDocument", partial(IsolatedDocument, limit_s=0))
    assert refused(server)["code"] == "document.timeout"
    monkeypatch.undo()

    class Crashing(IsolatedDocument):
        def draw(self, number, width, height):
            self._process._child.kill()
            return super().draw(number, width, height)

    monkeypatch.setattr(attachments, "IsolatedDocument", Crashing)
    error = refused(server)
    assert error["code"] == "document.crashed" and error["param"] == "messages[0].content[0].file"
    monkeypatch.undo()
    assert server.ask(asking(pages="1"), max_tokens=1)["usage"]["completion_tokens"] == 1
