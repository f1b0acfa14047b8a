"""The token lists of a GGUF file, checked: every id's bytes, every id's kind, the special tokens by name.

Owns the `tokenizer.ggml.*` keys and every complaint about them; whatever passes here cannot make an encoder library
panic. Knows nothing of how text is split into tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from ..errors import BadModelFile, Unsupported, shown

KEY_MODEL = "tokenizer.ggml.model"
KEY_PRE = "tokenizer.ggml.pre"
KEY_TOKENS = "tokenizer.ggml.tokens"
KEY_TYPES = "tokenizer.ggml.token_type"
KEY_SCORES = "tokenizer.ggml.scores"
KEY_MERGES = "tokenizer.ggml.merges"
KEY_BOS = "tokenizer.ggml.bos_token_id"
KEY_EOS = "tokenizer.ggml.eos_token_id"

CHAT_TOKENS = ("<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>")
MEDIA_TOKENS = ("<|media_start|>", "<|media_content|>", "<|media_end|>", "<|media_pad|>")  # for pictures only

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # the values of KEY_TYPES
_SPECIAL_TYPES = frozenset((UNKNOWN, CONTROL, USER_DEFINED))

# A file that names no tokenizer.ggml.pre, or the fallback, comes from an older converter; its pattern can only be
# Kimi's, since no other vocabulary has the chat tokens that `Tokenizer` insists on.
_KIMI_PRE = (None, "default", "kimi-k2")

_ADVICE = "download the file again, or convert the checkpoint again with a current converter"


class GGUFMetadata(Protocol):
    """The part of `_core.GGUFFile` that is read here."""

    @property
    def path(self) -> str: ...
    def get(self, key: str) -> Any: ...
    def get_bytes_list(self, key: str) -> list[bytes] | None: ...


@dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary of `len(surface)` ids.

    kind: "bpe" (byte-level, id order is merge order) or "spm" (SentencePiece). surface: [n_vocab] the bytes that an id
    stands for in decoded text. types: [n_vocab] values of `tokenizer.ggml.token_type`. special: text -> id of the
    control, user-defined and unknown tokens. pieces, scores: [n_vocab], of an "spm" vocabulary only (else empty).
    """

    path: str
    kind: str
    surface: list[bytes]
    types: list[int]
    special: dict[str, int]
    pieces: list[bytes]
    scores: list[float]

    def require_special(self, name: str) -> int:
        """The id of a special token by its text. Raises BadModelFile "tokenizer.missing_special"."""
        token = self.special.get(name)
        if token is not None:
            return token
        encoded = name.encode()
        if encoded in self.surface:
            index = self.surface.index(encoded)
            hint = f"{KEY_TYPES}[{index}] of that text is {self.types[index]}, expected {CONTROL} (control)"
        else:
            hint = "no token has that text"
        raise BadModelFile(
            f"{self.path}: {KEY_TOKENS}: special token {name!r} is missing: {hint}; {_ADVICE}",
            "tokenizer.missing_special",
        )


def read_vocabulary(gguf: GGUFMetadata) -> Vocabulary:
    """Reads and checks the vocabulary of a GGUF file.

    Raises BadModelFile (codes "tokenizer.*") naming file, key and index, and Unsupported for a kind of tokenizer that
    is not implemented.
    """
    return _Reader(gguf).read()


class _Reader:
    def __init__(self, gguf: GGUFMetadata) -> None:
        self.gguf = gguf
        self.path = str(getattr(gguf, "path", "model file"))

    def bad(self, key: str, problem: str, code: str) -> NoReturn:
        raise BadModelFile(f"{self.path}: {key}: {problem}; {_ADVICE}", f"tokenizer.{code}")

    def read(self) -> Vocabulary:
        model = self.text_value(KEY_MODEL)
        if model is None:
            self.bad(KEY_MODEL, "the key is absent, expected 'gpt2' or 'llama'", "model")
        if model not in ("gpt2", "llama"):
            raise Unsupported(
                f"{self.path}: {KEY_MODEL}: got {shown(model)}, expected 'gpt2' (byte-level BPE) or 'llama' "
                "(SentencePiece); use a file with one of these",
                "tokenizer.model",
            )
        tokens = self.token_list()
        types = self.type_list(len(tokens), (NORMAL, BYTE if model == "llama" else UNUSED))
        special = self.special_texts(tokens, types)
        if model == "gpt2":
            self.check_pre()
            surface = self.byte_level_surface(tokens, types)
            self.check_single_bytes(surface, types)
            self.check_merges(tokens, types)
            return Vocabulary(self.path, "bpe", surface, types, special, [], [])
        surface = self.sentencepiece_surface(tokens, types)
        return Vocabulary(self.path, "spm", surface, types, special, tokens, self.score_list(len(tokens)))

    def text_value(self, key: str) -> str | None:
        value = self.gguf.get(key)
        if value is not None and not isinstance(value, str):
            self.bad(key, f"got a value of type {_type_of(value)}, expected a string", "key_type")
        return value

    def string_list(self, key: str) -> list[bytes] | None:
        values = self.gguf.get_bytes_list(key)
        if values is None:
            other = self.gguf.get(key)
            if other is not None:
                self.bad(key, f"got a value of type {_type_of(other)}, expected an array of strings", "key_type")
        return values

    def number_list(self, key: str, n_tokens: int, number: type, what: str) -> list[Any]:
        values = self.gguf.get(key)
        if values is None:
            self.bad(key, f"the key is absent, expected {n_tokens} {what}", key.rpartition(".")[2])
        if not isinstance(values, list) or set(map(type, values)) - {number}:
            self.bad(key, f"got a value of type {_type_of(values)}, expected an array of {what}", "key_type")
        if len(values) != n_tokens:
            self.bad(key, f"has {len(values)} entries, expected {n_tokens}, one for each of {KEY_TOKENS}", "length")
        return values

    def token_list(self) -> list[bytes]:
        tokens = self.string_list(KEY_TOKENS)
        if not tokens:
            self.bad(KEY_TOKENS, "the list is absent or empty", "tokens")
        unique = set(tokens)
        if b"" in unique:
            self.bad(f"{KEY_TOKENS}[{tokens.index(b'')}]", "the token is empty", "empty_token")
        if len(unique) != len(tokens):
            first: dict[bytes, int] = {}
            for index, token in enumerate(tokens):
                before = first.setdefault(token, index)
                if before != index:
                    self.bad(f"{KEY_TOKENS}[{index}]", f"{_shown(token)} is already token {before}", "duplicate_token")
        architecture = self.gguf.get("general.architecture")
        if isinstance(architecture, str):
            key = f"{architecture}.vocab_size"
            expected = self.gguf.get(key)
            if expected is not None and expected != len(tokens):
                self.bad(KEY_TOKENS, f"has {len(tokens)} tokens, expected {shown(expected)} from {key}", "length")
        for tensor in getattr(self.gguf, "tensors", ()):
            if tensor.name == "token_embd.weight" and tuple(tensor.shape[:1]) != (len(tokens),):
                self.bad(
                    KEY_TOKENS, f"has {len(tokens)} tokens, but {tensor.name} has the shape {tensor.shape}", "length"
                )
        return tokens

    def type_list(self, n_tokens: int, allowed: tuple[int, int]) -> list[int]:
        types: list[int] = self.number_list(KEY_TYPES, n_tokens, int, "integers")
        low, high = allowed
        if min(types) < low or max(types) > high:
            index = next(i for i, kind in enumerate(types) if not low <= kind <= high)
            self.bad(f"{KEY_TYPES}[{index}]", f"got {types[index]}, expected {low} to {high}", "token_type")
        return types

    def score_list(self, n_tokens: int) -> list[float]:
        scores: list[float] = self.number_list(KEY_SCORES, n_tokens, float, "floats")
        for index, score in enumerate(scores):
            if not math.isfinite(score):
                self.bad(f"{KEY_SCORES}[{index}]", f"got {score}, expected a finite number", "scores")
        return scores

    def check_pre(self) -> None:
        pre = self.text_value(KEY_PRE)
        if pre not in _KIMI_PRE:
            raise Unsupported(
                f"{self.path}: {KEY_PRE}: got {shown(pre)}, expected 'kimi-k2': this vocabulary would be split by "
                "another pattern than Kimi-VL's; use a Kimi-VL file",
                "tokenizer.pre",
            )

    def special_texts(self, tokens: list[bytes], types: list[int]) -> dict[str, int]:
        return {self.utf8(index, tokens[index]): index for index, kind in enumerate(types) if kind in _SPECIAL_TYPES}

    def utf8(self, index: int, token: bytes) -> str:
        try:
            return token.decode()
        except UnicodeDecodeError:
            self.bad(f"{KEY_TOKENS}[{index}]", f"{_shown(token)} is not UTF-8", "not_utf8")

    def byte_level_surface(self, tokens: list[bytes], types: list[int]) -> list[bytes]:
        """The bytes of every id: normal tokens from the GPT-2 spelling, the others as they are."""
        # All at once: a tenth of a second for 163,840 tokens. "\n" is in no spelling, so it can part the tokens.
        stored = [token if kind == NORMAL else b"!" for token, kind in zip(tokens, types, strict=True)]
        try:
            surface = b"\n".join(stored).decode().translate(_SPELLING).split(_SEPARATOR)
            whole = [text.encode("latin-1") for text in surface]
        except UnicodeError:
            whole = []
        if len(whole) != len(tokens):
            for index, token in enumerate(stored):
                for character in self.utf8(index, token):
                    if character not in BYTE_SPELLING:
                        self.bad(
                            f"{KEY_TOKENS}[{index}]",
                            f"{_shown(token)} holds {character!r}, which is not in the GPT-2 spelling of bytes",
                            "byte_spelling",
                        )
        return [text if kind == NORMAL else token for text, token, kind in zip(whole, tokens, types, strict=True)]

    def check_single_bytes(self, surface: list[bytes], types: list[int]) -> None:
        single = {text[0] for text, kind in zip(surface, types, strict=True) if kind == NORMAL and len(text) == 1}
        if len(single) != 256:
            missing = next(byte for byte in range(256) if byte not in single)
            self.bad(
                KEY_TOKENS,
                f"{256 - len(single)} of the 256 single bytes have no token, the first is 0x{missing:02X} "
                f"(written {BYTE_SPELLING[missing]!r})",
                "missing_byte",
            )

    def check_merges(self, tokens: list[bytes], types: list[int]) -> None:
        """The merges are not used, ranks are ids; but a list that contradicts the tokens betrays a damaged file."""
        merges = self.string_list(KEY_MERGES)
        if not merges:
            return
        normal = {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}
        for index, merge in enumerate(merges):
            left, space, right = merge.partition(b" ")
            if left in normal and right in normal and left + right in normal:
                continue
            where = f"{KEY_MERGES}[{index}]"
            if not space or not left or not right or b" " in right:
                self.bad(where, f"got {_shown(merge)}, expected two tokens separated by one space", "merges")
            unknown = next(part for part in (left, right, left + right) if part not in normal)
            self.bad(where, f"{_shown(merge)} needs {_shown(unknown)}, which is not a token", "merges")

    def sentencepiece_surface(self, tokens: list[bytes], types: list[int]) -> list[bytes]:
        """The bytes of every id: U+2581 is a space, <0xNN> a byte, the unknown token the library's own mark for it."""
        surface, unknown, n_bytes = [], [], 0
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
            text = self.utf8(index, token)
            if "\0" in text:
                self.bad(f"{KEY_TOKENS}[{index}]", f"{_shown(token)} holds a NUL character", "nul")
            if kind == BYTE:
                match = _BYTE_PIECE.fullmatch(text)
                if match is None:
                    self.bad(f"{KEY_TOKENS}[{index}]", f"{_shown(token)} is not a byte token like <0x0A>", "byte_token")
                surface.append(bytes.fromhex(match[1]))
                n_bytes += 1
            elif kind == UNKNOWN:
                unknown.append(index)
                surface.append(" \u2047 ".encode())
            elif kind in _SPECIAL_TYPES:
                surface.append(token)
            else:
                surface.append(text.replace("\u2581", " ").encode())
        if n_bytes not in (0, 256):
            self.bad(KEY_TYPES, f"has {n_bytes} byte tokens (type {BYTE}), expected none or 256", "missing_byte")
        if len(unknown) != 1:
            self.bad(KEY_TYPES, f"has {len(unknown)} unknown tokens (type {UNKNOWN}), expected one", "unknown_token")
        return surface


def _byte_spelling() -> list[str]:
    """[256]: byte -> the character that stands for it in a byte-level GGUF vocabulary (GPT-2's table)."""
    themselves = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in themselves else next(others)) for byte in range(256)]


BYTE_SPELLING: Sequence[str] = _byte_spelling()
_SEPARATOR = "\u0400"  # in no spelling and not in latin-1
_IN_NO_SPELLING = "\uffff"  # also not in latin-1
_SPELLING: dict[int, str] = dict.fromkeys(range(256), _IN_NO_SPELLING)
_SPELLING.update({ord(mark): chr(byte) for byte, mark in enumerate(BYTE_SPELLING)})
_SPELLING[ord("\n")] = _SEPARATOR
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def _shown(token: bytes) -> str:
    text = repr(token.decode(errors="backslashreplace"))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _type_of(value: object) -> str:
    if isinstance(value, list):
        inner = sorted({type(item).__name__ for item in value})
        return f"array of {'/'.join(inner)}" if inner else "empty array"
    return type(value).__name__
