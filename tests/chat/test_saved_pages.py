"""Conversations saved with what was computed of them: going on computes nothing twice, and answers the same."""

from __future__ import annotations

import numpy as np
import pytest

from kimi_vl_cpp import KimiVL
from kimi_vl_cpp.chat.conversation import Conversation

OPTIONS = {"seed": 3, "temperature": 1.0, "max_new_tokens": 60}


def held(script, tmp_path) -> tuple[dict, str]:
    """A conversation of two turns, saved with its pages, and the third answer that its model would give."""
    script.answer = None
    with KimiVL("fake-Instruct.gguf", n_ctx=2048) as model:
        conversation = model.conversation()
        conversation.ask("word " * 50, images=[np.ones((84, 84, 3), np.uint8)], **OPTIONS)
        conversation.ask("word " * 30, **OPTIONS)
        saved, n = conversation.to_dict(), conversation.save_pages(tmp_path / "talk.pages")
        assert n == conversation.n_past
        return saved, conversation.fork().ask("more", **OPTIONS).text


def gone_on(script, saved: dict, path) -> tuple[str, int, int]:
    """The third answer of a new model, how many positions it computed for it, and how many pictures."""
    before = len(script.prefilled), len(script.encoded)
    with KimiVL("fake-Instruct.gguf", n_ctx=2048) as model:
        conversation = Conversation.from_dict(model, saved)
        conversation.load_pages(path)
        text = conversation.ask("more", **OPTIONS).text
    return text, sum(script.prefilled[before[0] :]), len(script.encoded) - before[1]


def test_after_a_restart_only_the_new_question_is_computed(script, tmp_path):
    saved, expected = held(script, tmp_path)
    text, n_computed, n_encoded = gone_on(script, saved, tmp_path / "talk.pages")
    assert (text, n_encoded) == (expected, 0)
    assert n_computed < 30  # the question, the template around it, the last token of the answer before


@pytest.mark.parametrize("share", [0, 0.3, 0.7, 0.999])
def test_pages_that_are_cut_off_are_computed(script, tmp_path, share):
    saved, expected = held(script, tmp_path)
    path = tmp_path / "talk.pages"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    text, n_computed, _ = gone_on(script, saved, path)
    assert text == expected and n_computed > 30


def test_pages_of_another_conversation_are_not_taken(script, tmp_path):
    held(script, tmp_path)
    with KimiVL("fake-Instruct.gguf", n_ctx=2048) as model:
        other = model.conversation()
        other.ask("something else entirely " * 20, **OPTIONS)
        expected = other.fork().ask("more", **OPTIONS).text
        before = model.cache.info().pages
        assert other.load_pages(tmp_path / "talk.pages") == other.n_past
        assert model.cache.info().pages <= before + 1
        assert other.ask("more", **OPTIONS).text == expected


def test_pages_of_another_model_are_not_taken(script, tmp_path):
    saved, _ = held(script, tmp_path)
    with KimiVL("another-Instruct.gguf", n_ctx=2048) as model:
        conversation = Conversation.from_dict(model, saved)
        assert conversation.load_pages(tmp_path / "talk.pages") == 0


def test_a_file_that_is_not_there_is_an_error_of_the_system(script, model, tmp_path):
    conversation = model.conversation()
    with pytest.raises(FileNotFoundError):
        conversation.load_pages(tmp_path / "nothing")
    assert conversation.save_pages(tmp_path / "empty.pages") == 0
    assert conversation.load_pages(tmp_path / "empty.pages") == 0
