"""Building the package from checkouts of any name that may not be written to. Compiles the generic kernels, without
optimisation."""

from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "a b (1)"
QUICK = ["-C", "cmake.build-type=Debug", "-C", "cmake.define.KIMI_GENERIC_ONLY=ON"]
ANSWER = (
    "import kimi_vl_cpp, kimi_vl_cpp.quantize, kimi_vl_cpp._core as core\n"
    "print(kimi_vl_cpp.__file__, len(core.isas()) > 0, sep='\\n')"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="needs a checkout"),
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone's files, in a folder whose name has a space and parentheses."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = tmp_path / NAME
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists() and not name.startswith(("tests/", "demo/")):
            copy = top / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    return top


@pytest.fixture
def python(tmp_path: Path) -> str:
    """A new environment that sees the libraries of this one, but not the package."""
    venv.create(tmp_path / "venv", symlinks=True)
    made = tmp_path / "venv" / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([made, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
    for number, entry in enumerate(path for path in sys.path if path.endswith("-packages")):
        (site / f"libraries{number}.pth").write_text(entry + "\n")  # later on the path than what is installed
    return str(made)


def install(python: str, *arguments: str) -> None:
    isolated = all(importlib.util.find_spec(name) for name in ("scikit_build_core", "pybind11"))
    command = [sys.executable, "-m", "pip", f"--python={python}", "install", "-q", "--no-deps", "--ignore-installed"]
    command += ["--no-build-isolation"] if isolated else []
    done = subprocess.run([*command, *QUICK, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def answer(python: str, tmp_path: Path) -> Path:
    """Where the package that another program imports lies, when its extension works."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    command = [python, "-c", ANSWER]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    file, works = done.stdout.splitlines()
    assert works == "True"
    return Path(file)


def states(folder: Path) -> Iterator[tuple[str, int]]:
    for path in folder.rglob("*"):
        yield str(path.relative_to(folder)), path.stat().st_mtime_ns


def test_installing_from_a_checkout_that_may_not_be_written_to(checkout: Path, python: str, tmp_path: Path) -> None:
    everything = [checkout, *checkout.rglob("*")]
    for path in everything:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    before = sorted(states(checkout))
    try:
        install(python, str(checkout))
        assert sorted(states(checkout)) == before  # root may write anywhere
        assert answer(python, tmp_path).is_relative_to(tmp_path / "venv")
    finally:
        for path in everything:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_an_editable_install_under_a_name_with_space_and_parentheses(
    checkout: Path, python: str, tmp_path: Path
) -> None:
    install(python, "-e", str(checkout))
    assert answer(python, tmp_path) == checkout / "kimi_vl_cpp" / "__init__.py"
