"""The values that the Python API hands out: answers, pieces of a streamed answer, counts and times.

Owns plain data only. Imports neither numpy nor the C++ core, so that it is cheap to import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled"]
"""Why an answer ended: the model or a stop string ended it; the token limit or the context did; it was cancelled."""

PieceKind = Literal["thinking", "text"]
"""What a streamed piece belongs to: the reasoning between the thinking marks, or the answer."""

Reasoning = Literal["yes", "maybe", "no"]
"""Whether a model variant reasons before it answers; "maybe" where the file does not say which variant it is."""

Stage = Literal["load", "encode", "prefill"]
"""The long stages that report progress."""

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``; stage is one of `Stage`. Called at most about every 50 ms and once at the end of a
stage, in the thread that does the work. It must not call the model. An exception raised in it cancels the call and
comes out of it."""


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was: the natural logarithm of its probability by the raw logits, before any sampling option.

    top: the most likely tokens at that place as (id, log probability), best first, ties to the smaller id.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """A piece of a streamed answer.

    ``str(piece)`` is its text. The texts of all pieces of kind "text" joined are `Response.text`, and those of kind
    "thinking" are `Response.thinking`. A piece never holds half a character or a part of a stop string or of a mark.

    token_ids: the tokens produced since the piece before, which completed this text. logprobs: of those among them that
    belong to the answer, when the request asked for log probabilities.
    """

    text: str
    kind: PieceKind = "text"
    token_ids: tuple[int, ...] = field(default=(), compare=False)
    logprobs: tuple[TokenLogprob, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Usage:
    """How many tokens a request took.

    prompt_tokens: positions of the prompt, pictures included. completion_tokens: tokens produced, without the
    end-of-turn token. image_tokens: positions of the prompt that are pictures. cached_tokens: positions at the start of
    the prompt that were still in the KV cache from an earlier call and were not computed again. reasoning_tokens: those
    of completion_tokens up to the end of the reasoning, its marks included. drafted_tokens: tokens that were guessed
    from what had followed the same ones before. accepted_tokens: those of them that the model then chose.
    restored_tokens: those of cached_tokens that were read from the cache folder. dropped_tokens: of the conversation's
    oldest turns, which were left out to fit into the context and are not in prompt_tokens.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    restored_tokens: int = 0
    dropped_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """prompt_tokens + completion_tokens."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went, in seconds and tokens per second.

    load_s: loading the model (once, not part of the request). encode_s: pictures through the vision tower (0 when they
    were cached). restore_s: reading the cache folder. prefill_s: the new part of the prompt. decode_s: all tokens after
    the first. first_token_s: from the request to its first token, the decoding of pictures included. prefill_tps: new
    prompt positions per second of prefill_s. decode_tps: tokens after the first per second of decode_s. A rate without
    anything to measure is 0. Time spent by the reader of a stream, or waiting for other requests on the same model, is
    in none but first_token_s.
    """

    load_s: float = 0.0
    encode_s: float = 0.0
    restore_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    first_token_s: float = 0.0
    prefill_tps: float = 0.0
    decode_tps: float = 0.0


@dataclass(frozen=True)
class Response:
    """An answer.

    text: the answer without the reasoning. thinking: the reasoning, "" when there is none. usage, timings: see there.
    finish_reason: see `FinishReason`. notices: what the caller should know about how the request was understood (for
    example that only the first frame of an animated picture was used). token_ids: the ids produced, reasoning included,
    without the end-of-turn token. seed: the seed used, which gives the same answer again when passed in.
    stop_string: the stop string that ended the answer, None when something else did. logprobs: of the answer's tokens,
    when asked for. prompt_logprobs: of the prompt's tokens, None where nothing comes before, when asked for.
    end_logprob: of the token that ended the answer and is not part of it, when asked for.
    stop_reason: "repetition" when the answer was ended because it repeated itself, else None.
    thinking_closed_by: what ended the reasoning: "model", "budget", "asked", "repetition", or "never" when the answer
    ended inside it; None where there is none.
    """

    text: str = ""
    thinking: str = ""
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    finish_reason: FinishReason = "stop"
    notices: list[str] = field(default_factory=list)
    token_ids: tuple[int, ...] = ()
    seed: int = 0
    stop_string: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    stop_reason: str | None = None
    end_logprob: TokenLogprob | None = None
    thinking_closed_by: str | None = None

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain dicts, lists, strings and numbers, fit for JSON."""
        result = asdict(self)
        result["token_ids"] = list(self.token_ids)
        result["usage"]["total_tokens"] = self.usage.total_tokens
        return result


@dataclass(frozen=True)
class SamplingDefaults:
    """The sampling of a model variant where the caller says nothing.

    temperature: 0 is greedy. top_k: 0 is off. top_p: 1 is off. min_p: 0 is off. repeat_penalty: 1 is off; it applies to
    the last repeat_last_n tokens of the answer (the prompt is not penalised). max_new_tokens: an answer ends there, or
    where the context is full if that comes first.
    """

    temperature: float = 0.6
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    max_new_tokens: int = 2048
