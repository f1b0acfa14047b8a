"""From GGUF to GGUF: every layout that is read, metadata kept, quantized sources only when asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from kimi_vl_cpp import KimiVL
from kimi_vl_cpp._core import GGUFFile
from kimi_vl_cpp.errors import BadModelFile, BadRequest, KimiVLError, Unsupported
from kimi_vl_cpp.quantize import Report, quantize
from kimi_vl_cpp.testing import ROWS_OF_256, TinyModel, make_tiny_model, read_model

Tiny = Callable[..., TinyModel]


def answers(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits and the embeddings of a picture."""
    with KimiVL(path) as model:
        picture = model.encode_image(np.full((56, 28, 3), 77, np.uint8)) if model.has_vision else None
        return model.logits([np.arange(5, dtype=np.int32)]), picture


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"vision": "single"},
        {"vision": "none"},
        {"vision": "kimik25"},
        {"layout": "legacy_kv_b"},
        {"layout": "fused_gate_up"},
        {"shards": 3},
        {"vocab": "spm", "n_vocab": 600},
        {"version": 2},
        {"with_bos_eos": False},
        {"tie_word_embeddings": True},
        {"text_type": "BF16", "vision_type": "F16"},
    ],
    ids=lambda arguments: " ".join(f"{k}={v}" for k, v in arguments.items()) or "plain",
)
def test_a_copy_of_any_layout_answers_as_the_source_does(tiny_model: Tiny, tmp_path: Path, arguments: Any) -> None:
    source = tiny_model(**arguments)
    for split in (False, True) if source.config["vision"] else (False,):
        out = tmp_path / f"{split}.gguf"
        report = quantize(source.text, out, "F32", vision="F32" if source.config["vision"] else None, split=split)
        assert len(report.files) == 1 + split
        names = {tensor.name for file in report.files for tensor in file.tensors}
        assert names == source.encoded.keys()
        for file in report.files:
            written = GGUFFile(str(file.path))
            for tensor in written.tensors:
                assert np.array_equal(written.tensor_f32(tensor.name), source.tensors[tensor.name]), tensor.name
        if "text_type" in arguments:  # the same weights, but not the arithmetic of an F32 file
            continue
        for ours, theirs in zip(answers(report.path), answers(source.text), strict=True):
            assert theirs is None or np.array_equal(ours, theirs)


@pytest.mark.parametrize("mix", ["Q8_0", "Q4_K_M", "IQ4_XS"])
def test_a_checkpoint_and_its_gguf_give_the_same_weights(tmp_path: Path, mix: str) -> None:
    """The step over a float file costs nothing: bfloat16 weights are F16 numbers here."""
    made = write_checkpoint(tmp_path / "in", **ROWS_OF_256)
    once = quantize(made.folder, tmp_path / "once.gguf", mix)
    floats = quantize(made.folder, tmp_path / "floats.gguf", "BF16", split=True)
    twice = quantize(floats.path, tmp_path / "twice.gguf", mix)
    found = [{tensor.name: (tensor.type, tensor.crc32) for tensor in r.files[0].tensors} for r in (once, twice)]
    differing = {name for name in found[0] if found[0][name] != found[1][name]}
    assert not differing


@pytest.mark.parametrize("text_type", ["IQ3_XXS", "IQ3_S", "TQ2_0"])
def test_types_that_are_only_read_can_be_requantized(tmp_path: Path, text_type: str) -> None:
    source = make_tiny_model(tmp_path / "in", vision="none", text_type=text_type, **ROWS_OF_256)
    report = quantize(source.text, tmp_path / "out.gguf", "F16", allow_requantize=True)
    before, after = GGUFFile(str(source.text)), GGUFFile(str(report.path))
    for tensor in before.tensors:
        if tensor.type == text_type:
            expected = before.tensor_f32(tensor.name).astype(np.float16).astype(np.float32)
            assert np.array_equal(after.tensor_f32(tensor.name), expected), tensor.name
    with pytest.raises(BadRequest, match=f"type {text_type} are read, but not written"):
        quantize(source.text, tmp_path / "out2.gguf", "F16", types={"output": text_type})


