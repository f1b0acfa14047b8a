"""The options of OpenAI's API, and those that other servers add to it, as those of `KimiVL.chat`.

An option that asks for something that is not done here is an error with code "unsupported.<field>". One that has no
effect is listed, so that it can be reported; whether an unknown one is an error is for the caller to decide.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadRequest
from ..generation import sampling
from ..generation.budget import default_reserve
from ..generation.tools import ToolUse
from .fields import bad, boolean, integer, mapping, number, read, read_integer, shown, string, unsupported, whole
from .formats import FIELDS as FORMAT_FIELDS
from .formats import read_format
from .reasoning import FIELDS as REASONING_FIELDS
from .reasoning import NOTHING_SAID, Reasoning, read_reasoning
from .tools import FIELDS as TOOL_FIELDS
from .tools import read_tools

MAX_CHOICES = 16
MAX_MODEL_CHARS = 256

# Options that ask for something that this runtime does not do: accepted with the values that ask for nothing.
_NOT_DONE: dict[str, tuple[tuple[Any, ...], str]] = {
    "functions": (([],), "use tools"),
    "function_call": (("none", "auto"), "use tool_choice"),
    "modalities": ((["text"],), "leave it out: answers are text"),
    "audio": ((), "leave it out"),
    "web_search_options": ((), "leave it out"),
    "logits_processor": ((), "leave it out"),
    "typical_p": ((1,), "leave it out"),
    "tfs_z": ((1,), "leave it out"),
    "mirostat_mode": ((0,), "leave it out"),
    "lora": (([],), "give the adapter's name as model"),
}
NO_EFFECT = frozenset(
    "user metadata store service_tier safety_identifier verbosity prediction prompt_cache_key prompt_cache_options "
    "prompt_cache_retention moderation".split()
)
"""Known options that change nothing here."""

_LENGTHS = ("max_tokens", "max_completion_tokens")
SAMPLED = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "repetition_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "top_k": "top_k",
}
"""Option of a request -> the option of the sampler, whose limits are the core's."""


@dataclass(frozen=True)
class AnswerOptions:
    """The options of one request.

    sampling: those of `KimiVL.chat`. tools: the functions that it may call. model: the name that the answer is to
    carry. n: how many answers. logprobs: whether log probabilities are wanted. ignored: the fields that have no effect,
    unknown: those of them that nobody knows.
    """

    sampling: dict[str, Any]
    model: str | None = None
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    logprobs: bool = False
    reasoning: Reasoning = NOTHING_SAID
    tools: ToolUse | None = None
    continue_final: bool = False
    return_token_ids: bool = False
    return_progress: bool = False
    ignored: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def read_options(fields: Mapping[str, Any]) -> AnswerOptions:
    """The options among the fields of a chat request, `messages` excepted. Raises BadRequest and Unsupported."""
    given = {name: value for name, value in fields.items() if value is not None}
    _refuse_what_is_not_done(given)
    reasoning = read_reasoning(given)
    options = _sampling(given)
    length = _length(given)
    if length == 0:
        options["prompt_only"] = True
    elif length is not None:
        options["max_new_tokens"] = length
    if reasoning.budget is not None:
        options["thinking_budget"] = reasoning.budget
    if given.get("answer_reserve") is not None:
        options["answer_reserve"] = integer("answer_reserve", given["answer_reserve"], 0, sampling.MAX_NEW_TOKENS)
    elif length and not reasoning.given:
        options["answer_reserve"] = default_reserve(length)
    grammar = read_format(given)
    if grammar is not None:
        options["grammar"] = grammar
    logprobs, n_top = _logprobs(given)
    if logprobs:
        options["logprobs"] = n_top
    unknown = [name for name in fields if name not in _KNOWN]
    return AnswerOptions(
        sampling=options,
        model=None if "model" not in given else string("model", given["model"], MAX_MODEL_CHARS),
        stream=boolean("stream", given.get("stream", False)),
        include_usage=include_usage(given.get("stream_options")),
        n=integer("n", given.get("n", 1), 1, MAX_CHOICES),
        logprobs=logprobs,
        reasoning=reasoning,
        tools=read_tools(given),
        continue_final=boolean("continue_final_message", given.get("continue_final_message", False)),
        return_token_ids=boolean("return_token_ids", given.get("return_token_ids", False)),
        return_progress=boolean("return_progress", given.get("return_progress", False)),
        ignored=[name for name in given if name in NO_EFFECT or name in unknown],
        unknown=unknown,
    )


def _refuse_what_is_not_done(given: Mapping[str, Any]) -> None:
    for name, (neutral, advice) in _NOT_DONE.items():
        if name not in given:
            continue
        value = given[name]
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            raise unsupported(name, f"got {shown(value)}, which is not supported: {advice}")


def _length(given: Mapping[str, Any]) -> int | None:
    """The longest answer in tokens, MAX_NEW_TOKENS for -1."""
    lengths = {name: _one_length(name, whole(given[name])) for name in _LENGTHS if name in given}
    if len(set(lengths.values())) > 1:
        raise bad("max_tokens", "max_completion_tokens is given too and differs: give one")
    return next(iter(lengths.values()), None)


