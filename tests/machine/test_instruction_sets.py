"""Which instruction set "auto" takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimi_vl_cpp import _core


def test_auto_takes_the_faster_of_the_two_avx512_sets_by_vendor() -> None:
    rows = [(row["name"], row["supported"]) for row in _core.isas()]
    cpuinfo = Path("/proc/cpuinfo")
    if ("avx512", True) not in rows or not cpuinfo.exists():
        pytest.skip("no AVX-512 with BF16 here")
    intel = "GenuineIntel" in cpuinfo.read_text("utf-8")
    first, second = [name for name, _ in rows[:2]]
    assert (first, second) == (("avx512-vnni", "avx512") if intel else ("avx512", "avx512-vnni"))
