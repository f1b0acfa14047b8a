"""A SentencePiece vocabulary out of a GGUF file, through the sentencepiece library.

Owns the few protobuf fields of a SentencePiece model that the library needs; they are written here, so that no
protobuf package is. Knows nothing of special tokens in text: every text is plain text here.
"""

from __future__ import annotations

import struct
from typing import Any

from ..errors import BadModelFile
from .vocabulary import BYTE, CONTROL, NORMAL, USER_DEFINED, Vocabulary

_BPE, _UNIGRAM = 2, 1  # TrainerSpec.ModelType


class SentencePieceEncoder:
    """Text to token ids.

    add_space_prefix: a space goes before every text, as `tokenizer.ggml.add_space_prefix` says. Raises BadModelFile
    "tokenizer.sentencepiece" when the library refuses the vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, add_space_prefix: bool, remove_extra_whitespaces: bool) -> None:
        import sentencepiece

        model = serialize_model(vocabulary, add_space_prefix, remove_extra_whitespaces)
        self._processor: Any = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError, OSError) as error:
            raise BadModelFile(
                f"{vocabulary.path}: tokenizer.ggml.tokens: the SentencePiece library refuses this vocabulary: "
                f"{error}; convert the checkpoint again with a current converter",
                "tokenizer.sentencepiece",
            ) from error

    def encode(self, text: str) -> list[int]:
        """text: without surrogates (UTF-8 encodable)."""
        ids: list[int] = self._processor.EncodeAsIds(text)
        return ids


def serialize_model(vocabulary: Vocabulary, add_space_prefix: bool, remove_extra_whitespaces: bool) -> bytes:
    """The vocabulary as a serialized `sentencepiece.ModelProto`.

    User-defined pieces become control pieces, which no text ever matches: the text of a special token stays text.
    Field numbers are those of sentencepiece_model.proto.
    """
    out = bytearray()
    for piece, score, kind in zip(vocabulary.pieces, vocabulary.scores, vocabulary.types, strict=True):
        body = b"\x0a" + _varint(len(piece)) + piece  # SentencePiece.piece = 1
        body += b"\x15" + struct.pack("<f", score)  # .score = 2
        body += b"\x18" + _varint(CONTROL if kind == USER_DEFINED else kind)  # .type = 3
        out += _message(1, body)  # ModelProto.pieces = 1
    trainer = _number(3, _UNIGRAM if is_unigram(vocabulary) else _BPE)  # TrainerSpec.model_type
    trainer += _number(35, BYTE in vocabulary.types)  # .byte_fallback
    out += _message(2, trainer)
    normalizer = _message(1, b"identity")  # NormalizerSpec.name
    normalizer += _number(3, add_space_prefix)  # .add_dummy_prefix
    normalizer += _number(4, remove_extra_whitespaces)  # .remove_extra_whitespaces
    normalizer += _number(5, True)  # .escape_whitespaces
    out += _message(3, normalizer)
    return bytes(out)


def is_unigram(vocabulary: Vocabulary) -> bool:
    """Whether the scores are log probabilities (of a unigram model) rather than merge orders.

    GGUF has no key for it. A BPE trainer writes the whole numbers 0, -1, -2, …; log probabilities are not whole.
    """
    return any(
        not score.is_integer()
        for score, kind in zip(vocabulary.scores, vocabulary.types, strict=True)
        if kind == NORMAL
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body
