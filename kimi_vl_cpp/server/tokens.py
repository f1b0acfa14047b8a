"""`/tokenize`, `/detokenize`, `/tokenizer_info`: text and token ids, in vLLM's shapes and under llama.cpp's names."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..openai.fields import bad, boolean, shown, string, whole
from ..openai.tools import FIELDS as TOOL_FIELDS
from .bodies import read_object
from .chat_request import ChatRequest, options_of
from .context import context_of
from .replies import json_reply
from .sse import or_left
from .state import state_of

_LONG = 4096
"""Characters from which text is tokenized outside of the event loop."""


async def tokenize(request: Request) -> Response:
    """The token ids of a text (`prompt`, or `content`) or of a conversation (`messages`)."""
    state = state_of(request)
    engine, model = state.ready, state.model
    body = await read_object(request)
    special = _flag(body, "parse_special", True)
    with_strings = _flag(body, "return_token_strs", False)

    if body.get("messages") is not None:
        ids = await or_left(request.receive, _ids_of_chat(request, body))
    else:
        text = string("prompt", body.get("prompt" if body.get("prompt") is not None else "content"))
        short = len(text) <= _LONG
        ids = (
            model.tokenize(text, special=special)
            if short
            else await engine.prepare(lambda: model.tokenize(text, special=special))
        )
    result: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": model.n_ctx}
    if with_strings:
        tokenizer = model.loaded.tokenizer
        result["token_strs"] = ["" if i < 0 else tokenizer.token_bytes(i).decode(errors="replace") for i in ids]
    return json_reply(result)


async def _ids_of_chat(request: Request, body: dict[str, Any]) -> list[int]:
    """The prompt of a chat request, -1 for every position of a picture."""
    state = state_of(request)
    fields = ("messages", "continue_final_message", *TOOL_FIELDS)
    chat = {name: body[name] for name in fields if name in body}
    asked = ChatRequest(state, options_of(state, chat), chat, context_of(request).key)
    await asked.read()
    stream = asked.stream()
    stream.close()
    return list(stream.prompt_ids)


async def detokenize(request: Request) -> Response:
    """The text of token ids, special tokens included."""
    state = state_of(request)
    engine, model = state.ready, state.model
    body = await read_object(request)
    tokens = body.get("tokens")
    if not isinstance(tokens, list):
        raise bad("tokens", f"got {shown(tokens)}, expected a list of token ids")
    ids = [whole(token) for token in tokens]
    for index, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, int):
            raise bad(f"tokens[{index}]", f"got {shown(token)}, expected a token id")
    text = await engine.prepare(lambda: model.detokenize(ids, special=True))
    return json_reply({"prompt": text, "content": text})


async def tokenizer_info(request: Request) -> Response:
    """What a client needs to know of the tokenizer."""
    model = state_of(request).model
    tokenizer = model.loaded.tokenizer

    def name(token: int) -> str:
        return tokenizer.token_bytes(token).decode(errors="replace")

    return json_reply(
        {
            "tokenizer_class": f"Kimi-VL {tokenizer.kind}",
            "bos_token": name(tokenizer.bos_id),
            "eos_token": name(tokenizer.eos_id),
            "pad_token": None,
            "chat_template": model.loaded.engine.gguf.get("tokenizer.chat_template"),
            "max_model_len": model.n_ctx,
        }
    )


def _flag(body: dict[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    return default if value is None else boolean(name, value)
