"""Files as the system sees them: what is not a file, split files, files that change while they are mapped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_bytes import I32, STR, U16, U32, Gguf, array, key, small_model, tensor
from gguf_check import SANITIZED, check_refusal

from kimi_vl_cpp import _core
from kimi_vl_cpp.errors import BadModelFile, BadRequest

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


# ---- split files -----------------------------------------------------------------------------------------------------


def part(number: int, count: int, total: int, names: list[str], first: float, extra: list[bytes] | None = None) -> Gguf:
    """One part with tensors of 8 F32, the i-th of which holds first + i."""
    keys = [key("split.no", U16, number), key("split.count", U16, count), key("split.tensors.count", I32, total)]
    tensors = [tensor(name, [8], 0, 32 * i) for i, name in enumerate(names)]
    data = b"".join(struct.pack("<8f", *[first + i] * 8) for i in range(len(names)))
    return Gguf(keys + (extra or []), tensors, data)


def write_parts(folder: Path, parts: list[Gguf], prefix: str = "model") -> list[Path]:
    paths = [folder / f"{prefix}-{i + 1:05d}-of-{len(parts):05d}.gguf" for i in range(len(parts))]
    for path, made in zip(paths, parts, strict=True):
        path.write_bytes(made.bytes())
    return paths


ARCH = [key("general.architecture", STR, "deepseek2"), key("deepseek2.block_count", U32, 2)]


def three_parts() -> list[Gguf]:
    return [part(0, 3, 4, ["a", "b"], 0, ARCH), part(1, 3, 4, ["c"], 2), part(2, 3, 4, ["d"], 3)]


@pytest.mark.parametrize("named", [0, 1, 2])
def test_any_part_may_be_named(named: int, tmp_path: Path) -> None:
    path = write_parts(tmp_path, three_parts())[named]
    file = _core.GGUFFile(str(path))
    assert (file.n_shards, file.path, file.warnings) == (3, str(path), [])
    assert file.get("deepseek2.block_count") == 2  # of part 1, whichever was named
    assert [(t.name, t.shard) for t in file.tensors] == [("a", 0), ("b", 0), ("c", 1), ("d", 2)]
    assert [file.tensor_f32(t)[0] for t in "abcd"] == [0, 1, 2, 3]
    assert file.file_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_first_part_may_hold_no_tensors(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, [part(0, 2, 1, [], 0, ARCH), part(1, 2, 1, ["a"], 7)])
    file = _core.GGUFFile(str(paths[0]))
    assert file.tensor_f32("a")[0] == 7 and file.tensors[0].shard == 1


def test_parts_may_be_symlinks_to_other_names(tmp_path: Path) -> None:
    """As in a download cache: the names count, not what they point to."""
    for i, path in enumerate(write_parts(tmp_path, three_parts())):
        shutil.move(path, tmp_path / f"blob{i}")
        path.symlink_to(f"blob{i}")
    assert len(_core.GGUFFile(str(tmp_path / "model-00002-of-00003.gguf")).tensors) == 4


def spoil(index: int, made: Gguf) -> Callable[[list[Gguf]], None]:
    def change(parts: list[Gguf]) -> None:
        parts[index] = made

    return change


# name -> (change to three_parts(), code, the part that the message names, what else it names)
BAD_SPLITS: dict[str, tuple[Callable[[list[Gguf]], None], str, int, str]] = {
    "other_count": (spoil(1, part(1, 4, 4, ["c"], 2)), "gguf.split_mismatch", 1, "'split.count': is 4, but 3"),
    "other_total": (spoil(1, part(1, 3, 5, ["c"], 2)), "gguf.split_mismatch", 1, "'split.tensors.count': is 5, but 4"),
    "other_number": (spoil(1, part(2, 3, 4, ["c"], 2)), "gguf.split_mismatch", 1, "'split.no': is 2, expected 1"),
    "not_split": (
        spoil(1, Gguf(tensors=[tensor("c", [8], 0, 0)], data=bytes(32))),
        "gguf.split_mismatch",
        1,
        "split.no",
    ),
    "tensor_missing": (spoil(1, part(1, 3, 4, [], 2)), "gguf.split_mismatch", 0, "hold 3 tensors"),
    "tensor_in_two_parts": (spoil(1, part(1, 3, 4, ["a"], 2)), "gguf.duplicate_tensor", 1, "tensor 'a'"),
    "other_model": (
        spoil(1, part(1, 3, 4, ["c"], 2, [key("general.architecture", STR, "llama")])),
        "gguf.split_mismatch",
        1,
        "key 'general.architecture'",
    ),
    "part_is_damaged": (spoil(2, Gguf(magic=b"XXXX")), "gguf.magic", 2, "'XXXX'"),
}


@pytest.mark.parametrize("name", BAD_SPLITS)
def test_reader_refuses_parts_that_do_not_belong_together(name: str, tmp_path: Path) -> None:
    change, code, blamed, mention = BAD_SPLITS[name]
    parts = three_parts()
    change(parts)
    paths = write_parts(tmp_path, parts)
    with pytest.raises(BadModelFile) as caught:
        _core.GGUFFile(str(paths[0]))
    message = str(caught.value)
    assert caught.value.code == code
    assert message.startswith(str(paths[blamed])) and mention in message


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_reader_names_the_missing_part(missing: int, tmp_path: Path) -> None:
    paths = write_parts(tmp_path, three_parts())
    paths[missing].unlink()
    with pytest.raises(BadModelFile, match=f"download part {missing + 1} too") as caught:
        _core.GGUFFile(str(paths[(missing + 1) % 3]))
    assert caught.value.code == "gguf.split_missing" and str(caught.value).startswith(str(paths[missing]))


def test_reader_refuses_a_renamed_part(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, three_parts())
    for name in ("model.gguf", "model-1-of-3.gguf", "model-00002-of-00003.gguf", "-00001-of-00003.gguf"):
        renamed = tmp_path / "renamed" / name
        renamed.parent.mkdir(exist_ok=True)
        shutil.copy(paths[0], renamed)
        check_refusal(renamed, "gguf.split_name" if name != "-00001-of-00003.gguf" else "gguf.split_missing")


def test_limit_of_tensors_counts_all_parts(tmp_path: Path) -> None:
    half = [f"t{i:05d}" for i in range(32769)]
    first = Gguf([key("split.no", U16, 0), key("split.count", U16, 2), key("split.tensors.count", I32, 65538)])
    first.tensors = [tensor(name, [1], 0, 32 * i) for i, name in enumerate(half)]
    first.data = bytes(32 * len(half))
    second = Gguf(
        [key("split.no", U16, 1), *first.keys[1:]], [t.replace(b"\0t", b"\0u") for t in first.tensors], first.data
    )
    paths = write_parts(tmp_path, [first, second])
    with pytest.raises(BadModelFile, match="number of tensors is 32769, allowed are 32767") as caught:
        _core.GGUFFile(str(paths[0]))
    assert caught.value.code == "gguf.count"


# ---- files that change ---------------------------------------------------------------------------------------------


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    """1 MiB of data: pages that nothing has touched after opening."""
    path = tmp_path / "large.gguf"
    path.write_bytes(Gguf(tensors=[tensor("w", [2**18], 0, 0)], data=bytes(2**20)).bytes())
    return path


READ_AFTER_CUT = """
import os, sys
{before}
from kimi_vl_cpp import _core
file = _core.GGUFFile(sys.argv[1])
{between}
os.truncate(sys.argv[1], 4096)
file.tensor_f32("w")
print("survived")
"""


@pytest.mark.parametrize("before", ["", "import faulthandler; faulthandler.enable()"])
def test_a_file_cut_while_mapped_ends_the_process_with_a_message(before: str, large_file: Path) -> None:
    done = run(READ_AFTER_CUT.format(before=before, between=""), large_file)
    assert done.returncode == 70 and done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"kimi_vl_cpp: {large_file}: the file became shorter while it was in use" in done.stderr
    at = re.search(r"no data at byte (\d+)", done.stderr)
    assert at and 4096 <= int(at[1]) < 2**20 + 4096


def test_the_message_names_the_file_that_was_cut(large_file: Path, tmp_path: Path) -> None:
    """Of several mapped files, some closed again, and with a path that is longer than the message holds."""
    folder = tmp_path / ("x" * 200) / ("y" * 200)
    folder.mkdir(parents=True)
    moved = folder / "cut.gguf"
    other = tmp_path / "other.gguf"
    shutil.copy(large_file, other)
    shutil.move(large_file, moved)
    between = "o = [_core.GGUFFile(sys.argv[2]) for _ in range(5)]; del o[1:3]; o.append(_core.GGUFFile(sys.argv[2]))"
    done = run(READ_AFTER_CUT.format(before="", between=between), moved, other)
    assert done.returncode == 70
    assert "y" * 200 + "/cut.gguf: the file became shorter" in done.stderr and "other.gguf" not in done.stderr


OTHER_SIGBUS = """
import faulthandler, mmap, os, sys
if sys.argv[3] == "faulthandler":
    faulthandler.enable()
