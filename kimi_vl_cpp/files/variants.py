"""Which of the published models a file is, and what follows from it: sampling defaults and the picture budget.

A published GGUF file does not say how large pictures may be or how to sample; only its names distinguish the variants
(`general.name`, `general.basename`, `general.finetune`, `general.version`, then the file's own name). A file may say so
with keys of our own, which every other runtime ignores; what a file states wins over what its variant implies.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..types import Reasoning, SamplingDefaults

Variant = Literal["instruct", "thinking", "thinking-2506", "demo", "unknown"]

# Temperatures and the 32768 tokens are the model cards'. A file that names no variant is sampled like the reasoning
# models, but with the short answers of the other.
DEFAULTS: dict[Variant, SamplingDefaults] = {
    "instruct": SamplingDefaults(temperature=0.2, max_new_tokens=2048),
    "thinking": SamplingDefaults(temperature=0.6, max_new_tokens=32768),
    "thinking-2506": SamplingDefaults(temperature=0.8, max_new_tokens=32768),
    "demo": SamplingDefaults(temperature=0.0, max_new_tokens=64),
    "unknown": SamplingDefaults(temperature=0.6, max_new_tokens=2048),
}

REASONING: dict[Variant, Reasoning] = {
    "instruct": "no",
    "thinking": "yes",
    "thinking-2506": "yes",
    "demo": "no",
    "unknown": "maybe",
}

# A key of our own (`kimi-vl quantize` writes it): how many 14x14 patches a picture may have.
KEY_IN_TOKEN_LIMIT = "kimi_vl.vision.in_token_limit"
MAX_IN_TOKEN_LIMIT = 512 * 512
# More of them: that it is the small demonstration model and not Kimi-VL, how to sample where the caller says nothing,
# and what the file says of itself (text for people: trained on what, can and cannot do what, accuracy by task).
KEY_DEMO = "kimi_vl.demo"
KEY_TEMPERATURE = "kimi_vl.sampling.temperature"
KEY_MAX_NEW_TOKENS = "kimi_vl.sampling.max_new_tokens"
KEY_CARD = "kimi_vl.card"
MAX_CARD_CHARS = 1 << 16

NAME_KEYS = ("general.name", "general.basename", "general.finetune", "general.version")


def variant_of_text(text: str) -> Variant:
    """The variant that a name means, in any case and with any separators."""
    words = set(re.split(r"[^a-z0-9]+", text.lower()))
    if "2506" in words:
        return "thinking-2506"
    if "thinking" in words:
        return "thinking"
    if "instruct" in words:
        return "instruct"
    return "unknown"


def detect_variant(get: Callable[[str], Any], path: str | Path) -> Variant:
    """The variant of a text file. get: `GGUFFile.get`. The metadata wins over the file's name, which only fills gaps:
    a file whose metadata says Thinking and whose name says 2506 is the 2506 release. The demonstration model is known
    by its key alone, whatever the file is called."""
    if get(KEY_DEMO) is True:
        return "demo"
    values = [get(key) for key in NAME_KEYS]
    found = variant_of_text(" ".join(value for value in values if isinstance(value, str)))
    named = variant_of_text(Path(path).name)
    if found == "unknown" or (found == "thinking" and named == "thinking-2506"):
        return named
    return found


def default_in_token_limit(variant: Variant) -> int:
    """How many 14x14 patches a picture may have before it is scaled down."""
    return 16384 if variant == "thinking-2506" else 4096


def stored_defaults(get: Callable[[str], Any], defaults: SamplingDefaults) -> SamplingDefaults:
    """`defaults` with what a file states in its place, as far as it could be meant. get: `GGUFFile.get`."""
    temperature, longest = get(KEY_TEMPERATURE), get(KEY_MAX_NEW_TOKENS)
    if isinstance(temperature, float) and 0 <= temperature <= 2:
        defaults = replace(defaults, temperature=temperature)
    if isinstance(longest, int) and not isinstance(longest, bool) and 0 < longest <= 1 << 20:
        defaults = replace(defaults, max_new_tokens=longest)
    return defaults


def stored_card(get: Callable[[str], Any]) -> str:
    """What a file says of itself, "" for most. get: `GGUFFile.get`."""
    card = get(KEY_CARD)
    return card[:MAX_CARD_CHARS] if isinstance(card, str) else ""


def stored_in_token_limit(get: Callable[[str], Any]) -> int | None:
    """The limit that a file states, or None when it states none that could be meant. get: `GGUFFile.get`."""
    value = get(KEY_IN_TOKEN_LIMIT)
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return value if is_count and 4 <= value <= MAX_IN_TOKEN_LIMIT else None
