"""`kimi-vl point`: where something is in a picture, in pixels of the upright source."""

from __future__ import annotations

import json as json_module
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from ..wording import printable
from . import exits, opening, options
from .progress import Progress
from .terminal import Terminal

if TYPE_CHECKING:
    from ..grounding.ask import Box, Point

SUMMARY = "Point at something in a picture."


@options.grouped
def command(
    *,
    query: Annotated[list[str], typer.Argument(metavar="QUERY", help="What to point at, in quotes.")],
    image: Annotated[str, typer.Option("-i", "--image", metavar="FILE", help="The picture.")],
    files: opening.Opening,
    box: Annotated[bool, typer.Option("--box", help="A box around it (left top right bottom), not a point.")] = False,
    all_of_them: Annotated[bool, typer.Option("--all", help="All that the answer names, a line for each.")] = False,
    overlay: Annotated[
        str | None, typer.Option("--overlay", metavar="FILE", help="Write the picture with the place marked.")
    ] = None,
    mapping: Annotated[
        str,
        typer.Option(
            "--mapping",
            metavar="KIND",
            help="What coordinates are shares of: unpadded, the picture, or padded, with the margin that fills it up.",
        ),
    ] = "unpadded",
    units: Annotated[
        str | None,
        typer.Option("--units", metavar="KIND", help="For models that do not answer in shares: thousandths, pixels."),
    ] = None,
    json: options.Json = False,
    force: options.Force = False,
    max_tokens: options.MaxTokens = None,
) -> options.Job:
    """Print where something is in a picture, in pixels.

    kimi-vl point -m kimi.gguf -i screenshot.png "the search box"
    """

    def job(terminal: Terminal) -> int:
        asked: dict[str, Any] = {"mapping": mapping, "units": units}
        if max_tokens is not None:
            asked["max_new_tokens"] = max_tokens
        return run(files, image, " ".join(query), asked, terminal, box, all_of_them, overlay, json, force)

    return job


def run(
    files: opening.Opening,
    image: str,
    query: str,
    asked: dict[str, Any],
    terminal: Terminal,
    box: bool,
    all_of_them: bool,
    overlay: str | None,
    as_json: bool,
    force: bool,
) -> int:
    """Asks, prints a line for each place, and returns the exit code. Raises KimiVLError, OSError."""
    image = opening.resolve_picture(image)
    opening.check_picture(image)
    if overlay is not None:
        _check_overlay(overlay, image, force)
    files = opening.choose_model(files)
    progress = Progress(terminal)
    with opening.introduced(files, progress, terminal) as model:
        if model.variant == "demo":
            terminal.note("the demonstration model never learned to point")
        asked["progress"] = progress
        found: list[Point | Box]
        try:
            found = [*model.detect(image, query, **asked)] if box else [*model.point(image, query, None, **asked)]
        finally:
            progress.clear()
    found = found if all_of_them else found[:1]
    for notice in dict.fromkeys(notice for one in found for notice in one.notices):
        terminal.note(notice)
    if as_json:
        terminal.print(json_module.dumps([asdict(one) for one in found]))
    else:
        for one in found:
            terminal.print(_line(one))
    if overlay is not None:
        _write_overlay(overlay, image, found, query)
    return errors.EXIT_OK


def _line(one: Point | Box) -> str:
    from ..grounding.ask import Point

    if isinstance(one, Point):
        return f"{one.x} {one.y}"
    label = f" {printable(one.label, one_line=True)}" if one.label else ""
    return f"{one.x0} {one.y0} {one.x1} {one.y1}{label}"


def _check_overlay(path: str, image: str, force: bool) -> None:
    if os.path.splitext(path)[1].lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise exits.UsageError(f"--overlay {path}: expected a name that ends in .png, .jpg or .webp")
    if os.path.exists(path) and (not force or (os.path.exists(image) and os.path.samefile(path, image))):
        raise exits.UsageError(f"--overlay {path}: it exists: choose another name, or replace it with --force")


def _write_overlay(path: str, image: str, found: list[Point | Box], query: str) -> None:
    from ..grounding.overlay import draw
    from ..media.open import open_image

    draw(open_image(image).image, found, query).save(path)
