"""From the body of a chat request to the stream of its answer, for every door that asks for chat completions.

Owns the order: options under the server's settings, messages and what is attached to them, fetching of pictures, the
request with its pictures, the stream.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..generation.generation import Generation, Request
from ..generation.request import Question, build_request
from ..generation.stream import PieceStream
from ..media import frames
from ..openai.fields import bad
from ..openai.messages import Translated, has_attachments, translate_messages
from ..openai.options import AnswerOptions, read_options, refuse_unknown
from .state import State

if TYPE_CHECKING:
    from ..generation.loaded import LoadedModel
    from ..media.processor import ProcessedImage
    from ..openai.videos import VideoPart
    from .attachments import RequestAttachments


def options_of(state: State, body: dict[str, Any]) -> AnswerOptions:
    """The options of a chat request under the settings of the server."""
    options = read_options({name: value for name, value in body.items() if name != "messages"})
    apply_settings(state, options, body)
    return options


def apply_settings(state: State, options: AnswerOptions, body: dict[str, Any]) -> None:
    """What the server was started with, put into the options of a request. Raises BadRequest, Refused."""
    if state.settings.strict:
        refuse_unknown(options)
    state.check_name(options.model)
    settings, sampling = state.settings, options.sampling
    if adapter := state.adapter_of(options.model):
        sampling["lora"] = adapter
    if settings.thinking_budget is not None:
        sampling["thinking_budget"] = min(settings.thinking_budget, sampling.get("thinking_budget", 1 << 30))
    if settings.answer_reserve is not None and body.get("answer_reserve") is None and "answer_reserve" in sampling:
        sampling["answer_reserve"] = settings.answer_reserve
    if settings.thinking_close:
        sampling["thinking_close"] = settings.thinking_close
    sampling.setdefault("loop_guard", True)


class ChatRequest:
    """A chat request on its way to its stream: `read`, then `stream`.

    images: what is known of its pictures, and notices: what the client should know of its attachments, once it is read.
    """

    def __init__(self, state: State, options: AnswerOptions, body: dict[str, Any], key: str) -> None:
        """key: the name of the API key, whose earlier pictures it may name."""
        self.images: list[dict[str, Any]] = []
        self.notices: list[str] = []
        self._state = state
        self._options = options
        self._body = body
        self._owner = (key, options.sampling.get("cache_salt", ""))
        self._started = time.perf_counter()
        self._request: Request | None = None

    async def read(self) -> None:
        """Reads the messages, fetches what they name and writes the prompt. Raises BadRequest, BadImage, Unsupported,
        ContextFull."""
        state = self._state
        if not has_attachments(self._body.get("messages")):
            translated = await state.ready.prepare(self._translate)
            await state.pictures.fetch(translated.pictures)
            await state.ready.prepare(lambda: self._build(translated))
            return
        with state.attachments.request() as attached:
            translated = await attached.prepare(lambda: self._translate(attached))
            await state.pictures.fetch(translated.pictures)
            await attached.prepare(lambda: self._build(translated))

    def _translate(self, attached: RequestAttachments | None = None) -> Translated:
        """attached: opens documents and videos, where there are any."""
        pictures = self._state.pictures
        openers = {} if attached is None else self._openers(attached)
        translated = translate_messages(
            self._body.get("messages"),  # type: ignore[arg-type]
            continue_final=self._options.continue_final,
            open_url=lambda url: pictures.open_url(url, self._owner),
            **openers,
        )
        n, most = len(translated.pictures), self._state.settings.max_images
        if n > most:
            raise bad(
                "messages",
                f"got {n} pictures, pages of documents and frames of videos, expected at most {most} (--max-images): "
                'send fewer, or say "pages": "1-4" of a document, "frames": 16 of a video',
                "request.too_many_images",
            )
        return translated

    def _openers(self, attached: RequestAttachments) -> dict[str, Any]:
        """How `translate_messages` opens documents and videos."""
        state = self._state

        def open_video(part: VideoPart) -> tuple[list[ProcessedImage], list[str]]:
            state.model.require_vision()
            named = part.source if isinstance(part.source, bytes) else state.pictures.open_video(part)
            with contextlib.ExitStack() as stack:
                source = named if isinstance(named, bytes) else stack.enter_context(named)
                video = stack.enter_context(attached.open_video(source))
                return frames.choose(video, state.model.loaded.processor, part.choice, part.times)

        return {"open_document": attached.open, "open_video": open_video}

    def _build(self, translated: Translated) -> None:
        """The request, its pictures as the model sees them. They stay with the key, which may name them later."""
        loaded = self._state.model.loaded
        question = Question(
            messages=translated.messages,
            images=translated.images,
            continue_final=translated.continue_final,
            tools=self._options.tools,
            keep=_Keeper(loaded),
        )
        with translated.placing_errors():
            request = build_request(loaded, question, options=dict(self._options.sampling), started=self._started)
        for image in request.seen:
            self._state.pictures.earlier.put(self._owner, image)
        self.images = [_about(image) for image in request.seen]
        self.notices = list(translated.notices)
        self._request = request

    def stream(self, progress: Callable[[str, int, int], None] | None = None) -> PieceStream:
        """The stream of the answer; those of other answers are `again` of it."""
        assert self._request is not None
        model = self._state.model
        return PieceStream(Generation(model.loaded, self._request, progress or model.progress))


class _Keeper:
    """Opens the pictures of a request. Those beyond the context keep their sizes alone, for the error's numbers."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._n_tokens = 0

    def __call__(self, image: Any) -> ProcessedImage:
        seen = self._model.process_image(image)
        self._n_tokens += seen.n_tokens
        if self._n_tokens > self._model.n_ctx:
            seen = dataclasses.replace(seen, source=np.zeros((0, 0, 3), np.uint8))
        return seen


def _about(image: ProcessedImage) -> dict[str, Any]:
    width, height = image.original_size
    return {
        "digest": image.digest,
        "width": width,
        "height": height,
        "resized": list(image.resized_size),
        "tokens": image.n_tokens,
    }
