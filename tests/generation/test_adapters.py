"""LoRA adapters beside the weights: the merged model's answers, whoever else is answered, and nobody else's cache.

Oracles: models that `quantize` merged, the weights that PEFT itself merged (vectors/lora), models opened afresh.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from adapter_files import (
    join_qkv,
    linear_modules,
    random_factors,
    random_gguf_adapter,
    write_adapter,
    write_gguf_adapter,
)
from checkpoint_files import TinyCheckpoint, write_checkpoint
from reference import Network
from vectors import VECTORS, assert_near, assert_same_bits

from kimi_vl_cpp import BadModelFile, BadRequest, Conversation, KimiVL, Unsupported
from kimi_vl_cpp._core import Engine, Session
from kimi_vl_cpp.generation.adapters import load_adapters
from kimi_vl_cpp.quantize import quantize
from kimi_vl_cpp.testing import ROWS_OF_256, read_model
from kimi_vl_cpp.testing.shapes import SMALLEST

IDS = (np.arange(300, dtype=np.int32) * 7) % 500
PIXELS = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
FROM_PEFT = VECTORS / "lora"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    return write_checkpoint(tmp_path_factory.mktemp("lora") / "Kimi-VL-A3B-Instruct", dtype="F32", **SMALLEST)


@pytest.fixture(scope="module")
def base(checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(checkpoint.folder, tmp_path_factory.mktemp("base") / "base.gguf", "F32").path


@pytest.fixture(scope="module")
def everything(checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of every linear module."""
    factors = random_factors(checkpoint.weights, linear_modules(checkpoint.weights))
    return write_adapter(tmp_path_factory.mktemp("all") / "adapter", factors)


@pytest.fixture(scope="module")
def quantized(tiny_model):
    return tiny_model(seed=3, text_type="Q4_K_M", **ROWS_OF_256)


