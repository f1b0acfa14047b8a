"""Which files make a model: the text GGUF as named, and the vision GGUF ("mmproj") beside it.

Owns the rules for finding the vision file and the errors for files in the wrong place. Only reads metadata.

How the vision file is found, in the folder of the text file:
1. A file that holds both parts needs none.
2. Candidates are the files `*mmproj*.gguf`, in any case, that are vision files of this family.
3. What is left of a candidate's name without "mmproj", "model", precision and shard labels is compared with the text
   file's: the same words are the best match, then a name whose words are all in the other's (a bare `mmproj-f16.gguf`
   has no words left and fits everything). Names that only share some words do not match, and a file named after another
   variant (Instruct, Thinking, 2506) never does.
4. Of several equally good ones that differ in precision only, the text file's own precision is taken, then F16, BF16,
   F32, Q8_0. If more than one is still left, the choice is the caller's: BadModelFile "model_file.mmproj_ambiguous".
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .._core import GGUFFile, check_vision_file, kv_row_bytes
from ..checks import expand_home
from ..errors import BadModelFile, BadRequest, KimiVLError, shown
from .opening import open_gguf
from .rules import PROJECTORS, TEXT_ARCHITECTURE, VISION_ARCHITECTURE, missing_media_tokens
from .variants import variant_of_text

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
_PRECISION = re.compile(
    r"(?i)(?<![a-z0-9])(?:ud-)?(bf16|f16|fp16|f32|fp32|i?q\d(?:_(?:[0-9klmsx]+))*|mxfp4(?:_moe)?|tq\d_\d)(?![a-z0-9])"
)
_PREFERRED = ("f16", "bf16", "f32", "q8_0")
_NO_WORDS = frozenset({"mmproj", "model", "text", "vision", "gguf", "imatrix", ""})


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model. mmproj: None when the text file holds both parts or no vision file was found; in the
    second case why_no_mmproj says what was looked for and what to do."""

    text: Path
    mmproj: Path | None
    why_no_mmproj: str
    file_bytes: int
    kv_bytes_per_token: int
    context_length: int


def resolve(
    path: str | os.PathLike[str], mmproj: str | os.PathLike[str] | None = None, kv_type: str = "auto"
) -> ModelFiles:
    """The files to load for `path`, with the vision file found when `mmproj` is None.

    Raises BadModelFile: a file that cannot be read, "model_file.is_mmproj" (a vision file given as the model),
    "model_file.mmproj_is_text" (the reverse), "model_file.not_a_vision_file", "model_file.mmproj_ambiguous".
    """
    text = _path("path", path)
    named = None if mmproj is None else _path("mmproj", mmproj)
    gguf = open_gguf(text)
    if _is_vision_only(gguf):
        raise BadModelFile(
            f"{text}: general.architecture is {VISION_ARCHITECTURE!r}: this is a vision file (mmproj), expected a text "
            f"model ({TEXT_ARCHITECTURE!r}). Give the text model's file as the model and this one as mmproj",
            "model_file.is_mmproj",
        )
    why = ""
    if has_vision_tensors(gguf):
        if named is not None and named.resolve() != text.resolve():
            raise BadModelFile(
                f"{text}: the file holds its own vision part, and {named} was given as mmproj: leave mmproj out",
                "model_file.mmproj_not_needed",
            )
        named = None
    elif named is not None:
        _check_vision(named, open_gguf(named))
    else:
        named, why = find_mmproj(text, gguf)
    n_bytes = gguf.file_bytes + (named.stat().st_size if named is not None else 0)
    return ModelFiles(
        text=text,
        mmproj=named,
        why_no_mmproj=why,
        file_bytes=n_bytes,
        kv_bytes_per_token=_kv_bytes_per_token(gguf, kv_type),
        context_length=_size(gguf, "context_length"),
    )


def find_mmproj(text: Path, gguf: GGUFFile) -> tuple[Path | None, str]:
    """The vision file beside `text` by the rules above, or None and why: a file
    that does not fit the model (`gguf`) is passed over. Raises BadModelFile when it is ambiguous."""
    folder = text.parent
    advice = "name the vision file as mmproj"
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if _looks_like_mmproj(entry.name))
    except OSError as error:
        return None, f"The folder {folder} cannot be listed ({error.strerror}): {advice}"
    names = [name for name in names if name != text.name]
    if not names:
        return None, f"There is no file *mmproj*.gguf in {folder}: put it beside the model or {advice}"
    absent = missing_media_tokens(gguf)
    if absent:
        return None, f"The vocabulary of {text.name} has no {absent[0]}: it is a model of texts only"
    hidden_size = _size(gguf, "embedding_length")
    wanted = _words(text.name)
    ranked: dict[int, list[Path]] = {0: [], 1: []}
    for name in names:
        words = _words(name)
        if _other_variant(text.name, name):
            continue
        if words == wanted:
            ranked[0].append(folder / name)
        elif words <= wanted or wanted <= words:
            ranked[1].append(folder / name)
    why_not: list[str] = []
    for rank in sorted(ranked):
        usable = []
        for candidate in ranked[rank]:
            problem = _vision_problem(candidate, hidden_size)
            if problem is None:
                usable.append(candidate)
            else:
                why_not.append(problem)
        if usable:
            return _choose(text, usable), ""
    reason = "; ".join(why_not) if why_not else f"{', '.join(names[:5])}: named after another model or variant"
    return None, f"No vision file in {folder} fits {text.name} ({reason}): {advice}"


