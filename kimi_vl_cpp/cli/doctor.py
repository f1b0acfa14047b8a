"""`kimi-vl doctor`: is this computer fit for Kimi-VL, and does the runtime compute right on it (self_test.py)?"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from ..machine import system
from ..version import __version__
from ..wording import human_bytes, human_count, printable
from . import adapters, cache, failures, options
from .progress import Progress
from .self_test import SelfTest, self_test
from .terminal import BOLD, DIM, GREEN, RED, YELLOW, Terminal

if TYPE_CHECKING:
    from ..adapters.card import Card

# File sizes of the text model by quantization (sums of its tensors) and of the vision file in Q8_0, in bytes.
QUANTIZATIONS = {
    "Q2_K": 6_575_352_320,
    "Q3_K_M": 8_283_276_800,
    "IQ4_XS": 8_813_511_168,
    "MXFP4_MOE": 9_290_658_304,
    "Q4_K_S": 9_706_942_976,
    "Q4_K_M": 10_533_810_688,
    "Q5_K_M": 12_034_830_848,
    "Q6_K": 14_272_462_336,
    "Q8_0": 16_968_004_096,
    "BF16": 31_927_292_416,
}
MMPROJ_BYTES = 618_098_624
KV_BYTES_PER_TOKEN = 31_104


@dataclass(frozen=True)
class Options:
    """The command line of `doctor`."""

    json: bool = False
    cache_dir: str | None = None
    lora: Sequence[adapters.Scaled] = ()


SUMMARY = "Check this computer."


def command(
    json: options.Json = False,
    cache_dir: Annotated[
        str | None, typer.Option("--cache-dir", metavar="FOLDER", help="Look at this cache folder too.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora", metavar="DIR[=SCALE]", help="Count the memory of a LoRA adapter of Kimi-VL too. Repeatable."
        ),
    ] = None,
) -> options.Job:
    """Check this computer: processor, memory, and a self-test on a small model made on the spot."""

    def job(terminal: Terminal) -> int:
        return run(Options(json, cache_dir, adapters.always(lora) or ()), terminal)

    return job


def run(options: Options, terminal: Terminal) -> int:
    """Prints the findings; errors.EXIT_OK when the self-test passes."""
    report = make_report(Progress(terminal), options.cache_dir, options.lora)
    if options.json:
        terminal.out.write(json.dumps(report, indent=2) + "\n")
        terminal.out.flush()
    else:
        _print(report, terminal)
    return errors.EXIT_OK if report["ok"] else errors.EXIT_FAILED


def make_report(
    progress: Progress, cache_dir: str | None = None, lora: Sequence[adapters.Scaled] = ()
) -> dict[str, Any]:
    """Everything that doctor knows, as plain values fit for JSON. Raises KimiVLError for an adapter that Kimi-VL cannot
    take."""
    memory = system.memory()
    cards = _adapters(lora)
    report: dict[str, Any] = {
        "versions": _versions(),
        "processor": {"name": system.cpu_name(), "machine": platform.machine(), "features": system.cpu_features()},
        "memory": {**asdict(memory), "usable": memory.usable},
    }
    if cache_dir is not None:
        report["cache"] = cache.state(cache_dir)
    try:
        from .. import _core
    except ImportError as failure:
        report["self_test"] = asdict(
            SelfTest(problems=[f"the compiled core cannot be loaded: {failure}; install the package again"])
        )
        report["ok"] = False
        return report
    report["processor"] |= {**_core.cpu_info(), "isas": _core.isas()}
    report["gpu"] = _gpu()
    report["adapters"] = [card.to_dict() for card in cards]
    report["quantizations"] = _quantizations(memory, sum(card.memory_bytes for card in cards))
    test = self_test(progress)
    report["self_test"] = asdict(test)
    report["ok"] = test.ok
    return report


def _gpu() -> dict[str, str]:
    """architecture: of the GPU that device="cuda" would use; or missing: why there is none, and the error's code."""
    from .. import _core

    try:
        return {"architecture": _core.describe_backend("cuda")}
    except errors.KimiVLError as missing:
        return {"missing": str(missing), "code": missing.code}


def _adapters(lora: Sequence[adapters.Scaled]) -> list[Card]:
    if not lora:
        return []
    from ..adapters.card import read_cards

    with failures.needs_quantize("doctor --lora"):
        from kimi_vl_cpp.quantize import fit
    shape = fit.full_size()
    return read_cards(lora, shape.matrices, shape.projector)


def _quantizations(memory: system.Memory, adapter_bytes: int) -> list[dict[str, Any]]:
    """What each quantization of the full model needs, and whether it fits now or at all."""
    from ..machine.memory import SAMPLE_CONTEXT, estimate_bytes, memory_limit_bytes

    usable, limit = memory.usable, memory_limit_bytes()
    rows = []
    for name, size in QUANTIZATIONS.items():
        needs = estimate_bytes(size + MMPROJ_BYTES, KV_BYTES_PER_TOKEN, SAMPLE_CONTEXT) + adapter_bytes
        fits_now = None if usable is None else needs <= usable
        fits = None if limit is None else needs <= limit
        rows.append({"name": name, "needs_bytes": needs, "fits_now": fits_now, "fits": fits})
    return rows


