"""OpenAI's options as those of `KimiVL.chat`. What is not supported is an error with code "unsupported.<field>", never
ignored, unless the value says that the caller does not want it either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import BadRequest, Unsupported, shown
from ..generation.sampling import check_max_new_tokens

# Options of OpenAI's API that have no effect here: accepted with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "store": (None, False),
    "prediction": (None,),
    "audio": (None,),
    "web_search_options": (None,),
    "grammar": (None,),
    "logits_processor": (None,),
    "typical_p": (None, 1),
    "tfs_z": (None, 1),
    "mirostat_mode": (None, 0),
}
_IGNORED = (
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "verbosity",
    "user",
    "metadata",
    "parallel_tool_calls",
    "service_tier",
    "reasoning_effort",
)
_RENAMED = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
_PASSED = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "seed", "stop", "progress")


def translate_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's options as those of `KimiVL.chat`. Raises BadRequest for an unknown one, Unsupported for one that asks
    for something that this runtime does not do."""
    result: dict[str, Any] = {}
    for name, value in options.items():
        if name in _PASSED:
            result[name] = value
        elif name in _RENAMED:
            if value is not None and result.get(_RENAMED[name]) is not None:
                raise BadRequest("max_tokens and max_completion_tokens are both given: give one", f"request.{name}")
            if value is not None:
                result[_RENAMED[name]] = check_max_new_tokens(name, value)
        elif name in _NEUTRAL:
            if not any(
                value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in _NEUTRAL[name]
            ):
                raise Unsupported(
                    f"{name}: got {shown(value)}, which is not supported: leave it out", f"unsupported.{name}"
                )
        elif name not in _IGNORED:
            raise BadRequest(f"{name}: no such option", "request.unknown_option")
    return result


def include_usage(options: Any) -> bool:
    if options is None:
        return False
    if not isinstance(options, Mapping) or not isinstance(options.get("include_usage", False), bool):
        raise BadRequest(
            f"stream_options: got {shown(options)}, expected {{'include_usage': true or false}}",
            "request.stream_options",
        )
    return bool(options.get("include_usage", False))
