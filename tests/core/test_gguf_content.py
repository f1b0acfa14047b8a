"""What the GGUF reader gives: values, tensors, shapes; and what is odd but legal."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_bad import with_key, with_value
from gguf_bytes import (
    ARR,
    BOOL,
    F32,
    I8,
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
    pad,
    small_model,
    string,
    tensor,
    u32,
    u64,
)

from kimi_vl_cpp import _core
from kimi_vl_cpp.errors import BadModelFile, BadRequest, Unsupported


@pytest.fixture(scope="module")
def good_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    path.write_bytes(small_model().bytes())
    return path


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
        f"alignment_{n}": Gguf(
            [key("general.alignment", U32, n)], [tensor("w", [8], 0, n)], bytes(n + max(n, 32)), alignment=n
        )
        for n in (8, 16, 64, 4096, 2**20)
    },
}


@pytest.mark.parametrize("name", LEGAL)
def test_reader_accepts(name: str, tmp_path: Path) -> None:
    file = opened(tmp_path / "model.gguf", LEGAL[name])
    for k in list(file.keys()):
        file.get(k)
        assert isinstance(file.value_type(k), str)
    for t in file.tensors:
        assert not file.tensor_f32(t.name).any()


# id, elements and bytes of a block
UNREAD_TYPES = {
    "Q8_1": (9, 32, 40),
    "Q8_K": (15, 256, 292),
    "I8": (24, 1, 1),
    "I16": (25, 1, 2),
    "I32": (26, 1, 4),
    "I64": (27, 1, 8),
    "F64": (28, 1, 8),
    "NVFP4": (40, 64, 36),
    "Q1_0": (41, 128, 18),
}


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
    file = opened(
        tmp_path / "model.gguf", Gguf(tensors=[tensor("a", [8], 0, 64), tensor("b", [8], 0, 128)], data=bytes(160))
    )
    assert len(file.warnings) == 1 and "96 bytes between tensors" in file.warnings[0]


def test_reader_accepts_tensors_in_any_order(tmp_path: Path) -> None:
    data = struct.pack("<24f", *range(24))
    order = [("c", 64), ("a", 0), ("b", 32)]
    file = opened(tmp_path / "model.gguf", Gguf(tensors=[tensor(n, [8], 0, at) for n, at in order], data=data))
    assert [t.name for t in file.tensors] == ["c", "a", "b"] and file.warnings == []
    assert {n: file.tensor_f32(n)[0] for n in "abc"} == {"a": 0, "b": 8, "c": 16}


def test_values_of_every_type(tmp_path: Path) -> None:
    values = {
        "u8": (0, 255),
        "i8": (1, -128),
        "u16": (2, 65535),
        "i16": (3, -32768),
        "u32": (4, 2**32 - 1),
        "i32": (5, -(2**31)),
        "f32": (6, 0.5),
        "bool": (7, True),
        "string": (8, "grüße"),
        "u64": (10, 2**64 - 1),
        "i64": (11, -(2**63)),
        "f64": (12, 0.1),
    }
    entries = [key(n, kind, v) for n, (kind, v) in values.items()] + [
        array(f"{n}s", kind, [v, v]) for n, (kind, v) in values.items()
    ]
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
    assert (
        [t.encode("utf-8", "surrogateescape") for t in file.get("b")]
        == file.get_bytes_list("b")
        == [b"\xc3", b"ok", b""]
    )


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
    assert {k: ours.get(k) for k in list(ours.keys())} == fields
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
    cases = [
        ("Q9_9", 32, "request.type_name"),
        ("Q8_0", 31, "request.n"),
        ("Q8_0", -32, "request.n"),
        ("Q8_0", 64, "request.raw"),
        ("Q8_0", 0, "request.raw"),
        ("Q4_0", 32, "request.raw"),
        ("F32", 2**62, "request.raw"),
    ]
    for name, n, code in cases:
        with pytest.raises(BadRequest) as caught:
            _core.decode(name, raw, n)
        assert caught.value.code == code


# ---- keys of the wrong type ------------------------------------------------------------------------------------------

WRONG_TYPES: dict[str, tuple[bytes, str, str, str]] = {
    "u8_tokens": (array("tokenizer.ggml.tokens", U8, [1, 2]), "get_bytes_list", "an array of u8", "an array of string"),
    "string_instead_of_tokens": (
        key("tokenizer.ggml.tokens", STR, "a"),
        "get_bytes_list",
        "string",
        "an array of string",
    ),
    "i8_scores": (array("tokenizer.ggml.scores", I8, [1, 2]), "get_floats", "an array of i8", "an array of f32 or f64"),
    "str_token_type": (
        array("tokenizer.ggml.token_type", STR, ["1"]),
        "get_ints",
        "an array of string",
        "an array of integers",
    ),
    "f32_token_type": (
        array("tokenizer.ggml.token_type", F32, [1.0]),
        "get_ints",
        "an array of f32",
        "an array of integers",
    ),
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
    for getter, name, value in (
        (file.get_int, "k", "9223372036854775808"),
        (file.get_ints, "l", "18446744073709551615 in element 1"),
    ):
        with pytest.raises(BadModelFile, match=value) as caught:
            getter(name)
        assert caught.value.code == "gguf.key_value"
    assert file.get("k") == 2**63 and file.get("l") == [1, 2**64 - 1]


def test_absent_names(good_file: Path) -> None:
    file = _core.GGUFFile(str(good_file))
    assert file.get("nothing") is None and file.get_bytes_list("nothing") is None and file.get_int("nothing") is None
    for call, code in (
        (file.value_type, "request.key"),
        (file.tensor_f32, "request.tensor"),
        (file.tensor_raw, "request.tensor"),
    ):
        with pytest.raises(BadRequest, match="'nothing'") as caught:
            call("nothing")
        assert caught.value.code == code
