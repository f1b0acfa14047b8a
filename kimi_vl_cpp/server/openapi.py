"""`/openapi.json`: the paths of the server and the fields of their requests, for tools that read OpenAPI 3.1.

Limits are those of the rooms that enforce them. Unknown fields are allowed everywhere, as the server allows them.
"""

from __future__ import annotations

from typing import Any, get_args

from starlette.requests import Request
from starlette.responses import Response

from ..generation import sampling
from ..media import frames
from ..media.paged import MARKERS, TEXT_LAYERS
from ..media.times import TimeStyle
from ..openai import messages, options, reasoning, text_completions, tools
from ..version import __version__
from .replies import json_reply

Schema = dict[str, Any]

_BOOLEAN: Schema = {"type": "boolean"}
_STRING: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object"}
_ERRORS = {
    "400": "a wrong field, a damaged picture, or more than fits into the context",
    "401": "the API key is missing or wrong",
    "403": "a foreign Host or Origin",
    "404": "no such path, model or answer",
    "405": "another method is expected",
    "408": "the body stopped",
    "411": "a body without its length",
    "413": "a body that is too large",
    "415": "a compressed body",
    "429": "too many requests of one key",
    "431": "headers that are too long",
    "500": "a fault of the server",
    "503": "loading, ending, or the queue is full",
}


