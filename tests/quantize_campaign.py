"""Kills `kimi-vl quantize` at random moments and fills its disk, and counts what is damaged afterwards.

    python tests/quantize_campaign.py --n 200 --full 40 [--seed 1]

Every case: a random type and layout, one or two files, a run that is stopped (kill -9 at a random moment of its life,
a limit on file sizes, or a small tmpfs that somebody else fills, where one may be mounted), a look at what is there,
then reruns with --resume, some of them killed again, until one ends. Damage is a file at the final path that is not
the whole output, an input that is not as it was, a rerun that does not end well, or bytes that differ from those of an
undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from checkpoint_files import write_checkpoint

SUFFIX = ".kimi-vl-partial"
TYPES = ("Q4_0", "Q8_0", "Q4_K_M", "F16", "Q2_K")
SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "n_routed_experts": 32,
    "moe_intermediate_size": 256,
    "intermediate_size": 512,
    "kv_lora_rank": 256,
    "vision_hidden_size": 64,
    "vision_intermediate_size": 144,
}


class Case:
    """One output: its options, where it goes, and what it must be."""

    def __init__(self, source: Path, out: Path, type_name: str, split: bool) -> None:
        self.source, self.out = source, out
        self.options = ["-q", type_name, *(["--split"] if split else [])]
        self.names = [out.name, f"mmproj-{out.name}"] if split else [out.name]

    def start(self, *options: str, limit: int | None = None) -> subprocess.Popen[str]:
        def limited() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        command = [sys.executable, "-P", "-m", "kimi_vl_cpp", "quantize", str(self.source), str(self.out)]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, *self.options, *options], preexec_fn=limited, **pipes)

    def digests(self, folder: Path) -> dict[str, str]:
        found = {name: folder / name for name in self.names}
        return {name: digest(path) for name, path in found.items() if path.exists()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state(folder: Path) -> dict[str, tuple[str, int]]:
    return {path.name: (digest(path), path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}


def wait_for_work(run: subprocess.Popen[str], case: Case) -> None:
    partial = case.out.with_name(case.out.name + SUFFIX)
    while run.poll() is None and not partial.exists():
        time.sleep(0.001)


@contextlib.contextmanager
def tmpfs(folder: Path, n_bytes: int) -> Iterator[Path | None]:
    """A file system of that size, or None where none may be mounted."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Campaign:
    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.chance = work, random.Random(seed)
        self.source = write_checkpoint(work / "Kimi-VL-Instruct", seed, n_shards=3, **SIZES).folder
        self.inputs = state(self.source)
        self.counts: Counter[str] = Counter()
        self.damage: list[str] = []
        self.clean: dict[tuple[str, bool], dict[str, str]] = {}
        self.sizes: dict[tuple[str, bool], int] = {}
        self.seconds: dict[tuple[str, bool], float] = {}  # of writing

    def key(self) -> tuple[str, bool]:
        key = self.chance.choice(TYPES), self.chance.random() < 0.5
        if key not in self.clean:
            folder = self.work / "clean"
            folder.mkdir(exist_ok=True)
            case = Case(self.source, folder / "out.gguf", *key)
            run = case.start("--force")
            wait_for_work(run, case)
            began = time.monotonic()
            assert run.wait() == 0, run.stderr and run.stderr.read()
            self.seconds[key] = time.monotonic() - began
            self.clean[key] = case.digests(folder)
            self.sizes[key] = sum((folder / name).stat().st_size for name in case.names)
        return key

    def wrong(self, what: str) -> None:
        self.damage.append(what)
        print(f"DAMAGE: {what}", flush=True)

    def look(self, case: Case, key: tuple[str, bool], folder: Path, what: str) -> None:
        """What is at the final paths is whole, and the input is as it was."""
        for name, found in case.digests(folder).items():
            if found != self.clean[key][name]:
                self.wrong(f"{what}: {name} is there and not whole")
        if state(self.source) != self.inputs:
            self.wrong(f"{what}: the input was changed")

    def finish(self, case: Case, key: tuple[str, bool], folder: Path, what: str, kills: int) -> None:
        """Reruns until the end, killed `kills` times on the way."""
        while True:
            if len(case.digests(folder)) == len(case.names) and not list(folder.glob(f"*{SUFFIX}")):
                for journal in folder.glob(f"*{SUFFIX}.journal"):  # killed after the renames
                    journal.unlink()
                break
            run = case.start("--resume")
            if kills:
                kills -= 1
                self.kill(run, case, key)
                self.look(case, key, folder, f"{what}, again")
                continue
            _, told = run.communicate()
            if run.returncode:
                self.wrong(f"{what}: the rerun ended with {run.returncode}: {told}")
            break
        if case.digests(folder) != self.clean[key]:
            self.wrong(f"{what}: other bytes than those of an undisturbed run")
        left = [path.name for path in folder.iterdir() if path.name not in case.names]
        if left:
            self.wrong(f"{what}: {left} are left")
        if state(self.source) != self.inputs:
            self.wrong(f"{what}: the input was changed")

    def kill(self, run: subprocess.Popen[str], case: Case, key: tuple[str, bool]) -> bool:
        """Whether the run did not end before."""
        if self.chance.random() < 0.9:  # mostly while it writes
            wait_for_work(run, case)
            time.sleep(self.chance.random() * self.seconds[key])
        else:
            time.sleep(self.chance.random())
        run.kill()
        run.communicate()
        if run.returncode == 0:
            self.counts["ended before the kill"] += 1
            return False
        partial = case.out.with_name(case.out.name + SUFFIX)
        self.counts["killed while writing" if partial.exists() else "killed before or after"] += 1
        return True

    def killed(self, number: int) -> bool:
        key = self.key()
        with tempfile.TemporaryDirectory(dir=self.work) as name:
            case = Case(self.source, Path(name) / "out.gguf", *key)
            killed = self.kill(case.start(), case, key)
            self.look(case, key, Path(name), f"kill {number} {key}")
            self.finish(case, key, Path(name), f"kill {number} {key}", self.chance.choice((0, 0, 1, 2)))
        return killed

    def limited(self, number: int) -> None:
        key = self.key()
        with tempfile.TemporaryDirectory(dir=self.work) as name:
            case = Case(self.source, Path(name) / "out.gguf", *key)
            limit = int(self.chance.random() * 0.9 * self.sizes[key])  # below the larger file of two
            self.full(case, key, Path(name), case.start(limit=limit), number)
            self.counts["limited file size"] += 1

    def filled(self, number: int) -> None:
        key = self.key()
        size = self.sizes[key] + (1 << 20)
        with tmpfs(self.work / "small", size) as folder:
            if folder is None:
                return self.limited(number)
            case = Case(self.source, folder / "out.gguf", *key)
            run = case.start()
            wait_for_work(run, case)
            filler = folder / "filler"
            with filler.open("wb") as file, contextlib.suppress(OSError):  # whoever comes first takes the room
                free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
                os.posix_fallocate(file.fileno(), 0, min(free, int((0.2 + self.chance.random()) * size)))
            self.full(case, key, folder, run, number, filler)
            self.counts["filled disk"] += 1

    def full(
        self,
        case: Case,
        key: tuple[str, bool],
        folder: Path,
        run: subprocess.Popen[str],
        number: int,
        filler: Path | None = None,
    ) -> None:
        what = f"full disk {number} {key}"
        _, told = run.communicate()
        if filler is not None:
            filler.unlink(missing_ok=True)
        if run.returncode == 0:
            self.counts["full disk too late"] += 1
        elif "[quantize.disk_full]" not in told:
            self.wrong(f"{what}: ended with {run.returncode}: {told}")
        self.look(case, key, folder, what)
        self.finish(case, key, folder, what, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="kills")
    parser.add_argument("--full", type=int, default=40, help="full disks")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        campaign = Campaign(Path(name), arguments.seed)
        n_killed = 0
        while n_killed < arguments.n:
            n_killed += campaign.killed(n_killed)
        for i in range(arguments.full):
            campaign.limited(i) if i % 2 else campaign.filled(i)
    for what, n in sorted(campaign.counts.items()):
        print(f"{n:5d}  {what}")
    took = time.monotonic() - began
    print(f"{arguments.n} kills, {arguments.full} full disks, {len(campaign.damage)} damaged, {took:.0f} s")
    return 1 if campaign.damage else 0


if __name__ == "__main__":
    sys.exit(main())
