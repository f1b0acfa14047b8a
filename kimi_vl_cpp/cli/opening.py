"""What `run` and `chat` share: opening the model, sampling options, reading pictures and text that the user named."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO

from .. import errors
from ..wording import human_count, plural, printable
from . import exits, paths
from .progress import Progress
from .terminal import Terminal

if TYPE_CHECKING:
    from ..model import KimiVL
    from ..types import Response

Sampling = Mapping[str, Any]  # the keyword arguments of KimiVL.chat that were given

Caching = Mapping[str, Any]  # those of KimiVL that say what is remembered and guessed

MAX_PROMPT_BYTES = 16 << 20
MAX_PICTURE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The options that choose and open a model. builtin: `model` is the built-in one, because none was named."""

    model: str | None = None
    mmproj: str | None = None
    n_ctx: int | None = None
    n_threads: int | None = None
    in_token_limit: int | None = None
    device: str = "cpu"
    isa: str = "auto"
    kv_type: str = "auto"
    lora: Sequence[tuple[str, float]] | Mapping[str, tuple[str, float]] | None = None
    builtin: bool = False
    caching: Caching = field(default_factory=dict)


def sampling(
    max_tokens: int | None,
    temp: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repeat_penalty: float | None,
    seed: int | None,
    stop: list[str] | None,
    thinking_budget: int | None = None,
    answer_reserve: int | None = None,
    thinking_close: str | None = None,
    loop_guard: bool = False,
) -> Sampling:
    """The options that were given, as keyword arguments for the model. Raises BadRequest for a value out of range."""
    from ..generation.sampling import resolve
    from ..types import SamplingDefaults

    options: dict[str, Any] = {
        "max_new_tokens": max_tokens,
        "temperature": temp,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
        "stop": stop or None,
        "thinking_budget": thinking_budget,
        "answer_reserve": answer_reserve,
        "thinking_close": thinking_close,
        "loop_guard": loop_guard or None,
    }
    given = {name: value for name, value in options.items() if value is not None and (name, value) != ("seed", -1)}
    resolve(SamplingDefaults(), **given)  # a typo is reported before a model is loaded
    return given


