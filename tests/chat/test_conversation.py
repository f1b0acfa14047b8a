"""Conversations: what each turn computes, and what is left after undo, regenerate, cancelling and saving."""

from __future__ import annotations

import json

import documents
import numpy as np
import pytest
import videos

from kimi_vl_cpp.chat.conversation import Conversation
from kimi_vl_cpp.errors import BadDocument, BadRequest, ContextFull
from kimi_vl_cpp.media.pdf import Document
from kimi_vl_cpp.media.processor import ImageProcessor
from kimi_vl_cpp.media.video import Video
from kimi_vl_cpp.model import KimiVL


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (56, 84, 3), dtype=np.uint8)


# The template's tokens between an answer and the next one, in a vocabulary of single bytes:
# <|im_end|> <|im_user|> user <|im_middle|> ... <|im_end|> <|im_assistant|> assistant <|im_middle|>
FRAME = 1 + 1 + len("user") + 1 + 1 + 1 + len("assistant") + 1


def test_each_turn_prefills_only_the_last_answers_end_and_the_question(script, model):
    conversation = model.conversation()
    conversation.ask("What is this?", images=[picture(1)])
    for question in ("And its colour?", "Sure?"):
        script.prefilled.clear()
        response = conversation.ask(question)
        assert sum(script.prefilled) == FRAME + len(question)
        assert response.usage.cached_tokens == response.usage.prompt_tokens - FRAME - len(question)
    assert len(script.encoded) == 1


def test_answers_keep_the_tokens_they_were_made_of(script, model, monkeypatch):
    # Text that would be cut into other tokens when encoded again: U+FFFD stands for bytes that are no UTF-8.
    script.answer = None
    conversation = model.conversation()
    conversation.ask("Noise please", seed=1, max_new_tokens=40)
    assert "\ufffd" in conversation.messages[-1]["content"]
    script.prefilled.clear()
    conversation.ask("More", seed=2, max_new_tokens=4)
    assert sum(script.prefilled) == FRAME + len("More") + 1  # + the last token, which was sampled but not decoded


def test_three_pictures_and_five_turns_encode_each_picture_once(script, model):
    conversation = model.conversation(system="Be brief.")
    conversation.ask("One", images=[picture(1)])
    conversation.ask("Two", images=[picture(2), picture(3)])
    for question in ("Three", "Four", "Five"):
        conversation.ask(question)
    assert len(script.encoded) == 3
    assert conversation.last.usage.image_tokens == 18
    assert [message["role"] for message in conversation.messages] == ["system"] + ["user", "assistant"] * 5


def test_what_is_held_of_a_conversation_is_counted(script, model):
    conversation = model.conversation()
    assert conversation.n_past == 0
    usage = conversation.ask("One", images=[picture(1)]).usage
    assert conversation.n_past == usage.total_tokens
    model.loaded.conductor.index.clear()
    assert conversation.n_past == 0


def test_undo_forgets_the_last_turn_and_keeps_the_cache_of_the_others(script, model):
    conversation = model.conversation()
    conversation.ask("One")
    two = conversation.ask("Two", seed=1)
    assert conversation.undo()
    assert len(conversation.messages) == 2
    script.prefilled.clear()
    again = conversation.ask("Two", seed=1)
    assert again.token_ids == two.token_ids
    assert sum(script.prefilled) <= FRAME + len("Two")
    assert conversation.undo() and conversation.undo() and not conversation.undo()


def test_regenerate_replaces_the_last_answer(script, model):
    script.answer = None
    conversation = model.conversation()
    first = conversation.ask("One", images=[picture(1)], seed=1, max_new_tokens=10)
    other = conversation.regenerate(seed=2, max_new_tokens=10)
    same = conversation.regenerate(seed=1, max_new_tokens=10)
    assert first.token_ids == same.token_ids != other.token_ids
    assert len(conversation.turns) == 1
    assert len(script.encoded) == 1


def test_regenerate_without_a_question_is_an_error(model):
    with pytest.raises(BadRequest) as caught:
        model.conversation().regenerate()
    assert caught.value.code == "conversation.empty"


