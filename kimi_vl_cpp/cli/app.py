"""The commands put together.

Each command declares its own options in a typer function that only returns a job; the job runs outside of typer, so
that errors, Ctrl-C and exit codes are decided here and in failures.py. What loads a model is imported when a job
starts: --help stays quick.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any

import typer

from .. import errors
from ..checks import expand_home
from ..version import __version__
from . import (
    agent,
    batch,
    cache,
    compare,
    doctor,
    evaluate,
    failures,
    fit,
    imatrix,
    options,
    point,
    pull,
    quantize,
    read,
    run,
    scenes,
    serve,
)
from .bench import command as bench
from .chat import command as chat
from .inspect import command as inspect
from .options import Job
from .terminal import Terminal

_PATH_METAVAR = re.compile(r"\b(?:FILE|FOLDER|SRC|DST|OUT|REFERENCE)\b")

app = typer.Typer(
    name="kimi-vl",
    help="Ask Kimi-VL about pictures, on this computer.",
    add_completion=False,
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")] = False,
) -> Job | None:
    if version:
        print(f"kimi-vl {__version__}")
        raise typer.Exit(errors.EXIT_OK)
    options.help_without_command(context)
    return None


for _name, _command, _summary in (
    ("run", run.command, None),
    ("chat", chat.command, None),
    ("read", read.command, read.SUMMARY),
    ("point", point.command, point.SUMMARY),
    ("scenes", scenes.command, scenes.SUMMARY),
    ("agent", agent.command, agent.SUMMARY),
    ("serve", serve.command, serve.SUMMARY),
    ("batch", batch.command, batch.SUMMARY),
    ("pull", pull.command, pull.SUMMARY),
    ("fit", fit.command, fit.SUMMARY),
    ("inspect", inspect.command, inspect.SUMMARY),
    ("bench", bench.command, bench.SUMMARY),
    ("doctor", doctor.command, doctor.SUMMARY),
    ("eval", evaluate.command, evaluate.SUMMARY),
    ("quantize", quantize.command, quantize.SUMMARY),
    ("imatrix", imatrix.command, imatrix.SUMMARY),
    ("compare", compare.command, compare.SUMMARY),
):
    app.command(_name, short_help=_summary)(_command)
app.add_typer(cache.app, name="cache", short_help=cache.SUMMARY)


def main(argv: list[str]) -> int:
    """Parses and runs; prints every error; returns the exit code. Lets only BrokenPipeError out."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # an odd locale must not turn an answer into a UnicodeEncodeError
            stream.reconfigure(errors="replace")
    terminal = Terminal()
    try:
        command = failures.naming_values(expanding_home(typer.main.get_command(app)))
        outcome = command.main(args=argv, prog_name="kimi-vl", standalone_mode=False)
        return outcome(terminal) if callable(outcome) else outcome if isinstance(outcome, int) else errors.EXIT_OK
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return errors.EXIT_CANCELLED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else errors.EXIT_FAILED
    except Exception as failure:
        return failures.report(failure, terminal)


def expanding_home(command: Any) -> Any:
    """`command` with every path option and argument (those whose metavar names a path) read with ~ expanded: a shell
    leaves the one in --model=~/x as it is. A model of the hub (hf:REPO) becomes the path of its file."""
    for parameter in command.params:
        if _PATH_METAVAR.search(parameter.metavar or ""):
            parameter.callback = _expand_value
    for child in getattr(command, "commands", {}).values():
        expanding_home(child)
    return command


def _expand_value(context: Any, parameter: Any, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(expand_home(item) for item in value)
    if parameter.name == "model" and isinstance(value, str) and value.startswith(pull.PREFIX):
        return pull.local_path(value)
    return expand_home(value) if isinstance(value, str) else value
