"""Chat completions in the shapes of OpenAI's API, as users of llama-cpp-python know them.

Owns the translation of messages and options in, and of answers and stream chunks out. Pictures come as data URLs, as
{"type": "image", "image": ...} parts with a picture object, or, only where the caller allows it, as paths of local
files. Nothing is ever fetched from a network. What is not supported is an error with code "unsupported.<field>", never
ignored, unless the value says that the caller does not want it either.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict
from urllib.parse import unquote, urlsplit

from ..checks import NotPicklable
from ..errors import BadRequest, Unsupported, shown
from ..generation.sampling import check_max_new_tokens
from ..media.processor import is_bare_base64, load_data_url
from ..text.thinking import join_thinking
from ..types import FinishReason, Piece, Response

if TYPE_CHECKING:
    from ..generation.generation import PieceStream
    from ..model import KimiVL

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Role of a message -> role in the model's template."""
MAX_MESSAGES = 10_000
MAX_PARTS = 10_000

# Options of OpenAI's API that have no effect here: accepted with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "store": (None, False),
    "prediction": (None,),
    "audio": (None,),
    "web_search_options": (None,),
    "grammar": (None,),
    "logits_processor": (None,),
    "typical_p": (None, 1),
    "tfs_z": (None, 1),
    "mirostat_mode": (None, 0),
}
_IGNORED = (
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "verbosity",
    "user",
    "metadata",
    "parallel_tool_calls",
    "service_tier",
    "reasoning_effort",
)
# Keys of a message: those that are read, and those that OpenAI's own answers carry and that say nothing to the model.
_MESSAGE_KEYS = frozenset(
    "role content reasoning_content tool_calls tool_call_id function_call name refusal annotations weight".split()
)
_RENAMED = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
_PASSED = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "seed", "stop", "progress")


class ChatMessage(TypedDict, total=False):
    """An assistant's message. reasoning_content is there only when the model reasoned."""

    role: Literal["assistant"]
    content: str
    reasoning_content: str


class CompletionUsage(TypedDict):
    """Token counts; prompt_tokens_details has cached_tokens and image_tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class Choice(TypedDict):
    """The only choice of a completion."""

    index: int
    message: ChatMessage
    logprobs: None
    finish_reason: FinishReason


class ChatCompletion(TypedDict):
    """A whole answer. object is "chat.completion", created in seconds since 1970."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage


class ChunkChoice(TypedDict):
    """The only choice of a chunk. delta: role in the first chunk, then content or reasoning_content, empty in the last,
    which has the finish_reason."""

    index: int
    delta: ChatMessage
    logprobs: None
    finish_reason: FinishReason | None


class ChatCompletionChunk(TypedDict, total=False):
    """A piece of an answer; object is "chat.completion.chunk". usage only in the extra last chunk without choices that
    stream_options={"include_usage": True} asks for."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage


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
    kimi: KimiVL,
    messages: Sequence[Mapping[str, Any]],
    /,
    *,
    stream: bool | None = False,
    allow_local_images: bool = False,
    **options: Any,
) -> ChatCompletion | ChatCompletionStream:
    """Answers `messages`, a list of {"role", "content"} dicts.

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
    include_usage = _include_usage(options.pop("stream_options", None))
    plain, images = translate_messages(messages, allow_local_images=allow_local_images)
    pieces = kimi.start(plain, images, started=started, **translate_options(options))
    if stream:
        return ChatCompletionStream(pieces, name or kimi.name, include_usage)
    response = pieces.drain()
    message: ChatMessage = {"role": "assistant", "content": response.text}
    if response.thinking:
        message["reasoning_content"] = response.thinking
    choice: Choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": response.finish_reason}
    return {
        "id": _new_id(),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name or kimi.name,
        "choices": [choice],
        "usage": _usage(response),
    }