def test_clear_forgets_the_turns_and_keeps_the_system_message(script, model):
    conversation = model.conversation("Be brief.")
    conversation.ask("One")
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    script.prefilled.clear()
    assert conversation.ask("One").usage.cached_tokens > 0


def test_a_cancelled_answer_stays_as_far_as_it_got(model):
    conversation = model.conversation()
    stream = conversation.ask("One", stream=True)
    next(stream)
    next(stream)
    stream.close()
    assert conversation.messages[-1]["content"] == "He"
    assert conversation.last.finish_reason == "cancelled"
    assert conversation.ask("Two").text == "Hello world"


def test_ctrl_c_before_the_first_token_leaves_no_trace(script, model):
    conversation = model.conversation()
    conversation.ask("One")

    def interrupt(stage: str, step: int) -> None:
        if stage == "prefill":
            raise KeyboardInterrupt

    script.fail_at = interrupt
    with pytest.raises(KeyboardInterrupt):
        conversation.ask("Two")
    script.fail_at = lambda stage, step: None
    assert len(conversation.turns) == 1
    assert conversation.ask("Three").text == "Hello world"


def test_a_turn_that_does_not_fit_leaves_the_conversation_as_it_was(model):
    conversation = model.conversation()
    conversation.ask("One")
    with pytest.raises(ContextFull):
        conversation.ask("x" * 2000)
    assert len(conversation.turns) == 1
    assert conversation.ask("Two").text == "Hello world"


def test_a_dropped_stream_frees_the_conversation(model):
    conversation = model.conversation()
    stream = conversation.ask("One", stream=True)
    next(stream)
    with pytest.raises(BadRequest) as caught:
        conversation.ask("Two")
    assert caught.value.code == "conversation.busy"
    del stream
    assert conversation.ask("Two").text == "Hello world"


def test_an_answer_cut_by_a_stop_string_goes_on_from_its_text(script, model):
    conversation = model.conversation()
    assert conversation.ask("One", stop="o w").text == "Hell"
    before = conversation.ask("Two").usage.prompt_tokens
    plain = model.create_chat_completion(
        [
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Hell"},
            {"role": "user", "content": "Two"},
        ]
    )
    assert plain["usage"]["prompt_tokens"] == before


def test_reasoning_stays_in_the_context_and_out_of_the_answer(script, model):
    script.answer = "◁think▷hm◁/think▷yes"
    model.loaded.variant = "thinking"
    conversation = model.conversation()
    conversation.ask("One")
    assert conversation.messages[-1] == {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
    script.prefilled.clear()
    conversation.ask("Two")
    assert sum(script.prefilled) == FRAME + len("Two")


def test_saved_and_loaded_conversation_goes_on_the_same(script, model):
    script.answer = None
    conversation = model.conversation("Be brief.")
    conversation.ask("One", images=[picture(1)], seed=1, max_new_tokens=20)
    conversation.ask("Two", seed=2, max_new_tokens=20)
    saved = json.loads(json.dumps(conversation.to_dict()))
    expected = conversation.ask("Three", images=[picture(2)], seed=3, max_new_tokens=20)
    with KimiVL("fake-Instruct.gguf", n_ctx=1024) as other:
        loaded = Conversation.from_dict(other, saved)
        assert loaded.to_dict() == saved
        assert loaded.ask("Three", images=[picture(2)], seed=3, max_new_tokens=20).token_ids == expected.token_ids


def saved() -> dict:
    return {
        "format": "kimi_vl_cpp.conversation",
        "version": 1,
        "system": None,
        "turns": [{"text": "One", "images": [], "answer": "Hello", "thinking": "", "token_ids": [72, 101]}],
    }


def broken(change) -> dict:
    data = saved()
    change(data)
    return data


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        broken(lambda d: d.update(format="x")),
        broken(lambda d: d.update(version=2)),
        broken(lambda d: d.update(system=5)),
        broken(lambda d: d.update(turns={})),
        broken(lambda d: d["turns"].append(5)),
        broken(lambda d: d["turns"][0].pop("text")),
        broken(lambda d: d["turns"][0].update(answer=None)),
        broken(lambda d: d["turns"][0].update(token_ids="abc")),
        broken(lambda d: d["turns"][0].update(token_ids=[10**6])),
        broken(lambda d: d["turns"][0].update(token_ids=[-1])),
        broken(lambda d: d["turns"][0].update(token_ids=[True])),
        broken(lambda d: d["turns"][0].update(images=5)),
        broken(lambda d: d["turns"][0].update(images=[5])),
        broken(lambda d: d["turns"][0].update(images=[{"png": "%%"}])),
        broken(lambda d: d["turns"][0].update(images=[{"png": "AAAA"}])),
    ],
)
def test_a_broken_saved_conversation_is_a_request_error(model, data):
    if data:
        data = {**data, "tokenizer": model.loaded.tokenizer.digest}
    with pytest.raises(BadRequest):
        Conversation.from_dict(model, data)


