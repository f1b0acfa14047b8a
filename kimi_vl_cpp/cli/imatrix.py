"""`kimi-vl imatrix -m MODEL --data FOLDER OUT`: what each column of the weights is worth, from a run over texts and
pictures.

Owns the options, the progress line and the coverage table; the work is in the package `kimi_vl_cpp.quantize`. Imports
only what is quick: it is read at every start.
"""

from __future__ import annotations

import json as json_module
from typing import Annotated, Any

import typer

from .. import errors
from ..wording import human_bytes, human_count, plural, printable
from . import data_notes, exits, failures, options
from .progress import Bar
from .terminal import DIM, Terminal

SUMMARY = "Measure which weights matter, for quantize."


def command(
    out: Annotated[str | None, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)] = None,
    model: options.NamedModel = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FOLDER", help="Texts (.txt, .md) and pictures; NAME.txt asks about NAME.png."),
    ] = None,
    mmproj: options.Mmproj = None,
    ctx: Annotated[int, typer.Option("-c", "--ctx", metavar="N", help="Tokens of text in a prompt.")] = 512,
    answer: Annotated[
        int, typer.Option("--answer", metavar="N", help="Generate N tokens of answer to every prompt; 0: none.")
    ] = 32,
    chunks: Annotated[
        int | None, typer.Option("--chunks", metavar="N", help="At most N prompts, half of them pictures.")
    ] = None,
    few: Annotated[int, typer.Option("--few", metavar="N", help="Report experts that saw fewer than N tokens.")] = 64,
    in_token_limit: options.InTokenLimit = None,
    threads: options.Threads = None,
    show: Annotated[str | None, typer.Option("--show", metavar="FILE", help="Only print the table of a file.")] = None,
    force: options.Force = False,
    json: options.Json = False,
    isa: options.Isa = "auto",
) -> options.Job:
    """Measure which columns of the weights matter, for `kimi-vl quantize --imatrix`.

    kimi-vl imatrix -m kimi-F16.gguf --data folder kimi.imatrix.gguf
    """

    def job(terminal: Terminal) -> int:
        if show is not None:
            if out is not None or data is not None or model is not None:
                raise exits.UsageError("--show prints what a file holds and takes nothing else")
            return run_show(show, few, json, terminal)
        chosen = {
            "mmproj": mmproj,
            "ctx": ctx,
            "answer": answer,
            "chunks": chunks,
            "few_tokens": few,
            "in_token_limit": in_token_limit,
            "n_threads": threads,
            "isa": isa,
            "force": force,
        }
        return run(model, data, out, chosen, json, terminal)

    return job


def run(
    model: str | None, data: str | None, out: str | None, chosen: dict[str, Any], as_json: bool, terminal: Terminal
) -> int:
    """Does it; prints the table or the report as JSON on standard output, the rest on standard error.

    Raises KimiVLError, KeyboardInterrupt."""
    from . import opening

    path = opening.check_model(opening.Opening(model=model, mmproj=chosen["mmproj"]))
    if data is None or "\0" in data:
        raise exits.UsageError("no data: name a folder with texts and pictures with --data")
    if out is None or not out or "\0" in out:
        raise exits.UsageError("no output: name the file to write, for example kimi.imatrix.gguf")
    with failures.needs_quantize("imatrix"):
        from kimi_vl_cpp.quantize import make_imatrix
    bar = Bar(terminal, {"imatrix": "importance"}, {"imatrix_data"})
    named = printable(out, one_line=True)
    with bar.until_stopped(lambda: f"stopped{bar.how_far('imatrix')}: nothing was written to {named}"):
        report = make_imatrix(path, data, out, progress=bar, **chosen)
    data_notes.show(report, terminal)
    if as_json:
        terminal.print(json_module.dumps(report.to_dict(), indent=2))
        return errors.EXIT_OK
    print_coverage(report.coverage, terminal)
    text, picture, answer = report.tokens
    left_out = f", {plural(report.n_left_out, 'more prompt')} left out (--chunks)" if report.n_left_out else ""
    terminal.say(
        f"{plural(report.n_texts, 'text prompt')} and {plural(report.n_pictures, 'picture')}{left_out}: "
        f"{human_count(text)} tokens of text, {human_count(picture)} of pictures, "
        f"{human_count(answer)} of answers; {report.seconds:.0f} s",
        DIM,
    )
    terminal.say(f"{printable(out, one_line=True)}  {report.n_tensors} tensors, {human_bytes(report.n_bytes)}", DIM)
    return errors.EXIT_OK


def run_show(path: str, few: int, as_json: bool, terminal: Terminal) -> int:
    """Prints what a file says. Raises KimiVLError."""
    exits.check_readable(path, "importance matrix", (), errors.BadModelFile, "imatrix.missing")
    if few < 1:
        raise exits.UsageError(f"--few: got {few}, expected at least 1")
    with failures.needs_quantize("imatrix"):
        from kimi_vl_cpp.quantize.importance.coverage import Coverage
        from kimi_vl_cpp.quantize.importance.file import read_imatrix
    imatrix = read_imatrix(path)
    coverage = Coverage.of(imatrix, few)
    tokens = None if imatrix.tokens is None else dict(zip(("text", "picture", "answer"), imatrix.tokens, strict=True))
    if as_json:
        values = {
            "path": path,
            "model": imatrix.model,
            "datasets": list(imatrix.datasets),
            "n_prompts": imatrix.n_prompts,
            "tokens": tokens,
            "n_tensors": len(imatrix.sums),
            "coverage": coverage.to_dict(),
        }
        terminal.print(json_module.dumps(values, indent=2))
        return errors.EXIT_OK
    print_coverage(coverage, terminal)
    made = [f"{plural(imatrix.n_prompts, 'prompt')} of {', '.join(imatrix.datasets) or 'unknown data'}"]
    made += [f"model {imatrix.model}"] if imatrix.model else []
    made += [f"{human_count(n)} tokens of {kind}" for kind, n in (tokens or {}).items()]
    terminal.say(f"{len(imatrix.sums)} tensors; {'; '.join(printable(one, one_line=True) for one in made)}", DIM)
    return errors.EXIT_OK


def print_coverage(coverage: Any, terminal: Terminal) -> None:
    """The table on standard output, and below it what it means."""
    if coverage.layers:
        few = f"< {coverage.few_tokens}"
        titles = ("layer", "least", "median", "most", few, "never", f"{few} by text alone")
        terminal.print("tokens that the experts of a layer saw, and how many experts saw few")
        body = [
            (
                str(layer.layer),
                human_count(layer.least),
                human_count(layer.median),
                human_count(layer.most),
                str(layer.n_few or "-"),
                str(layer.n_unseen or "-"),
                "?" if layer.n_few_by_text is None else str(layer.n_few_by_text or "-"),
            )
            for layer in coverage.layers
        ]
        widths = [max(len(row[i]) for row in (titles, *body)) for i in range(len(titles))]
        for row in (titles, *body):
            terminal.print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
        terminal.print()
    for sentence in coverage.sentences():
        terminal.print(sentence)