from kimi_vl_cpp import _core
file = _core.GGUFFile(sys.argv[1])
if sys.argv[4] == "sent":
    os.kill(os.getpid(), 7)
with open(sys.argv[2], "r+b") as out:
    mapping = mmap.mmap(out.fileno(), 0)
    os.truncate(sys.argv[2], 0)
    mapping[5000]
print("survived")
"""


@pytest.mark.skipif(SANITIZED, reason="the sanitizer handles SIGBUS itself")
@pytest.mark.parametrize("how", ["sent", "fault"])
@pytest.mark.parametrize("previous", ["none", "faulthandler"])
def test_a_sigbus_elsewhere_goes_to_the_previous_handler(
    previous: str, how: str, large_file: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_bytes(bytes(10000))
    done = run(OTHER_SIGBUS, large_file, foreign, previous, how)
    assert done.returncode == -signal.SIGBUS and done.stdout == ""
    assert "kimi_vl_cpp:" not in done.stderr
    assert ("Fatal Python error: Bus error" in done.stderr) == (previous == "faulthandler")


def test_a_file_replaced_by_rename_stays_as_it_was(tmp_path: Path) -> None:
    path, new = tmp_path / "model.gguf", tmp_path / "new.gguf"
    path.write_bytes(small_model().bytes())
    file = _core.GGUFFile(str(path))
    before = file.tensor_f32("token_embd.weight")
    new.write_bytes(b"something else")
    os.replace(new, path)
    assert (file.tensor_f32("token_embd.weight") == before).all()
    check_refusal(path, "gguf.magic")


def test_lengths_that_change_after_opening_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    raw = Gguf([array("tokenizer.ggml.tokens", STR, ["a", "b", "c"])]).bytes()
    path.write_bytes(raw)
    file = _core.GGUFFile(str(path))
    for at, length in ((27, 2**40), (27, 2**64 - 8), (18, 19), (9, 2), (27, 11)):
        with open(path, "r+b") as out:
            out.seek(len(raw) - at)
            out.write(struct.pack("<Q", length))
        with pytest.raises(BadModelFile, match="changed in place") as caught:
            file.get_bytes_list("tokenizer.ggml.tokens")
        assert caught.value.code == "gguf.changed" and str(path) in str(caught.value)
        path.write_bytes(raw)  # in place, too
    assert file.get("tokenizer.ggml.tokens") == ["a", "b", "c"]


@pytest.mark.skipif(SANITIZED, reason="shadow memory does not fit the limit")
def test_a_file_larger_than_the_address_space_allowed_is_out_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(small_model().bytes())
    os.truncate(path, 2**33)
    done = run(LITTLE_ADDRESS_SPACE, path)
    assert done.stdout.split(":")[0] == "OutOfMemory memory.address_space", done.stderr


def test_a_deleted_file_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(small_model().bytes())
    file = _core.GGUFFile(str(path))
    path.unlink()
    assert file.tensor_f32("token_embd.weight")[3, 7] == 31


LITTLE_ADDRESS_SPACE = """
import resource, sys
from kimi_vl_cpp import _core
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
try:
    _core.GGUFFile(sys.argv[1])
