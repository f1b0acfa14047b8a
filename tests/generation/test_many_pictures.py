"""Requests with many pictures: one by one, memory flat in their number, nothing dropped."""

from __future__ import annotations

import weakref

import documents
import fake_core
import numpy as np
import pytest
from PIL import Image

from kimi_vl_cpp._core import PAGE_POSITIONS
from kimi_vl_cpp.errors import BadImage, BadRequest, ContextFull
from kimi_vl_cpp.generation import pixels as kept_pixels
from kimi_vl_cpp.media.pdf import Document
from kimi_vl_cpp.media.processor import ImageProcessor
from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.scheduler import job, tasks
from kimi_vl_cpp.text.tokenizer import Tokenizer


@pytest.fixture
def script(monkeypatch):
    script = fake_core.install(monkeypatch)
    script.answer = None  # noise that depends on everything before
    return script


@pytest.fixture
def model(script):
    with KimiVL("fake-Instruct.gguf", n_ctx=4096) as loaded:
        yield loaded


@pytest.fixture
def small_chunks(monkeypatch):
    """Prompts are computed page by page."""
    monkeypatch.setattr(tasks, "_LARGEST_CHUNK", PAGE_POSITIONS)


def pictures(n: int, size: tuple[int, int] = (56, 84)) -> list[np.ndarray]:
    noise = np.random.default_rng(0)
    return [noise.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(n)]


class Counter:
    """Counts the embeddings and pixels of pictures that are alive at the same time, weighed in their bytes."""

    def __init__(self):
        self.live = self.most = 0

    def add(self, array):
        self.live += array.nbytes
        self.most = max(self.most, self.live)
        weakref.finalize(array, self._gone, array.nbytes)
        return array

    def _gone(self, n_bytes):
        self.live -= n_bytes


def most_alive(monkeypatch, paths) -> tuple[int, int]:
    """The most bytes of embeddings and of pixels that a request for these pictures holds at once."""
    embeddings, pixels = Counter(), Counter()
    encoded, processed = fake_core.Engine.encoded, ImageProcessor._padded
    monkeypatch.setattr(fake_core.Engine, "encoded", lambda self, given: embeddings.add(encoded(self, given)))

    def padded(*args):
        seen = processed(*args)
        pixels.add(seen.pixels)
        return seen

    monkeypatch.setattr(ImageProcessor, "_padded", padded)
    with KimiVL("fake-Instruct.gguf", n_ctx=4096, image_cache_bytes=0) as model:
        model.chat("Hi", paths, max_new_tokens=1, seed=0)
    monkeypatch.setattr(fake_core.Engine, "encoded", encoded)
    monkeypatch.setattr(ImageProcessor, "_padded", processed)
    return embeddings.most, pixels.most


def saved(folder, images) -> list:
    paths = [folder / f"{index}.png" for index in range(len(images))]
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def test_memory_is_flat_in_the_number_of_pictures(script, small_chunks, monkeypatch, tmp_path):
    monkeypatch.setattr(kept_pixels, "KEPT_PIXEL_BYTES", 0)
    paths = saved(tmp_path, pictures(20, (336, 364)))  # 156 positions each, more than a page
    few, many = most_alive(monkeypatch, paths[:3]), most_alive(monkeypatch, paths)
    assert few == many
    assert 0 < many[0] <= 2 * 156 * fake_core.HIDDEN * 4 and 0 < many[1] <= 2 * 336 * 364 * 3


def test_pictures_are_encoded_and_prefilled_in_turn(model, small_chunks, monkeypatch):
    monkeypatch.setattr(job, "_REPORT_S", 0.0)
    events: list[tuple[str, int, int]] = []
    images = pictures(3, (336, 364))
    model.chat("Hi", images, max_new_tokens=1, seed=0, progress=lambda *event: events.append(event))
    stages = [stage for index, (stage, _, _) in enumerate(events) if index == 0 or events[index - 1][0] != stage]
    assert stages[:2] == ["encode", "prefill"] and stages.count("encode") == 3
    for stage in ("encode", "prefill"):
        shares = [done / total for name, done, total in events if name == stage]
        assert shares == sorted(shares) and shares[-1] == 1 and shares.count(1) == 1


