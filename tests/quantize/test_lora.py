"""LoRA adapters merged into the weights while they are converted.

Oracles: the weights that PEFT itself merged (vectors/lora), W + scale B A in NumPy, and the network in NumPy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import Factors, join_qkv, linear_modules, merged, random_factors, write_adapter, write_gguf_adapter
from checkpoint_files import TinyCheckpoint, write_checkpoint
from reference import Network
from vectors import VECTORS, assert_near

from kimi_vl_cpp import errors
from kimi_vl_cpp._core import GGUFFile
from kimi_vl_cpp.adapters.opening import open_adapter
from kimi_vl_cpp.adapters.places import module_of
from kimi_vl_cpp.generation.raw import RawCore
from kimi_vl_cpp.quantize import quantize
from kimi_vl_cpp.testing import make_tiny_model, read_model
from kimi_vl_cpp.testing.shapes import SMALLEST

FROM_PEFT = VECTORS / "lora"
LAYER = "language_model.model.layers.1."


def lora_checkpoint(folder: Path) -> TinyCheckpoint:
    """The checkpoint of vectors/lora."""
    return write_checkpoint(folder, dtype="F32", **SMALLEST)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    return lora_checkpoint(tmp_path_factory.mktemp("lora") / "Kimi-VL-A3B-Instruct")


@pytest.fixture(scope="module")
def base(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(tiny.folder, tmp_path_factory.mktemp("base") / "base.gguf", "F32").path


@pytest.fixture(scope="module")
def everything(tiny: TinyCheckpoint) -> Factors:
    """Factors of every linear module."""
    return random_factors(tiny.weights, linear_modules(tiny.weights))


@pytest.fixture(scope="module")
def from_peft(tiny: TinyCheckpoint) -> dict[str, np.ndarray]:
    """All weights, those that PEFT changed as it merged them."""
    with np.load(FROM_PEFT / "merged.npz") as changed:
        linear = {f"{name}.weight" for name in linear_modules(tiny.weights) if not name.endswith("lm_head")}
        assert {*changed.files} == linear
        return tiny.weights | dict(changed)


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.shape) for tensor in GGUFFile(str(path)).tensors}


def assert_same_weights(path: Path, want: dict[str, np.ndarray], bar: float = 1e-6) -> None:
    found = read_model(path).weights
    assert found.keys() == want.keys()
    for name, values in want.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=bar, err_msg=name)


def test_weights_are_those_that_peft_merges(
    tiny: TinyCheckpoint, base: Path, from_peft: dict[str, np.ndarray], tmp_path: Path
) -> None:
    for i, source in enumerate((tiny.folder, base)):
        out = quantize(source, tmp_path / f"{i}.gguf", "F32", lora=[FROM_PEFT]).path
        assert_same_weights(out, from_peft)


def test_logits_and_pictures_are_those_of_the_merged_network(
    tiny: TinyCheckpoint, from_peft: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = quantize(tiny.folder, tmp_path / "out.gguf", "F32", lora=[FROM_PEFT]).path
    network = Network(from_peft, read_model(out).config)
    ids = np.arange(1, 40, dtype=np.int32)
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    core = RawCore.open(out, None, n_threads=1, isa="auto", kv_type="f32")
    try:
        assert_near(core.encode_image(pixels), network.encode_image(pixels), 1e-5, "picture")
        logits = core.session(64).prefill([ids], "all")
        assert_near(logits, network.logits([ids]), 1e-5, "logits")
    finally:
        core.close()


def test_merging_before_and_after_the_conversion_is_the_same(
    tiny: TinyCheckpoint, base: Path, everything: Factors, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", everything)
    want = merged(tiny.weights, everything, 2.0 * 0.5)
    for i, source in enumerate((tiny.folder, base)):
        out = quantize(source, tmp_path / f"{i}.gguf", "F32", lora=[(adapter, 0.5)]).path
        assert_same_weights(out, want)


@pytest.mark.parametrize(
    "stored",
    [{}, {"layout": "legacy_kv_b"}, {"layout": "fused_gate_up"}, {"edit": join_qkv}, {"vision": "kimik25"}],
    ids=["split", "kv_b", "gate_up", "qkv", "kimik25"],
)
def test_files_of_every_layout_are_merged(stored: dict[str, Any], tmp_path: Path) -> None:
    """Experts one by one with factors of their own, so that none can take another's place."""
    made = make_tiny_model(tmp_path / "model", seed=2, **stored, **SMALLEST)
    weights = read_model(made.text, made.mmproj).weights
    modules = [name for name in linear_modules(weights) if "vision" not in stored or "wqkv" not in name]
    factors = random_factors(weights, modules, seed=7)
    adapter = write_adapter(tmp_path / "adapter", factors)
    out = quantize(made.text, tmp_path / "out.gguf", "F32", lora=[adapter]).path
    assert_same_weights(out, merged(weights, factors, 2.0))


