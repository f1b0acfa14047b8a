"""What the GGUF reader refuses, and how it says so.

Every refusal is a BadModelFile with a stable code, whose message names the file, what is wrong, where, and what to do;
it takes less than a second and no memory to speak of, and the process goes on as before.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from gguf_bad import BAD
from gguf_bytes import ARR, F32, F64, STR, U8, U32, Gguf, array, key, pad, small_model, string, tensor, u32, u64
from gguf_check import check_refusal

from kimi_vl_cpp import _core
from kimi_vl_cpp.errors import BadModelFile, Unsupported


@pytest.fixture(scope="module")
def good_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    path.write_bytes(small_model().bytes())
    return path


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


# ---- truncation ------------------------------------------------------------------------------------------------------


def tiny_model_of_64_kib() -> Gguf:
    keys = [
        key("general.architecture", STR, "deepseek2"),
        array("tokenizer.ggml.tokens", STR, [f"token{i}" for i in range(64)]),
        array("tokenizer.ggml.scores", F32, [float(i) for i in range(64)]),
        key("general.alignment", U32, 64),
        key("some.f64", F64, 1.0),
    ]
    shapes = [
        ([32, 32], 0, 4096),
        ([64, 100], 8, 6800),
        ([256, 50], 12, 7200),
        ([7], 0, 28),
        ([256, 164], 10, 164 * 84),
    ]
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
                    for name in list(file.keys()):
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


def large_file(tmp_path: Path) -> tuple[Path, Gguf]:
    """163,840 tokens and 10 GiB of (sparse) data."""
    tokens = b"".join(string(f"token {i}") for i in range(163_840))
    vocabulary = string("tokenizer.ggml.tokens") + u32(ARR) + u32(STR) + u64(163_840) + tokens
    model = Gguf([vocabulary], [tensor(f"blk.{i}.weight", [2**20, 256], 1, i << 29) for i in range(20)])
    path = tmp_path / "large.gguf"
    path.write_bytes(pad(model.header()))
    os.truncate(path, model.data_begin() + (20 << 29))
    return path, model


@pytest.mark.slow
def test_opening_a_large_file_takes_a_moment(tmp_path: Path) -> None:
    path, _ = large_file(tmp_path)
    start = time.perf_counter()
    _core.GGUFFile(str(path))
    assert time.perf_counter() - start < 1  # under 0.1 s


def test_opening_reads_no_page_of_the_data(tmp_path: Path) -> None:
    path, model = large_file(tmp_path)
    file = _core.GGUFFile(str(path))
    resident = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            resident = max(resident, int(line.split()[1]))
    assert (
        0 < resident * 1024 < len(model.header()) + (4 << 20)
    )  # the kernel maps up to 64 KiB around a fault, or a huge page
    tokens_read = file.get("tokenizer.ggml.tokens")
    assert len(tokens_read) == 163_840 and tokens_read[-1] == "token 163839"
