"""The metadata of a GGUF file of this model: from a checkpoint's configuration, or copied from another GGUF file.

The project's own keys begin with `kimi_vl.`; every other runtime ignores them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType

from kimi_vl_cpp._core import GGUFFile
from kimi_vl_cpp.errors import shown
from kimi_vl_cpp.files.input_file import bad_file
from kimi_vl_cpp.files.variants import KEY_IN_TOKEN_LIMIT, MAX_IN_TOKEN_LIMIT

from ..source.checkpoint import Checkpoint
from ..source.config import ModelConfig, TextConfig, VisionConfig, fits_float32
from ..source.tokenizer import TokenizerKeys

KEY_CHECKSUMS = "kimi_vl.tensor_crc32"
KEY_RECIPE = "kimi_vl.quantize.recipe"
KEY_LORA = "kimi_vl.lora"
KEY_IMATRIX = "quantize.imatrix.file"
KEY_NAME = "general.name"
KEY_FILE_TYPE = "general.file_type"
PREPROCESSOR_NAME = "preprocessor_config.json"

# Hugging Face's default for MoonViT's LayerNorms, which no config carries.
_VISION_EPS = 1e-5


@dataclass(frozen=True)
class Value:
    """A metadata value. element: of an array."""

    kind: GGUFValueType
    value: Any
    element: GGUFValueType | None = None


Metadata = dict[str, Value]


def u32(value: int) -> Value:
    return Value(GGUFValueType.UINT32, value)


def f32(value: float) -> Value:
    return Value(GGUFValueType.FLOAT32, value)


def text(value: str) -> Value:
    return Value(GGUFValueType.STRING, value.encode("utf-8", "surrogateescape"))


def flag(value: bool) -> Value:
    return Value(GGUFValueType.BOOL, value)


def array(element: GGUFValueType, values: list[Any]) -> Value:
    return Value(GGUFValueType.ARRAY, values, element)


@dataclass(frozen=True)
class Preprocessing:
    """What preprocessor_config.json says. in_token_limit: patches of a picture, None when the file does not say."""

    in_token_limit: int | None
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]


def read_preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    """Raises BadModelFile "checkpoint.preprocessor"."""
    values = checkpoint.optional_json(PREPROCESSOR_NAME) or {}
    path = checkpoint.folder / PREPROCESSOR_NAME
    limit = values.get("in_token_limit")
    if limit is not None and (type(limit) is not int or not 4 <= limit <= MAX_IN_TOKEN_LIMIT):
        bad_file(path, f"in_token_limit is {shown(limit)}, expected 4 to {MAX_IN_TOKEN_LIMIT}", "preprocessor")
    found = []
    for key in ("image_mean", "image_std"):
        three = values.get(key, [0.5, 0.5, 0.5])
        numbers = isinstance(three, list) and all(type(x) in (int, float) and fits_float32(x) for x in three)
        if not numbers or len(three) != 3 or (key == "image_std" and min(three) < 1e-30):
            bad_file(path, f"{key} is {shown(three)}, expected three numbers", "preprocessor")
        found.append(tuple(map(float, three)))
    return Preprocessing(limit, *found)


def general(architecture: str, kind: str, name: str, file_type: int) -> Metadata:
    """The keys that every file begins with."""
    return {
        "general.architecture": text(architecture),
        "general.type": text(kind),
        KEY_NAME: text(name),
        KEY_FILE_TYPE: u32(file_type),
        "general.quantization_version": u32(2),
    }


def text_metadata(c: TextConfig, tokenizer: TokenizerKeys) -> Metadata:
    """Of the text model, without the general keys."""
    rank, key_length = c.kv_lora_rank, c.qk_nope_head_dim + c.qk_rope_head_dim
    own = {
        "block_count": u32(c.num_hidden_layers),
        "context_length": u32(c.max_position_embeddings),
        "embedding_length": u32(c.hidden_size),
        "feed_forward_length": u32(c.intermediate_size),
        "attention.head_count": u32(c.num_attention_heads),
        "attention.head_count_kv": u32(1),  # latent attention as attention with one shared key
        "rope.freq_base": f32(c.rope_theta),
        "attention.layer_norm_rms_epsilon": f32(c.rms_norm_eps),
        "expert_used_count": u32(c.num_experts_per_tok),
        "expert_group_count": u32(c.n_group),
        "expert_group_used_count": u32(c.topk_group),
        "expert_gating_func": u32(2),  # sigmoid
        "leading_dense_block_count": u32(c.first_k_dense_replace),
        "vocab_size": u32(c.vocab_size),
    }
    if c.num_hidden_layers not in (26, 27):  # llama.cpp takes models of 26 and 27 layers to have none without asking
        own["attention.q_lora_rank"] = u32(0)
    own |= {
        "attention.kv_lora_rank": u32(rank),
        "attention.key_length": u32(rank + c.qk_rope_head_dim),
        "attention.value_length": u32(rank),
        "attention.key_length_mla": u32(key_length),
        "attention.value_length_mla": u32(c.v_head_dim),
        "expert_feed_forward_length": u32(c.moe_intermediate_size),
        "expert_count": u32(c.n_routed_experts),
        "expert_shared_count": u32(c.n_shared_experts),
        "expert_weights_scale": f32(c.routed_scaling_factor),
        "expert_weights_norm": flag(c.norm_topk_prob),
        "rope.dimension_count": u32(c.qk_rope_head_dim),
    }
    keys = {f"deepseek2.{key}": value for key, value in own.items()}
    return keys | _tokenizer_metadata(c, tokenizer)


def _tokenizer_metadata(c: TextConfig, tokenizer: TokenizerKeys) -> Metadata:
    keys = {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text("kimi-k2"),
        "tokenizer.ggml.tokens": array(GGUFValueType.STRING, tokenizer.tokens),
        "tokenizer.ggml.token_type": array(GGUFValueType.INT32, tokenizer.types),
        "tokenizer.ggml.merges": array(GGUFValueType.STRING, tokenizer.merges),
    }
    # Without these keys some runtimes stop at token 11, a comma.
    for key, configured, name in (
        ("bos", c.bos_token_id, "[BOS]"),
        ("eos", c.eos_token_id, "[EOS]"),
        ("padding", c.pad_token_id, "[PAD]"),
    ):
        token = configured if configured is not None else tokenizer.special.get(name)
        if token is not None and token < c.vocab_size:
            keys[f"tokenizer.ggml.{key}_token_id"] = u32(token)
    if tokenizer.chat_template is not None:
        keys["tokenizer.chat_template"] = text(tokenizer.chat_template)
    return {key: value for key, value in keys.items() if value.kind != GGUFValueType.ARRAY or value.value}


def vision_metadata(c: VisionConfig, text_hidden: int, prep: Preprocessing) -> Metadata:
    """Of the vision part, without the general keys."""
    own = {
        "projection_dim": u32(text_hidden),
        "image_size": u32(c.position_side * c.patch_size),
        "patch_size": u32(c.patch_size),
        "embedding_length": u32(c.hidden_size),
        "feed_forward_length": u32(c.intermediate_size),
        "block_count": u32(c.num_hidden_layers),
        "attention.head_count": u32(c.num_attention_heads),
        "image_mean": array(GGUFValueType.FLOAT32, list(prep.image_mean)),
        "image_std": array(GGUFValueType.FLOAT32, list(prep.image_std)),
        "projector.scale_factor": u32(c.merge),
        "attention.layer_norm_epsilon": f32(_VISION_EPS),
    }
    keys = {
        "clip.has_vision_encoder": flag(True),
        "clip.projector_type": text("kimivl"),
        "clip.use_gelu": flag(True),
        **{f"clip.vision.{key}": value for key, value in own.items()},
    }
    if prep.in_token_limit is not None:
        keys[KEY_IN_TOKEN_LIMIT] = u32(prep.in_token_limit)
    return keys


def checkpoint_metadata(
    checkpoint: Checkpoint, config: ModelConfig, tokenizer: TokenizerKeys
) -> tuple[Metadata, Metadata]:
    """The keys of the text part and of the vision part, both without the general ones."""
    vision = vision_metadata(config.vision, config.text.hidden_size, read_preprocessing(checkpoint))
    return text_metadata(config.text, tokenizer), vision


# Of one file and its way of being cut, not of the model.
_NOT_COPIED = ("split.", "general.alignment", "quantize.imatrix.", KEY_CHECKSUMS, KEY_RECIPE)

_SCALARS = {
    "u8": GGUFValueType.UINT8,
    "i8": GGUFValueType.INT8,
    "u16": GGUFValueType.UINT16,
    "i16": GGUFValueType.INT16,
    "u32": GGUFValueType.UINT32,
    "i32": GGUFValueType.INT32,
    "u64": GGUFValueType.UINT64,
    "i64": GGUFValueType.INT64,
    "f32": GGUFValueType.FLOAT32,
    "f64": GGUFValueType.FLOAT64,
    "bool": GGUFValueType.BOOL,
    "string": GGUFValueType.STRING,
}


def copied(gguf: GGUFFile) -> Metadata:
    """Every key of a GGUF file that is about the model, as it is there. Empty arrays are left out."""
    keys: Metadata = {}
    for key in gguf.keys():  # noqa: SIM118 - a method of its own, not a mapping's
        if key.startswith(_NOT_COPIED):
            continue
        kind = gguf.value_type(key)
        element = kind.removeprefix("array[").removesuffix("]")
        if kind == "string":
            keys[key] = text(gguf.get(key))
        elif kind in _SCALARS:
            keys[key] = Value(_SCALARS[kind], gguf.get(key))
        else:
            values = gguf.get_bytes_list(key) if element == "string" else gguf.get(key)
            if values:
                keys[key] = array(_SCALARS[element], values)
    return keys


def is_about_vision(key: str) -> bool:
    """Whether a key belongs into the file of the vision part."""
    return key.startswith("clip.") or key == KEY_IN_TOKEN_LIMIT
