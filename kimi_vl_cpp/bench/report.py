"""How the figures of `kimi-vl bench` are written: a table for people, CSV and JSON for programs; and read again."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import BadRequest
from ..wording import columns, human_bytes, padded, printable
from .measurements import Row

FORMATS = ("md", "csv", "json", "jsonl")
SCHEMA = "kimi-vl bench 1"
# What must be the same for two reports to be compared without a warning.
_CIRCUMSTANCES = ("cpu", "isa", "n_threads", "kv_type", "model.bytes")
_ROW_COLUMNS = (
    "test", "kind", "n", "depth", "streams", "width", "height", "n_patches", "n_tokens", "unit", "median", "min", "max",
    "n_samples", "ceiling", "percent_of_ceiling", "bound", "tera_ops", "giga_bytes",
)  # fmt: skip
_COMPARE_COLUMNS = ("before", "speedup")
_AGAINST_COLUMNS = ("theirs", "ratio", "low", "high", "min", "max", "pairs", "pairs_used", "pairs_unsteady")


def row_fields(row: Row) -> dict[str, Any]:
    """One test as plain values."""
    ceiling, bound = row.ceiling()
    test, machine = row.test, row.machine
    return {
        "test": test.name,
        "kind": test.kind,
        "n": test.n,
        "depth": test.depth,
        "streams": test.streams,
        "width": test.width,
        "height": test.height,
        "n_patches": row.n_patches,
        "n_tokens": row.n_tokens,
        "unit": test.unit,
        "median": row.median,
        "min": min(row.samples),
        "max": max(row.samples),
        "n_samples": len(row.samples),
        "samples": list(row.samples),
        "ceiling": ceiling,
        "percent_of_ceiling": 100 * row.share,
        "bound": bound,
        "tera_ops": row.work.ops / 1e12,
        "giga_bytes": row.work.n_bytes / 1e9,
        "machine": machine_fields(machine),
    }


def machine_fields(machine: Any) -> dict[str, float]:
    """The measures of the machine as plain values."""
    return {
        "read_gb_s": machine.read_gb_s,
        "int8_gops": machine.int8_gops,
        "f32_gflops": machine.f32_gops,
        "bf16_gflops": machine.bf16_gops,
    }


def read_report(path: str) -> dict[str, Any]:
    """A report that `-o json` wrote. Raises BadRequest ("bench.compare")."""
    try:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
    except OSError as failure:
        raise BadRequest(f"--compare {path}: {failure.strerror}", "bench.compare") from None
    except ValueError as problem:
        raise BadRequest(
            f"--compare {path}: not JSON ({problem}): expected what `kimi-vl bench -o json` wrote", "bench.compare"
        ) from None
    tests = report.get("tests") if isinstance(report, dict) else None
    if not isinstance(tests, list) or report.get("schema") != SCHEMA or not all(_is_row(row) for row in tests):
        raise BadRequest(f"--compare {path}: expected what `kimi-vl bench -o json` wrote", "bench.compare")
    return dict(report)


def add_comparison(report: dict[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Puts `compare` (before, speedup: above 1 is faster) into each test that both have. Returns what differs."""
    before = {row["test"]: row for row in old["tests"]}
    for row in report["tests"]:
        known = before.get(row["test"])
        if known is not None:
            gain = known["median"] / row["median"] if row["unit"] == "s" else row["median"] / known["median"]
            row["compare"] = {"before": known["median"], "speedup": gain}
    notes = []
    for name in _CIRCUMSTANCES:
        was, now = _dig(old, name), _dig(report, name)
        if was != now:
            notes.append(f"{name} was {was}, now {now}")
    return notes


def render(report: Mapping[str, Any], form: str) -> str:
    """The report in one of FORMATS, with a newline at its end."""
    if form == "json":
        return json.dumps(report, indent=2) + "\n"
    if form == "jsonl":
        head = {key: value for key, value in report.items() if key != "tests"}
        return "".join(json.dumps({**row, "report": head}) + "\n" for row in report["tests"])
    return _csv(report) if form == "csv" else _markdown(report)


def _csv(report: Mapping[str, Any]) -> str:
    tests = report["tests"]
    head = {
        "date": report["date"],
        "version": report["version"],
        "cpu": report["cpu"],
        "isa": report["isa"],
        "n_threads": report["n_threads"],
        "kv_type": report["kv_type"],
        "model": report["model"]["file"],
        "model_bytes": report["model"]["bytes"],
    }
    groups = [
        (key, columns)
        for key, columns in (("compare", _COMPARE_COLUMNS), ("against", _AGAINST_COLUMNS))
        if any(key in row for row in tests)
    ]
    names = [*head, *_ROW_COLUMNS, "read_gb_s", "int8_gops", "f32_gflops", "bf16_gflops"]
    names += [f"{key}_{column}" for key, columns in groups for column in columns]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in tests:
        cells = [*head.values(), *(row[column] for column in _ROW_COLUMNS), *row["machine"].values()]
        cells += [row.get(key, {}).get(column, "") for key, columns in groups for column in columns]
        writer.writerow(cells)
    return out.getvalue()


def _markdown(report: Mapping[str, Any]) -> str:
    tests, model, machine = report["tests"], report["model"], report["machine"]
    file = printable(os.path.basename(model["file"]), one_line=True)
    cpu = report["cpu"] or "processor unknown"
    lines = [
        f"kimi-vl {report['version']} · {file} ({human_bytes(model['bytes'])}) · {cpu} · "
        f"{report['isa']} · {report['n_threads']} threads · KV {report['kv_type']} · {report['date']}",
    ]
    if machine is not None:
        bf16 = f", bf16 {machine['bf16_gflops']:.0f} GFLOPS" if machine["bf16_gflops"] else ""
        lines.append(
            f"This machine, measured beside the tests: reads {machine['read_gb_s']:.1f} GB/s, int8 "
            f"{machine['int8_gops']:.0f} GOPS, f32 {machine['f32_gflops']:.0f} GFLOPS{bf16}"
        )
    compare, against = (any(key in row for row in tests) for key in ("compare", "against"))
    titles = ["test", "unit", "median", "min", "max", "of ceiling", "bound by"]
    titles += ["before", "speedup"] if compare else []
    titles += ["peer", "ratio", "95 %", "min to max", "pairs"] if against else []
    body = []
    for row in tests:
        name = row["test"]
        if row["kind"] == "picture":
            name += f" ({row['n_patches']} patches, {row['n_tokens']} tokens)"
        share = f"{row['percent_of_ceiling']:.0f} % of {short(row['ceiling'])}"
        cells = [name, row["unit"], *(short(row[key]) for key in ("median", "min", "max")), share, row["bound"]]
        if compare:
            old = row.get("compare")
            cells += [short(old["before"]), f"{old['speedup']:.3f}x"] if old else ["", ""]
        if against:
            duel = row.get("against")
            cells += (
                [
                    short(duel["theirs"]),
                    f"{duel['ratio']:.3f}x",
                    f"{duel['low']:.3f} to {duel['high']:.3f}",
                    f"{duel['min']:.3f} to {duel['max']:.3f}",
                    f"{duel['pairs_used']} of {duel['pairs']}",
                ]
                if duel
                else [""] * 5
            )
        body.append(cells)
    return "\n".join([*lines, "", *_table(titles, body, left=("test", "unit", "bound by"))]) + "\n"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str]) -> list[str]:
    widths = [max(columns(row[i]) for row in [titles, *rows]) for i in range(len(titles))]

    def line(cells: Sequence[str]) -> str:
        parts = [
            padded(cell, width) if title in left else cell.rjust(width)
            for cell, width, title in zip(cells, widths, titles, strict=True)
        ]
        return f"| {' | '.join(parts)} |"

    rule = ["-" * w if title in left else "-" * (w - 1) + ":" for w, title in zip(widths, titles, strict=True)]
    return [line(titles), f"| {' | '.join(rule)} |", *(line(row) for row in rows)]


def short(value: float) -> str:
    """A figure in four significant digits, without an exponent."""
    digits = max(0, min(9, 3 - math.floor(math.log10(value)))) if value > 0 else 0
    return f"{value:.{digits}f}"


def _is_row(row: object) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("test"), str)
        and isinstance(row.get("median"), (int, float))
        and row["median"] > 0
    )


def _dig(report: Mapping[str, Any], path: str) -> Any:
    value: Any = report
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