def _versions() -> dict[str, str]:
    from importlib import metadata

    versions = {"kimi-vl-cpp": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in ("numpy", "pillow", "tiktoken", "sentencepiece", "typer", "prompt_toolkit"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    return versions


def _print(report: dict[str, Any], terminal: Terminal) -> None:
    def head(text: str) -> None:
        terminal.print(terminal.style(text, BOLD, err=False))

    def row(label: str, value: str) -> None:
        terminal.print(f"  {terminal.style(label.ljust(14), DIM, err=False)}{value}")

    head("Versions")
    versions = report["versions"]
    row("kimi-vl-cpp", f"{versions['kimi-vl-cpp']} on Python {versions['python']} ({sys.executable})")
    row("system", versions["system"])
    row(
        "packages",
        ", ".join(f"{name} {v}" for name, v in versions.items() if name not in ("kimi-vl-cpp", "python", "system")),
    )
    head("Processor")
    _print_processor(report, row, terminal)
    if "gpu" in report:
        gpu = report["gpu"]
        row("GPU", gpu.get("architecture") or f"none used: {printable(gpu['missing'], one_line=True)}")
    head("Memory")
    _print_memory(report, row, terminal)
    if "cache" in report:
        head("Cache folder")
        cache.write_state(report["cache"], row, terminal)
    head("Self-test")
    test = report["self_test"]
    for result in test["results"]:
        row(
            result["isa"],
            f"text, picture and answer in {result['seconds']:.2f} s, difference {result.get('difference', 0):.0e}",
        )
    for result in test["builtin"]:
        said = f"reads the total of a receipt: {result['answer']}" if result["right"] else "reads a receipt wrong"
        row(result["isa"], f"the built-in model {printable(said, one_line=True)} ({result['seconds']:.2f} s)")
    if test["builtin_missing"]:
        row("built in", terminal.style(printable(test["builtin_missing"], one_line=True), YELLOW, err=False))
    for problem in test["problems"]:
        terminal.print("  " + terminal.style(problem, RED, err=False))
    if test["unwritable"]:
        terminal.print("  " + terminal.style(printable(test["unwritable"], one_line=True), RED, err=False))
        text = "INCOMPLETE: a small model could not be written: free some space, or set TMPDIR to a folder to write to"
        terminal.print("  " + terminal.style(text, BOLD, YELLOW, err=False))
    if test["problems"] or not (test["ok"] or test["unwritable"]):
        text = "FAILED: do not trust answers on this computer; please report this output"
        terminal.print("  " + terminal.style(text, BOLD, RED, err=False))
    elif test["ok"]:
        terminal.print("  " + terminal.style(f"passed in {test['seconds']:.1f} s", GREEN, err=False))


def _print_processor(report: dict[str, Any], row: Any, terminal: Terminal) -> None:
    cpu = report["processor"]
    row("name", cpu["name"] or cpu["machine"])
    if "isas" not in cpu:
        return
    if cpu["features"]:
        row("features", " ".join(cpu["features"]))
    chosen = report["self_test"]["chosen_isa"]
    for isa in cpu["isas"]:
        requires = isa["requires"] if isinstance(isa["requires"], str) else " ".join(isa["requires"])
        state = "chosen" if isa["name"] == chosen else "available" if isa["supported"] else "not available"
        colour = GREEN if isa["name"] == chosen else "" if isa["supported"] else DIM
        row(
            isa["name"],
            terminal.style(state, *([colour] if colour else []), err=False)
            + f"  (needs {requires}{', ' + isa['refusal'] if isa['refusal'] else ''})",
        )
    reasons = [f"{cpu['online']} in the computer, {cpu['physical_cores']} cores"]
    if cpu["affinity"] != cpu["online"]:
        reasons.append(f"{cpu['affinity']} allowed by affinity")
    if cpu["quota"]:
        reasons.append(f"a cgroup quota of {cpu['quota']:g}")
    row("threads", f"{cpu['threads']} ({', '.join(reasons)}); -t changes it")


def _print_memory(report: dict[str, Any], row: Any, terminal: Terminal) -> None:
    memory = report["memory"]
    if memory["total"] is None or memory["usable"] is None:
        row("size", "unknown on this system")
        return
    row("size", f"{human_bytes(memory['total'])}, {human_bytes(memory['available'] or 0)} of it available")
    if memory["limit"] is not None:
        row("cgroup limit", f"{human_bytes(memory['limit'])}, {human_bytes(memory['limit_used'] or 0)} of it used")
    now = [q["name"] for q in report["quantizations"] if q["fits_now"]]
    later = [q["name"] for q in report["quantizations"] if q["fits"] and not q["fits_now"]]
    no = [q["name"] for q in report["quantizations"] if not q["fits"]]
    row("fits now", ", ".join(now) or terminal.style("no quantization", YELLOW, err=False))
    if later:
        row("fits", f"{', '.join(later)} when other programs are closed")
    if no:
        row("too large", terminal.style(", ".join(no), DIM, err=False))
    from ..machine.memory import SAMPLE_CONTEXT

    adapters = sum(card["memory_bytes"] for card in report["adapters"])
    beside = f", adapters of {human_bytes(adapters)}" if adapters else ""
    counted = f"with the vision file{beside} and {human_count(SAMPLE_CONTEXT)} tokens of context"
    row("", terminal.style(counted, DIM, err=False))
