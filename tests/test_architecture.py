"""The arrows between the rooms of csrc/ (docs/architecture.md), held to the #include lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"

# room -> rooms that it may include. Longer paths win.
ALLOWED = {
    "base": {"base"},
    "quant": {"quant", "base"},
    "gguf": {"gguf", "quant", "base"},
    "backend": {"backend", "quant", "base"},
    "backend/cpu": {"backend", "backend/cpu", "quant", "base"},
    "model": {"model", "backend", "gguf", "quant", "base"},
    "engine": {"engine", "model", "backend", "gguf", "quant", "base"},
}


def room_of(path: str) -> str:
    return next(room for room in sorted(ALLOWED, key=len, reverse=True) if path.startswith(room + "/"))


def includes(text: str) -> list[str]:
    return re.findall(r'^\s*#include\s+"([^"]+)"', text, flags=re.M)


def violations(files: dict[str, str]) -> list[str]:
    wrong = []
    for path, text in files.items():
        for name in includes(text):
            if room_of(name) not in ALLOWED[room_of(path)]:
                wrong.append(f"{path} includes {name}: {room_of(path)} may include {sorted(ALLOWED[room_of(path)])}")
        if re.search(r"Python\.h|pybind11", text):
            wrong.append(f"{path}: the core never sees Python")
    return wrong


def test_arrows_between_rooms_go_one_way() -> None:
    sources = [p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cuh", ".cu"}]
    files = {str(p.relative_to(CSRC)): p.read_text() for p in sources}
    assert len(files) > 30
    assert violations(files) == []


@pytest.mark.parametrize(
    ("path", "include"),
    [("base/x.h", "quant/format.h"), ("model/x.cpp", "backend/cpu/cpu_backend.h"), ("gguf/x.h", "model/config.h")],
)
def test_the_check_sees_a_wrong_arrow(path: str, include: str) -> None:
    assert violations({path: f'#include "{include}"\n'})


def test_every_file_opens_with_what_it_is() -> None:
    silent = [str(p.relative_to(ROOT)) for p in CSRC.rglob("*.h") if not p.read_text().startswith("//")]
    assert silent == []


def test_per_isa_files_are_kept_free_of_heavy_headers() -> None:
    # A std header whose inline functions are compiled with AVX-512 flags could be the copy that the linker keeps.
    heavy = re.compile(r"#include <(vector|string|algorithm|functional|map|memory|iostream|thread|mutex|cmath)>")
    wrong = []
    kernels, encoders = ("avx2", "avx512", "loops"), ("avx2", "avx512", "encode")
    for folder in [f"backend/cpu/{name}" for name in kernels] + [f"quant/{name}" for name in encoders]:
        for path in (CSRC / folder).rglob("*"):
            wrong += [f"{path.name}: {m.group(0)}" for m in heavy.finditer(path.read_text())]
    assert wrong == []


def test_cited_headings_of_the_model_description_exist() -> None:
    headings = set(re.findall(r"^##+ (.*)$", (ROOT / "docs" / "model.md").read_text(), flags=re.M))
    cited = {}
    for folder in ("csrc", "python", "kimi_vl_cpp", "quantize", "demo", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".h", ".cpp", ".py"} and path != Path(__file__):
                for name in re.findall(r'docs/model\.md, "([^"]+)"', path.read_text()):
                    cited[name] = str(path.relative_to(ROOT))
    assert cited and {name: path for name, path in cited.items() if name not in headings} == {}
