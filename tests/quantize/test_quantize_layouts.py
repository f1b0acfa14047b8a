"""Checkpoints as other tools save them: converted where the weights are the original floats, else refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import write_checkpoint

from kimi_vl_cpp.errors import KimiVLError, Unsupported
from kimi_vl_cpp.files.input_file import InputFile
from kimi_vl_cpp.quantize.source.config import read_config
from kimi_vl_cpp.quantize.source.tensor_map import _original_name


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_checkpoint(tmp_path_factory.mktemp("c") / "Kimi-VL-A3B-Instruct").folder
    return (folder / "config.json").read_text()


def changed(config: str, **text: Any) -> dict[str, Any]:
    value = json.loads(config)
    value["text_config"].update(text)
    return dict(value)


@pytest.mark.parametrize("kind", [{"rope_type": "default"}, {"type": "default"}, {}])
def test_rope_theta_may_be_in_rope_parameters(config: str, kind: dict[str, str]) -> None:
    value = changed(config, rope_parameters={"rope_theta": 1234.0, **kind})
    del value["text_config"]["rope_theta"]
    assert read_config(value, Path("config.json")).text.rope_theta == 1234.0


def test_two_values_of_rope_theta_are_refused(config: str) -> None:
    value = changed(config, rope_theta=10.0, rope_parameters={"rope_theta": 20.0, "rope_type": "default"})
    with pytest.raises(KimiVLError, match="rope_theta"):
        read_config(value, Path("config.json"))


def test_another_rotation_in_rope_parameters_is_refused(config: str) -> None:
    value = changed(config, rope_parameters={"rope_theta": 20.0, "rope_type": "yarn", "factor": 4})
    with pytest.raises(Unsupported, match="yarn"):
        read_config(value, Path("config.json"))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("key", "found", "word"),
    [("quantization", {"bits": 4}, "MLX")]
    + [
        ("quantization_config", {"quant_method": name}, name)
        for name in ("gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors")
    ],
)
def test_a_quantized_checkpoint_is_refused_by_name(
    config: str, nested: bool, key: str, found: dict[str, Any], word: str
) -> None:
    value = changed(config, **{key: found}) if nested else {**changed(config), key: found}
    with pytest.raises(Unsupported, match=word) as caught:
        read_config(value, Path("config.json"))
    assert caught.value.code == "checkpoint.quantized"


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("model.language_model.layers.1.mlp.gate.weight", "language_model.model.layers.1.mlp.gate.weight"),
        ("language_model.model.norm.weight", "language_model.model.norm.weight"),
        ("module.language_model.model.norm.weight", "language_model.model.norm.weight"),
        ("model.language_model.embed_tokens.weight", "language_model.model.embed_tokens.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("model.vision_tower.patch_embed.proj.bias", "vision_tower.patch_embed.proj.bias"),
        ("model.multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias"),
        ("something.else", "something.else"),
    ],
)
def test_prefixes_of_other_tools_are_read(stored: str, name: str) -> None:
    assert _original_name(stored) == name


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json", "tiktoken.model"])
def test_a_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5\n")
    with pytest.raises(KimiVLError, match="git lfs pull") as caught:
        InputFile(path)
    assert caught.value.code == "checkpoint.lfs_pointer"
