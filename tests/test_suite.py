"""What holds for the tests themselves: no verdict of the default run depends on a clock, and the vectors never skip."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

TESTS = Path(__file__).resolve().parent
CLOCKS = {
    f"{name}{unit}"
    for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time")
    for unit in ("", "_ns")
}
CLOCKS |= {"getrusage", "clock_gettime", "clock_gettime_ns", "times", "default_timer"}
# In programs that tests write down as text, which are not parsed.
CLOCK_IN_TEXT = re.compile(r"\b(?:time|timeit|os|resource)\.(?:" + "|".join(sorted(CLOCKS)) + r")\(")


def reads_a_clock(node: ast.AST, tainted: set[str]) -> bool:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            name = inner.func.attr if isinstance(inner.func, ast.Attribute) else getattr(inner.func, "id", "")
            if name in CLOCKS:
                return True
        if isinstance(inner, ast.Name) and inner.id in tainted:
            return True
    return False


def waits(function: ast.AST) -> set[ast.AST]:
    """The conditions of `while`: a loop that waits for an event up to a deadline gives no verdict."""
    return {inner for node in ast.walk(function) if isinstance(node, ast.While) for inner in ast.walk(node.test)}


def assignments(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """(name, what it is given) of an assignment; of `a, b = x, y` each with its own."""
    if isinstance(node, ast.Assign):
        pairs = [(target, node.value) for target in node.targets]
    elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        pairs = [(node.target, node.value)]
    else:
        return
    for target, value in pairs:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            each = list(zip(target.elts, value.elts, strict=True))
        else:
            each = [(target, value)]
        yield from ((n.id, one) for to, one in each for n in ast.walk(to) if isinstance(n, ast.Name))


def timed_comparisons(function: ast.AST) -> list[int]:
    """Lines that compare what a clock said, itself or by a name that it went into."""
    tainted: set[str] = set()
    pairs = [pair for node in ast.walk(function) for pair in assignments(node)]
    while more := {name for name, value in pairs if name not in tainted and reads_a_clock(value, tainted)}:
        tainted |= more
    excused = waits(function)
    return [
        node.lineno
        for node in ast.walk(function)
        if isinstance(node, ast.Compare) and node not in excused and reads_a_clock(node, tainted)
    ]


def is_slow(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(one).startswith("pytest.mark.slow") for one in node.decorator_list)


def violations(source: str) -> list[str]:
    """Comparisons with a clock outside tests that are marked slow."""
    if not re.search(rf"\b({'|'.join(CLOCKS)})\(", source):
        return []
    tree = ast.parse(source)
    if any(ast.unparse(node).startswith("pytestmark = pytest.mark.slow") for node in tree.body):
        return []
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    functions += [
        node
        for one in tree.body
        if isinstance(one, ast.ClassDef)
        for node in one.body
        if isinstance(node, ast.FunctionDef)
    ]
    slow = {inner for node in functions if is_slow(node) for inner in ast.walk(node)}
    found = [
        f"line {line}: compares a clock in {node.name}"
        for node in functions
        if not is_slow(node)
        for line in timed_comparisons(node)
    ]
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node not in slow
            and CLOCK_IN_TEXT.search(node.value)
        ):
            for line in node.value.splitlines():
                if CLOCK_IN_TEXT.search(line) and re.search(r"[<>]|assert|if ", line):
                    found.append(f"line {node.lineno}: compares a clock in a program: {line.strip()}")
    return found


def test_no_verdict_of_the_default_run_depends_on_a_clock() -> None:
    others = {Path(__file__), TESTS / "quantize_campaign.py"}  # what follows here; a program of its own
    files = [path for path in TESTS.rglob("*.py") if path not in others]
    assert len(files) > 80
    wrong = {str(path.relative_to(TESTS)): found for path in files if (found := violations(path.read_text()))}
    assert wrong == {}, "count the work (calls, bytes, tokens), or mark the test slow, with ten times what it takes"


@pytest.mark.parametrize(
    "body",
    [
        "    t = time.monotonic()\n    work()\n    assert time.monotonic() - t < 1",
        "    t = time.process_time()\n    spent = time.process_time() - t\n    assert spent < 1",
        "    best = 9\n    best = min(best, perf_counter() - t)\n    if best > 1:\n        fail()",
        "    run('import time; t = time.time(); work(); assert time.time() - t < 3')",
    ],
)
def test_the_check_sees_a_timed_verdict(body: str) -> None:
    assert violations(f"def test_x():\n{body}\n")
    assert violations(f"@pytest.mark.slow\ndef test_x():\n{body}\n") == []


def test_waiting_for_an_event_is_no_verdict() -> None:
    assert (
        violations("def f():\n    end = time.monotonic() + 60\n    while time.monotonic() < end and not ready(): pass")
        == []
    )


VECTOR_TESTS = {
    "test_vectors.py": "",
    "text/test_tokenizer.py": "reference_cases",
    "media/test_processor.py": "preproc_json",
}
LACKING = re.compile(r"this processor has no \w+")


def tracked(folder: Path) -> Iterator[Path]:
    """The files of the tests that a clone would have."""
    command = ["git", "ls-files", "-z", "--", str(folder)]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if listed.returncode == 0 and listed.stdout:
        yield from (folder / name for name in listed.stdout.split("\0") if name)
    else:  # no checkout
        yield from (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def test_no_vector_test_skips_where_there_is_nothing_but_a_clone(tmp_path: Path) -> None:
    for path in tracked(TESTS):
        copy = tmp_path / "tests" / path.relative_to(TESTS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((TESTS.parent / "pyproject.toml").read_bytes())
    # With their fixtures, without their bodies.
    command = [sys.executable, "-m", "pytest", "--setup-only", "-p", "no:cacheprovider", "--junit-xml=report.xml"]
    command += ["-k", " or ".join(filter(None, ["test_vectors", *VECTOR_TESTS.values()]))]
    done = subprocess.run(
        [*command, *(f"tests/{name}" for name in VECTOR_TESTS)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cases = list(ElementTree.parse(tmp_path / "report.xml").iter("testcase"))
    reasons = {skip.get("message", "") for case in cases for skip in case.iter("skipped")}
    assert {reason for reason in reasons if not LACKING.fullmatch(reason)} == set()
    files = {case.get("classname", "").rpartition(".")[2] for case in cases if case.find("skipped") is None}
    assert files == {Path(name).stem for name in VECTOR_TESTS}


@pytest.mark.parametrize("name", VECTOR_TESTS)
def test_a_vector_test_has_no_way_to_skip(name: str) -> None:
    tree = ast.parse((TESTS / name).read_text())
    chosen = [node for node in tree.body if isinstance(node, ast.FunctionDef) and VECTOR_TESTS[name] in node.name]
    skips = [
        node for one in chosen for node in ast.walk(one) if isinstance(node, ast.Attribute) and "skip" in node.attr
    ]
    assert chosen and skips == []
