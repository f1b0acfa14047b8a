"""What OpenAI's dicts have in common: ids, counts, log probabilities."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence

from ..types import Response, TokenLogprob
from .types import ChoiceLogprobs, CompletionUsage, TopLogprob

TokenBytes = Callable[[int], bytes]
"""A token's bytes, by its id."""


def new_id(prefix: str = "chatcmpl") -> str:
    """A random id with 24 hexadecimal digits."""
    return f"{prefix}-{secrets.token_hex(12)}"


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
