"""`POST /v1/responses`: OpenAI's newer door, over the same answers."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from ..openai.response_writer import ResponseWriter
from ..openai.responses import ignored_fields, read_responses_request
from ..types import Piece, Response
from .answers import Answer
from .bodies import read_object
from .chat_completions import note_ignored
from .chat_request import ChatRequest, options_of
from .errors import error_body, refusal
from .runs import Event, Run
from .sse import PING, Framing
from .state import state_of


def _frame(event: Any) -> bytes:
    kind: str = event["type"]
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(event) + b"\n\n"


def _failure(error: BaseException) -> bytes:
    return _frame({"type": "error", "sequence_number": -1, **error_body(refusal(error))["error"]})


FRAMING = Framing("text/event-stream; charset=utf-8", _frame, _failure, ping=PING)


async def responses(request: Request) -> ASGIApp:
    """Answers a conversation that comes as items."""
    state = state_of(request)
    state.check_ready()
    body = await read_object(request)
    asked = read_responses_request(body)
    with asked.own_names():
        options = options_of(state, asked.chat)
    answer = Answer(request, f"resp_{secrets.token_hex(24)}", 1, options.sampling.get("seed"))
    note_ignored(answer, options)
    answer.notices += [f"{name}: this field has no effect" for name in ignored_fields(body)]
    writer = ResponseWriter(
        body,
        answer_id=answer.id,
        created=answer.created,
        model=state.answer_name(options.model),
        tools=options.tools is not None,
    )
    with asked.own_names():
        await answer.start_chat(ChatRequest(state, options, asked.chat, answer.context.key))

    def whole(found: list[Response]) -> dict[str, Any]:
        run = answer.runs[0]
        extra = {"timings": answer.timings(found[0], run), "kimi": answer.kimi(found[0], run)}
        return {**writer.whole(answer.ended(found[0])), **extra}

    opened = False

    def events(run: Run, happened: Event) -> list[dict[str, Any]]:
        nonlocal opened
        before = [] if opened else writer.opening()
        opened = True
        if isinstance(happened, Piece):
            return [*before, *writer.piece(happened)]
        if isinstance(happened, Response):
            return [*before, *writer.end(answer.ended(happened))]
        return before

    if options.stream:
        return answer.event_stream(events, list, FRAMING)
    return answer.late_json(whole)
