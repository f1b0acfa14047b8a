"""`kimi-vl doctor`: is this computer fit for Kimi-VL, and does the runtime compute right on it?

The self-test makes a small random model and shows it a text and a picture through every instruction set that the
processor has. All of them must agree, and in each the tokens decoded one by one must be those that the whole sequence
predicts, which other kernels compute. Then the built-in model has to read the total of a receipt, through every
instruction set too: trained weights in the types and sizes of a real file, and an answer that is known. An installation
without the built-in model is reported, and does not count as a failure.
"""

from __future__ import annotations

import errno
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from ..machine import system
from ..version import __version__
from ..wording import human_bytes, human_count, printable
from . import adapters, cache, exits, failures, options
from .progress import Progress
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

_CANNOT_WRITE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)

LOGITS_TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order differ by about 1e-6 in so small a model


@dataclass(frozen=True)
class Options:
    """The command line of `doctor`."""

    json: bool = False
    cache_dir: str | None = None
    lora: Sequence[adapters.Scaled] = ()


@dataclass
class SelfTest:
    """What the self-test found. results: one row per instruction set. builtin: the same for the built-in model;
    builtin_missing: why there are none."""

    ok: bool = False
    seconds: float = 0.0
    chosen_isa: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    builtin: list[dict[str, Any]] = field(default_factory=list)
    builtin_missing: str = ""
    problems: list[str] = field(default_factory=list)
    unwritable: str = ""  # why the small model could not be written; nothing is known about the processor then


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


def self_test(progress: Progress) -> SelfTest:
    """Makes a tiny model in a temporary folder and runs it on every supported instruction set."""
    import tempfile

    started = time.monotonic()
    test = SelfTest()
    try:
        try:
            with tempfile.TemporaryDirectory(prefix="kimi-vl-doctor-") as folder:
                _compare_isas(Path(folder), test, progress)
        except OSError as failure:
            if failure.errno not in _CANNOT_WRITE or isinstance(failure, errors.KimiVLError):
                raise
            test.unwritable = exits.describe_os_error(failure)
        _ask_builtin(test, progress)
    except Exception as failure:
        test.problems.append(f"{type(failure).__name__}: {failure}")
    finally:
        progress.clear()
    test.ok = not test.problems and bool(test.results)
    test.seconds = time.monotonic() - started
    return test


def _compare_isas(folder: Path, test: SelfTest, progress: Progress) -> None:
    import numpy as np

    from .. import _core
    from ..model import KimiVL
    from ..testing import make_tiny_model

    progress.show("making a small model")
    tiny = make_tiny_model(folder, seed=0)
    rows, columns = np.mgrid[0:84, 0:112]
    picture = np.stack([rows * 3, columns * 2, (rows + columns) % 256], axis=-1).astype(np.uint8)
    reference: dict[str, Any] = {}
    result: dict[str, Any]
    supported = [isa["name"] for isa in _core.isas() if isa["supported"]]
    for isa in sorted(supported, key=lambda name: name != "generic"):  # the plainest code is the reference
        progress.show(f"testing {isa}")
        started = time.monotonic()
        with KimiVL(tiny.text, mmproj=tiny.mmproj, n_ctx=512, isa=isa) as model:
            embedding = model.encode_image(picture)
            parts: list[Any] = [model.tokenize("What is this?"), embedding, model.tokenize("Answer.")]
            logits = model.logits(parts)
            answer = list(model.generate(parts, max_new_tokens=8, temperature=0))
            whole = model.logits([*parts, answer])
        result = {"embedding": embedding, "logits": logits, "answer": answer}
        row = {"isa": isa, "seconds": time.monotonic() - started}
        test.results.append(row)
        if not all(np.isfinite(result[name]).all() for name in ("embedding", "logits")):
            test.problems.append(f"{isa}: the results are not finite numbers")
            continue
        for index, token in enumerate(answer):
            predicted = whole[len(logits) - 1 + index]
            if predicted.max() - predicted[token] > LOGITS_TOLERANCE * abs(predicted).max():
                test.problems.append(
                    f"{isa}: token {index} of the answer is {token}, but {predicted.argmax()} is likelier"
                )
                break
        if not reference:
            reference = {"isa": isa, **result}
            row["difference"] = 0.0
            continue
        differences = [_difference(result[name], reference[name]) for name in ("embedding", "logits")]
        row["difference"] = max(differences)
        if row["difference"] > LOGITS_TOLERANCE:
            by = f"{row['difference']:.1e} of the largest value, at most {LOGITS_TOLERANCE:.0e}"
            test.problems.append(f"{isa}: results differ from {reference['isa']} by {by}")
        if answer != reference["answer"]:
            test.problems.append(f"{isa}: answers {answer}, but {reference['isa']} answers {reference['answer']}")
    with KimiVL(tiny.text, mmproj=tiny.mmproj, n_ctx=512) as model:
        test.chosen_isa = model.isa


def _ask_builtin(test: SelfTest, progress: Progress) -> None:
    """Has the built-in model read a receipt on every supported instruction set."""
    from .. import _core, builtin
    from ..model import KimiVL

    try:
        picture = builtin.check_picture()
        builtin.model_path()
    except errors.BadModelFile as missing:
        test.builtin_missing = str(missing)
        return
    for isa in [isa["name"] for isa in _core.isas() if isa["supported"]]:
        progress.show(f"asking the built-in model on {isa}")
        started = time.monotonic()
        with KimiVL.builtin(isa=isa) as model:
            answer = model.chat(builtin.CHECK_QUESTION, images=[picture]).text.strip()
        right = answer == builtin.CHECK_ANSWER
        test.builtin.append({"isa": isa, "answer": answer, "right": right, "seconds": time.monotonic() - started})
        if not right:
            asked = f"asked for the total of a receipt, answers {errors.shown(answer)}"
            test.problems.append(f"{isa}: the built-in model, {asked}, expected {builtin.CHECK_ANSWER!r}")


def _difference(a: Any, b: Any) -> float:
    return float(abs(a - b).max() / abs(b).max()) if a.shape == b.shape and a.size else float("inf")


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
