"""From the body of a chat request to the stream of its answer, for every door that asks for chat completions.

Owns the order: options under the server's settings, messages, fetching of pictures, opening of pictures, the stream.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import KimiVLError
from ..openai.fields import bad
from ..openai.messages import Translated, translate_messages
from ..openai.options import AnswerOptions, read_options, refuse_unknown
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
    if settings.thinking_budget is not None:
        sampling["thinking_budget"] = min(settings.thinking_budget, sampling.get("thinking_budget", 1 << 30))
    if settings.answer_reserve is not None and body.get("answer_reserve") is None and "answer_reserve" in sampling:
        sampling["answer_reserve"] = settings.answer_reserve
    if settings.thinking_close:
        sampling["thinking_close"] = settings.thinking_close
    sampling.setdefault("loop_guard", True)


class ChatRequest:
    """A chat request on its way to its streams: `read`, then `stream` once for every answer.

    images: what is known of its pictures, once the first stream is there.
    """

    def __init__(self, state: State, options: AnswerOptions, body: dict[str, Any], key: str) -> None:
        """key: the name of the API key, whose earlier pictures it may name."""
        self.images: list[dict[str, Any]] = []
        self._state = state
        self._options = options
        self._body = body
        self._owner = (key, options.sampling.get("cache_salt", ""))
        self._started = time.perf_counter()
        self._translated = Translated()
        self._opened: list[ProcessedImage] | None = None

    async def read(self) -> None:
        """Reads the messages and fetches what they name. Raises BadRequest, BadImage, Unsupported."""
        self._translated = await self._state.ready.prepare(self._translate)
        await self._state.pictures.fetch(self._translated.pictures)

    def _translate(self) -> Translated:
        pictures = self._state.pictures
        translated = translate_messages(
            self._body.get("messages"),  # type: ignore[arg-type]
            continue_final=self._options.continue_final,
            open_url=lambda url: pictures.open_url(url, self._owner),
        )
        n, most = len(translated.pictures), self._state.settings.max_images
        if n > most:
            raise bad(
                "messages", f"got {n} pictures, at most {most} are taken (--max-images)", "request.too_many_images"
            )
        return translated

    def stream(self, progress: Callable[[str, int, int], None] | None = None, seed: int | None = None) -> PieceStream:
        """The stream of one answer. In a worker; the pictures are opened once for all of them."""
        model, translated = self._state.model, self._translated
        first = self._opened is None
        if self._opened is None:
            self._opened = open_pictures(model, translated)
            self.images = [_about(image) for image in self._opened]
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
        return stream


def open_pictures(model: KimiVL, translated: Translated) -> list[ProcessedImage]:
    """The pictures as the model sees them. Those beyond the context keep their sizes alone, for the error's numbers."""
    images: list[ProcessedImage] = []
    n_tokens = 0
    for index, image in enumerate(translated.images):
        with translated.placing_errors():
            try:
                seen = model.process_image(image)
            except KimiVLError as error:
                error.param = error.param or f"images[{index}]"
                raise
        n_tokens += seen.n_tokens
        if n_tokens > model.n_ctx:
            seen = dataclasses.replace(seen, source=np.zeros((0, 0, 3), np.uint8))
        images.append(seen)
    return images


def _about(image: ProcessedImage) -> dict[str, Any]:
    width, height = image.original_size
    return {
        "digest": image.digest,
        "width": width,
        "height": height,
        "resized": list(image.resized_size),
        "tokens": image.n_tokens,
    }
