"""The tokenizer of a checkpoint, tiktoken.model and tokenizer_config.json, as a GGUF file stores it.

Id equals rank. The 256 ids after the last rank are special, those without a name in tokenizer_config.json reserved
ones. Merges, which tiktoken does not have, come from replaying BPE on every token with the ranks below its own.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kimi_vl_cpp.errors import shown
from kimi_vl_cpp.files.input_file import DOWNLOAD_AGAIN, bad_file, read_small
from kimi_vl_cpp.text.vocabulary import BYTE_SPELLING, CONTROL, NORMAL, UNUSED

from .checkpoint import Checkpoint

TIKTOKEN_NAME = "tiktoken.model"
CONFIG_NAME = "tokenizer_config.json"
N_SPECIAL = 256
_MAX_FILE_BYTES = 16 << 20  # Kimi's has 2.7 MiB
_MAX_TOKEN_BYTES = 4096
_MAX_REPLAY = 1 << 31  # sum of squared token lengths: seconds; Kimi's vocabulary has 2^24
_REQUIRED = ("<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|media_pad|>")


@dataclass(frozen=True)
class TokenizerKeys:
    """tokens, types: [n_vocab]; merges: one "left right" for each token of more than one byte. All as GGUF spells
    them. special: text -> id."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]
    chat_template: str | None


def read_tokenizer(checkpoint: Checkpoint, n_vocab: int) -> TokenizerKeys:
    """Raises BadModelFile "checkpoint.tokenizer" and those of unreadable files."""
    path = checkpoint.folder / TIKTOKEN_NAME
    raw, file = read_small(path, TIKTOKEN_NAME, _MAX_FILE_BYTES)
    checkpoint.inputs.append(file)
    pieces = _parse_tiktoken(raw, path, n_vocab)
    config = checkpoint.optional_json(CONFIG_NAME)
    if config is None:
        bad_file(
            checkpoint.folder / CONFIG_NAME, f"is missing: {DOWNLOAD_AGAIN}; it names the special tokens", "tokenizer"
        )
    base = len(pieces)
    if base + N_SPECIAL > n_vocab:
        bad_file(
            path,
            f"has {base} tokens, with {N_SPECIAL} special ones more than vocab_size = {n_vocab} of config.json",
            "tokenizer",
        )
    special = _special_tokens(config, base, checkpoint.folder / CONFIG_NAME)
    stored = [spell(piece) for piece in pieces]
    taken = set(stored)
    for text in special:
        if text in taken:
            bad_file(
                checkpoint.folder / CONFIG_NAME,
                f"special token {shown(text)} is written like an ordinary token of {TIKTOKEN_NAME}",
                "tokenizer",
            )
    n_unused = n_vocab - base - N_SPECIAL
    return TokenizerKeys(
        tokens=[*stored, *special, *(f"[PAD{base + N_SPECIAL + i}]" for i in range(n_unused))],
        types=[NORMAL] * base + [CONTROL] * N_SPECIAL + [UNUSED] * n_unused,
        merges=_merges(pieces, path),
        special=special,
        chat_template=_chat_template(config, checkpoint),
    )


def spell(piece: bytes) -> str:
    """A token's bytes in the spelling of byte-level vocabularies."""
    return "".join([BYTE_SPELLING[byte] for byte in piece])


def _parse_tiktoken(raw: bytes, path: Path, n_vocab: int) -> list[bytes]:
    """Rank -> bytes."""
    n_lines = raw.count(b"\n")
    if n_lines > n_vocab:
        bad_file(path, f"has {n_lines} lines, more tokens than vocab_size = {n_vocab} of config.json", "tokenizer")

    def bad(number: int, problem: str) -> NoReturn:
        bad_file(path, f"line {number}: {problem}: {DOWNLOAD_AGAIN}", "tokenizer")

    by_rank: dict[int, bytes] = {}
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        encoded, _, rank_text = line.partition(b" ")
        rank_text = rank_text.strip()
        try:
            piece = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            piece = b""
        if not piece or not rank_text.isdigit() or len(rank_text) > 9:
            bad(number, f"got {shown(line)}, expected a token in base64, a space and its rank")
        if len(piece) > _MAX_TOKEN_BYTES:
            bad(number, f"the token has {len(piece)} bytes, expected at most {_MAX_TOKEN_BYTES}")
        if int(rank_text) in by_rank:
            bad(number, f"rank {int(rank_text)} occurs twice")
        by_rank[int(rank_text)] = piece
    pieces = [by_rank[rank] for rank in range(len(by_rank)) if rank in by_rank]
    if len(pieces) != len(by_rank):
        hole = next(rank for rank in range(len(by_rank)) if rank not in by_rank)
        bad_file(path, f"rank {hole} is missing of {len(by_rank)}: {DOWNLOAD_AGAIN}", "tokenizer")
    if len(set(pieces)) != len(pieces):
        first: dict[bytes, int] = {}
        rank, piece = next((r, p) for r, p in enumerate(pieces) if first.setdefault(p, r) != r)
        bad_file(path, f"ranks {first[piece]} and {rank} are the same token {shown(piece)}", "tokenizer")
    lacking = [byte for byte in range(256) if bytes([byte]) not in set(pieces[: min(len(pieces), 1 << 18)])]
    if lacking:
        bad_file(path, f"has no token for the byte 0x{lacking[0]:02X}: {DOWNLOAD_AGAIN}", "tokenizer")
    return pieces


