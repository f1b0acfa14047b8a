"""`kimi-vl quantize --size`: the types with the least measured error under a budget of bytes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_vl_cpp import KimiVL, errors
from kimi_vl_cpp.quantize import quantize
from kimi_vl_cpp.quantize.budget import Option, parse_size, relative_error, sensitivity, upgrades
from kimi_vl_cpp.testing import ROWS_OF_256, make_tiny_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with rows of 256 and float weights, text and vision in one file."""
    return Path(make_tiny_model(tmp_path_factory.mktemp("tiny"), vision="single", **ROWS_OF_256).text)


def made(source: Path, folder: Path, size: Any, **options: Any) -> Any:
    return quantize(source, folder / f"{size}.gguf", size=size, **options)


def types(report: Any) -> dict[str, str]:
    return {tensor.name: tensor.type for file in report.files for tensor in file.tensors}


def predicted(report: Any) -> float:
    notice = next(text for text in report.notices if "predicted error" in text)
    return float(notice.split("predicted error ")[1].split(";")[0])


@pytest.fixture(scope="module")
def range_of_sizes(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int]:
    """The smallest and the largest output."""
    folder = tmp_path_factory.mktemp("range")
    with pytest.raises(errors.BadRequest) as caught:
        made(source, folder, 1000)
    assert caught.value.code == "quantize.size"
    smallest = int(str(caught.value).split("the output has ")[1].split(" bytes")[0])
    return smallest, made(source, folder, "1GB").n_bytes


def test_the_file_fits_and_a_larger_budget_is_never_worse(
    source: Path, tmp_path: Path, range_of_sizes: tuple[int, int]
) -> None:
    smallest, largest = range_of_sizes
    assert smallest < largest
    reports = []
    for size in np.linspace(smallest, largest, 6).astype(int).tolist():
        report = made(source, tmp_path, size)
        assert report.n_bytes == Path(report.path).stat().st_size <= size
        reports.append(report)
    assert reports[0].n_bytes == smallest
    assert 0 <= largest - reports[-1].n_bytes <= 32  # the budget, which the file names, has fewer digits
    for before, after in pairwise(reports):
        assert predicted(after) <= predicted(before)
        assert after.n_bytes >= before.n_bytes
    with KimiVL(reports[2].path, n_ctx=64) as model:
        assert model.chat("Hello", max_new_tokens=2, temperature=0).usage.completion_tokens > 0


def test_the_same_budget_gives_the_same_file_for_any_number_of_threads(
    source: Path, tmp_path: Path, range_of_sizes: tuple[int, int]
) -> None:
    size = sum(range_of_sizes) // 2
    first = quantize(source, tmp_path / "a.gguf", size=size, n_threads=1)
    second = quantize(source, tmp_path / "b.gguf", size=size, n_threads=3)
    assert Path(first.path).read_bytes() == Path(second.path).read_bytes()


def test_rules_hold_what_they_say(source: Path, tmp_path: Path, range_of_sizes: tuple[int, int]) -> None:
    report = made(source, tmp_path, sum(range_of_sizes) // 2, types=[("blk.*.attn_q", "F16")])
    found = types(report)
    assert {kind for name, kind in found.items() if name.endswith("attn_q.weight")} == {"F16"}


def test_both_files_of_a_split_output_count(source: Path, tmp_path: Path, range_of_sizes: tuple[int, int]) -> None:
    size = sum(range_of_sizes) // 2
    report = made(source, tmp_path, size, split=True)
    assert sum(file.path.stat().st_size for file in report.files) <= size


@pytest.mark.parametrize(
    "spelled, n_bytes",
    [("8.0GB", 8_000_000_000), ("1.5 GiB", 1_610_612_736), ("500mb", 500_000_000), ("12", 12), (7, 7)],
)
def test_sizes_are_spelled_as_people_do(spelled: Any, n_bytes: int) -> None:
    assert parse_size(spelled) == n_bytes


@pytest.mark.parametrize("spelled", ["", "x", "-3GB", "8 TB", "0GB", 0, -5, True, 1.5, None, "9" * 50])
def test_what_is_no_size_is_an_error(spelled: Any) -> None:
    with pytest.raises(errors.BadRequest, match="expected a size such as"):
        parse_size(spelled)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 10, width=32)), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_upgrades_save_ever_less_for_a_byte(points: list[tuple[int, float]]) -> None:
    options = [Option("T", size, error) for size, error in sorted(dict(points).items())]
    steps = upgrades(0, options)
    rates = [step.less_error / step.more_bytes for step in steps]
    assert all(step.more_bytes > 0 and step.less_error > 0 for step in steps)
    assert all(before >= after * (1 - 1e-9) for before, after in pairwise(rates))
    if steps:
        assert steps[-1].to.error == min(option.error for option in options)


def test_errors_are_relative_and_weighted_by_importance() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4, 256)).astype(np.float32)
    matrices = np.array([0, 0, 1, 1])
    coarse, fine = (relative_error(kind, rows, matrices, None) for kind in ("Q2_K", "Q8_0"))
    assert 0 < fine < coarse / 50
    assert relative_error("Q4_K", rows * 8, matrices, None) == pytest.approx(
        relative_error("Q4_K", rows, matrices, None), rel=1e-3
    )
    # Only the first block of columns counts: it alone decides.
    weights = np.zeros((2, 256), np.float32)
    weights[:, :32] = 1
    rows[:, 32:] *= 100
    alone = relative_error("Q8_0", rows, matrices, weights)
    assert alone == pytest.approx(relative_error("Q8_0", rows[:, :32], matrices, None), rel=1e-6)


def test_every_matrix_has_a_sensitivity() -> None:
    assert sensitivity("output.weight") == 2.0
    assert sensitivity("blk.3.ffn_down_exps.weight") < sensitivity("blk.3.attn_output.weight") == 1.0
