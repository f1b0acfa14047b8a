"""What the commands share that work for long and keep a journal beside their output."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from . import exits

if TYPE_CHECKING:
    from ..model import KimiVL

_MODEL_BYTES = 4 << 20  # of a model file that tell it from another


def journal_of(out: Path) -> Path:
    """The journal of an output file."""
    return out.with_name(out.name + ".journal")


def check_output(out: Path, source: str, *, force: bool) -> None:
    """Raises UsageError for an output that cannot be written, is the source, or is another's file."""
    if out.is_dir() or not out.parent.is_dir():
        raise exits.UsageError(f"-o {out}: expected a file in a folder that exists")
    if out.exists() and os.path.samefile(out, source):
        raise exits.UsageError(f"-o {out}: this is the file that is read")
    if out.exists() and not journal_of(out).exists() and not force:
        raise exits.UsageError(f"-o {out}: it exists and no run of this command made it: --force replaces it")


def digest(path: str) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_part(model: KimiVL) -> dict[str, str]:
    """What a journal notes of the model that answers: SHA-256 of its file's size and first bytes, which tell it from
    others, and its adapter."""
    with open(model.files.text, "rb") as file:
        head = f"{os.fstat(file.fileno()).st_size}:".encode() + file.read(_MODEL_BYTES)
    return {"model_file": hashlib.sha256(head).hexdigest(), **adapter_part(model)}


def adapter_part(model: KimiVL) -> dict[str, str]:
    """What a journal notes of the adapter that answers everything; nothing without one."""
    adapter = model.loaded.adapters.always
    return {} if adapter is None else {"lora": adapter.digest.hex()}
