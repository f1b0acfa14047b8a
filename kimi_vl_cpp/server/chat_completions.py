"""`POST /v1/chat/completions`, what it would cost (`/input_tokens`), and what may be said to it later (`/control`)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.types import ASGIApp

from ..openai.choices import ChoiceChunks, ChoiceStyle, choice_of
from ..openai.fields import bad, shown, string
from ..openai.options import AnswerOptions
from ..openai.shapes import new_id, usage_of
from ..types import Piece, Response
from .answers import Answer
from .bodies import read_object
from .chat_request import ChatRequest, options_of
from .context import context_of
from .errors import Refused
from .replies import json_reply
from .runs import Event, ProgressEvent, Run
from .sse import or_left
from .state import state_of

if TYPE_CHECKING:
    pass

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
    await answer.start_chat(ChatRequest(state, options, body, answer.context.key), progress=options.return_progress)
    if options.stream:
        return answer.event_stream(shapes.chunks, shapes.last)
    return answer.late_json(shapes.whole)


def note_ignored(answer: Answer, options: AnswerOptions) -> None:
    """Notices of the fields that have no effect; those that nobody knows are logged too."""
    answer.notices += [f"{name[:100]}: this field has no effect" for name in options.ignored]
    unknown = [name for name in options.unknown if name.isascii() and name.isprintable()]
    if unknown:
        answer.context.fields["ignored"] = ",".join(name[:60] for name in unknown[:20])


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
            "model": answer.state.answer_name(options.model),
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
    body = await read_object(request)
    options = options_of(state, body)
    asked = ChatRequest(state, options, body, context_of(request).key)

    async def count() -> dict[str, Any]:
        await asked.read()
        stream = asked.stream()
        stream.close()
        return {"object": "response.input_tokens", "input_tokens": stream.n_prompt, "image_tokens": stream.n_image}

    return json_reply(await or_left(request.receive, count()))


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
