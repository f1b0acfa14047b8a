"""The output file is whole at its path or not there, whatever stops the run, and never the input."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import TinyCheckpoint, change_json, with_header, write_checkpoint

from kimi_vl_cpp.errors import BadRequest, KimiVLError
from kimi_vl_cpp.quantize import quantize

SUFFIX, JOURNAL = ".kimi-vl-partial", ".kimi-vl-partial.journal"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "Kimi-VL-Instruct", n_shards=2)


@pytest.fixture(scope="module")
def whole(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a run without trouble writes."""
    return quantize(tiny.folder, tmp_path_factory.mktemp("whole") / "out.gguf", "Q4_0").path.read_bytes()


class Stop(Exception):
    """Thrown by a progress callback."""


def stop_at(share: float, error: BaseException | None = None) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if done >= share * total:
            raise Stop if error is None else error

    return progress


def inputs_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


# ---- determinism and progress --------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_name", ["Q4_K_M", "Q8_0", "IQ4_XS", "F16"])
def test_the_bytes_do_not_depend_on_threads(tiny: TinyCheckpoint, tmp_path: Path, type_name: str) -> None:
    found = {
        quantize(tiny.folder, tmp_path / f"{n}.gguf", type_name, n_threads=n).path.read_bytes() for n in (0, 1, 2, 3, 8)
    }
    assert len(found) == 1


def test_the_bytes_do_not_depend_on_the_pieces_that_are_in_memory(
    tiny: TinyCheckpoint, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["kimi_vl_cpp.quantize.output.stream"], "PIECE_ELEMS", 500)
    assert quantize(tiny.folder, tmp_path / "out.gguf", "Q4_0").path.read_bytes() == whole


def test_a_second_run_writes_the_same_bytes(tiny: TinyCheckpoint, tmp_path: Path, whole: bytes) -> None:
    out = quantize(tiny.folder, tmp_path / "other name.gguf", "Q4_0").path
    assert out.read_bytes() == whole and list(tmp_path.iterdir()) == [out]


def test_progress_goes_from_nothing_to_all_weights(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    quantize(tiny.folder, tmp_path / "out.gguf", "Q8_0", split=True, progress=lambda *call: told.append(call))
    total = sum(values.size for values in tiny.weights.values())
    assert told[0] == ("quantize", 0, total) and told[-1] == ("quantize", total, total)
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})


def test_the_report_says_what_was_written(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    report = quantize(tiny.folder, tmp_path / "out.gguf", "Q4_0")
    assert report.n_bytes == report.path.stat().st_size == report.files[0].n_bytes
    assert sum(n for n, _ in report.by_type().values()) == len(report.files[0].tensors)
    assert report.n_elems == sum(values.size for values in tiny.weights.values())
    told = json.loads(json.dumps(report.to_dict()))
    assert told["n_bytes"] == report.n_bytes and told["type"] == "Q4_0"
    assert told["files"][0]["path"] == str(report.path)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """400 MB of weights (zeros that take no room on the disk), in a process that has 250 MB at most."""
    made = write_checkpoint(tmp_path / "Kimi-VL-Instruct", hidden_size=512)
    raw = (made.folder / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    change_json(made.folder / "config.json", lambda c: c["text_config"].update(intermediate_size=1 << 17))
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if "layers.0.mlp." in name:
            entry["shape"] = [1 << 17 if side == 64 else side for side in entry["shape"]]
        n_bytes = math.prod(entry["shape"]) * (4 if entry["dtype"] == "F32" else 2)
        entry["data_offsets"] = [end, end + n_bytes]
        end += n_bytes
    with (made.folder / "model.safetensors").open("wb") as file:
        file.truncate(file.write(with_header(header, b"")) + end)
    assert end > 400e6
    # Not getrusage: what it tells of a started program includes the peak of the one that started it.
    code = (
        "import sys\nfrom kimi_vl_cpp.quantize import quantize\n"
        "quantize(sys.argv[1], sys.argv[2], 'Q4_0')\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    command = [sys.executable, "-c", code, str(made.folder), str(tmp_path / "out.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, env=_paths(), check=True)
    assert int(done.stdout) << 10 < 250e6
    (tmp_path / "out.gguf").unlink()


# ---- the output is never the input, and nothing is replaced without being asked ------------------------------------


def aliases(folder: Path, target: Path) -> dict[str, Path]:
    """Paths that all mean `target`."""
    outside = folder.parent / "aliases"
    outside.mkdir()
    hard, soft, chain = outside / "hard", outside / "soft", outside / "chain"
    os.link(target, hard)
    soft.symlink_to(target)
    chain.symlink_to(soft)
    (outside / "linked").symlink_to(folder)
    return {
        "itself": target,
        "hard link": hard,
        "symbolic link": soft,
        "link to a link": chain,
        "through ..": folder / ".." / folder.name / target.name,
        "through a linked folder": outside / "linked" / target.name,
        "relative": Path(os.path.relpath(target)),
    }


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "config.json", "tiktoken.model"])
@pytest.mark.parametrize("split", [False, True])
def test_an_output_that_is_an_input_by_any_name_is_refused(
    tiny: TinyCheckpoint, tmp_path: Path, name: str, split: bool
) -> None:
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "in"))
    found = aliases(folder, folder / name)
    before = inputs_of(folder)
    for what, path in found.items():
        with pytest.raises(BadRequest, match="is the same file as the input") as caught:
            quantize(folder, path, "Q4_0", force=True, resume=True, split=split)
        assert caught.value.code == "quantize.output_is_input", what
    assert inputs_of(folder) == before


