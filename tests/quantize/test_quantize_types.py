"""Which tensor gets which type: the mixes that every tool knows by these names, recipes and rules.

The totals are what llama-quantize (of llama_cpp_python 0.3.36) told with --dry-run for files of the full-size model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoint_files import TinyCheckpoint, write_checkpoint
from numpy.typing import NDArray

from kimi_vl_cpp import KimiVL
from kimi_vl_cpp._core import GGUFFile
from kimi_vl_cpp.errors import BadModelFile, BadRequest
from kimi_vl_cpp.files.input_file import InputFile
from kimi_vl_cpp.quantize import MIXES, RECIPES, Recipe, quantize
from kimi_vl_cpp.quantize.blocks import encode, n_bytes
from kimi_vl_cpp.quantize.fit import FULL_TEXT, FULL_VISION
from kimi_vl_cpp.quantize.recipe import Chooser, named_recipe, read_recipe
from kimi_vl_cpp.quantize.source.tensor_map import text_targets, vision_targets
from kimi_vl_cpp.testing import ROWS_OF_256
from kimi_vl_cpp.testing.layout import text_tensors

# Bytes of all text tensors: without and with an importance matrix where that makes a difference.
TOTALS = {
    "F16": (31927292416, 31927292416),
    "BF16": (31927292416, 31927292416),
    "Q8_0": (16968004096, 16968004096),
    "Q6_K": (14272462336, 14272462336),
    "Q5_K_M": (12034830848, 12034830848),
    "Q5_K_S": (11330515456, 11330515456),
    "Q5_0": (11028853248, 11054084608),
    "Q4_K_M": (10533810688, 10533810688),
    "Q4_K_S": (9706942976, 9706942976),
    "Q4_0": (9076224512, 9101455872),
    "IQ4_NL": (9149755904, 9076224512),
    "IQ4_XS": (8813511168, 8738898432),
    "Q3_K_L": (8616068608, 8616068608),
    "Q3_K_M": (8283276800, 8283276800),
    "Q3_K_S": (7642588672, 7642588672),
    "Q2_K": (6575352320, 6575352320),
}
# The same with the older attn_kv_b in place of attn_k_b and attn_v_b.
LEGACY_TOTALS = {
    "Q8_0": (16968004096, 16968004096),
    "Q6_K": (14265605632, 14265605632),
    "Q5_K_M": (12036682240, 12036682240),
    "Q5_K_S": (11328745984, 11328745984),
    "Q4_K_M": (10537300480, 10537300480),
    "Q4_K_S": (9704452608, 9704452608),
    "Q4_0": (9076224512, 9101455872),
    "IQ4_NL": (9149755904, 9076224512),
    "IQ4_XS": (8812626432, 8738013696),
    "Q3_K_L": (8626906624, 8626906624),
    "Q3_K_M": (8287561216, 8287561216),
    "Q3_K_S": (7638828544, 7638828544),
    "Q2_K": (6574467584, 6574467584),
}


def shapes(targets: Any) -> dict[str, tuple[int, ...]]:
    return {mapped.target.name: mapped.target.shape for mapped in targets}


def legacy(found: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes with attn_kv_b."""
    kept = {name: shape for name, shape in found.items() if "attn_k_b" not in name and "attn_v_b" not in name}
    return kept | {f"blk.{i}.attn_kv_b.weight": (16 * 256, 512) for i in range(27)}


def types_of(mix: str, found: dict[str, tuple[int, ...]], has_imatrix: bool = False) -> dict[str, str]:
    chooser = Chooser(named_recipe(mix), "F16", 27, True, has_imatrix)
    return {name: chooser.type_of(name, shape, name.startswith(("v.", "mm."))) for name, shape in found.items()}


def total(found: dict[str, tuple[int, ...]], types: dict[str, str]) -> int:
    return sum(n_bytes(types[name], prod(shape)) for name, shape in found.items())


FULL = shapes(text_targets(FULL_TEXT))


def test_every_mix_is_held_to_a_total() -> None:
    assert TOTALS.keys() == MIXES.keys() - {"F32"}


@pytest.mark.parametrize("mix", TOTALS)
def test_mixes_of_the_full_model_have_the_size_that_their_name_has_elsewhere(mix: str) -> None:
    assert len(FULL) == 430
    for has_imatrix, want in zip((False, True), TOTALS[mix], strict=True):
        assert total(FULL, types_of(mix, FULL, has_imatrix)) == want


