"""`POST /v1/chat/completions`, what it would cost (`/input_tokens`), and what may be said to it later (`/control`)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.types import ASGIApp

from ..errors import KimiVLError, shown
from ..openai.choices import ChoiceChunks, ChoiceStyle, choice_of
from ..openai.fields import bad, string
from ..openai.messages import Translated, translate_messages
from ..openai.options import AnswerOptions, read_options, refuse_unknown
from ..openai.shapes import new_id, usage_of
from ..types import Piece, Response
from .answers import Answer
from .bodies import read_object
from .context import context_of
from .errors import Refused
from .replies import json_reply
from .runs import Event, ProgressEvent, Run
from .sse import or_left
from .state import State, state_of

if TYPE_CHECKING:
    from ..generation.stream import PieceStream
    from ..media.processor import ProcessedImage
    from ..model import KimiVL

_ACTIONS = ("reasoning_end", "cancel")


async def chat_completions(request: Request) -> ASGIApp:
    """Answers a conversation."""
    state = state_of(request)
    state.check_ready()
    body = await read_object(request)
    options = options_of(state, body)
    n = options.n
    answer = Answer(request, new_id(), n, options.sampling.get("seed"), per_prompt=n)
    note_ignored(answer, options)
    shapes = ChatShapes(answer, options)
    await answer.start(preparer(state, answer, options, body), progress=options.return_progress)
    if options.stream:
        return answer.event_stream(shapes.chunks, shapes.last)
    return answer.late_json(shapes.whole)


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


def note_ignored(answer: Answer, options: AnswerOptions) -> None:
    """Notices of the fields that have no effect; those that nobody knows are logged too."""
    answer.notices += [f"{name[:100]}: this field has no effect" for name in options.ignored]
    unknown = [name for name in options.unknown if name.isascii() and name.isprintable()]
    if unknown:
        answer.context.fields["ignored"] = ",".join(name[:60] for name in unknown[:20])


def preparer(
    state: State, answer: Answer, options: AnswerOptions, body: dict[str, Any]
) -> Callable[[int, Callable[[str, int, int], None], int | None], PieceStream]:
    """What makes the streams of an answer, in a worker. The pictures are opened once for all of them."""
    model = state.model
    started = time.perf_counter()
    read: list[tuple[Translated, list[ProcessedImage]]] = []

    def prepare(index: int, progress: Callable[[str, int, int], None], seed: int | None) -> PieceStream:
        if not read:
            translated = _translate(state, options, body)
            images = open_pictures(model, translated)
            read.append((translated, images))
            answer.images += [_about(image) for image in images]
        translated, images = read[0]
        return model.start(
            translated.messages,
            images,
            progress=progress,
            started=started,
            continue_final=translated.continue_final,
            tools=options.tools,
            **{**options.sampling, "seed": seed},
        )

    return prepare


def _translate(state: State, options: AnswerOptions, body: dict[str, Any]) -> Translated:
    translated = translate_messages(body.get("messages"), continue_final=options.continue_final)  # type: ignore[arg-type]
    n, most = len(translated.pictures), state.settings.max_images
    if n > most:
        raise bad("messages", f"got {n} pictures, at most {most} are taken (--max-images)", "request.too_many_images")
    return translated


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
            seen = dataclasses.replace(seen, pixels=np.zeros((0, 0, 3), np.uint8))
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


class ChatShapes:
    """The chunks, or the whole, of one chat completion."""

    def __init__(self, answer: Answer, options: AnswerOptions) -> None:
        self._answer = answer
        self._options = options
        self._style = ChoiceStyle(
            answer.state.model.loaded.tokenizer.token_bytes,
            tools=options.tools is not None,
            logprobs=options.logprobs,
            token_ids=options.return_token_ids,
            exclude=options.reasoning.exclude,
            reasoning_field=answer.state.settings.reasoning_field,
        )
        engine = answer.engine
        self._head = {
            "id": answer.id,
            "created": answer.created,
            "model": answer.state.names[0],
            "system_fingerprint": engine.fingerprint,
        }
        self._choices: dict[int, ChoiceChunks] = {}
        self._usage: dict[str, None] = {"usage": None} if options.include_usage else {}

    def whole(self, responses: list[Response]) -> dict[str, Any]:
        """The JSON of a completion."""
        answer, options = self._answer, self._options
        choices = [
            choice_of(answer.ended(response), run.index, self._style)
            for run, response in zip(answer.runs, responses, strict=True)
        ]
        result: dict[str, Any] = {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage_of(responses),
            "timings": answer.timings(responses[0], answer.runs[0]),
            "kimi": answer.kimi(responses[0], answer.runs[0]),
        }
        if options.return_token_ids:
            result["prompt_token_ids"] = self._prompt_ids(answer.runs[0])
        return result

    def _prompt_ids(self, run: Run) -> list[int]:
        assert run.stream is not None
        return list(run.stream.prompt_ids)

    def chunks(self, run: Run, happened: Event) -> list[dict[str, Any]]:
        """The chunks of one event."""
        if isinstance(happened, ProgressEvent):
            return [self._progress(run, happened)]
        chunks = [] if run.index in self._choices else [self._opening(run)]
        choice = self._choices[run.index]
        if isinstance(happened, Piece):
            chunks += map(self._chunk, choice.piece(happened))
        elif isinstance(happened, Response):
            answer = self._answer
            chunks += map(self._chunk, choice.end(answer.ended(happened)))
            chunks[-1] |= {"timings": answer.timings(happened, run), "kimi": answer.kimi(happened, run)}
        return chunks

    def last(self) -> list[dict[str, Any]]:
        """The chunks after the last event."""
        if not self._options.include_usage:
            return []
        responses = [self._answer.responses[index] for index in sorted(self._answer.responses)]
        return [{**self._bare([]), "usage": usage_of(responses)}]

    def _opening(self, run: Run) -> dict[str, Any]:
        first = not self._choices
        choice = self._choices[run.index] = ChoiceChunks(run.index, self._style)
        chunk = self._chunk(choice.opening())
        if first and self._options.return_token_ids:
            chunk["prompt_token_ids"] = self._prompt_ids(run)
        return chunk

    def _progress(self, run: Run, happened: ProgressEvent) -> dict[str, Any]:
        assert run.stream is not None
        return {
            **self._bare([]),
            "prompt_progress": {
                "stage": happened.stage,
                "done": happened.done,
                "total": happened.total,
                "time_ms": round((time.perf_counter() - run.arrived) * 1000),
            },
        }

    def _chunk(self, choice: Any) -> dict[str, Any]:
        return {**self._bare([choice]), **self._usage}

    def _bare(self, choices: list[Any]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}


async def input_tokens(request: Request) -> HttpResponse:
    """How many positions a chat request takes; its pictures are measured, not encoded."""
    state = state_of(request)
    model = state.model
    body = await read_object(request)
    options = options_of(state, body)

    def count() -> dict[str, Any]:
        translated = _translate(state, options, body)
        images = open_pictures(model, translated)
        stream = model.start(
            translated.messages,
            images,
            continue_final=translated.continue_final,
            tools=options.tools,
            **options.sampling,
        )
        stream.close()
        return {"object": "response.input_tokens", "input_tokens": stream.n_prompt, "image_tokens": stream.n_image}

    return json_reply(await or_left(request.receive, state.ready.prepare(count)))


async def control(request: Request) -> HttpResponse:
    """Ends the reasoning of an answer that is under way, or the answer, for the key that asked for it."""
    state = state_of(request)
    body = await read_object(request)
    answer_id, action = string("id", body.get("id"), 256), body.get("action")
    if action not in _ACTIONS:
        raise bad("action", f"got {shown(action)}, expected one of {', '.join(_ACTIONS)}")
    runs = state.ready.runs.get(answer_id, [])
    if not runs or runs[0].key != context_of(request).key:
        raise Refused(404, "id: no answer of this id is under way", "request.unknown_id", param="id")
    for run in runs:
        if action == "cancel":
            run.end("cancelled")
        else:
            run.end_thinking()
    return json_reply({"id": answer_id, "action": action, "object": "chat.completion.control"})