def test_the_answer_does_not_depend_on_how_much_is_held_at_once(script, monkeypatch, tmp_path):
    paths = saved(tmp_path, pictures(5, (336, 364)))
    answers = []
    for chunk, kept in ((2048, 32 << 20), (2 * PAGE_POSITIONS, 0), (PAGE_POSITIONS, 200_000)):
        monkeypatch.setattr(tasks, "_LARGEST_CHUNK", chunk)
        monkeypatch.setattr(kept_pixels, "KEPT_PIXEL_BYTES", kept)
        with KimiVL("fake-Instruct.gguf", n_ctx=4096, image_cache_bytes=0) as fresh:
            answers.append(fresh.chat("Hi", [*paths, paths[0]], max_new_tokens=8, seed=3).token_ids)
    assert answers[0] == answers[1] == answers[2]


def test_log_probabilities_of_a_prompt_are_for_texts(model):
    with pytest.raises(BadRequest) as caught:
        model.chat("Hi", pictures(1), prompt_logprobs=0)
    assert caught.value.code == "request.prompt_logprobs"


def test_pixels_that_are_kept_do_not_grow_with_the_number_of_pictures(model, monkeypatch):
    monkeypatch.setattr(kept_pixels, "KEPT_PIXEL_BYTES", 3 * 56 * 84 * 3)
    source = kept_pixels.PixelSource(model.loaded.processor)
    for image in pictures(20):
        seen = model.process_image(image)
        source.add(seen.digest, image, seen)
    assert sum(get() is get() for get in source.getters.values()) == 3
    assert all(get().shape == (56, 84, 3) for get in source.getters.values())


def test_a_file_that_changes_while_its_request_runs_is_an_error(model, monkeypatch, tmp_path):
    monkeypatch.setattr(kept_pixels, "KEPT_PIXEL_BYTES", 0)
    one, other = pictures(2)
    Image.fromarray(one).save(tmp_path / "x.png")
    stream = model.chat("Hi", [tmp_path / "x.png"], stream=True)
    Image.fromarray(other).save(tmp_path / "x.png")
    with pytest.raises(BadImage) as caught:
        next(stream)
    assert caught.value.code == "image.changed" and "x.png" in str(caught.value)


def test_512_pictures_in_one_request(script):
    script.context_length = 8192
    images = pictures(513, (28, 28))
    with KimiVL("fake-Instruct.gguf", n_ctx=8192) as model:
        response = model.chat("Hi", images[:512], max_new_tokens=1, image_patches=4)
        assert response.usage.image_tokens == len(set(script.encoded)) == 512
        with pytest.raises(BadRequest, match="at most 512"):
            model.chat("Hi", images)


def test_what_was_computed_of_many_pictures_is_kept_when_the_request_is_cancelled(model, script, small_chunks):
    images = pictures(4, (336, 364))

    def stop(stage: str, step: int) -> None:
        if stage == "encode" and len(script.encoded) == 2:
            raise KeyboardInterrupt

    script.fail_at = stop
    with pytest.raises(KeyboardInterrupt):
        model.chat("Hi", images, max_new_tokens=1)
    script.fail_at = lambda stage, step: None
    again = model.chat("Hi", images, max_new_tokens=1, seed=0)
    assert again.usage.cached_tokens >= 128  # whole pages of the two that were encoded
    assert len(set(script.encoded)) == len(script.encoded) == 4


def test_a_limit_for_every_picture(model):
    (big,) = pictures(1, (560, 560))
    assert model.chat("Hi", [big], max_new_tokens=1, image_patches=256).usage.image_tokens <= 81
    for wrong in (0, 3, 4097, True, 1.5):
        with pytest.raises(BadRequest) as caught:
            model.chat("Hi", [big], image_patches=wrong)
        assert caught.value.code == "request.image_patches"


# Documents


def test_pages_stand_before_the_pictures_each_behind_its_number(model):
    document = Document(documents.pdf(["a", "b", "c"]), name="x.pdf")
    stream = model.chat("Which?", pictures(1), documents=[document], stream=True, max_new_tokens=1)
    ids = [token for token in stream.prompt_ids if token >= 0]
    text = model.detokenize(ids)
    assert [text.count(f"Page {n} of 3:\n") for n in (1, 2, 3)] == [1, 1, 1]
    assert text.index("Page 1 of 3") < text.index("Page 3 of 3") < text.index("Which?")