@pytest.mark.parametrize("mix", LEGACY_TOTALS)
def test_mixes_of_files_with_attn_kv_b_have_their_known_size(mix: str) -> None:
    old = legacy(FULL)
    for has_imatrix, want in zip((False, True), LEGACY_TOTALS[mix], strict=True):
        assert total(old, types_of(mix, old, has_imatrix)) == want


MORE = {0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26}


@pytest.mark.parametrize(
    ("mix", "want"),
    [
        # token_embd, attn_q, attn_k_b, attn_output, ffn_gate_exps, ffn_down_exps and ffn_down_shexp in layers 1 and 4
        ("Q2_K", "Q2_K Q2_K Q4_0 Q3_K Q2_K Q4_0 Q4_0 Q3_K Q3_K"),
        ("Q3_K_M", "Q3_K Q3_K Q4_0 Q4_K Q3_K Q5_0 Q5_0 Q4_K Q4_K"),
        ("IQ4_XS", "IQ4_XS IQ4_XS IQ4_NL IQ4_XS IQ4_XS Q5_1 IQ4_NL Q5_K IQ4_XS"),
        ("Q4_K_S", "Q4_K Q4_K Q5_0 Q4_K Q4_K Q5_1 Q5_0 Q5_K Q4_K"),
        ("Q4_K_M", "Q4_K Q4_K Q5_0 Q4_K Q4_K Q8_0 Q5_0 Q6_K Q4_K"),
        ("Q5_K_M", "Q5_K Q5_K Q5_1 Q5_K Q5_K Q8_0 Q5_1 Q6_K Q5_K"),
        ("Q6_K", "Q6_K Q6_K Q8_0 Q6_K Q6_K Q8_0 Q8_0 Q6_K Q6_K"),
        ("Q8_0", "Q8_0 Q8_0 Q8_0 Q8_0 Q8_0 Q8_0 Q8_0 Q8_0 Q8_0"),
    ],
)
def test_single_tensors_have_the_type_of_the_table(mix: str, want: str) -> None:
    names = ["token_embd", "blk.3.attn_q", "blk.3.attn_k_b", "blk.3.attn_output", "blk.3.ffn_gate_exps"]
    names += [f"blk.{i}.ffn_down_{part}" for part in ("exps", "shexp") for i in (1, 4)]
    types = types_of(mix, FULL)
    assert " ".join(types[f"{name}.weight"] for name in names) == want
    assert types["output.weight"] == ("Q8_0" if mix == "Q8_0" else "Q6_K")
    fixed = [name for name in FULL if "norm" in name or "ffn_gate_inp" in name or "exp_probs_b" in name]
    assert len(fixed) == 134 and {types[name] for name in fixed} == {"F32"}


def test_layers_with_more_bits_are_the_first_the_last_and_every_third() -> None:
    types = types_of("Q4_K_M", FULL)
    assert {i for i in range(1, 27) if types[f"blk.{i}.ffn_down_exps.weight"] == "Q8_0"} == MORE - {0}


@pytest.mark.parametrize(
    ("vision", "want", "down"), [("Q8_0", 618072896, "F16"), ("F16", 905345984, "F16"), ("BF16", 906700736, "BF16")]
)
def test_vision_types_of_the_full_model_have_the_size_of_the_published_file(vision: str, want: int, down: str) -> None:
    """Q8_0 is the published mmproj file to the byte; rows of 4304 are 134.5 blocks of 32 and stay F16."""
    found = shapes(vision_targets(FULL_VISION, 2048))
    chooser = Chooser(named_recipe("Q4_K_M"), vision, 27, True)
    types = {name: chooser.type_of(name, shape, True) for name, shape in found.items()}
    assert len(found) == 443 and types["v.blk.9.ffn_down.weight"] == down
    assert types["v.patch_embd.weight"] == ("F16" if vision == "F16" else "F32")
    assert total(found, types) == want


