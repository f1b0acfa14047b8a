"""Chat completions in the shapes of OpenAI's API, as users of llama-cpp-python know them: whole answers and chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from ..checks import NotPicklable
from ..errors import BadRequest, shown
from ..generation.stream import PieceStream
from ..types import FinishReason, Piece, Response
from .messages import translate_messages
from .options import include_usage, translate_options
from .types import ChatCompletion, ChatCompletionChunk, ChatMessage, Choice, ChunkChoice, CompletionUsage


class ChatCompletionStream(NotPicklable, Generator[ChatCompletionChunk, None, None]):
    """The chunks of an answer, as a generator. `close()` cancels; `cancel()` does so from another thread. `result` is
    the Response once it has ended."""

    _instead = "read it to its end here and send its chunks or its result"

    def __init__(self, pieces: PieceStream, model_name: str, include_usage: bool) -> None:
        self._pieces = pieces
        self._inner = self._chunks(model_name, include_usage)

    @property
    def result(self) -> Response | None:
        """The answer as `KimiVL.chat` would have returned it, or None while the stream has not ended."""
        return self._pieces.result

    def cancel(self) -> None:
        """Asks the answer to end with finish_reason "cancelled"."""
        self._pieces.cancel()

    def send(self, value: None) -> ChatCompletionChunk:
        return self._inner.send(value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> ChatCompletionChunk:
        return self._inner.throw(typ if isinstance(typ, BaseException) else typ())

    def close(self) -> None:
        """Ends the answer if it has not ended."""
        self._pieces.close()
        try:
            self._inner.close()
        except ValueError:  # another thread is inside: it ends at its next token
            return

    def _chunks(self, model_name: str, include_usage: bool) -> Generator[ChatCompletionChunk, None, None]:
        completion_id, created = _new_id(), int(time.time())

        def bare(choices: list[ChunkChoice]) -> ChatCompletionChunk:
            return {
                "id": completion_id,
                "object": "chat.completion.chunk",
                "created": created,
                "model": model_name,
                "choices": choices,
            }

        def chunk(delta: ChatMessage, finish_reason: FinishReason | None = None) -> ChatCompletionChunk:
            return bare([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}])

        first: Piece | None = next(self._pieces, None)  # before the role: an error is then an error, not half an answer
        yield chunk({"role": "assistant", "content": ""})
        piece = first
        while piece is not None:
            yield chunk({"reasoning_content": piece.text} if piece.kind == "thinking" else {"content": piece.text})
            piece = next(self._pieces, None)
        response = self._pieces.result
        assert response is not None
        yield chunk({}, response.finish_reason)
        if include_usage:
            yield {**bare([]), "usage": _usage(response)}


def create(
    start: Callable[..., PieceStream],
    model_name: str,
    messages: Sequence[Mapping[str, Any]],
    /,
    *,
    stream: bool | None = False,
    allow_local_images: bool = False,
    **options: Any,
) -> ChatCompletion | ChatCompletionStream:
    """Answers `messages`, a list of {"role", "content"} dicts, with the stream that `start` returns: `KimiVL.start`.

    role: system (developer is the same), user or assistant.
    content: a string, or a list of {"type": "text", "text"}, {"type": "image_url", "image_url": {"url"} or url} and
    {"type": "image", "image": picture} parts, in the order in which the model is to see them. url: a data: URL; with
    allow_local_images also a path or a file: URL. http and https are refused: fetch the picture and pass its bytes.
    An assistant's reasoning_content goes back into its message.

    options: max_tokens or max_completion_tokens, temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed,
    stop, stream_options, progress, and model, the name that the answer carries. None is the default. Others of OpenAI's
    options are accepted with values that ask for nothing.

    Returns a dict, or with stream=True a generator of chunks. Nothing is computed before its first chunk is asked for,
    but everything is checked here.

    Raises BadRequest (code "request.<field>", the message names the place), Unsupported, BadImage, ContextFull.
    """
    started = time.perf_counter()
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest(f"stream: got {shown(stream)}, expected true or false", "request.stream")
    name = options.pop("model", None)
    if name is not None and not isinstance(name, str):
        raise BadRequest(f"model: got {shown(name)}, expected a string", "request.model")
    with_usage = include_usage(options.pop("stream_options", None))
    plain, images = translate_messages(messages, allow_local_images=allow_local_images)
    pieces = start(plain, images, started=started, **translate_options(options))
    if stream:
        return ChatCompletionStream(pieces, name or model_name, with_usage)
    response = pieces.drain()
    message: ChatMessage = {"role": "assistant", "content": response.text}
    if response.thinking:
        message["reasoning_content"] = response.thinking
    choice: Choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": response.finish_reason}
    return {
        "id": _new_id(),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name or model_name,
        "choices": [choice],
        "usage": _usage(response),
    }


def _usage(response: Response) -> CompletionUsage:
    usage = response.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "image_tokens": usage.image_tokens},
    }


def _new_id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"