@pytest.fixture(scope="module")
def named(quantized, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("named")
    files = quantized.text, quantized.mmproj
    return {
        "x": random_gguf_adapter(folder / "x.gguf", *files, seed=1),
        "y": random_gguf_adapter(folder / "y.gguf", *files, seed=2, rank=3),
        "text": random_gguf_adapter(folder / "text.gguf", quantized.text, seed=3, only="attn_"),
    }


def computed(engine: Engine, adapter: int = -1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of a prompt in both forms, of tokens one by one, and a picture."""
    session = Session(engine, 400, "f32", None, adapter)
    prompt = session.prefill([IDS], logits="all")
    tokens = []
    for token in IDS[:5]:
        session.decode(int(token))
        tokens.append(session.logits)
    return prompt, np.stack(tokens), engine.encode_image(PIXELS, None, adapter)


def test_side_products_are_the_merged_model(checkpoint, base, everything, isa, tmp_path):
    merged = quantize(checkpoint.folder, tmp_path / "merged.gguf", "F32", lora=[everything]).path
    engine = Engine(str(base), None, 1, isa)
    adapters = load_adapters(engine, everything)
    found, expected = computed(engine, adapters.always.index), computed(Engine(str(merged), None, 1, isa))
    for got, want in zip(found, expected, strict=True):
        assert_near(got, want, 1e-5)
    assert not np.allclose(computed(engine)[0], computed(engine, adapters.always.index)[0], atol=0.1)


def test_side_products_are_what_peft_merges(checkpoint, base):
    engine = Engine(str(base))
    adapter = load_adapters(engine, FROM_PEFT).always.index
    with np.load(FROM_PEFT / "merged.npz") as changed:
        network = Network(checkpoint.weights | dict(changed), read_model(base).config)
    prompt, _, picture = computed(engine, adapter)
    assert_near(prompt, network.logits([IDS]), 1e-5)
    assert_near(picture, network.encode_image(PIXELS), 1e-5)


@pytest.mark.parametrize("layout", ["legacy_kv_b", "fused_gate_up"])
def test_joined_tensors_are_taken_apart(tiny_model, tmp_path, layout):
    split = tiny_model(seed=5, text_type="F32", **SMALLEST)
    other = tiny_model(seed=5, text_type="F32", layout=layout, **SMALLEST)
    adapter = random_gguf_adapter(tmp_path / "a.gguf", split.text, seed=4)
    engines = [Engine(str(model.text)) for model in (other, split)]
    for engine in engines:
        assert load_adapters(engine, adapter).always.index == 0
    got, want = (Session(engine, 400, "f32", None, 0).prefill([IDS]) for engine in engines)
    assert_near(got, want, 1e-5)


def test_a_joined_tensor_of_the_tower_is_taken_apart(tiny_model, tmp_path):
    split, joined = (tiny_model(seed=5, edit=edit, **SMALLEST) for edit in (None, join_qkv))
    weights = read_model(split.text, split.mmproj).weights
    of_pictures = [name for name in linear_modules(weights) if "encoder" in name or "projector" in name]
    adapter = write_adapter(tmp_path / "adapter", random_factors(weights, of_pictures))
    named = random_gguf_adapter(tmp_path / "a.gguf", split.mmproj, seed=4, only="attn_")
    engines = [Engine(str(model.text), str(model.mmproj)) for model in (joined, split)]
    plain = engines[0].encode_image(PIXELS)
    for index, source in enumerate((adapter, named)):
        for engine in engines:
            assert load_adapters(engine, source).always.index == index
        got, want = (engine.encode_image(PIXELS, None, index) for engine in engines)
        assert_near(got, want, 1e-5)
        assert np.abs(got - plain).max() > 0.01 * np.abs(plain).max()


def test_of_a_kimik25_file_only_queries_and_keys_of_pictures_are_refused(tiny_model, tmp_path):
    made, plain = (tiny_model(seed=5, vision=vision, **SMALLEST) for vision in ("kimik25", "mmproj"))
    weights = read_model(plain.text, plain.mmproj).weights
    of_pictures = [name for name in linear_modules(weights) if "encoder" in name or "projector" in name]
    kept = random_factors(weights, [name for name in of_pictures if "wqkv" not in name])
    engines = [Engine(str(model.text), str(model.mmproj)) for model in (made, plain)]
    for engine in engines:
        load_adapters(engine, write_adapter(tmp_path / "kept", kept))
    assert_near(*(engine.encode_image(PIXELS, None, 0) for engine in engines), 1e-5)
    with pytest.raises(Unsupported, match="queries and keys of the vision tower"):
        load_adapters(engines[0], write_adapter(tmp_path / "all", random_factors(weights, of_pictures)))


def test_several_adapters_and_scales_add_up(base, everything):
    whole, halves, none = Engine(str(base)), Engine(str(base)), Engine(str(base))
    load_adapters(whole, everything)
    load_adapters(halves, [(everything, 0.75), (everything, 0.25)])
    load_adapters(none, (everything, 0.0))
    for got, want in zip(computed(halves, 0), computed(whole, 0), strict=True):
        assert_near(got, want, 1e-5)
    for got, want in zip(computed(none, 0), computed(none), strict=True):
        np.testing.assert_array_equal(got, want)


def test_without_an_adapter_the_bits_are_those_of_a_model_that_has_none(quantized, named):
    plain, adapted = (Engine(str(quantized.text), str(quantized.mmproj)) for _ in range(2))
    load_adapters(adapted, named)
    for got, want in zip(computed(adapted), computed(plain), strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize(("text_type", "n_threads"), [("Q4_K_M", 1), ("Q4_K_M", 3), ("F32", 2)])
def test_rows_have_their_bits_beside_rows_of_other_adapters(tiny_model, tmp_path, text_type, n_threads):
    model = tiny_model(seed=3, text_type=text_type, **ROWS_OF_256)
    engine = Engine(str(model.text), str(model.mmproj), n_threads)
    paths = {name: random_gguf_adapter(tmp_path / f"{name}.gguf", model.text, seed=ord(name)) for name in "xy"}
    load_adapters(engine, paths)
    adapters = [0, 1, -1, 0, 1, -1, 0]
    alone = [Session(engine, 400, "f16", None, adapter) for adapter in adapters]
    beside = [Session(engine, 400, "f16", None, adapter) for adapter in adapters]
    for index, session in enumerate(alone):
        session.prefill([IDS[index : index + 140]])
        for token in IDS[:4]:
            session.decode(int(token))
        session.prefill([IDS[:3]], expanded=np.zeros(3, bool))
    for index, session in enumerate(beside):
        session.prefill([IDS[index : index + 140]], chunk=50)
    for token in IDS[:4]:
        assert engine.decode([(session, int(token), None) for session in beside]) == [None] * len(beside)
    engine.step([(s, IDS[:3].copy(), "last") for s in beside], expanded=[np.zeros(3, bool)] * len(beside))
    for index, (one, other) in enumerate(zip(alone, beside, strict=True)):
        assert_same_bits(other.logits, one.logits, f"session {index}")
    assert len({session.logits.tobytes() for session in alone}) == len(alone)


def answers(model: KimiVL, picture: np.ndarray, lora: str | None) -> list:
    options = {"temperature": 0, "max_new_tokens": 6, "lora": lora, "logprobs": 0}
    responses = [model.chat("what is this " * 70, [picture], **options), model.chat("and " * 200, **options)]
    return [(r.token_ids, [one.logprob for one in r.logprobs]) for r in responses]


def test_no_request_takes_what_another_adapter_computed(quantized, named, tmp_path):
    """One model asked under each adapter in turn, with a cache folder, against models opened afresh."""
    want = {}
    for name, path in [(None, None), *named.items()]:
        with KimiVL(quantized.text, lora=path, n_ctx=1024) as fresh:
            want[name] = answers(fresh, PIXELS, None)
    assert len({repr(found) for found in want.values()}) == len(want)
    for n_pictures in (3, 0):  # `text` leaves pictures as they are; the second time pages come from the folder
        with KimiVL(quantized.text, lora=named, n_ctx=1024, cache_dir=tmp_path / "cache") as model:
            assert model.adapters == ("x", "y", "text")
            for name in (None, "x", "y", "text", "x", None):
                assert answers(model, PIXELS, name) == want[name]
            assert len(model.loaded.image_cache) == n_pictures
            repeated = model.chat("and " * 200, lora="y", max_new_tokens=1)
            assert repeated.usage.cached_tokens > 128


def test_a_conversation_keeps_its_adapter(quantized, named):
    with KimiVL(quantized.text, lora=named, n_ctx=1024) as model:
        talk = model.conversation(lora="x")
        first = talk.ask("hello " * 150, temperature=0, max_new_tokens=4)
        assert talk.n_past > 128
        assert first.token_ids == model.chat("hello " * 150, temperature=0, max_new_tokens=4, lora="x").token_ids
        assert talk.fork().ask("more", max_new_tokens=2).usage.cached_tokens > 128
        assert model.conversation().ask("hello " * 150, max_new_tokens=1).usage.cached_tokens == 0
        assert_same_bits(model.logits([IDS[:9]], lora="x"), model.logits([IDS[:9]], lora="x"))
        assert not np.array_equal(model.encode_image(PIXELS, lora="x"), model.encode_image(PIXELS))
        with pytest.raises(BadRequest, match="there is no adapter 'z', expected one of x, y, text") as refused:
            model.conversation(lora="z")
        assert refused.value.code == "request.lora"
        with pytest.raises(BadRequest, match="expected one of x, y, text"):
            model.chat("hi", lora="z")


def test_a_kept_conversation_goes_on_with_the_adapter_that_answered_it(quantized, named):
    with KimiVL(quantized.text, lora=named, n_ctx=1024) as model:
        talks = {name: model.conversation(lora=name) for name in (None, "x", "text")}
        for talk in talks.values():
            talk.ask("hello", temperature=0, max_new_tokens=4)
        kept = {name: json.loads(json.dumps(talk.to_dict())) for name, talk in talks.items()}
        more = {name: talk.ask("more", temperature=0, max_new_tokens=4).token_ids for name, talk in talks.items()}
        for name, data in kept.items():
            talk = Conversation.from_dict(model, data)
            assert (talk.lora, talk.notices, talk.to_dict()) == (name, (), data)
            assert Conversation.from_dict(model, data, lora="y").lora == "y"
    renamed = {"x": named["y"], "z": named["x"], "text": (named["text"], 0.5)}
    with KimiVL(quantized.text, lora=renamed, n_ctx=1024) as model:
        talk = Conversation.from_dict(model, kept["x"])
        assert (talk.lora, talk.notices) == ("z", ()), "its weights count, not its name"
        assert talk.ask("more", temperature=0, max_new_tokens=4).token_ids == more["x"]
        talk = Conversation.from_dict(model, kept["text"])
        assert talk.lora is None
        (notice,) = talk.notices
        assert "'text'" in notice and "loaded with other weights or another scale: the answers to come" in notice
    with KimiVL(quantized.text, lora=named["x"], n_ctx=1024) as model:
        assert Conversation.from_dict(model, kept["x"]).notices == ()
        (notice,) = Conversation.from_dict(model, kept[None]).notices
        assert notice == "this conversation was answered without an adapter: x.gguf answers now"
        (notice,) = Conversation.from_dict(model, kept["text"]).notices
        assert "'text', which answered this conversation, is not loaded: x.gguf answers now" in notice
        older = {key: value for key, value in kept["x"].items() if key != "adapter"}
        assert Conversation.from_dict(model, older).notices == ()
    for wrong in (5, "x", {"name": "x"}, {"name": 1, "digest": "00"}, {"name": "x", "digest": "zz"}):
        with pytest.raises(BadRequest) as refused, KimiVL(quantized.text, n_ctx=1024) as model:
            Conversation.from_dict(model, kept["x"] | {"adapter": wrong})
        assert refused.value.code == "conversation.invalid" and "adapter" in str(refused.value)


def test_what_does_not_fit_is_refused_by_name(base, checkpoint, everything, tmp_path):
    engine = Engine(str(base))
    rank, n = np.zeros((2, 16), np.float32), engine.adapter_bytes
    of_router = {"blk.1.ffn_gate_inp.weight": (rank, np.zeros((4, 2), np.float32))}
    router = write_gguf_adapter(tmp_path / "r.gguf", of_router)
    with pytest.raises(BadModelFile, match=r"r\.gguf: blk\.1\.ffn_gate_inp\.weight is not a matrix") as refused:
        load_adapters(engine, router)
    assert refused.value.code == "lora.module"
    name = "language_model.model.layers.0.self_attn.q_proj"
    factors = random_factors(checkpoint.weights, [name])
    factors[name][0][0, 0] = np.nan
    broken = write_adapter(tmp_path / "nan", factors)
    with pytest.raises(BadModelFile, match=r"adapter_model\.safetensors: tensor .*lora_A\.weight has values"):
        load_adapters(engine, broken)
    with pytest.raises(BadModelFile, match="expected"):
        load_adapters(engine, write_adapter(tmp_path / "shape", {name: (rank, np.zeros((9, 2), np.float32))}, r=2))
    dora = write_adapter(tmp_path / "dora", random_factors(checkpoint.weights, [name]), use_dora=True)
    with pytest.raises(Unsupported, match="DoRA"):
        load_adapters(engine, dora)
    assert engine.adapter_bytes == n == 0
    for wrong in ("", 3, [], {"a b": everything}, (everything, float("nan"))):
        with pytest.raises(BadRequest) as refused:
            load_adapters(engine, wrong)
        assert refused.value.code == "request.lora"
    with pytest.raises(BadRequest, match="adapter is 0, expected -1"):
        Session(engine, 10, "f32", None, 0)


def test_a_model_without_its_vision_file_takes_no_adapter_of_pictures(quantized, named, tmp_path):
    text = tmp_path / "alone.gguf"
    text.write_bytes(quantized.text.read_bytes())
    with pytest.raises(BadModelFile) as refused:
        KimiVL(text, lora=named["x"])
    assert refused.value.code == "lora.module"