def test_shared_embedding_matrix_is_treated_as_the_output_matrix() -> None:
    chooser = Chooser(named_recipe("Q4_K_M"), "F16", 27, has_output=False)
    assert chooser.type_of("token_embd.weight", (163840, 2048), False) == "Q6_K"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """Rows as those of the real model: of 256 but for attn_k_b, and experts' rows of one and a half superblocks."""
    return write_checkpoint(
        tmp_path_factory.mktemp("wide") / "Kimi-VL-Instruct", **{**ROWS_OF_256, "moe_intermediate_size": 384}
    )


@pytest.mark.parametrize("mix", [*MIXES, *RECIPES])
def test_files_of_every_type_answer(wide: TinyCheckpoint, tmp_path: Path, mix: str) -> None:
    report = quantize(wide.folder, tmp_path / "out.gguf", mix)
    stored = GGUFFile(str(report.path))
    assert {t.name: t.type for t in report.files[0].tensors} == {t.name: t.type for t in stored.tensors}
    base = RECIPES[mix].base if mix in RECIPES else mix
    assert stored.get("general.file_type") == MIXES[base].file_type
    with KimiVL(report.path) as model:
        ids = np.arange(8, dtype=np.int32)
        assert np.isfinite(model.logits([ids])).all()
        assert np.isfinite(model.encode_image(np.zeros((28, 28, 3), np.uint8))).all()


@pytest.mark.parametrize("mix", ["Q8_0", "Q4_0"])
def test_simple_types_are_byte_for_byte_those_of_the_gguf_package(
    wide: TinyCheckpoint, tmp_path: Path, mix: str
) -> None:
    floats = GGUFFile(str(quantize(wide.folder, tmp_path / "f32.gguf", "F32").path))
    report = quantize(wide.folder, tmp_path / "out.gguf", mix, vision=mix)
    got = GGUFFile(str(report.path))
    kind = gguf.GGMLQuantizationType[mix]
    checked = [tensor for tensor in got.tensors if tensor.type == mix]
    assert len(checked) > 30
    for tensor in checked:
        want = gguf.quants.quantize(floats.tensor_f32(tensor.name), kind)
        assert np.array_equal(got.tensor_raw(tensor.name), want.reshape(-1).view(np.uint8)), tensor.name


def test_rows_that_are_no_blocks_take_the_next_type(tmp_path: Path) -> None:
    shape = {"moe_intermediate_size": 40, "vision_intermediate_size": 56, "hidden_size": 96}
    made = write_checkpoint(tmp_path / "in", **shape)
    report = quantize(made.folder, tmp_path / "out.gguf", "Q4_K_M", vision="Q8_0")
    types = {t.name: t.type for t in report.files[0].tensors}
    assert types["blk.1.ffn_down_exps.weight"] == "F16"  # rows of 40
    assert types["blk.1.ffn_up_exps.weight"] == "Q5_0"  # rows of 96
    assert types["blk.0.attn_k_b.weight"] == "F16"  # rows of 16
    assert types["output.weight"] == "Q8_0"
    assert types["v.blk.0.ffn_down.weight"] == "F16"  # rows of 56, as 4304 in the real model
    assert types["v.blk.0.ffn_up.weight"] == "Q8_0"


def test_rules_choose_by_pattern_and_the_last_wins(wide: TinyCheckpoint, tmp_path: Path) -> None:
    rules = [("blk.*.attn_q", "Q8_0"), ("blk.2.attn_q.weight", "q6_k"), ("v.blk.*.attn_?", "BF16")]
    report = quantize(wide.folder, tmp_path / "out.gguf", "Q4_0", types=rules)
    types = {t.name: t.type for t in report.files[0].tensors}
    assert [types[f"blk.{i}.attn_q.weight"] for i in range(3)] == ["Q8_0", "Q8_0", "Q6_K"]
    assert types["v.blk.1.attn_k.weight"] == "BF16" and types["v.blk.1.attn_out.weight"] == "F16"
    assert types["blk.0.attn_output.weight"] == "Q4_0" and types["v.blk.0.attn_q.bias"] == "F32"


def test_a_rule_that_rows_do_not_allow_falls_back_and_says_so(wide: TinyCheckpoint, tmp_path: Path) -> None:
    report = quantize(wide.folder, tmp_path / "out.gguf", "Q8_0", types={"blk.*.ffn_down_exps": "Q5_K"})
    assert report.files[0].tensors[-1].type == "F32"
    assert {t.type for t in report.files[0].tensors if "down_exps" in t.name} == {"Q5_1"}
    told = [notice for notice in report.notices if "rows of 384 are not whole blocks of Q5_K: Q5_1" in notice]
    assert len(told) == 2


