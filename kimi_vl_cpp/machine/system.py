"""What this computer lends to a process: its processor's features, and memory with the limits of cgroups.

Reads /proc and /sys and tolerates the absence of either; a number that cannot be found is None.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

FEATURES = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm",
    "bf16", "sve",
)  # fmt: skip
UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a huge number


@dataclass(frozen=True)
class Memory:
    """Bytes. limit: the tightest cgroup limit over this process; limit_used: what that cgroup uses already."""

    total: int | None
    available: int | None
    limit: int | None
    limit_used: int | None

    @property
    def usable(self) -> int | None:
        """What a model may take now: memory available, and what is left of the cgroup's limit."""
        left = None if self.limit is None else max(0, self.limit - (self.limit_used or 0))
        known = [n for n in (self.available, left) if n is not None]
        return min(known) if known else None


def memory(root: Path = Path("/")) -> Memory:
    """The memory of the computer and of this process's cgroup."""
    fields: dict[str, int] = {}
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0]) * 1024
    limit, used = _memory_limit(root)
    total = fields.get("MemTotal")
    if total is not None and limit is not None and limit >= total:
        limit, used = None, None
    return Memory(total, fields.get("MemAvailable"), limit, used)


def cpu_name(root: Path = Path("/")) -> str:
    """The processor's name, "" when unknown."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        if line.lower().startswith("model name"):
            return line.partition(":")[2].strip()
    return ""


def cpu_features(root: Path = Path("/")) -> list[str]:
    """Those of the processor's features that matter for the kernels, by the names of /proc/cpuinfo."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        if line.startswith(("flags", "Features")):
            present = set(line.partition(":")[2].split())
            return [name for name in FEATURES if name in present]
    return []


def resident_bytes() -> int | None:
    """Memory this process holds, file pages included."""
    words = _read(Path("/proc/self/statm")).split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 and words[1].isdigit() else None


def _memory_limit(root: Path) -> tuple[int | None, int | None]:
    found: list[tuple[int, int]] = []
    for folder in _cgroup_folders(root, ""):
        limit, used = _read(folder / "memory.max").strip(), _read(folder / "memory.current").strip()
        if limit.isdigit():
            inactive = _stat(folder / "memory.stat", "inactive_file")  # page cache that gives way
            found.append((int(limit), max(0, int(used or 0) - inactive)))
    for folder in _cgroup_folders(root, "memory"):
        limit, used = _read(folder / "memory.limit_in_bytes").strip(), _read(folder / "memory.usage_in_bytes").strip()
        if limit.isdigit() and int(limit) < UNLIMITED:
            inactive = _stat(folder / "memory.stat", "total_inactive_file")
            found.append((int(limit), max(0, int(used or 0) - inactive)))
    return min(found, key=lambda pair: pair[0] - pair[1]) if found else (None, None)


def _stat(path: Path, name: str) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """The folders of this process's cgroup up to the top: of the v1 `controller`, or of v2 when it is empty."""
    path = None
    for line in _read(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and (controller in parts[1].split(",") if controller else parts[1] == ""):
            path = parts[2]
    if path is None:
        return []
    top = root / "sys/fs/cgroup" / controller
    inside = [part for part in path.split("/") if part and part != ".."]
    return [top.joinpath(*inside[:n]) for n in range(len(inside), -1, -1)]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
