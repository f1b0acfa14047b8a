"""GGUF files of test models: metadata, tensor types, shards, header version. Writes with the `gguf` package."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from ..files import file_types
from ..files.rules import KEY_TIED
from .blocks import TENSOR_TYPES, block_of, quantize
from .vocabulary import CHAT_TEMPLATE, Vocabulary

MetadataEdits = Mapping[str, Any]
"""Key -> value, None to leave the key out. int is written as u32, float as f32, bool, str and list as themselves; a
pair (gguf.GGUFValueType, value) as that type."""

_MIXES = {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}
TEXT_TYPES: tuple[str, ...] = (*TENSOR_TYPES, *_MIXES)
"""What a text file of a test model can be of."""

# Types that files are not named after, and the file type whose matrices are mostly of them.
_FILE_TYPE_OF = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S", "MXFP4": "MXFP4_MOE"}


def _file_type(name: str) -> int:
    return file_types.NUMBERS[_FILE_TYPE_OF.get(name, name)]


def text_type_of(name: str, shape: tuple[int, ...], wanted: str, n_layers: int) -> str:
    """The type that a converter gives a text tensor of a file of type `wanted`."""
    if len(shape) < 2 or "ffn_gate_inp" in name:
        return "F32"
    chosen = _MIXES.get(wanted, wanted)
    if wanted in _MIXES:
        layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
        eighth = n_layers // 8
        more_bits = layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2
        if name == "output.weight" or (("ffn_down" in name or "attn_kv_b" in name) and more_bits):
            chosen = "Q6_K"
    return _fitting(chosen, shape[-1])


def vision_type_of(name: str, shape: tuple[int, ...], wanted: str) -> str:
    """The type that a converter gives a vision tensor of a file of type `wanted`.

    docs/model.md, "Tensors of the mmproj file".
    """
    if len(shape) < 2 or "position_embd" in name:
        return "F32"
    if "patch_embd" in name:
        return "F16" if wanted == "F16" else "F32"
    return _fitting(wanted, shape[-1])


def _fitting(type_name: str, row: int) -> str:
    while row % block_of(type_name)[0]:
        type_name = file_types.FALLBACK[type_name]
    return type_name


def encode_tensors(
    tensors: Mapping[str, NDArray[np.float32]], types: Mapping[str, str], overrides: Mapping[str, str]
) -> dict[str, tuple[str, NDArray[Any]]]:
    """name -> (type, blocks). overrides: pattern of names (as in fnmatch) -> type; the last that fits wins.

    Raises ValueError for an unknown type, a pattern that fits no tensor of any file or a row of a broken block.
    """
    out = {}
    for name, values in tensors.items():
        wanted = [t for pattern, t in overrides.items() if fnmatchcase(name, pattern)]
        type_name = wanted[-1] if wanted else types[name]
        try:
            out[name] = type_name, quantize(values, type_name)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return out


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[str, NDArray[Any]]], shards: int, version: int
) -> list[Path]:
    """Writes the file or its shards; returns their paths in order. metadata without None values."""
    per_shard = -(-len(tensors) // max(shards, 1))
    if per_shard == 0 or -(-len(tensors) // per_shard) != shards:
        raise ValueError(f"shards={shards}: {len(tensors)} tensors do not divide into as many parts of equal length")
    writer = GGUFWriter(path, "", split_max_tensors=per_shard if shards > 1 else 0)
    writer.kv_data[0].clear()  # the architecture is among the metadata, or left out on purpose
    for key, (kind, value) in metadata.items():
        writer.add_key_value(key, value, kind, _element_kind(key, value) if kind == GGUFValueType.ARRAY else None)
    for name, (type_name, blocks) in tensors.items():
        writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType[type_name])
    paths = writer.format_shard_names(path)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if version != 3:
        for shard in paths:
            with open(shard, "r+b") as file:  # versions 2 and 3 differ in nothing else for little-endian files
                file.seek(4)
                file.write(struct.pack("<I", version))
    return paths


def _element_kind(key: str, value: list[Any]) -> GGUFValueType:
    return GGUFValueType.INT32 if key.endswith("token_type") else _kind(value[0])


def _kind(value: Any) -> GGUFValueType:
    for python_type, kind in _KINDS.items():
        if isinstance(value, python_type):
            return kind
    raise ValueError(f"metadata value {value!r}: expected bool, int, float, str, bytes, list or (GGUFValueType, value)")


_KINDS: dict[type, GGUFValueType] = {
    bool: GGUFValueType.BOOL,
    int: GGUFValueType.UINT32,
    float: GGUFValueType.FLOAT32,
    str: GGUFValueType.STRING,
    bytes: GGUFValueType.STRING,
    list: GGUFValueType.ARRAY,
}


def edited(metadata: Mapping[str, Any], edits: MetadataEdits) -> dict[str, tuple[GGUFValueType, Any]]:
    """Typed metadata with the edits applied."""
    merged = {**metadata, **edits}
    return {
        key: value if isinstance(value, tuple) else (_kind(value), value)
        for key, value in merged.items()
        if value is not None
    }


def text_metadata(
    t: Mapping[str, Any], vocabulary: Vocabulary, name: str, file_type: str, legacy: bool, with_bos_eos: bool
) -> dict[str, Any]:
    """Keys of a text file, in a converter's order (docs/model.md, "Metadata of the text file")."""
    key_length, rank = t["qk_nope_head_dim"] + t["qk_rope_head_dim"], t["kv_lora_rank"]
    own: dict[str, Any] = {
        "block_count": t["num_hidden_layers"],
        "context_length": t["max_position_embeddings"],
        "embedding_length": t["hidden_size"],
        "feed_forward_length": t["intermediate_size"],
        "attention.head_count": t["num_attention_heads"],
        "attention.head_count_kv": t["num_attention_heads"] if legacy else 1,
        "rope.freq_base": t["rope_theta"],
        "attention.layer_norm_rms_epsilon": t["rms_norm_eps"],
        "expert_used_count": t["num_experts_per_tok"],
        "expert_group_count": 1,
        "expert_group_used_count": 1,
        "expert_gating_func": 2,
        "leading_dense_block_count": t["first_k_dense_replace"],
        "vocab_size": t["vocab_size"],
        "attention.kv_lora_rank": rank,
        "attention.key_length": key_length if legacy else rank + t["qk_rope_head_dim"],
        "attention.value_length": t["v_head_dim"] if legacy else rank,
        "attention.key_length_mla": None if legacy else key_length,
        "attention.value_length_mla": None if legacy else t["v_head_dim"],
        "expert_feed_forward_length": t["moe_intermediate_size"],
        "expert_count": t["n_routed_experts"],
        "expert_shared_count": t["n_shared_experts"],
        "expert_weights_scale": float(t["routed_scaling_factor"]),
        "expert_weights_norm": bool(t["norm_topk_prob"]),
        "rope.dimension_count": t["qk_rope_head_dim"],
    }
    return {
        "general.architecture": "deepseek2",
        "general.type": "model",
        "general.name": name,
        "general.file_type": _file_type(file_type),
        "general.quantization_version": 2,
        **{f"deepseek2.{key}": value for key, value in own.items()},
        **({KEY_TIED: True} if t["tie_word_embeddings"] else {}),
        **_tokenizer_metadata(vocabulary, with_bos_eos),
    }


