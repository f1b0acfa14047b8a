"""Checkpoint folders in Hugging Face's layout for tests: small, complete, and easy to damage."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kimi_vl_cpp.testing import CHAT_TEMPLATE, Vocabulary, make_vocabulary
from kimi_vl_cpp.testing.draw import random_weights
from kimi_vl_cpp.testing.shapes import make_config

Weights = dict[str, NDArray[np.float32]]

_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class TinyCheckpoint:
    """A folder that `write_checkpoint` made. weights: HF name -> float32, exactly what the shards hold."""

    folder: Path
    weights: Weights
    config: dict[str, Any]
    vocabulary: Vocabulary

    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to nearest, ties to even: the upper halves."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def as_stored(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    if dtype == "BF16":
        return bfloat16(values)
    return np.ascontiguousarray(values, _DTYPES[dtype])


def safetensors_bytes(tensors: Mapping[str, tuple[str, NDArray[Any]]]) -> bytes:
    """name -> (dtype, stored values)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blob = b""
    for name, (dtype, values) in tensors.items():
        data = values.tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [len(blob), len(blob) + len(data)],
        }
        blob += data
    return with_header(header, blob)


def with_header(header: Any, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file with any header (an object, or raw bytes) and any claim about its length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def hf_config(sizes: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """config.json for sizes as make_config has them."""
    text, vision = dict(sizes["text"]), dict(sizes["vision"])
    side = vision.pop("position_side")
    special = vocabulary.special
    return {
        "architectures": ["KimiVLForConditionalGeneration"],
        "model_type": "kimi_vl",
        "media_placeholder_token_id": special["<|media_pad|>"],
        "text_config": {
            **text,
            "model_type": "deepseek_v3",
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "moe_layer_freq": 1,
            "hidden_act": "silu",
            "rope_scaling": None,
            "attention_bias": False,
            "num_nextn_predict_layers": 0,
            "bos_token_id": special["[BOS]"],
            "eos_token_id": special["[EOS]"],
            "pad_token_id": special["[PAD]"],
        },
        "vision_config": {
            **vision,
            "model_type": "moonvit",
            "init_pos_emb_height": side,
            "init_pos_emb_width": side,
            "merge_kernel_size": [2, 2],
        },
    }


def write_checkpoint(
    folder: Path,
    seed: int = 0,
    *,
    dtype: str = "BF16",
    n_shards: int = 1,
    in_token_limit: int | None = 1024,
    edit: Callable[[Weights], None] | None = None,
    n_vocab: int = 576,
    **shape: Any,
) -> TinyCheckpoint:
    """A checkpoint with random weights; the correction bias is F32 as in the published ones.

    edit: called with the float32 weights before they are rounded to `dtype`. shape: as make_tiny_model takes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes = make_config(n_vocab, True, shape)
    vocabulary = make_vocabulary("kimi", n_vocab, seed)
    drawn = random_weights(sizes, seed, True)
    if edit is not None:
        edit(drawn)
    stored = {}
    for name, values in drawn.items():
        kind = "F32" if name.endswith("e_score_correction_bias") else dtype
        stored[name] = kind, as_stored(values, kind)
    names = list(stored)
    weight_map = {}
    for i in range(n_shards):
        part = names[i * len(names) // n_shards : (i + 1) * len(names) // n_shards]
        file = "model.safetensors" if n_shards == 1 else f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        (folder / file).write_bytes(safetensors_bytes({name: stored[name] for name in part}))
        weight_map |= dict.fromkeys(part, file)
    if n_shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
    write_json(folder / "config.json", hf_config(sizes, vocabulary))
    if in_token_limit is not None:
        means = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        write_json(folder / "preprocessor_config.json", {"in_token_limit": in_token_limit, **means})
    ranks = [b"%s %d\n" % (base64.b64encode(piece), rank) for rank, piece in enumerate(vocabulary.bytes_of)]
    (folder / "tiktoken.model").write_bytes(b"".join(ranks))
    named = {text: i for text, i in vocabulary.special.items() if "reserved" not in text}
    decoder = {str(i): {"content": text, "special": True} for text, i in named.items()}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder, "chat_template": CHAT_TEMPLATE})
    weights = {name: from_bfloat16(v) if kind == "BF16" else v.astype(np.float32) for name, (kind, v) in stored.items()}
    return TinyCheckpoint(folder, weights, sizes, vocabulary)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)
