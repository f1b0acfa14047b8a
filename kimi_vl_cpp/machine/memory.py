"""Whether a model can fit before it is loaded: an estimate from file sizes against what this process may use."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import OutOfMemory
from ..files.model_files import ModelFiles
from .system import memory

# Scratch of prefill and of the vision tower, and the interpreter: about 0.7 GB beside the full-size file.
WORK_BYTES_PER_WEIGHT_BYTE = 0.06
SAMPLE_CONTEXT = 8192  # tokens that estimates are given for where none were asked for
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def memory_limit_bytes() -> int | None:
    """The smallest of: the machine's memory, the cgroup's limit, the process's address space limit. None: unknown."""
    limits = [limit for limit in (_total_bytes(), _cgroup_bytes(), _rlimit_bytes()) if limit is not None]
    return min(limits, default=None)


def free_bytes() -> int | None:
    """What this process may still take: the memory available, and what is left of the cgroup's limit. None: unknown."""
    return memory().usable


def estimate_bytes(weight_bytes: int, kv_bytes_per_token: int, n_ctx: int) -> int:
    """Weights, KV cache for n_ctx tokens and work memory."""
    return weight_bytes + n_ctx * kv_bytes_per_token + int(weight_bytes * WORK_BYTES_PER_WEIGHT_BYTE)


def _needed(files: ModelFiles, n_ctx: int) -> int:
    return estimate_bytes(files.file_bytes, files.kv_bytes_per_token, n_ctx)


def check_memory(files: ModelFiles, n_ctx: int, gpu_bytes: int | None = None) -> None:
    """Raises OutOfMemory (code "memory.estimate") with what would fit when the estimate is beyond the limit.

    gpu_bytes: the free memory of the GPU that is to hold the model; None: this machine's memory is the limit.
    """
    limit = gpu_bytes or memory_limit_bytes()
    needed = _needed(files, n_ctx)
    if limit is None or needed <= limit:
        return
    per_token = max(files.kv_bytes_per_token, 1)
    n_fit = (limit - _needed(files, 0)) // per_token
    smaller = f"n_ctx={n_fit // 256 * 256}" if n_fit >= 256 else "no n_ctx is small enough for this file"
    room = max(limit - n_ctx * per_token, 0) / (1 + WORK_BYTES_PER_WEIGHT_BYTE)
    only = f"the GPU has only {_gb(limit)} free" if gpu_bytes else f"may use only {_gb(limit)}"
    more = "the device cpu" if gpu_bytes else "a higher memory limit for the process"
    raise OutOfMemory(
        f"{files.text}: needs about {_gb(needed)} (weights {_gb(files.file_bytes)}, n_ctx {n_ctx}), but {only}. What "
        f"would fit: {smaller}; a smaller quantization (files of {_gb(int(room))} or less in all); {more}",
        "memory.estimate",
    )


def shrink_to_fit(files: ModelFiles, n_ctx: int, least: int, gpu_bytes: int | None = None) -> int:
    """n_ctx, halved until the estimate fits the limit (see check_memory), but not below `least`."""
    limit = gpu_bytes or memory_limit_bytes()
    while limit is not None and n_ctx // 2 >= least and _needed(files, n_ctx) > limit:
        n_ctx //= 2
    return n_ctx


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"


def _read_int(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _total_bytes() -> int | None:
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemTotal:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_bytes() -> int | None:
    """The smallest limit on the way from this process's group to the root, of either version of cgroups."""
    limits = [_read_int(_CGROUP / "memory.max"), _read_int(_CGROUP / "memory" / "memory.limit_in_bytes")]
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        group = Path(name.lstrip("/"))
        for part in (group, *group.parents):
            if controllers == "":
                limits.append(_read_int(_CGROUP / part / "memory.max"))
            elif "memory" in controllers.split(","):
                limits.append(_read_int(_CGROUP / "memory" / part / "memory.limit_in_bytes"))
    return min((limit for limit in limits if limit is not None), default=None)


def _rlimit_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft
