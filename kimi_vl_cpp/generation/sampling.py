"""The checks on a caller's sampling options. The limits of an option that the core enforces are the core's.

A wrong value is a BadRequest that names the parameter, the value and what is allowed. Nothing is clamped silently.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, get_args

from .. import _core
from ..checks import check_choice, check_float, check_int, check_text
from ..errors import BadRequest, shown
from ..scheduler.job import CacheUse
from ..types import SamplingDefaults
from .grammar import GrammarSource

if TYPE_CHECKING:
    from .._core import Sampler

MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024
MAX_NEW_TOKENS = (1 << 31) - 1
MAX_SEED = (1 << 64) - 1
MAX_STOP_IDS = 64
MAX_BIASED = 1024
MAX_TOP_LOGPROBS = 20
MAX_SALT_CHARS = 256
MAX_PRIORITY = 100
OPENAI_PENALTY = (-2.0, 2.0)
FORBIDDING_BIAS = -100.0
"""A bias of this much or less forbids the token."""
DRAWN_SEED_BITS = 53
"""Bits of a seed that is drawn: every reader of JSON keeps such an integer, also one that holds numbers as doubles."""


class SamplingOptions(TypedDict, total=False):
    """What a caller may say about an answer; None is the default of the model's variant. Ranges are in `resolve`."""

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: Mapping[int, float] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    min_tokens: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    thinking_budget: int | None
    thinking_close: str | None
    answer_reserve: int | None
    loop_guard: bool | None
    prompt_only: bool | None
    grammar: GrammarSource | None
    cache_salt: str | None
    cache: CacheUse | None
    priority: int | None
    lora: str | None


OPTIONS = tuple(SamplingOptions.__annotations__)


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one answer are chosen and when it ends; every field checked.

    max_new_tokens: what the caller or the variant asks for, not yet limited by the context; 0, which prompt_only means,
    computes the prompt only. frequency_penalty, presence_penalty: taken from the logits of tokens that the answer has,
    once for each time and once. logit_bias: (token id, what is added to its logit); FORBIDDING_BIAS forbids it.
    stop_token_ids: end the answer beside the model's own. ignore_eos: the model's own do not. min_tokens: before that
    many no token ends it. logprobs, prompt_logprobs: how many alternatives are reported with the log probability of
    each token of the answer and of the prompt; None reports none. thinking_budget: tokens that the reasoning may take,
    0 leaves it out, None is no limit. thinking_close: what ends a reasoning that is cut. answer_reserve: tokens of
    max_new_tokens that are kept for the answer where no budget is given; None keeps none. loop_guard: whether a
    repetition ends the answer. grammar: what the answer has to follow. cache_salt: only requests with the same one
    share what is cached of prompts and pictures. cache: "use" takes the beginning of the prompt from the KV cache and
    leaves there what is computed, "read" only takes, "off" does neither. priority: requests of a higher one are
    computed first. lora: the name of an adapter that the model was opened with.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    max_new_tokens: int
    seed: int
    stop: tuple[str, ...]
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    thinking_budget: int | None = None
    thinking_close: str = ""
    answer_reserve: int | None = None
    loop_guard: bool = False
    grammar: GrammarSource | None = None
    cache_salt: str = ""
    cache: CacheUse = "use"
    priority: int = 0
    lora: str | None = None

    @property
    def adjusts_logits(self) -> bool:
        """Whether the logits are changed before the core's sampler sees them."""
        return bool(self.frequency_penalty or self.presence_penalty or self.logit_bias or self.min_tokens)


def limits(option: str) -> tuple[Any, Any]:
    """The smallest and the largest value of an option that the core enforces, integers for an integer."""
    low, high = _core.SAMPLER_LIMITS[option]
    return low, high


def check_stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """The stop strings as a tuple. None: none."""
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, (list, tuple, set, frozenset)):
        kind = type(stop).__name__
        raise BadRequest(f"stop: got {kind}, expected a string or a list of strings", "request.stop")
    if len(strings) > MAX_STOP_STRINGS:
        raise BadRequest(f"stop: got {len(strings)} strings, expected at most {MAX_STOP_STRINGS}", "request.stop")
    for index, text in enumerate(strings):
        if not isinstance(text, str):
            raise BadRequest(f"stop[{index}]: got {shown(text)}, expected a string", "request.stop")
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise BadRequest(
                f"stop[{index}]: got {len(text)} characters, expected 1 to {MAX_STOP_CHARS}", "request.stop"
            )
    return tuple(strings)


def resolve(defaults: SamplingDefaults, **options: Unpack[SamplingOptions]) -> SamplingParams:
    """The caller's options over the variant's defaults. None: use the variant's default. seed: None or -1 draws one.
    max_new_tokens: -1 is as long as the context allows.

    Raises BadRequest with code "request.<parameter>", "request.unknown_option" for another name.
    """
    for name in options:
        if name not in OPTIONS:
            raise BadRequest(f"{name}: no such option; expected one of {', '.join(OPTIONS)}", "request.unknown_option")
    given = {name: value for name, value in options.items() if value is not None}
    checked: dict[str, Any] = {}
    for name, (low, high) in _core.SAMPLER_LIMITS.items():
        value = given.get(name, getattr(defaults, name))
        checked[name] = (check_int if isinstance(low, int) else check_float)(name, value, low, high)
    longest = check_max_new_tokens("max_new_tokens", given.get("max_new_tokens", defaults.max_new_tokens))
    return SamplingParams(
        **checked,
        max_new_tokens=0 if _check_bool("prompt_only", given.get("prompt_only", False)) else longest,
        seed=check_seed(options.get("seed")),
        stop=check_stop(options.get("stop")),
        **_resolve_extra(given),
    )


