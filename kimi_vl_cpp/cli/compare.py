"""`kimi-vl compare REFERENCE CANDIDATE...`: what quantization cost, on texts and on pictures.

Owns the options, the progress line and the table; the work is in the package `kimi_vl_cpp.quantize`. Imports only what
is quick: it is read at every start.
"""

from __future__ import annotations

import json as json_module
from typing import Annotated, Any

import typer

from .. import errors
from ..wording import columns, human_bytes, padded, plural, printable
from . import data_notes, exits, failures, options
from .progress import Bar
from .terminal import BOLD, DIM, Terminal

_STAGES = {"compare": "comparing", "compare_weights": "comparing weights"}

SUMMARY = "Measure what quantization cost."


def command(
    files: Annotated[
        list[str],
        typer.Argument(metavar="REFERENCE CANDIDATE...", help="GGUF files of one model.", show_default=False),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="Texts (.txt, .md) and pictures; NAME.txt asks about NAME.png. Default: a small built-in set.",
        ),
    ] = None,
    report: Annotated[str | None, typer.Option("--report", metavar="FILE.html", help="Write a report to read.")] = None,
    png: Annotated[str | None, typer.Option("--png", metavar="FOLDER", help="Write the report's figures too.")] = None,
    imatrix: Annotated[
        str | None,
        typer.Option("--imatrix", metavar="FILE", help="Show how often experts were used according to this file."),
    ] = None,
    ctx: Annotated[int, typer.Option("-c", "--ctx", metavar="N", help="Tokens of text in a prompt.")] = 256,
    answer: Annotated[int, typer.Option("--answer", metavar="N", help="Tokens of the answer to a picture.")] = 32,
    chunks: Annotated[
        int | None, typer.Option("--chunks", metavar="N", help="At most N prompts, half of them pictures.")
    ] = None,
    weights: Annotated[bool, typer.Option("--weights/--no-weights", help="Compare the weights themselves too.")] = True,
    in_token_limit: options.InTokenLimit = None,
    threads: options.Threads = None,
    force: options.Force = False,
    json: options.Json = False,
    isa: options.Isa = "auto",
) -> options.Job:
    """Measure how far quantized models are from a reference, on texts and pictures.

    kimi-vl compare kimi-F16.gguf kimi-Q4_K_M.gguf --data folder --report report.html
    """

    def job(terminal: Terminal) -> int:
        chosen = {
            "data": data,
            "imatrix": imatrix,
            "ctx": ctx,
            "answer": answer,
            "chunks": chunks,
            "weights": weights,
            "in_token_limit": in_token_limit,
            "n_threads": threads,
            "isa": isa,
        }
        return run(files, report, png, chosen, force, json, terminal)

    return job


def run(
    files: list[str],
    html: str | None,
    png: str | None,
    chosen: dict[str, Any],
    force: bool,
    as_json: bool,
    terminal: Terminal,
) -> int:
    """Does it; prints the table or the report as JSON on standard output, the rest on standard error.

    Raises KimiVLError, KeyboardInterrupt."""
    if len(files) < 2:
        raise exits.UsageError(
            "compare takes a reference and at least one candidate",
            "For example: kimi-vl compare kimi-F16.gguf kimi-Q4_K_M.gguf",
        )
    for file in files:
        exits.check_readable(file, "model", (), errors.BadModelFile, "model_file.missing")
    for value, option in (
        (chosen["data"], "--data"),
        (html, "--report"),
        (png, "--png"),
        (chosen["imatrix"], "--imatrix"),
    ):
        if value is not None and (not value or "\0" in value):
            raise exits.UsageError(f"{option}: expected a path")
    with failures.needs_quantize("compare"):
        from kimi_vl_cpp.quantize import compare
        from kimi_vl_cpp.quantize.comparison.html import check_outputs, write_outputs
    wanted = check_outputs(html, png, files, chosen["data"], force)
    bar = Bar(terminal, _STAGES, {"compare_data"})
    with (
        bar.until_stopped(lambda: f"stopped{bar.how_far('compare')}: nothing was written"),
        exits.sigterm_raises(),  # so that temporary files are taken away
    ):
        report = compare(files[0], files[1:], progress=bar, **chosen)
        written = write_outputs(report, wanted)
    data_notes.show(report, terminal)
    if as_json:
        terminal.print(json_module.dumps(report.to_dict(), indent=2))
    else:
        print_report(report, terminal)
    for path in written:
        terminal.say(printable(str(path), one_line=True), DIM)
    return errors.EXIT_OK


