"""Checks of a caller's arguments: a wrong value is a BadRequest that names the argument, the value and what is allowed.
Nothing is clamped silently."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from types import TracebackType
from typing import Any, NoReturn, Self

from .errors import BadRequest, KimiVLError, shown


@contextmanager
def about_argument(name: str) -> Iterator[None]:
    """Errors raised inside have this argument as their `param`, unless they have one already."""
    try:
        yield
    except KimiVLError as error:
        error.param = error.param or name
        raise


def check_float(name: str, value: Any, low: float, high: float, *, above: bool = False) -> float:
    """A finite number with low <= value <= high (low < value when `above`), else BadRequest."""
    allowed = f"a number {'above' if above else 'from'} {low:g} {'up ' if above else ''}to {high:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise BadRequest(f"{name}: got {shown(value)} ({type(value).__name__}), expected {allowed}", f"request.{name}")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number) or number < low or number > high or (above and number == low):
        raise BadRequest(f"{name}: got {shown(value)}, expected {allowed}", f"request.{name}")
    return number


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """An integer with low <= value <= high, else BadRequest. bool is not an integer here."""
    allowed = f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise BadRequest(f"{name}: got {shown(value)} ({type(value).__name__}), expected {allowed}", f"request.{name}")
    number = int(value)
    if not low <= number <= high:
        raise BadRequest(f"{name}: got {shown(value)}, expected {allowed}", f"request.{name}")
    return number


def expand_home(path: str) -> str:
    """`path` with a leading ~ or ~user replaced by that home folder, where no shell has done so."""
    return os.path.expanduser(path) if path.startswith("~") else path


def check_text(name: str, value: Any) -> str:
    """`value` if it is a str, else BadRequest."""
    if not isinstance(value, str):
        raise BadRequest(f"{name}: got {shown(value)} ({type(value).__name__}), expected a string", f"request.{name}")
    return value


def check_choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """`value` if it is one of the allowed strings, else BadRequest."""
    if not isinstance(value, str) or value not in allowed:
        raise BadRequest(f"{name}: got {shown(value)}, expected one of {', '.join(allowed)}", f"request.{name}")
    return value


class NotPicklable:
    """Base of objects that hold memory and threads of this process: pickling or copying one is a BadRequest (code
    "request.not_picklable") that says what to do instead."""

    _instead: str

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise BadRequest(
            f"{type(self).__name__}: it cannot be pickled or copied: {self._instead}", "request.not_picklable"
        )


class Closeable(NotPicklable, ABC):
    """Of those objects, the ones that give all of it back with `close()`, and at the end of a `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Gives back what is held. Calling it again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
