"""The dicts of chat completions, as OpenAI's API names their fields."""

from __future__ import annotations

from typing import Literal, TypedDict

from ..types import FinishReason


class ChatMessage(TypedDict, total=False):
    """An assistant's message. reasoning_content is there only when the model reasoned."""

    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: str


class CompletionUsage(TypedDict):
    """Token counts. prompt_tokens_details: cached_tokens, image_tokens, text_tokens. completion_tokens_details:
    reasoning_tokens, text_tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int]


class TopLogprob(TypedDict):
    """A token, its log probability, and its bytes: half a character is U+FFFD in `token`."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    """The log probability of a token of the answer, and of the likeliest tokens there."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(TypedDict):
    """Those of the tokens of `content`."""

    content: list[ContentLogprob]
    refusal: None


class Choice(TypedDict, total=False):
    """One answer. token_ids only when asked for."""

    index: int
    message: ChatMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason
    token_ids: list[int]


class ChatCompletion(TypedDict):
    """A whole answer. object is "chat.completion", created in seconds since 1970."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage


class ChunkChoice(TypedDict, total=False):
    """A piece of one answer. delta: role in the first chunk, then content or reasoning_content, empty in the last,
    which has the finish_reason. token_ids only when asked for."""

    index: int
    delta: ChatMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int]


class ChatCompletionChunk(TypedDict, total=False):
    """A piece of an answer; object is "chat.completion.chunk". usage only in the extra last chunk without choices that
    stream_options={"include_usage": True} asks for."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage
