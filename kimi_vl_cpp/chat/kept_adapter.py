"""Which adapter answered a conversation that is kept: known by its factors and scales, not by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import shown
from ..generation.adapters import Adapters
from .turns import invalid


def adapter_to_dict(adapters: Adapters, lora: str | None) -> dict[str, str] | None:
    """The adapter that a conversation with `lora` is answered with, fit for JSON."""
    adapter = adapters.pick(lora)
    return None if adapter is None else {"name": lora or adapter.label, "digest": adapter.digest.hex()}


def adapter_from_dict(adapters: Adapters, data: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The name of the adapter that the conversation in `data` goes on with, None for the one of every answer or for
    none, and a notice where that is not the one that answered it.

    Raises BadRequest "conversation.invalid".
    """
    if "adapter" not in data:  # kept before adapters were recorded
        return None, None
    kept = data["adapter"]
    others = "the answers to come have none" if adapters.always is None else f"{adapters.always.label} answers now"
    if kept is None:
        notice = f"this conversation was answered without an adapter: {others}"
        return None, None if adapters.always is None else notice
    if not isinstance(kept, Mapping) or not all(isinstance(kept.get(key), str) for key in ("name", "digest")):
        raise invalid("adapter", kept, "null, or an object with name and digest")
    try:
        found = adapters.with_digest(bytes.fromhex(kept["digest"]))
    except ValueError:
        raise invalid("adapter.digest", kept["digest"], "hexadecimal digits") from None
    if found is not None:
        return found[0], None
    there = "is loaded with other weights or another scale" if kept["name"] in adapters.named else "is not loaded"
    return None, f"the adapter {shown(kept['name'])}, which answered this conversation, {there}: {others}"