def test_metadata_of_the_source_is_kept(tmp_path: Path) -> None:
    extra = {
        "general.author": "Somebody",
        "general.license": (GGUFValueType.STRING, "mit"),
        "general.count": (GGUFValueType.UINT64, 1 << 40),
        "my.flag": (GGUFValueType.BOOL, True),
        "my.small": (GGUFValueType.INT8, -3),
        "my.double": (GGUFValueType.FLOAT64, 0.1),
        "my.floats": (GGUFValueType.ARRAY, [1.5, 2.5]),
        "my.names": (GGUFValueType.ARRAY, ["a", "", "ü"]),
        "general.file_type": 1,
    }
    source = make_tiny_model(tmp_path / "in", metadata=extra, mmproj_metadata={"clip.vision.extra": 7})
    before = GGUFFile(str(source.text))
    report = quantize(source.text, tmp_path / "out.gguf", "Q8_0", name="New name")
    after = GGUFFile(str(report.path))
    changed = {"general.name": "New name", "general.file_type": 7}
    for key in before.keys():  # noqa: SIM118
        assert after.get(key) == changed.get(key, before.get(key)), key
        assert after.value_type(key) == before.value_type(key), key
    assert after.get("clip.vision.extra") == 7 and after.get("clip.projector_type") == "kimivl"
    assert before.get("general.name") == "Tiny Kimi-VL"


def test_shards_become_one_file(tiny_model: Tiny, tmp_path: Path) -> None:
    source = tiny_model(shards=3)
    gguf = GGUFFile(str(quantize(source.text, tmp_path / "out.gguf", "Q8_0").path))
    assert gguf.n_shards == 1 and not any(key.startswith("split.") for key in gguf.keys())  # noqa: SIM118


def test_a_vision_file_of_ones_choice_is_taken(tiny_model: Tiny, tmp_path: Path) -> None:
    text, other = tiny_model(seed=1, vision="none"), tiny_model(seed=2)
    report = quantize(text.text, tmp_path / "out.gguf", "F32", vision="F32", mmproj=other.mmproj)
    found = read_model(report.path).weights
    assert np.array_equal(
        found["vision_tower.patch_embed.proj.bias"], other.weights["vision_tower.patch_embed.proj.bias"]
    )


def test_a_source_without_eyes_is_told(tiny_model: Tiny, tmp_path: Path) -> None:
    source = tiny_model(vision="none")
    report = quantize(source.text, tmp_path / "out.gguf", "Q8_0")
    assert report.vision is None and any("texts only" in notice for notice in report.notices)
    for options in ({"vision": "Q8_0"}, {"split": True}):
        with pytest.raises(BadRequest, match="no vision part"):
            quantize(source.text, tmp_path / "out2.gguf", "Q8_0", **options)


# ---- sources that are quantized already ----------------------------------------------------------------------------


def requantized(source: Path, out: Path, mix: str, **options: Any) -> Report:
    with pytest.raises(BadRequest) as caught:
        quantize(source, out, mix, **options)
    assert caught.value.code == "quantize.requantize" and not out.exists()
    assert "--allow-requantize" in str(caught.value) and "worse" in str(caught.value)
    return quantize(source, out, mix, allow_requantize=True, **options)


def test_a_quantized_source_needs_permission_and_the_loss_is_named(tiny_model: Tiny, tmp_path: Path) -> None:
    source = tiny_model(text_type="Q8_0")
    report = requantized(source.text, tmp_path / "out.gguf", "Q4_0")
    (warning,) = report.warnings
    n_changed = sum(t.source == "Q8_0" != t.type for t in report.files[0].tensors)
    assert f"({n_changed} tensors of Q8_0 " in warning and str(source.text) in warning and "worse" in warning
    got = GGUFFile(str(report.path))
    assert {t.type for t in got.tensors if t.name == "token_embd.weight"} == {"Q4_0"}


def test_requantized_weights_are_the_new_types_of_the_old_values(tiny_model: Tiny, tmp_path: Path) -> None:
    source = tiny_model(text_type="Q8_0", **ROWS_OF_256)
    floats = tiny_model(text_type="F32", **ROWS_OF_256)
    assert not np.array_equal(source.tensors["output.weight"], floats.tensors["output.weight"])
    got = GGUFFile(str(requantized(source.text, tmp_path / "out.gguf", "F32").path))
    for tensor in got.tensors:
        assert np.array_equal(got.tensor_f32(tensor.name), source.tensors[tensor.name]), tensor.name


def test_blocks_that_keep_their_type_are_copied(tiny_model: Tiny, tmp_path: Path) -> None:
    """No permission is needed for what loses nothing; the vision part keeps its type without a word."""
    source = tiny_model(text_type="Q8_0", vision_type="Q4_0")
    report = quantize(source.text, tmp_path / "out.gguf", "Q8_0")
    assert not report.warnings
    got = GGUFFile(str(report.path))
    for tensor in got.tensors:
        kind, blocks = source.encoded[tensor.name]
        if kind in ("Q8_0", "Q4_0"):
            assert tensor.type == kind
            assert np.array_equal(got.tensor_raw(tensor.name), blocks.reshape(-1).view(np.uint8)), tensor.name


