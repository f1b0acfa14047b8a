"""GGUF files written byte by byte, so that every byte can be wrong. Knows nothing of the reader."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
SCALARS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
HEADER_BYTES = 24


def u32(value: int) -> bytes:
    return struct.pack("<I", value % 2**32)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value % 2**64)


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A length, which may lie, and the characters."""
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def scalar(kind: int, value: object) -> bytes:
    return string(value) if kind == STR else struct.pack("<" + SCALARS[kind], value)  # type: ignore[arg-type]


def key(name: str | bytes, kind: int, value: object) -> bytes:
    """An entry; `value` may be bytes that are put there as they are."""
    return string(name) + u32(kind) + (value if isinstance(value, bytes) and kind != STR else scalar(kind, value))


def array(name: str | bytes, kind: int, values: list[object], count: int | None = None) -> bytes:
    body = b"".join(scalar(kind, v) for v in values)
    return string(name) + u32(ARR) + u32(kind) + u64(len(values) if count is None else count) + body


def tensor(name: str | bytes, ne: list[int], kind: int, offset: int, n_dims: int | None = None) -> bytes:
    return string(name) + u32(len(ne) if n_dims is None else n_dims) + b"".join(map(u64, ne)) + u32(kind) + u64(offset)


def pad(raw: bytes, alignment: int = 32) -> bytes:
    return raw + bytes(-len(raw) % alignment)


@dataclass
class Gguf:
    """The parts of a file; `n_keys` and `n_tensors` may lie."""

    keys: list[bytes] = field(default_factory=lambda: [key("general.architecture", STR, "test")])
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    n_keys: int | None = None
    n_tensors: int | None = None
    version: int = 3
    magic: bytes = b"GGUF"
    alignment: int = 32

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        fixed = self.magic + u32(self.version) + u64(n_tensors) + u64(n_keys)
        return fixed + b"".join(self.keys) + b"".join(self.tensors)

    def data_begin(self) -> int:
        return len(pad(self.header(), self.alignment))

    def bytes(self) -> bytes:
        header = self.header()
        return pad(header, self.alignment) + self.data if self.tensors else header


def small_model() -> Gguf:
    """Two tensors, 8 x 4 F32 and 64 x 2 Q8_0, and a few keys."""
    keys = [
        key("general.architecture", STR, "test"),
        key("test.block_count", U32, 2),
        array("tokenizer.ggml.tokens", STR, ["a", "b", "c"]),
        array("tokenizer.ggml.scores", F32, [0.5, 1.5, 2.5]),
    ]
    tensors = [tensor("token_embd.weight", [8, 4], 0, 0), tensor("output.weight", [64, 2], 8, 128)]
    weights = struct.pack("<32f", *range(32)) + pad((struct.pack("<e", 0.5) + bytes(range(32))) * 4)
    return Gguf(keys, tensors, weights)


def one_tensor(
    ne: list[int], kind: int = 0, offset: int = 0, name: str | bytes = "w", n_dims: int | None = None
) -> Gguf:
    """A file of one tensor with 4 KiB of data, whatever the tensor says."""
    return Gguf(tensors=[tensor(name, ne, kind, offset, n_dims)], data=bytes(4096))
