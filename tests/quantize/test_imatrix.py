"""Importance matrices: the sums against the NumPy network, the weights made of them, the file, the run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from engine_support import open_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reference import importance

from kimi_vl_cpp._core import Engine, Importance, Session, quantize_rows
from kimi_vl_cpp.errors import BadModelFile, BadRequest
from kimi_vl_cpp.files.stored import FLOAT_TYPES
from kimi_vl_cpp.quantize import make_imatrix, quantize
from kimi_vl_cpp.quantize.importance.coverage import Coverage
from kimi_vl_cpp.quantize.importance.data import QUESTION, find_files
from kimi_vl_cpp.quantize.importance.file import (
    PRIOR_TOKENS,
    Imatrix,
    ImportanceMatrix,
    column_weights,
    expert_stacks,
    read_imatrix,
    read_importance,
    write_imatrix,
)
from kimi_vl_cpp.testing import ROWS_OF_256, TinyModel, dequantize

# Of sums of squares, against float64: twice what is allowed of the activations themselves (engine_support.FLOAT: 1e-5);
# measured 8e-7.
BAR = 2e-5


def watched(engine: Engine, *batches: Any, kv_type: str = "f32") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The sums of prompts, each in a session of its own."""
    seen = Importance(engine)
    try:
        for parts in batches:
            session = Session(engine, sum(len(part) for part in parts) + 1, kv_type)
            session.prefill(list(parts), logits="all")
        return seen.sums()
    finally:
        seen.close()


