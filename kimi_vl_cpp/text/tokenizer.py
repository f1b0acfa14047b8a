"""Text to token ids and back, for the vocabulary inside a GGUF file.

Owns special tokens: their names, their ids, and the rule that text spelling one stays text unless the caller asks.
"""

from __future__ import annotations

import codecs
import hashlib
import operator
import re
from collections.abc import Iterable
from functools import cached_property
from itertools import groupby

from ..errors import BadModelFile, BadRequest, Unsupported, shown
from .bpe import BytePairEncoder
from .sentence_piece import SentencePieceEncoder
from .template_check import DEFAULT_SYSTEM_MESSAGE, KEY_CHAT_TEMPLATE, default_system_message
from .vocabulary import (
    CHAT_TOKENS,
    CONTROL,
    KEY_BOS,
    KEY_EOS,
    MEDIA_TOKENS,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    GGUFMetadata,
    Vocabulary,
    read_vocabulary,
)

_KEY_CHARSMAP = "tokenizer.ggml.precompiled_charsmap"


class Tokenizer:
    """The tokenizer of one model; immutable, safe to share between threads.

    kind: "bpe" or "spm". n_vocab: ids are 0 <= id < n_vocab. special: text -> id of every special token. bos_id,
    eos_id: from the file's keys, or by name ([BOS], [EOS]; <s>, </s>) where the file has no such keys. stop_ids: the
    ids that end an answer. im_*_id, media_*_id: the tokens of the chat template. default_system: the system message of
    a conversation that has none, of the file's own template where that is Kimi-VL's but for this text; None for no
    message. template_is_kimis: False when the file's own template writes conversations in another way.
    """

    kind: str
    n_vocab: int
    special: dict[str, int]
    bos_id: int
    eos_id: int
    stop_ids: frozenset[int]
    im_end_id: int
    im_user_id: int
    im_assistant_id: int
    im_system_id: int
    im_middle_id: int
    default_system: str | None
    template_is_kimis: bool

    @classmethod
    def from_gguf(cls, gguf: GGUFMetadata, *, vision: bool = False) -> Tokenizer:
        """Reads the vocabulary of a GGUF file; about 0.3 s for Kimi-VL's 163,840 tokens.

        vision: the model sees pictures, so that the media tokens must be there. Without it a missing one is an error
        only when it is used. Raises BadModelFile ("tokenizer.*") naming file, key and index; Unsupported for another
        kind of tokenizer.
        """
        return cls(gguf, vision)

    def __init__(self, gguf: GGUFMetadata, vision: bool = False) -> None:
        vocabulary = read_vocabulary(gguf)
        self._vocabulary: Vocabulary = vocabulary
        self._surface = vocabulary.surface
        self.kind = vocabulary.kind
        self.n_vocab = len(vocabulary.surface)
        self.special = vocabulary.special
        hidden = {CONTROL, USER_DEFINED, UNUSED} | ({UNKNOWN} if self.kind == "bpe" else set())
        self._hidden = frozenset(index for index, kind in enumerate(vocabulary.types) if kind in hidden)

        chat_ids = [vocabulary.require_special(name) for name in CHAT_TOKENS]
        self.im_end_id, self.im_user_id, self.im_assistant_id, self.im_system_id, self.im_middle_id = chat_ids
        if vision:
            for name in MEDIA_TOKENS:
                vocabulary.require_special(name)
        self.bos_id = self._boundary(gguf, KEY_BOS, ("[BOS]", "<s>"))
        self.eos_id = self._boundary(gguf, KEY_EOS, ("[EOS]", "</s>"))
        if self.kind == "bpe":
            named_eos = vocabulary.require_special("[EOS]")
        else:  # a SentencePiece vocabulary may have its own name for it
            named_eos = vocabulary.special.get("[EOS]", self.eos_id)
        self.stop_ids = frozenset((self.im_end_id, named_eos, self.eos_id))

        template = gguf.get(KEY_CHAT_TEMPLATE)
        self.template_is_kimis, self.default_system = True, DEFAULT_SYSTEM_MESSAGE
        if isinstance(template, str):
            self.template_is_kimis, default = default_system_message(template, pictures=vision)
            if self.template_is_kimis:
                self.default_system = default

        self._strip_first_space = False
        self._encoder: BytePairEncoder | SentencePieceEncoder
        if self.kind == "bpe":
            self._encoder = BytePairEncoder(
                {
                    token: index
                    for index, (token, kind) in enumerate(zip(self._surface, vocabulary.types, strict=True))
                    if kind == NORMAL
                }
            )
        else:
            if gguf.get(_KEY_CHARSMAP) is not None:
                raise Unsupported(
                    f"{vocabulary.path}: {_KEY_CHARSMAP}: text that must be normalized by a character map before it is "
                    "encoded is not supported; use a file without this key",
                    "tokenizer.charsmap",
                )
            prefix = self._flag(gguf, "tokenizer.ggml.add_space_prefix", True)
            remove_extra = self._flag(gguf, "tokenizer.ggml.remove_extra_whitespaces", False)
            self._strip_first_space = prefix
            self._encoder = SentencePieceEncoder(vocabulary, prefix, remove_extra)

    def _boundary(self, gguf: GGUFMetadata, key: str, names: tuple[str, ...]) -> int:
        """The id that a key names; without the key, the first of `names` that is there (older files lack the keys)."""
        value = gguf.get(key)
        if value is None:
            return self._vocabulary.require_special(next((n for n in names if n in self.special), names[0]))
        path = self._vocabulary.path
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < self.n_vocab:
            raise BadModelFile(
                f"{path}: {key}: got {shown(value)}, expected a token id from 0 to {self.n_vocab - 1}; remove the key "
                "or convert the checkpoint again",
                "tokenizer.id_range",
            )
        if value not in self.special.values():
            raise BadModelFile(
                f"{path}: {key}: token {value} is {self._surface[value]!r}, which is not a special token: answers "
                "would end at that text; remove the key or convert the checkpoint again",
                "tokenizer.id_not_special",
            )
        return value

    def _flag(self, gguf: GGUFMetadata, key: str, default: bool) -> bool:
        value = gguf.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadModelFile(
                f"{self._vocabulary.path}: {key}: got {shown(value)}, expected a bool; convert the checkpoint again",
                "tokenizer.key_type",
            )
        return value

    def __repr__(self) -> str:
        return f"<Tokenizer {self.kind}, {self.n_vocab} tokens, of {self._vocabulary.path}>"

    @property
    def media_start_id(self) -> int:
        """<|media_start|>. Raises BadModelFile "tokenizer.missing_special", as its three neighbours do."""
        return self._vocabulary.require_special("<|media_start|>")

    @property
    def media_content_id(self) -> int:
        """<|media_content|>"""
        return self._vocabulary.require_special("<|media_content|>")

    @property
    def media_end_id(self) -> int:
        """<|media_end|>"""
        return self._vocabulary.require_special("<|media_end|>")

    @property
    def media_pad_id(self) -> int:
        """<|media_pad|>: stands for one position of a picture; a prompt has the picture's embeddings in its place."""
        return self._vocabulary.require_special("<|media_pad|>")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the vocabulary: with the same digest, the same ids mean the same text."""
        digest = hashlib.sha256(f"{self.kind} {self.n_vocab} {self._strip_first_space}\n".encode())
        for surface, kind in zip(self._surface, self._vocabulary.types, strict=True):
            digest.update(b"%d %d " % (kind, len(surface)) + surface)
        return digest.hexdigest()

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The token ids of a text; no bos, no eos.

        special: text that spells a special token becomes that token (longest match first, the text between is encoded
        piece by piece). Otherwise it stays text, whatever it spells. Surrogates, which are not characters: a pair
        becomes the character that it means, a lone one U+FFFD.
        """
        if not isinstance(text, str):
            raise BadRequest(f"text: got {type(text).__name__}, expected str", "request.text")
        if not text.isascii():
            text = join_surrogates(text)
        if not special:
            return self._encoder.encode(text) if text else []
        ids: list[int] = []
        for piece in self._special_pattern.split(text):
            token = self.special.get(piece)
            if token is not None:
                ids.append(token)
            elif piece:
                ids += self._encoder.encode(piece)
        return ids

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return re.compile(f"({_longest_of(list(self.special), 3)})")

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of token ids; special (and unused) tokens only with special=True. Invalid UTF-8 becomes U+FFFD.

        Raises BadRequest "request.token_id" for an id outside this vocabulary.
        """
        return self.decode_bytes(ids, special).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int], special: bool = False) -> bytes:
        """As `decode`, before the bytes are made characters."""
        tokens = list(ids)
        try:
            if tokens and min(tokens) >= 0 and max(tokens) < self.n_vocab:
                surface, hidden = self._surface, frozenset() if special else self._hidden
                shown_tokens = [token for token in tokens if token not in hidden]
                text = b"".join([surface[token] for token in shown_tokens])
                return self._without_prefix(shown_tokens[0], text) if shown_tokens else b""
        except (TypeError, ValueError):
            pass  # something is not an integer: found below
        for position, token in enumerate(tokens):
            self._check_id(token, position)
        return b""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token's text, a special token's name included."""
        return self._surface[self._check_id(token, 0)]

    def stream(self, special: bool = False) -> StreamDecoder:
        """A decoder for ids that come one by one. Its pieces joined equal `decode` of all the ids."""
        return StreamDecoder(self, special)

    def _without_prefix(self, first: int, text: bytes) -> bytes:
        """The beginning of decoded text: the space that a SentencePiece encoder put before it is not the text's."""
        if self._strip_first_space and self._vocabulary.types[first] == NORMAL:
            return text.removeprefix(b" ")
        return text

    def _check_id(self, token: object, position: int) -> int:
        try:
            index = operator.index(token)  # type: ignore[arg-type]  # whatever the caller gave
        except TypeError:
            index = -1
        if not 0 <= index < self.n_vocab:
            raise BadRequest(
                f"ids[{position}]: got {shown(token)}, expected a token id from 0 to {self.n_vocab - 1}",
                "request.token_id",
            )
        return index


