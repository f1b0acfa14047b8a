"""The values of a request's fields, read with JSON's types: a wrong one is a BadRequest that carries the field's place
as its `param`, and shows the value as JSON writes it.

null means that a field is not given; callers test for it first. A float with a whole value counts as an integer;
strings never count as numbers, booleans never as either.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, TypeVar

from ..checks import check_float, check_int
from ..errors import BadRequest, KimiVLError, Unsupported
from ..errors import shown as shown_in_python

_T = TypeVar("_T")


class _JsonRepr(reprlib.Repr):
    """Values as JSON writes them, shortened."""

    def repr_bool(self, value: bool, level: int) -> str:
        return "true" if value else "false"

    def repr_NoneType(self, value: None, level: int) -> str:
        return "null"

    def repr_str(self, value: str, level: int) -> str:
        written = json.dumps(value[: self.maxstring], ensure_ascii=False)
        if len(written) <= self.maxstring and len(value) <= self.maxstring:
            return written
        half = (self.maxstring - 3) // 2
        end = json.dumps(value[-half:], ensure_ascii=False)
        return f"{written[:half]}...{end[-half:]}"

    def repr_tuple(self, value: tuple[Any, ...], level: int) -> str:
        return self.repr_list(list(value), level)


_json = _JsonRepr()
_json.maxstring = _json.maxother = _json.maxlong = 60


def shown(value: object) -> str:
    """A field's value for a message: as JSON writes it, short whatever it is, and never an error itself."""
    try:
        return _json.repr(value)
    except Exception:  # an integer of too many digits, a broken __repr__
        return shown_in_python(value)


def bad(where: str, problem: str, code: str = "") -> BadRequest:
    """The error of a field. code: "request.<field>" by default, of the outermost field."""
    error = BadRequest(f"{where}: {problem}", code or f"request.{_outermost(where)}")
    error.param = where
    return error


def unsupported(where: str, problem: str, code: str = "") -> Unsupported:
    """The error of a field that asks for something that is not done here."""
    error = Unsupported(f"{where}: {problem}", code or f"unsupported.{_outermost(where)}")
    error.param = where
    return error


def _outermost(where: str) -> str:
    return where.split(".")[0].split("[")[0]


@contextmanager
def about(where: str) -> Iterator[None]:
    """Errors raised inside are about this field, and name it, unless they say themselves what they are about."""
    try:
        yield
    except KimiVLError as error:
        if error.code == f"request.{where}":  # the library's, which takes the place for an argument
            error.code = f"request.{_outermost(where)}"
        if error.param is None:
            error.param = where
            if not str(error).startswith(where):
                error.args = (f"{where}: {error}",)
        raise


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def read_integer(where: str, value: Any, check: Callable[[str, Any], _T], expected: str) -> _T:
    """`read` of what must be an integer; expected: says which."""
    if not _is_integer(whole(value)):
        raise bad(where, f"got {shown(value)}, expected {expected}")
    return read(where, value, check)


def read(where: str, value: Any, check: Callable[[str, Any], _T]) -> _T:
    """`check(name, value)` of the library, its error placed."""
    with about(where):
        return check(where, whole(value))


def whole(value: Any) -> Any:
    """A float with a whole value as an integer, everything else as it is."""
    return int(value) if isinstance(value, float) and math.isfinite(value) and value.is_integer() else value


def integer(where: str, value: Any, low: int, high: int) -> int:
    """An integer from low to high."""
    value = whole(value)
    if not _is_integer(value):
        raise bad(where, f"got {shown(value)}, expected an integer from {low} to {high}")
    with about(where):
        return check_int(where, value, low, high)


def number(where: str, value: Any, low: float, high: float) -> float:
    """A finite number from low to high."""
    if not _is_number(value):
        raise bad(where, f"got {shown(value)}, expected a number from {low:g} to {high:g}")
    with about(where):
        return check_float(where, value, low, high)


def boolean(where: str, value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise bad(where, f"got {shown(value)}, expected true or false")
    return value


def string(where: str, value: Any, longest: int | None = None) -> str:
    """A string of at most `longest` characters."""
    if not isinstance(value, str):
        raise bad(where, f"got {shown(value)}, expected a string")
    if longest is not None and len(value) > longest:
        raise bad(where, f"got {len(value)} characters, expected at most {longest}")
    return value


def mapping(where: str, value: Any) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(value, Mapping):
        raise bad(where, f"got {shown(value)}, expected an object")
    return value