def test_queries_and_keys_in_another_order_are_not_changed(tmp_path: Path) -> None:
    made = make_tiny_model(tmp_path / "model", vision="kimik25", **SMALLEST)
    weights = read_model(made.text, made.mmproj).weights
    of_queries = [name for name in linear_modules(weights) if "wqkv" in name]
    adapter = write_adapter(tmp_path / "adapter", random_factors(weights, of_queries))
    with pytest.raises(errors.Unsupported, match=r"queries and keys of the vision tower") as caught:
        quantize(made.text, tmp_path / "out.gguf", "F32", lora=[adapter])
    assert caught.value.code == "lora.unsupported"


def test_several_adapters_add_up(tiny: TinyCheckpoint, base: Path, everything: Factors, tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "first", everything)
    some = dict(list(random_factors(tiny.weights, linear_modules(tiny.weights), 4, seed=1).items())[::3])
    second = write_adapter(tmp_path / "second", some, lora_alpha=4)
    out = quantize(base, tmp_path / "out.gguf", "F32", lora=[first, (second, -0.5)]).path
    assert_same_weights(out, merged(merged(tiny.weights, everything, 2.0), some, -0.5))
    stored = GGUFFile(str(out)).get("kimi_vl.lora")
    assert stored.startswith("first scale 1 sha256 ") and "; second scale -0.5 sha256 " in stored


def test_every_linear_module_of_the_network_has_a_place(tiny: TinyCheckpoint, base: Path) -> None:
    shapes = shapes_of(base)
    for name in linear_modules(tiny.weights):
        for prefix in ("", "base_model.model.", "model."):
            module = module_of(prefix + name, shapes)
            assert module is not None and (module.n_out, module.n_in) == tiny.weights[name + ".weight"].shape
            assert sum(place.b_rows for place in module.places) == module.n_out


def test_adapters_of_llama_cpp_are_read(tiny: TinyCheckpoint, base: Path, tmp_path: Path) -> None:
    experts = [f"{LAYER}mlp.experts.{i}.down_proj" for i in range(4)]
    query, keys = LAYER + "self_attn.q_proj", LAYER + "self_attn.kv_b_proj"
    factors = random_factors(tiny.weights, [*experts, query, keys])
    stacked = tuple(np.stack([factors[name][side] for name in experts]) for side in (0, 1))
    stored = {
        "blk.1.ffn_down_exps.weight": stacked,
        "blk.1.attn_q.weight": factors[query],
        "blk.1.attn_kv_b.weight": factors[keys],
    }
    adapter = write_gguf_adapter(tmp_path / "adapter.gguf", stored, alpha=6.0)
    out = quantize(base, tmp_path / "out.gguf", "F32", lora=[adapter]).path
    assert_same_weights(out, merged(tiny.weights, factors, 1.5))


def test_an_adapter_of_scale_zero_changes_no_bit(base: Path, everything: Factors, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", everything)
    out = quantize(base, tmp_path / "out.gguf", "F32", lora=[(adapter, 0.0)]).path
    got, want = read_model(out).weights, read_model(base).weights
    assert all(np.array_equal(got[name], want[name]) for name in want)


def test_an_adapter_of_another_model_is_noticed(base: Path, everything: Factors, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", everything, base_model_name_or_path="x/Kimi-VL-A3B-Thinking")
    notices = "\n".join(quantize(base, tmp_path / "out.gguf", "F32", lora=[adapter]).notices)
    assert "'x/Kimi-VL-A3B-Thinking'" in notices and "'Kimi-VL-A3B-Instruct'" in notices


def test_quantized_sources_are_merged_on_request_alone(tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path / "small.gguf", text_type="Q8_0", vision="none", num_hidden_layers=2).text
    n_out, n_in = shapes_of(source)["blk.1.attn_q.weight"]
    rng = np.random.default_rng(0)
    factors = {LAYER + "self_attn.q_proj": (rng.random((4, n_in), np.float32), rng.random((n_out, 4), np.float32))}
    adapter = write_adapter(tmp_path / "adapter", factors)
    with pytest.raises(errors.BadRequest, match="allow_requantize") as caught:
        quantize(source, tmp_path / "out.gguf", "Q8_0", lora=[adapter])
    assert caught.value.code == "quantize.requantize"
    out = quantize(source, tmp_path / "out.gguf", "Q8_0", lora=[adapter], allow_requantize=True).path
    got, want = read_model(out).weights, merged(read_model(source).weights, factors, 2.0)
    changed = LAYER + "self_attn.q_proj.weight"
    np.testing.assert_allclose(got[changed], want[changed], rtol=0, atol=np.abs(want[changed]).max() / 127)
    assert all(np.array_equal(got[name], want[name]) for name in want if name != changed)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "LOHA"}, "'LOHA'"),
    ({"peft_type": "IA3"}, "'IA3'"),
    ({"use_dora": True}, "DoRA"),
    ({"bias": "lora_only"}, "bias"),
    ({"lora_bias": True}, "lora_bias"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
    ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    ({"init_lora_weights": "olora"}, "olora"),
    ({"init_lora_weights": "loftq"}, "loftq"),
]