def _tokenizer_metadata(vocabulary: Vocabulary, with_bos_eos: bool) -> dict[str, Any]:
    kimi = vocabulary.kind == "kimi"
    values: dict[str, Any] = {
        "model": "gpt2" if kimi else "llama",
        "pre": "kimi-k2" if kimi else "default",
        "tokens": vocabulary.tokens,
        "scores": vocabulary.scores or None,
        "token_type": vocabulary.types,
        "merges": vocabulary.merges or None,
        "bos_token_id": vocabulary.special["[BOS]"] if with_bos_eos else None,
        "eos_token_id": vocabulary.special["[EOS]"] if with_bos_eos else None,
        "unknown_token_id": None if kimi else 0,
        "padding_token_id": vocabulary.special["[PAD]"],
    }
    keys = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return keys | {"tokenizer.chat_template": CHAT_TEMPLATE}


def vision_metadata(v: Mapping[str, Any], text_hidden: int, name: str, file_type: str, kimik25: bool) -> dict[str, Any]:
    """Keys of an mmproj file, in a converter's order (docs/model.md, "Metadata of the mmproj file")."""
    own: dict[str, Any] = {
        "projection_dim": text_hidden,
        "image_size": v["position_side"] * v["patch_size"],
        "patch_size": v["patch_size"],
        "embedding_length": v["hidden_size"],
        "feed_forward_length": v["intermediate_size"],
        "block_count": v["num_hidden_layers"],
        "attention.head_count": v["num_attention_heads"],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "projector.scale_factor": 2,
        "attention.layer_norm_epsilon": 1e-5,
    }
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": name,
        "general.file_type": _file_type(file_type),
        "general.quantization_version": 2,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "kimik25" if kimik25 else "kimivl",
        "clip.use_gelu": True,
        **{f"clip.vision.{key}": value for key, value in own.items()},
    }
