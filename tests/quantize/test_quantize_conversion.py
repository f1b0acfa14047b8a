"""From a checkpoint folder to GGUF: names, arrangement and metadata, without any loss where the type has none.

Oracles: the weights that were written into the checkpoint; the `gguf` package as reader; the arrangement of tensors in
kimi_vl_cpp.testing; the files of tests/vectors/make_tiny.py, which are what llama.cpp's converter writes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import TinyCheckpoint, change_json, safetensors_bytes, write_checkpoint

from kimi_vl_cpp import KimiVL
from kimi_vl_cpp._core import GGUFFile
from kimi_vl_cpp.quantize import quantize
from kimi_vl_cpp.testing import read_model
from kimi_vl_cpp.testing.layout import text_tensors, vision_tensors

ODD = {"vision_intermediate_size": 56, "moe_intermediate_size": 40}  # rows that are no whole blocks


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "Kimi-VL-A3B-Instruct", **ODD)


def rounded(values: np.ndarray, type_name: str) -> np.ndarray:
    """What a float type keeps of weights that were bfloat16 before."""
    return values.astype(np.float16).astype(np.float32) if type_name == "F16" else values


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_float_types_hold_the_weights_of_the_checkpoint(tiny: TinyCheckpoint, tmp_path: Path, type_name: str) -> None:
    report = quantize(tiny.folder, tmp_path / "out.gguf", type_name)
    found = read_model(report.path).weights
    assert found.keys() == tiny.weights.keys()
    stored = {tensor.name: tensor.type for tensor in GGUFFile(str(report.path)).tensors}
    assert stored["blk.1.ffn_gate_exps.weight"] == stored["v.blk.0.ffn_down.weight"] == type_name
    small = ("blk.1.ffn_gate_inp.weight", "blk.1.exp_probs_b.bias", "v.blk.0.ln1.weight", "v.position_embd.weight")
    assert {stored[name] for name in small} == {"F32"}
    for name, values in tiny.weights.items():
        whole = np.array_equal(found[name], values)
        assert whole or np.array_equal(found[name], rounded(values, type_name)), name


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_dtype_of_a_checkpoint_is_read(tmp_path: Path, dtype: str) -> None:
    made = write_checkpoint(tmp_path / "in", dtype=dtype)
    found = read_model(quantize(made.folder, tmp_path / "out.gguf", "F32").path).weights
    assert all(np.array_equal(found[name], values) for name, values in made.weights.items())


def test_tensors_stand_in_the_order_and_shape_of_a_converters_file(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    gguf = GGUFFile(str(quantize(tiny.folder, tmp_path / "out.gguf", "F32").path))
    want = text_tensors(tiny.weights, tiny.config["text"], "split")
    want |= vision_tensors(tiny.weights, tiny.config["vision"], False)
    assert {t.name: tuple(t.shape) for t in gguf.tensors} == {name: values.shape for name, values in want.items()}
    for name, values in want.items():
        assert np.array_equal(gguf.tensor_f32(name), values), name
    offsets = [t.offset for t in gguf.tensors]
    assert offsets == sorted(offsets) and all(offset % 32 == 0 for offset in offsets)


def test_shards_give_the_same_file_as_one(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / tiny.folder.name, n_shards=5, **ODD)
    whole, parts = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
    quantize(tiny.folder, whole, "Q8_0")
    quantize(tmp_path / tiny.folder.name, parts, "Q8_0")
    assert whole.read_bytes() == parts.read_bytes()


def test_one_file_is_a_model_with_pictures(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    report = quantize(tiny.folder, tmp_path / "out.gguf", "Q8_0")
    assert [file.path for file in report.files] == [tmp_path / "out.gguf"] == list(tmp_path.iterdir())
    with KimiVL(report.path) as model:
        assert model.has_vision and model.name == "Kimi-VL-A3B-Instruct" and model.variant == "instruct"
        words = [tiny.vocabulary.bytes_of.index(x) for x in (b"the", b" you")]
        assert model.loaded.tokenizer.encode("the you") == words
        picture = np.full((56, 84, 3), 128, np.uint8)
        assert model.encode_image(picture).shape == (6, 64)


@pytest.mark.parametrize(("written", "want"), [(1024, 1024), (16384, 16384), (None, 4096)])
def test_picture_limit_of_the_checkpoint_is_honoured(tmp_path: Path, written: int | None, want: int) -> None:
    made = write_checkpoint(tmp_path / "in", in_token_limit=written)
    report = quantize(made.folder, tmp_path / "out.gguf", "F16")
    assert GGUFFile(str(report.path)).get("kimi_vl.vision.in_token_limit") == written
    with KimiVL(report.path) as model:
        assert model.loaded.processor.in_token_limit == want
    assert any("preprocessor_config.json" in notice for notice in report.notices) == (written is None)


def test_split_writes_the_two_files_of_llama_cpp(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    report = quantize(tiny.folder, tmp_path / "out.gguf", "BF16", split=True)
    assert [file.path.name for file in report.files] == ["out.gguf", "mmproj-out.gguf"]
    text, vision = (GGUFFile(str(file.path)) for file in report.files)
    assert not any(t.name.startswith(("v.", "mm.")) for t in text.tensors)
    assert all(t.name.startswith(("v.", "mm.")) for t in vision.tensors)
    assert not any(key.startswith("clip.") for key in text.keys())  # noqa: SIM118
    assert (vision.get("general.architecture"), vision.get("general.type")) == ("clip", "mmproj")
    found = read_model(*(file.path for file in report.files)).weights
    assert all(np.array_equal(found[name], values) for name, values in tiny.weights.items())
    with KimiVL(report.path) as model:
        assert model.has_vision and model.loaded.processor.in_token_limit == 1024


def test_metadata_says_what_the_configuration_says(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    path = quantize(tiny.folder, tmp_path / "out.gguf", "Q4_K_M", name="Another name").path
    gguf, t, v = GGUFFile(str(path)), tiny.config["text"], tiny.config["vision"]
    want: dict[str, Any] = {
        "general.architecture": "deepseek2",
        "general.name": "Another name",
        "general.file_type": 15,
        "general.quantization_version": 2,
        "deepseek2.attention.key_length": t["kv_lora_rank"] + t["qk_rope_head_dim"],
        "deepseek2.attention.key_length_mla": t["qk_nope_head_dim"] + t["qk_rope_head_dim"],
        "deepseek2.attention.value_length": t["kv_lora_rank"],
        "deepseek2.attention.value_length_mla": t["v_head_dim"],
        "deepseek2.attention.head_count": t["num_attention_heads"],
        "deepseek2.attention.head_count_kv": 1,
        "deepseek2.expert_gating_func": 2,
        "deepseek2.expert_shared_count": t["n_shared_experts"],
        "deepseek2.expert_weights_norm": True,
        "deepseek2.expert_weights_scale": float(np.float32(t["routed_scaling_factor"])),
        "deepseek2.rope.freq_base": t["rope_theta"],
        "deepseek2.attention.q_lora_rank": 0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.bos_token_id": tiny.vocabulary.special["[BOS]"],
        "tokenizer.ggml.eos_token_id": tiny.vocabulary.special["[EOS]"],
        "tokenizer.ggml.padding_token_id": tiny.vocabulary.special["[PAD]"],
        "tokenizer.ggml.tokens": tiny.vocabulary.tokens,
        "tokenizer.ggml.token_type": tiny.vocabulary.types,
        "tokenizer.ggml.merges": tiny.vocabulary.merges,
        "clip.projector_type": "kimivl",
        "clip.vision.feed_forward_length": v["intermediate_size"],
        "clip.vision.projector.scale_factor": 2,
        "kimi_vl.quantize.recipe": "Q4_K_M",
    }
    for key, value in want.items():
        assert gguf.get(key) == value, key


@pytest.mark.parametrize("n_layers", [26, 27])
def test_models_of_26_and_27_layers_get_no_query_rank(tmp_path: Path, n_layers: int) -> None:
    made = write_checkpoint(tmp_path / "in", num_hidden_layers=n_layers, first_k_dense_replace=n_layers)
    gguf = GGUFFile(str(quantize(made.folder, tmp_path / "out.gguf", "F16").path))
    assert gguf.get("deepseek2.attention.q_lora_rank") is None


def test_merges_are_those_that_byte_pairs_by_rank_would_take(tmp_path: Path) -> None:
    """tiktoken has no merges: those written must rebuild every token from the tokens before it, lowest rank first."""
    made = write_checkpoint(tmp_path / "in", n_vocab=1100)
    merges = GGUFFile(str(quantize(made.folder, tmp_path / "out.gguf", "F16").path)).get("tokenizer.ggml.merges")
    tokens = made.vocabulary.tokens
    ids = {token: i for i, token in enumerate(tokens[: made.vocabulary.base])}
    assert [ids[merge.replace(" ", "")] for merge in merges] == list(range(256, made.vocabulary.base))
    for merge in merges:
        whole = merge.replace(" ", "")
        parts, rank = list(whole), ids[whole]
        while len(parts) > 2:
            ranks = [ids.get(a + b, rank) for a, b in pairwise(parts)]
            i = ranks.index(min(ranks))
            assert ranks[i] < rank
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        assert parts == merge.split(" ")


def test_tensors_without_a_place_are_left_out_and_named(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "in", n_shards=2)
    extra = safetensors_bytes({"language_model.model.rotary.inv_freq": ("F32", np.ones(4, np.float32))})
    (made.folder / "extra.safetensors").write_bytes(extra)
    change_json(
        made.folder / "model.safetensors.index.json",
        lambda index: index["weight_map"].update({"language_model.model.rotary.inv_freq": "extra.safetensors"}),
    )
    report = quantize(made.folder, tmp_path / "out.gguf", "F16")
    assert any("language_model.model.rotary.inv_freq" in notice for notice in report.notices)
    assert read_model(report.path).weights.keys() == made.weights.keys()


@pytest.mark.parametrize("type_name", ["F32", "F16"])
@pytest.mark.parametrize("config", ["a", "d"])
def test_tensors_equal_those_of_the_reference_files(
    checkpoint_dir: Callable[[str], Path], tmp_path: Path, config: str, type_name: str
) -> None:
    folder = checkpoint_dir(config)
    report = quantize(folder, tmp_path / "out.gguf", type_name, split=True)
    for ours, reference in zip(report.files, ("text", "mmproj"), strict=True):
        want = GGUFFile(str(folder / f"{reference}-{type_name.lower()}.gguf"))
        got = GGUFFile(str(ours.path))
        assert [(t.name, t.type, t.shape) for t in got.tensors] == [(t.name, t.type, t.shape) for t in want.tensors]
        for tensor in want.tensors:
            assert np.array_equal(got.tensor_raw(tensor.name), want.tensor_raw(tensor.name)), tensor.name
        # The reference's merges are those its generator happened to choose, not BPE's.
        differing = {key for key in want.keys() if got.get(key) != want.get(key)}  # noqa: SIM118
        assert differing <= {"general.name", "tokenizer.ggml.merges"}


def test_names_come_from_the_folder_or_from_the_repository_in_a_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--moonshotai--Kimi-VL-A3B-Thinking-2506" / "snapshots" / "0123abc"
    made = write_checkpoint(folder, in_token_limit=None)
    with KimiVL(quantize(made.folder, tmp_path / "out.gguf", "F16").path) as model:
        assert model.name == "Kimi-VL-A3B-Thinking-2506" and model.variant == "thinking-2506"


def test_a_cache_of_symbolic_links_is_a_checkpoint(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "blobs")
    linked = tmp_path / "blobs-linked"
    linked.mkdir()
    for file in made.folder.iterdir():
        (linked / file.name).symlink_to(Path("..") / "blobs" / file.name)
    quantize(made.folder, tmp_path / "a.gguf", "Q4_0", name="x")
    quantize(linked, tmp_path / "b.gguf", "Q4_0", name="x")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
