"""Checkpoints that are damaged, hostile or not Kimi-VL's: errors with the file and what to do, nothing written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    TinyCheckpoint,
    Weights,
    change_json,
    safetensors_bytes,
    with_header,
    write_checkpoint,
    write_json,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kimi_vl_cpp.errors import BadModelFile, BadRequest, KimiVLError, Unsupported
from kimi_vl_cpp.files.input_file import InputFile
from kimi_vl_cpp.files.safetensors import MAX_HEADER_BYTES, read_header
from kimi_vl_cpp.quantize import quantize
from kimi_vl_cpp.quantize.source.config import read_config

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWO = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    return write_checkpoint(tmp_path_factory.mktemp("good") / "Kimi-VL-Instruct", n_shards=3)


@pytest.fixture
def broken(good: TinyCheckpoint, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    return Path(shutil.copytree(good.folder, tmp_path / "Kimi-VL-Instruct"))


def refused(folder: Path, error: type[KimiVLError], code: str, *words: str, **options: Any) -> str:
    """quantize() refuses the folder before it converts a weight, says the words, and writes nothing."""
    out = folder.parent / "out.gguf"
    before, progress = set(folder.parent.iterdir()), []
    with pytest.raises(error) as caught:
        quantize(folder, out, "Q8_0", progress=lambda *event: progress.append(event), **options)
    assert [event for event in progress if event[1]] == []
    message = str(caught.value)
    assert caught.value.code == code, message
    for word in words:
        assert word in message
    assert len(message) < 1000
    assert set(folder.parent.iterdir()) == before
    return message


# ---- safetensors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", "has 0 bytes", id="empty"),
        pytest.param(b"\x01\0\0", "has 3 bytes", id="three bytes"),
        pytest.param(b"\xff" * 8, "the header claims 18446744073709551615", id="length of all ones"),
        pytest.param(
            with_header({"a": ONE}, bytes(8), length=1 << 40), "the header claims", id="length beyond the end"
        ),
        pytest.param(with_header({"a": ONE}, bytes(8), length=20), "is not JSON", id="length too short"),
        pytest.param(with_header({"a": ONE}, bytes(8), length=60), "JSON", id="length into the data"),
        pytest.param(with_header({}, b"", length=0), "is not JSON", id="no header"),
        pytest.param(with_header(b" " * (MAX_HEADER_BYTES + 1), b""), "expected at most", id="header too long"),
        pytest.param(with_header(b"[1, 2]", b""), "expected an object", id="header a list"),
        pytest.param(with_header(b"\xff\xfe{}", b""), "is not UTF-8", id="header not UTF-8"),
        pytest.param(with_header(b'{"a":' * 100_000, b""), "is nested too deep", id="nested objects"),
        pytest.param(with_header(b"[" * 1_000_000, b""), "is nested too deep", id="nested lists"),
        pytest.param(with_header(b'{"a": 1, "a": 2}', b""), "occurs twice", id="a name twice"),
        pytest.param(with_header(b'{"a": NaN}', b""), "NaN", id="NaN"),
        pytest.param(with_header(b'{"a": ' + b"9" * 5000 + b"}", b""), "is not JSON", id="5000 digits"),
        pytest.param(with_header({"__metadata__": 3, "a": ONE}, bytes(8)), "__metadata__", id="metadata a number"),
        pytest.param(with_header({"a": 3}, b""), "expected an object of", id="entry a number"),
        pytest.param(with_header({"a": {**ONE, "x": 1}}, bytes(8)), "expected an object of", id="entry with more"),
        pytest.param(with_header({"a": {"dtype": "F32"}}, b""), "expected an object of", id="entry with less"),
        pytest.param(with_header({"a": {**ONE, "dtype": "F31"}}, bytes(8)), "F31", id="unknown dtype"),
        pytest.param(with_header({"a": {**ONE, "dtype": []}}, bytes(8)), "dtype []", id="dtype a list"),
        pytest.param(with_header({"a": {**ONE, "shape": [-2]}}, bytes(8)), "shape [-2]", id="negative side"),
        pytest.param(with_header({"a": {**ONE, "shape": [2.0]}}, bytes(8)), "shape [2.0]", id="side a float"),
        pytest.param(with_header({"a": {**ONE, "shape": [True, 2]}}, bytes(8)), "shape", id="side a bool"),
        pytest.param(with_header({"a": {**ONE, "shape": "2"}}, bytes(8)), "shape '2'", id="shape a text"),
        pytest.param(with_header({"a": {**ONE, "shape": [1] * 9}}, bytes(8)), "up to 8", id="nine dimensions"),
        pytest.param(with_header({"a": {**ONE, "shape": [1 << 61] * 8}}, bytes(8)), "bytes", id="huge shape"),
        pytest.param(with_header({"a": {**ONE, "shape": [1 << 70]}}, bytes(8)), "shape", id="side of 70 bits"),
        pytest.param(with_header({"a": {**ONE, "shape": [3]}}, bytes(8)), "has 12 bytes", id="shape and bytes differ"),
        pytest.param(with_header({"a": {**ONE, "data_offsets": [8, 0]}}, bytes(8)), "expected [begin", id="backwards"),
        pytest.param(with_header({"a": {**ONE, "data_offsets": [0]}}, bytes(8)), "expected [begin", id="one offset"),
        pytest.param(with_header({"a": {**ONE, "data_offsets": [-8, 0]}}, bytes(8)), "expected", id="below zero"),
        pytest.param(with_header({"a": ONE}, bytes(7)), "the tensors end", id="data short by one"),
        pytest.param(with_header({"a": ONE}, bytes(9)), "the tensors end", id="data long by one"),
        pytest.param(with_header({"a": ONE, "b": ONE}, bytes(8)), "overlaps", id="two tensors in one place"),
        pytest.param(
            with_header({"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}, bytes(12)), "overlaps", id="overlap"
        ),
        pytest.param(with_header({"b": TWO}, bytes(16)), "leaves 8 bytes", id="hole at the beginning"),
        pytest.param(
            with_header({"a": ONE, "b": {**ONE, "data_offsets": [12, 20]}}, bytes(20)), "leaves 4 bytes", id="hole"
        ),
        pytest.param(
            with_header({"a": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}, bytes(8)),
            "beyond the end",
            id="a tebibyte in a short file",
        ),
    ],
)
def test_a_damaged_shard_is_refused(broken: Path, data: bytes, words: str) -> None:
    shard = broken / "model-00002-of-00003.safetensors"
    shard.write_bytes(data)
    refused(broken, BadModelFile, "checkpoint.safetensors", str(shard), words, "download the file again")


def test_a_shard_cut_at_any_point_is_refused(broken: Path) -> None:
    shard = broken / "model-00003-of-00003.safetensors"
    whole = shard.read_bytes()
    for keep in (*range(12), 100, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:keep])
        refused(broken, BadModelFile, "checkpoint.safetensors", str(shard))


def test_tensors_of_no_elements_may_stand_anywhere(tmp_path: Path) -> None:
    none = {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_header({"b": TWO, "none": none, "a": ONE}, bytes(16)))
    file = InputFile(path)
    assert [tensor.name for tensor in read_header(file)] == ["a", "none", "b"]
    file.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)
numbers = st.integers(-2, 40) | st.integers(2**31 - 1, 2**64) | json_values
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "U8", "F8_E4M3", "BOOL"]) | json_values,
        "shape": st.lists(numbers, max_size=4) | json_values,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | json_values,
    }
)
headers = st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]) | st.text(max_size=6), entries | json_values)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=headers | st.binary(max_size=60),
    data=st.integers(0, 64),
    length=st.none() | st.integers(0, 2**64 - 1) | st.integers(0, 200),
)
@example({"a": ONE, "b": TWO}, 16, None)
def test_any_header_is_either_refused_or_lies_inside_the_file(
    tmp_path: Path, header: Any, data: int, length: int | None
) -> None:
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(with_header(header, bytes(data), length))
    file = InputFile(path)
    try:
        found = list(read_header(file))
    except (BadModelFile, Unsupported) as error:
        assert str(path) in str(error) and len(str(error)) < 1000
        return
    finally:
        file.close()
    assert sum(tensor.n_bytes for tensor in found) == data
    assert all(t.offset >= 0 and t.offset + t.n_bytes <= path.stat().st_size for t in found)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 1 << 20), value=st.integers(0, 255))
def test_any_changed_byte_of_a_header_is_refused_or_harmless(
    good: TinyCheckpoint, tmp_path: Path, at: int, value: int
) -> None:
    raw = bytearray((good.folder / "model-00001-of-00003.safetensors").read_bytes())
    raw[at % (8 + int.from_bytes(raw[:8], "little"))] = value
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(raw)
    file = InputFile(path)
    try:
        found = list(read_header(file))
        assert all(t.offset + t.n_bytes <= len(raw) for t in found)
    except (BadModelFile, Unsupported) as error:
        assert str(path) in str(error)
    finally:
        file.close()


# ---- the index -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..\\x.safetensors",
        "x.safetensors\0",
        "..",
        ".",
        "",
        "x.bin",
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(broken: Path, name: str) -> None:
    index = broken / "model.safetensors.index.json"
    change_json(index, lambda value: value["weight_map"].update({"language_model.lm_head.weight": name}))
    refused(broken, BadModelFile, "checkpoint.index_path", str(index), "Do not use this checkpoint")


@pytest.mark.parametrize("weight_map", [None, {}, [], 3, {"a": 3}, {"a": None}, {"a": ["x.safetensors"]}])
def test_an_index_of_wrong_types_is_refused(broken: Path, weight_map: Any) -> None:
    index = broken / "model.safetensors.index.json"
    write_json(index, {"weight_map": weight_map})
    refused(broken, BadModelFile, "checkpoint.index", str(index))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"[" * 1_000_000, b'{"weight_map": {"a":1,"a":2}}'])
def test_an_index_that_is_no_json_is_refused(broken: Path, raw: bytes) -> None:
    (broken / "model.safetensors.index.json").write_bytes(raw)
    refused(broken, BadModelFile, "checkpoint.json", "model.safetensors.index.json", "download the file again")


def test_missing_shards_are_named(broken: Path) -> None:
    (broken / "model-00001-of-00003.safetensors").unlink()
    (broken / "model-00003-of-00003.safetensors").unlink()
    names = "model-00001-of-00003.safetensors, model-00003-of-00003.safetensors"
    refused(broken, BadModelFile, "checkpoint.missing_shard", f"2 of 3 shards are missing: {names}", "download them")


def test_a_tensor_in_two_shards_is_refused(broken: Path) -> None:
    second = broken / "model-00002-of-00003.safetensors"
    shutil.copy(broken / "model-00001-of-00003.safetensors", second)
    refused(broken, BadModelFile, "checkpoint.duplicate_tensor", str(second), "model-00001-of-00003.safetensors")


def test_a_tensor_that_is_not_where_the_index_says_is_refused(broken: Path) -> None:
    change_json(
        broken / "model.safetensors.index.json",
        lambda value: value["weight_map"].update({"nowhere.weight": "model-00001-of-00003.safetensors"}),
    )
    refused(broken, BadModelFile, "checkpoint.index", "nowhere.weight", "no shard holds it")


def test_a_folder_without_weights_says_what_it_holds(broken: Path) -> None:
    (broken / "model.safetensors.index.json").unlink()
    refused(broken, BadModelFile, "checkpoint.no_weights", "model-00001-of-00003.safetensors", "with its index")
    for shard in broken.glob("*.safetensors"):
        shard.unlink()
    refused(broken, BadModelFile, "checkpoint.no_weights", "there are no weights")
    (broken / "pytorch_model.bin").write_bytes(b"x")
    refused(broken, BadModelFile, "checkpoint.no_weights", "safetensors (save_pretrained does)")


# ---- things that are no files --------------------------------------------------------------------------------------

NAMES = ["config.json", "model-00002-of-00003.safetensors", "model.safetensors.index.json", "tiktoken.model"]
NAMES += ["tokenizer_config.json", "preprocessor_config.json"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["fifo", "folder", "device", "loop", "socket"])
def test_what_is_no_regular_file_is_refused_without_waiting(broken: Path, name: str, what: str) -> None:
    path = broken / name
    path.unlink()
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "loop":
        path.symlink_to(path.name)
    else:
        server = socket.socket(socket.AF_UNIX)
        here = Path.cwd()
        os.chdir(broken)  # the path of a socket is short
        server.bind(name)
        os.chdir(here)
        server.close()
    with pytest.raises(BadModelFile) as caught:  # reading one of these would never end
        quantize(broken, broken.parent / "out.gguf", "Q8_0")
    assert name in str(caught.value)
    assert caught.value.code.startswith("checkpoint.") and not (broken.parent / "out.gguf").exists()


@pytest.mark.parametrize("name", ["config.json", "tiktoken.model", "tokenizer_config.json"])
def test_a_missing_file_is_named(broken: Path, name: str) -> None:
    (broken / name).unlink()
    with pytest.raises(BadModelFile, match=name):
        quantize(broken, broken.parent / "out.gguf", "Q8_0")


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00003.safetensors"])
def test_a_file_of_a_checkpoint_is_answered_with_its_folder(broken: Path, name: str) -> None:
    with pytest.raises(BadRequest, match=f"give its folder {broken}"):
        quantize(broken / name, broken.parent / "out.gguf", "Q8_0")


def test_a_source_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="nowhere"):
        quantize(tmp_path / "nowhere", tmp_path / "out.gguf", "Q8_0")


@pytest.mark.parametrize("path", ["", "a\0b", 3, None, b""])
def test_what_is_no_path_is_refused(tmp_path: Path, path: Any) -> None:
    for arguments in ((path, tmp_path / "out.gguf"), (tmp_path, path)):
        with pytest.raises(BadRequest) as caught:
            quantize(*arguments)
        assert caught.value.code == "quantize.path"


# ---- what the tensors are ------------------------------------------------------------------------------------------


def one_shard(folder: Path, edit: Callable[[Weights], None] | None = None, **options: Any) -> TinyCheckpoint:
    return write_checkpoint(folder, edit=edit, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0", "Q4_K_M"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_numbers_that_are_not_finite_are_found(tmp_path: Path, value: float, type_name: str, dtype: str) -> None:
    name = "language_model.model.layers.1.mlp.experts.3.up_proj.weight"

    def edit(weights: Weights) -> None:
        weights[name][7, 11] = value

    made = one_shard(tmp_path / "in", edit, dtype=dtype)
    with pytest.raises(BadModelFile, match="row 7, column 11") as caught:
        quantize(made.folder, tmp_path / "out.gguf", type_name)
    assert caught.value.code == "checkpoint.not_finite"
    assert name in str(caught.value) and "model.safetensors" in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("name", "row", "column"),
    [
        ("language_model.lm_head.weight", 571, 60),  # read in pieces
        ("language_model.model.layers.1.self_attn.kv_b_proj.weight", 37, 5),  # the second head's keys: transposed
        ("language_model.model.layers.1.self_attn.kv_b_proj.weight", 63, 31),  # and its values
        ("vision_tower.encoder.blocks.0.wqkv.weight", 70, 9),  # of the values
    ],
)
def test_the_place_of_a_bad_number_is_counted_in_the_checkpoints_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, row: int, column: int
) -> None:
    monkeypatch.setattr(sys.modules["kimi_vl_cpp.quantize.output.stream"], "PIECE_ELEMS", 1024)
    made = one_shard(tmp_path / "in", lambda weights: weights[name].__setitem__((row, column), np.nan))
    with pytest.raises(BadModelFile, match=f"tensor {name}: row {row}, column {column} is nan"):
        quantize(made.folder, tmp_path / "out.gguf", "F16")


def test_numbers_that_are_not_finite_are_found_in_vectors(tmp_path: Path) -> None:
    name = "vision_tower.encoder.blocks.1.norm0.bias"
    made = one_shard(tmp_path / "in", lambda weights: weights[name].__setitem__(5, np.nan))
    with pytest.raises(BadModelFile, match=r"norm0\.bias"):
        quantize(made.folder, tmp_path / "out.gguf", "Q8_0")


def test_numbers_too_large_for_f16_are_named(tmp_path: Path) -> None:
    name = "language_model.lm_head.weight"
    made = one_shard(tmp_path / "in", lambda weights: weights[name].__setitem__((3, 4), 1e6))
    with pytest.raises(BadRequest, match="row 3, column 4") as caught:
        quantize(made.folder, tmp_path / "out.gguf", "F16")
    assert caught.value.code == "quantize.overflow" and name in str(caught.value)
    quantize(made.folder, tmp_path / "out.gguf", "BF16")


@pytest.mark.parametrize(
    ("dtype", "size", "error"),
    [("F8_E4M3", 1, Unsupported), ("F64", 8, Unsupported), ("I32", 4, BadModelFile), ("BOOL", 1, BadModelFile)],
)
def test_other_numbers_than_plain_floats_are_refused(
    broken: Path, dtype: str, size: int, error: type[KimiVLError]
) -> None:
    name = "language_model.model.norm.weight"
    shard = next(s for s in broken.glob("*.safetensors") if name.encode() in s.read_bytes())
    raw = shard.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    tensors: dict[str, Any] = {}
    for key, entry in header.items():
        if key != "__metadata__":
            begin, end = entry["data_offsets"]
            data = np.frombuffer(raw[8 + length + begin : 8 + length + end], np.uint8)
            tensors[key] = entry["dtype"], data.view(np.uint16 if entry["dtype"] == "BF16" else np.float32)
            tensors[key] = tensors[key][0], tensors[key][1].reshape(entry["shape"])
    tensors[name] = dtype, np.zeros(64, f"V{size}")
    shard.write_bytes(safetensors_bytes(tensors))
    refused(broken, error, "checkpoint.dtype", str(shard), name, dtype)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    name = "language_model.model.layers.2.self_attn.o_proj.weight"
    made = one_shard(tmp_path / "in", lambda weights: weights.update({name: weights[name].T[:, :30].copy()}))
    refused(made.folder, BadModelFile, "checkpoint.shape", name, "[32, 30]", "[64, 32]")


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    names = [f"language_model.model.layers.1.mlp.experts.{i}.gate_proj.weight" for i in (1, 4)]
    made = one_shard(tmp_path / "in", lambda weights: [weights.pop(name) for name in names] and None)
    refused(made.folder, BadModelFile, "checkpoint.missing_tensor", *names, "download the checkpoint again")


def test_a_text_model_without_its_eyes_is_refused(tmp_path: Path) -> None:
    def edit(weights: Weights) -> None:
        for name in [name for name in weights if not name.startswith("language_model.")]:
            del weights[name]

    refused(one_shard(tmp_path / "in", edit).folder, BadModelFile, "checkpoint.missing_tensor", "vision_tower.")


# ---- configurations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096},
        {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]},
        {"model_type": "kimi_k25", "architectures": ["KimiK25ForConditionalGeneration"]},
        {"model_type": "qwen2_vl", "vision_config": {}},
        {"model_type": ["kimi_vl"]},
        {},
    ],
    ids=lambda config: str(config.get("model_type")),
)
def test_the_configuration_of_another_model_is_refused(broken: Path, config: dict[str, Any]) -> None:
    write_json(broken / "config.json", config)
    refused(broken, BadModelFile, "config.not_kimi_vl", str(broken / "config.json"), "another model")


UNSUPPORTED = [
    ("text_config", "q_lora_rank", 1536),
    ("text_config", "scoring_func", "softmax"),
    ("text_config", "topk_method", "greedy"),
    ("text_config", "n_group", 8),
    ("text_config", "rope_scaling", {"type": "yarn", "factor": 4}),
    ("text_config", "attention_bias", True),
    ("text_config", "tie_word_embeddings", True),
    ("text_config", "moe_layer_freq", 2),
    ("text_config", "num_nextn_predict_layers", 1),
    ("text_config", "hidden_act", "gelu"),
    ("text_config", "model_type", "llama"),
    ("vision_config", "model_type", "siglip"),
]


@pytest.mark.parametrize(("section", "key", "value"), UNSUPPORTED, ids=lambda value: str(value))
def test_another_network_under_the_same_name_is_refused(broken: Path, section: str, key: str, value: Any) -> None:
    change_json(broken / "config.json", lambda config: config[section].update({key: value}))
    refused(broken, Unsupported, "config.unsupported", f"{section}.{key}", str(broken / "config.json"))


BAD_FIELDS = [
    *(("text_config", "hidden_size", value) for value in (0, -1, 1 << 40, "64", None, 64.0, True, [64], {})),
    ("text_config", "num_hidden_layers", 10**6),
    ("text_config", "num_hidden_layers", 10**300),
    ("text_config", "n_routed_experts", 2**31),
    ("text_config", "num_experts_per_tok", 7),
    ("text_config", "first_k_dense_replace", 4),
    ("text_config", "vocab_size", 0),
    ("text_config", "max_position_embeddings", 2**40),
    ("text_config", "norm_topk_prob", 1),
    *(("text_config", "rope_theta", value) for value in (0, -1.0, 1e39, 10**400, "1e4", None)),
    *(("text_config", "rms_norm_eps", value) for value in (0, 1e-60, -1e-5)),
    ("text_config", "bos_token_id", -1),
    ("text_config", "eos_token_id", 2**40),
    ("vision_config", "hidden_size", 33),
    ("vision_config", "patch_size", 0),
    ("vision_config", "merge_kernel_size", [3, 3]),
    ("vision_config", "init_pos_emb_width", 9),
    ("vision_config", "num_attention_heads", None),
]


@pytest.mark.parametrize(("section", "key", "value"), BAD_FIELDS, ids=lambda value: str(value)[:20])
def test_impossible_fields_are_refused(broken: Path, section: str, key: str, value: Any) -> None:
    change_json(broken / "config.json", lambda config: config[section].update({key: value}))
    with pytest.raises(BadModelFile) as caught:
        quantize(broken, broken.parent / "out.gguf", "Q8_0")
    assert caught.value.code in ("config.field", "checkpoint.json")
    assert str(broken / "config.json") in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
@pytest.mark.parametrize("value", [None, 3, [], "x"])
def test_sections_that_are_no_objects_are_refused(broken: Path, section: str, value: Any) -> None:
    change_json(broken / "config.json", lambda config: config.update({section: value}))
    refused(broken, BadModelFile, "config.field", section)


@pytest.mark.parametrize("raw", [b"", b"null", b"[" * 500_000, b'{"a":1,"a":1}', b'{"a":Infinity}', b"\xff\xfe"])
def test_a_configuration_that_is_no_json_is_refused(broken: Path, raw: bytes) -> None:
    (broken / "config.json").write_bytes(raw)
    refused(broken, BadModelFile, "checkpoint.json", str(broken / "config.json"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=json_values)
def test_any_value_in_any_field_is_read_or_refused(good: TinyCheckpoint, data: st.DataObject, value: Any) -> None:
    config = json.loads((good.folder / "config.json").read_text())
    section = data.draw(st.sampled_from(["text_config", "vision_config"]))
    key = data.draw(st.sampled_from(sorted(config[section])))
    config[section][key] = value
    try:
        read_config(config, good.folder / "config.json")
    except (BadModelFile, Unsupported) as error:
        assert "config.json" in str(error)


@pytest.mark.parametrize("limit", [0, 3, -1, 2**40, 4096.0, "4096", True])
def test_an_impossible_picture_limit_is_refused(broken: Path, limit: Any) -> None:
    change_json(broken / "preprocessor_config.json", lambda value: value.update(in_token_limit=limit))
    refused(broken, BadModelFile, "checkpoint.preprocessor", "preprocessor_config.json", "in_token_limit")


@pytest.mark.parametrize("mean", [[0.5], "0.5", [0.5, 0.5, None], [1e39, 0, 0], [True, 0, 0], [10**400, 0, 0]])
def test_an_impossible_mean_is_refused(broken: Path, mean: Any) -> None:
    change_json(broken / "preprocessor_config.json", lambda value: value.update(image_mean=mean))
    refused(broken, BadModelFile, "checkpoint.preprocessor", "image_mean")


# ---- the tokenizer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda lines: [], "no token for the byte", id="empty"),
        pytest.param(lambda lines: lines[:100], "no token for the byte", id="cut"),
        pytest.param(lambda lines: [*lines, lines[0]], "rank 0 occurs twice", id="rank twice"),
        pytest.param(lambda lines: [*lines[:-1], lines[0].split()[0] + b" 319"], "the same token", id="token twice"),
        pytest.param(lambda lines: lines[:50] + lines[51:], "rank 50 is missing", id="hole"),
        pytest.param(lambda lines: [*lines, b"!!!! 320"], "line 321", id="no base64"),
        pytest.param(lambda lines: [*lines, b"aGFsbG8="], "line 321", id="no rank"),
        pytest.param(lambda lines: [*lines, b" 320"], "line 321", id="no token"),
        pytest.param(lambda lines: [*lines, b"aGFsbG8= -1"], "line 321", id="negative rank"),
        pytest.param(lambda lines: [*lines, b"aGFsbG8= " + b"9" * 5000], "line 321", id="huge rank"),
        pytest.param(lambda lines: [*lines, b"A" * 8000 + b" 320"], "expected at most 4096", id="huge token"),
        pytest.param(lambda lines: [*lines, b"aGFsbG8= 320"], "more than vocab_size", id="one too many"),
        pytest.param(lambda lines: [*lines, *[b"x"] * 1000], "1319 lines", id="too many lines"),
        pytest.param(lambda lines: [b"\0" * 100_000], "line 1", id="zeros"),
    ],
)
def test_a_damaged_vocabulary_is_refused(
    broken: Path, change: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    path = broken / "tiktoken.model"
    path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())))
    refused(broken, BadModelFile, "checkpoint.tokenizer", str(path), words)


@pytest.mark.parametrize(
    ("key", "entry", "words"),
    [
        ("320", {"content": "\ud800"}, "added_tokens_decoder"),
        ("320", {"content": ""}, "added_tokens_decoder"),
        ("320", {"content": 3}, "added_tokens_decoder"),
        ("320", "x", "added_tokens_decoder"),
        ("5", {"content": "x"}, "expected the content of an id from 320 to 575"),
        ("99999", {"content": "x"}, "expected the content of an id from 320 to 575"),
        ("-1", {"content": "x"}, "expected the content of an id"),
        ("²", {"content": "x"}, "expected the content of an id"),
        ("322", {"content": "[EOS]"}, "names two ids '[EOS]'"),
        ("322", {"content": "x"}, "names no <|im_end|>"),
        ("340", {"content": "a"}, "is written like an ordinary token"),
    ],
)
def test_damaged_special_tokens_are_refused(broken: Path, key: str, entry: Any, words: str) -> None:
    path = broken / "tokenizer_config.json"
    change_json(path, lambda value: value["added_tokens_decoder"].update({key: entry}))
    refused(broken, BadModelFile, "checkpoint.tokenizer", str(path), words)


@pytest.mark.parametrize("template", [3, {}, "a\udc00"])
def test_a_template_that_is_no_text_is_refused(broken: Path, template: Any) -> None:
    change_json(broken / "tokenizer_config.json", lambda value: value.update(chat_template=template))
    refused(broken, BadModelFile, "checkpoint.tokenizer", "chat_template")


def test_a_hostile_header_takes_no_more_memory_than_64_mib(tmp_path: Path) -> None:
    """The longest header, of the most objects a byte, in a process of its own."""
    folder = tmp_path / "in"
    write_checkpoint(folder)
    body = b'{"a":[' + b"{}," * ((MAX_HEADER_BYTES - 20) // 3) + b"{}]}"
    (folder / "model.safetensors").write_bytes(with_header(body, b""))
    # Not getrusage: what it tells of a started program includes the peak of the one that started it.
    code = (
        "import sys\n"
        "from kimi_vl_cpp.quantize import quantize\n"
        "from kimi_vl_cpp.errors import BadModelFile\n"
        "def peak():\n"
        "    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "before = peak()\n"
        "try:\n    quantize(sys.argv[1], sys.argv[2])\nexcept BadModelFile as error:\n"
        "    assert error.code == 'checkpoint.safetensors', error\n"
        "    print(peak() - before)\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "out.gguf")]
    grown_kib = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown_kib < 64 << 10


def test_more_files_than_may_be_open_is_an_error_with_a_name(broken: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
    try:
        with pytest.raises(KimiVLError, match="Too many open files"):
            quantize(broken, broken.parent / "out.gguf", "Q8_0")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    quantize(broken, broken.parent / "out.gguf", "Q8_0")
