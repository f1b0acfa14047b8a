"""From the body of a chat request to the stream of its answer, for every door that asks for chat completions.

Owns the order: options under the server's settings, messages and their documents, fetching of pictures, opening of
pictures, the stream.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import about_argument
from ..generation.fitting import fit_images
from ..openai.documents import OpenDocument, has_documents, open_here
from ..openai.fields import bad
from ..openai.messages import Translated, translate_messages
from ..openai.options import AnswerOptions, read_options, refuse_unknown
from ..text.chat_template import text_of
from .state import State

if TYPE_CHECKING:
    from ..generation.stream import PieceStream
    from ..media.processor import ProcessedImage
    from ..model import KimiVL


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
    """A chat request on its way to its streams: `read`, then `stream` once for every answer.

    images: what is known of its pictures, and notices: what the client should know of them and of its documents, once
    the first stream is there.
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
        self._translated = Translated()
        self._opened: list[ProcessedImage] | None = None
        self._kept = False

    async def read(self) -> None:
        """Reads the messages and fetches what they name. Raises BadRequest, BadImage, Unsupported."""
        state = self._state
        if not has_documents(self._body.get("messages")):
            self._translated = await state.ready.prepare(self._translate)
            await state.pictures.fetch(self._translated.pictures)
            return
        with state.documents.request() as documents:
            self._translated = await documents.prepare(lambda: self._translate(documents.open))
            await state.pictures.fetch(self._translated.pictures)
            self._opened = await documents.prepare(self._open)

    def _translate(self, open_document: OpenDocument = open_here) -> Translated:
        pictures = self._state.pictures
        translated = translate_messages(
            self._body.get("messages"),  # type: ignore[arg-type]
            continue_final=self._options.continue_final,
            open_url=lambda url: pictures.open_url(url, self._owner),
            open_document=open_document,
        )
        n, most = len(translated.pictures), self._state.settings.max_images
        if n > most:
            raise bad(
                "messages",
                f"got {n} pictures and pages of documents, expected at most {most} (--max-images): send fewer, or name "
                'the pages of a document as "pages": "1-4"',
                "request.too_many_images",
            )
        return translated

    def stream(self, progress: Callable[[str, int, int], None] | None = None, seed: int | None = None) -> PieceStream:
        """The stream of one answer. In a worker; the pictures are opened once for all of them."""
        model, translated = self._state.model, self._translated
        first = not self._kept
        if self._opened is None:
            self._opened = self._open()
        stream = model.start(
            translated.messages,
            self._opened,
            progress=progress,
            started=self._started,
            continue_final=translated.continue_final,
            tools=self._options.tools,
            **{**self._options.sampling, "seed": self._options.sampling.get("seed") if seed is None else seed},
        )
        for image in self._opened if first else ():  # they fit into the context, so that they have their pixels
            self._state.pictures.earlier.put(self._owner, image)
        self._kept = True
        return stream

    def _open(self) -> list[ProcessedImage]:
        """The pictures as the model sees them, pages as large as all of them fit."""
        model, translated = self._state.model, self._translated
        longest = self._options.sampling.get("max_new_tokens")
        text = "".join(map(text_of, translated.messages))
        with translated.placing_errors():
            images, notices = fit_images(model.loaded, translated.images, None, prompt=text, max_new_tokens=longest)
            opened = open_pictures(model, images)
        self.images = [_about(image) for image in opened]
        self.notices = [*translated.notices, *notices]
        return opened


def open_pictures(model: KimiVL, images: Sequence[Any]) -> list[ProcessedImage]:
    """The pictures as the model sees them. Those beyond the context keep their sizes alone, for the error's numbers."""
    opened: list[ProcessedImage] = []
    n_tokens = 0
    for index, image in enumerate(images):
        with about_argument(f"images[{index}]"):
            seen = model.process_image(image)
        n_tokens += seen.n_tokens
        if n_tokens > model.n_ctx:
            seen = dataclasses.replace(seen, source=np.zeros((0, 0, 3), np.uint8))
        opened.append(seen)
    return opened


def _about(image: ProcessedImage) -> dict[str, Any]:
    width, height = image.original_size
    return {
        "digest": image.digest,
        "width": width,
        "height": height,
        "resized": list(image.resized_size),
        "tokens": image.n_tokens,
    }