def _one_length(name: str, value: Any) -> int:
    nothing = value == 0 and not isinstance(value, bool)
    return 0 if nothing else read_integer(name, value, sampling.check_max_new_tokens, "an integer of -1 or more")


def _logprobs(given: Mapping[str, Any]) -> tuple[bool, int]:
    logprobs = boolean("logprobs", given.get("logprobs", False))
    n_top = integer("top_logprobs", given.get("top_logprobs", 0), 0, sampling.MAX_TOP_LOGPROBS)
    if n_top and not logprobs:
        raise bad("top_logprobs", f"got {n_top}, but logprobs is not true")
    return logprobs, n_top


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, inner in SAMPLED.items():
        if name not in given:
            continue
        if inner in options:
            raise bad(name, "repeat_penalty is given too: give one")
        options[inner] = _sampled(name, inner, given[name])
    for name in ("frequency_penalty", "presence_penalty"):
        if name in given:
            options[name] = number(name, given[name], *sampling.OPENAI_PENALTY)
    if "seed" in given:
        options["seed"] = read_seed(given["seed"])
    if "stop" in given:
        options["stop"] = _stop(given["stop"]) or None
    if "logit_bias" in given:
        options["logit_bias"] = _logit_bias(given["logit_bias"])
    if "stop_token_ids" in given:
        options["stop_token_ids"] = read("stop_token_ids", given["stop_token_ids"], _stop_ids)
    salt = cache_salt(given)
    if salt:
        options["cache_salt"] = salt
    if given.get("cache_prompt") is False:
        options["cache"] = "off"
    if "min_tokens" in given:
        options["min_tokens"] = integer("min_tokens", given["min_tokens"], 0, sampling.MAX_NEW_TOKENS)
    for name in ("ignore_eos", "loop_guard"):
        if name in given:
            options[name] = boolean(name, given[name])
    return options


def cache_salt(given: Mapping[str, Any]) -> str:
    """What separates the caches of a request from others': cache_salt, or, where nothing may be taken from them or be
    left in them for others, one that nobody else has."""
    salt = string("cache_salt", given.get("cache_salt", ""), sampling.MAX_SALT_CHARS)
    return salt if boolean("cache_prompt", given.get("cache_prompt", True)) else secrets.token_hex(16)


def _sampled(name: str, inner: str, value: Any) -> Any:
    low, high = sampling.limits(inner)
    if inner == "top_k":
        return max(0, integer(name, value, -1, high))
    return integer(name, value, low, high) if isinstance(low, int) else number(name, value, low, high)


def read_seed(value: Any) -> int | None:
    """A seed; a negative one is drawn."""
    value = whole(value)
    if isinstance(value, int) and not isinstance(value, bool) and value < 0:
        return None
    return read_integer("seed", value, lambda _, seed: sampling.check_seed(seed), "an integer")


def _logit_bias(value: Any) -> dict[int, float]:
    """JSON's keys are strings; the ids in them are checked against the vocabulary later."""
    bias: dict[int, float] = {}
    for key, amount in mapping("logit_bias", value).items():
        text = str(key)
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise bad("logit_bias", f"got the key {shown(key)}, expected a token id")
        bias[int(text)] = number(f"logit_bias[{key}]", amount, -100, 100)
    return dict(read("logit_bias", bias, lambda _, biases: sampling.check_logit_bias(biases)))


def _stop(value: Any) -> Sequence[str]:
    if not isinstance(value, (str, list, tuple)):
        raise bad("stop", f"got {shown(value)}, expected a string or a list of strings")
    for index, one in enumerate(() if isinstance(value, str) else value):
        string(f"stop[{index}]", one)
    return read("stop", value, lambda _, strings: sampling.check_stop(strings))


def _stop_ids(where: str, value: Any) -> Sequence[int]:
    if not isinstance(value, (list, tuple)):
        raise bad(where, f"got {shown(value)}, expected a list of token ids")
    ids = [integer(f"{where}[{index}]", one, 0, sampling.MAX_NEW_TOKENS) for index, one in enumerate(value)]
    return list(sampling.check_stop_token_ids(ids))


def include_usage(options: Any) -> bool:
    """stream_options.include_usage."""
    if options is None:
        return False
    value = options.get("include_usage") if isinstance(options, Mapping) else options
    if value is not None and not isinstance(value, bool):
        raise bad("stream_options", f'got {shown(options)}, expected {{"include_usage": true or false}}')
    return bool(value)


def refuse_unknown(options: AnswerOptions) -> None:
    """Raises BadRequest (code "request.unknown_option") for a field that nobody knows."""
    for name in options.unknown:
        error = BadRequest(f"{name}: no such option", "request.unknown_option")
        error.param = name
        raise error


_READ = (
    "model stream stream_options n logprobs top_logprobs continue_final_message return_token_ids return_progress "
    "answer_reserve frequency_penalty presence_penalty seed stop logit_bias stop_token_ids min_tokens ignore_eos "
    "loop_guard cache_salt cache_prompt"
).split()
_KNOWN = (
    NO_EFFECT | REASONING_FIELDS | frozenset((*FORMAT_FIELDS, *TOOL_FIELDS, *_READ, *_LENGTHS, *SAMPLED, *_NOT_DONE))
)
