"""Small vocabularies for test models: Kimi's byte-level BPE and a SentencePiece one, as GGUF files store them.

As in the real model, id equals rank, the 256 bytes come first in GPT-2's order, and the last 256 ids are the special
tokens. Everything is found by text, nothing by number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

N_SPECIAL = 256

# Offsets from the first special id (163584 in the real model); the others are <|reserved_token_{id}|>.
SPECIAL_OFFSETS: dict[int, str] = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "[EOT]",
    10: "<|im_system|>",
    11: "<|tool_calls_section_begin|>",
    12: "<|tool_calls_section_end|>",
    13: "<|tool_call_begin|>",
    14: "<|tool_call_argument_begin|>",
    15: "<|tool_call_end|>",
    17: "<|im_middle|>",
    18: "<|media_start|>",
    19: "<|media_content|>",
    20: "<|media_end|>",
    21: "<|media_pad|>",
    254: "[UNK]",
    255: "[PAD]",
}

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if loop.first and messages[0]['role'] != 'system' -%}"
    "{{'<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>'}}{%- endif -%}"
    "{%- if message['role'] == 'system' -%}{{'<|im_system|>'}}{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{'<|im_user|>'}}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{'<|im_assistant|>'}}{%- endif -%}"
    "{{- message['role'] -}}{{'<|im_middle|>'}}"
    "{%- if message['content'] is string -%}{{- message['content'] + '<|im_end|>' -}}"
    "{%- else -%}{%- for content in message['content'] -%}"
    "{%- if content['type'] == 'image' or 'image' in content or 'image_url' in content -%}"
    "{{'<|media_start|>image<|media_content|><|media_pad|><|media_end|>'}}"
    "{%- else -%}{{content['text']}}{%- endif -%}{%- endfor -%}{{'<|im_end|>'}}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{'<|im_assistant|>assistant<|im_middle|>'}}{%- endif -%}"
)

_WORDS = (
    "the system user assistant image you are a helpful what is this picture of and to in it that was on with think "
    "there one see how many cat dog red blue time word not all now describe made part find long some answer question"
)


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary as GGUF metadata. kind: "kimi" or "spm". tokens: text as stored (GPT-2's byte spelling for "kimi").
    special: text -> id. base: the first special id. bytes_of: the bytes of each ordinary id below base."""

    kind: str
    tokens: list[str]
    types: list[int]
    special: dict[str, int]
    base: int
    bytes_of: list[bytes]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @property
    def n_vocab(self) -> int:
        return len(self.tokens)


def byte_spelling() -> dict[int, str]:
    """GPT-2's printable character for each byte, in the order of the bytes' ids (docs/model.md, "Vocabulary")."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(others)}


def make_vocabulary(kind: str, n_vocab: int, seed: int = 0) -> Vocabulary:
    """A vocabulary of exactly n_vocab ids, at least 512 for "kimi" and 515 for "spm". Raises ValueError."""
    if kind not in ("kimi", "spm"):
        raise ValueError(f"vocab={kind!r}: expected 'kimi' or 'spm'")
    least = 256 + N_SPECIAL + (3 if kind == "spm" else 0)
    if n_vocab < least:
        raise ValueError(
            f"n_vocab={n_vocab}: vocab={kind!r} needs {least} or more (256 bytes, {N_SPECIAL} special tokens)"
        )
    return _kimi(n_vocab, seed) if kind == "kimi" else _spm(n_vocab, seed)


def _special(base: int) -> dict[str, int]:
    return {SPECIAL_OFFSETS.get(i, f"<|reserved_token_{base + i}|>"): base + i for i in range(N_SPECIAL)}


def _candidates(seed: int) -> Iterator[bytes]:
    """Byte strings that could become tokens: first those that the real list starts with, then words, then noise."""
    yield from (b"  ", b"    ", b" t", b"in")
    for word in _WORDS.split():
        text = word.encode()
        yield from (piece[:n] for piece in (text, b" " + text) for n in range(2, len(piece) + 1))
    rng, letters = np.random.default_rng(seed), b"etaoinshrdlucmfwypvbgkjqxz"
    grown: list[bytes] = [bytes([c]) for c in letters] + [b" " + bytes([c]) for c in letters]
    while True:
        stem = grown[int(rng.integers(len(grown)))] if len(grown) < 1 << 16 else b""
        piece = stem[:11] + letters[(i := int(rng.integers(len(letters)))) : i + 1]
        grown.append(piece)
        yield piece


def _bpe(piece: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Byte-pair encoding: merge the adjacent pair whose concatenation has the lowest rank until there is none."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        found = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not found:
            return parts
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def _kimi(n_vocab: int, seed: int) -> Vocabulary:
    spelling, base = byte_spelling(), n_vocab - N_SPECIAL
    ranks = {bytes([b]): i for i, b in enumerate(spelling)}
    merges: list[str] = []

    def spell(piece: bytes) -> str:
        return "".join(spelling[b] for b in piece)

    candidates = _candidates(seed)
    while len(ranks) < base:
        piece = next(candidates)
        if piece in ranks:
            continue
        halves = _bpe(piece, ranks)
        if len(halves) == 2:  # reachable by one merge, as every token of a real vocabulary is
            ranks[piece] = len(ranks)
            merges.append(f"{spell(halves[0])} {spell(halves[1])}")
    special = _special(base)
    return Vocabulary(
        kind="kimi",
        tokens=[spell(piece) for piece in ranks] + list(special),
        types=[1] * base + [3] * N_SPECIAL,
        special=special,
        base=base,
        bytes_of=list(ranks),
        merges=merges,
    )


def _spm(n_vocab: int, seed: int) -> Vocabulary:
    """SentencePiece's BPE: <unk> <s> </s>, the bytes, pieces with falling scores, then Kimi's special tokens."""
    base = n_vocab - N_SPECIAL
    pieces: dict[str, bytes] = {}
    letters = [bytes([c]) for c in (*b" ", *range(33, 127))]
    candidates = _candidates(seed)
    known = set(letters)
    while 259 + len(pieces) < base:
        if letters:
            piece = letters.pop(0)
        else:
            piece = next(candidates)
            # SentencePiece merges pairs of known pieces only
            if not any(piece[:i] in known and piece[i:] in known for i in range(1, len(piece))):
                continue
        known.add(piece)
        pieces.setdefault(piece.decode().replace(" ", "\u2581"), piece)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    special = _special(base)
    return Vocabulary(
        kind="spm",
        tokens=tokens + list(special),
        types=[2, 3, 3] + [6] * 256 + [1] * len(pieces) + [3] * N_SPECIAL,
        special=special,
        base=base,
        bytes_of=[b"", b"", b"", *(bytes([b]) for b in range(256)), *pieces.values()],
        scores=[0.0] * 259 + [-float(i) for i in range(len(pieces))] + [0.0] * N_SPECIAL,
    )