except MemoryError as error:
    print(f"{type(error).__name__} {error.code}: {error}")
"""


SHARED_MEMORY = r"""
import re, sys
from kimi_vl_cpp import _core
file = _core.GGUFFile(sys.argv[1])
values = file.tensor_f32("w")
print(values.sum(), flush=True)
sys.stdin.readline()
text = open("/proc/self/smaps").read()
block = text[text.index(sys.argv[1]):]
print(*[re.search(name + r": +(\d+)", block)[1] for name in ("Rss", "Private_Clean", "Private_Dirty")])
"""


def test_two_processes_share_the_memory_of_one_file(large_file: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", SHARED_MEMORY, str(large_file)]
    with (
        subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as one,
        subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as two,
    ):
        assert one.stdout and two.stdout
        assert one.stdout.readline() == two.stdout.readline() == "0.0\n"  # both have every page now
        resident, private_clean, private_dirty = map(int, one.communicate("\n")[0].split())
        two.communicate("\n")
    assert resident >= 1024 and private_clean + private_dirty <= 64  # KiB; but for the last page or so


def test_a_file_is_unmapped_when_it_is_no_longer_used(large_file: Path) -> None:
    files = [_core.GGUFFile(str(large_file)) for _ in range(20)]
    assert Path("/proc/self/maps").read_text().count(str(large_file)) == 20
    del files
    assert str(large_file) not in Path("/proc/self/maps").read_text()


def test_a_refused_file_is_unmapped(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUX" + bytes(10000))
    n_open = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        check_refusal(path, "gguf.magic")
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert len(os.listdir("/proc/self/fd")) == n_open
