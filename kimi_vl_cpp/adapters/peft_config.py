"""adapter_config.json of PEFT: how much an adapter counts, and every setting that would make it more than B A."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import shown
from .complaints import bad, refuse

# Field -> what it is, for fields that change the model in a way that W + scale B A does not describe.
_REFUSED = {
    "use_dora": "DoRA, which rescales the columns of the merged weights",
    "lora_bias": "a bias beside B",
    "fan_in_fan_out": "weights stored the other way round, which Kimi-VL has not",
    "modules_to_save": "whole modules trained beside the adapter",
    "trainable_token_indices": "embeddings of single tokens trained beside the adapter",
    "target_parameters": "changes of parameters that are no linear modules",
    "layer_replication": "layers repeated in the model",
    "use_qalora": "QA-LoRA, which pools the inputs",
    "use_bdlora": "block-diagonal factors",
    "arrow_config": "a router between adapters",
    "alora_invocation_tokens": "an activated LoRA (aLoRA), which begins at certain tokens",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "a model split by Megatron",
}
_LARGEST_NUMBER = 1e30
_MOST_REPEATS = 2  # of a pattern, none of them behind a group: what takes longer than that is no name of modules
_EXACT_INITIALISATIONS = {"gaussian", "eva", "orthogonal"}  # of the strings: those that leave the base as it was


@dataclass(frozen=True)
class PeftConfig:
    """What of the configuration counts. base: the model that the adapter belongs to, as the file names it."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    base: str | None

    def rank_of(self, module: str) -> int:
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        rank = self.rank_of(module)
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _by_pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    """PEFT's rule: the first key that, as a regular expression, is the end of the module's name."""
    for key, value in pattern.items():
        if re.match(_whole(key), module):
            return value
    return default


def _whole(key: str) -> str:
    return rf"(.*\.)?({key})$"


def _is_pattern(key: str) -> bool:
    """Whether a key is a regular expression that is compared with a name within a moment."""
    if re.search(r"\)[*+?{]|\(\?[^:]", key) or len(re.findall("[*+{]", key)) > _MOST_REPEATS:
        return False
    try:
        re.compile(_whole(key))
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def read_peft_config(config: Mapping[str, Any], path: Path) -> PeftConfig:
    """The checked configuration. path: of adapter_config.json, for messages.

    Raises Unsupported "lora.unsupported" for what cannot be applied exactly, BadModelFile "lora.config".
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        refuse(path, f"peft_type is {shown(kind)}, expected 'LORA'")
    for field, what in _REFUSED.items():
        if config.get(field):
            refuse(path, f"{field} is {shown(config[field])}: {what}")
    if config.get("bias", "none") != "none":
        refuse(path, f"bias is {shown(config['bias'])}, expected 'none': biases were trained beside the adapter")
    start = config.get("init_lora_weights", True)
    if not isinstance(start, bool | None) and start not in _EXACT_INITIALISATIONS:
        refuse(
            path,
            f"init_lora_weights is {shown(start)}, which changes the base model as well: convert the adapter with "
            "PEFT first (save_pretrained with path_initial_model_for_weight_conversion)",
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 0 < rank <= 1 << 16:
        bad(path, f"r is {shown(rank)}, expected an integer from 1 to 65536", "config")
    if alpha is None or not _is_number(alpha):
        bad(path, f"lora_alpha is {shown(alpha)}, expected a number", "config")
    base = config.get("base_model_name_or_path")
    return PeftConfig(
        rank=rank,
        alpha=float(alpha),
        use_rslora=bool(config.get("use_rslora")),
        rank_pattern=_pattern(config, "rank_pattern", path),
        alpha_pattern=_pattern(config, "alpha_pattern", path),
        base=base if isinstance(base, str) and base else None,
    )


def _pattern(config: Mapping[str, Any], field: str, path: Path) -> dict[str, Any]:
    found = config.get(field) or {}
    if not isinstance(found, dict):
        bad(path, f"{field} is {shown(found)}, expected an object", "config")
    for key, value in found.items():
        is_right = type(value) is int and value > 0 if field == "rank_pattern" else _is_number(value)
        if not is_right or not _is_pattern(key):
            bad(
                path,
                f"{field}: {shown(key)} is {shown(value)}, expected a number for the names of modules, or for a "
                f"regular expression without flags, with at most {_MOST_REPEATS} repeats (* + {{) and none of a group",
                "config",
            )
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER
