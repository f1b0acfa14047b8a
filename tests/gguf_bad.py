"""GGUF files that must be refused: name -> (the file, the error's code, what its message must name)."""

from __future__ import annotations

from gguf_bytes import (
    ARR,
    BOOL,
    F32,
    HEADER_BYTES,
    I32,
    STR,
    U8,
    U16,
    U32,
    U64,
    Gguf,
    array,
    key,
    one_tensor,
    small_model,
    string,
    tensor,
    u32,
    u64,
)


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
    "git_lfs_pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "gguf.magic",
        ("git lfs pull",),
    ),
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
            ("minus_1", -1),
            ("2_31", 2**31),
            ("2_55", 2**55),
            ("max", 2**63 - 1),
            ("100_million", 10**8),
            ("65537", 65537),
        )
    },
    "n_keys_65536_in_a_short_file": (Gguf(n_keys=65536), "gguf.truncated", ("list of keys and tensors",)),
    "n_tensors_65536_in_a_short_file": (Gguf(n_tensors=65536), "gguf.truncated", ("list of keys and tensors",)),
    "one_key_more_than_there_is": (Gguf(n_keys=2), "gguf.truncated", ()),
    # Keys
    **{
        f"key_length_{name}": (
            with_key(string(b"k", length) + u32(U8) + b"\0"),
            "gguf.key_length",
            ("key 2 of 2", f"{length} bytes", "65535", f"(at byte {ARCH_END})"),
        )
        for name, length in (("0", 0), ("2_16", 2**16), ("2_30", 2**30 - 1), ("2_62", 2**62), ("max", 2**64 - 1))
    },
    "key_length_beyond_the_file": (with_key(string(b"k", 60000) + bytes(6)), "gguf.truncated", ("key 2 of 2", "60000")),
    "key_with_nul": (with_key(key(b"a\0b", U8, 1)), "gguf.key_text", (r"'a\x00b'", f"(at byte {ARCH_END + 8})")),
    "key_not_utf8": (with_key(key(b"a\xff", U8, 1)), "gguf.key_text", (r"'a\xff'", "UTF-8")),
    "key_overlong_utf8": (with_key(key(b"\xc0\x80", U8, 1)), "gguf.key_text", (r"'\xc0\x80'",)),
    "key_surrogate": (with_key(key(b"\xed\xa0\x80", U8, 1)), "gguf.key_text", ("UTF-8",)),
    "key_cut_character": (with_key(key(b"a\xe2\x82", U8, 1)), "gguf.key_text", ("UTF-8",)),
    "key_twice": (
        Gguf([key("k", U8, 1), key("l", U8, 1), key("k", U8, 1)]),
        "gguf.duplicate_key",
        (K, f"byte {HEADER_BYTES + 13}", f"(at byte {HEADER_BYTES + 2 * 14 + 13})"),
    ),
    "key_twice_with_other_types": (Gguf([key("k", U8, 1), key("k", STR, "x")]), "gguf.duplicate_key", (K,)),
    # Values
    **{
        f"value_type_{kind}": (
            with_value(kind, bytes(64)),
            "gguf.value_type",
            (K, f"is {kind}", "0 to 12", f"(at byte {ARCH_END + 9})"),
        )
        for kind in (13, 77, 2**32 - 1)
    },
    "bool_2": (with_value(BOOL, b"\2"), "gguf.bool", (K, "is 2", AT_K)),
    "bool_255_in_array": (with_value(ARR, u32(BOOL) + u64(3) + b"\0\1\xff"), "gguf.bool", (K, "is 255")),
    "u64_cut": (cut(with_value(U64, u64(1)), -1), "gguf.truncated", (K, "8 bytes", AT_K)),
    "string_1_longer_than_the_file": (
        with_value(STR, string("abc", 4)),
        "gguf.truncated",
        (K, "needs 4 bytes", "only 3"),
    ),
    "string_length_2_24_plus_1": (
        with_value(STR, string("abc", 2**24 + 1)),
        "gguf.string_length",
        (K, "16777217", AT_K),
    ),
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
        f"alignment_{value}": (
            with_alignment(U32, value),
            "gguf.alignment",
            ("key 'general.alignment'", f"is {value}", "8 to 1048576"),
        )
        for value in (0, 1, 3, 4, 24, 33, 2**21, 2**31, 2**32 - 1)
    },
    "alignment_u64": (with_alignment(U64, 32), "gguf.alignment", ("is of type u64", "u32", "(at byte 53)")),
    "alignment_string": (with_alignment(STR, "32"), "gguf.alignment", ("is of type string",)),
    "alignment_f32": (with_alignment(F32, 32.0), "gguf.alignment", ("is of type f32",)),
    # Tensors: names
    "tensor_name_empty": (
        one_tensor([8], name=""),
        "gguf.tensor_name",
        ("tensor 1 of 1", "0 bytes", f"(at byte {ARCH_END})"),
    ),
    "tensor_name_of_64": (one_tensor([8], name="x" * 64), "gguf.tensor_name", ("64 bytes", "1 to 63")),
    "tensor_name_of_2_62": (Gguf(tensors=[u64(2**62) + bytes(64)]), "gguf.tensor_name", ("tensor 1 of 1",)),
    "tensor_name_with_nul": (
        one_tensor([8], name="a\0b"),
        "gguf.tensor_name",
        (r"'a\x00b'", f"(at byte {ARCH_END + 8})"),
    ),
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
        f"type_{kind}_was_removed": (
            one_tensor([256], kind=kind),
            "gguf.tensor_type",
            (W, f"type {kind} (", "removed", "convert"),
        )
        for kind in (4, 5, 31, 32, 33, 36, 37, 38)
    },
    **{
        f"type_{kind % 2**32}_does_not_exist": (
            one_tensor([256], kind=kind),
            "gguf.tensor_type",
            (W, f"type {kind % 2**32} ", "not known", f"(at byte {ARCH_END + 21})"),
        )
        for kind in (-1, 64, 999, 2**31)
    },
    **{
        f"type_{name}_of_ik_llama": (
            one_tensor([256], kind=kind),
            "gguf.tensor_type",
            (W, f"type {kind} ({name})", "ik_llama.cpp", "llama.cpp has too"),
        )
        for kind, name in (
            (97, "Q8_0_X4"),
            (137, "IQ2_K"),
            (144, "IQ4_KS"),
            (151, "Q8_KV"),
            (223, "IQ4_XS_R8"),
            (399, "Q8_K_R8"),
        )
    },
    # Tensors: places
    "offset_unaligned": (
        one_tensor([8], offset=16),
        "gguf.tensor_offset",
        (W, "16", "32", f"(at byte {ARCH_END + 25})"),
    ),
    "offset_odd": (one_tensor([8], offset=1), "gguf.tensor_offset", (W, "multiple of the alignment")),
    "offset_at_the_end": (one_tensor([8], offset=4096), "gguf.truncated", (W, "32 bytes are missing")),
    "offset_past_the_end": (one_tensor([8], offset=2**40), "gguf.truncated", (W,)),
    "offset_max": (one_tensor([8], offset=2**64 - 32), "gguf.tensor_offset", (W, "18446744073709551584")),
    "offset_plus_size_wraps": (one_tensor([2**62 - 64], kind=0, offset=2**63), "gguf.tensor_offset", (W, "2^64")),
    "overlapping": (two_tensors(32), "gguf.tensor_overlap", ("tensor 'b'", "tensor 'a'", "at byte ")),
    "same_place": (two_tensors(0), "gguf.tensor_overlap", ("tensor 'b'", "tensor 'a'")),
    "overlapping_a_type_that_is_not_read": (
        Gguf(tensors=[tensor("a", [256], 16, 0), tensor("b", [8], 0, 64)], data=bytes(4096)),
        "gguf.tensor_overlap",
        ("tensor 'b'",),
    ),
    "data_short_by_1": (
        cut(Gguf(tensors=[tensor("w", [8], 0, 0)], data=bytes(32)), -1),
        "gguf.truncated",
        (W, "1 bytes are missing"),
    ),
    "data_absent": (cut(Gguf(tensors=[tensor("w", [8], 0, 0)], data=bytes(32)), -32), "gguf.truncated", (W,)),
    "padding_of_the_last_tensor_cut": (
        Gguf(tensors=[tensor("w", [7], 0, 0)], data=bytes(31)),
        "gguf.truncated",
        (W, "padding", "append 1 zero bytes"),
    ),
    "1_tib_in_200_bytes": (
        Gguf(tensors=[tensor("w", [2**38], 0, 0)], data=bytes(96)),
        "gguf.truncated",
        (W, "1099511627"),
    ),
    "sum_of_sizes_wraps": (
        Gguf(
            tensors=[tensor("a", [2**60], 0, 0), tensor("b", [2**60], 0, 2**62), tensor("c", [2**61], 0, 2**63)],
            data=bytes(96),
        ),
        "gguf.truncated",
        ("tensor 'a'",),
    ),
    # Split files
    "split_count_0": (Gguf([key("split.count", U16, 0)]), "gguf.split_count", ("split.count", "is 0")),
    "split_count_2000": (Gguf([key("split.count", U16, 2000)]), "gguf.split_count", ("1024",)),
    "split_count_string": (
        Gguf([key("split.count", STR, "2")]),
        "gguf.key_type",
        ("split.count", "string", "an integer"),
    ),
    "split_count_negative": (Gguf([key("split.count", I32, -2)]), "gguf.key_value", ("split.count", "-2")),
    "split_without_number": (
        Gguf([key("split.count", U16, 2), key("split.tensors.count", I32, 2)]),
        "gguf.split_keys",
        ("split.no",),
    ),
    "split_without_tensor_count": (
        Gguf([key("split.count", U16, 2), key("split.no", U16, 0)]),
        "gguf.split_keys",
        ("tensors.count",),
    ),
    "split_number_past_count": (
        Gguf([key("split.count", U16, 2), key("split.no", U16, 2), key("split.tensors.count", I32, 0)]),
        "gguf.split_count",
        ("split.no",),
    ),
    "split_under_another_name": (
        Gguf([key("split.count", U16, 2), key("split.no", U16, 0), key("split.tensors.count", I32, 0)]),
        "gguf.split_name",
        ("part 1 of 2", "-00001-of-00002.gguf"),
    ),
}