@pytest.mark.parametrize(
    ("rules", "code", "words"),
    [
        ({"blk.*.atn_q": "Q8_0"}, "quantize.pattern", "did you mean blk.\\*.attn_q"),
        ({"": "Q8_0"}, "quantize.pattern", "fits no tensor"),
        ({"blk.*.attn_norm": "Q8_0"}, "quantize.pattern", "stay F32"),
        ({"blk.*.ffn_gate_inp": "Q8_0"}, "quantize.pattern", "stay F32"),
        ({"token_embd": "Q9_0"}, "quantize.type", "Q9_0"),
        ({"token_embd": "Q4_K_M"}, "quantize.type", "Q4_K_M"),
        ({"token_embd": 8}, "quantize.type", "8"),
        ({7: "Q8_0"}, "quantize.type", "not a pair"),
        (["token_embd"], "quantize.type", "not a pair"),
        ([("token_embd",)], "quantize.type", "not a pair"),
    ],
)
def test_rules_without_an_effect_are_refused(
    wide: TinyCheckpoint, tmp_path: Path, rules: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(BadRequest, match=words) as caught:
        quantize(wide.folder, tmp_path / "out.gguf", "Q8_0", types=rules)
    assert caught.value.code == code and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["Q4_K", "q4-k-m", "", "IQ2_XXS", None, 4])
def test_unknown_types_are_refused(wide: TinyCheckpoint, tmp_path: Path, name: Any) -> None:
    with pytest.raises(BadRequest, match="expected one of F32, F16") as caught:
        quantize(wide.folder, tmp_path / "out.gguf", name)
    assert caught.value.code == "quantize.type"


def test_names_of_types_are_taken_in_any_case(wide: TinyCheckpoint, tmp_path: Path) -> None:
    assert quantize(wide.folder, tmp_path / "out.gguf", "q4_0", vision="bf16").type == "Q4_0"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_recipes_of_ours_have_a_reason_and_every_rule_is_of_use(recipe: Recipe) -> None:
    assert recipe.reason.endswith(".") and recipe.base in MIXES
    found = FULL | shapes(vision_targets(FULL_VISION, 2048))
    chooser = Chooser(recipe, "F16", 27, True)
    for name, shape in found.items():
        chooser.type_of(name, shape, name.startswith(("v.", "mm.")))
    chooser.finish(list(found))  # raises for one that is not


def test_a_recipe_file_changes_a_mix(wide: TinyCheckpoint, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "q4_k_s"\nreason = "why not"\nvision = "BF16"\n[types]\n"blk.*.attn_v_b" = "Q8_0"\n')
    report = quantize(wide.folder, tmp_path / "out.gguf", recipe=path, types={"output": "F16"})
    types = {t.name: t.type for t in report.files[0].tensors}
    assert (report.type, report.vision, report.reason) == ("mine", "BF16", "why not")
    assert (types["blk.0.attn_v_b.weight"], types["output.weight"], types["mm.1.weight"]) == ("Q8_0", "F16", "BF16")
    assert GGUFFile(str(report.path)).get("kimi_vl.quantize.recipe") == "mine"
    assert GGUFFile(str(report.path)).get("general.file_type") == MIXES["Q4_K_S"].file_type


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "base is missing"),
        (b"base = ", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"base = 'Q9'", "not a type"),
        (b"base = 4", "not a type"),
        (b"base = 'Q8_0'\nvison = 'F16'", "vison"),
        (b"base = 'Q8_0'\nvision = 'Q4_K_M'", "not a tensor type"),
        (b"base = 'Q8_0'\nvision = 'IQ3_S'", "are read, but not written"),
        (b"base = 'Q8_0'\ntypes = 3", "expected a table"),
        (b"base = 'Q8_0'\n[types]\nx = 3", "types.x"),
        (b"base = 'Q8_0'\nx = " + b"[" * 100_000, "is not TOML"),
    ],
)
def test_recipe_files_with_mistakes_are_refused(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text)
    with pytest.raises(BadRequest, match=words) as caught:
        read_recipe(path)
    assert caught.value.code == "quantize.recipe" and str(caught.value).startswith(str(path))