def assert_sums(got, want: importance.Sums, names=None) -> None:
    for name in want.sums if names is None else names:
        values, counts = got[name]
        np.testing.assert_array_equal(counts, want.counts[name], name)
        scale = want.sums[name].max(1, keepdims=True)
        worst = float((np.abs(values - want.sums[name]) / np.where(scale > 0, scale, 1)).max())
        assert worst < BAR, f"{name}: relative error {worst:.1e}"


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory) -> Path:
    """Two texts and three pictures, one with a question; texts and a picture that are none; a hidden file."""
    root = tmp_path_factory.mktemp("data")
    (root / "deep").mkdir()
    (root / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    (root / "deep" / "b.md").write_text("# Title\n\nA page of text.\n" * 3)
    (root / "empty.txt").write_text(" \n")
    (root / "not utf-8.txt").write_bytes(b"caf\xe9 au lait")
    (root / "sheet.csv").write_text("1,2")
    (root / ".hidden.txt").write_text("hidden")
    for i, name in enumerate(("one.png", "two.JPG", "deep/three.webp")):
        Image.fromarray(tiny_model(seed=3).random_picture(56, 84 + 28 * i, seed=i)).save(root / name)
    (root / "one.txt").write_text("What is written on the sign?\n")
    (root / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


# What is seen


@pytest.mark.parametrize("n", [1, 3, 40, 300])
def test_sums_of_a_prompt_are_those_of_the_reference(tiny_model, network_of, isa, n):
    """From a token streamed through to a prompt whose attention is expanded when nobody watches."""
    model = tiny_model(seed=3, routing="random")
    ids = model.random_ids(n)
    got, want = watched(open_engine(model, isa), [ids]), importance.text(network_of(model), [ids], n)
    assert set(got) == set(want.sums)
    assert_sums(got, want)


def test_sums_of_pictures_are_those_of_the_reference(tiny_model, network_of, isa):
    model = tiny_model(seed=3)
    engine, seen_by = open_engine(model, isa), importance.Sums()
    seen = Importance(engine)
    for size in ((84, 140), (28, 28)):
        pixels = model.random_picture(*size)
        engine.encode_image(pixels)
        one = importance.picture(network_of(model), pixels)
        for name in one.sums:
            seen_by.sums[name] = seen_by.sums.get(name, 0) + one.sums[name]
            seen_by.counts[name] = seen_by.counts.get(name, 0) + one.counts[name]
    got = seen.sums()
    seen.close()
    assert set(got) == set(seen_by.sums)
    assert_sums(got, seen_by)


def test_sums_of_embeddings_and_of_decoding_are_those_of_the_reference(tiny_model, network_of):
    model = tiny_model(seed=3, routing="random")
    engine, rng = open_engine(model), np.random.default_rng(0)
    parts = [model.random_ids(9), rng.standard_normal((20, model.config["text"]["hidden_size"])).astype(np.float32)]
    assert_sums(watched(engine, parts), importance.text(network_of(model), parts, 29))
    ids, session = model.random_ids(7), Session(engine, 8, "f32")
    seen = Importance(engine)
    for token in ids:
        session.decode(int(token))
    got = seen.sums()
    seen.close()
    assert_sums(got, importance.text(network_of(model), [ids], 7))


@pytest.mark.parametrize("text_type", ["F16", "Q8_0", "Q4_K", "Q2_K"])
def test_quantized_weights_see_unrounded_inputs(tiny_model, network_of, text_type):
    """The inputs are watched before they are rounded to int8: with float activations the sums are exact."""
    model = tiny_model(seed=3, text_type=text_type, **ROWS_OF_256)
    ids = model.random_ids(50)
    want = importance.text(network_of(model), [ids], 50)
    assert_sums(watched(open_engine(model, activations="float"), [ids]), want)
    rounded = watched(open_engine(model), [ids])
    for name in want.sums:  # of other inputs by then, but near: test_engine's INT8 is 5e-2 of outputs
        np.testing.assert_array_equal(rounded[name][1], want.counts[name])
        assert abs(rounded[name][0].sum() / want.sums[name].sum() - 1) < 0.1, name


def test_tensors_that_hold_several_matrices_tell_their_input_once(tiny_model, network_of):
    ids = [tiny_model(seed=3).random_ids(150)]
    fused = tiny_model(seed=3, layout="fused_gate_up", vision="kimik25")
    got, want = watched(open_engine(fused), ids), importance.text(network_of(fused), ids, 150)
    for layer in (1, 2):
        want.sums[f"blk.{layer}.ffn_gate_up_exps.weight"] = want.sums[f"blk.{layer}.ffn_gate_exps.weight"]
        want.counts[f"blk.{layer}.ffn_gate_up_exps.weight"] = want.counts[f"blk.{layer}.ffn_gate_exps.weight"]
    assert_sums(got, want, got)
    legacy = tiny_model(seed=3, layout="legacy_kv_b")
    got, want = watched(open_engine(legacy), ids), importance.text(network_of(legacy), ids, 150)
    for layer in range(3):
        heads = want.sums[f"blk.{layer}.attn_v_b.weight"], want.counts[f"blk.{layer}.attn_v_b.weight"]
        want.sums[f"blk.{layer}.attn_kv_b.weight"] = heads[0].sum(0, keepdims=True)
        want.counts[f"blk.{layer}.attn_kv_b.weight"] = heads[1].sum(keepdims=True)
    assert_sums(got, want, got)
    assert "blk.0.attn_kv_b.weight" in got
    tied = tiny_model(seed=3, tie_word_embeddings=True)
    got = watched(open_engine(tied), ids)
    assert_sums(got, importance.text(network_of(tied), ids, 150), ["token_embd.weight"])


def test_sums_have_the_same_bits_for_any_number_of_threads(tiny_model):
    model = tiny_model(seed=3, text_type="Q8_0", **ROWS_OF_256)
    prompts = [[model.random_ids(n)] for n in (200, 2, 50)]
    first = watched(open_engine(model, n_threads=1), *prompts)
    for n_threads in (2, 5):
        other = watched(open_engine(model, n_threads=n_threads), *prompts)
        for name, (values, counts) in first.items():
            assert values.tobytes() == other[name][0].tobytes(), name
            np.testing.assert_array_equal(counts, other[name][1])


def test_watching_leaves_no_trace(tiny_model):
    model = tiny_model(seed=3)
    engine, ids = open_engine(model), model.random_ids(200)
    before = Session(engine, 201).prefill([ids], logits="all")
    seen = Importance(engine)
    during = Session(engine, 201).prefill([ids], logits="all")
    with pytest.raises(BadRequest) as busy:
        Importance(engine)
    assert busy.value.code == "importance.busy"
    assert sum(seen.counts()["blk.1.ffn_gate_exps.weight"]) == 200 * model.config["text"]["num_experts_per_tok"]
    seen.close()
    seen.close()
    with pytest.raises(BadRequest) as closed:
        seen.sums()
    assert closed.value.code == "importance.closed"
    after = Session(engine, 201).prefill([ids], logits="all")
    assert before.tobytes() == after.tobytes()
    np.testing.assert_allclose(during, before, rtol=0, atol=1e-3 * np.abs(before).max())  # the cache is f16
    other = Importance(engine)
    assert other.sums() == {}
    engine.close()
    assert other.sums() == {}
    del other


# From sums to weights

FLOATS = st.floats(0, 2.0**80, width=32)


@given(
    st.lists(st.tuples(st.lists(FLOATS, min_size=5, max_size=5), st.integers(0, 10**9)), min_size=1, max_size=6),
    st.sampled_from(["blk.1.ffn_gate_exps.weight", "blk.1.ffn_down_exps.weight", "blk.1.attn_k_b.weight"]),
)
@settings(max_examples=300, deadline=None)
def test_weights_are_finite_and_above_zero(rows, name):
    counts = np.array([n for _, n in rows])
    sums = np.array([values for values, _ in rows]) * (counts > 0)[:, None]
    weights = column_weights(name, sums, counts)
    assert weights.shape == sums.shape and weights.dtype == np.float32
    assert np.isfinite(weights).all() and (weights > 0).all()


def test_many_inputs_speak_for_themselves():
    rng = np.random.default_rng(0)
    mean = rng.gamma(0.5, size=(4, 32))
    n = np.full(4, 10**7)
    np.testing.assert_allclose(
        column_weights("blk.1.ffn_up_exps.weight", mean * n[:, None], n), mean, rtol=1e-4, atol=1e-5
    )


def test_an_expert_that_saw_nothing_follows_its_layer():
    rng = np.random.default_rng(0)
    mean, n = rng.gamma(0.5, size=(3, 64)), np.array([5000, 5000, 0])
    sums = mean * n[:, None]
    layer = sums.sum(0) / 10000
    up = column_weights("blk.1.ffn_up_exps.weight", sums, n)[2]
    np.testing.assert_allclose(up, (PRIOR_TOKENS * layer + layer.mean()) / (PRIOR_TOKENS + 1), rtol=1e-5)
    down = column_weights("blk.1.ffn_down_exps.weight", sums, n)[2]
    np.testing.assert_allclose(down, layer.mean(), rtol=1e-5)  # columns of its own: nobody knows which matter


def test_an_expert_that_saw_little_keeps_its_level():
    """An expert whose inputs are a thousand times weaker than its layer's is not drowned in the layer's."""
    sums = np.array([[1e6, 3e6], [0.004, 0.0]])
    weak = column_weights("blk.1.ffn_gate_exps.weight", sums, np.array([1000, 4]))[1]
    # level 0.0005 and profile (0.5, 1.5), to a billionth
    k = PRIOR_TOKENS
    want = np.array([0.004 + 0.0005 * (k * 0.5 + 1), 0.0005 * (k * 1.5 + 1)]) / (4 + k + 1)
    np.testing.assert_allclose(weak, want, rtol=1e-5)


def test_a_silent_column_weighs_a_little():
    sums, n = np.array([[0.0, 2000.0, 4000.0]]), np.array([1000])
    weights = column_weights("blk.0.attn_q.weight", sums, n)[0]
    assert weights[0] == pytest.approx(2 / 1001)  # as if it were as strong as the mean once
    np.testing.assert_allclose(column_weights("blk.0.attn_q.weight", np.zeros((1, 3)), n), 1 / 1001)


@pytest.mark.parametrize("kind", ["zeros", "one column", "one block", "huge", "tiny", "wild"])
@pytest.mark.parametrize(
    "type_name", ["Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "Q4_0", "Q5_1", "IQ4_NL", "IQ4_XS"]
)
def test_encoders_take_importance_of_any_kind(type_name, kind):
    """Columns that matter lose no more than without importance (1 % is what the search may differ by), and the others$
    do not become rubbish: nothing is twice as large as the largest weight."""
    rng = np.random.default_rng(1)
    x, importance_of = rng.standard_normal((8, 512)).astype(np.float32), np.zeros(512, np.float32)
    if kind == "one column":
        importance_of[7] = 1
    elif kind == "one block":
        importance_of[256:] = 1
    elif kind == "huge":
        importance_of[:] = 3e38
    elif kind == "tiny":
        importance_of[:] = 1e-38
    elif kind == "wild":
        importance_of = (10.0 ** rng.uniform(-38, 38, 512)).astype(np.float32)

    def error(weights):
        decoded = dequantize(quantize_rows(type_name, x, weights, 1), type_name).reshape(x.shape)
        assert np.isfinite(decoded).all() and np.abs(decoded).max() < 2 * np.abs(x).max()
        counted = importance_of > 0 if importance_of.any() else np.ones(512, bool)
        scale = (
            importance_of.astype(np.float64) / max(float(importance_of.max()), 1e-300) if kind == "wild" else counted
        )
        return float((scale * (decoded.astype(np.float64) - x) ** 2).sum())

    assert error(importance_of) <= 1.01 * error(None)


# The file


def sums_of(names: dict[str, tuple[int, int]], seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> (n_matrices, n_cols)"""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.gamma(0.5, size=(m, k)).astype(np.float32), rng.integers(1, 1000, m))
        for name, (m, k) in names.items()
    }


SMALL = {"blk.0.attn_q.weight": (1, 8), "blk.1.ffn_gate_exps.weight": (3, 8), "blk.1.ffn_down_exps.weight": (3, 4)}


def test_a_file_says_what_was_written(tmp_path):
    sums = sums_of(SMALL)
    text_counts = {"blk.1.ffn_gate_exps.weight": np.array([1, 0, 7])}
    written = Imatrix(sums, ("pages",), 12, 512, "Kimi", (100, 200, 30), text_counts)
    path = tmp_path / "a.imatrix"
    assert write_imatrix(path, written) == path.stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["a.imatrix"]
    got = read_imatrix(path)
    assert (got.datasets, got.n_prompts, got.prompt_tokens) == (("pages",), 12, 512)
    assert (got.model, got.tokens) == ("Kimi", (100, 200, 30))
    assert set(got.sums) == set(sums)
    for name, (values, counts) in sums.items():
        np.testing.assert_array_equal(got.sums[name][0], values)
        np.testing.assert_array_equal(got.sums[name][1], counts)
    np.testing.assert_array_equal(got.text_counts["blk.1.ffn_gate_exps.weight"], [1, 0, 7])
    weights = read_importance(path)
    assert weights.rows("blk.0.attn_q.weight").shape == (8,)
    assert weights.rows("blk.1.ffn_down_exps.weight").shape == (3, 4)
    assert weights.rows("blk.9.attn_q.weight") is None


def test_the_layout_is_that_of_llama_cpp(tmp_path):
    """Facts of its reader: the three keys and their types, F32, ne = [n_cols, n_matrices] and [1, n_matrices]."""
    path = tmp_path / "a.imatrix"
    write_imatrix(path, Imatrix(sums_of(SMALL), ("pages", "photos"), 12, 512))
    reader = gguf.GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields["general.type"].contents() == "imatrix"
    assert fields["imatrix.datasets"].contents() == ["pages", "photos"]
    assert fields["imatrix.datasets"].types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING]
    for key, value in (("imatrix.chunk_count", 12), ("imatrix.chunk_size", 512)):
        assert fields[key].types == [gguf.GGUFValueType.UINT32] and fields[key].contents() == value
    assert "general.architecture" not in fields
    shapes = {tensor.name: (tensor.tensor_type.name, tensor.shape.tolist()) for tensor in reader.tensors}
    assert shapes["blk.1.ffn_down_exps.weight.in_sum2"] == ("F32", [4, 3])
    assert shapes["blk.1.ffn_down_exps.weight.counts"] == ("F32", [1, 3])
    assert all(len(name) < 64 for name in shapes)


def write_raw(path: Path, tensors: dict[str, Any], keys: dict[str, Any] | None = None) -> Path:
    """A file with the given tensors, in NumPy order, and keys."""
    writer = gguf.GGUFWriter(None, "")
    writer.kv_data[0].clear()
    for key, value in {"general.type": "imatrix", **(keys or {})}.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, value in tensors.items():
        array = np.asarray(value)
        writer.add_tensor(name, array.astype(np.float32) if array.dtype == np.float64 else array)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_files_of_llama_cpp_are_read(tiny_model, tmp_path):
    """As its tool writes them: no keys of ours, one dimension where there is one matrix, the heads of attn_k_b one
    after another as one long row, experts that saw nothing with sums of zero."""
    model = tiny_model(seed=3)
    t = model.config["text"]
    heads, nope, n_experts, hidden = (
        t[key] for key in ("num_attention_heads", "qk_nope_head_dim", "n_routed_experts", "hidden_size")
    )
    rng = np.random.default_rng(0)
    gates = rng.gamma(0.5, size=(n_experts, hidden))
    gates[2] = 0
    counts = np.full((n_experts, 1), 50.0)
    counts[2] = 0
    path = write_raw(
        tmp_path / "theirs.gguf",
        {
            "blk.0.attn_q.weight.in_sum2": rng.gamma(0.5, size=hidden),
            "blk.0.attn_q.weight.counts": [50.0],
            "blk.0.attn_k_b.weight.in_sum2": rng.gamma(0.5, size=heads * nope),
            "blk.0.attn_k_b.weight.counts": [50.0],
            "blk.1.ffn_gate_exps.weight.in_sum2": gates,
            "blk.1.ffn_gate_exps.weight.counts": counts,
        },
        {"imatrix.datasets": ["wiki.txt"], "imatrix.chunk_count": 1, "imatrix.chunk_size": 50},
    )
    weights = read_importance(path)
    assert weights.rows("blk.0.attn_q.weight").shape == (hidden,)
    assert (weights.rows("blk.1.ffn_gate_exps.weight")[2] > 0).all()
    assert weights.imatrix.tokens is None and weights.imatrix.text_counts == {}
    assert Coverage.of(weights.imatrix).layers[0].n_unseen == 1
    report = quantize(model.text, tmp_path / "out.gguf", "Q4_0", imatrix=path)
    assert any("attn_kv_a_mqa" in warning for warning in report.warnings)  # what the file does not know


HOSTILE: dict[str, tuple[dict[str, Any], str, str]] = {
    "counts missing": ({"a.in_sum2": [1.0]}, "imatrix.missing", "a.counts"),
    "sums missing": ({"a.in_sum2": [1.0], "a.counts": [1.0], "b.counts": [1.0]}, "imatrix.missing", "b.in_sum2"),
    "other number of matrices": (
        {"a.in_sum2": np.ones((2, 4), "f4"), "a.counts": np.ones((3, 1), "f4")},
        "imatrix.shape",
        "a.in",
    ),
    "counts in a row": (
        {"a.in_sum2": np.ones((4, 2), "f4"), "a.counts": np.ones(4, "f4")},
        "imatrix.shape",
        "a.counts",
    ),
    "counts of two columns": (
        {"a.in_sum2": np.ones((2, 2), "f4"), "a.counts": np.ones((2, 2), "f4")},
        "imatrix.shape",
        "a.counts",
    ),
    "three dimensions": ({"a.in_sum2": np.ones((1, 2, 2), "f4"), "a.counts": [2.0]}, "imatrix.shape", "a.in_sum2"),
    "sums of F16": ({"a.in_sum2": np.ones(4, np.float16), "a.counts": [1.0]}, "imatrix.type", "a.in_sum2"),
    "counts of I32": ({"a.in_sum2": [1.0], "a.counts": np.ones(1, np.int32)}, "", "a.counts"),
    "NaN": ({"a.in_sum2": [1.0, np.nan], "a.counts": [1.0]}, "imatrix.value", "[0, 1]"),
    "infinity": ({"a.in_sum2": [np.inf], "a.counts": [1.0]}, "imatrix.value", "a.in_sum2"),
    "negative sum": ({"a.in_sum2": [-1e-9], "a.counts": [1.0]}, "imatrix.value", "a.in_sum2"),
    "NaN count": ({"a.in_sum2": [1.0], "a.counts": [np.nan]}, "imatrix.value", "a.counts"),
    "infinite count": ({"a.in_sum2": [1.0], "a.counts": [np.inf]}, "imatrix.value", "a.counts"),
    "negative count": ({"a.in_sum2": [1.0], "a.counts": [-1.0]}, "imatrix.value", "a.counts"),
    "half a count": ({"a.in_sum2": [1.0], "a.counts": [0.5]}, "imatrix.value", "a.counts"),
    "a count beyond all bounds": ({"a.in_sum2": [1.0], "a.counts": [1e30]}, "imatrix.value", "a.counts"),
    "sums of nothing": ({"a.in_sum2": [1.0], "a.counts": [0.0]}, "imatrix.value", "a.in_sum2"),
    "no sums": ({"a": [1.0]}, "imatrix.empty", "in_sum2"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path, name):
    tensors, code, said = HOSTILE[name]
    path = write_raw(tmp_path / "bad.gguf", tensors)
    with pytest.raises(BadModelFile) as error:
        read_imatrix(path)
    assert said in str(error.value) and str(path) in str(error.value)
    assert not code or error.value.code == code


def test_other_files_are_refused(tiny_model, tmp_path):
    model = tiny_model(seed=3)
    for path in (model.text, model.mmproj):
        with pytest.raises(BadModelFile, match="expected 'imatrix'") as error:
            read_imatrix(path)
        assert error.value.code == "imatrix.not_an_imatrix"
    old = tmp_path / "old.dat"
    old.write_bytes(b"\x2d\x00\x00\x00" + b"\x13\x00\x00\x00blk.0.attn_q.weight")
    with pytest.raises(BadModelFile, match=r"\.dat files") as error:
        read_imatrix(old)
    assert error.value.code == "imatrix.not_gguf"
    whole = tmp_path / "whole.gguf"
    write_imatrix(whole, Imatrix(sums_of(SMALL)))
    for n in range(0, whole.stat().st_size - 32, 97):
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(whole.read_bytes()[:n])
        with pytest.raises(BadModelFile):
            read_imatrix(cut)


def test_an_importance_matrix_of_another_model_is_refused(tiny_model, tmp_path):
    model = tiny_model(seed=3)
    hidden, n_experts = (model.config["text"][key] for key in ("hidden_size", "n_routed_experts"))
    wrong = {
        "rows": ({"blk.0.attn_q.weight": (1, hidden + 32)}, "blk.0.attn_q.weight"),
        "experts": ({"blk.1.ffn_up_exps.weight": (n_experts + 1, hidden)}, "blk.1.ffn_up_exps.weight"),
        "nothing": ({"blk.77.attn_q.weight": (1, hidden)}, "another"),
    }
    for name, (sums, said) in wrong.items():
        path = tmp_path / f"{name}.imatrix"
        write_imatrix(path, Imatrix(sums_of(sums)))
        with pytest.raises(BadRequest, match=said) as error:
            quantize(model.text, tmp_path / "out.gguf", "Q4_0", imatrix=path)
        assert error.value.code == "quantize.imatrix"
        assert not (tmp_path / "out.gguf").exists()


# The run


def test_the_folder_is_walked_in_order(folder):
    texts, pictures = find_files(folder)
    assert [str(path.relative_to(folder)) for path in texts] == ["a.txt", "empty.txt", "not utf-8.txt", "deep/b.md"]
    assert [str(path.relative_to(folder)) for path in pictures] == ["one.png", "torn.png", "two.JPG", "deep/three.webp"]
    assert find_files(folder / "a.txt") == ([folder / "a.txt"], [])


def run(model: TinyModel, data: Path, out: Path, **options: Any):
    return make_imatrix(model.text, data, out, **{"ctx": 64, "answer": 3, **options})


def test_a_run_counts_every_token_once(tiny_model, folder, tmp_path):
    model = tiny_model(seed=3, routing="random")
    progress: list[tuple[str, int, int]] = []
    report = run(model, folder, tmp_path / "a.imatrix", progress=lambda *now: progress.append(now))
    assert [path.name for path, _ in report.skipped] == ["empty.txt", "not utf-8.txt", "torn.png"]
    assert (report.n_pictures, report.n_left_out, report.warnings) == (3, 0, ())
    assert report.n_texts > 3
    got = read_imatrix(report.path)
    assert got.tokens == report.tokens and got.datasets == (folder.name,) and got.model == "Tiny Kimi-VL"
    text, picture, answer = report.tokens
    assert picture == 2 * (3 + 4 + 5)  # 56 x 84, 112, 140 pixels
    assert 0 < answer <= 3 * (report.n_texts + report.n_pictures)
    k = model.config["text"]["num_experts_per_tok"]
    for name, (sums, counts) in got.sums.items():
        if name.startswith("blk."):
            each = k if "_exps" in name else len(counts)  # every head sees every token
            assert counts.sum() == each * sum(report.tokens), name
        assert np.isfinite(sums).all()
    for name in expert_stacks(got.sums):
        assert got.text_counts[name].sum() == k * text
        assert (got.text_counts[name] <= got.sums[name][1]).all()
    assert got.sums["v.blk.0.attn_q.weight"][1] == [4 * picture] and got.sums["mm.2.weight"][1] == [picture]
    stages = [stage for stage, _, _ in progress]
    assert list(dict.fromkeys(stages)) == ["load", "imatrix_data", "imatrix"]
    shares = [done / total for stage, done, total in progress if stage == "imatrix"]
    assert shares == sorted(shares) and shares[-1] == 1


def test_a_run_is_what_the_reference_sees(tiny_model, network_of, tmp_path):
    """One picture with its question, through the template, without an answer."""
    model = tiny_model(seed=3)
    pixels = model.random_picture(56, 84)
    (tmp_path / "data").mkdir()
    Image.fromarray(pixels).save(tmp_path / "data" / "p.png")
    (tmp_path / "data" / "p.txt").write_text(" What? ")
    run(model, tmp_path / "data", tmp_path / "a.imatrix", answer=0)
    from kimi_vl_cpp import KimiVL
    from kimi_vl_cpp.text.chat_template import build_prompt

    with KimiVL(model.text) as opened:
        content = [{"type": "image", "image": 0}, {"type": "text", "text": "What?"}]
        before, _, after = build_prompt(opened.loaded.tokenizer, [{"role": "user", "content": content}])
    network = network_of(model)
    want = importance.text(network, [before, network.encode_image(pixels), after], 1)
    picture = importance.picture(network, pixels)
    got = {
        name: (sums.astype(np.float64), counts)
        for name, (sums, counts) in read_imatrix(tmp_path / "a.imatrix").sums.items()
    }
    assert set(got) == set(want.sums) | set(picture.sums)
    assert_sums(got, want)
    assert_sums(got, picture)


def test_a_picture_without_a_question_gets_a_general_one(tiny_model, folder, tmp_path):
    model = tiny_model(seed=3)
    lengths = []
    for name, text in (("asked", QUESTION), ("plain", None)):
        data = tmp_path / name
        data.mkdir()
        shutil.copy(folder / "two.JPG", data / "two.jpg")
        if text is not None:
            (data / "two.txt").write_text(text)
        lengths.append(run(model, data, tmp_path / f"{name}.imatrix").tokens)
    assert lengths[0] == lengths[1]
    a, b = ((tmp_path / f"{name}.imatrix").read_bytes() for name in ("asked", "plain"))
    assert a.replace(b"asked", b"plain") == b


def test_the_file_has_the_same_bytes_for_any_number_of_threads(tiny_model, folder, tmp_path):
    model = tiny_model(seed=3, text_type="Q4_K", routing="random", **ROWS_OF_256)
    files = []
    for n_threads in (1, 3):
        out = tmp_path / f"{n_threads}.imatrix"
        run(model, folder, out, n_threads=n_threads)
        files.append(out.read_bytes())
    assert files[0] == files[1]


def test_of_a_few_prompts_half_are_pictures(tiny_model, folder, tmp_path):
    model = tiny_model(seed=3)
    report = run(model, folder, tmp_path / "a.imatrix", chunks=4)
    assert (report.n_texts, report.n_pictures) == (2, 2)
    whole = run(model, folder, tmp_path / "b.imatrix")
    assert report.n_left_out == whole.n_texts + whole.n_pictures + 1 - 4 - 1  # the torn one was looked at
    report = run(model, folder, tmp_path / "c.imatrix", chunks=1)
    assert (report.n_texts, report.n_pictures) == (1, 0)
    report = run(model, folder / "deep", tmp_path / "d.imatrix", chunks=100)
    assert report.n_left_out == 0


def test_texts_alone_are_told_of(tiny_model, folder, tmp_path):
    model = tiny_model(seed=3)
    report = run(model, folder / "a.txt", tmp_path / "a.imatrix")
    assert any("no picture" in warning for warning in report.warnings)
    assert not any(name.startswith(("v.", "mm.")) for name in read_imatrix(tmp_path / "a.imatrix").sums)
    blind = tiny_model(seed=3, vision="none")
    report = run(blind, folder, tmp_path / "b.imatrix")
    assert report.n_pictures == 0 and not any("picture" in warning for warning in report.warnings)
    assert sum("vision part" in why for _, why in report.skipped) == 4


def test_nothing_is_written_when_something_is_wrong(tiny_model, folder, tmp_path):
    model, out = tiny_model(seed=3), tmp_path / "out.imatrix"
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "x.txt").write_text("")
    (tmp_path / "none").mkdir()
    for data, said in (
        (empty, "nothing in it"),
        (tmp_path / "none", "no text"),
        (tmp_path / "absent", "no such folder"),
    ):
        with pytest.raises(BadRequest, match=said) as error:
            run(model, data, out)
        assert error.value.code == "imatrix.data"
    wrong: dict[str, Any] = {"ctx": 1 << 20, "answer": -1, "chunks": 0, "few_tokens": 0}
    for name, value in wrong.items():
        with pytest.raises(BadRequest, match=name) as error:
            run(model, folder, out, **{name: value})
        assert error.value.code == "imatrix.option"
    with pytest.raises(BadRequest, match="ctx"):
        run(model, folder, out, ctx=4096)  # the model's whole context, and the template on top

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "imatrix" and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, folder, out, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "none"]


def test_outputs_that_would_destroy_something_are_refused(tiny_model, folder, tmp_path):
    model = tiny_model(seed=3)
    out = tmp_path / "out.imatrix"
    out.write_text("mine")
    with pytest.raises(BadRequest) as error:
        run(model, folder, out)
    assert error.value.code == "quantize.output_exists" and out.read_text() == "mine"
    run(model, folder, out, force=True, chunks=1)
    assert read_imatrix(out).n_prompts == 1
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("text")
    alias = tmp_path / "alias.imatrix"
    alias.symlink_to(model.text)
    for path in (data / "a.txt", model.text, model.mmproj, alias):
        before = path.read_bytes()
        with pytest.raises(BadRequest) as error:
            run(model, data, path, force=True)
        assert error.value.code == "quantize.output_is_input" and path.read_bytes() == before


def test_a_model_that_computes_infinities_is_told(tiny_model, folder, tmp_path):
    def break_it(tensors):
        tensors["blk.1.attn_norm.weight"][:] = 3e38

    model = tiny_model(seed=3, edit=break_it)
    with pytest.raises(BadModelFile, match="is not finite") as error:
        run(model, folder / "a.txt", tmp_path / "out.imatrix", answer=0)
    assert error.value.code == "imatrix.not_finite" and not (tmp_path / "out.imatrix").exists()


def test_coverage_tells_who_saw_little():
    counts = np.array([0, 5, 200, 1000])
    sums = {"blk.3.ffn_gate_exps.weight": (np.ones((4, 2), np.float32) * (counts[:, None] > 0), counts)}
    text = {"blk.3.ffn_gate_exps.weight": np.array([0, 0, 100, 1000])}
    coverage = Coverage.of(Imatrix(sums, text_counts=text), 128)
    (layer,) = coverage.layers
    assert (layer.layer, layer.least, layer.median, layer.most) == (3, 0, 102, 1000)
    assert (layer.n_few, layer.n_unseen, layer.n_few_by_text) == (2, 1, 3)
    said = " / ".join(coverage.sentences())
    assert "2 of 4 experts" in said and "1 of them saw none" in said and "texts alone, 3" in said
    assert Coverage.of(Imatrix({"blk.0.attn_q.weight": sums["blk.3.ffn_gate_exps.weight"]})).layers == ()


# What it is good for


def outlier_model(tiny_model) -> TinyModel:
    """Some columns of the norms are ten times stronger, as in trained models."""

    def edit(tensors):
        rng = np.random.default_rng(0)
        for name, values in tensors.items():
            if name.endswith("norm.weight"):
                values *= np.exp(rng.normal(0, 1, values.shape)).astype(np.float32)

    return tiny_model(seed=3, text_type="F16", routing="random", edit=edit, **ROWS_OF_256)


@pytest.fixture(scope="module")
def measured(tiny_model, folder, tmp_path_factory):
    """A model, its importance matrix, and the sums of other data: what is really at stake."""
    root = tmp_path_factory.mktemp("measured")
    model = outlier_model(tiny_model)
    make_imatrix(model.text, folder, root / "a.imatrix", ctx=64, answer=4)
    other = watched(open_engine(model), *([model.random_ids(120, seed=i)] for i in range(8)))
    return model, root / "a.imatrix", other


TYPES = ("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS")


@pytest.mark.parametrize("type_name", TYPES)
def test_every_type_loses_less_of_what_matters(measured, tmp_path, type_name):
    """The error of every weight, times the square of what it is multiplied with, summed over all matrices of the type;
    the inputs are those of other data than the importance matrix was made of. Q8_0 has nothing to choose."""
    model, imatrix, other = measured
    errors = []
    for name, options in (("plain", {}), ("known", {"imatrix": imatrix})):
        out = tmp_path / f"{name}.gguf"
        quantize(model.text, out, "F16", types=[("blk.*", type_name)], **options)
        error = 0.0
        for tensor in gguf.GGUFReader(out).tensors:
            if tensor.name not in other or tensor.tensor_type.name != type_name or tensor.name.startswith("v."):
                continue
            sums, counts = other[tensor.name]
            weights = (sums / np.maximum(counts, 1)[:, None])[:, None, :]
            got = dequantize(np.asarray(tensor.data), type_name).reshape(len(counts), -1, sums.shape[1])
            error += float(
                ((got.astype(np.float64) - model.tensors[tensor.name].reshape(got.shape)) ** 2 * weights).sum()
            )
        errors.append(error)
    assert 0 < errors[1] < errors[0]


def test_a_stack_gives_every_expert_its_own_weights(measured, tmp_path):
    """Two experts with the same weights and other inputs become other blocks."""
    model, imatrix, _ = measured
    weights = read_importance(imatrix)
    rows = weights.rows("blk.1.ffn_down_exps.weight")
    assert rows.shape[0] == model.config["text"]["n_routed_experts"]
    x = model.tensors["blk.1.ffn_down_exps.weight"]
    quantize(model.text, tmp_path / "out.gguf", "F16", types=[("blk.1.ffn_down_exps", "Q4_K")], imatrix=imatrix)
    (got,) = (t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors if t.name == "blk.1.ffn_down_exps.weight")
    for e in range(len(rows)):
        want = quantize_rows("Q4_K", np.ascontiguousarray(x[e]), rows[e])
        np.testing.assert_array_equal(np.asarray(got.data).reshape(len(rows), *want.shape)[e], want)
    assert "Q4_K" not in FLOAT_TYPES and isinstance(weights, ImportanceMatrix)


def test_a_checkpoint_gets_the_weights_that_its_gguf_file_gets(folder, tmp_path):
    """Experts are stacked and attn_k_b is transposed on the way: every matrix still gets its own columns."""
    checkpoint = write_checkpoint(tmp_path / "Tiny-Instruct", seed=3, dtype="F32", **ROWS_OF_256)
    quantize(checkpoint.folder, tmp_path / "f32.gguf", "F32")
    make_imatrix(tmp_path / "f32.gguf", folder, tmp_path / "a.imatrix", ctx=64, answer=4)
    found = []
    for source, out in ((checkpoint.folder, "direct.gguf"), (tmp_path / "f32.gguf", "again.gguf")):
        quantize(source, tmp_path / out, "Q4_K_M", vision="Q8_0", imatrix=tmp_path / "a.imatrix")
        found.append({t.name: np.asarray(t.data).tobytes() for t in gguf.GGUFReader(tmp_path / out).tensors})
    assert found[0] == found[1]
    quantize(checkpoint.folder, tmp_path / "plain.gguf", "Q4_K_M", vision="Q8_0")
    plain = {t.name: np.asarray(t.data).tobytes() for t in gguf.GGUFReader(tmp_path / "plain.gguf").tensors}
    same = {name for name in plain if plain[name] == found[0][name]}
    quantized = {t.name for t in gguf.GGUFReader(tmp_path / "again.gguf").tensors if t.tensor_type.name[0] == "Q"}
    assert {name for name in same & quantized if not name.startswith(("v.", "mm."))} == {"token_embd.weight"}


@pytest.mark.skipif(shutil.which("llama-quantize") is None, reason="there is no llama-quantize")
def test_llama_quantize_takes_our_file(folder, tmp_path, tiny_model):
    model = tiny_model(seed=3, text_type="F16", num_hidden_layers=27)  # the depth it knows this kind of model by
    make_imatrix(model.text, folder, tmp_path / "ours.gguf", ctx=64, answer=2, chunks=4)
    command = ["llama-quantize", "--imatrix", tmp_path / "ours.gguf", model.text, tmp_path / "theirs.gguf", "Q4_K_M"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    missing = [line for line in (done.stdout + done.stderr).splitlines() if "did not find weights" in line]
    assert len(missing) == 1 and "token_embd" in missing[0]
