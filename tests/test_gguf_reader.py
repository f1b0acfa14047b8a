"""What the GGUF reader refuses, how it says so, and what is odd but legal.

Every refusal is a BadModelFile with a stable code, whose message names the file, what is wrong, where, and what to do;
it takes less than a second and no memory to speak of, and the process goes on as before.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import (
    ARR, BOOL, F32, F64, HEADER_BYTES, I8, I32, STR, U8, U16, U32, U64,
    Gguf, array, key, one_tensor, pad, small_model, string, tensor, u32, u64,
)  # fmt: skip

from kimi_vl_cpp import _core
from kimi_vl_cpp.errors import BadModelFile, BadRequest, KimiVLError, Unsupported

MEMORY_BYTES = 64 << 20  # what opening any file may take on top
REMEDY = re.compile(
    r"download|convert|check the path|name a file|name the file|make the file|copy|give the parts|update|raise|append|git lfs"
)
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")


@contextlib.contextmanager
def bounded_memory(file_bytes: int) -> Iterator[None]:
    """Allocations beyond the bound fail, and a test that expects BadModelFile sees OutOfMemory."""
    if SANITIZED:  # shadow memory does not fit any bound
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + file_bytes + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refusal(path: Path | str, cls: type[KimiVLError] = BadModelFile) -> KimiVLError:
    size = os.stat(path).st_size if os.path.isfile(path) else 0
    start = time.perf_counter()
    with bounded_memory(size), pytest.raises(cls) as caught:
        _core.GGUFFile(str(path))
    assert time.perf_counter() - start < 1
    return caught.value


def check_refusal(path: Path | str, code: str, *mentions: str) -> None:
    error = refusal(path)
    message = str(error)
    assert error.code == code, message
    assert str(path) in message
    assert REMEDY.search(message), message
    for mention in mentions:
        assert mention in message


@pytest.fixture(scope="module")
def good_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    path.write_bytes(small_model().bytes())
    return path


def nested_array(depth: int) -> bytes:
    return string("k") + u32(ARR) + (u32(ARR) + u64(1)) * depth + u32(U8) + u64(1) + b"\0"


def with_key(entry: bytes) -> Gguf:
    return Gguf(keys=[key("general.architecture", STR, "test"), entry])


def with_value(kind: int, raw: bytes) -> Gguf:
    """A key 'k' of type number `kind` with the value `raw`."""
    return with_key(string("k") + u32(kind) + raw)


def with_alignment(kind: int, value: object) -> Gguf:
    return Gguf([key("general.alignment", kind, value)], [tensor("w", [8], 0, 0)], bytes(4096))


def two_tensors(second_offset: int, second_name: str = "b") -> Gguf:
    return Gguf(tensors=[tensor("a", [16], 0, 0), tensor(second_name, [16], 0, second_offset)], data=bytes(4096))


def cut(model: Gguf, n_bytes: int) -> bytes:
    raw = model.bytes()
    return raw[: n_bytes if n_bytes >= 0 else len(raw) + n_bytes]


K = "key 'k'"
W = "tensor 'w'"
ARCH_END = HEADER_BYTES + len(key("general.architecture", STR, "test"))
AT_K = f"(at byte {ARCH_END + 8 + 1 + 4})"  # the value of with_value()

# name -> (bytes of the file or how to make them, code, what the message must name)
BAD: dict[str, tuple[Gguf | bytes, str, tuple[str, ...]]] = {
    # The fixed part of the header
    "one_byte": (b"G", "gguf.truncated", ("magic",)),
    "three_bytes": (b"GGU", "gguf.truncated", ("magic",)),
    "magic_alone": (b"GGUF", "gguf.truncated", ("version", "(at byte 4)")),
    "23_bytes": (small_model().bytes()[:23], "gguf.truncated", ("number of keys", "(at byte 16)")),
    "bad_magic": (Gguf(magic=b"GGUX"), "gguf.magic", ("'GGUX'", "'GGUF'")),
    "all_zeros": (bytes(4096), "gguf.magic", (r"'\x00\x00\x00\x00'",)),
    "reversed_magic": (Gguf(magic=b"FUGG"), "gguf.magic", ("big-endian",)),
    "ggml_file": (b"lmgg" + bytes(60), "gguf.magic", ("before GGUF",)),
    "safetensors_file": (u64(64) + b'{"a":' + bytes(60), "gguf.magic", ("safetensors",)),
    "zip_file": (b"PK\x03\x04" + bytes(60), "gguf.magic", ("PyTorch",)),
    "web_page": (b"<!doctype html><html></html>", "gguf.magic", ("web page",)),
    "git_lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "gguf.magic", ("git lfs pull",)),
    "big_endian_v3": (Gguf(version=0x03000000), "gguf.endianness", ("0x03000000", "(at byte 4)")),
    "big_endian_v2": (Gguf(version=0x02000000), "gguf.endianness", ("0x02000000",)),
    "version_0": (Gguf(version=0), "gguf.version", ("is 0", "2 and 3")),
    "version_1": (Gguf(version=1), "gguf.version", ("is 1", "2 and 3", "current tools")),
    "version_4": (Gguf(version=4), "gguf.version", ("is 4", "update")),
    "version_99": (Gguf(version=99), "gguf.version", ("is 99", "(at byte 4)")),
    "version_max": (Gguf(version=2**32 - 1), "gguf.version", ("is 4294967295",)),
    # Counts
    **{
        f"{field}_{name}": (Gguf(**{field: value}), "gguf.count", (f"is {value % 2**64}", "65536", f"(at byte {at})"))  # type: ignore[arg-type]
        for field, at in (("n_tensors", 8), ("n_keys", 16))
        for name, value in (
            ("minus_1", -1), ("2_31", 2**31), ("2_55", 2**55), ("max", 2**63 - 1), ("100_million", 10**8), ("65537", 65537),
        )
    },  # fmt: skip
    "n_keys_65536_in_a_short_file": (Gguf(n_keys=65536), "gguf.truncated", ("list of keys and tensors",)),
    "n_tensors_65536_in_a_short_file": (Gguf(n_tensors=65536), "gguf.truncated", ("list of keys and tensors",)),
    "one_key_more_than_there_is": (Gguf(n_keys=2), "gguf.truncated", ()),
    # Keys
    **{
        f"key_length_{name}": (
            with_key(string(b"k", length) + u32(U8) + b"\0"), "gguf.key_length",
            ("key 2 of 2", f"{length} bytes", "65535", f"(at byte {ARCH_END})"),
        )
        for name, length in (("0", 0), ("2_16", 2**16), ("2_30", 2**30 - 1), ("2_62", 2**62), ("max", 2**64 - 1))
    },  # fmt: skip
    "key_length_beyond_the_file": (with_key(string(b"k", 60000) + bytes(6)), "gguf.truncated", ("key 2 of 2", "60000")),
    "key_with_nul": (with_key(key(b"a\0b", U8, 1)), "gguf.key_text", (r"'a\x00b'", f"(at byte {ARCH_END + 8})")),
    "key_not_utf8": (with_key(key(b"a\xff", U8, 1)), "gguf.key_text", (r"'a\xff'", "UTF-8")),
    "key_overlong_utf8": (with_key(key(b"\xc0\x80", U8, 1)), "gguf.key_text", (r"'\xc0\x80'",)),
    "key_surrogate": (with_key(key(b"\xed\xa0\x80", U8, 1)), "gguf.key_text", ("UTF-8",)),
    "key_cut_character": (with_key(key(b"a\xe2\x82", U8, 1)), "gguf.key_text", ("UTF-8",)),
    "key_twice": (
        Gguf([key("k", U8, 1), key("l", U8, 1), key("k", U8, 1)]), "gguf.duplicate_key",
        (K, f"byte {HEADER_BYTES + 13}", f"(at byte {HEADER_BYTES + 2 * 14 + 13})"),
    ),
    "key_twice_with_other_types": (Gguf([key("k", U8, 1), key("k", STR, "x")]), "gguf.duplicate_key", (K,)),
    # Values
    **{
        f"value_type_{kind}": (
            with_value(kind, bytes(64)), "gguf.value_type", (K, f"is {kind}", "0 to 12", f"(at byte {ARCH_END + 9})"),
        )
        for kind in (13, 77, 2**32 - 1)
    },  # fmt: skip
    "bool_2": (with_value(BOOL, b"\2"), "gguf.bool", (K, "is 2", AT_K)),
    "bool_255_in_array": (with_value(ARR, u32(BOOL) + u64(3) + b"\0\1\xff"), "gguf.bool", (K, "is 255")),
    "u64_cut": (cut(with_value(U64, u64(1)), -1), "gguf.truncated", (K, "8 bytes", AT_K)),
    "string_1_longer_than_the_file": (with_value(STR, string("abc", 4)), "gguf.truncated", (K, "needs 4 bytes", "only 3")),
    "string_length_2_24_plus_1": (with_value(STR, string("abc", 2**24 + 1)), "gguf.string_length", (K, "16777217", AT_K)),
    "string_length_2_62": (with_value(STR, string("abc", 2**62)), "gguf.string_length", (K, AT_K)),
    "string_length_max": (with_value(STR, string("abc", 2**64 - 1)), "gguf.string_length", (K, AT_K)),
    # Arrays
    "array_element_type_77": (with_value(ARR, u32(77) + u64(1) + bytes(8)), "gguf.value_type", (K, "is 77", AT_K)),
    "array_of_2_30_u8": (with_value(ARR, u32(U8) + u64(2**30)), "gguf.array_length", (K, "1073741824", "16777216")),
    "array_of_2_62_u64": (with_value(ARR, u32(U64) + u64(2**62)), "gguf.array_length", (K,)),
    "array_of_2_61_u64_wraps_to_0": (with_value(ARR, u32(U64) + u64(2**61)), "gguf.array_length", (K,)),
    "array_of_2_64_minus_1": (with_value(ARR, u32(U8) + u64(-1)), "gguf.array_length", (K,)),
    "array_of_16_million_in_a_short_file": (with_value(ARR, u32(U64) + u64(2**24)), "gguf.truncated", (K, "134217728")),
    "strings_of_16_million_in_a_short_file": (with_value(ARR, u32(STR) + u64(2**24)), "gguf.truncated", (K,)),
    "array_1_longer_than_the_file": (with_key(array("k", I32, [1, 2, 3], 4)), "gguf.truncated", (K, "needs 16 bytes")),
    "strings_1_longer_than_the_file": (with_key(array("k", STR, ["a", "b"], 3)), "gguf.truncated", (K,)),
    "string_in_array_too_long": (with_key(array("k", STR, ["a"], 2) + u64(2**40)), "gguf.string_length", (K,)),
    "array_nested_once": (with_key(nested_array(1)), "gguf.array_nested", (K, AT_K)),
    "array_nested_3000_deep": (with_key(nested_array(3000)), "gguf.array_nested", (K, AT_K)),
    # Alignment
    **{
        f"alignment_{value}": (with_alignment(U32, value), "gguf.alignment", ("key 'general.alignment'", f"is {value}", "8 to 1048576"))
        for value in (0, 1, 3, 4, 24, 33, 2**21, 2**31, 2**32 - 1)
    },
    "alignment_u64": (with_alignment(U64, 32), "gguf.alignment", ("is of type u64", "u32", "(at byte 53)")),
    "alignment_string": (with_alignment(STR, "32"), "gguf.alignment", ("is of type string",)),
    "alignment_f32": (with_alignment(F32, 32.0), "gguf.alignment", ("is of type f32",)),
    # Tensors: names
    "tensor_name_empty": (one_tensor([8], name=""), "gguf.tensor_name", ("tensor 1 of 1", "0 bytes", f"(at byte {ARCH_END})")),
    "tensor_name_of_64": (one_tensor([8], name="x" * 64), "gguf.tensor_name", ("64 bytes", "1 to 63")),
    "tensor_name_of_2_62": (Gguf(tensors=[u64(2**62) + bytes(64)]), "gguf.tensor_name", ("tensor 1 of 1",)),
    "tensor_name_with_nul": (one_tensor([8], name="a\0b"), "gguf.tensor_name", (r"'a\x00b'", f"(at byte {ARCH_END + 8})")),
    "tensor_name_not_utf8": (one_tensor([8], name=b"\x80"), "gguf.tensor_name", (r"'\x80'",)),
    "tensor_twice": (two_tensors(64, "a"), "gguf.duplicate_tensor", ("tensor 'a'", "twice", "at byte ")),
    # Tensors: shapes
    "n_dims_0": (one_tensor([], n_dims=0), "gguf.tensor_dims", (W, "0 dimensions", "1 to 4")),
    "n_dims_5": (one_tensor([1] * 5), "gguf.tensor_dims", (W, "5 dimensions", f"(at byte {ARCH_END + 9})")),
    "n_dims_max": (one_tensor([8], n_dims=2**32 - 1), "gguf.tensor_dims", (W, "4294967295")),
    "dim_0": (one_tensor([8, 0]), "gguf.tensor_shape", (W, "dimension 1 is 0", f"(at byte {ARCH_END + 21})")),
    "dim_minus_4": (one_tensor([-4, 8]), "gguf.tensor_shape", (W, "dimension 0 is -4")),
    "dim_minus_1_squared": (one_tensor([-1, -1]), "gguf.tensor_shape", (W, "dimension 0 is -1")),
    "dim_2_62": (one_tensor([2**62]), "gguf.tensor_size", (W, "F32", "[4611686018427387904]")),
    "product_overflow": (one_tensor([2**32, 2**32]), "gguf.tensor_size", (W, "dimensions up to 1")),
    "product_overflow_to_8": (one_tensor([2**40, 2**24, 1, 8]), "gguf.tensor_size", (W,)),
    "product_over_2_63": (one_tensor([2**31, 2**32]), "gguf.tensor_size", (W,)),
    "bytes_overflow": (one_tensor([2**61, 2], kind=1), "gguf.truncated", (W, "[2305843009213693952,2]")),
    "bytes_overflow_f64": (one_tensor([2**61, 2], kind=28), "gguf.tensor_size", (W, "F64")),
    "pad_overflow": (one_tensor([2**62 - 1], kind=0), "gguf.tensor_size", (W,)),
    "q8_0_row_of_48": (one_tensor([48, 2], kind=8), "gguf.tensor_block", (W, "48", "[48,2]", "32", "Q8_0")),
    "q4_k_row_of_32": (one_tensor([32, 8], kind=12), "gguf.tensor_block", (W, "256", "Q4_K")),
    "mxfp4_row_of_1": (one_tensor([1], kind=39), "gguf.tensor_block", (W, "MXFP4")),
    "iq2_xxs_row_of_128": (one_tensor([128, 2], kind=16), "gguf.tensor_block", (W, "IQ2_XXS")),
    # Tensors: types
    **{
        f"type_{kind}_was_removed": (one_tensor([256], kind=kind), "gguf.tensor_type", (W, f"type {kind} (", "removed", "convert"))
        for kind in (4, 5, 31, 32, 33, 36, 37, 38)
    },
    **{
        f"type_{kind % 2**32}_does_not_exist": (
            one_tensor([256], kind=kind), "gguf.tensor_type",
            (W, f"type {kind % 2**32} ", "not one that GGUF defines", f"(at byte {ARCH_END + 21})"),
        )
        for kind in (-1, 64, 999, 2**31)
    },  # fmt: skip
    # Tensors: places
    "offset_unaligned": (one_tensor([8], offset=16), "gguf.tensor_offset", (W, "16", "32", f"(at byte {ARCH_END + 25})")),
    "offset_odd": (one_tensor([8], offset=1), "gguf.tensor_offset", (W, "multiple of the alignment")),
    "offset_at_the_end": (one_tensor([8], offset=4096), "gguf.truncated", (W, "32 bytes are missing")),
    "offset_past_the_end": (one_tensor([8], offset=2**40), "gguf.truncated", (W,)),
    "offset_max": (one_tensor([8], offset=2**64 - 32), "gguf.tensor_offset", (W, "18446744073709551584")),
    "offset_plus_size_wraps": (one_tensor([2**62 - 64], kind=0, offset=2**63), "gguf.tensor_offset", (W, "2^64")),
    "overlapping": (two_tensors(32), "gguf.tensor_overlap", ("tensor 'b'", "tensor 'a'", "at byte ")),
    "same_place": (two_tensors(0), "gguf.tensor_overlap", ("tensor 'b'", "tensor 'a'")),
    "overlapping_a_type_that_is_not_read": (
        Gguf(tensors=[tensor("a", [256], 16, 0), tensor("b", [8], 0, 64)], data=bytes(4096)), "gguf.tensor_overlap", ("tensor 'b'",),
    ),
    "data_short_by_1": (cut(Gguf(tensors=[tensor("w", [8], 0, 0)], data=bytes(32)), -1), "gguf.truncated", (W, "1 bytes are missing")),
    "data_absent": (cut(Gguf(tensors=[tensor("w", [8], 0, 0)], data=bytes(32)), -32), "gguf.truncated", (W,)),
    "padding_of_the_last_tensor_cut": (
        Gguf(tensors=[tensor("w", [7], 0, 0)], data=bytes(31)), "gguf.truncated", (W, "padding", "append 1 zero bytes"),
    ),
    "1_tib_in_200_bytes": (Gguf(tensors=[tensor("w", [2**38], 0, 0)], data=bytes(96)), "gguf.truncated", (W, "1099511627")),
    "sum_of_sizes_wraps": (
        Gguf(tensors=[tensor("a", [2**60], 0, 0), tensor("b", [2**60], 0, 2**62), tensor("c", [2**61], 0, 2**63)], data=bytes(96)),
        "gguf.truncated", ("tensor 'a'",),
    ),
    # Split files
    "split_count_0": (Gguf([key("split.count", U16, 0)]), "gguf.split_count", ("split.count", "is 0")),
    "split_count_2000": (Gguf([key("split.count", U16, 2000)]), "gguf.split_count", ("1024",)),
    "split_count_string": (Gguf([key("split.count", STR, "2")]), "gguf.key_type", ("split.count", "string", "an integer")),
    "split_count_negative": (Gguf([key("split.count", I32, -2)]), "gguf.key_value", ("split.count", "-2")),
    "split_without_number": (Gguf([key("split.count", U16, 2), key("split.tensors.count", I32, 2)]), "gguf.split_keys", ("split.no",)),
    "split_without_tensor_count": (Gguf([key("split.count", U16, 2), key("split.no", U16, 0)]), "gguf.split_keys", ("tensors.count",)),
    "split_number_past_count": (
        Gguf([key("split.count", U16, 2), key("split.no", U16, 2), key("split.tensors.count", I32, 0)]), "gguf.split_count", ("split.no",),
    ),
    "split_under_another_name": (
        Gguf([key("split.count", U16, 2), key("split.no", U16, 0), key("split.tensors.count", I32, 0)]), "gguf.split_name",
        ("part 1 of 2", "-00001-of-00002.gguf"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_reader_refuses(name: str, tmp_path: Path, good_file: Path) -> None:
    made, code, mentions = BAD[name]
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(made.bytes() if isinstance(made, Gguf) else made)
    check_refusal(path, code, *mentions)
    # the process goes on: a good file reads as before
    good = _core.GGUFFile(str(good_file))
    assert good.get("tokenizer.ggml.tokens") == ["a", "b", "c"]
    assert good.tensor_f32("token_embd.weight").ravel().tolist() == list(range(32))


# ---- not a regular file ---------------------------------------------------------------------------------------------


def make_missing(path: Path) -> None:
    pass


def make_below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_bytes(b"")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_symlink_loop(path: Path) -> None:
    other = path.with_suffix(".other")
    path.symlink_to(other)
    other.symlink_to(path)


def make_dangling(path: Path) -> None:
    path.symlink_to(path.with_suffix(".gone"))


NOT_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (make_missing, "file.not_found"),
    "below_a_file": (make_below_a_file, "file.not_found"),
    "dangling_symlink": (make_dangling, "file.not_found"),
    "empty": (Path.touch, "file.empty"),
    "directory": (Path.mkdir, "file.directory"),
    "fifo": (make_fifo, "file.not_regular"),
    "socket": (make_socket, "file.not_regular"),
    "symlink_loop": (make_symlink_loop, "file.symlink_loop"),
    "symlink_to_dev_zero": (lambda path: path.symlink_to("/dev/zero"), "file.not_regular"),
    "symlink_to_dev_null": (lambda path: path.symlink_to("/dev/null"), "file.not_regular"),
}


@pytest.mark.parametrize("name", NOT_FILES)
def test_reader_refuses_what_is_not_a_file(name: str, tmp_path: Path) -> None:
    make, code = NOT_FILES[name]
    path = tmp_path / "folder" / "model.gguf"
    path.parent.mkdir()
    make(path)
    check_refusal(path, code)


def test_reader_refuses_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(small_model().bytes())
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything: look as somebody else
        for folder in (tmp_path, *tmp_path.parents[:-1]):
            if folder.stat().st_uid == user and folder != Path("/tmp"):
                folder.chmod(folder.stat().st_mode | 0o755)
        os.seteuid(65534)
    try:
        check_refusal(path, "file.not_readable")
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("path", ["", "x" * 300, "a/" * 3000])
def test_reader_refuses_a_path_that_cannot_be(path: str) -> None:
    with pytest.raises(BadModelFile) as caught:
        _core.GGUFFile(path)
    assert caught.value.code in ("file.not_found", "file.name_too_long")


def test_reader_refuses_a_path_with_nul() -> None:
    with pytest.raises(BadRequest) as caught:
        _core.GGUFFile("a\0b.gguf")
    assert caught.value.code == "request.path"


# ---- keys of the wrong type ------------------------------------------------------------------------------------------

WRONG_TYPES: dict[str, tuple[bytes, str, str, str]] = {
    "u8_tokens": (array("tokenizer.ggml.tokens", U8, [1, 2]), "get_bytes_list", "an array of u8", "an array of string"),
    "string_instead_of_tokens": (key("tokenizer.ggml.tokens", STR, "a"), "get_bytes_list", "string", "an array of string"),
    "i8_scores": (array("tokenizer.ggml.scores", I8, [1, 2]), "get_floats", "an array of i8", "an array of f32 or f64"),
    "str_token_type": (array("tokenizer.ggml.token_type", STR, ["1"]), "get_ints", "an array of string", "an array of integers"),
    "f32_token_type": (array("tokenizer.ggml.token_type", F32, [1.0]), "get_ints", "an array of f32", "an array of integers"),
    "scalar_token_type": (key("tokenizer.ggml.token_type", I32, 1), "get_ints", "i32", "an array of integers"),
    "str_block_count": (key("deepseek2.block_count", STR, "27"), "get_int", "string", "an integer"),
    "f32_block_count": (key("deepseek2.block_count", F32, 27.0), "get_int", "f32", "an integer"),
    "bool_block_count": (key("deepseek2.block_count", BOOL, True), "get_int", "bool", "an integer"),
    "array_block_count": (array("deepseek2.block_count", U32, [27]), "get_int", "an array of u32", "an integer"),
    "u32_eps": (key("deepseek2.attention.layer_norm_rms_epsilon", U32, 1), "get_float", "u32", "f32 or f64"),
    "u8_flag": (key("clip.has_vision_encoder", U8, 1), "get_bool", "u8", "bool"),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_typed_access_refuses(name: str, tmp_path: Path) -> None:
    entry, getter, got, expected = WRONG_TYPES[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(Gguf([entry]).bytes())
    file = _core.GGUFFile(str(path))
    with pytest.raises(BadModelFile) as caught:
        getattr(file, getter)(file.keys()[0])
    message = str(caught.value)
    assert caught.value.code == "gguf.key_type"
    for mention in (str(path), repr(file.keys()[0]), f"is {got}, expected {expected}", "at byte ", "convert"):
        assert mention in message


def test_typed_access_refuses_u64_beyond_i64(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(Gguf([key("k", U64, 2**63), array("l", U64, [1, 2**64 - 1])]).bytes())
    file = _core.GGUFFile(str(path))
    for getter, name, value in ((file.get_int, "k", "9223372036854775808"), (file.get_ints, "l", "18446744073709551615 in element 1")):
        with pytest.raises(BadModelFile, match=value) as caught:
            getter(name)
        assert caught.value.code == "gguf.key_value"
    assert file.get("k") == 2**63 and file.get("l") == [1, 2**64 - 1]


def test_absent_names(good_file: Path) -> None:
    file = _core.GGUFFile(str(good_file))
    assert file.get("nothing") is None and file.get_bytes_list("nothing") is None and file.get_int("nothing") is None
    for call, code in ((file.value_type, "request.key"), (file.tensor_f32, "request.tensor"), (file.tensor_raw, "request.tensor")):
        with pytest.raises(BadRequest, match="'nothing'") as caught:
            call("nothing")
        assert caught.value.code == code


# ---- truncation ------------------------------------------------------------------------------------------------------


def tiny_model_of_64_kib() -> Gguf:
    keys = [
        key("general.architecture", STR, "deepseek2"),
        array("tokenizer.ggml.tokens", STR, [f"token{i}" for i in range(64)]),
        array("tokenizer.ggml.scores", F32, [float(i) for i in range(64)]),
        key("general.alignment", U32, 64),
        key("some.f64", F64, 1.0),
    ]
    shapes = [([32, 32], 0, 4096), ([64, 100], 8, 6800), ([256, 50], 12, 7200), ([7], 0, 28), ([256, 164], 10, 164 * 84)]
    tensors, data = [], b""
    while len(data) < 61 * 1024:
        for ne, kind, n_bytes in shapes:
            tensors.append(tensor(f"blk.{len(tensors)}.weight", ne, kind, len(data)))
            data = pad(data + bytes(n_bytes), 64)
    return Gguf(keys, tensors, data, alignment=64)


def test_reader_refuses_a_tiny_model_cut_at_every_byte(tmp_path: Path) -> None:
    raw = tiny_model_of_64_kib().bytes()
    assert 60_000 < len(raw) < 80_000
    path = tmp_path / "tiny.gguf"
    path.write_bytes(raw)
    assert len(_core.GGUFFile(str(path)).tensors) == 10
    name, codes = str(path), set()
    for size in range(len(raw) - 1, -1, -1):
        os.truncate(path, size)
        try:
            _core.GGUFFile(name)
        except BadModelFile as error:
            codes.add(error.code)
            continue
        pytest.fail(f"{size} of {len(raw)} bytes were accepted")
    assert codes == {"gguf.truncated", "file.empty"}


def test_reader_refuses_a_cut_at_every_tensor_boundary(tmp_path: Path) -> None:
    model = tiny_model_of_64_kib()
    raw = model.bytes()
    path = tmp_path / "tiny.gguf"
    path.write_bytes(raw)
    ends = [t.offset + t.n_bytes for t in _core.GGUFFile(str(path)).tensors]
    for end in ends:
        for size in (end - 1, end, min(end + 1, len(raw) - 1)):
            path.write_bytes(raw[:size])
            check_refusal(path, "gguf.truncated", "tensor 'blk.", "at byte ")


def test_reader_refuses_any_changed_byte_of_the_header_or_reads_it(tmp_path: Path) -> None:
    """Every header byte set to 0, 1, 127, 128 and 255: a typed error or a file, never anything else."""
    model = small_model()
    raw = bytearray(model.bytes())
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    refused = 0
    with open(path, "r+b", buffering=0) as out:
        for at in range(len(model.header())):
            for value in (0, 1, 127, 128, 255):
                os.pwrite(out.fileno(), bytes([value]), at)
                try:
                    file = _core.GGUFFile(str(path))
                    for name in file.keys():
                        file.get(name)
                    for t in file.tensors:
                        file.tensor_f32(t.name)
                except (BadModelFile, Unsupported):
                    refused += 1
            os.pwrite(out.fileno(), raw[at : at + 1], at)
    assert refused > 500


# ---- limits that only large files reach ----------------------------------------------------------------------------


def test_reader_refuses_a_header_of_more_than_64_mib(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    head = Gguf([], n_keys=5).header()
    with open(path, "wb") as out:
        out.write(head)
        for i in range(5):
            out.write(string(f"k{i}") + u32(STR) + u64(2**24))
            out.seek(2**24, os.SEEK_CUR)
        out.truncate()
    check_refusal(path, "gguf.header_size", "key 'k3'", "64 MiB", "at byte ")


def test_reader_refuses_a_sparse_terabyte_of_empty_strings_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    with open(path, "wb") as out:
        out.write(Gguf([], n_keys=1).header() + string("k") + u32(ARR) + u32(STR) + u64(2**24))
        try:
            out.truncate(2**40)
        except OSError:
            out.truncate(2**34)
    check_refusal(path, "gguf.header_size", "key 'k'")


def test_reader_refuses_names_of_more_than_8_mib(tmp_path: Path) -> None:
    path = tmp_path / "names.gguf"
    with open(path, "wb") as out:
        out.write(Gguf([], n_keys=200).header())
        for i in range(200):
            out.write(key(f"{i:03d}" + "x" * 65000, U8, 0))
    check_refusal(path, "gguf.header_size", "keys and tensor names", "8 MiB")


def test_opening_does_not_depend_on_the_size_of_the_data(tmp_path: Path) -> None:
    """163,840 tokens and 10 GiB of (sparse) data: under 100 ms, and no page of the data is read."""
    tokens = b"".join(string(f"token {i}") for i in range(163_840))
    vocabulary = string("tokenizer.ggml.tokens") + u32(ARR) + u32(STR) + u64(163_840) + tokens
    model = Gguf([vocabulary], [tensor(f"blk.{i}.weight", [2**20, 256], 1, i << 29) for i in range(20)])
    path = tmp_path / "large.gguf"
    path.write_bytes(pad(model.header()))
    os.truncate(path, model.data_begin() + (20 << 29))
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        file = _core.GGUFFile(str(path))
        best = min(best, time.perf_counter() - start)
    assert best < 0.1 or SANITIZED
    resident = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            resident = max(resident, int(line.split()[1]))
    assert 0 < resident * 1024 < len(model.header()) + (4 << 20)  # the kernel maps up to 64 KiB around a fault, or a huge page
    tokens_read = file.get("tokenizer.ggml.tokens")
    assert len(tokens_read) == 163_840 and tokens_read[-1] == "token 163839"


# ---- odd but legal -----------------------------------------------------------------------------------------------------


def opened(path: Path, made: Gguf | bytes) -> _core.GGUFFile:
    path.write_bytes(made.bytes() if isinstance(made, Gguf) else made)
    return _core.GGUFFile(str(path))


LEGAL: dict[str, Gguf | bytes] = {
    "version_2": Gguf(version=2),
    "no_keys_no_tensors": Gguf([]),
    "empty_string_value": with_value(STR, string("")),
    "empty_array": with_value(ARR, u32(U8) + u64(0)),
    "empty_array_of_strings": with_value(ARR, u32(STR) + u64(0)),
    "array_of_bools": with_value(ARR, u32(BOOL) + u64(2) + b"\0\1"),
    "string_with_nul": with_value(STR, string("a\0b")),
    "key_in_greek": with_key(key("κλειδί", U8, 1)),
    "key_of_65535": with_key(key("k" * 65535, U8, 1)),
    "tensor_name_of_63": one_tensor([1024], name="x" * 63),
    "tensor_of_4_dims": one_tensor([4, 4, 4, 16]),
    "tensor_of_1_element": Gguf(tensors=[tensor("w", [1], 0, 0)], data=bytes(32)),
    "split_of_one": Gguf([key("split.count", U16, 1), key("split.no", U16, 0), key("split.tensors.count", I32, 0)]),
    **{
        f"alignment_{n}": Gguf([key("general.alignment", U32, n)], [tensor("w", [8], 0, n)], bytes(n + max(n, 32)), alignment=n)
        for n in (8, 16, 64, 4096, 2**20)
    },
}


@pytest.mark.parametrize("name", LEGAL)
def test_reader_accepts(name: str, tmp_path: Path) -> None:
    file = opened(tmp_path / "model.gguf", LEGAL[name])
    for k in file.keys():
        file.get(k)
        assert isinstance(file.value_type(k), str)
    for t in file.tensors:
        assert not file.tensor_f32(t.name).any()


# id, elements and bytes of a block
UNREAD_TYPES = {
    "Q8_1": (9, 32, 40), "Q8_K": (15, 256, 292), "IQ2_XXS": (16, 256, 66), "IQ2_XS": (17, 256, 74), "IQ3_XXS": (18, 256, 98),
    "IQ1_S": (19, 256, 50), "IQ3_S": (21, 256, 110), "IQ2_S": (22, 256, 82), "I8": (24, 1, 1), "I16": (25, 1, 2),
    "I32": (26, 1, 4), "I64": (27, 1, 8), "F64": (28, 1, 8), "IQ1_M": (29, 256, 56), "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREAD_TYPES)
def test_reader_lists_a_tensor_that_it_cannot_decode(name: str, tmp_path: Path) -> None:
    kind, elems, n_bytes = UNREAD_TYPES[name]
    data = pad(bytes(3 * n_bytes)) + struct.pack("<8f", *range(8))
    model = Gguf(tensors=[tensor("odd", [elems, 3], kind, 0), tensor("plain", [8], 0, len(data) - 32)], data=data)
    file = opened(tmp_path / "model.gguf", model)
    odd, plain = file.tensors
    assert (odd.type, odd.supported, odd.shape, odd.n_bytes) == (name, False, (3, elems), 3 * n_bytes)
    assert plain.supported and file.tensor_f32("plain").tolist() == list(range(8))
    for call in (file.tensor_f32, file.tensor_raw):
        with pytest.raises(Unsupported, match=f"tensor odd: type {name} ") as caught:
            call("odd")
        assert caught.value.code == "unsupported.tensor_type" and str(tmp_path) in str(caught.value)


def test_reader_warns_of_trailing_bytes(tmp_path: Path) -> None:
    raw = small_model().bytes()
    file = opened(tmp_path / "model.gguf", raw + b"garbage")
    assert len(file.warnings) == 1
    assert "7 bytes after the last tensor" in file.warnings[0] and f"byte {len(raw)}" in file.warnings[0]
    assert file.file_bytes == len(raw) + 7


def test_reader_accepts_holes_with_a_warning(tmp_path: Path) -> None:
    file = opened(tmp_path / "model.gguf", Gguf(tensors=[tensor("a", [8], 0, 64), tensor("b", [8], 0, 128)], data=bytes(160)))
    assert len(file.warnings) == 1 and "96 bytes between tensors" in file.warnings[0]


def test_reader_accepts_tensors_in_any_order(tmp_path: Path) -> None:
    data = struct.pack("<24f", *range(24))
    order = [("c", 64), ("a", 0), ("b", 32)]
    file = opened(tmp_path / "model.gguf", Gguf(tensors=[tensor(n, [8], 0, at) for n, at in order], data=data))
    assert [t.name for t in file.tensors] == ["c", "a", "b"] and file.warnings == []
    assert {n: file.tensor_f32(n)[0] for n in "abc"} == {"a": 0, "b": 8, "c": 16}


def test_values_of_every_type(tmp_path: Path) -> None:
    values = {
        "u8": (0, 255), "i8": (1, -128), "u16": (2, 65535), "i16": (3, -32768), "u32": (4, 2**32 - 1), "i32": (5, -(2**31)),
        "f32": (6, 0.5), "bool": (7, True), "string": (8, "grüße"), "u64": (10, 2**64 - 1), "i64": (11, -(2**63)), "f64": (12, 0.1),
    }  # fmt: skip
    entries = [key(n, kind, v) for n, (kind, v) in values.items()] + [array(f"{n}s", kind, [v, v]) for n, (kind, v) in values.items()]
    file = opened(tmp_path / "model.gguf", Gguf(entries))
    for name, (_, value) in values.items():
        got = file.get(name)
        assert got == value and type(got) is type(value) and file.value_type(name) == name
        assert file.get(f"{name}s") == [value, value] and file.value_type(f"{name}s") == f"array[{name}]"
    assert file.get_int("i64") == -(2**63) and file.get_float("f32") == 0.5 and file.get_bool("bool") is True
    assert file.get_ints("i8s") == [-128, -128] and file.get_floats("f64s") == [0.1, 0.1]
    assert file.get_bytes_list("strings") == ["grüße".encode()] * 2


def test_strings_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    file = opened(tmp_path / "model.gguf", Gguf([key("a", STR, b"\xff\x80"), array("b", STR, [b"\xc3", b"ok", b""])]))
    assert file.get("a").encode("utf-8", "surrogateescape") == b"\xff\x80"
    assert [t.encode("utf-8", "surrogateescape") for t in file.get("b")] == file.get_bytes_list("b") == [b"\xc3", b"ok", b""]


def test_path_may_be_pathlike_bytes_or_not_utf8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/m\xff\n.gguf"
    with open(path, "wb") as out:
        out.write(small_model().bytes())
    for form in (path, os.fsdecode(path), Path(os.fsdecode(path))):
        assert _core.GGUFFile(form).path == os.fsdecode(path)
    with open(path, "wb") as out:
        out.write(b"GG")
    with pytest.raises(BadModelFile) as caught:
        _core.GGUFFile(path)
    str(caught.value).encode()  # a message that can be printed


def test_reader_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_uint32("deepseek2.block_count", 27)
    writer.add_float32("deepseek2.eps", 1e-5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "ü", "\u2581x"])
    writer.add_array("tokenizer.ggml.token_type", [1, 3, 6])
    writer.add_bool("flag", True)
    rng = np.random.default_rng(1)
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q6_K", "MXFP4"):
        kind = gguf.GGMLQuantizationType[name]
        if name == "Q6_K":
            raw = rng.integers(0, 2**16, (3, 2 * 105), dtype=np.uint16).view(np.uint8)
            raw[:, 208::210], raw[:, 209::210] = 0, 0x2C  # a finite scale
        else:
            raw = gguf.quantize(rng.standard_normal((3, 512), dtype=np.float32), kind)
        writer.add_tensor(f"w.{name}", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    ours, theirs = _core.GGUFFile(str(path)), gguf.GGUFReader(path)
    fields = {k: v.contents() for k, v in theirs.fields.items() if not k.startswith("GGUF.")}
    assert {k: ours.get(k) for k in ours.keys()} == fields
    assert ours.warnings == [] and len(ours.tensors) == len(theirs.tensors) == 10
    for a, b in zip(ours.tensors, theirs.tensors, strict=True):
        assert (a.name, a.type, a.ne) == (b.name, b.tensor_type.name, tuple(b.shape.tolist()))
        assert (a.offset, a.n_bytes, a.n_elems) == (b.data_offset, b.n_bytes, b.n_elements)
        assert np.array_equal(ours.tensor_raw(a.name), np.ascontiguousarray(b.data).view(np.uint8).ravel())
        expected = np.asarray(gguf.dequantize(b.data, b.tensor_type), np.float32).reshape(a.shape)
        assert np.array_equal(ours.tensor_f32(a.name).view(np.int32), expected.view(np.int32)), a.name


def test_tensor_arrays_are_copies_that_outlive_the_file(good_file: Path) -> None:
    file = _core.GGUFFile(str(good_file))
    values, raw = file.tensor_f32("token_embd.weight"), file.tensor_raw("output.weight")
    del file
    values += 1
    raw[:] = 0
    again = _core.GGUFFile(str(good_file))
    assert again.tensor_f32("token_embd.weight")[0, 0] == 0 and again.tensor_raw("output.weight").any()


def test_decode_refuses_wrong_arguments() -> None:
    raw = np.zeros(34, np.uint8)
    assert _core.decode("Q8_0", raw, 32).tolist() == [0.0] * 32
    cases = [("Q9_9", 32, "request.type_name"), ("Q8_0", 31, "request.n"), ("Q8_0", -32, "request.n"), ("Q8_0", 64, "request.raw"),
             ("Q8_0", 0, "request.raw"), ("Q4_0", 32, "request.raw"), ("F32", 2**62, "request.raw")]  # fmt: skip
    for name, n, code in cases:
        with pytest.raises(BadRequest) as caught:
            _core.decode(name, raw, n)
        assert caught.value.code == code