def test_only_the_vision_part_may_change(tiny_model: Tiny, tmp_path: Path) -> None:
    source = tiny_model(text_type="Q8_0", vision_type="F32")
    report = quantize(source.text, tmp_path / "out.gguf", "Q8_0", vision="Q4_0")
    assert not report.warnings and report.vision == "Q4_0"
    source = tiny_model(text_type="Q8_0", vision_type="Q8_0")
    requantized(source.text, tmp_path / "out2.gguf", "Q8_0", vision="Q4_0")


# ---- sources that are no models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"not a model" * 10])
def test_files_that_are_no_gguf_are_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "in.gguf"
    path.write_bytes(raw)
    with pytest.raises(BadModelFile, match=r"in\.gguf"):
        quantize(path, tmp_path / "out.gguf", "Q8_0")


@pytest.mark.parametrize("architecture", ["llama", "clip", None])
def test_models_of_another_architecture_are_refused(tmp_path: Path, architecture: str | None) -> None:
    source = make_tiny_model(tmp_path / "in", vision="none", metadata={"general.architecture": architecture})
    with pytest.raises(KimiVLError) as caught:
        quantize(source.text, tmp_path / "out.gguf", "Q8_0")
    assert str(source.text) in str(caught.value) and not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("n_layers", [0, 1 << 20, "x", None])
def test_an_impossible_number_of_layers_is_refused(tmp_path: Path, n_layers: Any) -> None:
    source = make_tiny_model(tmp_path / "in", vision="none", metadata={"deepseek2.block_count": n_layers})
    with pytest.raises(BadModelFile, match="block_count"):
        quantize(source.text, tmp_path / "out.gguf", "Q8_0")


def test_types_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "in.gguf", "deepseek2")
    writer.add_uint32("deepseek2.block_count", 1)
    writer.add_tensor("blk.0.x.weight", np.zeros((1, 36), np.uint8), raw_dtype=GGMLQuantizationType.NVFP4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises((Unsupported, BadModelFile), match=r"blk\.0\.x\.weight"):
        quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0")


def test_a_text_model_as_vision_file_is_refused(tiny_model: Tiny, tmp_path: Path) -> None:
    source = tiny_model(vision="none")
    with pytest.raises(KimiVLError):
        quantize(source.text, tmp_path / "out.gguf", "Q8_0", mmproj=source.text)
    assert not (tmp_path / "out.gguf").exists()


def test_mmproj_beside_a_checkpoint_folder_is_refused(tiny_model: Tiny, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "in").folder
    with pytest.raises(BadRequest, match="of its own"):
        quantize(folder, tmp_path / "out.gguf", "Q8_0", mmproj=tiny_model().mmproj)


def test_not_finite_numbers_in_a_gguf_are_found(tmp_path: Path) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors["blk.1.ffn_down_exps.weight"][4, 3, 2] = np.nan

    source = make_tiny_model(tmp_path / "in", edit=edit)
    with pytest.raises(BadModelFile, match=r"blk\.1\.ffn_down_exps\.weight") as caught:
        quantize(source.text, tmp_path / "out.gguf", "Q4_0")
    assert caught.value.code == "checkpoint.not_finite"
    assert not (tmp_path / "out.gguf").exists()


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    """Read by position, a truncated file cannot end the process as a mapped one does."""
    source = make_tiny_model(tmp_path / "in", vision="none")

    def shrink(stage: str, done: int, total: int) -> None:
        source.text.write_bytes(source.text.read_bytes()[:20000])

    with pytest.raises(BadModelFile) as caught:
        quantize(source.text, tmp_path / "out.gguf", "Q4_0", progress=shrink)
    assert caught.value.code == "checkpoint.truncated" and not (tmp_path / "out.gguf").exists()


def test_a_file_that_is_changed_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path / "in", vision="none")

    def change(stage: str, done: int, total: int) -> None:
        if done == total:
            source.text.write_bytes(source.text.read_bytes())

    with pytest.raises(BadModelFile, match="was changed") as caught:
        quantize(source.text, tmp_path / "out.gguf", "Q4_0", progress=change)
    assert caught.value.code == "checkpoint.changed" and not (tmp_path / "out.gguf").exists()