def test_several_documents_are_named(model, tmp_path):
    (tmp_path / "a.pdf").write_bytes(documents.pdf(["a"]))
    (tmp_path / "b.pdf").write_bytes(documents.pdf(["b", "c"]))
    paths = [tmp_path / "a.pdf", f"{tmp_path}/b.pdf#2"]
    stream = model.chat("Which?", documents=paths, stream=True, max_new_tokens=1)
    text = model.detokenize([token for token in stream.prompt_ids if token >= 0])
    assert "a.pdf, page 1 of 1:\n" in text and "b.pdf, page 2 of 2:\n" in text and "page 1 of 2" not in text


def test_pages_become_smaller_until_they_fit_and_a_notice_says_so(model):
    document = Document(documents.pdf(["x"] * 4), name="x.pdf")
    response = model.chat("Hi", documents=[document], max_new_tokens=8)
    assert response.usage.image_tokens < 4 * 1053
    assert "4 pages are seen at 3072 patches each, not 4096" in " ".join(response.notices)
    one = model.chat("Hi", documents=[document], image_patches=256, max_new_tokens=8)
    assert one.usage.image_tokens < response.usage.image_tokens


def test_pages_are_fitted_beside_the_whole_prompt_whose_text_is_encoded_once(model, monkeypatch):
    """The system message and what was said before count as the question does."""
    written: list[str] = []
    encode = Tokenizer.encode
    monkeypatch.setattr(
        Tokenizer, "encode", lambda self, text, **form: (written.append(text), encode(self, text, **form))[1]
    )
    document = Document(documents.pdf(["x"] * 4), name="x.pdf")
    question = "What is written there? " * 3
    plain = model.chat(question, documents=[document], max_new_tokens=1)
    assert sum(text.endswith(question) for text in written) == 1
    long = "Be brief. " * 100
    beside = model.chat(question, documents=[document], system=long, max_new_tokens=1)
    assert beside.usage.image_tokens < plain.usage.image_tokens
    written.clear()
    conversation = model.conversation(long)
    assert conversation.ask(question, documents=[document], max_new_tokens=1).usage.prompt_tokens == (
        beside.usage.prompt_tokens
    )
    assert sum(text.endswith(question) for text in written) == 1 and written.count(long) == 1


def test_several_answers_see_the_pages_of_one(model):
    document = Document(documents.pdf(["x"] * 4), name="x.pdf")
    one = model.chat("Hi", documents=[document], max_new_tokens=8, seed=5)
    found = model.answers("Hi", documents=[document], n=2, max_new_tokens=8, seed=5)
    first = found.responses[0]
    assert (first.token_ids, first.usage.prompt_tokens) == (one.token_ids, one.usage.prompt_tokens)
    assert all("4 pages are seen at 3072 patches" in " ".join(one.notices) for one in found.responses)


def test_pages_that_would_be_too_small_to_read_are_an_error_with_what_fits(model):
    document = Document(documents.pdf(["x"] * 30), name="x.pdf")
    with pytest.raises(ContextFull) as caught:
        model.chat("Hi", documents=[document], max_new_tokens=8)
    assert caught.value.code == "context.full" and "2048 patches" in str(caught.value)


def test_a_conversation_keeps_the_numbers_and_texts_of_its_pages(model):
    document = Document(documents.pdf(["a line that is long enough", "b"], font_size=9), name="x.pdf")
    conversation = model.conversation()
    conversation.ask("Hi", document.pages(text_layer="auto"), max_new_tokens=1)
    again = type(conversation).from_dict(model, conversation.to_dict())
    assert [image.label for image in again.turns[0].images] == ["Page 1 of 2:\n", "Page 2 of 2:\n"]
    first, second = again.turns[0].images
    assert "text found on page 1\na line that is long enough" in first.caption and second.caption == ""


def test_documents_must_be_a_list(model):
    with pytest.raises(BadRequest, match="documents="):
        model.chat("Hi", documents="x.pdf")
