"""The dicts of chat completions, as OpenAI's API names their fields."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from ..types import FinishReason

AnswerReason = FinishReason | Literal["tool_calls"]
"""Why an answer ended; "tool_calls": by itself, with calls of functions."""


class CalledFunction(TypedDict):
    """arguments: the text of a JSON object."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call of a function. The result goes back in a message of the role "tool" with this id as its tool_call_id."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(TypedDict, total=False):
    """An assistant's message. reasoning_content is there only when the model reasoned, tool_calls when it calls
    functions; content is then None where it says nothing else."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str
    tool_calls: list[ToolCall]


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
    finish_reason: AnswerReason
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
    """A piece of one answer. delta: role in the first chunk, then content, reasoning_content or tool_calls (each with
    its index; id and name in its first piece), empty in the last, which has the finish_reason. token_ids only when
    asked for."""

    index: int
    delta: dict[str, Any]
    logprobs: ChoiceLogprobs | None
    finish_reason: AnswerReason | None
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