def _special_tokens(config: dict[str, Any], base: int, path: Path) -> dict[str, int]:
    """Text -> id of the 256 special tokens, in order of ids."""
    decoder = config.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        bad_file(path, "added_tokens_decoder is not an object", "tokenizer")
    names: dict[int, str] = {}
    for key, entry in decoder.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        known = key.isascii() and key.isdigit() and len(key) < 10 and base <= int(key) < base + N_SPECIAL
        if not known or not isinstance(content, str) or not content or not _is_unicode(content):
            bad_file(
                path,
                f"added_tokens_decoder[{shown(key)}] is {shown(entry)}, expected the content of an id from {base} to "
                f"{base + N_SPECIAL - 1} (after the {base} tokens of {TIKTOKEN_NAME})",
                "tokenizer",
            )
        names[int(key)] = content
    ids = range(base, base + N_SPECIAL)
    special = {names.get(i, f"<|reserved_token_{i}|>"): i for i in ids}
    if len(special) != N_SPECIAL:
        texts = [names.get(i, f"<|reserved_token_{i}|>") for i in ids]
        twice = next(text for text in texts if texts.count(text) > 1)
        bad_file(path, f"added_tokens_decoder names two ids {shown(twice)}", "tokenizer")
    missing = [text for text in _REQUIRED if text not in special]
    if missing:
        bad_file(
            path,
            f"added_tokens_decoder names no {', '.join(missing)}: this is not Kimi-VL's tokenizer; {DOWNLOAD_AGAIN}",
            "tokenizer",
        )
    return special


def _merges(pieces: list[bytes], path: Path) -> list[str]:
    if sum(len(piece) ** 2 for piece in pieces) > _MAX_REPLAY:
        bad_file(path, f"its tokens are too long to be a vocabulary of words: {DOWNLOAD_AGAIN}", "tokenizer")
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    merges = []
    for rank, piece in enumerate(pieces):
        if len(piece) > 1:
            parts = replay(ranks, piece, rank)
            if len(parts) == 2:  # another number: no text ever merges into this token
                merges.append(f"{spell(parts[0])} {spell(parts[1])}")
    return merges


def replay(ranks: dict[bytes, int], piece: bytes, below: int) -> list[bytes]:
    """BPE on `piece` with the merges of ranks less than `below`: always the pair of the lowest rank, leftmost first."""
    parts = [piece[i : i + 1] for i in range(len(piece))]

    def rank_at(i: int) -> int:
        rank = ranks.get(parts[i] + parts[i + 1], below)
        return min(rank, below)

    pairs = [rank_at(i) for i in range(len(parts) - 1)]
    while pairs:
        lowest = min(pairs)
        if lowest >= below:
            break
        i = pairs.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del pairs[i]
        if i > 0:
            pairs[i - 1] = rank_at(i - 1)
        if i < len(pairs):
            pairs[i] = rank_at(i)
    return parts


def _is_unicode(value: str) -> bool:
    """Whether a JSON string can be written as UTF-8: escapes can spell halves of surrogate pairs."""
    return not any(0xD800 <= ord(c) < 0xE000 for c in value)


def _chat_template(config: dict[str, Any], checkpoint: Checkpoint) -> str | None:
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {str(one.get("name")): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    path = checkpoint.folder / "chat_template.jinja"
    if template is None and path.exists():
        raw, file = read_small(path, "chat template", 1 << 20)
        checkpoint.inputs.append(file)
        try:
            template = raw.decode()
        except UnicodeDecodeError as error:
            bad_file(path, f"is not UTF-8 at byte {error.start}", "tokenizer")
    if template is not None and (not isinstance(template, str) or not _is_unicode(template)):
        bad_file(checkpoint.folder / CONFIG_NAME, f"chat_template is {shown(template)}, expected a text", "tokenizer")
    return template