def _integer(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _list(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


def _nullable(schema: Schema) -> Schema:
    """null is the same as leaving a field out."""
    return {"anyOf": [schema, {"type": "null"}]}


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    given = {name: schema if name in required else _nullable(schema) for name, schema in properties.items()}
    return {"type": "object", "properties": given, **({"required": list(required)} if required else {})}


def _limited(option: str) -> Schema:
    low, high = sampling.limits(option)
    return _integer(low, high) if isinstance(low, int) else _number(low, high)


def _sampling() -> dict[str, Schema]:
    """Fields that chat completions and completions share."""
    length = _integer(-1, sampling.MAX_NEW_TOKENS)
    stop = {"type": "string", "minLength": 1, "maxLength": sampling.MAX_STOP_CHARS}
    return {
        "model": {"type": "string", "maxLength": options.MAX_MODEL_CHARS},
        "stream": _BOOLEAN,
        "stream_options": _object(include_usage=_BOOLEAN),
        "max_tokens": length,
        "max_completion_tokens": length,
        **{name: _limited(inner) for name, inner in options.SAMPLED.items() if inner != "top_k"},
        "top_k": _integer(-1, sampling.limits("top_k")[1]),
        "frequency_penalty": _number(*sampling.OPENAI_PENALTY),
        "presence_penalty": _number(*sampling.OPENAI_PENALTY),
        "seed": _integer(-1, sampling.MAX_SEED),
        "n": _integer(1, options.MAX_CHOICES),
        "stop": {"anyOf": [stop, _list(stop, maxItems=sampling.MAX_STOP_STRINGS)]},
        "stop_token_ids": _list(_integer(0, sampling.MAX_NEW_TOKENS), maxItems=sampling.MAX_STOP_IDS),
        "logit_bias": {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": _number(-100, 100),
            "maxProperties": sampling.MAX_BIASED,
        },
        "min_tokens": _integer(0, sampling.MAX_NEW_TOKENS),
        "ignore_eos": _BOOLEAN,
        "loop_guard": _BOOLEAN,
        "return_token_ids": _BOOLEAN,
        "cache_salt": {"type": "string", "maxLength": sampling.MAX_SALT_CHARS},
        "cache_prompt": _BOOLEAN,
        "structured_outputs": _object(json=_OBJECT, regex=_STRING, choice=_list(_STRING, minItems=1), grammar=_STRING),
    }


def _message() -> Schema:
    url = {"anyOf": [_STRING, _object(("url",), url=_STRING, detail={"enum": list(messages.DETAILS)})]}
    text = _object(("type", "text"), type={"const": "text"}, text=_STRING)
    picture = _object(("type", "image_url"), type={"const": "image_url"}, image_url=url)
    options = {
        "filename": _STRING,
        "pages": _STRING,
        "markers": {"enum": list(MARKERS)},
        "text_layer": {"enum": list(TEXT_LAYERS)},
    }
    document = _object(
        ("type", "file"), type={"const": "file"}, file=_object(("file_data",), file_data=_STRING, **options)
    )
    film = _object(
        ("url",),
        url=_STRING,
        range=_STRING,
        frames=_integer(1, frames.MAX_FRAMES),
        fps={"type": "number", "exclusiveMinimum": 0, "maximum": 1000},
        sampling={"enum": list(get_args(frames.Sampling))},
        timestamps={"enum": list(get_args(TimeStyle))},
        dedupe=_BOOLEAN,
        max_patches=_integer(4, 512 * 512),
        detail={"enum": list(messages.DETAILS)},
    )
    video = _object(("type", "video_url"), type={"const": "video_url"}, video_url={"anyOf": [_STRING, film]})
    function = _object(("name", "arguments"), name=_STRING, arguments=_STRING)
    return _object(
        ("role",),
        role={"enum": list(messages.ROLES)},
        content={"anyOf": [_STRING, _list({"anyOf": [text, picture, document, video]}, maxItems=messages.MAX_PARTS)]},
        reasoning_content=_STRING,
        partial=_BOOLEAN,
        tool_call_id=_STRING,
        tool_calls=_list(_object(("id", "function"), id=_STRING, type={"const": "function"}, function=function)),
    )


def _tool() -> Schema:
    function = _object(
        ("name",), name={"type": "string", "pattern": tools.NAME}, description=_STRING, parameters=_OBJECT
    )
    return _object(("type", "function"), type={"const": "function"}, function=function)


def _chat() -> Schema:
    return _object(
        ("messages",),
        messages=_list({"$ref": "#/components/schemas/Message"}, minItems=1, maxItems=messages.MAX_MESSAGES),
        **_sampling(),
        logprobs=_BOOLEAN,
        top_logprobs=_integer(0, sampling.MAX_TOP_LOGPROBS),
        reasoning_effort={"enum": list(reasoning.EFFORTS)},
        thinking_budget=_integer(-1, sampling.MAX_NEW_TOKENS),
        enable_thinking=_BOOLEAN,
        answer_reserve=_integer(0, sampling.MAX_NEW_TOKENS),
        response_format=_object(("type",), type=_STRING, json_schema=_OBJECT, regex=_STRING, grammar=_STRING),
        tools=_list({"$ref": "#/components/schemas/Tool"}, maxItems=tools.MAX_TOOLS),
        tool_choice={"anyOf": [{"enum": ["none", "auto", "required"]}, _OBJECT]},
        parallel_tool_calls=_BOOLEAN,
        continue_final_message=_BOOLEAN,
        return_progress=_BOOLEAN,
    )


def _completion() -> Schema:
    ids = _list(_integer(0, sampling.MAX_NEW_TOKENS), minItems=1)
    prompts = _list({"anyOf": [_STRING, ids]}, minItems=1, maxItems=text_completions.MAX_PROMPTS)
    return _object(
        ("prompt",),
        prompt={"anyOf": [_STRING, ids, prompts]},
        **_sampling(),
        echo=_BOOLEAN,
        logprobs=_integer(0, text_completions.MAX_LOGPROBS),
        parse_special=_BOOLEAN,
    )


def _responses() -> Schema:
    return _object(
        ("input",),
        input={"anyOf": [_STRING, _list(_OBJECT, minItems=1)]},
        instructions=_STRING,
        model=_STRING,
        max_output_tokens=_integer(-1, sampling.MAX_NEW_TOKENS),
        temperature=_limited("temperature"),
        top_p=_limited("top_p"),
        text=_object(format=_OBJECT),
        reasoning=_object(effort={"enum": list(reasoning.EFFORTS)}),
        tools=_list(_OBJECT, maxItems=tools.MAX_TOOLS),
        stream=_BOOLEAN,
    )


def _ollama() -> tuple[Schema, Schema]:
    shared = {
        "model": _STRING,
        "stream": _BOOLEAN,
        "options": _OBJECT,
        "format": {"anyOf": [{"const": "json"}, _OBJECT]},
    }
    message = _object(("role",), role=_STRING, content=_STRING, images=_list(_STRING))
    chat = _object(("messages",), messages=_list(message, minItems=1), tools=_list(_OBJECT), **shared)
    return chat, _object((), prompt=_STRING, system=_STRING, images=_list(_STRING), **shared)


def _error() -> Schema:
    text = _nullable(_STRING)
    fields = {"message": _STRING, "type": _STRING, "param": text, "code": text, "kimi_code": _STRING}
    error = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "object", "properties": {"error": {"anyOf": [error, _STRING]}}, "required": ["error"]}


def _operation(summary: str, body: Schema | None, kinds: tuple[str, ...], parameters: list[Schema]) -> Schema:
    answers: Schema = {"200": {"description": "The answer", "content": {kind: {} for kind in kinds}}}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    answers |= {status: {"description": text, "content": content} for status, text in _ERRORS.items()}
    operation: Schema = {"summary": summary, "responses": answers, "security": [{}, {"key": []}]}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if parameters:
        operation["parameters"] = parameters
    return operation


_JSON, _EVENTS, _LINES = "application/json", "text/event-stream", "application/x-ndjson"


def document() -> Schema:
    """The OpenAPI document."""
    ollama_chat, ollama_generate = _ollama()
    control = _object(("id", "action"), id=_STRING, action={"enum": ["reasoning_end", "cancel"]})
    tokenize = _object(prompt=_STRING, messages=_list({"$ref": "#/components/schemas/Message"}), parse_special=_BOOLEAN)
    detokenize = _object(("tokens",), tokens=_list(_integer(0, sampling.MAX_NEW_TOKENS)))
    chat: Schema = {"$ref": "#/components/schemas/ChatRequest"}
    posts: list[tuple[str, str, Schema, tuple[str, ...]]] = [
        ("/v1/chat/completions", "Answer a conversation", chat, (_JSON, _EVENTS)),
        ("/v1/chat/completions/input_tokens", "Count the positions of a conversation", chat, (_JSON,)),
        ("/v1/chat/completions/control", "End the reasoning, or an answer under way", control, (_JSON,)),
        ("/v1/completions", "Continue a text", _completion(), (_JSON, _EVENTS)),
        ("/v1/responses", "Answer a conversation in the form of Responses", _responses(), (_JSON, _EVENTS)),
        ("/v1/tokenize", "Token ids of a text or a conversation", tokenize, (_JSON,)),
        ("/v1/detokenize", "The text of token ids", detokenize, (_JSON,)),
        ("/api/chat", "Answer a conversation in Ollama's form", ollama_chat, (_JSON, _LINES)),
        ("/api/generate", "Answer a question in Ollama's form", ollama_generate, (_JSON, _LINES)),
        ("/api/show", "The model in Ollama's form", _object(model=_STRING), (_JSON,)),
    ]
    gets = {
        "/v1/models": "The model under its names",
        "/v1/models/{name}": "The model under one name",
        "/v1/tokenizer_info": "The tokenizer",
        "/v1/status": "What is under way",
        "/api/tags": "The model in Ollama's form",
        "/api/ps": "The loaded model in Ollama's form",
        "/api/version": "The version of Ollama that these paths follow",
        "/health": "Whether requests are taken",
        "/ping": "Whether the socket is open",
    }
    paths: dict[str, Schema] = {path: {"post": _operation(text, body, kinds, [])} for path, text, body, kinds in posts}
    for path, text in gets.items():
        names = [{"name": "name", "in": "path", "required": True, "schema": _STRING}] if "{" in path else []
        paths[path] = {"get": _operation(text, None, (_JSON,), names)}
    schemas = {"ChatRequest": _chat(), "Message": _message(), "Tool": _tool(), "Error": _error()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "kimi-vl serve", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


async def openapi(request: Request) -> Response:
    """The OpenAPI document of this server."""
    return json_reply(document())
