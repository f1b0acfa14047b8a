"""Small random Kimi-VL models for tests, documentation and self-tests.

    from kimi_vl_cpp.testing import make_tiny_model
    tiny = make_tiny_model("/tmp/tiny")                   # /tmp/tiny/tiny.gguf and /tmp/tiny/mmproj-tiny.gguf
    with KimiVL(tiny.text) as model:
        model.chat("Hello", max_new_tokens=8)             # noise, but the whole path

The files have the real structure: tensor names, metadata, template, special tokens and, on request, every layout that
converters have produced. `TinyModel.weights` says what a file really holds, so that an independent implementation of
the network can predict the outputs. Nothing here is quick or careful enough for real models.

A default model has about 280 thousand parameters, takes 1.1 MB as F32 and a twentieth of a second to write.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import layout as _layout
from .blocks import TENSOR_TYPES, block_of, dequantize, quantize
from .draw import random_weights
from .read import ReadModel, read_model
from .shapes import ROWS_OF_256, SMALLEST, TEXT_DEFAULTS, VISION_DEFAULTS, make_config
from .vocabulary import CHAT_TEMPLATE, Vocabulary, make_vocabulary
from .write import (
    TEXT_TYPES,
    MetadataEdits,
    edited,
    encode_tensors,
    text_metadata,
    text_type_of,
    vision_metadata,
    vision_type_of,
    write_gguf,
)

__all__ = [
    "CHAT_TEMPLATE",
    "ROWS_OF_256",
    "SMALLEST",
    "TENSOR_TYPES",
    "TEXT_DEFAULTS",
    "VISION_DEFAULTS",
    "ReadModel",
    "TinyModel",
    "Vocabulary",
    "block_of",
    "dequantize",
    "make_tiny_model",
    "make_vocabulary",
    "quantize",
    "read_model",
]

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class TinyModel:
    """A model that `make_tiny_model` wrote.

    text: the text file, or its first shard. mmproj: the vision file, None when there is none or it is inside the text
    file. files: all files written. config: {"text": {...}, "vision": {...} or None}, sizes as Hugging Face names them,
    position_side for the two init_pos_emb sizes. vocabulary: tokens and special ids. encoded: GGUF name -> (type,
    blocks).
    """

    text: Path
    mmproj: Path | None
    files: tuple[Path, ...]
    config: dict[str, Any]
    vocabulary: Vocabulary
    encoded: dict[str, tuple[str, NDArray[Any]]] = field(repr=False)

    @property
    def special(self) -> dict[str, int]:
        """Text of a special token -> id."""
        return self.vocabulary.special

    @property
    def n_vocab(self) -> int:
        return self.vocabulary.n_vocab

    @cached_property
    def tensors(self) -> Tensors:
        """GGUF name -> float32 array in NumPy's order: what the files hold, rounding of their types included."""
        return {name: dequantize(blocks, type_name) for name, (type_name, blocks) in self.encoded.items()}

    @cached_property
    def weights(self) -> Tensors:
        """The same by Hugging Face's names and in its layout (float32): the input of a reference implementation."""
        found = _layout.text_weights(self.tensors, self.config["text"])
        if self.config["vision"] is not None:
            found |= _layout.vision_weights(self.tensors, self.config["vision"])
        return found

    def random_ids(self, n: int, seed: int = 0) -> NDArray[np.int32]:
        """n ids of ordinary tokens, int32."""
        return np.random.default_rng([seed, 1]).integers(0, self.vocabulary.base, n).astype(np.int32)

    def random_picture(self, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
        """Smooth waves and noise, uint8 [height, width, 3]."""
        rng = np.random.default_rng([seed, 2])
        y, x = np.mgrid[0:height, 0:width].astype(np.float64)
        waves = [np.sin(x / (7 + 3 * c) + seed) * np.cos(y / (11 - 2 * c)) for c in range(3)]
        noisy = 127.5 + 90 * np.stack(waves, -1) + rng.normal(0, 25, (height, width, 3))
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def make_tiny_model(
    path_or_dir: str | os.PathLike[str],
    seed: int = 0,
    *,
    layout: Literal["split", "legacy_kv_b", "fused_gate_up"] = "split",
    vision: Literal["mmproj", "single", "none", "kimik25"] = "mmproj",
    text_type: str = "F32",
    vision_type: str = "F32",
    tensor_types: Mapping[str, str] | None = None,
    routing: Literal["wide", "random"] = "wide",
    shards: int = 1,
    vocab: Literal["kimi", "spm"] = "kimi",
    n_vocab: int = 576,
    with_bos_eos: bool = True,
    version: int = 3,
    name: str = "Tiny Kimi-VL",
    metadata: MetadataEdits | None = None,
    mmproj_metadata: MetadataEdits | None = None,
    edit: Callable[[Tensors], None] | None = None,
    **shape: Any,
) -> TinyModel:
    """Writes a small random model and returns where it is and what it holds.

    The same arguments give the same bytes.

    path_or_dir: a folder (made when missing), which gets `tiny.gguf` and `mmproj-tiny.gguf`; or the text file's own
      path ending in `.gguf`, with `mmproj-` before its name for the vision file.
    layout: of the text tensors: "split" attn_k_b and attn_v_b, "legacy_kv_b" one attn_kv_b as in older files,
      "fused_gate_up" as "split" with one ffn_gate_up_exps.
    vision: "mmproj" a second file, "single" inside the text file, "none", "kimik25" a second file in the style of Kimi
      K2.5's converter (one attn_qkv a block, q and k permuted, a three-dimensional position table).
    text_type, vision_type: one of TENSOR_TYPES, for text also the mixes "Q4_K_M" and "Q5_K_M". As in real files it is
      for matrices; norms, biases, routers and the position table stay F32, and a row that is not a whole number of
      blocks falls back to another type (K-quants need rows of 256: pass **ROWS_OF_256).
    tensor_types: pattern of GGUF tensor names (as in fnmatch) -> type, over the above and without fallback.
    routing: "wide": experts are chosen by wide margins, so that rounding does not change the choice and outputs of
      quantized files can be compared; "random": with near ties, as weights come.
    shards: files of the text part, named as split files are.
    vocab: "kimi" byte-level BPE with ids as ranks, or "spm" a SentencePiece one. n_vocab: its size; 256 are special.
    with_bos_eos: False leaves out the keys of both ids, as early converters did.
    version: of the container, 2 or 3 (any number is written).
    name: general.name of both files.
    metadata, mmproj_metadata: keys to replace, add or (None) leave out; int is written as u32, float as f32, a pair
      (gguf.GGUFValueType, value) as that type. With vision="single" mmproj_metadata has no use.
    edit: called with the float32 tensors by GGUF name before they are encoded, to change, add or remove some in place.
    shape: sizes, as in TEXT_DEFAULTS by name and VISION_DEFAULTS by name with the prefix `vision_`.

    Raises ValueError for arguments that do not fit together, OSError when a file cannot be written.
    """
    for argument, value, allowed in (
        ("layout", layout, _layout.LAYOUTS),
        ("vision", vision, _layout.VISION_LAYOUTS),
        ("text_type", text_type, TEXT_TYPES),
        ("vision_type", vision_type, TENSOR_TYPES),
        ("routing", routing, ("wide", "random")),
    ):
        if value not in allowed:
            raise ValueError(f"{argument}={value!r}: expected one of {', '.join(allowed)}")
    text_path, mmproj_path = _paths(Path(path_or_dir))
    config = make_config(n_vocab, vision != "none", shape)
    vocabulary = make_vocabulary(vocab, n_vocab, seed)
    drawn = random_weights(config, seed, routing == "wide")
    t, v = config["text"], config["vision"]

    tensors = _layout.text_tensors(drawn, t, layout)
    n_text = len(tensors)
    if v is not None:
        tensors |= _layout.vision_tensors(drawn, v, vision == "kimik25")
    is_text = dict.fromkeys(list(tensors)[:n_text])
    if edit is not None:
        edit(tensors)
    types = {
        key: vision_type_of(key, array.shape, vision_type)
        if key.startswith(("v.", "mm.")) and key not in is_text
        else text_type_of(key, array.shape, text_type, t["num_hidden_layers"])
        for key, array in tensors.items()
    }
    encoded = encode_tensors(tensors, types, tensor_types or {})
    text_keys = text_metadata(t, vocabulary, name, text_type, layout == "legacy_kv_b", with_bos_eos)
    if v is not None:
        vision_keys = vision_metadata(v, t["hidden_size"], name, vision_type, vision == "kimik25")
    if vision == "single":
        text_keys = {**vision_keys, **text_keys}
    separate = vision in ("mmproj", "kimik25")
    in_mmproj = {key for key in encoded if separate and key.startswith(("v.", "mm.")) and key not in is_text}
    in_text = {key: value for key, value in encoded.items() if key not in in_mmproj}
    files = write_gguf(text_path, edited(text_keys, metadata or {}), in_text, shards, version)
    first = files[0]
    if separate:
        edits = edited(vision_keys, mmproj_metadata or {})
        files += write_gguf(mmproj_path, edits, {key: encoded[key] for key in encoded if key in in_mmproj}, 1, version)
    return TinyModel(
        text=first,
        mmproj=mmproj_path if separate else None,
        files=tuple(files),
        config=config,
        vocabulary=vocabulary,
        encoded=encoded,
    )


def _paths(path: Path) -> tuple[Path, Path]:
    text = path if path.suffix == ".gguf" else path / "tiny.gguf"
    text.parent.mkdir(parents=True, exist_ok=True)
    return text, text.with_name("mmproj-" + text.name)