def has_vision_tensors(gguf: GGUFFile) -> bool:
    """Whether the file holds a vision tower."""
    return any(tensor.name.startswith(("v.", "mm.")) for tensor in gguf.tensors)


def _size(gguf: GGUFFile, key: str) -> int:
    """A size from the metadata; 0 when it is absent or of another type, which the core then refuses with more words."""
    value = gguf.get(f"{TEXT_ARCHITECTURE}.{key}")
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _kv_bytes_per_token(gguf: GGUFFile, kv_type: str) -> int:
    """Of the latent cache. Raises BadRequest for an unknown type."""
    rank, rope = _size(gguf, "attention.kv_lora_rank"), _size(gguf, "rope.dimension_count")
    return kv_row_bytes(kv_type, rank, rope) * _size(gguf, "block_count")


def _path(name: str, value: object) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise BadRequest(f"{name}: got {shown(value)} ({type(value).__name__}), expected a path", f"request.{name}")
    named = os.fspath(value)
    if not isinstance(named, str) or not named or "\0" in named:
        raise BadRequest(f"{name}: got {shown(named)}, expected the path of a GGUF file", f"request.{name}")
    return Path(expand_home(named))


def _is_vision_only(gguf: GGUFFile) -> bool:
    return gguf.get("general.architecture") == VISION_ARCHITECTURE and not any(
        tensor.name == "token_embd.weight" for tensor in gguf.tensors
    )


def _check_vision(path: Path, gguf: GGUFFile) -> None:
    architecture = gguf.get("general.architecture")
    if architecture == TEXT_ARCHITECTURE and not has_vision_tensors(gguf):
        raise BadModelFile(
            f"{path}: general.architecture is {shown(architecture)}: this is a text model, expected a vision file "
            f"({VISION_ARCHITECTURE!r}) as mmproj. Give it as the model and its mmproj-*.gguf as mmproj",
            "model_file.mmproj_is_text",
        )
    if architecture not in (TEXT_ARCHITECTURE, VISION_ARCHITECTURE):
        raise BadModelFile(
            f"{path}: general.architecture is {shown(architecture)}, expected {VISION_ARCHITECTURE!r}: this is not a "
            "vision file. Give the mmproj-*.gguf of the model as mmproj",
            "model_file.not_a_vision_file",
        )


def _vision_problem(path: Path, hidden_size: int) -> str | None:
    """Why a candidate is not a vision file for a text model of this width, or None."""
    try:
        gguf = open_gguf(path)
        _check_vision(path, gguf)
        projector = gguf.get("clip.projector_type") or gguf.get("clip.vision.projector_type")
    except KimiVLError as error:
        return str(error)
    if projector is not None and projector not in PROJECTORS:
        return f"{path.name}: clip.projector_type is {shown(projector)}, expected {' or '.join(PROJECTORS)}"
    try:
        check_vision_file(gguf, hidden_size)
    except KimiVLError as error:
        return str(error)
    return None


def _looks_like_mmproj(name: str) -> bool:
    lower = name.lower()
    return "mmproj" in lower and lower.endswith(".gguf")


def _stem(name: str) -> str:
    stem = name[: -len(".gguf")] if name.lower().endswith(".gguf") else name
    return _SHARD.sub("", stem)


def _precision(name: str) -> str:
    found = _PRECISION.findall(_stem(name))
    return found[-1].lower().replace("fp", "f") if found else ""


def _words(name: str) -> frozenset[str]:
    """The words of a file name that distinguish models."""
    stem = _PRECISION.sub(" ", _stem(name)).lower()
    return frozenset(re.split(r"[^a-z0-9]+", stem)) - _NO_WORDS


def _other_variant(text: str, candidate: str) -> bool:
    named = variant_of_text(candidate)
    return named != "unknown" and variant_of_text(text) not in ("unknown", named)


def _choose(text: Path, usable: list[Path]) -> Path:
    if len(usable) == 1:
        return usable[0]
    if len({_words(path.name) for path in usable}) == 1:
        for precision in (_precision(text.name), *_PREFERRED):
            same = [path for path in usable if _precision(path.name) == precision]
            if len(same) == 1:
                return same[0]
    listed = ", ".join(path.name for path in usable)
    raise BadModelFile(
        f"{text}: several vision files beside it fit its name: {listed}. Name the one to use as mmproj",
        "model_file.mmproj_ambiguous",
    )
