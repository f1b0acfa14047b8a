"""The engine against the stored reference vectors, under each instruction set in turn.

The bars are those of the table beside the vectors (tests/vectors/README.md).
What the engine does on other models, and that needs no stored vectors, is in test_engine.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from kernel_support import every_isa_in_floats
from vectors import PROMPTS, Vectors, agreeing, assert_near, assert_same_bits

from kimi_vl_cpp import KimiVL
from kimi_vl_cpp._core import Engine, Session

# Relative errors allowed, from the table.
VISION_F32, VISION_F16 = 1e-5, 2e-3
TEXT_F32, TEXT_F16, TEXT_QUANTIZED, TEXT_INT8 = 1e-4, 3e-3, 3e-3, 5e-2
CHUNKS = 1e-5  # any split of the prompt, float32 file
CLOSE_CALL = 0.05  # a top-1 gap below which float16 weights may choose the other


@pytest.fixture(params=["a", "d"])
def vectors(request, checkpoint_dir) -> Vectors:
    return Vectors(checkpoint_dir(request.param), request.param)


@pytest.fixture
def vectors_d(checkpoint_dir) -> Vectors:
    return Vectors(checkpoint_dir("d"), "d")


def open_engine(vectors: Vectors, text: str, isa: str, mmproj: str = "f32", **options) -> Engine:
    return Engine(str(vectors.text_file(text)), str(vectors.mmproj_file(mmproj)), isa=isa, **options)


def run(engine: Engine, parts, n_greedy: int, kv_type: str = "auto"):
    """Logits of every position of the prompt and the greedy ids after it."""
    session = Session(engine, 1024, kv_type)
    logits = session.prefill(parts, logits="all")
    ids = [int(logits[-1].argmax())]
    while len(ids) < n_greedy:
        session.decode(ids[-1])
        ids.append(int(session.logits.argmax()))
    return logits, ids


def check_all_argmax(vectors, logits, ids, prompt, kind="ref"):
    """Every top-1 and every greedy id as stored."""
    want = vectors.of(kind, prompt, "argmax")
    assert np.nonzero(logits.argmax(-1) != want)[0].tolist() == []
    assert agreeing(ids, vectors.of(kind, prompt, "ids")) == len(ids)


# float32 weights: the arithmetic is float32 throughout.


@pytest.mark.parametrize("mmproj, bar, kind", [("f32", VISION_F32, "ref"), ("f16", VISION_F16, "ref")])
def test_vision_agrees(vectors, isa, mmproj, bar, kind):
    engine = open_engine(vectors, "f32", isa, mmproj)
    for name in vectors.pictures:
        pixels = vectors.picture(name)
        vectors.check_rows(engine.vision_tower(pixels), f"tower/{name}", bar, kind)
        vectors.check_rows(engine.encode_image(pixels), f"proj/{name}", bar, kind)


def test_vision_agrees_on_a_q8_0_file(vectors, isa):
    # The table has no row for it: against the dequantized file only the arithmetic differs, as for float32 weights.
    engine = open_engine(vectors, "f32", isa, "q8_0")
    for name in vectors.pictures:
        pixels = vectors.picture(name)
        vectors.check_rows(engine.vision_tower(pixels), f"tower/{name}", VISION_F32, "q8_0")
        vectors.check_rows(engine.encode_image(pixels), f"proj/{name}", VISION_F32, "q8_0")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("text", ["f32", "f32-oldkvb"])
@every_isa_in_floats
def test_text_f32_agrees(vectors, isa, text, prompt):
    engine = open_engine(vectors, text, isa)
    n_greedy = len(vectors.of("ref", prompt, "ids"))
    logits, ids = run(engine, vectors.parts(prompt, engine.encode_image), n_greedy)
    vectors.check_logits(logits, prompt, TEXT_F32)
    check_all_argmax(vectors, logits, ids, prompt)


# 16-bit weights and quantized files, on `d`: its routing does not flip under rounding.


@pytest.mark.parametrize("kv_type", ["auto", "f32"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_f16_agrees(vectors_d, isa, prompt, kv_type):
    engine = open_engine(vectors_d, "f16", isa)
    parts = vectors_d.parts(prompt, engine.encode_image)
    logits, _ = run(engine, parts, 1, kv_type)
    vectors_d.check_logits(logits, prompt, TEXT_F16)
    wrong = logits.argmax(-1) != vectors_d.of("ref", prompt, "argmax")
    top = np.sort(logits, -1)  # the gap as computed, which is within the bar of the stored one
    assert np.nonzero(wrong & (top[:, -1] - top[:, -2] >= CLOSE_CALL))[0].tolist() == []


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("text", ["q8_0", "q4_k_m"])
def test_quantized_text_agrees_with_float_activations(vectors_d, isa, text, prompt):
    engine = open_engine(vectors_d, text, isa, activations="float")  # the stored mm vectors are on exact pictures
    logits, ids = run(engine, vectors_d.parts(prompt, engine.encode_image), 8, "f32")
    vectors_d.check_logits(logits, prompt, TEXT_QUANTIZED, text)
    check_all_argmax(vectors_d, logits, ids, prompt, text)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("text", ["q8_0", "q4_k_m"])
def test_quantized_text_agrees_with_int8_activations(vectors_d, isa, text, prompt):
    engine = open_engine(vectors_d, text, isa)
    parts = vectors_d.parts(prompt, engine.encode_image)
    logits, _ = run(engine, parts, 1)
    vectors_d.check_logits(logits, prompt, TEXT_INT8, text)
    assert (logits.argmax(-1) == vectors_d.of(text, prompt, "argmax")).mean() >= 0.90


@pytest.mark.parametrize("text", ["q8_0", "q4_k_m"])
def test_decoding_a_quantized_file_agrees_with_prefilling_it(vectors_d, isa, text):
    # Token by token runs through other kernels and the absorbed attention: the same bars hold.
    engine = open_engine(vectors_d, text, isa)
    ids = vectors_d.parts("text", None)[0]
    session, rows = Session(engine, 128), []
    for token in ids.tolist():
        session.decode(token)
        rows.append(session.logits)
    logits = np.stack(rows)
    vectors_d.check_logits(logits, "text", TEXT_INT8, text)
    assert (logits.argmax(-1) == vectors_d.of(text, "text", "argmax")).mean() >= 0.90


# Reproducibility.


@pytest.mark.parametrize("text", ["f32", "f16", "q8_0", "q4_k_m"])
def test_one_and_two_threads_give_the_same_bits(vectors_d, isa, text):
    results = []
    for n_threads in (1, 2):
        engine = open_engine(vectors_d, text, isa, "q8_0", n_threads=n_threads)
        assert engine.config["n_threads"] == n_threads
        parts = vectors_d.parts("mm", engine.encode_image)
        logits, ids = run(engine, parts, 8)
        results.append((engine.vision_tower(vectors_d.picture("420x308")), parts[1], logits, ids))
    for got, want, what in zip(*results, ("tower", "projector", "logits"), strict=False):
        assert_same_bits(got, want, what)
    assert results[0][3] == results[1][3]


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
@every_isa_in_floats
def test_any_split_into_chunks_gives_the_same_logits(vectors, isa, kv_type):
    engine = open_engine(vectors, "f32", isa)
    ids = vectors.parts("long", None)[0]
    whole = Session(engine, 640, kv_type).prefill([ids], logits="all")
    # With a float16 cache the error is that of the cache, amplified where keys nearly tie: a tenth of the float16 bar.
    bar = CHUNKS if kv_type == "f32" else TEXT_F16 / 10
    for chunk in (1, 7, 64, 333) if isa != "generic" else (7, 333):
        if chunk == 1:
            ids, whole = ids[:150], whole[:150]
        session = Session(engine, 640, kv_type)
        assert_near(session.prefill([ids], logits="all", chunk=chunk), whole, bar, f"chunks of {chunk}")
    session, pieces = Session(engine, 640, kv_type), []
    for piece in np.split(ids, [1, 2, 40, 41, 100]):
        pieces.append(session.prefill([piece], logits="all"))
    assert_near(np.concatenate(pieces), whole, bar, "pieces")


# The same through the public API: pictures from files, as a user has them.


def test_the_public_api_agrees(vectors):
    with KimiVL(vectors.text_file("f32"), mmproj=vectors.mmproj_file("f32"), n_ctx=1024) as model:
        for name in vectors.pictures:
            path = vectors.folder / f"image-{name}.png"
            vectors.check_rows(model.vision_tower(path), f"tower/{name}", VISION_F32)
            vectors.check_rows(model.encode_image(path), f"proj/{name}", VISION_F32)
        for prompt in PROMPTS:
            parts = [part.tolist() if part.ndim == 1 else part for part in vectors.parts(prompt, model.encode_image)]
            want = vectors.of("ref", prompt, "ids")
            vectors.check_logits(model.logits(parts), prompt, TEXT_F32)
            assert list(model.generate(parts, max_new_tokens=len(want), temperature=0)) == want.tolist()
