"""`kimi-vl quantize SRC DST -q TYPE`: weights made from a checkpoint folder or a GGUF file.

Owns the options, the progress line and the summary; the work is in the package `kimi_vl_cpp.quantize`. Imports only
what is quick: it is read at every start.
"""

from __future__ import annotations

import json as json_module
import os
from typing import Annotated, Any

import typer

from .. import errors
from ..wording import human_bytes, plural, printable
from . import adapters, exits, failures, options
from .progress import Bar
from .terminal import DIM, YELLOW, Terminal

TYPES = "F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q4_K_M Q4_K_S IQ4_XS IQ4_NL Q3_K_M Q3_K_S Q2_K"
DEFAULT = "Q4_K_M"
_STAGES = {"measure": "measuring", "quantize": "quantizing"}

SUMMARY = "Convert and quantize a model."


def command(
    src: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint folder, or a GGUF file.", show_default=False)],
    dst: Annotated[str, typer.Argument(metavar="DST", help="The GGUF file to write.", show_default=False)],
    quantization: Annotated[
        str | None,
        typer.Option(
            "-q",
            "--quantization",
            metavar="TYPE",
            help=f"{TYPES}, or a recipe of docs/quantize.md. Default: {DEFAULT}.",
        ),
    ] = None,
    vision: Annotated[
        str | None,
        typer.Option("--vision", metavar="TYPE", help="Type of the vision tensors: F16, BF16, Q8_0, … Default: F16."),
    ] = None,
    split: Annotated[
        bool, typer.Option("--split", help="Two files, DST and mmproj-DST, as llama.cpp reads them.")
    ] = False,
    rules: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="PATTERN=TYPE", help="Another type for some tensors: 'blk.*.attn_q=Q8_0'."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="FILE", help="A recipe of your own (TOML), in place of -q.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="SIZE", help="The best types for a file of at most 8.0GB, by measured error."),
    ] = None,
    imatrix: Annotated[
        str | None,
        typer.Option("--imatrix", metavar="FILE", help="What each column weighs, from `kimi-vl imatrix`."),
    ] = None,
    mmproj: Annotated[
        str | None,
        typer.Option("--mmproj", metavar="FILE", help="The vision file of a GGUF SRC. Default: the one beside it."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="TEXT", help="What the model calls itself.")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="DIR[=SCALE]",
            help="Merge a LoRA adapter (PEFT's folder, or GGUF), scaled by SCALE. Repeatable.",
        ),
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Accept a SRC that is already quantized; its losses remain.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    force: options.Force = False,
    threads: options.Threads = None,
    json: options.Json = False,
) -> options.Job:
    """Convert and quantize a Kimi-VL model.

    kimi-vl quantize ./Kimi-VL-A3B-Instruct kimi-Q4_K_M.gguf -q Q4_K_M
    """

    def job(terminal: Terminal) -> int:
        if quantization is not None and recipe is not None:
            raise exits.UsageError(
                "-q and --recipe: give one of them",
                'A recipe names the type that it starts from itself: base = "Q4_K_M"',
            )
        if size is not None and (quantization is not None or recipe is not None):
            raise exits.UsageError("--size chooses the types itself: leave out -q and --recipe; --type holds some fast")
        chosen: dict[str, Any] = {
            "vision": vision,
            "split": split,
            "types": [_rule(rule) for rule in rules or ()],
            "recipe": recipe,
            "size": size,
            "imatrix": imatrix,
            "mmproj": mmproj,
            "name": name,
            "lora": [adapters.scaled_path(one) for one in lora or ()],
            "allow_requantize": allow_requantize,
            "resume": resume,
            "force": force,
            "n_threads": threads or 0,
        }
        return run(src, dst, quantization or DEFAULT, chosen, json, terminal)

    return job


def _rule(text: str) -> tuple[str, str]:
    pattern, equals, kind = text.rpartition("=")
    if not equals or not pattern or not kind:
        raise exits.UsageError(
            f"--type {printable(text)}: expected PATTERN=TYPE", "For example: --type 'blk.*.ffn_down_exps=Q8_0'"
        )
    return pattern, kind


def run(src: str, dst: str, kind: str, chosen: dict[str, Any], as_json: bool, terminal: Terminal) -> int:
    """Does it and prints what was done: a summary or the report as JSON on standard output, progress, warnings and
    notes on standard error. Raises KimiVLError, KeyboardInterrupt."""
    with failures.needs_quantize("quantize"):
        from kimi_vl_cpp.quantize import quantize
    if "\0" in src or not os.path.lexists(src):
        raise errors.BadModelFile(exits.describe_missing(src, "model"), "checkpoint.missing")
    bar = Bar(terminal, _STAGES)
    bar.announce("reading what the source holds")
    note = f"stopped: nothing was written to {printable(dst)}; the same command with --resume goes on"
    with bar.until_stopped(lambda: note), exits.sigterm_raises():
        report = quantize(src, dst, kind, progress=bar, **chosen)
    for warning in report.warnings:
        terminal.say(f"warning: {warning}", YELLOW)
    for notice in _shortened(report.notices):
        terminal.note(notice)
    if as_json:
        terminal.print(json_module.dumps(report.to_dict(), indent=2))
    else:
        _print_summary(report, terminal)
    return errors.EXIT_OK


def _shortened(notices: tuple[str, ...], most: int = 5) -> list[str]:
    more = [f"and {len(notices) - most} more like these; --json lists all"] if len(notices) > most else []
    return [*notices[:most], *more]


def _print_summary(report: Any, terminal: Terminal) -> None:
    for file in report.files:
        terminal.print(f"{printable(str(file.path), one_line=True)}  {human_bytes(file.n_bytes)}")
    vision = f", vision {report.vision}" if report.vision else ""
    terminal.say(
        f"{report.type}{vision}: {report.bits_per_weight:.2f} bits per weight, {report.seconds:.1f} s"
        + (f", {plural(report.n_resumed, 'tensor')} taken over" if report.n_resumed else ""),
        DIM,
    )
    if report.reason:
        terminal.say(f"  {report.reason}", DIM)
    for kind, (n, n_bytes) in report.by_type().items():
        terminal.say(f"  {kind:<6}  {plural(n, 'tensor'):>11}  {human_bytes(n_bytes):>9}", DIM)
