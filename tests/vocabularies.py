"""Small vocabularies for the tests: the metadata of a GGUF file as a dict, and an object that reads like the file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from kimi_vl_cpp.testing.vocabulary import SPECIAL_OFFSETS
from kimi_vl_cpp.text.tokenizer import Tokenizer

REFERENCE = Path(__file__).resolve().parent / "vectors"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class FakeGGUF:
    """The part of `_core.GGUFFile` that the tokenizer reads, over a dict."""

    path = "fake.gguf"

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def get(self, key: str) -> Any:
        value = self.values.get(key)
        if isinstance(value, list) and value and all(isinstance(item, bytes) for item in value):
            return [item.decode("utf-8", "surrogateescape") for item in value]
        return value

    def get_bytes_list(self, key: str) -> list[bytes] | None:
        value = self.values.get(key)
        return value if isinstance(value, list) and all(isinstance(item, bytes) for item in value) else None


@functools.cache
def gpt2_spelling() -> list[str]:
    """byte -> character: bytes that print stand for themselves, the 68 others take U+0100, U+0101, … in order."""
    spelling, n_others = [], 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
            spelling.append(chr(byte))
        else:
            spelling.append(chr(0x100 + n_others))
            n_others += 1
    return spelling


def spelled(token: bytes) -> bytes:
    return "".join(gpt2_spelling()[byte] for byte in token).encode()


def specials(base: int) -> list[str]:
    return [SPECIAL_OFFSETS.get(offset, f"<|reserved_token_{base + offset}|>") for offset in range(256)]


def bpe_metadata(tokens: list[bytes]) -> dict[str, Any]:
    """A vocabulary as converters write it: `tokens` in rank order, then Kimi's 256 special tokens."""
    base = len(tokens)
    return {
        "general.architecture": "deepseek2",
        "deepseek2.vocab_size": base + 256,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.tokens": [spelled(token) for token in tokens] + [name.encode() for name in specials(base)],
        "tokenizer.ggml.token_type": [NORMAL] * base + [CONTROL] * 256,
        "tokenizer.ggml.bos_token_id": base,
        "tokenizer.ggml.eos_token_id": base + 1,
    }


# In merge order; also pieces of characters, so that ids end inside one.
MERGED = [
    b" t", b"in", b"he", b" the", b"the", b"er", b" a", b"us", b"user", b"  ", b"    ", b"aa", b"aaaa", b"an", b"\n\n",
    b"im", b"ag", b"imag", b"image", b"sys", b"system", b"<|", b"|>", b"\xe4\xb8", b"\xf0\x9f", b"\xf0\x9f\x98",
    "中".encode(), "中文".encode(), "é".encode(), b"\xcc\x81", b"\xcc\x81\xcc\x81", b"\x81\xcc", b" \xf0\x9f",
]  # fmt: skip


def small_tokens() -> list[bytes]:
    """256 single bytes in the order of Kimi's vocabulary, then `MERGED`."""
    order = sorted(range(256), key=lambda byte: (gpt2_spelling()[byte] >= "\u0100", gpt2_spelling()[byte]))
    return [bytes([byte]) for byte in order] + MERGED


def small_bpe() -> dict[str, Any]:
    return bpe_metadata(small_tokens())


def with_merges(metadata: dict[str, Any], merges: list[bytes]) -> dict[str, Any]:
    return {**metadata, "tokenizer.ggml.merges": merges}


CHAT_NAMES = [name for name in SPECIAL_OFFSETS.values() if "im_" in name or "media" in name]


def small_spm() -> dict[str, Any]:
    """A SentencePiece BPE vocabulary as converters write it, all 256 byte tokens included."""
    words = ["▁t", "he", "▁the", "▁a", "er", "in", "▁us", "▁user", "▁▁"]
    letters = ["▁", *"etaoinshrdlucmfwypvbgkjqxz", *"ETAOIN", *"0123456789.,:;!?<>|[]_/", "é", "中", "文"]
    tokens = ["<unk>", "<s>", "</s>", *CHAT_NAMES]
    types = [UNKNOWN, *[CONTROL] * (len(tokens) - 1)]
    scores = [0.0] * len(tokens)
    for byte in range(256):
        tokens.append(f"<0x{byte:02X}>")
        types.append(BYTE)
        scores.append(0.0)
    for order, piece in enumerate(words + letters):
        tokens.append(piece)
        types.append(NORMAL)
        scores.append(-float(order))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [token.encode() for token in tokens],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


TOKENS = "tokenizer.ggml.tokens"
TYPES = "tokenizer.ggml.token_type"
SCORES = "tokenizer.ggml.scores"
MERGES = "tokenizer.ggml.merges"
BOS = "tokenizer.ggml.bos_token_id"
EOS = "tokenizer.ggml.eos_token_id"


def load(metadata, **options):
    return Tokenizer.from_gguf(FakeGGUF(metadata), **options)


def changed(metadata, **changes):
    """The metadata with keys replaced (None: removed); "tokens_5" and the like replace one entry of a list."""
    metadata = {key: list(value) if isinstance(value, list) else value for key, value in metadata.items()}
    for name, value in changes.items():
        field, _, index = name.rpartition("_")
        if index.lstrip("m").isdigit():
            metadata[f"tokenizer.ggml.{field}"][-int(index[1:]) if index[0] == "m" else int(index)] = value
        elif value is None:
            del metadata[f"tokenizer.ggml.{name}"]
        else:
            metadata[f"tokenizer.ggml.{name}"] = value
    return metadata
