"""Which instruction set "auto" takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kimi_vl_cpp import _core


def test_auto_takes_the_faster_of_the_two_avx512_sets_by_vendor() -> None:
    rows = [(row["name"], row["supported"]) for row in _core.isas()]
    cpuinfo = Path("/proc/cpuinfo")
    if ("avx512", True) not in rows or not cpuinfo.exists():
        pytest.skip("no AVX-512 with BF16 here")
    intel = "GenuineIntel" in cpuinfo.read_text("utf-8")
    faster, slower = ("avx512-vnni", "avx512") if intel else ("avx512", "avx512-vnni")
    assert [name for name, _ in rows[:3]] == ["amx", faster, slower]


SMALL_SIGNAL_STACK = """
import ctypes, json
class Stack(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8192)
small = Stack(ctypes.addressof(memory), 0, len(memory))
assert ctypes.CDLL(None, use_errno=True).sigaltstack(ctypes.byref(small), None) == 0
from kimi_vl_cpp import _core
from kimi_vl_cpp.errors import KimiVLError
try:
    _core.ops.sizes("amx")
except KimiVLError as error:
    print(json.dumps([error.code, str(error), _core.isas()[0], _core.ops.isas()[0]]))
"""


def test_where_the_kernel_lends_no_tiles_amx_is_refused_and_auto_does_without() -> None:
    """Linux refuses while a thread has an alternate signal stack that the registers would not fit on."""
    if not _core.isas()[0]["supported"]:
        pytest.skip("no amx here")
    ran = subprocess.run([sys.executable, "-c", SMALL_SIGNAL_STACK], check=True, capture_output=True, text=True)
    code, message, row, chosen = json.loads(ran.stdout)
    why = "whose registers the operating system does not lend to this process"
    assert code == "cpu.isa" and message.endswith(f"AMX TILE, BF16, {why}: use auto"), message
    assert row["name"] == "amx" and not row["supported"] and row["refusal"] == why
    assert chosen == _core.isas()[1]["name"]