class StreamDecoder:
    """Token ids in, text out, never half a character.

    What `push` gave out is final; bytes that may still become a character are kept back until the next id or `flush`.
    """

    def __init__(self, tokenizer: Tokenizer, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._start()

    def _start(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = True
        self._position = 0

    @property
    def incomplete(self) -> bool:
        """Whether bytes are kept back that are not a whole character yet."""
        return bool(self._decoder.getstate()[0])

    def push(self, token: int) -> str:
        """The text that this id completes, maybe "". Raises BadRequest "request.token_id" and stays as it was."""
        tokenizer = self._tokenizer
        index = tokenizer._check_id(token, self._position)
        self._position += 1
        if index in tokenizer._hidden and not self._special:
            return ""
        text = tokenizer._surface[index]
        if self._at_start:
            self._at_start = False
            text = tokenizer._without_prefix(index, text)
        return self._decoder.decode(text)

    def flush(self) -> str:
        """The end: what is kept back, as U+FFFD since it is not a whole character. Afterwards it is as new."""
        rest = self._decoder.decode(b"", final=True)
        self._start()
        return rest


def join_surrogates(text: str) -> str:
    """Surrogate pairs as the characters that they mean, lone surrogates as U+FFFD; other text as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _longest_of(words: list[str], depth: int) -> str:
    """A regular expression that matches the longest of `words`; `depth` levels of common prefixes are factored out."""
    if depth == 0:
        return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    branches = []
    for _, group in groupby(sorted(words), key=lambda word: word[0]):
        together = list(group)
        first, last = together[0], together[-1]  # in sorted order: what these two share, all share
        n_same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        prefix = first[:n_same]
        rests = [word[len(prefix) :] for word in together if len(word) > len(prefix)]
        rest = f"(?:{_longest_of(rests, depth - 1)})" if rests else ""
        branches.append(re.escape(prefix) + rest + ("?" if rest and prefix in together else ""))
    return "|".join(branches)
