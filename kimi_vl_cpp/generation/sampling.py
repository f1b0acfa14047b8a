"""The checks on a caller's sampling options. The limits of an option that the core enforces are the core's.

A wrong value is a BadRequest that names the parameter, the value and what is allowed. Nothing is clamped silently.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from .. import _core
from ..checks import check_float, check_int
from ..errors import BadRequest, shown
from ..types import SamplingDefaults

if TYPE_CHECKING:
    from .._core import Sampler

MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024
MAX_NEW_TOKENS = (1 << 31) - 1
MAX_SEED = (1 << 64) - 1
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


OPTIONS = tuple(SamplingOptions.__annotations__)


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
    return SamplingParams(
        **checked,
        max_new_tokens=check_max_new_tokens("max_new_tokens", given.get("max_new_tokens", defaults.max_new_tokens)),
        seed=check_seed(options.get("seed")),
        stop=check_stop(options.get("stop")),
    )


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
