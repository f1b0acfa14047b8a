"""`kimi-vl cache`: what a cache folder holds, whether it is sound, and emptying it."""

from __future__ import annotations

import json as json_module
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from ..wording import human_bytes, plural, printable
from . import exits, options
from .terminal import YELLOW, Terminal

if TYPE_CHECKING:
    from ..cache.folder import Entry

SUMMARY = "What a cache folder holds: info, list, verify, clear."

Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="The folder that --cache-dir names.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(help=SUMMARY, add_completion=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _group(context: typer.Context) -> None:
    options.help_without_command(context)


@app.command()
def info(folder: Folder, json: Json = False) -> options.Job:
    """How much the folder holds, for each model."""

    def job(terminal: Terminal) -> int:
        found = _entries(folder)
        models = {
            model: {"files": n, "bytes": sum(entry.n_bytes for entry in found if entry.model == model)}
            for model, n in sorted(Counter(entry.model for entry in found).items())
        }
        n_bytes = sum(entry.n_bytes for entry in found)
        if json:
            result = {"folder": folder, "files": len(found), "bytes": n_bytes, "models": models}
            terminal.out.write(json_module.dumps(result) + "\n")
            return errors.EXIT_OK
        terminal.out.write(f"{plural(len(found), 'file')}, {human_bytes(n_bytes)}\n")
        for model, one in models.items():
            terminal.out.write(f"model {model}: {plural(one['files'], 'file')}, {human_bytes(one['bytes'])}\n")
        return errors.EXIT_OK

    return job


@app.command("list")
def list_files(folder: Folder, json: Json = False) -> options.Job:
    """Every file, the one used last at the top."""

    def job(terminal: Terminal) -> int:
        for entry in sorted(_entries(folder), key=lambda entry: entry.used_s, reverse=True):
            kind = {".kv": "page", ".tail": "end", ".pic": "picture"}[entry.path.suffix]
            used = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(entry.used_s))
            if json:
                row = {"file": str(entry.path), "kind": kind, "model": entry.model, "bytes": entry.n_bytes}
                terminal.out.write(json_module.dumps({**row, "used": used}) + "\n")
            else:
                size = human_bytes(entry.n_bytes)
                terminal.out.write(f"{used}  {entry.model}  {kind:7}  {size:>9}  {entry.path.stem}\n")
        return errors.EXIT_OK

    return job


@app.command(short_help="Read every file and name those that are damaged.")
def verify(folder: Folder) -> options.Job:
    """Read every file and name those that are damaged: they would be removed and computed again."""

    def job(terminal: Terminal) -> int:
        from ..cache import folder as files
        from ..cache.records import Damaged

        found, n_damaged = _entries(folder), 0
        for entry in found:
            try:
                files.verify(entry)
            except (Damaged, OSError) as failure:
                n_damaged += 1
                terminal.out.write(f"{printable(str(entry.path), one_line=True)}: {failure}\n")
        terminal.out.write(f"{plural(len(found), 'file')} read, {n_damaged} damaged\n")
        return errors.EXIT_FAILED if n_damaged else errors.EXIT_OK

    return job


@app.command()
def clear(folder: Folder) -> options.Job:
    """Remove every file of the cache; other files in the folder stay."""

    def job(terminal: Terminal) -> int:
        from ..cache import folder as files

        _entries(folder)
        terminal.out.write(f"{human_bytes(files.clear(Path(folder)))} removed\n")
        return errors.EXIT_OK

    return job


def state(folder: str) -> dict[str, Any]:
    """What a folder holds, and why it cannot serve as a cache: problem, "" for nothing."""
    from ..cache.disk import why_not_written
    from ..cache.folder import entries

    path = Path(folder).expanduser()
    found = entries(path)
    n_bytes = sum(entry.n_bytes for entry in found)
    return {"folder": str(path), "files": len(found), "bytes": n_bytes, "problem": why_not_written(path)}


def write_state(found: dict[str, Any], row: Callable[[str, str], None], terminal: Terminal) -> None:
    """The same as rows of a table."""
    row("folder", printable(found["folder"], one_line=True))
    row("holds", f"{plural(found['files'], 'file')}, {human_bytes(found['bytes'])}")
    if found["problem"]:
        row("problem", terminal.style(printable(found["problem"], one_line=True), YELLOW, err=False))


def _entries(folder: str) -> list[Entry]:
    from ..cache.folder import entries

    if not Path(folder).is_dir():
        raise exits.UsageError(f"{folder}: there is no such folder")
    return entries(Path(folder))
