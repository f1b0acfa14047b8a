"""Answers as the parts of OpenAI's dicts: messages, choices, chunks, counts, log probabilities."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..types import FinishReason, Piece, Response, TokenLogprob
from .types import ChatMessage, Choice, ChoiceLogprobs, ChunkChoice, CompletionUsage, TopLogprob

TokenBytes = Callable[[int], bytes]
"""A token's bytes, by its id."""


def new_id(prefix: str = "chatcmpl") -> str:
    """A random id with 24 hexadecimal digits."""
    return f"{prefix}-{secrets.token_hex(12)}"


def message_of(response: Response, reasoning_field: str = "reasoning_content", exclude: bool = False) -> ChatMessage:
    """The assistant's message. exclude: without the reasoning."""
    message: ChatMessage = {"role": "assistant", "content": response.text, "refusal": None}
    if response.thinking and not exclude:
        message[reasoning_field] = response.thinking  # type: ignore[literal-required]
    return message


def choice_of(
    response: Response,
    index: int = 0,
    *,
    logprobs: ChoiceLogprobs | None = None,
    with_ids: bool = False,
    **message: Any,
) -> Choice:
    """One answer as a choice. message: the arguments of `message_of`."""
    choice: Choice = {
        "index": index,
        "message": message_of(response, **message),
        "logprobs": logprobs,
        "finish_reason": response.finish_reason,
    }
    if with_ids:
        choice["token_ids"] = list(response.token_ids)
    return choice


def first_chunk(index: int = 0) -> ChunkChoice:
    """The chunk that opens a choice."""
    return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}


def piece_chunk(
    piece: Piece,
    index: int = 0,
    *,
    reasoning_field: str = "reasoning_content",
    logprobs: ChoiceLogprobs | None = None,
    ids: Sequence[int] | None = None,
) -> ChunkChoice:
    """A piece as a chunk's choice. ids: its tokens, where they are asked for."""
    delta: Any = {reasoning_field if piece.kind == "thinking" else "content": piece.text}
    choice: ChunkChoice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
    if ids is not None:
        choice["token_ids"] = list(ids)
    return choice


class TokenIds:
    """Which tokens of one streamed choice no chunk has carried yet. wanted: whether any is to."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._n_carried = 0
        self._waiting: list[int] = []

    def note(self, piece: Piece) -> None:
        """Takes the tokens of a piece."""
        self._waiting += piece.token_ids

    def take(self) -> list[int] | None:
        """Those of the pieces so far, for the chunk that goes out; None where none are wanted."""
        ids, self._waiting = self._waiting, []
        self._n_carried += len(ids)
        return ids if self._wanted else None

    def rest(self, response: Response) -> list[int] | None:
        """Those for the last chunk, also of tokens without any text."""
        return list(response.token_ids[self._n_carried :]) if self._wanted else None


def last_chunk(reason: FinishReason, index: int = 0, ids: Sequence[int] | None = None) -> ChunkChoice:
    """The chunk that closes a choice. ids: the tokens that no chunk has carried, where they are asked for."""
    choice: ChunkChoice = {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}
    if ids is not None:
        choice["token_ids"] = list(ids)
    return choice


def usage_of(responses: Sequence[Response]) -> CompletionUsage:
    """The counts of the answers to one prompt, which is counted once."""
    prompt = responses[0].usage
    completion = sum(one.usage.completion_tokens for one in responses)
    reasoning = sum(one.usage.reasoning_tokens for one in responses)
    return {
        "prompt_tokens": prompt.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt.prompt_tokens + completion,
        "prompt_tokens_details": {
            "cached_tokens": prompt.cached_tokens,
            "image_tokens": prompt.image_tokens,
            "text_tokens": prompt.prompt_tokens - prompt.image_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": reasoning, "text_tokens": completion - reasoning},
    }


def logprobs_of(logprobs: Iterable[TokenLogprob], token_bytes: TokenBytes) -> ChoiceLogprobs:
    """Log probabilities as the API writes them."""
    return {
        "content": [
            {
                **_entry(one.token_id, one.logprob, token_bytes),
                "top_logprobs": [_entry(token, value, token_bytes) for token, value in one.top],
            }
            for one in logprobs
        ],
        "refusal": None,
    }


def _entry(token: int, logprob: float, token_bytes: TokenBytes) -> TopLogprob:
    raw = token_bytes(token)
    return {"token": raw.decode(errors="replace"), "logprob": shortest_float32(logprob), "bytes": list(raw)}


def shortest_float32(value: float) -> float:
    """The number whose shortest decimal form identifies a float32, and no more digits. -inf, which JSON lacks, is the
    lowest float32."""
    import numpy as np

    if value == float("-inf"):
        return float(str(np.finfo(np.float32).min))
    return float(str(np.float32(value)))