def print_report(report: Any, terminal: Terminal) -> None:
    """The verdict, and of every model a block of short lines: nothing is wider than 70 columns but names."""
    names = [
        printable(model.label, one_line=True) for model in (report.reference, *(c.model for c in report.candidates))
    ]
    terminal.print(terminal.style(printable(report.verdict(), one_line=True), BOLD, err=False))
    terminal.print()
    _print_facts(report.reference, f"{names[0]} (reference)", None, terminal)
    for candidate, name in zip(report.candidates, names[1:], strict=True):
        terminal.print()
        _print_facts(candidate.model, name, report.reference.facts.n_bytes, terminal)
        titles = ("", "same next token", "KL mean", "median", "99 %")
        rows = [titles]
        for what, d in (("texts", candidate.text), ("pictures", candidate.picture), ("all", candidate.overall)):
            if d is not None and (what != "all" or (candidate.text and candidate.picture)):
                top = f"{100 * d.top:.1f} % ({100 * d.top_low:.1f}-{100 * d.top_high:.1f})"
                rows.append((what, top, number(d.mean), number(d.median), number(d.p99)))
        widths = [max(columns(row[i]) for row in rows) for i in range(len(titles))]
        for row in rows:
            cells = [padded(row[0], widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            terminal.print("  " + "  ".join(cells))
        if candidate.text is not None and candidate.text.perplexity is not None:
            a, b = candidate.text.perplexity
            terminal.print(f"  perplexity of the texts {b:.5g}, reference {a:.5g}")
        if candidate.embedding is not None:
            terminal.print(f"  picture embeddings are off by {100 * candidate.embedding:.3g} %")
        if report.n_pictures:
            terminal.print(
                f"  {candidate.n_same_answers} of {plural(report.n_pictures, 'answer')} word for word the same"
            )
        if candidate.weights is not None and candidate.weights.tensors:
            terminal.print("  weights off most: " + _worst(candidate.weights.by_role()))
    terminal.print()
    places = report.candidates[0].overall.n
    left_out = f", {plural(report.n_left_out, 'prompt')} left out (--chunks)" if report.n_left_out else ""
    terminal.say(
        f"{report.prompts()}{left_out}, {plural(places, 'place')}; {report.seconds:.0f} s",
        DIM,
    )


def _print_facts(model: Any, title: str, reference_bytes: int | None, terminal: Terminal) -> None:
    share = f", {100 * model.facts.n_bytes / reference_bytes:.0f} % of the reference" if reference_bytes else ""
    terminal.print(terminal.style(title, BOLD, err=False))
    terminal.print(f"  {human_bytes(model.facts.n_bytes)}{share}, {model.facts.bits_per_weight:.2f} bits per weight")
    speeds = ((model.speed.prefill, "read"), (model.speed.decode, "written"))
    told = [
        f"{f'{speed:,.0f}' if speed >= 100 else f'{speed:.3g}'} tokens/s {what}"
        for speed, what in speeds
        if speed is not None
    ]
    if told:
        terminal.print(f"  {', '.join(told)}")


def _worst(by_role: dict[str, float], room: int = 50) -> str:
    """The roles with the largest errors, as many as fit."""
    found = ""
    for name, error in by_role.items():
        longer = (
            f"{found}{', ' if found else ''}{printable(name, one_line=True).removeprefix('blk.*.')} {100 * error:.2g} %"
        )
        if error == 0 or (found and len(longer) > room):
            break
        found = longer
    return found or "none"


def number(x: float) -> str:
    """A divergence: three digits, and an exponent where there would be only zeros."""
    return "0" if x == 0 else f"{x:.3g}" if x < 1e-3 else f"{x:.4f}" if x < 1 else f"{x:.3f}"
