"""The dicts of chat completions, as OpenAI's API names their fields."""

from __future__ import annotations

from typing import Literal, TypedDict

from ..types import FinishReason


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
