"""Ollama's doors, `/api/chat`, `/api/generate` and what its clients ask before: over the same answers."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.types import ASGIApp

from ..errors import KimiVLError
from ..files.variants import REASONING
from ..openai.ollama import read_chat, read_generate
from ..openai.said import AnswerReader, Called
from ..openai.shapes import new_id
from ..text.tool_calls import CallPiece
from ..types import Piece, Response
from .answers import Answer
from .bodies import read_object
from .chat_completions import note_ignored
from .chat_request import ChatRequest, options_of
from .errors import Refused, refusal
from .replies import json_reply
from .runs import Event, Run
from .sse import Framing
from .state import State, state_of

VERSION = "0.12.0"
"""The version of Ollama whose answers these are; clients ask for it."""


def _frame(line: Any) -> bytes:
    return msgspec.json.encode(line) + b"\n"


FRAMING = Framing("application/x-ndjson", _frame, lambda error: _frame({"error": str(refusal(error))}))


Said = Callable[[str, str, list[Called]], dict[str, Any]]
"""said(text, thought, calls): the part of a line that is about the answer."""


async def chat(request: Request) -> ASGIApp:
    """`/api/chat`."""
    return await _answered(request, read_chat, _as_message)


async def generate(request: Request) -> ASGIApp:
    """`/api/generate`."""
    return await _answered(request, read_generate, _as_response)


def _as_message(text: str, thought: str, calls: list[Called]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thought:
        message["thinking"] = thought
    if calls:
        message["tool_calls"] = [
            {"function": {"name": call.name, "arguments": msgspec.json.decode(call.arguments)}} for call in calls
        ]
    return {"message": message}


def _as_response(text: str, thought: str, calls: list[Called]) -> dict[str, Any]:
    return {"response": text, **({"thinking": thought} if thought else {})}


async def _answered(
    request: Request,
    read: Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[str]]],
    said: Said,
) -> ASGIApp:
    try:
        return await _answer(request, read, said)
    except KimiVLError as error:  # Ollama's errors are one string
        refused = refusal(error)
        if refused.status == 500:
            raise
        return json_reply({"error": str(refused)}, refused.status, refused.headers)


async def _answer(
    request: Request,
    read: Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[str]]],
    said: Said,
) -> ASGIApp:
    state = state_of(request)
    state.check_ready()
    body = await read_object(request)
    chat_body, ignored = read(body)
    streamed = chat_body.pop("stream")
    name = str(body.get("model") or state.names[0])
    state.check_name(name.removesuffix(":latest"))
    chat_body["model"] = state.answer_name(name.removesuffix(":latest"))
    options = options_of(state, chat_body)
    answer = Answer(request, new_id(), 1, options.sampling.get("seed"))
    note_ignored(answer, options)
    answer.notices += [f"{field[:100]}: this option has no effect" for field in ignored]
    lines = _Lines(answer, name, said, options.tools is not None)
    await answer.start_chat(ChatRequest(state, options, chat_body, answer.context.key))
    if streamed:
        return answer.event_stream(lines.of, list, FRAMING)
    return answer.late_json(lines.whole)


class _Lines:
    """The lines of one answer, or the one that holds all of it. A call of a function comes whole."""

    def __init__(self, answer: Answer, name: str, said: Said, tools: bool) -> None:
        self._answer = answer
        self._name = name
        self._said = said
        self._reader = AnswerReader(tools)
        self._started = time.perf_counter()

    def of(self, run: Run, happened: Event) -> list[dict[str, Any]]:
        """The lines of one event."""
        if isinstance(happened, Piece):
            if happened.kind == "thinking":
                return [self._line("", happened.text)]
            return self._written(self._reader.push(happened.text))
        if isinstance(happened, Response):
            return [*self._written(self._reader.flush()), self._last(happened)]
        return []

    def whole(self, responses: list[Response]) -> dict[str, Any]:
        """Everything in one line."""
        pieces = [*self._reader.push(responses[0].text), *self._reader.flush()]
        n_whole = sum(piece.kind == "end" for piece in pieces)
        said = self._reader.said
        return self._last(responses[0], said.content, responses[0].thinking, said.calls[:n_whole])

    def _written(self, pieces: list[CallPiece]) -> list[dict[str, Any]]:
        calls = self._reader.said.calls
        n_open = sum(piece.kind == "call" for piece in pieces)
        lines = []
        for piece in pieces:
            if piece.kind == "text":
                lines.append(self._line(piece.text))
            elif piece.kind == "call":
                n_open -= 1
            elif piece.kind == "end":
                lines.append(self._line("", "", [calls[len(calls) - 1 - n_open]]))
        return lines

    def _line(self, text: str = "", thought: str = "", calls: list[Called] | None = None) -> dict[str, Any]:
        return {"model": self._name, "created_at": _now(), **self._said(text, thought, calls or []), "done": False}

    def _last(self, response: Response, *said: Any) -> dict[str, Any]:
        figures = _figures(response, time.perf_counter() - self._started)
        reason = self._answer.finish_reason(response)
        return {**self._line(*said), "done": True, "done_reason": reason, **figures}


def _figures(response: Response, total_s: float) -> dict[str, int]:
    usage, timings = response.usage, response.timings

    def ns(seconds: float) -> int:
        return round(seconds * 1e9)

    return {
        "total_duration": ns(total_s),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": ns(timings.encode_s + timings.prefill_s),
        "eval_count": usage.completion_tokens,
        "eval_duration": ns(timings.decode_s),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")


def _entry(state: State, name: str) -> dict[str, Any]:
    model, path = state.model, state.model.files.text
    modified = datetime.datetime.fromtimestamp(path.stat().st_mtime if path.exists() else state.started, datetime.UTC)
    return {
        "name": f"{name}:latest",
        "model": f"{name}:latest",
        "modified_at": modified.isoformat().replace("+00:00", "Z"),
        "size": path.stat().st_size if path.exists() else 0,
        "digest": state.ready.fingerprint.rpartition("-")[2] * 8,
        "details": _details(state),
        "context_length": model.n_ctx,
    }


def _details(state: State) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": "kimi-vl",
        "families": ["kimi-vl"],
        "parameter_size": "",
        "quantization_level": "",
    }


async def tags(request: Request) -> HttpResponse:
    """`/api/tags`: the model under its names."""
    state = state_of(request)
    return json_reply({"models": [_entry(state, name) for name in state.names]})


async def running(request: Request) -> HttpResponse:
    """`/api/ps`: it is always loaded."""
    state = state_of(request)
    return json_reply({"models": [{**_entry(state, state.names[0]), "expires_at": "9999-12-31T23:59:59Z"}]})


async def show(request: Request) -> HttpResponse:
    """`/api/show`: what it can do."""
    state = state_of(request)
    body = await read_object(request)
    name = str(body.get("model") or body.get("name") or state.names[0]).removesuffix(":latest")
    if name not in state.names:
        error = Refused(404, f"model '{name[:100]}' not found", "serve.unknown_model")
        return json_reply({"error": str(error)}, error.status)
    model = state.model
    capabilities = ["completion", *(["vision"] if model.has_vision else [])]
    capabilities.append("tools")
    if REASONING[model.variant] != "no":
        capabilities.append("thinking")
    info = {"general.architecture": "kimi-vl", "kimi-vl.context_length": model.n_ctx, "general.name": model.name}
    entry = _entry(state, name)
    return json_reply(
        {
            "capabilities": capabilities,
            "details": entry["details"],
            "model_info": info,
            "modified_at": entry["modified_at"],
            "modelfile": "",
            "parameters": "",
            "template": "",
        }
    )


async def version(request: Request) -> HttpResponse:
    """`/api/version`."""
    return json_reply({"version": VERSION})