def test_a_missing_recipe_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match=r"nowhere\.toml"):
        read_recipe(tmp_path / "nowhere.toml")


class Importance:
    """Random importance of every matrix of a model but those that are left out."""

    def __init__(self, model: TinyCheckpoint, without: str = "nothing") -> None:
        rng = np.random.default_rng(5)
        shapes = {
            name: values.shape for name, values in text_tensors(model.weights, model.config["text"], "split").items()
        }
        self.known = {
            name: rng.gamma(0.5, size=(*shape[:-2], shape[-1])).astype(np.float32)
            for name, shape in shapes.items()
            if len(shape) > 1 and without not in name
        }

    def rows(self, name: str) -> NDArray[np.float32] | None:
        return self.known.get(name)


@pytest.fixture
def imatrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Importance], Path]:
    """imatrix(importance): a file for quantize(imatrix=...) that is read as that."""

    def make(importance: Importance) -> Path:
        path = tmp_path / "some.imatrix"
        path.write_bytes(b"x")
        file = InputFile(path)
        file.close()
        module = sys.modules["kimi_vl_cpp.quantize.convert"]
        monkeypatch.setattr(module, "_open_importance", lambda path: module.Weights(importance, file))
        return path

    return make


@pytest.mark.parametrize("from_gguf", [False, True])
def test_every_matrix_is_weighed_by_the_importance_of_its_own_columns(
    wide: TinyCheckpoint, tmp_path: Path, imatrix: Callable[[Importance], Path], from_gguf: bool
) -> None:
    importance = Importance(wide)
    source = quantize(wide.folder, tmp_path / "f32.gguf", "F32").path
    floats = GGUFFile(str(source))
    report = quantize(
        source if from_gguf else wide.folder, tmp_path / "out.gguf", "Q4_K_M", imatrix=imatrix(importance)
    )
    got = GGUFFile(str(report.path))
    assert got.get("quantize.imatrix.file") == "some.imatrix" and not report.warnings
    checked = 0
    for tensor in got.tensors:
        weights = importance.rows(tensor.name)
        if weights is None or tensor.type in ("F32", "F16"):
            continue
        rows = floats.tensor_f32(tensor.name)
        stack, each = rows.reshape(-1, *rows.shape[-2:]), weights.reshape(-1, weights.shape[-1])
        want = [encode(tensor.type, rows, 1, w) for rows, w in zip(stack, each, strict=True)]
        assert np.array_equal(got.tensor_raw(tensor.name), np.concatenate(want).reshape(-1)), tensor.name
        checked += len(stack) > 1
    assert checked > 4


def test_matrices_without_importance_are_named(
    wide: TinyCheckpoint, tmp_path: Path, imatrix: Callable[[Importance], Path]
) -> None:
    path = imatrix(Importance(wide, without="blk.1.attn_q"))
    report = quantize(wide.folder, tmp_path / "out.gguf", "Q4_0", imatrix=path)
    assert [warning for warning in report.warnings if "says nothing about blk.1.attn_q.weight: " in warning]


def test_importance_of_another_model_is_refused(
    wide: TinyCheckpoint, tmp_path: Path, imatrix: Callable[[Importance], Path]
) -> None:
    importance = Importance(wide)
    importance.known["blk.1.ffn_down_exps.weight"] = np.ones((6, 100), np.float32)
    with pytest.raises(
        BadRequest, match=r"ffn_down_exps.weight has importance of shape \[6, 100\], expected \[6, 384\]"
    ):
        quantize(wide.folder, tmp_path / "out.gguf", "Q4_0", imatrix=imatrix(importance))
    importance.known.clear()
    with pytest.raises(BadRequest, match="made with another one") as caught:
        quantize(wide.folder, tmp_path / "out.gguf", "Q4_0", imatrix=imatrix(importance))
    assert caught.value.code == "quantize.imatrix" and not (tmp_path / "out.gguf").exists()


def test_an_imatrix_is_never_overwritten(
    wide: TinyCheckpoint, tmp_path: Path, imatrix: Callable[[Importance], Path]
) -> None:
    path = imatrix(Importance(wide))
    with pytest.raises(BadRequest) as caught:
        quantize(wide.folder, path, "Q4_0", imatrix=path, force=True)
    assert caught.value.code == "quantize.output_is_input" and path.read_bytes() == b"x"
