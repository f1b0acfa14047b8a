"""config.json of a Kimi-VL checkpoint: every field that the network depends on, checked.

A field that is missing or out of range is BadModelFile; one that asks for another network is Unsupported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kimi_vl_cpp.errors import BadModelFile, Unsupported, shown

_MAX = {
    "num_hidden_layers": 1024,
    "n_routed_experts": 4096,
    "max_position_embeddings": 1 << 31,
    "bos_token_id": (1 << 31) - 1,
    "eos_token_id": (1 << 31) - 1,
    "pad_token_id": (1 << 31) - 1,
}
_MAX_SIZE = 1 << 22


@dataclass(frozen=True)
class TextConfig:
    """Fields of text_config by their own names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    n_shared_experts: int
    n_routed_experts: int
    num_experts_per_tok: int
    first_k_dense_replace: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    max_position_embeddings: int
    n_group: int
    topk_group: int
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    norm_topk_prob: bool
    routed_scaling_factor: float
    rms_norm_eps: float
    rope_theta: float


@dataclass(frozen=True)
class VisionConfig:
    """Fields of vision_config by their own names. position_side: rows and columns of the position table. merge: of the
    2x2 patches that become one embedding."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int
    position_side: int
    merge: int


@dataclass(frozen=True)
class ModelConfig:
    """Both halves of config.json."""

    text: TextConfig
    vision: VisionConfig


def read_config(config: Mapping[str, Any], path: Path) -> ModelConfig:
    """The checked configuration. path: of config.json, for messages.

    Raises BadModelFile "config.not_kimi_vl" and "config.field", Unsupported "config.unsupported".
    """
    refuse_quantized(config, path)
    kind = config.get("model_type")
    if kind != "kimi_vl":
        names = config.get("architectures")
        raise BadModelFile(
            f"{path}: model_type is {shown(kind)} (architectures {shown(names)}), expected 'kimi_vl': this is the "
            "checkpoint of another model; give the folder of a Kimi-VL checkpoint",
            "config.not_kimi_vl",
        )
    text = _Section(_section(config, "text_config", path), "text_config", path)
    vision = _Section(_section(config, "vision_config", path), "vision_config", path)
    text.must_be("model_type", ("deepseek_v3", None))
    vision.must_be("model_type", ("moonvit", None))
    return ModelConfig(_text(text), _vision(vision))


def refuse_quantized(config: Mapping[str, Any], path: Path) -> None:
    """Raises Unsupported "checkpoint.quantized" for a checkpoint whose weights are not the original floats."""
    nested = config.get("text_config")
    for section in (config, nested if isinstance(nested, dict) else {}):
        for key in ("quantization_config", "quantization", "compression_config"):
            found = section.get(key)
            if not found:
                continue
            method = found.get("quant_method") if isinstance(found, dict) else None
            name = "MLX" if key == "quantization" else method or key
            raise Unsupported(
                f"{path}: {key} is {shown(found)}: this checkpoint is quantized already ({shown(name)}), expected the "
                "original floats: use the original bfloat16 checkpoint",
                "checkpoint.quantized",
            )


def _section(config: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    section = config.get(name)
    if not isinstance(section, dict):
        raise BadModelFile(f"{path}: {name} is {shown(section)}, expected an object", "config.field")
    return section


def _text(s: _Section) -> TextConfig:
    s.must_be("q_lora_rank", (None,))
    s.must_be("scoring_func", ("sigmoid",))
    s.must_be("topk_method", ("noaux_tc",))
    s.must_be("hidden_act", ("silu", None))
    s.must_be("moe_layer_freq", (1, None))
    s.must_be("attention_bias", (False, None))
    s.must_be("tie_word_embeddings", (False, None))
    s.must_be("num_nextn_predict_layers", (0, None))
    rope = _rope(s)
    s.must_be("n_group", (1, None))
    s.must_be("topk_group", (1, None))
    found = TextConfig(
        vocab_size=s.size("vocab_size"),
        hidden_size=s.size("hidden_size"),
        intermediate_size=s.size("intermediate_size"),
        moe_intermediate_size=s.size("moe_intermediate_size"),
        num_hidden_layers=s.size("num_hidden_layers"),
        num_attention_heads=s.size("num_attention_heads"),
        n_shared_experts=s.size("n_shared_experts"),
        n_routed_experts=s.size("n_routed_experts"),
        num_experts_per_tok=s.size("num_experts_per_tok"),
        first_k_dense_replace=s.size("first_k_dense_replace", 0),
        kv_lora_rank=s.size("kv_lora_rank"),
        qk_nope_head_dim=s.size("qk_nope_head_dim"),
        qk_rope_head_dim=s.size("qk_rope_head_dim"),
        v_head_dim=s.size("v_head_dim"),
        max_position_embeddings=s.size("max_position_embeddings"),
        n_group=1,
        topk_group=1,
        bos_token_id=s.token_id("bos_token_id"),
        eos_token_id=s.token_id("eos_token_id"),
        pad_token_id=s.token_id("pad_token_id"),
        norm_topk_prob=s.flag("norm_topk_prob"),
        routed_scaling_factor=s.positive("routed_scaling_factor"),
        rms_norm_eps=s.positive("rms_norm_eps"),
        rope_theta=rope.positive("rope_theta"),
    )
    if found.num_experts_per_tok > found.n_routed_experts:
        s.bad("num_experts_per_tok", f"at most n_routed_experts = {found.n_routed_experts}")
    if found.first_k_dense_replace > found.num_hidden_layers:
        s.bad("first_k_dense_replace", f"at most num_hidden_layers = {found.num_hidden_layers}")
    return found


def _rope(s: _Section) -> _Section:
    """Where rope_theta is: in text_config itself, or in the rope_parameters (rope_scaling) of transformers 5, which may
    only describe the plain rotation."""
    own = s.get("rope_theta")
    for key in ("rope_parameters", "rope_scaling"):
        found = s.get(key)
        if found is None:
            continue
        if not isinstance(found, dict):
            s.bad(key, "an object or null")
        inner = _Section(found, f"{s.name}.{key}", s.path)
        for name in ("rope_type", "type"):
            inner.must_be(name, ("default", None))
        if key == "rope_scaling" and not found.keys() & {"rope_type", "type"}:
            s.must_be(key, (None,))
        theta = found.get("rope_theta")
        if theta is not None and own is not None and theta != own:
            inner.bad("rope_theta", f"{shown(own)}, as {s.name}.rope_theta")
        if theta is not None:
            return inner
    return s


def _vision(s: _Section) -> VisionConfig:
    merge = s.get("merge_kernel_size")
    if merge not in ([2, 2], 2):
        s.bad("merge_kernel_size", "[2, 2]")
    side = s.size("init_pos_emb_height")
    if s.size("init_pos_emb_width") != side:
        s.bad("init_pos_emb_width", f"{side}, as init_pos_emb_height: a GGUF file knows square tables only")
    found = VisionConfig(
        hidden_size=s.size("hidden_size"),
        intermediate_size=s.size("intermediate_size"),
        num_hidden_layers=s.size("num_hidden_layers"),
        num_attention_heads=s.size("num_attention_heads"),
        patch_size=s.size("patch_size"),
        position_side=side,
        merge=2,
    )
    if found.hidden_size % found.num_attention_heads:
        s.bad("num_attention_heads", f"a divisor of hidden_size = {found.hidden_size}")
    return found


class _Section:
    """One object of config.json, field by field."""

    def __init__(self, values: Mapping[str, Any], name: str, path: Path) -> None:
        self.values, self.name, self.path = values, name, path

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def bad(self, key: str, expected: str) -> None:
        raise BadModelFile(
            f"{self.path}: {self.name}.{key} is {shown(self.get(key))}, expected {expected}: download the file again",
            "config.field",
        )

    def must_be(self, key: str, allowed: tuple[Any, ...]) -> None:
        value = self.get(key)
        if any(type(value) is type(one) and value == one for one in allowed):
            return
        expected = " or ".join(repr(one) for one in allowed)
        raise Unsupported(
            f"{self.path}: {self.name}.{key} is {shown(value)}, expected {expected}: this is not the network of the "
            "published Kimi-VL models, and it would be computed wrongly; use one of these",
            "config.unsupported",
        )

    def size(self, key: str, least: int = 1) -> int:
        value, most = self.get(key), _MAX.get(key, _MAX_SIZE)
        if type(value) is not int or not least <= value <= most:
            self.bad(key, f"an integer from {least} to {most}")
        return int(value)

    def token_id(self, key: str) -> int | None:
        value = self.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if value is None:
            return None
        if type(value) is not int or not 0 <= value <= _MAX[key]:
            self.bad(key, "the id of a token")
        return int(value)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            self.bad(key, "true or false")
        return bool(value)

    def positive(self, key: str) -> float:
        value = self.get(key)
        if type(value) not in (int, float) or not fits_float32(value) or value < 1e-30:
            self.bad(key, "a positive number")
        return float(value)


def fits_float32(value: float) -> bool:
    """Whether a number is finite in the 32 bits that a GGUF file has for it."""
    return abs(value) < 3.4e38  # not so for NaN, and no float of a huge integer
