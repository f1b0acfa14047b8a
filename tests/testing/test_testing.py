"""kimi_vl_cpp.testing: the files it writes are what it says they are, as this package's own reader sees them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from reference import Network

from kimi_vl_cpp import _core
from kimi_vl_cpp.testing import (
    ROWS_OF_256,
    SMALLEST,
    TENSOR_TYPES,
    block_of,
    dequantize,
    make_tiny_model,
    make_vocabulary,
    quantize,
    read_model,
)
from kimi_vl_cpp.testing.layout import LAYOUTS

# Relative rounding error of normal numbers. The means of random numbers hardly vary: a tenth more than measured.
ROUNDING = {
    **{
        "F32": 0,
        "F16": 2.3e-4,
        "BF16": 1.9e-3,
        "Q8_0": 6e-3,
        "Q4_0": 0.094,
        "Q4_1": 0.086,
        "Q5_0": 0.047,
        "Q5_1": 0.042,
    },
    **{"Q2_K": 0.36, "Q3_K": 0.17, "Q4_K": 0.086, "Q5_K": 0.042, "Q6_K": 0.021, "IQ4_NL": 0.088, "IQ4_XS": 0.089},
    **{"MXFP4": 0.13, "IQ3_XXS": 0.21, "IQ3_S": 0.15, "IQ2_XXS": 0.39, "IQ2_XS": 0.34, "IQ2_S": 0.29},
    **{"IQ1_S": 0.67, "IQ1_M": 0.61, "TQ1_0": 0.89, "TQ2_0": 0.89},
}


@pytest.mark.parametrize("type_name", TENSOR_TYPES)
def test_blocks_hold_what_was_to_be_rounded(type_name):
    x = np.random.default_rng(0).standard_normal((40, 3, 256), dtype=np.float32)
    blocks = quantize(x, type_name)
    elems, n_bytes = block_of(type_name)
    assert blocks.nbytes == x.size // elems * n_bytes
    got = dequantize(blocks, type_name)
    assert got.shape == x.shape and got.dtype == np.float32
    assert np.linalg.norm(got - x) <= ROUNDING[type_name] * np.linalg.norm(x)
    decoded = _core.decode(type_name, np.ascontiguousarray(blocks).view(np.uint8).reshape(-1), x.size)
    assert np.array_equal(decoded, got.reshape(-1))


@pytest.mark.parametrize("type_name", TENSOR_TYPES)
def test_zeros_stay_zeros(type_name):
    assert not dequantize(quantize(np.zeros((2, 256), np.float32), type_name), type_name).any()


@pytest.mark.parametrize("type_name", ["Q4_0", "Q6_K", "F64", "nonsense"])
def test_rows_and_types_that_cannot_be_are_refused(type_name):
    with pytest.raises(ValueError, match=type_name):
        quantize(np.zeros((2, 40), np.float32), type_name)


@pytest.mark.parametrize("vision", ["mmproj", "single", "kimik25"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_hold_the_weights_that_the_model_tells(tiny_model, layout, vision):
    model = tiny_model(seed=4, layout=layout, vision=vision, text_type="Q5_1", vision_type="F16")
    again = read_model(model.text, model.mmproj)
    assert again.weights.keys() == model.weights.keys()
    assert all(np.array_equal(again.weights[name], model.weights[name]) for name in model.weights)
    assert again.config["vision"] == model.config["vision"]
    for name, value in model.config["text"].items():
        assert again.config["text"][name] == pytest.approx(value), name
    found = {}
    for path in {model.text, model.mmproj} - {None}:
        file = _core.GGUFFile(str(path))
        found |= {tensor.name: (tensor.type, file.tensor_f32(tensor.name)) for tensor in file.tensors}
    assert found.keys() == model.encoded.keys()
    for name, (type_name, values) in found.items():
        assert type_name == model.encoded[name][0]
        assert np.array_equal(values, model.tensors[name])


def test_layouts_are_layouts_of_the_same_weights(tiny_model):
    first, *others = (tiny_model(seed=4, layout=layout, vision=v) for layout in LAYOUTS for v in ("mmproj", "kimik25"))
    for other in others:
        assert other.weights.keys() == first.weights.keys()
        assert all(np.array_equal(other.weights[name], first.weights[name]) for name in first.weights)
        assert other.encoded.keys() != first.encoded.keys()


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    paths = [make_tiny_model(tmp_path / name, seed=7, text_type="Q4_K_M").files for name in "ab"]
    for a, b in zip(*paths, strict=True):
        assert a.name == b.name and a.read_bytes() == b.read_bytes()
    other = make_tiny_model(tmp_path / "c", seed=8, text_type="Q4_K_M").text
    assert other.read_bytes() != paths[0][0].read_bytes()


def test_sizes(tmp_path):
    default = make_tiny_model(tmp_path)
    assert sum(path.stat().st_size for path in default.files) < 1.2e6
    smallest = make_tiny_model(tmp_path / "s.gguf", text_type="F16", vision="none", **SMALLEST)
    assert smallest.files == (tmp_path / "s.gguf",) and smallest.mmproj is None
    assert smallest.text.stat().st_size < 1 << 16


def test_shards_are_a_split_file(tmp_path):
    model = make_tiny_model(tmp_path / "big.gguf", shards=3)
    assert [path.name for path in model.files[:3]] == [f"big-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert model.mmproj == tmp_path / "mmproj-big.gguf"
    file = _core.GGUFFile(str(model.text))
    assert file.n_shards == 3
    assert [tensor.shard for tensor in file.tensors] == sorted(tensor.shard for tensor in file.tensors)
    assert [t.name for t in file.tensors] == [name for name in model.encoded if not name.startswith(("v.", "mm."))]


def test_converters_types_and_fallbacks(tiny_model):
    types = {
        name: t for name, (t, _) in tiny_model(text_type="Q4_K_M", vision_type="Q8_0", **ROWS_OF_256).encoded.items()
    }
    assert types["output.weight"] == "Q6_K" and types["token_embd.weight"] == "Q4_K"
    assert types["blk.1.attn_k_b.weight"] == "Q5_0"  # rows of 32
    assert {types[f"blk.{i}.ffn_down{kind}.weight"] for i, kind in enumerate(("", "_exps", "_shexp"))} <= {
        "Q4_K",
        "Q6_K",
    }
    assert {t for name, t in types.items() if "norm" in name or "bias" in name or "gate_inp" in name} == {"F32"}
    assert types["v.patch_embd.weight"] == types["v.position_embd.weight"] == "F32"
    assert types["v.blk.0.ffn_down.weight"] == "Q8_0"
    small = tiny_model(text_type="Q4_K", vision_type="Q8_0", kv_lora_rank=40, vision_intermediate_size=50)
    types = {name: t for name, (t, _) in small.encoded.items()}
    assert types["blk.0.attn_q.weight"] == "Q5_0"  # rows of 64
    assert types["blk.0.attn_v_b.weight"] == "F16"  # rows of 40
    assert types["v.blk.0.ffn_down.weight"] == "F16"  # rows of 50


def test_routing_margins(tiny_model):
    """Wide: far beyond what rounding moves, and the bias matters. Random: near ties."""
    shapes = [{}, ROWS_OF_256, {"n_routed_experts": 64, "num_experts_per_tok": 6}, {"num_hidden_layers": 6}]
    for shape in shapes:
        model = tiny_model(seed=6, **shape)
        timeline = Network(model.weights, model.config).timeline()
        timeline.extend([model.random_ids(200)])
        assert timeline.margin.min() > 0.1
        biased = 0
        for name, bias in model.weights.items():
            if name.endswith("e_score_correction_bias"):
                gate = model.weights[name.replace("e_score_correction_bias", "weight")]
                k = model.config["text"]["num_experts_per_tok"]
                scores = 1 / (1 + np.exp(-gate[:, :16].T * 2))  # a row for each class of tokens
                with_bias, without = (np.sort(np.argsort(-s)[:, :k]) for s in (scores + bias, scores))
                biased += int((with_bias != without).any(-1).sum())
        assert biased >= 8
    model = tiny_model(seed=6, routing="random")
    timeline = Network(model.weights, model.config).timeline()
    timeline.extend([model.random_ids(200)])
    assert timeline.margin.min() < 0.01


def test_activations_stay_near_one(tiny_model):
    for shape in ({}, ROWS_OF_256, {"num_hidden_layers": 8}):
        model = tiny_model(seed=1, **shape)
        network = Network(model.weights, model.config)
        embeddings = network.encode_image(model.random_picture(84, 84))
        logits = network.logits([model.random_ids(50), embeddings])
        assert 0.5 < embeddings.std() < 2 and 1.5 < logits.std() < 4


def test_answers_are_text_and_go_on(tiny_model):
    for seed in range(3):
        model = tiny_model(seed=seed)
        ids = Network(model.weights, model.config).greedy([model.random_ids(9)], 60)
        assert sum(i >= model.vocabulary.base for i in ids) <= 3


def test_metadata_of_both_files(tmp_path):
    model = make_tiny_model(
        tmp_path,
        name="Some Name",
        version=2,
        with_bos_eos=False,
        metadata={"deepseek2.context_length": 77, "general.type": None, "x.list": [1, 2], "x.flag": True},
        mmproj_metadata={"clip.vision.patch_size": (gguf.GGUFValueType.UINT8, 14)},
    )
    text, vision = _core.GGUFFile(str(model.text)), _core.GGUFFile(str(model.mmproj))
    assert text.version == vision.version == 2
    assert text.get("general.name") == vision.get("general.name") == "Some Name"
    assert text.get("deepseek2.context_length") == 77 and text.get("x.list") == [1, 2] and text.get("x.flag") is True
    assert text.get("general.type") is None
    assert text.get("tokenizer.ggml.bos_token_id") is None and text.get("tokenizer.ggml.eos_token_id") is None
    assert text.get("tokenizer.ggml.padding_token_id") == model.special["[PAD]"]
    assert vision.value_type("clip.vision.patch_size") == "u8"
    assert text.value_type("deepseek2.rope.freq_base") == "f32"


def test_edits_change_the_files_and_the_weights(tmp_path):
    def edit(tensors):
        tensors["output_norm.weight"][:] = 3
        del tensors["output.weight"]
        tensors["extra.weight"] = np.ones((2, 5), np.float32)

    model = make_tiny_model(tmp_path, edit=edit)
    file = _core.GGUFFile(str(model.text))
    assert file.tensor_f32("output_norm.weight").tolist() == [3.0] * 64
    assert file.tensor_f32("extra.weight").shape == (2, 5)
    assert "output.weight" not in {tensor.name for tensor in file.tensors}
    assert "language_model.lm_head.weight" not in model.weights


@pytest.mark.parametrize("n_vocab", [512, 576, 2048])
def test_kimi_vocabulary_is_shaped_like_the_real_one(n_vocab):
    vocabulary = make_vocabulary("kimi", n_vocab, seed=1)
    assert len(vocabulary.tokens) == len(set(vocabulary.tokens)) == len(vocabulary.types) == n_vocab
    assert vocabulary.base == n_vocab - 256 == vocabulary.special["[BOS]"]
    assert vocabulary.tokens[11] == "," and vocabulary.tokens[198] == "Ċ" and vocabulary.tokens[220] == "Ġ"
    assert sorted(vocabulary.bytes_of[:256]) == [bytes([b]) for b in range(256)]
    assert len(vocabulary.merges) == n_vocab - 512
    for i, merge in enumerate(vocabulary.merges):  # pair by pair, in the order of the ids
        assert merge.replace(" ", "") == vocabulary.tokens[256 + i]
    for i, text in ((2, "<|im_end|>"), (10, "<|im_system|>"), (17, "<|im_middle|>"), (21, "<|media_pad|>")):
        assert vocabulary.tokens[vocabulary.base + i] == text


def test_sentence_piece_vocabulary():
    vocabulary = make_vocabulary("spm", 700)
    assert vocabulary.tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"] and len(set(vocabulary.tokens)) == 700
    assert len(vocabulary.scores) == len(vocabulary.types) == len(vocabulary.tokens) == 700
    assert vocabulary.types[:4] == [2, 3, 3, 6] and vocabulary.types[-1] == 3
    assert vocabulary.special["<|im_end|>"] == vocabulary.tokens.index("<|im_end|>")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"layout": "flat"}, "layout='flat'"),
        ({"vision": "yes"}, "vision='yes'"),
        ({"text_type": "Q9_K"}, "text_type='Q9_K'"),
        ({"vision_type": "Q4_K_M"}, "vision_type='Q4_K_M'"),
        ({"routing": "narrow"}, "routing='narrow'"),
        ({"vocab": "bpe"}, "vocab='bpe'"),
        ({"n_vocab": 300}, "n_vocab=300"),
        ({"shards": 0}, "shards=0"),
        ({"shards": 1000}, "shards=1000"),
        ({"hiden_size": 64}, "hiden_size"),
        ({"vision_depth": 2}, "vision_depth"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim=7"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"vision_hidden_size": 36}, "vision_hidden_size"),
        ({"tensor_types": {"output.weight": "Q6_K"}}, "output.weight"),
        ({"metadata": {"x": {}}}, "metadata value"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message.replace("[", "\\[")):
        make_tiny_model(tmp_path, **arguments)
