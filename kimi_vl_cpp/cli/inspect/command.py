"""The command line of `kimi-vl inspect`. Imports only what is quick: it is read at every start."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import adapters, options
from ..terminal import Terminal

SUMMARY = "Show what a GGUF file or an adapter is and whether it works."


def command(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="A GGUF file: a model, a vision file, or any other; or a LoRA adapter. Default: the built-in model.",
            show_default=False,
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="DIR[=SCALE]",
            help="Judge a LoRA adapter beside the model. Repeatable.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Decode every tensor and look for NaN and infinity.")] = False,
) -> options.Job:
    """Show what a GGUF file or an adapter is, and what would not work with it and why."""

    def job(terminal: Terminal) -> int:
        from . import report

        return report.run(report.Options(file, json, tensors, check, tuple(adapters.always(lora) or ())), terminal)

    return job
