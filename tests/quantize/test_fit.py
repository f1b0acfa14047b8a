"""Which file suits a machine: sizes as they are written, memory as it was measured, and the choice with its reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kimi_vl_cpp import builtin
from kimi_vl_cpp._core import GGUFFile
from kimi_vl_cpp.bench.work import TextCost
from kimi_vl_cpp.cli import app
from kimi_vl_cpp.cli import fit as cli_fit
from kimi_vl_cpp.files.hub import Choice
from kimi_vl_cpp.generation.raw import RawCore
from kimi_vl_cpp.quantize import fit, quantize
from kimi_vl_cpp.testing import make_tiny_model
from kimi_vl_cpp.testing.shapes import ROWS_OF_256

# docs/performance.md: both files of Q4_K_M with an F16 vision file take 0.57 GB beside their own bytes with a context
# of 8192 tokens, after a picture of 4096 patches.
MEASURED_BESIDE_FILES = 570_000_000


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M", "Q2_K"])
def test_sizes_are_those_of_the_files_that_quantize_writes(tmp_path: Path, kind: str) -> None:
    source = make_tiny_model(tmp_path / "tiny.gguf", text_type="F16", **ROWS_OF_256, num_hidden_layers=2).text
    shape, types = fit.shape_of(source)
    assert fit.file_bytes(shape, types) == sum(path.stat().st_size for path in tmp_path.glob("*.gguf"))
    made = quantize(source, tmp_path / "out.gguf", kind)
    assert fit.file_bytes(shape, fit.types_of(shape, kind)) == pytest.approx(made.n_bytes, rel=0.03)


def test_the_built_in_file_has_its_size_and_traffic() -> None:
    path = builtin.model_path()
    shape, types = fit.shape_of(Path(path))
    assert fit.file_bytes(shape, types) == Path(path).stat().st_size
    core = RawCore.open(Path(path), None, n_threads=1, isa="auto", kv_type="f16")
    try:
        cost = TextCost(core.engine.config, GGUFFile(str(path)).tensors, shape.kv_bytes_per_token)
    finally:
        core.close()
    assert fit.bytes_per_token(shape, types) == pytest.approx(cost.bytes_per_token, rel=0.01)


@pytest.mark.parametrize(("kind", "gigabytes"), [("BF16", 32.83), ("Q8_0", 17.87), ("Q4_K_M", 11.44), ("Q2_K", 7.48)])
def test_full_size_files_and_memory_are_as_measured(kind: str, gigabytes: float) -> None:
    shape = fit.full_size()
    size = fit.file_bytes(shape, fit.types_of(shape, kind))
    assert size == pytest.approx(gigabytes * 1e9, rel=0.001)
    assert fit.memory_bytes(shape, size, 8192) == pytest.approx(size + MEASURED_BESIDE_FILES, rel=0.03)


@pytest.mark.parametrize(
    ("available", "bandwidth", "kind", "reason"),
    [
        (64e9, 40.0, "Q8_0", "best type that fits and answers"),
        (20e9, 15.0, "Q4_K_M", "no better type is known to reach"),
        (9e9, 5.0, "Q2_K", "the best type that fits"),
        (9e9, 50.0, "Q2_K", "the best type that fits and answers"),
        (4e9, 200.0, None, "no type fits with 8192 tokens"),
        (16e9, None, "Q4_K_M", "no better type"),
    ],
)
def test_the_choice_follows_memory_and_bandwidth(
    available: float, bandwidth: float | None, kind: str | None, reason: str
) -> None:
    found = fit.fit(fit.full_size(), 8192, int(available), bandwidth)
    assert (found.chosen.type if found.chosen else None) == kind and reason in found.reason
    for one in found.options:
        assert one.fits == (one.memory_bytes <= available) == (one.n_ctx_max >= 8192)


def test_where_nothing_fits_it_is_said_what_would() -> None:
    assert fit.fit(fit.full_size(), 8192, 3 * 10**9, None).reason.endswith(
        "even Q2_K needs 8.21 GB of memory; less context would not be enough"
    )
    found = fit.fit(fit.full_size(), 100_000, 9 * 10**9, None)
    assert found.reason.endswith(f"Q2_K fits with {found.options[-1].n_ctx_max:,} or fewer; or free memory")


def test_of_a_repository_the_file_is_taken_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Choice(kind, {f"{kind}.gguf": n}, {}) for n, kind in enumerate(("Q2_K", "Q4_K_M", "Q8_0"))]
    monkeypatch.setattr(cli_fit, "_bandwidth", lambda: 100.0)
    for available, kind in ((64e9, "Q8_0"), (14e9, "Q4_K_M"), (3e9, "Q2_K")):
        monkeypatch.setattr(cli_fit, "_available", lambda n=available: int(n))
        assert cli_fit.choose(found).type == kind
    assert cli_fit.choose([Choice("", {"a.gguf": 1}, {})]).type == ""


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["fit", "--memory", "16GB", "--bandwidth", "60", "-c", "32768"]
    assert app.main(plan) == 0
    text = capsys.readouterr().out
    assert "Q6_K" in text and "does not fit" in text and text.count("<-") == 1
    assert app.main([*plan, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"]["type"] in text and len(found["options"]) == len(fit.TYPES)
    assert app.main(["fit", "nowhere.gguf"]) == 3 and app.main(["fit", "--bandwidth", "0"]) == 2


def test_work_memory_is_the_largest_of_what_is_in_use_together() -> None:
    """tests/fit_campaign.py compares the whole with the resident memory of processes."""
    shape, _ = fit.shape_of(Path(builtin.model_path()))
    at = {n: fit.work_bytes(shape, n) for n in (8, 512, 1024, 2048, 4096)}
    assert at[8] < at[512] < at[1024] < at[2048] == at[4096], "no more rows than a chunk has"
    blind = replace(shape, vision_width=0)
    assert 0 < fit.work_bytes(blind, 512) < at[512]
    assert fit.work_bytes(replace(shape, n_patches=2 * shape.n_patches), 8) > 1.5 * at[8], "the picture is the larger"
