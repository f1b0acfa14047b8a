"""Backends by name, and their options."""

from __future__ import annotations

import pytest
from vectors import assert_same_bits

from kimi_vl_cpp import BadRequest, KimiVL, KimiVLError, Unsupported
from kimi_vl_cpp._core import Engine, Session, backends, describe_backend


def test_the_known_backends_are_listed():
    assert backends() == ["cpu", "cuda"]


def test_the_cpu_is_the_default(tiny_model):
    model = tiny_model()
    named, default = Engine(str(model.text), backend="cpu"), Engine(str(model.text))
    assert named.config["backend"] == default.config["backend"] == f"cpu {default.config['isa']}"
    ids = model.random_ids(20)
    assert_same_bits(Session(named, 20).prefill([ids]), Session(default, 20).prefill([ids]))


@pytest.mark.parametrize(
    ("options", "error", "code", "says"),
    [
        ({"backend": "cuda"}, Unsupported, "device.plugin", "use the device cpu"),
        ({"backend": "cuda", "library": "/nowhere/libx.so"}, Unsupported, "device.plugin", "/nowhere/libx.so"),
        ({"library": "libx.so"}, BadRequest, "device.option", 'no option "library"'),
        ({"backend": "tpu"}, BadRequest, "device.unknown", '"tpu", expected one of cpu, cuda'),
        ({"backend": ""}, BadRequest, "device.unknown", "expected one of"),
        ({"backend": "CPU"}, BadRequest, "device.unknown", "expected one of"),
        ({"n_threads": -1}, BadRequest, "request.n_threads", "n_threads is -1, expected 1 to 1024"),
        ({"n_threads": 1025}, BadRequest, "request.n_threads", "n_threads is 1025"),
        ({"isa": "sse"}, BadRequest, "cpu.isa", '"sse"'),
        ({"activations": "int4"}, BadRequest, "request.activations", '"int4", expected int8 or float'),
    ],
)
def test_what_cannot_be_had_says_why(tiny_model, options, error, code, says):
    with pytest.raises(KimiVLError, match=says) as refused:
        Engine(str(tiny_model().text), **options)
    assert type(refused.value) is error and refused.value.code == code


@pytest.mark.parametrize(
    ("device", "error", "code"), [("cuda", Unsupported, "device.plugin"), ("tpu", BadRequest, "request.device")]
)
def test_a_device_that_is_not_there_is_an_error_of_its_own(tiny_model, device, error, code):
    with pytest.raises(error) as refused:
        KimiVL(tiny_model().text, device=device)
    assert refused.value.code == code


def test_what_a_backend_would_run_on_can_be_asked_for(tiny_model):
    assert describe_backend("cpu") == Engine(str(tiny_model().text)).config["isa"]
    with pytest.raises(Unsupported, match="libkimi_cuda"):
        describe_backend("cuda")


def test_the_variable_chooses_among_instruction_sets_alone(tiny_model, monkeypatch):
    """It stands for "auto", and never overrules what was asked for."""
    model = tiny_model()
    monkeypatch.setenv("KIMI_VL_CPU_ISA", "generic")
    assert Engine(str(model.text)).config["isa"] == "generic"
    monkeypatch.setenv("KIMI_VL_CPU_ISA", "sse")
    assert Engine(str(model.text), isa="generic").config["isa"] == "generic"
    with pytest.raises(BadRequest, match="sse"):
        Engine(str(model.text))
