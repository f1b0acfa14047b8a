"""How a failed command reports itself: the message, what it means on this command line, the exit code.

The only place that knows both the parameters of the library, which its messages name, and the options of the commands.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from .. import errors
from ..wording import printable
from . import exits
from .terminal import DIM, Terminal

# The name of a parameter in messages -> the option that sets it.
OPTION_OF = {
    "n_ctx": "-c",
    "n_threads": "-t",
    "device": "--device",
    "max_new_tokens": "-n",
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "repeat_penalty": "--repeat-penalty",
    "in_token_limit": "--in-token-limit",
    "kv_type": "--kv-type",
    "image_patches": "--image-patches",
}


def report(failure: Exception, terminal: Terminal) -> int:
    """Prints what went wrong, for the user, and returns the exit code. KIMI_VL_LOG=debug adds the traceback."""
    if os.environ.get("KIMI_VL_LOG") == "debug":
        traceback.print_exception(failure, file=terminal.err)
    if isinstance(failure, (exits.UsageError, exits.NoModel)):
        terminal.error(str(failure), "" if isinstance(failure, exits.UsageError) else failure.code)
        if failure.hint:
            terminal.say(failure.hint)
    elif isinstance(failure, errors.KimiVLError):
        terminal.error(str(failure), getattr(failure, "code", ""))
        explain_names(str(failure), terminal)
        if failure.code == "image.format":
            terminal.say("(PDF documents and videos are known by how they begin: this file begins like neither)", DIM)
    elif hasattr(failure, "format_message"):  # typer's own: an unknown option, a missing value
        _report_parse_error(failure, terminal)
        return errors.EXIT_USAGE
    elif isinstance(failure, MemoryError):
        terminal.error(
            "out of memory: use a smaller context (-c), a smaller picture (--in-token-limit) or a smaller quantization"
        )
    elif isinstance(failure, OSError):
        terminal.error(exits.describe_os_error(failure))
    else:
        terminal.error(f"unexpected {type(failure).__name__}: {failure}", "internal")
        terminal.say(
            "This is a fault of kimi-vl, not yours. Run it again with KIMI_VL_LOG=debug in the environment to see\n"
            "where it happened, and report that together with the output of `kimi-vl doctor`.",
            DIM,
        )
    return errors.exit_code(failure)


def explain_names(message: str, terminal: Terminal) -> None:
    """Messages of the library call its parameters by their Python names: says which options they are here."""
    words = set(re.findall(r"[a-z_]+", message))
    meant = [
        f"{name} is the option {option}"
        for name, option in OPTION_OF.items()
        if name in words and option != f"--{name.replace('_', '-')}"  # which says itself
    ]
    if meant:
        terminal.say(f"({'; '.join(meant)})", DIM)


def naming_values(command: Any) -> Any:
    """`command` with every option that takes a number saying what it was given instead of one."""
    for parameter in command.params:
        parameter.process_value = partial(_process_value, parameter.process_value, parameter)
    for child in getattr(command, "commands", {}).values():
        naming_values(child)
    return command


def _process_value(process: Callable[..., Any], parameter: Any, context: Any, value: Any) -> Any:
    try:
        return process(context, value)
    except Exception as failure:  # typer's own; which class that is depends on its version
        message = str(failure.format_message()) if hasattr(failure, "format_message") else ""
        expected = "a whole number" if "integer" in message else "a number" if "number" in message else ""
        if value is None or not expected:
            raise
        name = min(parameter.opts, key=len) if parameter.opts else parameter.metavar
        shown = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        hint = f"`{context.command_path} --help` lists the options."
        raise exits.UsageError(f"{name} {printable(str(shown), one_line=True)}: expected {expected}", hint) from None


def _report_parse_error(failure: Any, terminal: Terminal) -> None:
    context = getattr(failure, "ctx", None)
    terminal.error(printable(str(failure.format_message()).rstrip(".")))
    if context is not None:
        terminal.say(f"`{context.command_path} --help` lists the options.")


_SERVER_LIBRARIES = frozenset("starlette uvicorn msgspec prometheus_client anyio markdown_it mdit_py_plugins".split())


@contextmanager
def needs_server(command: str) -> Iterator[None]:
    """Around the imports of `kimi_vl_cpp.server` by a command. Raises Unsupported where its extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in _SERVER_LIBRARIES:
            raise
        raise errors.Unsupported(
            f"kimi-vl {command} needs {missing.name}, which is not installed: pip install 'kimi-vl-cpp[server]'",
            "serve.not_installed",
        ) from None


@contextmanager
def needs_quantize(command: str) -> Iterator[None]:
    """Around the imports of `kimi_vl_cpp.quantize` by a command. Raises Unsupported where it is not installed."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name != "kimi_vl_cpp.quantize":
            raise
        raise errors.Unsupported(
            f"kimi-vl {command} is not in this installation: it runs from the installed package, not from its source "
            "folder; run `pip install .` in it",
            "quantize.not_installed",
        ) from None
