"""Reads a model's GGUF files into float32 weights by Hugging Face's names, with the `gguf` package. For tests only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFReader
from numpy.typing import NDArray

from .blocks import dequantize
from .layout import text_weights, vision_weights


@dataclass(frozen=True)
class ReadModel:
    """weights: HF name -> float32. config: as `TinyModel.config`; {"text": None} for a vision file alone."""

    weights: dict[str, NDArray[np.float32]]
    config: dict[str, Any]


def read_model(text: str | os.PathLike[str], mmproj: str | os.PathLike[str] | None = None) -> ReadModel:
    """The weights that well-formed files hold, dequantized: an oracle for tests, independent of this package's reader.

    It trusts the files and copies everything to memory. Raises whatever the `gguf` package raises.
    """
    reader = GGUFReader(text)
    tensors = _tensors(reader)
    config: dict[str, Any] = {"text": _text_config(reader, tensors), "vision": None}
    weights = text_weights(tensors, config["text"])
    if mmproj is not None:
        reader = GGUFReader(mmproj)
        tensors = _tensors(reader)
    if "v.patch_embd.weight" in tensors:
        config["vision"] = _vision_config(reader, tensors)
        weights |= vision_weights(tensors, config["vision"])
    return ReadModel(weights, config)


def _tensors(reader: GGUFReader) -> dict[str, NDArray[np.float32]]:
    out = {}
    for tensor in reader.tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        out[tensor.name] = dequantize(tensor.data, tensor.tensor_type.name).reshape(shape)
    return out


def _value(reader: GGUFReader, key: str, otherwise: Any = None) -> Any:
    found = reader.get_field(key)
    return otherwise if found is None else found.contents()


def _text_config(reader: GGUFReader, tensors: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
    def get(key: str, otherwise: Any = None) -> Any:
        return _value(reader, "deepseek2." + key, otherwise)

    rope = get("rope.dimension_count")
    return {
        "vocab_size": len(tensors["token_embd.weight"]),
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "moe_intermediate_size": get("expert_feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "first_k_dense_replace": get("leading_dense_block_count", 0),
        "num_attention_heads": get("attention.head_count"),
        "qk_nope_head_dim": get("attention.key_length_mla", get("attention.key_length")) - rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": get("attention.value_length_mla", get("attention.value_length")),
        "kv_lora_rank": get("attention.kv_lora_rank"),
        "n_routed_experts": get("expert_count"),
        "num_experts_per_tok": get("expert_used_count"),
        "n_shared_experts": get("expert_shared_count", 0),
        "norm_topk_prob": get("expert_weights_norm", True),
        "routed_scaling_factor": get("expert_weights_scale", 1.0),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base"),
        "max_position_embeddings": get("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
    }


def _vision_config(reader: GGUFReader, tensors: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
    def get(key: str) -> Any:
        return _value(reader, "clip.vision." + key)

    hidden = get("embedding_length")
    return {
        "hidden_size": hidden,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": get("attention.head_count"),
        "patch_size": get("patch_size"),
        "position_side": round(float(np.sqrt(tensors["v.position_embd.weight"].size // hidden))),
    }