def _resolve_extra(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that have no default of the variant, those of them that are given."""
    checks: dict[str, Callable[[Any], Any]] = {
        "frequency_penalty": lambda value: check_float("frequency_penalty", value, *OPENAI_PENALTY),
        "presence_penalty": lambda value: check_float("presence_penalty", value, *OPENAI_PENALTY),
        "logit_bias": check_logit_bias,
        "stop_token_ids": check_stop_token_ids,
        "ignore_eos": lambda value: _check_bool("ignore_eos", value),
        "min_tokens": lambda value: check_int("min_tokens", value, 0, MAX_NEW_TOKENS),
        "logprobs": lambda value: check_int("logprobs", value, 0, MAX_TOP_LOGPROBS),
        "prompt_logprobs": lambda value: check_int("prompt_logprobs", value, 0, MAX_TOP_LOGPROBS),
        "thinking_budget": lambda value: check_int("thinking_budget", value, 0, MAX_NEW_TOKENS),
        "thinking_close": lambda value: check_text("thinking_close", value),
        "answer_reserve": lambda value: check_int("answer_reserve", value, 0, MAX_NEW_TOKENS),
        "loop_guard": lambda value: _check_bool("loop_guard", value),
        "grammar": _check_grammar,
        "cache_salt": _check_salt,
        "cache": lambda value: check_choice("cache", value, get_args(CacheUse)),
        "priority": lambda value: check_int("priority", value, -MAX_PRIORITY, MAX_PRIORITY),
        "lora": lambda value: check_text("lora", value),
    }
    return {name: check(given[name]) for name, check in checks.items() if name in given}


def check_logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    """A mapping of token ids to finite numbers from -100 to 100."""
    if not isinstance(value, Mapping):
        raise BadRequest(f"logit_bias: got {shown(value)}, expected token ids with numbers", "request.logit_bias")
    if len(value) > MAX_BIASED:
        raise BadRequest(f"logit_bias: got {len(value)} token ids, expected at most {MAX_BIASED}", "request.logit_bias")
    try:
        return tuple(
            (
                check_int(f"logit_bias: token id {shown(token)}", token, 0, MAX_NEW_TOKENS),
                check_float(f"logit_bias[{token}]", bias, -100, 100),
            )
            for token, bias in value.items()
        )
    except BadRequest as error:
        raise BadRequest(str(error), "request.logit_bias") from None


def check_stop_token_ids(value: Any) -> frozenset[int]:
    """A list of token ids."""
    if not isinstance(value, (list, tuple, set, frozenset)) or len(value) > MAX_STOP_IDS:
        raise BadRequest(
            f"stop_token_ids: got {shown(value)}, expected a list of at most {MAX_STOP_IDS} token ids",
            "request.stop_token_ids",
        )
    try:
        return frozenset(check_int(f"stop_token_ids[{i}]", token, 0, MAX_NEW_TOKENS) for i, token in enumerate(value))
    except BadRequest as error:
        raise BadRequest(str(error), "request.stop_token_ids") from None


def _check_grammar(value: Any) -> GrammarSource:
    if not isinstance(value, GrammarSource):
        raise BadRequest(f"grammar: got {shown(value)}, expected a GrammarSource", "request.grammar")
    return value


def _check_salt(value: Any) -> str:
    salt = check_text("cache_salt", value)
    if len(salt) > MAX_SALT_CHARS:
        raise BadRequest(
            f"cache_salt: got {len(salt)} characters, expected at most {MAX_SALT_CHARS}", "request.cache_salt"
        )
    return salt


def _check_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"{name}: got {shown(value)}, expected true or false", f"request.{name}")
    return value


def check_max_new_tokens(name: str, value: Any) -> int:
    """How long an answer may become; -1 is as long as the context allows. name: what the caller calls it."""
    if _is_minus_one(value):
        return MAX_NEW_TOKENS
    try:
        return check_int(name, value, 1, MAX_NEW_TOKENS)
    except BadRequest as error:
        raise BadRequest(f"{error}, or -1 for no limit but the context", error.code) from None


def check_seed(value: Any) -> int:
    """A seed from 0 to 2**64-1; None and -1 draw one below 2**53."""
    if value is None or _is_minus_one(value):
        return secrets.randbits(DRAWN_SEED_BITS)
    try:
        return check_int("seed", value, 0, MAX_SEED)
    except BadRequest as error:
        raise BadRequest(f"{error}, or -1 to draw one", error.code) from None


def _is_minus_one(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value == -1


def make_sampler(params: SamplingParams) -> Sampler:
    """The core's sampler for these parameters."""
    return _core.Sampler(
        seed=params.seed,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repeat_penalty=params.repeat_penalty,
        repeat_last_n=params.repeat_last_n,
    )