def test_a_gguf_is_not_written_over_itself(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    source = quantize(tiny.folder, tmp_path / "f.gguf", "F16", split=True)
    before = inputs_of(tmp_path)
    for out in (source.path, source.files[1].path, tmp_path / ".." / tmp_path.name / "f.gguf"):
        with pytest.raises(BadRequest) as caught:
            quantize(source.path, out, "Q4_0", force=True)
        assert caught.value.code == "quantize.output_is_input"
    # mmproj-x.gguf would be the second file of x.gguf
    os.link(source.files[1].path, tmp_path / "mmproj-x.gguf")
    with pytest.raises(BadRequest) as caught:
        quantize(source.path, tmp_path / "x.gguf", "Q4_0", force=True, split=True)
    assert caught.value.code == "quantize.output_is_input"
    os.unlink(tmp_path / "mmproj-x.gguf")
    assert inputs_of(tmp_path) == before


def test_a_working_file_that_is_an_input_is_refused(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    """The name of the unfinished file, linked to an input, would be emptied."""
    shard = next(tiny.folder.glob("*.safetensors"))
    for suffix in (SUFFIX, JOURNAL):
        planted = tmp_path / f"out.gguf{suffix}"
        planted.symlink_to(shard)
        before = shard.read_bytes()
        with pytest.raises(BadRequest) as caught:
            quantize(tiny.folder, tmp_path / "out.gguf", "Q4_0")
        assert caught.value.code == "quantize.output_is_input" and shard.read_bytes() == before
        planted.unlink()


@pytest.mark.parametrize("suffix", [SUFFIX, JOURNAL])
def test_a_working_file_that_is_a_link_is_not_followed(tiny: TinyCheckpoint, tmp_path: Path, suffix: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    (tmp_path / f"out.gguf{suffix}").symlink_to(precious)
    with pytest.raises(KimiVLError, match=r"out\.gguf"):
        quantize(tiny.folder, tmp_path / "out.gguf", "Q4_0")
    assert precious.read_text() == "keep me" and not (tmp_path / "out.gguf").exists()


def test_an_existing_file_is_kept_without_force(tiny: TinyCheckpoint, tmp_path: Path, whole: bytes) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("precious")
    for options in ({}, {"resume": True}):
        with pytest.raises(BadRequest, match="--force") as caught:
            quantize(tiny.folder, out, "Q4_0", **options)
        assert caught.value.code == "quantize.output_exists" and out.read_text() == "precious"
    quantize(tiny.folder, out, "Q4_0", force=True)
    assert out.read_bytes() == whole


def test_with_force_the_old_file_stays_until_the_new_one_is_whole(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("precious")
    with pytest.raises(Stop):
        quantize(tiny.folder, out, "Q4_0", force=True, progress=stop_at(0.9))
    assert out.read_text() == "precious"


def test_a_file_that_appears_meanwhile_is_kept(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"

    def appear(stage: str, done: int, total: int) -> None:
        out.write_text("somebody else's")

    with pytest.raises(BadRequest) as caught:
        quantize(tiny.folder, out, "Q4_0", progress=appear)
    assert caught.value.code == "quantize.output_exists" and out.read_text() == "somebody else's"
    out.unlink()
    assert quantize(tiny.folder, out, "Q4_0", resume=True).n_resumed > 0


def test_a_link_at_the_output_is_followed(tiny: TinyCheckpoint, tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "big disk").mkdir()
    (tmp_path / "out.gguf").symlink_to(Path("big disk") / "real.gguf")
    report = quantize(tiny.folder, tmp_path / "out.gguf", "Q4_0")
    assert report.path == tmp_path / "big disk" / "real.gguf" and (tmp_path / "out.gguf").is_symlink()
    assert (tmp_path / "out.gguf").read_bytes() == whole


def test_a_link_to_itself_at_the_output_is_refused(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").symlink_to("out.gguf")
    with pytest.raises(KimiVLError, match=r"out\.gguf"):
        quantize(tiny.folder, tmp_path / "out.gguf", "Q4_0")


@pytest.mark.parametrize("what", ["folder", "fifo", "no folder", "file as folder"])
def test_outputs_that_cannot_be_files_are_refused(tiny: TinyCheckpoint, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out.gguf"
    if what == "folder":
        out.mkdir()
    elif what == "fifo":
        os.mkfifo(out)
    elif what == "no folder":
        out = tmp_path / "nowhere" / "out.gguf"
    else:
        (tmp_path / "file").write_text("x")
        out = tmp_path / "file" / "out.gguf"
    with pytest.raises(BadRequest) as caught:
        quantize(tiny.folder, out, "Q4_0", force=True)
    assert caught.value.code == "quantize.output"


def test_a_folder_that_may_not_be_written_to_is_refused(tiny: TinyCheckpoint) -> None:
    """In a process of an ordinary user: root may write everywhere."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(tiny.folder, folder / "in")
        (folder / "locked").mkdir(mode=0o555)
        folder.chmod(0o755)
        code = (
            "import os, sys, contextlib\n"
            "import numpy, PIL.Image, gguf, kimi_vl_cpp.quantize as q, kimi_vl_cpp.errors as e\n"
            "if os.geteuid() == 0: os.setuid(65534)\n"
            "try: q.quantize('in', 'locked/out.gguf', 'Q4_0')\n"
            "except e.BadRequest as error: print(error.code, error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=_paths())
        assert done.stdout.startswith("quantize.output ") and "may not be written to" in done.stdout, done.stderr
        assert not list((folder / "locked").iterdir())


def _paths() -> dict[str, str]:
    """The environment with this process's import path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}


# ---- stopping and going on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.95, 1])
@pytest.mark.parametrize("split", [False, True])
def test_an_exception_of_the_callback_stops_and_the_run_can_go_on(
    tiny: TinyCheckpoint, tmp_path: Path, share: float, split: bool
) -> None:
    before = inputs_of(tiny.folder)
    clean = quantize(tiny.folder, tmp_path / "clean.gguf", "Q4_0", split=split)
    out = tmp_path / "out.gguf"
    with pytest.raises(Stop):
        quantize(tiny.folder, out, "Q4_0", split=split, progress=stop_at(share))
    assert not out.exists() and not (tmp_path / "mmproj-out.gguf").exists()
    report = quantize(tiny.folder, out, "Q4_0", split=split, resume=True)
    for ours, theirs in zip(report.files, clean.files, strict=True):
        assert ours.path.read_bytes() == theirs.path.read_bytes()
    assert (report.n_resumed > 0) == (share >= 0.6) or share == 0.3
    assert not [path for path in tmp_path.iterdir() if SUFFIX in path.name]
    assert inputs_of(tiny.folder) == before


def test_without_resume_a_stopped_run_is_begun_anew(tiny: TinyCheckpoint, tmp_path: Path, whole: bytes) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(Stop):
        quantize(tiny.folder, out, "Q4_0", progress=stop_at(0.7))
    report = quantize(tiny.folder, out, "Q4_0")
    assert report.n_resumed == 0 and out.read_bytes() == whole


def test_resume_without_anything_to_take_up_begins(tiny: TinyCheckpoint, tmp_path: Path, whole: bytes) -> None:
    report = quantize(tiny.folder, tmp_path / "out.gguf", "Q4_0", resume=True)
    assert report.n_resumed == 0 and report.path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["weights", "journal", "torn line", "short", "no weights", "list", "foreign line"])
def test_what_was_left_is_believed_only_as_far_as_it_is_right(
    tiny: TinyCheckpoint, tmp_path: Path, whole: bytes, damage: str
) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(Stop):
        quantize(tiny.folder, out, "Q4_0", progress=stop_at(0.9))
    partial, journal = tmp_path / f"out.gguf{SUFFIX}", tmp_path / f"out.gguf{JOURNAL}"
    lines = journal.read_bytes().splitlines(keepends=True)
    raw = bytearray(partial.read_bytes())
    if damage == "weights":
        raw[len(raw) // 2] ^= 1
        partial.write_bytes(raw)
    elif damage == "journal":
        lines[5] = lines[5].replace(b'"crc32": ', b'"crc32": 1')
    elif damage == "torn line":
        lines[-1] = lines[-1][:-4]
    elif damage == "short":
        partial.write_bytes(raw[: len(raw) // 2])
    elif damage == "no weights":
        partial.unlink()
    elif damage == "list":
        lines[4] = b"[]\n"
    else:
        lines[3], lines[4] = lines[4], lines[3]
    journal.write_bytes(b"".join(lines))
    report = quantize(tiny.folder, out, "Q4_0", resume=True)
    assert out.read_bytes() == whole
    assert report.n_resumed < len(lines) - 1 or damage == "torn line"


@pytest.mark.parametrize(
    "options", [{"type": "Q5_0"}, {"vision": "BF16"}, {"types": {"token_embd": "Q8_0"}}, {"name": "x"}, {"split": True}]
)
def test_other_options_are_not_mixed_with_what_was_left(tiny: TinyCheckpoint, tmp_path: Path, options: Any) -> None:
    with pytest.raises(Stop):
        quantize(tiny.folder, tmp_path / "out.gguf", "Q4_0", progress=stop_at(0.9))
    with pytest.raises(BadRequest) as caught:
        quantize(tiny.folder, tmp_path / "out.gguf", **{"type": "Q4_0", "resume": True, **options})
    assert caught.value.code == "quantize.resume" and not (tmp_path / "out.gguf").exists()


def test_a_changed_input_is_not_mixed_with_what_was_left(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "Kimi-VL-Instruct"))
    with pytest.raises(Stop):
        quantize(folder, tmp_path / "out.gguf", "Q4_0", progress=stop_at(0.9))
    os.utime(next(folder.glob("*.safetensors")), ns=(1, 1))
    with pytest.raises(BadRequest) as caught:
        quantize(folder, tmp_path / "out.gguf", "Q4_0", resume=True)
    assert caught.value.code == "quantize.resume"


def test_a_run_stopped_between_its_two_files_goes_on(
    tiny: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = quantize(tiny.folder, tmp_path / "clean.gguf", "Q4_0", split=True)
    out, real, seen = tmp_path / "out.gguf", os.replace, []

    def replace(source: Any, target: Any) -> None:
        if seen:
            raise Stop
        seen.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Stop):
        quantize(tiny.folder, out, "Q4_0", split=True)
    monkeypatch.undo()
    assert seen == [tmp_path / "mmproj-out.gguf"] and not out.exists()
    with pytest.raises(BadRequest, match="--resume"):
        quantize(tiny.folder, out, "Q4_0", split=True)
    report = quantize(tiny.folder, out, "Q4_0", split=True, resume=True)
    assert [f.path.read_bytes() for f in report.files] == [f.path.read_bytes() for f in clean.files]
    assert not [path for path in tmp_path.iterdir() if SUFFIX in path.name]


def test_a_foreign_file_at_the_second_path_is_not_taken_for_ours(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    out, mmproj = tmp_path / "out.gguf", tmp_path / "mmproj-out.gguf"
    with pytest.raises(Stop):
        quantize(tiny.folder, out, "Q4_0", split=True, progress=stop_at(1))
    (tmp_path / f"mmproj-out.gguf{SUFFIX}").unlink()
    mmproj.write_text("somebody else's")
    with pytest.raises(BadRequest) as caught:
        quantize(tiny.folder, out, "Q4_0", split=True, resume=True)
    assert caught.value.code == "quantize.output_exists" and mmproj.read_text() == "somebody else's"


def test_two_runs_at_the_same_output_do_not_mix(tiny: TinyCheckpoint, tmp_path: Path, whole: bytes) -> None:
    out, codes, began = tmp_path / "out.gguf", [], threading.Event()

    def second(stage: str, done: int, total: int) -> None:
        if began.is_set() or done == 0:
            return
        began.set()
        for resume in (False, True):
            with pytest.raises(BadRequest, match="another process is writing it") as caught:
                quantize(tiny.folder, out, "Q4_0", resume=resume)
            codes.append(caught.value.code)

    quantize(tiny.folder, out, "Q4_0", progress=second)
    assert codes == ["quantize.busy"] * 2 and out.read_bytes() == whole


def test_two_processes_at_the_same_output_leave_one_whole_file(
    tiny: TinyCheckpoint, tmp_path: Path, whole: bytes
) -> None:
    runs = [start(tiny.folder, tmp_path / "out.gguf", "--json") for _ in range(3)]
    codes = sorted(run.wait(60) for run in runs)
    assert codes[0] == 0 and set(codes[1:]) <= {0, 2}, [run.stderr.read() for run in runs if run.stderr]
    assert codes.count(0) == 1 and (tmp_path / "out.gguf").read_bytes() == whole


def test_a_file_system_without_locks_will_do(
    tiny: TinyCheckpoint, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert quantize(tiny.folder, tmp_path / "out.gguf", "Q4_0").path.read_bytes() == whole


# ---- a full disk ---------------------------------------------------------------------------------------------------


def test_too_little_room_is_found_before_anything_is_written(
    tiny: TinyCheckpoint, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    little = os.statvfs_result((*real[:4], (len(whole) - 1) // real.f_frsize, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: little)
    with pytest.raises(KimiVLError, match=f"{len(whole)} bytes are needed") as caught:
        quantize(tiny.folder, tmp_path / "out.gguf", "Q4_0")
    assert caught.value.code == "quantize.disk_space" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.9999])
def test_a_disk_that_becomes_full_leaves_nothing_but_what_can_be_taken_up(
    tiny: TinyCheckpoint, tmp_path: Path, whole: bytes, share: float
) -> None:
    """With a limit on the size of files, in a process of its own: the limit cannot be taken back."""
    out, before = tmp_path / "out.gguf", inputs_of(tiny.folder)
    limit = int(share * len(whole))

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    run = start(tiny.folder, out, preexec_fn=limited)
    _, told = run.communicate(timeout=240)
    assert run.returncode == 1 and "--resume" in told and "[quantize.disk_full]" in told, told
    assert not out.exists() and inputs_of(tiny.folder) == before
    report = quantize(tiny.folder, out, "Q4_0", resume=True)
    assert out.read_bytes() == whole and (share < 0.5 or report.n_resumed > 0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["pwrite", "write", "fsync", "ftruncate", "replace"])
def test_every_call_that_writes_may_fail(
    tiny: TinyCheckpoint, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    out, real, n_calls = tmp_path / "out.gguf", getattr(os, call), 0

    def fail(*arguments: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3 or call in ("fsync", "replace"):
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(KimiVLError, match=os.strerror(number)) as caught:
        quantize(tiny.folder, out, "Q4_0")
    monkeypatch.undo()
    assert caught.value.code == ("quantize.io" if number == errno.EIO else "quantize.disk_full")
    assert not out.exists()
    quantize(tiny.folder, out, "Q4_0", resume=True)
    assert out.read_bytes() == whole


# ---- signals -------------------------------------------------------------------------------------------------------


def start(folder: Path, out: Path, *options: str, **arguments: Any) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "kimi_vl_cpp", "quantize", str(folder), str(out), "-q", "Q4_0", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=_paths(), **pipes, **arguments)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """Half a second of work."""
    return write_checkpoint(
        tmp_path_factory.mktemp("larger") / "Kimi-VL-Instruct",
        n_shards=3,
        hidden_size=256,
        num_hidden_layers=10,
        n_routed_experts=24,
        moe_intermediate_size=128,
        intermediate_size=512,
        kv_lora_rank=64,
    )


@pytest.fixture(scope="module")
def larger_whole(larger: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return quantize(larger.folder, tmp_path_factory.mktemp("whole") / "out.gguf", "Q4_0").path.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGKILL])
def test_a_signal_at_any_moment_leaves_no_file_and_resume_gives_the_same_bytes(
    larger: TinyCheckpoint, larger_whole: bytes, tmp_path: Path, number: int
) -> None:
    out, before, chance = tmp_path / "out.gguf", inputs_of(larger.folder), random.Random()
    run = start(larger.folder, out)
    partial = tmp_path / f"out.gguf{SUFFIX}"
    while not partial.exists() and run.poll() is None:
        time.sleep(0.002)
    want = chance.random() * len(larger_whole)
    while run.poll() is None and partial.exists() and partial.stat().st_size < want:
        time.sleep(0.001)
    run.send_signal(number)
    _, told = run.communicate(timeout=240)
    assert inputs_of(larger.folder) == before
    if run.returncode == 0:  # it was quicker
        assert out.read_bytes() == larger_whole
        return
    if number == signal.SIGKILL:
        assert run.returncode == -signal.SIGKILL
    else:
        assert run.returncode == 130 and "--resume goes on" in told, told
    if out.exists():  # the end was between the rename and the exit
        assert out.read_bytes() == larger_whole
    report = quantize(larger.folder, out, "Q4_0", resume=True, force=out.exists())
    assert report.path.read_bytes() == larger_whole and inputs_of(larger.folder) == before
