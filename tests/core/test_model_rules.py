"""Well-formed GGUF files that are no Kimi-VL, or a damaged one.

Each is refused by a typed error that names the file and the key or tensor, and a good model still answers the same
afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType as V
from gguf_check import bounded_memory

from kimi_vl_cpp._core import Engine, Session
from kimi_vl_cpp.errors import BadModelFile, KimiVLError, Unsupported
from kimi_vl_cpp.testing import make_tiny_model

NAN = float("nan")
P = "deepseek2."
A = P + "attention."
C = "clip.vision."

# key, value (None: left out), code, word that the message must contain
TEXT_KEYS: list[tuple[str, Any, str, str]] = [
    ("general.architecture", None, "model.key_missing", "general.architecture"),
    ("general.architecture", "llama", "model.architecture", "deepseek2"),
    ("general.architecture", 7, "gguf.key_type", "general.architecture"),
    (P + "block_count", None, "model.key_missing", "block_count"),
    (P + "block_count", 0, "model.key_range", "block_count"),
    (P + "block_count", 10**6, "model.key_range", "block_count"),
    (P + "block_count", 2**32 - 1, "model.key_range", "block_count"),
    (P + "block_count", "three", "gguf.key_type", "block_count"),
    (P + "block_count", 1000, "model.tensor_missing", "blk."),
    (P + "embedding_length", 0, "model.key_range", "embedding_length"),
    (P + "embedding_length", 2**31, "model.key_range", "embedding_length"),
    (P + "embedding_length", 96, "model.tensor_shape", "token_embd.weight"),
    (P + "context_length", 0, "model.key_range", "context_length"),
    (P + "context_length", 2**32 - 1, "model.key_range", "context_length"),
    (A + "head_count", 0, "model.key_range", "head_count"),
    (A + "head_count", 2**31, "model.key_range", "head_count"),
    (A + "head_count", 3, "model.tensor_shape", "attn_q.weight"),
    (A + "head_count", [2, 2], "gguf.key_type", "head_count"),
    (A + "layer_norm_rms_epsilon", 0.0, "model.key_range", "epsilon"),
    (A + "layer_norm_rms_epsilon", NAN, "model.key_range", "epsilon"),
    (A + "layer_norm_rms_epsilon", -1e-5, "model.key_range", "epsilon"),
    (A + "layer_norm_rms_epsilon", None, "model.key_missing", "epsilon"),
    (A + "kv_lora_rank", 0, "model.key_range", "kv_lora_rank"),
    (A + "kv_lora_rank", 31, "model.tensor_shape", "attn_kv_a_mqa"),
    (A + "q_lora_rank", 1536, "model.q_lora_rank", "q_lora_rank"),
    (A + "key_length_mla", 0, "model.key_range", "key_length_mla"),
    (A + "value_length_mla", 2**20, "model.key_range", "value_length_mla"),
    (P + "rope.dimension_count", 0, "model.key_range", "dimension_count"),
    (P + "rope.dimension_count", 7, "model.key_range", "dimension_count"),
    (P + "rope.dimension_count", 1024, "model.key_range", "dimension_count"),
    (P + "rope.freq_base", 0.0, "model.key_range", "freq_base"),
    (P + "rope.freq_base", NAN, "model.key_range", "freq_base"),
    (P + "rope.freq_base", None, "model.key_missing", "freq_base"),
    (P + "leading_dense_block_count", None, "model.key_missing", "leading_dense_block_count"),
    (P + "leading_dense_block_count", 1000, "model.key_range", "leading_dense"),
    (P + "expert_count", 2**31, "model.key_range", "expert_count"),
    (P + "expert_count", 5, "model.tensor_shape", "ffn_gate_inp"),
    (P + "expert_used_count", 0, "model.key_range", "expert_used_count"),
    (P + "expert_used_count", 1000, "model.key_range", "expert_used_count"),
    (P + "expert_gating_func", 99, "model.key_range", "expert_gating_func"),
    (P + "expert_group_count", 8, "model.expert_groups", "expert_group_count"),
    (P + "expert_shared_count", None, "model.key_missing", "expert_shared_count"),
    (P + "expert_weights_scale", None, "model.key_missing", "expert_weights_scale"),
    (P + "expert_weights_scale", NAN, "model.key_range", "expert_weights_scale"),
    (P + "expert_weights_norm", 1, "gguf.key_type", "expert_weights_norm"),
    (P + "feed_forward_length", 33, "model.tensor_shape", "ffn_gate"),
]
VISION_KEYS: list[tuple[str, Any, str, str]] = [
    ("clip.projector_type", "internvl", "model.projector_type", "kimivl"),
    ("clip.projector_type", None, "model.key_missing", "projector_type"),
    (C + "patch_size", 0, "model.key_range", "patch_size"),
    (C + "image_size", 2**31, "model.key_range", "image_size"),
    (C + "projector.scale_factor", 0, "model.key_range", "scale_factor"),
    (C + "projector.scale_factor", 4, "model.merge", "scale_factor"),
    (C + "attention.head_count", 0, "model.key_range", "head_count"),
    (C + "attention.head_count", 5, "model.key_range", "embedding_length"),
    (C + "block_count", 0, "model.key_range", "block_count"),
    (C + "block_count", 100, "model.tensor_missing", "v.blk."),
    (C + "projection_dim", 2048, "model.projection_dim", "different models"),
    (C + "image_std", [0.5, 0.0, 0.5], "model.key_range", "image_std"),
    (C + "image_mean", [0.5, NAN, 0.5], "model.key_range", "image_mean"),
    (C + "image_mean", [0.5, 0.5], "model.key_range", "image_mean"),
    (C + "attention.layer_norm_epsilon", NAN, "model.key_range", "epsilon"),
]


def refused(action: Callable[[], object], code: str, *words: str) -> KimiVLError:
    with bounded_memory(0), pytest.raises((BadModelFile, Unsupported)) as caught:
        action()
    assert caught.value.code == code, str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    return caught.value


def typed(value: Any) -> Any:
    if isinstance(value, list):
        return (V.ARRAY, value)
    return value


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tiny_model(tmp_path_factory.mktemp("good"), seed=1)


def answer(model: Any) -> np.ndarray:
    session = Session(Engine(str(model.text), str(model.mmproj), 1), 64)
    logits = session.prefill([np.arange(20, dtype=np.int32)])
    assert logits is not None
    return logits


@pytest.mark.parametrize(("key", "value", "code", "word"), TEXT_KEYS, ids=lambda v: str(v)[:40])
def test_text_key_is_refused(tmp_path: Path, key: str, value: Any, code: str, word: str) -> None:
    model = make_tiny_model(tmp_path, seed=1, metadata={key: typed(value)})
    refused(lambda: Engine(str(model.text), None, 1), code, "tiny.gguf", word)


@pytest.mark.parametrize(("key", "value", "code", "word"), VISION_KEYS, ids=lambda v: str(v)[:40])
def test_vision_key_is_refused(tmp_path: Path, key: str, value: Any, code: str, word: str) -> None:
    model = make_tiny_model(tmp_path, seed=1, mmproj_metadata={key: typed(value)})
    refused(lambda: Engine(str(model.text), str(model.mmproj), 1), code, "mmproj-tiny.gguf", word)


def shapes(good: Any) -> dict[str, tuple[int, ...]]:
    engine = Engine(str(good.text), str(good.mmproj), 1)
    assert engine.vision_gguf is not None
    return {t.name: tuple(t.shape) for file in (engine.gguf, engine.vision_gguf) for t in file.tensors}


def test_every_missing_tensor_is_named(good: Any, tmp_path: Path) -> None:
    for i, name in enumerate(shapes(good)):
        first = name.startswith(("blk.0.", "blk.1.", "v.blk.0."))
        if name.startswith(("blk.", "v.blk.")) and not first:
            continue
        model = make_tiny_model(tmp_path / str(i), seed=1, edit=lambda t, name=name: t.pop(name))
        refused(lambda model=model: Engine(str(model.text), str(model.mmproj), 1), "model.tensor_missing", name)


@pytest.mark.parametrize("name", ["blk.1.attn_q.bias", "blk.9.attn_norm.weight", "output.bias", "v.blk.0.gate.weight"])
def test_a_tensor_of_the_network_that_would_not_be_used_is_refused(tmp_path: Path, name: str) -> None:
    model = make_tiny_model(tmp_path, seed=1, edit=lambda t: t.update({name: np.ones(8, np.float32)}))
    refused(lambda: Engine(str(model.text), str(model.mmproj), 1), "model.tensor_unknown", name)


@pytest.mark.parametrize("change", ["one row short", "transposed"])
def test_every_wrong_shape_is_named(good: Any, tmp_path: Path, change: str) -> None:
    def edit(tensors: Any, name: str) -> None:
        a = tensors[name]
        tensors[name] = np.ascontiguousarray(a[:-1] if change == "one row short" else a.T)

    n_checked = 0
    for i, (name, shape) in enumerate(shapes(good).items()):
        first = name.startswith(("blk.0.", "blk.1.", "v.blk.0."))
        if name.startswith(("blk.", "v.blk.")) and not first:
            continue
        if change == "transposed" and (len(shape) < 2 or shape == shape[::-1]):
            continue
        model = make_tiny_model(tmp_path / str(i), seed=1, edit=lambda t, name=name: edit(t, name))
        with pytest.raises(BadModelFile) as caught:
            Engine(str(model.text), str(model.mmproj), 1)
        assert caught.value.code in ("model.tensor_shape", "model.position_table", "model.vocab_size"), str(
            caught.value
        )
        assert name in str(caught.value), str(caught.value)
        n_checked += 1
    assert n_checked > (40 if change == "one row short" else 15)


@pytest.mark.parametrize(
    "name", ["blk.0.attn_norm.weight", "blk.1.exp_probs_b.bias", "v.post_ln.bias", "output_norm.weight"]
)
def test_norms_and_biases_must_be_float32(tmp_path: Path, name: str) -> None:
    model = make_tiny_model(tmp_path, seed=1, tensor_types={name: "F16"})
    refused(lambda: Engine(str(model.text), str(model.mmproj), 1), "model.tensor_type", name, "F32")


@pytest.mark.parametrize(
    "name",
    ["output_norm.weight", "token_embd.weight", "blk.1.ffn_down_exps.weight", "v.blk.0.ffn_up.weight", "mm.2.bias"],
)
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, name: str, value: float) -> None:
    def edit(tensors: Any) -> None:
        tensors[name].reshape(-1)[0] = value

    model = make_tiny_model(tmp_path, seed=1, edit=edit)
    refused(lambda: Engine(str(model.text), str(model.mmproj), 1), "model.not_finite", name)


def test_the_two_files_in_each_others_place(good: Any) -> None:
    refused(lambda: Engine(str(good.mmproj), None, 1), "model.is_vision_file", "mmproj")
    refused(lambda: Engine(str(good.text), str(good.text), 1), "model.is_text_file", "mmproj")


def test_an_unknown_extra_tensor_is_a_warning(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path, seed=1, edit=lambda t: t.update({"something.else": np.ones((2, 32), np.float32)}))
    engine = Engine(str(model.text), str(model.mmproj), 1)
    assert any("something.else" in warning for warning in engine.config["warnings"])


def test_a_good_model_answers_the_same_after_all_that(good: Any, tmp_path: Path) -> None:
    before = answer(good)
    for i, (key, value, _, _) in enumerate(TEXT_KEYS[:10]):
        bad = make_tiny_model(tmp_path / str(i), seed=1, metadata={key: typed(value)})
        with pytest.raises(KimiVLError):
            Engine(str(bad.text), None, 1)
    assert np.array_equal(before, answer(good))