def test_the_saved_form_that_the_broken_ones_start_from_is_good(model):
    assert Conversation.from_dict(model, saved()).ask("Two").text == "Hello world"


def test_answers_of_another_vocabulary_are_encoded_again_from_their_text(model):
    conversation = model.conversation()
    conversation.ask("One")
    saved = json.loads(json.dumps(conversation.to_dict()))
    assert Conversation.from_dict(model, saved).turns[0].token_ids == conversation.turns[0].token_ids
    for other in ("0" * 64, None, 5):
        foreign = {**saved, "tokenizer": other}
        foreign["turns"] = [{**saved["turns"][0], "token_ids": [10**9]}]
        again = Conversation.from_dict(model, foreign)
        assert again.turns[0].token_ids is None
        assert again.messages == conversation.messages
        plain = model.start([*conversation.messages, {"role": "user", "content": "Two"}]).drain()
        assert again.ask("Two").usage.prompt_tokens == plain.usage.prompt_tokens


# Documents and videos


def test_pages_stand_before_the_question_and_are_drawn_again_when_wanted(script, model, monkeypatch, tmp_path):
    (tmp_path / "report.pdf").write_bytes(documents.pdf(["One", "Two"], size=(60, 60)))
    with Document(tmp_path / "report.pdf") as document:
        conversation = model.conversation()
        conversation.ask("What is this?", documents=[document], image_patches=36)
        assert [image.label for image in conversation.turns[0].images] == ["Page 1 of 2:\n", "Page 2 of 2:\n"]
        drawn = []
        draw = Document.draw
        monkeypatch.setattr(Document, "draw", lambda self, *args: drawn.append(args[0]) or draw(self, *args))
        conversation.ask("And now?")
        assert drawn == [] and len(script.encoded) == 2
        kept = conversation.turns[0].images[1]
        assert ImageProcessor(in_token_limit=36)(document.pages("2")[0]) == kept and kept.pixels.shape[2] == 3
        assert drawn == [2, 2] and not kept.pixels.flags.writeable
        again = Conversation.from_dict(model, json.loads(json.dumps(conversation.to_dict())))
        assert [image.digest for image in again.turns[0].images] == [
            image.digest for image in conversation.turns[0].images
        ]
    with pytest.raises(BadDocument) as caught:
        _ = kept.pixels
    assert caught.value.code == "document.closed"


def test_pages_fit_beside_what_was_said(script, model):
    conversation = model.conversation()
    conversation.ask("x" * 300, max_new_tokens=8)
    pdf = Document(documents.pdf(["One"] * 2, size=(60, 60)))
    with pytest.raises(ContextFull):
        conversation.ask("And?", documents=[pdf], max_new_tokens=8)
    assert len(conversation.turns) == 1
    assert model.conversation().ask("And?", documents=[pdf], image_patches=36).usage.image_tokens == 18


def test_frames_of_a_video_are_pictures_of_a_turn(script, model):
    video = Video(videos.video([videos.coded(index) for index in range(40)]))
    conversation = model.conversation()
    response = conversation.ask("What happens?", model.frames(video, n=3, patches=16))
    assert [image.label for image in conversation.turns[0].images] == ["00:00:00\n", "00:00:02\n", "00:00:03\n"]
    assert response.usage.image_tokens == 3 * conversation.turns[0].images[0].n_tokens
    conversation.ask("And then?")
    assert len(script.encoded) == 3
