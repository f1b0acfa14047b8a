"""Whole tiny models on the CUDA backend beside the NumPy network, with the CPU's bars."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest
from engine_support import CACHE_F16, FLOAT, INT8, PICTURE_BF16, Expected, decode, open_engine, prefill
from vectors import assert_near, assert_same_bits

from kimi_vl_cpp import KimiVLError, OutOfMemory, Unsupported
from kimi_vl_cpp._core import PAGE_POSITIONS, Engine, Importance, Session
from kimi_vl_cpp.testing import ROWS_OF_256, TinyModel


@pytest.fixture(scope="module")
def expected(network_of):
    made = {}

    def get(model: TinyModel) -> Expected:
        if model.text not in made:
            made[model.text] = Expected(model, network_of(model))
        return made[model.text]

    return get


def open_cuda(model: TinyModel, library: str, **options) -> Engine:
    return open_engine(model, backend="cuda", library=library, **options)


def check_text(engine: Engine, want: Expected, bar: float, kv_type: str = "f32") -> None:
    """A prompt, and its first tokens one by one."""
    assert_near(prefill(engine, want.parts, kv_type), want.logits, bar, "prefill")
    assert_near(decode(engine, want.ids[:5], kv_type), want.absorbed[:5], bar, "decode")


ODD_SIZES = dict(
    **dict(num_attention_heads=5, hidden_size=33, intermediate_size=35, moe_intermediate_size=11, n_vocab=577),
    **dict(qk_nope_head_dim=7, v_head_dim=9, kv_lora_rank=13, qk_rope_head_dim=2),
    **dict(n_routed_experts=5, num_experts_per_tok=3, num_hidden_layers=2),
)


def test_text_pictures_and_greedy_answers_are_the_network_s(tiny_model, expected, library):
    model = tiny_model(seed=3)
    engine, want = open_cuda(model, library), expected(model)
    for size in ((28, 28), (84, 140)):
        pixels = model.random_picture(*size)
        assert_near(engine.vision_tower(pixels), want.towers[size], FLOAT, f"tower {size}")
        assert_near(engine.encode_image(pixels), want.embeddings[size], FLOAT, f"projector {size}")
    check_text(engine, want, FLOAT)
    want.check_greedy(engine)


SHAPES = {
    "odd": ODD_SIZES,
    "one_expert": dict(n_routed_experts=1, num_experts_per_tok=1, n_shared_experts=0),
    "legacy": dict(layout="legacy_kv_b"),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_other_shapes_and_layouts_give_the_network_s_numbers(tiny_model, expected, library, shape):
    model = tiny_model(vision="none", **shape)
    check_text(open_cuda(model, library), expected(model), FLOAT)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_caches_of_fewer_bits_are_as_near_as_the_cpu_s(tiny_model, expected, library, kv_type):
    model = tiny_model(seed=3)
    check_text(open_cuda(model, library), expected(model), CACHE_F16 if kv_type == "f16" else INT8, kv_type)


@pytest.mark.parametrize("text_type", ["F16", "Q4_K", "IQ4_NL"])
def test_quantized_weights_are_as_near_as_the_cpu_s(tiny_model, expected, library, text_type):
    model = tiny_model(seed=4, text_type=text_type, vision="none", num_hidden_layers=2, **ROWS_OF_256)
    want = expected(model)
    check_text(open_cuda(model, library), want, FLOAT if text_type == "F16" else INT8)


def test_float_activations_are_exact_on_the_file_s_own_weights(tiny_model, expected, library):
    model = tiny_model(seed=4, text_type="Q4_K", vision="none", num_hidden_layers=2, **ROWS_OF_256)
    want = expected(model)
    exact = open_cuda(model, library, activations="float")
    assert_near(decode(exact, want.ids[:4]), want.absorbed[:4], FLOAT)


def test_the_tower_beside_quantized_text_multiplies_bf16(tiny_model, expected, library):
    model = tiny_model(seed=4, text_type="Q8_0", vision_type="F16", num_hidden_layers=2)
    engine, want = open_cuda(model, library), expected(model)
    pixels = model.random_picture(84, 140)
    assert_near(engine.vision_tower(pixels), want.towers[84, 140], PICTURE_BF16, "tower")
    check_text(engine, want, INT8)


def test_bits_are_the_same_alone_in_a_batch_in_chunks_and_on_shared_pages(tiny_model, library):
    model = tiny_model(seed=4, text_type="Q8_0", vision="none", num_hidden_layers=2)
    engine = open_cuda(model, library)
    ids = [model.random_ids(PAGE_POSITIONS + 5, seed=1), model.random_ids(9, seed=2)]
    alone = [prefill(engine, [one]) for one in ids]
    sessions = [Session(engine, 2 * PAGE_POSITIONS, "f32") for _ in ids]
    together = engine.step([(session, one, "all") for session, one in zip(sessions, ids, strict=True)])
    for got, want in zip(together, alone, strict=True):
        assert_same_bits(got, want, "in a batch")
    assert_same_bits(prefill(engine, [ids[0]], chunk=33), alone[0], "in chunks")
    shared = sessions[0].fork()
    for session in (sessions[0], shared):
        session.decode(7)
    assert_same_bits(shared.logits, sessions[0].logits, "on shared pages")


@pytest.mark.parametrize("order", ["backward", "random"])
def test_bits_do_not_depend_on_which_thread_runs_first(tiny_model, library, emulator, order):
    model = tiny_model(seed=3)
    pixels, ids = model.random_picture(28, 56), model.random_ids(12)

    def run() -> tuple[np.ndarray, np.ndarray]:
        engine = open_cuda(model, library)
        return engine.encode_image(pixels), prefill(engine, [ids])

    want = run()
    emulator.order(order, 9)
    for got, bits in zip(run(), want, strict=True):
        assert_same_bits(got, bits, order)


def test_an_observer_sees_the_inputs_that_the_cpu_s_sees(tiny_model, library):
    model = tiny_model(seed=3, vision="none")
    totals = []
    for engine in (open_engine(model), open_cuda(model, library)):
        importance = Importance(engine)
        prefill(engine, [model.random_ids(12)])
        totals.append({name: sums for name, (sums, _) in importance.sums().items()})
        importance.close()
    cpu, cuda = totals
    assert cpu.keys() == cuda.keys() and len(cpu) > 10
    for name, sums in cpu.items():
        assert_near(cuda[name], sums, FLOAT, name)


def test_memory_is_given_back(tiny_model, library, emulator):
    model = tiny_model(seed=3)
    before = emulator.allocated
    engine = open_cuda(model, library)
    session = Session(engine, 20)
    session.prefill([model.random_ids(10)])
    engine.encode_image(model.random_picture(28, 28))
    assert emulator.allocated > before
    del session
    engine.close()
    del engine
    gc.collect()
    assert emulator.allocated == before


def test_a_gpu_without_memory_is_an_error_that_says_what_to_do(tiny_model, library, emulator):
    gc.collect()
    emulator.memory(emulator.allocated + 100_000)
    with pytest.raises(OutOfMemory, match="smaller") as error:
        open_cuda(tiny_model(seed=3), library)
    assert error.value.code == "memory.device"


def test_a_call_that_fails_leaves_an_engine_that_says_so_and_no_memory(tiny_model, library, emulator):
    model = tiny_model(seed=3, vision="none")
    gc.collect()
    before, codes = emulator.allocated, set()
    for call in range(0, 300, 37):
        engine = open_cuda(model, library)
        session = Session(engine, 20)
        emulator.fail(call)
        try:
            session.prefill([model.random_ids(4)])
        except KimiVLError as error:
            codes.add(error.code)
        emulator.fail(-1)
        del session
        engine.close()
        gc.collect()
        assert emulator.allocated == before
    assert "device.failed" in codes and codes <= {"device.failed", "memory.device", "memory.kv_pages"}


def test_a_child_process_cannot_use_the_parent_s_gpu(tiny_model, library):
    model = tiny_model(seed=3, vision="none")
    engine = open_cuda(model, library)
    session = Session(engine, 20)
    session.prefill([model.random_ids(4)])
    child = os.fork()
    if child == 0:
        try:
            session.decode(1)
            os._exit(1)
        except Unsupported as error:
            os._exit(0 if error.code == "device.forked" else 2)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    session.decode(1)


def test_a_library_that_is_no_backend_is_refused(tiny_model, library):
    with pytest.raises(Unsupported, match="it is not a backend of this runtime") as error:
        Engine(str(tiny_model().text), backend="cuda", library="libm.so.6")
    assert error.value.code == "device.plugin"


def test_formats_that_the_backend_cannot_multiply_are_refused_by_name(tiny_model, library):
    model = tiny_model(seed=4, text_type="TQ2_0", vision="none", **ROWS_OF_256)
    with pytest.raises(Unsupported, match="TQ2_0") as error:
        open_cuda(model, library)
    assert error.value.code == "device.format"
