"""The page rule and the keys of pages, against a definition of a few lines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_vl_cpp.cache.keys import PAGE_POSITIONS, Picture, Positions, expanded_positions, n_positions, root_key, salted

ROOT = root_key(model=b"m", arithmetic="avx2 int8", kv_type="f16")

pictures = st.builds(Picture, st.sampled_from(["one", "other"]), st.integers(1, 150))
runs = st.tuples(st.integers(0, 3), st.integers(1, 140)).map(lambda run: [run[0]] * run[1])
histories = st.lists(st.one_of(pictures.map(lambda picture: [picture]), runs), max_size=6).map(
    lambda parts: [item for part in parts for item in part]
)


def flags(n: int, answers: list[tuple[int, int]]) -> np.ndarray:
    is_answer = np.zeros(n, dtype=bool)
    for first, length in answers:
        is_answer[first : first + length] = True
    return is_answer


answers = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 200)), max_size=2)


def written_out(items: list, is_answer: np.ndarray) -> list[tuple]:
    """What stands at each position, in words."""
    rows: list[tuple] = []
    for item in items:
        if isinstance(item, Picture):
            rows += [("picture", item.digest, offset) for offset in range(item.n_tokens)]
        else:
            rows.append(("answer" if is_answer[len(rows)] else "prompt", item))
    return rows


def described(items: list, is_answer: np.ndarray) -> list[tuple]:
    """For each whole page everything up to its end, with the forms of its pages: what a key stands for."""
    rows = written_out(items, is_answer)
    pages = [rows[at : at + PAGE_POSITIONS] for at in range(0, len(rows) // PAGE_POSITIONS * PAGE_POSITIONS, 128)]
    found, before = [], ()
    for page in pages:
        before = (*before, *page, all(row[0] != "answer" for row in page))
        found.append(before)
    return found


@given(histories, answers, histories, answers)
def test_two_pages_have_one_key_exactly_when_everything_up_to_their_end_is_the_same(one, of_one, other, of_other):
    keys, descriptions = [], []
    for items, answered in ((one, of_one), (other, of_other), (one + other, of_one)):
        is_answer = flags(n_positions(items), answered)
        positions = Positions(ROOT, items, is_answer)
        keys += [positions.key(index) for index in range(positions.n_whole_pages)]
        descriptions += described(items, is_answer)
    for key, description in zip(keys, descriptions, strict=True):
        assert [other == key for other in keys] == [other == description for other in descriptions]


@given(histories, answers, st.lists(st.integers(0, 3), max_size=200))
def test_a_sequence_that_grew_has_the_keys_and_forms_of_one_given_whole(items, answered, tokens):
    is_answer = flags(n_positions(items), answered)
    grown = Positions(ROOT, items, is_answer)
    for index in range(grown.n_whole_pages):
        grown.key(index)
    for token in tokens:
        grown.append(token)
    whole = Positions(ROOT, items + tokens, np.concatenate([is_answer, np.ones(len(tokens), bool)]))
    assert np.array_equal(grown.expanded(), whole.expanded())
    n = whole.n_whole_pages
    assert [grown.key(index) for index in range(n)] == [whole.key(index) for index in range(n)]


@given(histories, histories, answers, st.integers(1, PAGE_POSITIONS))
def test_pages_agree_as_far_as_positions_and_forms_are_the_same(one, other, answered, n):
    contents, rows = [], []
    for items in (one + other, one):
        is_answer = flags(n_positions(items), answered)
        contents.append(Positions(ROOT, items, is_answer).content(0, n))
        rows.append(written_out(items, is_answer)[: min(n, PAGE_POSITIONS)])
    expected = 0
    if contents[0].expanded == contents[1].expanded:
        while expected < min(map(len, rows)) and rows[0][expected] == rows[1][expected]:
            expected += 1
    assert contents[0].agreement(contents[1]) == contents[1].agreement(contents[0]) == expected


@given(histories, answers, st.integers(0, 600), st.integers(0, 600))
def test_parts_are_the_rows_between_any_two_positions(items, answered, first, n):
    is_answer = flags(n_positions(items), answered)
    first = min(first, len(is_answer))
    end = min(first + n, len(is_answer))
    positions = Positions(ROOT, items, is_answer)

    def embeddings(picture: Picture) -> np.ndarray:
        return np.array([[hash(picture.digest) % 1000, offset] for offset in range(picture.n_tokens)], np.float32)

    found = []
    for part in positions.parts(first, end, embeddings):
        assert len(part)
        found += part.tolist()
    expected = [
        [hash(row[1]) % 1000, row[2]] if row[0] == "picture" else row[1]
        for row in written_out(items, is_answer)[first:end]
    ]
    assert found == expected
    digests = [row[1] for row in written_out(items, is_answer)[first:] if row[0] == "picture"]
    assert {picture.digest for picture in positions.pictures_in(first, len(positions))} == set(digests)


@given(st.lists(st.booleans(), max_size=700))
def test_the_page_rule_is_its_definition(is_answer):
    expected = [False] * len(is_answer)
    for page in range(len(is_answer) // 128):
        rows = slice(128 * page, 128 * page + 128)
        expected[rows] = [not any(is_answer[rows])] * 128
    assert expanded_positions(np.array(is_answer, bool)).tolist() == expected


@given(st.integers(1, 600), st.integers(1, 300))
def test_an_answer_changes_the_form_of_no_position_before_it(n_prompt, n_answer):
    positions = Positions(ROOT, [1] * n_prompt)
    before = positions.expanded()
    for _ in range(n_answer):
        positions.append(2)
    after = positions.expanded()
    assert np.array_equal(before, after[:n_prompt]) and not after[n_prompt:].any()


@pytest.mark.parametrize(
    "other",
    [
        {"model": b"n"},
        {"arithmetic": "avx2 float"},
        {"kv_type": "q8_0"},
        {"model": b"ma", "arithmetic": "vx2 int8"},  # fields are not run together
    ],
)
def test_another_model_arithmetic_or_type_is_another_root(other):
    fields = {"model": b"m", "arithmetic": "avx2 int8", "kv_type": "f16"}
    assert root_key(**{**fields, **other}) != ROOT
    items = [1] * 128
    assert Positions(root_key(**{**fields, **other}), items).key(0) != Positions(ROOT, items).key(0)


def test_another_salt_is_another_root_and_none_is_the_root_itself():
    assert salted(ROOT, "") == ROOT
    assert len({ROOT, salted(ROOT, "a"), salted(ROOT, "b"), salted(salted(ROOT, "a"), "b")}) == 4


def test_keys_are_the_same_in_every_process():
    """A key names files that other processes read: it may change only together with its format."""
    positions = Positions(ROOT, [*range(100), Picture("digest", 28)])
    assert positions.key(0).hex() == "8043222a322bc1094533b6c89ca968ddf0b6a8f665de35f548589d041422d243"
