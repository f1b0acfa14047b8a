"""The vocabulary of the demonstration model, in the family's own layout: bytes, merges, 256 special tokens.

Trained on the tasks' questions. A merged token begins with a space or is one of a few words that always stand at the
beginning, so that what the model reads in a picture is spelled byte by byte: unseen words are no harder than seen ones.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import regex
import tiktoken

from kimi_vl_cpp.text.bpe import PATTERN
from kimi_vl_cpp.text.vocabulary import BYTE_SPELLING

N_SPECIAL = 256
# Places of the named special tokens among the 256, as in Kimi-VL's vocabulary.
SPECIAL = {
    "[BOS]": 0,
    "[EOS]": 1,
    "<|im_end|>": 2,
    "<|im_user|>": 3,
    "<|im_assistant|>": 4,
    "<|im_system|>": 10,
    "<|im_middle|>": 17,
    "<|media_start|>": 18,
    "<|media_content|>": 19,
    "<|media_end|>": 20,
    "<|media_pad|>": 21,
    "[UNK]": 254,
    "[PAD]": 255,
}
OPENERS = ("What", "Where", "Which", "How", "Read", "Click", "Is", "system", "ssistant", "image", "You")


class Vocabulary:
    """pieces: rank -> bytes, the 256 bytes in the family's order first."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.n_base = len(pieces)
        self.size = self.n_base + N_SPECIAL
        self.special = {name: self.n_base + place for name, place in SPECIAL.items()}
        ranks = {piece: rank for rank, piece in enumerate(pieces)}
        self._encoding = tiktoken.Encoding("demo", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.pieces[i] for i in ids if i < self.n_base).decode("utf-8", "replace")

    def save(self, path: Path) -> None:
        """As a tiktoken.model file."""
        lines = [b"%s %d\n" % (base64.b64encode(piece), rank) for rank, piece in enumerate(self.pieces)]
        path.write_bytes(b"".join(lines))

    @staticmethod
    def load(path: Path) -> Vocabulary:
        return Vocabulary([base64.b64decode(line.split()[0]) for line in path.read_bytes().splitlines()])


def single_bytes() -> list[bytes]:
    """The 256 bytes in the family's order: that of their spellings in byte-level vocabularies."""
    printable = [byte for byte in range(256) if BYTE_SPELLING[byte] == chr(byte)]
    return [bytes([byte]) for byte in printable + [byte for byte in range(256) if byte not in printable]]


def train(texts: Iterable[str], n_merges: int) -> Vocabulary:
    """Byte pairs by frequency, of pieces that begin with a space."""
    counts: Counter[bytes] = Counter()
    splitter = regex.compile(PATTERN.replace("&&[^\\p{Han}]", "--\\p{Han}"), regex.V1)
    for text in texts:
        for piece in splitter.findall(text):
            if piece.startswith(" ") and len(piece) > 1:
                counts[piece.encode()] += 1
    pieces = single_bytes()
    known = set(pieces)
    for opener in (*OPENERS, "assistant"):
        word = opener.encode()
        heads = [word] if opener == "assistant" else [word[:end] for end in range(2, len(word) + 1)]
        for head in heads:
            if head not in known:
                known.add(head)
                pieces.append(head)
    words = {word: [word[i : i + 1] for i in range(len(word))] for word in counts}
    while len(pieces) < 256 + n_merges:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, parts in words.items():
            if len(parts) > 1:  # the first pair only: a token grows from the space on
                pairs[parts[0], parts[1]] += counts[word]
        if not pairs:
            break
        (left, right), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        for parts in words.values():
            if len(parts) > 1 and (parts[0], parts[1]) == (left, right):
                parts[:2] = [left + right]
        if left + right not in known:
            known.add(left + right)
            pieces.append(left + right)
    return Vocabulary(pieces)
