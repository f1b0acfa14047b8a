"""Another program's benchmark: running its command, reading its figures, and comparing them pair by pair.

Figures are read from what the command prints on standard output: JSON or JSON lines with `n_prompt`, `n_gen` and
`avg_ts`, a markdown table with the columns `test` and `t/s`, or whatever a regular expression of the user finds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import BadRequest, KimiVLError
from .measurements import Test
from .work import Machine

STEADY = 0.05  # a pair counts when the machine was the same within this share on both sides
_TAIL = 600  # characters of a failed command's output that the error shows
_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?")


def run_command(command: str) -> str:
    """What the shell command prints on standard output. Ends it on Ctrl-C. Raises KimiVLError ("bench.peer")."""
    with subprocess.Popen(
        command,
        shell=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        said = (err.strip() or out.strip())[-_TAIL:]
        raise KimiVLError(
            f"--against: the command ended with exit code {process.returncode}: {command}\n{said}".rstrip(),
            "bench.peer",
        )
    return out


def compile_regex(pattern: str) -> re.Pattern[str]:
    """A user's regular expression. Raises BadRequest ("bench.regex")."""
    try:
        regex = re.compile(pattern, re.MULTILINE)
    except re.error as problem:
        raise BadRequest(f"--against-regex {pattern!r}: {problem}", "bench.regex") from None
    if not set(regex.groupindex) & {"value", "ms", "s"} and regex.groups < 1:
        raise BadRequest(
            f"--against-regex {pattern!r}: needs a group for the number: (?P<value>…) in the unit of the test, "
            "(?P<s>…) or (?P<ms>…) for a time; (?P<test>…) for the name of the test",
            "bench.regex",
        )
    return regex


def parse(output: str, tests: Sequence[Test], regex: re.Pattern[str] | None = None) -> dict[str, float]:
    """Figures by the name of the test, in the unit of the test; only of `tests`.

    Raises KimiVLError ("bench.peer_output") when there is none of them.
    """
    found = _by_regex(output, tests, regex) if regex is not None else _by_format(output)
    figures = {test.name: found[_key(test.name)] for test in tests if _key(test.name) in found}
    figures = {name: value for name, value in figures.items() if value > 0}
    if not figures:
        seen = f"it has {', '.join(sorted(found))}" if found else "no table, JSON or match was found"
        wanted = ", ".join(test.name for test in tests)
        raise KimiVLError(
            f"--against: the command's output has none of the tests {wanted} ({seen}): give both the same tests, or "
            f"say with --against-regex where the figures are. The output ends with:\n{output.strip()[-_TAIL:]}",
            "bench.peer_output",
        )
    return figures


@dataclass
class Pair:
    """One of our figures beside the peer's, taken one after the other."""

    ours: float
    theirs: float
    ratio: float  # above 1: we are faster
    steady: bool


@dataclass
class Duel:
    """All pairs of one test."""

    test: Test
    pairs: list[Pair] = field(default_factory=list)

    def add(self, ours: float, theirs: float, before: Machine, after: Machine) -> None:
        """before, after: the machine at our run and at the peer's."""
        ratio = theirs / ours if self.test.unit == "s" else ours / theirs
        steady = all(
            abs(a / b - 1) <= STEADY
            for a, b in ((before.read_gb_s, after.read_gb_s), (before.int8_gops, after.int8_gops))
        )
        self.pairs.append(Pair(ours, theirs, ratio, steady))

    def summary(self) -> dict[str, Any]:
        """ratio: the median over the steady pairs, over all when fewer than half are; low, high: its 95 % interval by
        resampling, from a fixed seed; min, max: the extremes."""
        steady = [pair for pair in self.pairs if pair.steady]
        used = steady if 2 * len(steady) >= len(self.pairs) else self.pairs
        ratios = np.array([pair.ratio for pair in used])
        draws = np.random.default_rng(0).integers(0, len(ratios), (2000, len(ratios)))
        low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
        return {
            "theirs": statistics.median(pair.theirs for pair in used),
            "theirs_samples": [pair.theirs for pair in self.pairs],
            "ratio": float(np.median(ratios)),
            "low": float(low),
            "high": float(high),
            "min": float(ratios.min()),
            "max": float(ratios.max()),
            "pairs": len(self.pairs),
            "pairs_used": len(used),
            "pairs_unsteady": len(self.pairs) - len(steady),
        }


def _key(name: str) -> str:
    """A test's name without what programs write differently, and without what they add in parentheses."""
    return re.sub(r"\(.*\)|[\s@]+", "", name).lower()


def _number(text: str) -> float | None:
    match = _NUMBER.search(text)
    return float(match.group().replace(",", "")) if match else None


def _by_regex(output: str, tests: Sequence[Test], regex: re.Pattern[str]) -> dict[str, float]:
    units = {_key(test.name): test for test in tests}
    names = iter(units)
    found: dict[str, list[float]] = {}
    for match in regex.finditer(output):
        groups = match.groupdict()
        name = _key(groups["test"]) if groups.get("test") else next(names, "")
        test = units.get(name)
        if test is None:
            continue
        scale = 1e-3 if groups.get("ms") else 1.0
        text = groups.get("value") or groups.get("s") or groups.get("ms") or match.group(1)
        value = _number(text or "")
        if value is None or value <= 0:
            continue
        is_time = bool(groups.get("ms") or groups.get("s"))
        found.setdefault(name, []).append(test.n / (value * scale) if is_time and test.unit != "s" else value * scale)
    return {name: statistics.median(values) for name, values in found.items()}


def _by_format(output: str) -> dict[str, float]:
    rows = _json_rows(output)
    found: dict[str, float] = {}
    for row in rows:
        name = row.get("test")
        value = row.get("avg_ts", row.get("median"))
        if not isinstance(name, str):
            n_prompt, n_gen, depth = (row.get(key) or 0 for key in ("n_prompt", "n_gen", "n_depth"))
            if not all(isinstance(n, int) for n in (n_prompt, n_gen, depth)) or bool(n_prompt) == bool(n_gen):
                continue
            name = Test("prefill" if n_prompt else "decode", n_prompt or n_gen, depth).name
        if isinstance(value, (int, float)):
            found[_key(name)] = float(value)
    return found or _markdown_rows(output)


def _json_rows(output: str) -> list[dict[str, Any]]:
    """The objects of a JSON array, of an object with `tests`, or of JSON lines, whatever is printed around them."""
    starts = [match.start() for match in re.finditer(r"^\s*[\[{]", output, re.MULTILINE)]
    for start in starts[:50]:
        try:
            value, _ = json.JSONDecoder().raw_decode(output[start:].lstrip())
        except ValueError:
            continue
        if isinstance(value, list):
            return [row for row in value if isinstance(row, dict)]
        if isinstance(value, dict) and isinstance(value.get("tests"), list):
            return [row for row in value["tests"] if isinstance(row, dict)]
        break
    rows: list[dict[str, Any]] = []
    for line in output.splitlines():
        if line.lstrip().startswith("{"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                rows.append(value)
    return rows


def _markdown_rows(output: str) -> dict[str, float]:
    found: dict[str, float] = {}
    columns: list[str] = []
    for line in output.splitlines():
        if not line.lstrip().startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        lower = [cell.lower() for cell in cells]
        if "test" in lower and any(cell in ("t/s", "median") for cell in lower):
            columns = lower
        elif columns and len(cells) == len(columns) and not set("".join(cells)) <= set("-: "):
            at = columns.index("t/s" if "t/s" in columns else "median")
            value = _number(cells[at])
            if value is not None:
                found[_key(cells[columns.index("test")])] = value
    return found
