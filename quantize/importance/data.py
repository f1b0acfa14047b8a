"""What an importance matrix is made from: the texts and pictures of a folder, as prompts.

Texts (.txt, .md) are cut into stretches of a number of tokens; a picture comes with the question beside it (photo.png
and photo.txt) or a general one. Everything goes through the chat template, as it will in use. Owns the choice: of every
text file its first stretch before the second of any, and where not all is wanted, as many pictures as texts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kimi_vl_cpp.cache.keys import Picture
from kimi_vl_cpp.errors import BadImage, BadRequest, KimiVLError, shown
from kimi_vl_cpp.text.chat_template import ImagePart, build_prompt

if TYPE_CHECKING:
    from kimi_vl_cpp.model import KimiVL
    from kimi_vl_cpp.text.tokenizer import Tokenizer

QUESTION = "Describe the picture in detail and read all text in it."
TEXT_SUFFIXES = frozenset({".txt", ".md", ".text", ".markdown"})
PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
MAX_FILES = 200_000
MAX_TEXT_BYTES = 64 << 20
MAX_QUESTION_BYTES = 64 << 10


@dataclass(frozen=True)
class Prompt:
    """One run of the model. parts: token ids, and the picture in its place. n_tokens: positions. n_picture: of them
    those of the picture. n_patches: what the tower sees."""

    source: Path
    parts: tuple[list[int] | Picture, ...]
    n_tokens: int
    n_picture: int = 0
    n_patches: int = 0

    @property
    def is_picture(self) -> bool:
        return self.n_picture > 0


@dataclass
class Data:
    """prompts: in the order of the run. skipped: (file, why) of those that could not be used. n_left_out: prompts
    beyond the limit."""

    prompts: list[Prompt]
    skipped: list[tuple[Path, str]]
    n_texts: int
    n_pictures: int
    n_left_out: int


def find_files(data: Path) -> tuple[list[Path], list[Path]]:
    """Text files and pictures of a folder (all the way down, hidden ones left out) or a single file, by name. A text
    that belongs to a picture is not among the texts.

    Raises BadRequest "imatrix.data".
    """
    if not data.exists():
        raise BadRequest(f"{data}: there is no such folder: name one with texts and pictures", "imatrix.data")
    found: list[Path] = []
    if data.is_dir():
        for folder, folders, names in os.walk(data):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
            if len(found) > MAX_FILES:
                raise BadRequest(f"{data}: more than {MAX_FILES} files: name a smaller folder", "imatrix.data")
    else:
        found.append(data)
    pictures = [path for path in found if path.suffix.lower() in PICTURE_SUFFIXES]
    questions = {path.with_suffix("") for path in pictures}
    texts = [
        path
        for path in found
        if path.suffix.lower() in TEXT_SUFFIXES
        and not (path.suffix.lower() == ".txt" and path.with_suffix("") in questions)
    ]
    if not texts and not pictures:
        wanted = ", ".join(sorted(TEXT_SUFFIXES | PICTURE_SUFFIXES))
        raise BadRequest(f"{data}: no text and no picture in it, expected files named {wanted}", "imatrix.data")
    return texts, pictures


def load_data(
    model: KimiVL, data: Path, ctx: int, n_answer: int, limit: int | None, tick: Callable[[int, int], None]
) -> Data:
    """Reads the texts, looks at the pictures, and says what the run will be. tick(done, total) in files.

    ctx: tokens of a stretch of text. n_answer: room for the answer. limit: prompts, None for all; half of them pictures
    where there are enough.

    Raises BadRequest "imatrix.data" when nothing is left that can be used, and what `tick` raises.
    """
    texts, pictures = find_files(data)
    skipped: list[tuple[Path, str]] = []
    stretches: list[list[Prompt]] = []
    total = len(texts) + len(pictures)
    for index, path in enumerate(texts):
        tick(index, total)
        try:
            ids = model.loaded.tokenizer.encode(_read_text(path, MAX_TEXT_BYTES))
        except BadRequest as error:
            skipped.append((path, str(error)))
            continue
        pieces = (ids[at : at + ctx] for at in range(0, len(ids), ctx))
        stretches.append([_text_prompt(model.loaded.tokenizer, path, piece) for piece in pieces])
    in_turn = [one for turn in zip_longest(*stretches) for one in turn if one is not None]
    if pictures and not model.has_vision:
        why = f"the model was opened without its vision part. {model.files.why_no_mmproj}"
        skipped += [(path, why) for path in pictures]
        pictures = []
    room = len(in_turn) + len(pictures) if limit is None else limit
    n_pictures = max(room - len(in_turn), room // 2)
    looked_at: list[Prompt] = []
    left_out = 0
    for index, path in enumerate(pictures):
        if len(looked_at) == n_pictures:
            left_out = len(pictures) - index
            break
        tick(len(texts) + index, total)
        try:
            looked_at.append(_picture_prompt(model, path, n_answer))
        except (BadImage, BadRequest) as error:
            skipped.append((path, str(error)))
    tick(total, total)
    taken = in_turn[: max(0, room - len(looked_at))]
    if not taken and not looked_at:
        why = f": {shown(skipped[0][1])}" if skipped else ""
        raise BadRequest(f"{data}: nothing in it can be used{why}", "imatrix.data")
    left_out += len(in_turn) - len(taken)
    return Data(_mixed(taken, looked_at), skipped, len(taken), len(looked_at), left_out)


def picture_pixels(model: KimiVL, prompt: Prompt) -> NDArray[np.uint8]:
    """The picture of a prompt as the tower sees it: uint8 [H, W, 3]. Raises BadImage; KimiVLError when the
    file is not what it was at first."""
    seen = model.loaded.processor(prompt.source)
    if not any(isinstance(part, Picture) and part.digest == seen.digest for part in prompt.parts):
        raise KimiVLError(f"{prompt.source}: was changed during the run: start again", "imatrix.changed")
    return seen.pixels


def _mixed(texts: Sequence[Prompt], pictures: Sequence[Prompt]) -> list[Prompt]:
    """Texts and pictures, each in its order, spread evenly over the whole."""
    places = [((i + 0.5) / len(texts), 0, i) for i in range(len(texts))]
    places += [((i + 0.5) / len(pictures), 1, i) for i in range(len(pictures))]
    return [(texts, pictures)[kind][i] for _, kind, i in sorted(places)]


def _read_text(path: Path, limit: int) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise BadRequest(f"cannot be read: {error.strerror}", "imatrix.data") from None
    if len(raw) > limit:
        raise BadRequest(f"has more than {limit} bytes: cut it into several files", "imatrix.data")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"is not UTF-8 text (byte {error.start} is 0x{raw[error.start]:02x})", "imatrix.data"
        ) from None
    if not text.strip():
        raise BadRequest("is empty", "imatrix.data")
    return text


def _text_prompt(tokenizer: Tokenizer, path: Path, ids: list[int]) -> Prompt:
    """A stretch of tokens as what the user says."""
    (around,) = build_prompt(tokenizer, [{"role": "user", "content": ""}])
    assert isinstance(around, list)
    at = around.index(tokenizer.im_middle_id, around.index(tokenizer.im_user_id)) + 1
    whole = around[:at] + ids + around[at:]
    return Prompt(path, (whole,), len(whole))


def _picture_prompt(model: KimiVL, path: Path, n_answer: int) -> Prompt:
    question = QUESTION
    beside = path.with_suffix(".txt")
    if beside.is_file():
        try:
            question = _read_text(beside, MAX_QUESTION_BYTES).strip()
        except BadRequest as error:
            raise BadRequest(f"its question {beside.name} {error}", "imatrix.data") from None
    seen = model.loaded.processor(path)
    content = [{"type": "image", "image": 0}, {"type": "text", "text": question}]
    parts = build_prompt(model.loaded.tokenizer, [{"role": "user", "content": content}])
    placed = tuple(Picture(seen.digest, seen.n_tokens) if isinstance(part, ImagePart) else part for part in parts)
    n_tokens = sum(part.n_tokens if isinstance(part, Picture) else len(part) for part in placed)
    room = model.context_length
    if n_tokens + n_answer > room:
        raise BadRequest(f"its prompt has {n_tokens} tokens, more than the model's context of {room}", "imatrix.data")
    return Prompt(path, placed, n_tokens, seen.n_tokens, seen.grid_hw[0] * seen.grid_hw[1])
