"""`kimi-vl bench`: how fast this model is on this machine, and how fast it could be.

Rows are measured one after another, in the order depth, prompts, decoding, then pictures, each `-r` times. With
--against every round runs all our tests, the peer's command twice, and ours again (A B B A), so that what the machine
does meanwhile meets both.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ... import errors
from ...bench import peer
from ...bench import plot as bench_plot
from ...bench import report as bench_output
from ...bench.measurements import PROBE_SECONDS, Bench, BenchOptions, Row, Test, median_machine
from ...bench.work import Machine
from ...machine import system
from ...version import __version__
from .. import exits, opening
from ..progress import Progress
from ..terminal import DIM, Terminal

MAX_TOKENS = 1 << 20
MAX_SIDE = 1 << 14
MAX_STREAMS = 64


@dataclass(frozen=True)
class Options:
    """The command line of `bench`. Lists are texts as typed."""

    files: opening.Opening
    prompts: str | None = None
    decode: str | None = None
    depths: str = "0"
    parallel: str = "1"
    warm: bool = False
    images: str | None = None
    repetitions: int = 5
    output: str = "md"
    plot: str | None = None
    compare: str | None = None
    against: str | None = None
    against_regex: str | None = None
    probe_seconds: float = PROBE_SECONDS


def run(options: Options, terminal: Terminal) -> int:
    """Measures and prints. Ctrl-C prints what was measured so far and returns errors.EXIT_CANCELLED."""
    tests = plan(options)
    _check(options)
    model = opening.check_model(options.files)
    old = None if options.compare is None else bench_output.read_report(options.compare)
    regex = None if options.against_regex is None else peer.compile_regex(options.against_regex)
    progress = Progress(terminal)
    progress.show("loading the model")
    files = options.files
    how = BenchOptions(
        n_threads=files.n_threads or 0, isa=files.isa, kv_type=files.kv_type, n_ctx=files.n_ctx, lora=files.lora
    )
    bench = Bench(model, files.mmproj, tests, how, probe_seconds=options.probe_seconds)
    rows = [bench.row(test) for test in tests]
    duels: dict[str, peer.Duel] = {}
    cut, failure = False, None
    try:
        if options.against is None:
            _measure(bench, rows, options.repetitions, progress)
        else:
            duels = {row.test.name: peer.Duel(row.test) for row in rows}
            command = options.against
            _measure_against(
                bench, rows, duels, options.repetitions, progress,
                lambda: peer.parse(peer.run_command(command), tests, regex),
            )  # fmt: skip
    except KeyboardInterrupt:
        cut = True
    except errors.KimiVLError as problem:  # what was measured so far is reported first
        failure = problem
    finally:
        progress.clear()
    report = make_report(options, bench, rows, duels, complete=not cut and failure is None)
    bench.close()
    if old is not None:
        for note in bench_output.add_comparison(report, old):
            terminal.note(f"--compare: {note}")
    if report["tests"] or failure is None:
        terminal.out.write(bench_output.render(report, options.output))
        terminal.out.flush()
    if options.plot is not None and report["tests"]:
        bench_plot.draw(report, options.plot)
    if failure is not None:
        raise failure
    if cut:
        terminal.note(f"interrupted: {len(report['tests'])} of {len(tests)} tests have figures")
        return errors.EXIT_CANCELLED
    _remark(report, terminal)
    return errors.EXIT_OK


def plan(options: Options) -> list[Test]:
    """The tests in the order in which they run. Raises UsageError."""
    prompts = _numbers("-p", options.prompts, 1)
    decode = _numbers("-n", options.decode, 1)
    depths = _numbers("-d", options.depths, 0) or [0]
    sizes = _sizes(options.images)
    if options.prompts is None and options.decode is None and options.images is None:
        prompts, decode = [512], [64]
    streams = _numbers("--parallel", options.parallel, 1) or [1]
    if max(streams) > MAX_STREAMS:
        raise exits.UsageError(f"--parallel {options.parallel}: expected numbers up to {MAX_STREAMS}")
    if streams != [1] and not decode:
        raise exits.UsageError(f"--parallel {options.parallel}: no tokens are decoded: say how many with -n")
    if options.warm and not prompts:
        raise exits.UsageError("--warm: no prompt is timed: say of how many tokens with -p")
    tests: list[Test] = []
    for depth in depths:
        tests += [Test("prefill", n, depth) for n in prompts]
        tests += [Test("warm", n, depth) for n in prompts if options.warm]
        tests += [Test("decode", n, depth, streams=together) for n in decode for together in streams]
    tests += [Test("picture", width=width, height=height) for width, height in sizes]
    if not tests:
        raise exits.UsageError("nothing to measure: give -p, -n or --image")
    return list(dict.fromkeys(tests))


def make_report(
    options: Options, bench: Bench, rows: list[Row], duels: dict[str, peer.Duel], complete: bool
) -> dict[str, Any]:
    """Everything that was measured, as plain values fit for JSON. Tests without a figure are left out."""
    measured = [row for row in rows if row.samples and row.probes]
    probes = [probe for row in measured for probe in row.probes]
    tests = []
    for row in measured:
        fields = bench_output.row_fields(row)
        duel = duels.get(row.test.name)
        if duel is not None and duel.pairs:
            fields["against"] = duel.summary()
        tests.append(fields)
    kv_type = options.files.kv_type if options.files.kv_type != "auto" else str(bench.config.get("kv_type", "auto"))
    files = bench.files
    return {
        "schema": bench_output.SCHEMA,
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cpu": system.cpu_name(),
        "cpu_features": system.cpu_features(),
        "isa": bench.isa,
        "n_threads": bench.n_threads,
        "kv_type": kv_type,
        "repetitions": options.repetitions,
        "load_average": list(os.getloadavg()),
        "model": {
            "file": files.text.name,
            "bytes": bench.core.engine.gguf.file_bytes,
            "name": str(bench.config.get("name") or files.text.stem),
            "mmproj": None if files.mmproj is None else files.mmproj.name,
        },
        "machine": bench_output.machine_fields(median_machine(probes)) if probes else None,
        "against": options.against,
        "complete": complete,
        "tests": tests,
    }


def _measure(bench: Bench, rows: list[Row], repetitions: int, progress: Progress) -> None:
    for index, row in enumerate(rows):
        where = f"{row.test.name} ({index + 1} of {len(rows)})"
        bench.prepare(row.test, _teller(progress, where))
        row.probes.append(bench.probe())
        for i in range(repetitions):
            progress.show(f"{where}: {i + 1} of {repetitions}")
            bench.sample(row)
        row.probes.append(bench.probe())


def _measure_against(
    bench: Bench,
    rows: list[Row],
    duels: dict[str, peer.Duel],
    repetitions: int,
    progress: Progress,
    ask_peer: Callable[[], dict[str, float]],
) -> None:
    bench.keep_depths = True
    for row in rows:
        bench.prepare(row.test, _teller(progress, row.test.name))

    def ours(where: str) -> tuple[dict[str, float], Machine]:
        machine = bench.probe()
        figures = {}
        for row in rows:
            progress.show(f"{where}: {row.test.name}")
            row.probes.append(machine)
            figures[row.test.name] = bench.sample(row)
        return figures, machine

    def theirs(where: str) -> tuple[dict[str, float], Machine]:
        progress.show(f"{where}: the peer")
        machine = bench.probe()
        return ask_peer(), machine

    for i in range(repetitions):
        where = f"round {i + 1} of {repetitions}"
        for first, second in ((ours, theirs), (theirs, ours)):
            sides = {side: side(where) for side in (first, second)}
            (our_figures, our_machine), (their_figures, their_machine) = sides[ours], sides[theirs]
            for name, figure in their_figures.items():
                duels[name].add(our_figures[name], figure, our_machine, their_machine)


def _remark(report: dict[str, Any], terminal: Terminal) -> None:
    """What a reader should know before believing the figures."""
    if report["load_average"][0] > max(1.0, 1.5 * report["n_threads"]):
        terminal.note(f"the machine was busy (load {report['load_average'][0]:.1f}): figures and ceilings are too low")
    for row in report["tests"]:
        duel = row.get("against")
        if duel and 2 * (duel["pairs"] - duel["pairs_unsteady"]) < duel["pairs"]:
            terminal.note(f"{row['test']}: the machine was unsteady in most pairs, so all of them count")
        elif report["against"] is not None and duel is None:
            terminal.note(f"{row['test']}: the command of --against printed no figure for it")
    if any(row["percent_of_ceiling"] > 105 for row in report["tests"]):
        terminal.say("(more than 100 % of the ceiling: the caches hold the model, or the machine was busy)", DIM)


def _check(options: Options) -> None:
    if not 1 <= options.repetitions <= 1000:
        raise exits.UsageError(f"-r: got {options.repetitions}, expected 1 to 1000")
    if options.output not in bench_output.FORMATS:
        raise exits.UsageError(f"-o: got {options.output!r}, expected one of {', '.join(bench_output.FORMATS)}")
    if options.against_regex is not None and options.against is None:
        raise exits.UsageError("--against-regex says how to read the output of --against, which is missing")
    if options.files.n_threads is not None and not 0 <= options.files.n_threads <= 1024:
        raise exits.UsageError(f"-t: got {options.files.n_threads}, expected 0 (automatic) to 1024")
    if options.files.n_ctx is not None and options.files.n_ctx < 1:
        raise exits.UsageError(f"-c: got {options.files.n_ctx}, expected at least 1")
    if options.plot is not None:
        bench_plot.check_path(options.plot)


def _teller(progress: Progress, where: str) -> Callable[[str], None]:
    return lambda words: progress.show(f"{where}: {words}")


def _numbers(option: str, text: str | None, least: int) -> list[int]:
    """ "512,2048" -> [512, 2048]; "0" and "" ask for nothing where zero makes no sense."""
    if text is None:
        return []
    numbers = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        if not word.isdecimal() or int(word) > MAX_TOKENS:
            raise exits.UsageError(f"{option} {text}: got {word!r}, expected numbers up to {MAX_TOKENS} with commas")
        if int(word) >= least:
            numbers.append(int(word))
    return numbers


def _sizes(text: str | None) -> list[tuple[int, int]]:
    """ "448,1344x1008" -> [(448, 448), (1344, 1008)], width before height."""
    sizes = []
    for word in filter(None, (part.strip() for part in (text or "").split(","))):
        width, _, height = word.lower().partition("x")
        height = height if "x" in word.lower() else width
        if not (width.isdecimal() and height.isdecimal() and all(1 <= int(n) <= MAX_SIDE for n in (width, height))):
            raise exits.UsageError(f"--image {text}: got {word!r}, expected sizes as 448 or 1344x1008 with commas")
        sizes.append((int(width), int(height)))
    return sizes
