"""The two ways in which an adapter is turned down: it is damaged, or it is more than W + scale B A."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from ..errors import BadModelFile, Unsupported


def bad(path: Path, problem: str, code: str) -> NoReturn:
    """Raises BadModelFile `PATH: PROBLEM` with a code under "lora."."""
    raise BadModelFile(f"{path}: {problem}", f"lora.{code}")


def refuse(path: Path, problem: str) -> NoReturn:
    """Raises Unsupported "lora.unsupported": what cannot be applied exactly is not applied at all."""
    raise Unsupported(
        f"{path}: {problem}. Only plain LoRA can be applied exactly: merge this adapter with PEFT (merge_and_unload, "
        "then save_pretrained) and convert the merged checkpoint",
        "lora.unsupported",
    )