_UNITS = {"": 1, "k": 1000, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def read_size(option: str, text: str) -> int:
    """A size as 64MiB, 10MB or 1000. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,15}) *([kmg]i?)?b?", text.strip().lower())
    if not match:
        raise exits.UsageError(f"{option} {text}: expected a size as 64MiB, 10MB or 1000000")
    return int(match[1]) * _UNITS[match[2] or ""]


def caching(
    kv_memory: str | None,
    cache_dir: str | None,
    cache_disk: str | None,
    no_speculate: bool,
    overflow: str = "error",
) -> Caching:
    """The options that were given, as keyword arguments of KimiVL. Raises UsageError."""
    if overflow not in ("error", "drop_turns"):
        raise exits.UsageError(f"--overflow {overflow}: expected error or drop_turns")
    given: dict[str, Any] = {} if overflow == "error" else {"overflow": overflow}
    if kv_memory is not None:
        given["kv_memory"] = read_size("--kv-memory", kv_memory)
    if cache_dir is not None:
        given["cache_dir"] = cache_dir
    if cache_disk is not None:
        if cache_dir is None:
            raise exits.UsageError("--cache-disk says how much a folder may take: name the folder with --cache-dir")
        given["cache_disk"] = read_size("--cache-disk", cache_disk)
    if no_speculate:
        given["speculate"] = "off"
    return given


class CacheNotices:
    """What went wrong with the cache folder, which cost time only. Each is said once."""

    def __init__(self, model: KimiVL, terminal: Terminal) -> None:
        self._model, self._terminal = model, terminal
        self._said: set[str] = set()

    def say(self) -> None:
        """Says what is new."""
        disk = self._model.cache.info().disk
        for notice in () if disk is None else disk.notices:
            if notice.text not in self._said:
                self._said.add(notice.text)
                self._terminal.note(notice.text)


def choose_model(opening: Opening) -> Opening:
    """The same with the built-in model when none was named; files are looked at but not opened. Raises UsageError or
    BadModelFile."""
    if opening.model is not None:
        check_model(opening)
        return opening
    if opening.mmproj is not None:
        raise exits.UsageError("--mmproj names a vision file, but no model was named: give it with -m")
    from .. import builtin

    try:
        return replace(opening, model=str(builtin.model_path()), builtin=True)
    except errors.BadModelFile as missing:
        raise exits.NoModel(str(missing), missing.code, _models_here() + exits.HOW_TO_GET_A_MODEL) from None


def introduce(model: KimiVL, opening: Opening, terminal: Terminal) -> None:
    """Says that the demonstration model answers, when it does, and how to name a real one."""
    if opening.builtin:
        names = _models_in_folder()
        here = f", here {names[0]}" if names else ""
        terminal.note(f"the small built-in demonstration model answers, not Kimi-VL; -m FILE names a real one{here}")
    elif model.variant == "demo":
        terminal.note("this is the small demonstration model, not Kimi-VL")
    for notice in model.notices:
        terminal.note(notice)


def _models_in_folder() -> list[str]:
    names = exits.names_beside("./-", exits.MODEL_SUFFIXES)
    return [printable(name, one_line=True) for name in names if "mmproj" not in name.lower()]


def _models_here() -> str:
    names = _models_in_folder()
    return f"In this folder: {', '.join(names[:5])}\n" if names else ""


def check_model(opening: Opening) -> str:
    """The path of the model file, looked at but not opened. Raises UsageError or BadModelFile."""
    if not opening.model:
        raise exits.UsageError("no model: name a GGUF file with -m", _models_here() + exits.HOW_TO_GET_A_MODEL)
    exits.check_readable(opening.model, "model file", exits.MODEL_SUFFIXES, errors.BadModelFile, "model_file.missing")
    if opening.mmproj is not None:
        exits.check_readable(
            opening.mmproj, "vision file (--mmproj)", exits.MODEL_SUFFIXES, errors.BadModelFile, "model_file.missing"
        )
    return opening.model


def open_model(opening: Opening, progress: Progress) -> KimiVL:
    """Loads the model. Raises KimiVLError."""
    path = check_model(opening)
    from ..model import KimiVL

    try:
        return KimiVL(
            path,
            mmproj=opening.mmproj,
            n_ctx=opening.n_ctx,
            n_threads=opening.n_threads,
            device=opening.device,  # type: ignore[arg-type]  # the model reports a name that is not one
            isa=opening.isa,
            kv_type=opening.kv_type,
            in_token_limit=opening.in_token_limit,
            lora=opening.lora,
            progress=progress,
            **opening.caching,
        )
    finally:
        progress.clear()


@contextlib.contextmanager
def introduced(opening: Opening, progress: Progress, terminal: Terminal) -> Iterator[KimiVL]:
    """The loaded model, after it was introduced; at the end what went wrong with the cache folder is said. Raises
    KimiVLError."""
    with open_model(opening, progress) as model:
        introduce(model, opening, terminal)
        try:
            yield model
        finally:
            CacheNotices(model, terminal).say()


def resolve_picture(path: str) -> str:
    """The path that -i names: `~` expanded, file:// decoded, "-" for standard input under any of its names; data URLs
    and addresses of the web stay as they are."""
    if path in ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"):
        return "-"
    return path if path.lower().startswith(("data:", "http://", "https://")) else paths.resolve(path)


def check_picture(path: str) -> None:
    """Raises BadImage when `path` cannot be a picture file (or a document, or a video, where it is named like one):
    absent, a folder, unreadable, or an address of the web."""
    if path.lower().startswith(("http://", "https://")):
        raise errors.BadImage(
            f"picture {path}: nothing is fetched from the web; download it and give the file's name", "image.url"
        )
    if not path.lower().startswith("data:"):
        suffix = os.path.splitext(path)[1].lower()
        if suffix in exits.DOCUMENT_SUFFIXES:
            exits.check_readable(path, "document", exits.DOCUMENT_SUFFIXES, errors.BadDocument, "document.missing")
        elif suffix in exits.VIDEO_SUFFIXES:
            exits.check_readable(path, "video", exits.VIDEO_SUFFIXES, errors.BadVideo, "video.missing")
        else:
            exits.check_readable(path, "picture", exits.ATTACHMENT_SUFFIXES, errors.BadImage, "image.missing")


def read_stdin_bytes(limit: int, what: str) -> bytes:
    """Standard input to its end. Raises UsageError when it is closed or larger than `limit`."""
    stream: BinaryIO | None = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise exits.UsageError(f"{what} from standard input: it is closed")
    return read_bytes(stream, limit, f"{what} from standard input")


def read_bytes(stream: BinaryIO, limit: int, what: str) -> bytes:
    """A stream to its end. Raises UsageError when that is more than `limit` bytes."""
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise exits.UsageError(f"{what}: more than {human_count(limit)} bytes")
    return data


def read_text_file(path: str) -> str:
    """A UTF-8 text file, at most MAX_PROMPT_BYTES. Raises UsageError."""
    exits.check_readable(path, "prompt file", (), exits.UsageError, "")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_PROMPT_BYTES + 1)
    except OSError as failure:
        raise exits.UsageError(f"prompt file {exits.describe_os_error(failure)}") from None
    if len(data) > MAX_PROMPT_BYTES:
        raise exits.UsageError(f"prompt file {path}: more than {human_count(MAX_PROMPT_BYTES)} bytes")
    return decode_text(data, f"prompt file {path}")


def decode_text(data: bytes, what: str) -> str:
    """UTF-8 bytes as text, a byte order mark dropped. Raises UsageError that says where the first bad byte is."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise exits.UsageError(
            f"{what}: not UTF-8 text (byte {failure.start} is 0x{data[failure.start]:02x})"
        ) from None


def timings_line(response: Response, *, load: bool = True) -> str:
    """Where the time went, on one line; load: the time of loading the model too."""
    t, u = response.timings, response.usage
    parts = [f"load {t.load_s:.2f} s"] if load else []
    if u.image_tokens:
        parts.append(f"pictures {t.encode_s:.2f} s ({plural(u.image_tokens, 'token')})")
    cached = f", {human_count(u.cached_tokens)} of them known" if u.cached_tokens else ""
    parts.append(f"prompt {t.prefill_s:.2f} s ({plural(u.prompt_tokens, 'token')}{cached}, {t.prefill_tps:.1f}/s)")
    parts.append(f"first token after {t.first_token_s:.2f} s")
    parts.append(f"answer {t.decode_s:.2f} s ({plural(u.completion_tokens, 'token')}, {t.decode_tps:.1f}/s)")
    return " · ".join(parts)


def explain_end(response: Response, terminal: Terminal) -> None:
    """Says why an answer is shorter than it might be, when it is."""
    if response.finish_reason != "length":
        return
    inside = " while the model was still thinking" if not response.text.strip() and response.thinking else ""
    n_used = response.usage.prompt_tokens + response.usage.completion_tokens
    terminal.note(
        f"the answer was cut off{inside} after {plural(response.usage.completion_tokens, 'token')} "
        f"({human_count(n_used)} in the context); -n allows longer answers, -c a longer context"
    )


def display_name(path: str) -> str:
    """The last part of a path, for notes."""
    return os.path.basename(path) or path
