"""The engine against the NumPy network on tiny models: layouts, tensor types and shapes, on every instruction set."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from engine_support import (
    CACHE_F16,
    FLOAT,
    INT8,
    PICTURE_BF16,
    PICTURE_HALVES,
    Expected,
    decode,
    greedy,
    open_engine,
    prefill,
)
from kernel_support import every_isa_in_floats, isas_with_own
from reference import Network
from vectors import assert_near, assert_same_bits, relative_error

from kimi_vl_cpp._core import Session
from kimi_vl_cpp.testing import ROWS_OF_256, SMALLEST, TENSOR_TYPES


@pytest.fixture(scope="module")
def expected(network_of):
    made = {}

    def get(model) -> Expected:
        if model.text not in made:
            made[model.text] = Expected(model, network_of(model))
        return made[model.text]

    return get


LAYOUTS = {
    "split": {},
    "legacy_kv_b": {"layout": "legacy_kv_b"},
    "fused_gate_up": {"layout": "fused_gate_up"},
    "single file": {"vision": "single"},
    "kimik25": {"vision": "kimik25"},
    "shards": {"shards": 4},
    "single file in shards": {"vision": "single", "shards": 3},
    "kimik25, legacy, version 2": {"vision": "kimik25", "layout": "legacy_kv_b", "version": 2},
    "no vision": {"vision": "none"},
    "no bos and eos keys": {"with_bos_eos": False},
    "SentencePiece": {"vocab": "spm", "n_vocab": 700},
    "tied embeddings": {"tie_word_embeddings": True},
    "near ties in routing": {"routing": "random"},
}


@pytest.mark.parametrize("name", LAYOUTS)
@every_isa_in_floats
def test_every_layout_gives_the_reference(tiny_model, expected, isa, name):
    model = tiny_model(seed=3, **LAYOUTS[name])
    engine, want = open_engine(model, isa), expected(model)
    want.check_vision(engine)
    want.check_text(engine)
    want.check_greedy(engine)


# Odd sizes, so that every remainder loop runs and every assumption of a multiple fails.
SHAPES = {
    "three heads": dict(num_attention_heads=3, qk_nope_head_dim=20, v_head_dim=12, kv_lora_rank=28, qk_rope_head_dim=6),
    "one head": dict(num_attention_heads=1, hidden_size=40, qk_nope_head_dim=10, v_head_dim=14, kv_lora_rank=18),
    "all odd": dict(
        **dict(num_attention_heads=5, hidden_size=33, intermediate_size=35, moe_intermediate_size=11, n_vocab=577),
        **dict(qk_nope_head_dim=7, v_head_dim=9, kv_lora_rank=13, qk_rope_head_dim=2),
        **dict(n_routed_experts=5, num_experts_per_tok=3),
    ),
    "the real heads": dict(
        **dict(num_attention_heads=16, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, kv_lora_rank=512),
        **dict(num_hidden_layers=2),
    ),
    "64 experts": dict(n_routed_experts=64, num_experts_per_tok=6, moe_intermediate_size=8),
    "all experts": dict(n_routed_experts=3, num_experts_per_tok=3),
    "one expert, none shared": dict(n_routed_experts=1, num_experts_per_tok=1, n_shared_experts=0),
    "three shared experts": dict(n_shared_experts=3),
    "weights not normalised": dict(norm_topk_prob=False),
    "no dense layer": dict(first_k_dense_replace=0),
    "dense layers only": dict(first_k_dense_replace=3),
    "one layer": dict(num_hidden_layers=1),
    "smallest": dict(SMALLEST, vision="none"),
    "tower of three heads of 12": dict(
        vision_hidden_size=36, vision_num_attention_heads=3, vision_intermediate_size=50, vision_position_side=5
    ),
    "tower of one head of 72": dict(vision_hidden_size=72, vision_num_attention_heads=1, vision_intermediate_size=71),
    "tower with the real table": dict(
        vision_hidden_size=144, vision_num_attention_heads=2, vision_intermediate_size=304, vision_position_side=64
    ),
}


@pytest.mark.parametrize("name", SHAPES)
@every_isa_in_floats
def test_every_shape_gives_the_reference(tiny_model, expected, isa, name):
    model = tiny_model(seed=5, **SHAPES[name])
    engine, want = open_engine(model, isa), expected(model)
    want.check_vision(engine)
    want.check_text(engine)
    want.check_text(engine, CACHE_F16, "f16")


MIXES = ("Q4_K_M", "Q5_K_M")
TYPE_SHAPE = {**ROWS_OF_256, "num_hidden_layers": 2, "n_routed_experts": 4}


@pytest.mark.parametrize("type_name", [*TENSOR_TYPES, *MIXES])
def test_every_tensor_type_gives_the_reference(tiny_model, expected, isa, type_name):
    vision_type = "Q8_0" if type_name in MIXES else type_name
    model = tiny_model(seed=5, text_type=type_name, vision_type=vision_type, **TYPE_SHAPE)
    want = expected(model)
    assert want.margin > 0.04  # else rounding activations could choose other experts
    exact = open_engine(model, isa, activations="float")
    want.check_vision(exact)
    want.check_text(exact)
    fast = open_engine(model, isa)
    floats = type_name in ("F32", "F16", "BF16")
    if floats or isa in isas_with_own("bf16 products"):
        want.check_vision(fast, FLOAT if floats else PICTURE_BF16)
    else:
        want.check_vision(fast, FLOAT, PICTURE_HALVES)
    want.check_text(fast, FLOAT if floats else INT8)


@pytest.mark.parametrize("text_type, options", [("Q8_0", {}), ("Q8_0", {"activations": "float"}), ("F16", {})])
def test_what_leaves_the_projector_beside_bytes_are_halves(tiny_model, text_type, options):
    """So that a picture that was kept as halves is the one that was encoded."""
    model = tiny_model(seed=5, text_type=text_type, vision_type="F16", **TYPE_SHAPE)
    embedding = open_engine(model, **options).encode_image(model.random_picture(56, 84))
    halves = embedding.astype(np.float16)
    assert np.array_equal(halves, embedding) == (text_type == "Q8_0" and not options)


@pytest.mark.parametrize("layout", ["legacy_kv_b", "fused_gate_up"])
@pytest.mark.parametrize("type_name", ["Q4_K", "Q8_0", "MXFP4"])
def test_quantized_views_of_larger_tensors(tiny_model, expected, isa, layout, type_name):
    model = tiny_model(seed=8, layout=layout, text_type=type_name, vision="kimik25", vision_type="Q8_0", **TYPE_SHAPE)
    want = expected(model)
    exact = open_engine(model, isa, activations="float")
    want.check_vision(exact)
    want.check_text(exact)
    want.check_text(open_engine(model, isa), INT8)


@pytest.mark.parametrize(("text_type", "vision_type"), [("F16", "F16"), ("F32", "Q8_0"), ("Q8_0", "F32")])
def test_pictures_of_files_with_floats_are_seen_in_floats(tiny_model, expected, isa, text_type, vision_type):
    model = tiny_model(seed=3, text_type=text_type, vision_type=vision_type, **TYPE_SHAPE)
    expected(model).check_vision(open_engine(model, isa))


def test_each_tensor_is_read_by_its_own_type(tiny_model, expected, isa):
    """No two matrices of a layer have the same type, and layers differ, as in files with types chosen per tensor."""
    names = ["attn_q", "attn_kv_a_mqa", "attn_k_b", "attn_v_b", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    names += [f"ffn_{part}_{kind}" for kind in ("exps", "shexp") for part in ("gate", "up", "down")]
    types = [t for t in TENSOR_TYPES if t != "F32"]
    chosen = {"token_embd.weight": "Q3_K", "output.weight": "IQ4_XS", "blk.*.ffn_gate_inp.weight": "F16"}
    for layer in range(3):
        for i, name in enumerate(names):
            chosen[f"blk.{layer}.{name}.weight"] = types[(i + 5 * layer) % len(types)]
        chosen[f"blk.{layer}.attn_k_b.weight"] = ("Q5_0", "Q8_0", "IQ4_NL")[layer]  # rows of 32
    for i, name in enumerate(("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down")):
        chosen[f"v.blk.*.{name}.weight"] = ("Q4_0", "Q8_0", "F16", "BF16", "Q5_1", "MXFP4")[i]
    chosen |= {"mm.1.weight": "Q6_K", "mm.2.weight": "Q2_K", "v.patch_embd.weight": "BF16"}
    model = tiny_model(seed=2, tensor_types=chosen, **ROWS_OF_256)
    assert len({t for name, (t, _) in model.encoded.items() if name.startswith("blk.1.") and "norm" not in name}) > 9
    want = expected(model)
    exact = open_engine(model, isa, activations="float")
    want.check_vision(exact)
    want.check_text(exact)
    want.check_text(open_engine(model, isa), INT8)


def network_with(model, text=None, vision=None) -> Network:
    """The reference with other config values."""
    return Network(
        model.weights,
        {"text": {**model.config["text"], **(text or {})}, "vision": {**model.config["vision"], **(vision or {})}},
    )


def test_mean_and_deviation_of_pixels_are_the_files(tiny_model, isa):
    mean, std = [0.5, 0.25, 0.125], [0.5, 0.75, 1.5]  # exact in float32
    model = tiny_model(mmproj_metadata={"clip.vision.image_mean": mean, "clip.vision.image_std": std})
    pixels = model.random_picture(56, 84)
    want = network_with(model, vision={"image_mean": mean, "image_std": std}).encode_image(pixels)
    assert_near(open_engine(model, isa).encode_image(pixels), want, FLOAT)


def rope_keys(**values):
    return {f"deepseek2.rope.scaling.{key}": value for key, value in values.items()}


def test_linear_rope_scaling(tiny_model):
    model = tiny_model(metadata=rope_keys(type="linear", factor=4.0))
    want = network_with(model, {"rope_scaling": {"type": "linear", "factor": 4.0}}).logits([model.random_ids(90)])
    assert_near(prefill(open_engine(model), [model.random_ids(90)]), want, FLOAT)


def test_yarn_rope_scaling(tiny_model):
    model = tiny_model(
        qk_rope_head_dim=16,
        metadata=rope_keys(type="yarn", factor=32.0, original_context_length=4096, yarn_log_multiplier=0.1),
    )
    scaling = {"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "mscale_all_dim": 1.0}
    scaling |= {"beta_fast": 32.0, "beta_slow": 1.0}
    plain, want = (network_with(model, {"rope_scaling": s}).logits([model.random_ids(90)]) for s in (None, scaling))
    assert relative_error(plain, want) > 0.01  # so that the test can tell
    assert_near(prefill(open_engine(model), [model.random_ids(90)]), want, FLOAT)


def test_softmax_scores(tiny_model):
    model = tiny_model(metadata={"deepseek2.expert_gating_func": 1}, routing="random")
    want = network_with(model, {"scoring_func": "softmax"}).logits([model.random_ids(50)])
    assert_near(prefill(open_engine(model), [model.random_ids(50)]), want, FLOAT)


def test_absent_keys_have_the_models_values(tiny_model, expected):
    absent = (
        "expert_gating_func",
        "expert_group_count",
        "expert_group_used_count",
        "expert_weights_norm",
        "vocab_size",
    )
    model = tiny_model(seed=3, metadata={f"deepseek2.{key}": None for key in absent})
    expected(model).check_text(open_engine(model))
    # The integer types that other writers choose.
    model = tiny_model(seed=3, metadata={"deepseek2.block_count": (gguf.GGUFValueType.UINT64, 3)})
    expected(model).check_text(open_engine(model))


def test_a_softmax_router_may_have_no_bias(tiny_model):
    """A sigmoid router must have one: see test_model_rules.py."""

    def without(tensors):
        for name in [name for name in tensors if "exp_probs_b" in name]:
            del tensors[name]

    model = tiny_model(edit=without, metadata={"deepseek2.expert_gating_func": 1}, routing="random")
    assert "language_model.model.layers.1.mlp.gate.e_score_correction_bias" not in model.weights
    want = network_with(model, {"scoring_func": "softmax"}).logits([model.random_ids(50)])
    assert_near(prefill(open_engine(model), [model.random_ids(50)]), want, FLOAT)


# Values far from the ordinary.


def scaled(*patterns: str, factor: float):
    def edit(tensors):
        found = [name for name in tensors if any(pattern in name for pattern in patterns)]
        assert found
        for name in found:
            tensors[name] *= np.float32(factor)

    return edit


@pytest.mark.parametrize("pattern", ["token_embd", "attn_kv_a_mqa"])
def test_small_signals_meet_each_epsilon_of_the_decoder(tiny_model, isa, pattern):
    """At an rms of 0.01 an epsilon of 1e-5 takes 5 % off, and 1e-6, that of the latents, ten times less."""
    model = tiny_model(edit=scaled(pattern, factor=0.01), routing="random")
    network = Network(model.weights, model.config)
    want, ids = network.logits([model.random_ids(40)]), model.random_ids(40)
    other = Network(model.weights, {"text": {**model.config["text"], "rms_norm_eps": 1e-6}, "vision": None})
    assert pattern != "token_embd" or relative_error(other.logits([ids]), want) > 100 * FLOAT
    assert_near(prefill(open_engine(model, isa), [ids]), want, FLOAT)


def test_small_signals_meet_the_epsilons_of_the_tower(tiny_model, isa):
    model = tiny_model(edit=scaled("v.patch_embd", "v.position_embd", "v.post_ln", factor=0.01))
    pixels, network = model.random_picture(84, 56), Network(model.weights, model.config)
    engine = open_engine(model, isa)
    assert_near(engine.vision_tower(pixels), network.vision_tower(pixels), FLOAT, "tower")
    assert_near(engine.encode_image(pixels), network.encode_image(pixels), FLOAT, "projector")


def test_the_epsilons_of_files_are_used(tiny_model):
    model = tiny_model(
        metadata={"deepseek2.attention.layer_norm_rms_epsilon": 0.125},
        mmproj_metadata={"clip.vision.attention.layer_norm_epsilon": 0.25},
    )
    network = network_with(model, {"rms_norm_eps": 0.125}, {"layer_norm_eps": 0.25})
    engine, pixels, ids = open_engine(model), model.random_picture(56, 56), model.random_ids(20)
    assert_near(engine.encode_image(pixels), network.encode_image(pixels), FLOAT)
    assert_near(prefill(engine, [ids]), network.logits([ids]), FLOAT)


@pytest.mark.parametrize("chunk", [0, 33])
def test_sharp_attention_stays_exact(tiny_model, isa, chunk):
    """Scores of some hundreds: the running maximum of the softmax has to follow."""
    model = tiny_model(edit=scaled("attn_q.weight", factor=60), num_hidden_layers=1, first_k_dense_replace=1)
    ids = model.random_ids(150)
    want = Network(model.weights, model.config).logits([ids])
    engine = open_engine(model, isa)
    # An error of the scores (6e-8 of 500) is one of the weights: sixty times the ordinary bar would be its bound.
    assert_near(prefill(engine, [ids], chunk=chunk), want, 10 * FLOAT)
    assert_near(decode(engine, ids), want, 10 * FLOAT)


def test_sharp_attention_of_the_tower_stays_exact(tiny_model, isa):
    model = tiny_model(edit=scaled("attn_q", factor=60), vision_num_hidden_layers=1)
    pixels = model.random_picture(140, 196)
    want = Network(model.weights, model.config).vision_tower(pixels)
    assert_near(open_engine(model, isa).vision_tower(pixels), want, 10 * FLOAT)


@pytest.fixture(scope="module")
def long_timeline(tiny_model, network_of):
    """A model, 5000 ids and the logits of the last 3 of 4000, of 4994 and of 5000 positions."""
    model = tiny_model(**SMALLEST, vision="none", max_position_embeddings=8192)
    ids = model.random_ids(5000)
    timeline = network_of(model).timeline(absorbed=True)
    return model, ids, [timeline.extend([piece])[-3:] for piece in np.split(ids, [4000, 4994])]


def test_a_long_timeline_stays_exact(long_timeline, isa):
    """Far positions (rotations of thousands of radians, many blocks of keys), prefilled and then decoded."""
    model, ids, want = long_timeline
    session = Session(open_engine(model, isa), 5000, "f32")
    # Angles up to 5000 in float32 frequencies: 5000 x 6e-8 = 3e-4 rad on the fastest pairs, less where it matters.
    assert_near(session.prefill([ids[:4000]], logits="all")[-3:], want[0], 10 * FLOAT, "one prefill")
    assert_near(session.prefill([ids[4000:4994]], logits="all")[-3:], want[1], 10 * FLOAT, "a second one")
    rows = []
    for token in ids[4994:]:
        session.decode(int(token))
        rows.append(session.logits)
    assert_near(np.stack(rows[-3:]), want[2], 10 * FLOAT, "decode")


@pytest.mark.parametrize("size", [(28, 7140), (7140, 28), (476, 700)])
def test_large_grids(tiny_model, network_of, size):
    """The longest side that pictures may have, and a grid of 34 x 50."""
    model = tiny_model()
    pixels = model.random_picture(*size)
    assert_near(open_engine(model).encode_image(pixels), network_of(model).encode_image(pixels), FLOAT)


def test_many_pictures_in_one_prompt(tiny_model, network_of, isa):
    model = tiny_model()
    engine, network = open_engine(model, isa), network_of(model)
    sizes = [(28, 28), (56, 84), (84, 28), (112, 140), (28, 28), (140, 84)]
    pictures = [model.random_picture(*size, seed=i) for i, size in enumerate(sizes)]
    got, want = [model.random_ids(3)], [model.random_ids(3)]
    for i, pixels in enumerate(pictures):
        got += [engine.encode_image(pixels), model.random_ids(2, seed=i)]
        want += [network.encode_image(pixels), model.random_ids(2, seed=i)]
    assert_near(prefill(engine, got), network.logits(want), FLOAT)
    assert greedy(engine, got, 10) == network.greedy(want, 10)


def test_a_picture_is_encoded_alone(tiny_model):
    """Nothing stays from the picture before."""
    model = tiny_model()
    engine = open_engine(model)
    small, large = model.random_picture(28, 56), model.random_picture(280, 252)
    first = engine.encode_image(small)
    engine.encode_image(large)
    assert_same_bits(engine.encode_image(small), first)
