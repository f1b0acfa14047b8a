"""Conversations on disk: what /save writes and /load reads.

The file is one JSON object, Conversation.to_dict() with the model's name: texts, reasoning, tokens, and the pictures
themselves, so that it can be moved. Writing is atomic: the old file stays whole until the new one is on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from typing import TYPE_CHECKING, Any

from ... import errors
from ...wording import human_bytes
from .. import exits

if TYPE_CHECKING:
    from ...chat.conversation import Conversation
    from ...model import KimiVL

FORMAT = "kimi_vl_cpp.conversation"
MAX_BYTES = 2 << 30
PAGES = ".pages"  # behind the name of a conversation: what was computed of it


def save(conversation: Conversation, model: KimiVL, path: str) -> None:
    """Writes the conversation. Replaces an earlier conversation, and refuses to replace anything else. Raises
    UsageError."""
    _check_target(path)
    data = {**conversation.to_dict(), "model": {"name": model.name, "variant": model.variant}}
    text = json.dumps(data, ensure_ascii=True, indent=1)
    try:
        write_atomically(path, text.encode("ascii"))
    except OSError as failure:
        raise exits.UsageError(f"cannot save {path}: {failure.strerror or failure}") from None


def load(model: KimiVL, path: str) -> tuple[Conversation, str]:
    """The conversation in `path` and the name of the model that held it. Raises UsageError or BadRequest."""
    from ...chat.conversation import Conversation

    exits.check_readable(path, "conversation", (".json",), exits.UsageError, "")
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as failure:
        raise exits.UsageError(f"cannot load {path}: {failure.strerror or failure}") from None
    if len(raw) > MAX_BYTES:
        raise exits.UsageError(f"{path}: larger than {human_bytes(MAX_BYTES)}, which no conversation is")
    try:
        data: Any = json.loads(raw)
    except (ValueError, RecursionError):
        raise exits.UsageError(f"{path}: not a conversation that /save wrote (not JSON)") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise exits.UsageError(f"{path}: not a conversation that /save wrote (its format is not {FORMAT!r})")
    try:
        conversation = Conversation.from_dict(model, data)
    except errors.BadRequest as failure:
        raise errors.BadRequest(f"{path}: {failure}", failure.code) from None
    with contextlib.suppress(OSError):  # where there are none they are computed
        conversation.load_pages(path + PAGES)
    saved_with = data.get("model")
    name = saved_with.get("name") if isinstance(saved_with, dict) else None
    return conversation, name if isinstance(name, str) else ""


def save_pages(conversation: Conversation, path: str) -> int:
    """Writes what was computed of the conversation beside it. Returns how many tokens that are. Raises UsageError."""
    try:
        return conversation.save_pages(path + PAGES)
    except OSError as failure:
        raise exits.UsageError(f"cannot save {path}{PAGES}: {failure.strerror or failure}") from None


def write_atomically(path: str, data: bytes) -> None:
    """Writes a file so that at every moment either the old or the new one is there, whole. Raises OSError."""
    target = os.path.realpath(path)  # through a link, not in its place
    folder = os.path.dirname(target)
    handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(target)[:100]}.", suffix=".tmp", dir=folder)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(OSError):
                os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _mode(target: str) -> int:
    """The permissions of the file to be replaced, or what a new file would get."""
    try:
        return stat.S_IMODE(os.stat(target).st_mode)
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _sync_folder(folder: str) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check_target(path: str) -> None:
    """Raises UsageError unless `path` is free or holds a saved conversation: nobody wants a picture overwritten."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise exits.UsageError(f"cannot save {path}: there is no folder {folder}")
    if os.path.isdir(path):
        raise exits.UsageError(
            f"cannot save {path}: it is a folder; name a file in it, such as {os.path.join(path, 'talk.json')}"
        )
    if not os.path.exists(path):
        return
    try:
        with open(path, "rb") as file:
            ours = os.path.isfile(path) and FORMAT.encode() in file.read(4096)
    except OSError as failure:
        raise exits.UsageError(f"cannot save {path}: {failure.strerror or failure}") from None
    if not ours:
        raise exits.UsageError(f"cannot save {path}: it exists and is not a saved conversation; choose another name")
