"""`--lora` on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from adapter_files import random_gguf_adapter, write_adapter

from kimi_vl_cpp import KimiVL, builtin
from kimi_vl_cpp.cli import doctor
from kimi_vl_cpp.cli.adapters import always, always_or_named
from kimi_vl_cpp.cli.app import main
from kimi_vl_cpp.cli.exits import UsageError
from kimi_vl_cpp.machine import system

QUERY = "language_model.model.layers.3.self_attn.q_proj"
EXPERT = "language_model.model.layers.3.mlp.experts.5.down_proj"
EXPERT_BYTES, QUERY_BYTES = 4 * 2 * (1408 + 2048), 4 * 2 * (2048 + 3072)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """A PEFT folder for two modules of Kimi-VL-A3B."""
    factors = {
        name: (np.ones((2, n_in), np.float32), np.ones((n_out, 2), np.float32))
        for name, (n_out, n_in) in {QUERY: (3072, 2048), EXPERT: (2048, 1408)}.items()
    }
    return write_adapter(tmp_path_factory.mktemp("full") / "adapter", factors, r=2)


@pytest.fixture(scope="module")
def beside_builtin(tmp_path_factory):
    return random_gguf_adapter(tmp_path_factory.mktemp("gguf") / "a.gguf", builtin.model_path(), only="attn_")


def test_paths_scales_and_names_are_told_apart(tmp_path):
    odd = tmp_path / "a=b"
    odd.touch()
    assert always(["x", "y=0.5", str(odd), f"{odd}=2"]) == [("x", 1.0), ("y", 0.5), (str(odd), 1.0), (str(odd), 2.0)]
    assert always_or_named(["x", "y=0.5", str(odd)]) == [("x", 1.0), ("y", 0.5), (str(odd), 1.0)]
    assert always_or_named(["n=./x", "m-1=./y=0.5"]) == {"n": ("./x", 1.0), "m-1": ("./y", 0.5)}
    assert always(None) is None and always_or_named([]) is None
    for wrong in (["n=./x", "./y"], ["n=./x", "n=./y"], ["n=./x=z"]):
        with pytest.raises(UsageError):
            always_or_named(wrong)
    with pytest.raises(UsageError, match="the path is empty"):
        always([""])
    with pytest.raises(UsageError, match="neither a number"):
        always(["n=./x"])


def test_run_answers_with_the_adapter(tmp_path, capsys):
    adapter = str(random_gguf_adapter(tmp_path / "a.gguf", builtin.model_path(), only="attn_"))
    asked = ["run", "What is this?", "-n", "8", "--temp", "0"]

    def answer(*more: str) -> str:
        assert main([*asked, *more]) == 0
        return capsys.readouterr().out

    assert answer() == answer("--lora", f"{adapter}=0") != answer("--lora", adapter)


def test_an_adapter_that_is_not_there_is_named(capsys):
    assert main(["run", "Hi", "--lora", "/no/such/adapter"]) == 3
    assert "/no/such/adapter: there is no such adapter" in capsys.readouterr().err


def test_inspect_shows_an_adapter_beside_kimi_vl(full_size, capsys):
    assert main(["inspect", str(full_size), "--check", "--tensors"]) == 0
    shown = capsys.readouterr().out
    assert "rank 2, 17,152 parameters" in shown and "attn_q (1), ffn_down_exps (1)" in shown
    assert "trained on moonshotai/Kimi-VL-A3B-Instruct" in shown and "Every value in it is finite" in shown
    assert f"base_model.model.{QUERY}.lora_A.weight" in shown
    assert main(["inspect", str(full_size), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["adapter"]["memory_bytes"] == EXPERT_BYTES + QUERY_BYTES and report["works"]
    assert main(["inspect", str(full_size), "--lora", "x"]) == 2
    assert "is an adapter itself" in capsys.readouterr().err
    assert main(["inspect", str(full_size / "adapter_model.safetensors")]) == 3
    assert f"is one file of an adapter: give its folder {full_size}" in capsys.readouterr().out


def test_inspect_judges_an_adapter_beside_the_model_that_it_is_of(beside_builtin, full_size, capsys):
    assert main(["inspect", str(beside_builtin)]) == 3
    shown = capsys.readouterr().out
    assert "blk.0.attn_q.weight: factors of shapes" in shown and "kimi-vl inspect MODEL --lora" in shown
    assert main(["inspect", "--lora", f"{beside_builtin}=0.5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert main(["inspect", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    with KimiVL.builtin(lora=beside_builtin) as model:
        n_bytes = model.loaded.engine.adapter_bytes
    assert report["adapters"][0]["memory_bytes"] == n_bytes and report["adapters"][0]["changes_pictures"]
    assert report["text"]["memory_bytes"] == alone["text"]["memory_bytes"] + n_bytes
    assert main(["inspect", "--lora", str(full_size)]) == 3
    shown = capsys.readouterr().out
    assert "does not work with Kimi-VL with these adapters" in shown and "lora_A has shape [2, 2048]" in shown


def test_inspect_says_why_an_adapter_is_refused(tmp_path, capsys):
    factors = {QUERY: (np.full((1, 2048), np.nan, np.float32), np.ones((3072, 1), np.float32))}
    assert main(["inspect", str(write_adapter(tmp_path / "nan", factors, r=1))]) == 0
    assert main(["inspect", str(write_adapter(tmp_path / "nan", factors, r=1)), "--check"]) == 3
    assert "values that are not finite" in capsys.readouterr().out
    assert main(["inspect", str(write_adapter(tmp_path / "dora", factors, r=1, use_dora=True))]) == 3
    assert "DoRA" in capsys.readouterr().out


def test_fit_counts_adapters(full_size, beside_builtin, capsys):
    plan = ["fit", "--memory", "16GB", "--bandwidth", "60", "--json"]

    def options(*more):
        assert main([*plan, *more]) == 0
        return json.loads(capsys.readouterr().out)["options"]

    alone, with_one = options(), options("--lora", str(full_size))
    read = QUERY_BYTES + EXPERT_BYTES * 6 / 64
    for one, other in zip(alone, with_one, strict=True):
        assert other["memory_bytes"] == one["memory_bytes"] + QUERY_BYTES + EXPERT_BYTES
        assert 1 / other["tokens_per_s"] - 1 / one["tokens_per_s"] == pytest.approx(read / (0.87 * 60e9), rel=1e-6)
    file = [str(builtin.model_path())]
    alone, with_one = options(*file), options(*file, "--lora", str(beside_builtin))
    assert with_one[0]["memory_bytes"] > alone[0]["memory_bytes"]
    assert main([*plan[:-1], "--lora", str(full_size)]) == 0
    assert f"adapter {full_size}: " in capsys.readouterr().out


def test_doctor_counts_adapters(full_size, beside_builtin, capsys):
    memory = system.memory()
    alone, with_one = doctor._quantizations(memory, 0), doctor._quantizations(memory, 1000)
    assert [one["needs_bytes"] + 1000 for one in alone] == [one["needs_bytes"] for one in with_one]
    assert [card.memory_bytes for card in doctor._adapters([(str(full_size), 1.0)])] == [QUERY_BYTES + EXPERT_BYTES]
    assert main(["doctor", "--lora", str(beside_builtin)]) == 3
    assert "blk.0.attn_q.weight" in capsys.readouterr().err
