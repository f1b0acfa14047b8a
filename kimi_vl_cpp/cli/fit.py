"""`kimi-vl fit [MODEL]`: which type of weights suits this machine, how much context, and how fast it will answer."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import errors
from ..wording import human_bytes, human_count, printable
from . import adapters, exits, failures, opening, options
from .terminal import BOLD, DIM, Terminal

if TYPE_CHECKING:
    from ..files.hub import Choice

SUMMARY = "Show which file suits this machine."
_CONTEXT = 8192
_PROBE_S = 0.3


def command(
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="A GGUF file. Default: Kimi-VL-A3B.", show_default=False),
    ] = None,
    ctx: Annotated[
        int,
        typer.Option("-c", "--ctx", metavar="N", help="Context size, in tokens. Default: 8192.", show_default=False),
    ] = _CONTEXT,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Memory to plan for. Default: what is free here.")
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option("--bandwidth", metavar="GB/S", help="Memory bandwidth to plan for. Default: measured here."),
    ] = None,
    lora: options.Lora = None,
    json: options.Json = False,
) -> options.Job:
    """Show which type of weights suits this machine: size, memory, context and expected speed of each.

    kimi-vl fit -c 32768
    """

    def job(terminal: Terminal) -> int:
        return run(file, ctx, memory, bandwidth, adapters.always(lora), json, terminal)

    return job


def run(
    file: str | None,
    n_ctx: int,
    memory: str | None,
    bandwidth: float | None,
    lora: Sequence[adapters.Scaled] | None,
    as_json: bool,
    terminal: Terminal,
) -> int:
    """Prints the table, or JSON. Raises KimiVLError."""
    from ..adapters.card import read_cards

    with failures.needs_quantize("fit"):
        from kimi_vl_cpp.quantize import fit
    if n_ctx < 1:
        raise exits.UsageError(f"-c {n_ctx}: expected 1 token or more")
    if bandwidth is not None and not bandwidth > 0:
        raise exits.UsageError(f"--bandwidth {bandwidth:g}: expected GB/s above 0")
    available = _available() if memory is None else opening.read_size("--memory", memory)
    speed = _bandwidth() if bandwidth is None else bandwidth
    shape, types = fit.full_size(), None
    if file is not None:
        exits.check_readable(file, "model file", exits.MODEL_SUFFIXES, errors.BadModelFile, "model_file.missing")
        shape, types = fit.shape_of(Path(file))
    cards = read_cards(lora or (), shape.matrices, shape.projector)
    found = fit.fit(shape.with_adapters(cards), n_ctx, available, speed, types)
    if as_json:
        terminal.print(json_module.dumps(found.to_dict() | {"adapters": [one.to_dict() for one in cards]}, indent=2))
        return errors.EXIT_OK
    free = "unknown" if available is None else human_bytes(available)
    terminal.print(terminal.style(printable(found.model, one_line=True), BOLD, err=False))
    terminal.print(f"  memory {free}, bandwidth {speed:.1f} GB/s, context {human_count(n_ctx)} tokens")
    for card in cards:
        size = human_bytes(card.memory_bytes)
        terminal.print(f"  adapter {printable(str(card.path), one_line=True)}: {size}, twice that while it is loaded")
    terminal.print("")
    terminal.print(f"  {'type':<10} {'files':>9} {'memory':>9} {'context':>9}  tokens/s")
    for one in found.options:
        mark = " <-" if one is found.chosen else "" if one.fits else " does not fit"
        rate = "?" if one.tokens_per_s is None else f"{one.tokens_per_s:.1f}"
        room = human_count(one.n_ctx_max)
        sizes = f"{human_bytes(one.file_bytes):>9} {human_bytes(one.memory_bytes):>9}"
        terminal.print(f"  {one.type:<10} {sizes} {room:>9}  {rate:>8}{mark}")
    name = "" if found.chosen is None else f"{found.chosen.type}: "
    terminal.print(f"\n  {name}{found.reason}.")
    terminal.say(
        "files: text and vision (F16). memory: with adapters, that context and one picture of the largest size. "
        "context: the most that fits. tokens/s: of an answer, by the bandwidth.",
        DIM,
    )
    return errors.EXIT_OK


def choose(found: list[Choice]) -> Choice:
    """Of the models in a repository the one that suits this machine, as `fit` would."""
    with failures.needs_quantize("pull"):
        from kimi_vl_cpp.quantize import fit
    shape = fit.full_size()
    by_type: dict[str, Choice] = {}
    for choice in reversed(found):
        by_type.setdefault(choice.type, choice)
    kinds = [kind for kind in fit.TYPES if kind in by_type]
    if not kinds:
        return found[0]
    result = fit.fit(shape, _CONTEXT, _available(), _bandwidth(), kinds=kinds)
    return by_type[kinds[-1] if result.chosen is None else result.chosen.type]


def _available() -> int | None:
    from ..machine.memory import free_bytes

    return free_bytes()


def _bandwidth() -> float:
    from .. import _core

    return float(_core.bench.read_bandwidth(0, _PROBE_S))