def translate_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's options as those of `KimiVL.chat`. Raises BadRequest for an unknown one, Unsupported for one that asks
    for something that this runtime does not do."""
    result: dict[str, Any] = {}
    for name, value in options.items():
        if name in _PASSED:
            result[name] = value
        elif name in _RENAMED:
            if value is not None and result.get(_RENAMED[name]) is not None:
                raise BadRequest("max_tokens and max_completion_tokens are both given: give one", f"request.{name}")
            if value is not None:
                result[_RENAMED[name]] = check_max_new_tokens(name, value)
        elif name in _NEUTRAL:
            if not any(
                value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in _NEUTRAL[name]
            ):
                raise Unsupported(
                    f"{name}: got {shown(value)}, which is not supported: leave it out", f"unsupported.{name}"
                )
        elif name not in _IGNORED:
            raise BadRequest(f"{name}: no such option", "request.unknown_option")
    return result


def translate_messages(
    messages: Sequence[Mapping[str, Any]], *, allow_local_images: bool = False
) -> tuple[list[Any], list[Any]]:
    """The messages for prompt.build_prompt, and the pictures that they count through. Raises BadRequest, BadImage."""
    if not isinstance(messages, (list, tuple)):
        raise BadRequest(f"messages: got {type(messages).__name__}, expected a list", "request.messages")
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise BadRequest(f"messages: got {len(messages)}, expected 1 to {MAX_MESSAGES}", "request.messages")
    images: list[Any] = []
    plain = [_message(f"messages[{index}]", item, images, allow_local_images) for index, item in enumerate(messages)]
    return plain, images


def _message(where: str, message: Any, images: list[Any], allow_local: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRequest(f"{where}: got {shown(message)}, expected a dict", "request.messages")
    role = message.get("role")
    if role in ("tool", "function") or any(message.get(key) for key in ("tool_calls", "tool_call_id", "function_call")):
        raise Unsupported(f"{where}: tool calls are not supported by this model's template", "unsupported.tools")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRequest(f"{where}.role: got {shown(role)}, expected one of {', '.join(ROLES)}", "request.role")
    for key, value in message.items():
        if key not in _MESSAGE_KEYS and not _asks_for_nothing(value):
            hint = (
                """; a picture is a part of the content: {"type": "image_url", "image_url": {"url": "data:..."}}"""
                if "image" in str(key)
                else "; leave it out"
            )
            raise BadRequest(f"{where}.{key}: not a key of a message{hint}", "request.messages")
    content = message.get("content")
    if isinstance(content, str):
        translated: Any = content
    elif isinstance(content, (list, tuple)):
        if len(content) > MAX_PARTS:
            raise BadRequest(
                f"{where}.content: got {len(content)} parts, expected at most {MAX_PARTS}", "request.content"
            )
        translated = [
            _part(f"{where}.content[{index}]", part, images, allow_local) for index, part in enumerate(content)
        ]
    else:
        raise BadRequest(
            f"{where}.content: got {shown(content)}, expected a string or a list of parts", "request.content"
        )
    reasoning = message.get("reasoning_content")
    if reasoning is not None:
        if role != "assistant" or not isinstance(reasoning, str) or not isinstance(translated, str):
            raise BadRequest(
                f"{where}.reasoning_content: expected a string beside an assistant's content string",
                "request.reasoning_content",
            )
        translated = join_thinking(reasoning, translated)
    return {"role": ROLES[role], "content": translated}


def _asks_for_nothing(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (str, list, tuple, dict)) and not value)


def _part(where: str, part: Any, images: list[Any], allow_local: bool) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise BadRequest(f"{where}.text: got {shown(text)}, expected a string", "request.content")
        return {"type": "text", "text": text}
    if kind == "image_url":
        value = part.get("image_url")
        url = value.get("url") if isinstance(value, Mapping) else value
        if not isinstance(url, str):
            raise BadRequest(f"{where}.image_url.url: got {shown(url)}, expected a string", "request.image_url")
        images.append(_image_from_url(f"{where}.image_url.url", url, allow_local))
    elif kind == "image":
        image = part.get("image")
        if image is None:
            raise BadRequest(f"{where}.image: missing, expected a picture", "request.content")
        images.append(
            _image_from_url(f"{where}.image", image, allow_local) if isinstance(image, (str, os.PathLike)) else image
        )
    else:
        got = shown(part) if kind is None else shown(kind)
        raise BadRequest(f"{where}.type: got {got}, expected 'text', 'image_url' or 'image'", "request.content")
    return {"type": "image", "image": len(images) - 1}


def _image_from_url(where: str, url: str | os.PathLike[str], allow_local: bool) -> Any:
    spelled = os.fspath(url)
    scheme = spelled.split(":", 1)[0].strip().lower() if ":" in spelled else ""
    if scheme == "data":
        return load_data_url(spelled)
    if isinstance(url, str) and is_bare_base64(spelled):
        raise BadRequest(
            f"{where}: got {shown(spelled)}, base64 without its head: put data:image/png;base64, in front of it",
            "request.image_url",
        )
    if scheme in ("http", "https") or spelled.lstrip().startswith(("//", "\\\\")):
        raise BadRequest(
            f"{where}: got {shown(spelled)}; pictures are not fetched from a network: fetch it yourself and pass a "
            f"data: URL or its bytes",
            "request.image_url_remote",
        )
    if scheme not in ("", "file") and not (len(scheme) == 1 and os.name == "nt"):
        looks_like_path = os.path.exists(spelled) if allow_local else False
        if not looks_like_path:
            raise BadRequest(
                f"{where}: got {shown(spelled)}; expected a data: URL{' or a path' if allow_local else ''}",
                "request.image_url",
            )
    if not allow_local:
        raise BadRequest(
            f"{where}: got {shown(spelled)}; files are not opened for a chat completion unless the caller says "
            f"allow_local_images=True: pass a data: URL",
            "request.image_url_local",
        )
    if scheme == "file":
        parts = urlsplit(spelled)
        if parts.netloc not in ("", "localhost"):
            raise BadRequest(f"{where}: got {shown(spelled)}, a file on another host", "request.image_url_remote")
        return unquote(parts.path)
    return spelled


def _include_usage(options: Any) -> bool:
    if options is None:
        return False
    if not isinstance(options, Mapping) or not isinstance(options.get("include_usage", False), bool):
        raise BadRequest(
            f"stream_options: got {shown(options)}, expected {{'include_usage': true or false}}",
            "request.stream_options",
        )
    return bool(options.get("include_usage", False))


def _new_id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"


def _usage(response: Response) -> CompletionUsage:
    usage = response.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "image_tokens": usage.image_tokens},
    }
