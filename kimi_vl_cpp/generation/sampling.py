"""The checks on what a caller says about sampling, and the limits they are checked against.

A wrong value is a BadRequest that names the parameter, the value and what is allowed. Nothing is clamped silently.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checks import check_float, check_int
from ..errors import BadRequest, shown
from ..types import SamplingDefaults

if TYPE_CHECKING:
    from .._core import Sampler

OPTIONS = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "repeat_last_n",
    "seed",
    "stop",
)
MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024
MAX_TEMPERATURE = 100.0
MAX_TOP_K = 1 << 30
MAX_NEW_TOKENS = (1 << 31) - 1
MAX_SEED = (1 << 64) - 1
MAX_REPEAT_LAST_N = 1 << 20


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one answer are chosen and when it ends; every field checked.

    max_new_tokens is what the caller or the variant asks for, not yet limited by the context.
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


def resolve(
    defaults: SamplingDefaults,
    *,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repeat_penalty: float | None = None,
    repeat_last_n: int | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
) -> SamplingParams:
    """What the caller said, over the variant's defaults; None means not said. A seed not said is drawn at random.

    Raises BadRequest with code "request.<parameter>".
    """

    def said(value: Any, default: Any) -> Any:
        return default if value is None else value

    return SamplingParams(
        temperature=check_float("temperature", said(temperature, defaults.temperature), 0.0, MAX_TEMPERATURE),
        top_k=check_int("top_k", said(top_k, defaults.top_k), 0, MAX_TOP_K),
        top_p=check_float("top_p", said(top_p, defaults.top_p), 0.0, 1.0, above=True),
        min_p=check_float("min_p", said(min_p, defaults.min_p), 0.0, 1.0),
        repeat_penalty=check_float(
            "repeat_penalty", said(repeat_penalty, defaults.repeat_penalty), 0.0, 10.0, above=True
        ),
        repeat_last_n=check_int("repeat_last_n", said(repeat_last_n, defaults.repeat_last_n), 0, MAX_REPEAT_LAST_N),
        max_new_tokens=check_int("max_new_tokens", said(max_new_tokens, defaults.max_new_tokens), 1, MAX_NEW_TOKENS),
        seed=secrets.randbits(63) if seed is None else check_int("seed", seed, 0, MAX_SEED),
        stop=check_stop(stop),
    )


def known(options: dict[str, Any]) -> dict[str, Any]:
    """`options` as they are if all of them are sampling options, else BadRequest that names the wrong one."""
    for name in options:
        if name not in OPTIONS:
            raise BadRequest(f"{name}: no such option; expected one of {', '.join(OPTIONS)}", "request.unknown_option")
    return options


def make_sampler(params: SamplingParams) -> Sampler:
    """The core's sampler for these parameters."""
    from .._core import Sampler

    return Sampler(
        seed=params.seed,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repeat_penalty=params.repeat_penalty,
        repeat_last_n=params.repeat_last_n,
    )
