"""LoRA adapters as PEFT and llama.cpp write them, made up for tests, and what they do to weights, in plain NumPy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_files import Weights, safetensors_bytes
from gguf import GGUFWriter
from numpy.typing import NDArray

from kimi_vl_cpp._core import GGUFFile

Factors = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Module -> A [rank, in], B [out, rank]."""

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "bias": "none",
    "base_model_name_or_path": "moonshotai/Kimi-VL-A3B-Instruct",
    "init_lora_weights": True,
    "rank_pattern": {},
    "alpha_pattern": {},
}
_LINEAR = re.compile(r".*\.(?:\w+_proj(?:_with_mqa)?|wqkv|wo|fc0|fc1|linear_[12]|lm_head)\.weight")


def linear_modules(weights: Weights) -> list[str]:
    """Every module of a checkpoint that an adapter can change."""
    return [name.removesuffix(".weight") for name in weights if _LINEAR.fullmatch(name)]


def random_factors(weights: Weights, modules: list[str], rank: int = 4, seed: int = 0) -> Factors:
    rng = np.random.default_rng(seed)
    found = {}
    for module in modules:
        n_out, n_in = weights[module + ".weight"].shape
        a, b = rng.normal(0, 0.2, (rank, n_in)), rng.normal(0, 0.2, (n_out, rank))
        found[module] = a.astype(np.float32), b.astype(np.float32)
    return found


def write_adapter(folder: Path, factors: Factors, extra: Weights | None = None, **config: Any) -> Path:
    """A PEFT folder. extra: tensors beside the factors. config: over CONFIG."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    tensors = dict(extra or {})
    for module, (a, b) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    stored = {name: ("F32", np.ascontiguousarray(values)) for name, values in tensors.items()}
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(stored))
    return folder


def write_gguf_adapter(path: Path, factors: Factors, alpha: float = 8.0, **metadata: str) -> Path:
    """llama.cpp's file. factors: GGUF tensor name -> (a [stack…, rank, in], b [stack…, out, rank])."""
    keys = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "deepseek2"} | metadata
    writer = GGUFWriter(path, keys.pop("general.architecture"))
    for key, value in keys.items():
        writer.add_string(key, value)
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, (a, b) in factors.items():
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merged(weights: Weights, factors: Factors, scale: float) -> Weights:
    """W + scale B A in float64, of every module."""
    out = dict(weights)
    for module, (a, b) in factors.items():
        change = scale * (b.astype(np.float64) @ a.astype(np.float64))
        out[module + ".weight"] = (out[module + ".weight"] + change).astype(np.float32)
    return out


def random_gguf_adapter(path: Path, *files: Path, rank: int = 4, seed: int = 0, only: str = "") -> Path:
    """llama.cpp's file, with factors of every matrix that an adapter can change and whose name holds `only`."""
    rng = np.random.default_rng(seed)
    factors: Factors = {}
    for tensor in (tensor for file in files for tensor in GGUFFile(str(file)).tensors):
        shape, part = tuple(tensor.shape), tensor.name.split(".")[-2]
        kept = part in ("token_embd", "ffn_gate_inp", "position_embd") or only not in tensor.name
        if kept or len(shape) not in (2, 3):
            continue
        *stack, n_out, n_in = shape
        a, b = rng.normal(0, 0.05, (*stack, rank, n_in)), rng.normal(0, 0.05, (*stack, n_out, rank))
        factors[tensor.name] = a.astype(np.float32), b.astype(np.float32)
    return write_gguf_adapter(path, factors)


def join_qkv(tensors: dict[str, NDArray[np.float32]]) -> None:
    """The queries, keys and values of each block of the tower in one tensor, in place (`edit` of make_tiny_model)."""
    for name in [name for name in tensors if ".attn_q." in name and name.startswith("v.")]:
        parts = [tensors.pop(name.replace("attn_q", f"attn_{part}")) for part in "qkv"]
        tensors[name.replace("attn_q", "attn_qkv")] = np.concatenate(parts)