@pytest.mark.parametrize(("config", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_what_plain_lora_cannot_say_is_refused_by_name(
    base: Path, everything: Factors, tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    adapter = write_adapter(tmp_path / "adapter", everything, **config)
    with pytest.raises(errors.Unsupported, match=named) as caught:
        open_adapter(adapter, shapes_of(base))
    assert caught.value.code == "lora.unsupported" and str(adapter) in str(caught.value)


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (f"base_model.model.{LAYER}self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        (f"base_model.model.{LAYER}self_attn.q_proj.hada_w1_a", "LoHa"),
        ("base_model.model.language_model.model.embed_tokens.lora_embedding_A", "embeddings"),
        ("base_model.model.language_model.lm_head.modules_to_save.weight", "whole module"),
        ("base_model.model.something.else", "no factor"),
    ],
)
def test_other_tensors_are_refused_by_name(
    base: Path, everything: Factors, tmp_path: Path, tensor: str, named: str
) -> None:
    adapter = write_adapter(tmp_path / "adapter", everything, {tensor: np.ones((4, 4), np.float32)})
    with pytest.raises(errors.Unsupported, match=named) as caught:
        open_adapter(adapter, shapes_of(base))
    assert caught.value.code == "lora.unsupported"


def test_damaged_and_foreign_adapters_are_refused(
    tiny: TinyCheckpoint, base: Path, everything: Factors, tmp_path: Path
) -> None:
    query = LAYER + "self_attn.q_proj"
    a, b = everything[query]
    router = LAYER + "mlp.gate"
    broken = a.copy()
    broken[1, 2] = np.nan
    cases: list[tuple[str, Factors, dict[str, Any], str]] = [
        ("module", {router: (a, b)}, {}, router),
        ("module", {"language_model.model.layers.77.self_attn.q_proj": (a, b)}, {}, "layers.77"),
        ("shape", {query: (a[:, 1:], b)}, {}, r"lora_A has shape \[4, 15\], expected \[4, 16\]"),
        ("shape", {query: (a, b)}, {"r": 8}, r"expected \[8, 16\]"),
        ("empty", {}, {}, "no factors"),
        ("config", {query: (a, b)}, {"r": "eight"}, "r is 'eight'"),
        ("config", {query: (a, b)}, {"lora_alpha": None}, "lora_alpha is None"),
        ("config", {query: (a, b)}, {"lora_alpha": 10**400}, "lora_alpha"),
        *(
            ("config", {query: (a, b)}, {"rank_pattern": {pattern: 4}}, "rank_pattern")
            for pattern in ("(", "(([a-z_.]+)+)+X", "(.*)*(.*)*Q", ".*a.*b.*c", "(?i)o_proj", "(?=.*)q")
        ),
        ("not_finite", {query: (broken, b)}, {}, "lora_A.weight has values that are not finite"),
    ]
    for i, (code, factors, config, match) in enumerate(cases):
        adapter = write_adapter(tmp_path / str(i), factors, **config)
        with pytest.raises(errors.BadModelFile, match=match) as caught:
            quantize(base, tmp_path / "out.gguf", "F32", lora=[adapter], force=True)
        assert caught.value.code == f"lora.{code}" and not (tmp_path / "out.gguf").exists()
    with pytest.raises(errors.BadModelFile, match="no such adapter"):
        open_adapter(tmp_path / "nowhere", {})
    with pytest.raises(errors.BadRequest, match="finite number"):
        quantize(base, tmp_path / "out.gguf", lora=[(tmp_path, float("nan"))])


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"general.type": "model"}, "general.type"),
        ({"adapter.type": "control"}, "adapter.type"),
        ({"general.architecture": "llama"}, "'llama'"),
    ],
)
def test_other_gguf_files_are_no_adapters(base: Path, tmp_path: Path, metadata: dict[str, str], named: str) -> None:
    pair = np.ones((4, 16), np.float32), np.ones((24, 4), np.float32)
    path = write_gguf_adapter(tmp_path / "a.gguf", {"blk.1.attn_q.weight": pair}, **metadata)
    with pytest.raises(errors.BadModelFile, match=named):
        open_adapter(path, shapes_of(base))
