"""Argument checks: whatever the value, the answer is the value itself or a BadRequest that names the argument."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_vl_cpp.checks import check_float, check_int, check_text
from kimi_vl_cpp.errors import BadRequest


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers()),
    st.integers(min_value=4300, max_value=6000).map(lambda n: 10**n),  # more digits than Python converts to text
    st.just(Unprintable()),
)  # fmt: skip


@given(ANYTHING)
def test_check_int_returns_an_integer_in_range_or_names_the_argument(value: Any) -> None:
    try:
        assert check_int("count", value, -3, 1000) == value and -3 <= value <= 1000
    except BadRequest as error:
        assert str(error).startswith("count: got ") and error.code == "request.count" and len(str(error)) < 300


@given(ANYTHING)
def test_check_float_returns_a_number_in_range_or_names_the_argument(value: Any) -> None:
    try:
        assert check_float("share", value, 0.0, 1.0) == value and 0 <= value <= 1
    except BadRequest as error:
        assert str(error).startswith("share: got ") and error.code == "request.share" and len(str(error)) < 300


@given(ANYTHING)
def test_check_text_returns_the_text_or_names_the_argument(value: Any) -> None:
    if isinstance(value, str):
        assert check_text("name", value) is value
    else:
        with pytest.raises(BadRequest, match=r"^name: got "):
            check_text("name", value)


def test_true_is_not_an_integer_and_not_a_number() -> None:
    for check in (check_int, check_float):
        with pytest.raises(BadRequest):
            check("count", True, 0, 10)
