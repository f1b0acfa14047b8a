"""`kimi-vl pull REPO[:TYPE]`: a model from the Hugging Face hub, and -m hf:REPO[:TYPE] of every other command."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import errors
from ..wording import human_bytes, printable
from . import exits, fit, options
from .progress import Progress
from .terminal import Terminal

PREFIX = "hf:"
SUMMARY = "Download a model from the Hugging Face hub."


def command(
    repository: Annotated[
        str,
        typer.Argument(metavar="REPO[:TYPE]", help="As ggml-org/Kimi-VL-A3B-Thinking-2506-GGUF:Q4_K_M."),
    ],
) -> options.Job:
    """Download a model and its vision file into the cache that it shares with other tools; print where the model is.

    Without TYPE, the one that suits this machine (see kimi-vl fit). The same command resumes a download that broke.

    kimi-vl pull ggml-org/Kimi-VL-A3B-Thinking-2506-GGUF:Q4_K_M
    """

    def job(terminal: Terminal) -> int:
        from ..files.hub import Hub, parse

        wanted = parse(repository)
        show = _Show(terminal)
        try:
            with exits.sigterm_raises():
                path = Hub().pull(wanted, fit.choose, show)
        finally:
            show.clear()
        terminal.print(printable(str(path), one_line=True))
        terminal.note(f"{human_bytes(path.stat().st_size)}; use it with -m hf:{wanted}")
        return errors.EXIT_OK

    return job


def local_path(value: str) -> str:
    """The file behind hf:REPO[:TYPE], downloaded when the cache does not have it."""
    from ..files.hub import Hub, parse

    show = _Show(Terminal())
    try:
        return str(Hub().local_path(parse(value), fit.choose, show))
    finally:
        show.clear()


class _Show:
    """The line of progress for files and bytes."""

    def __init__(self, terminal: Terminal) -> None:
        self._line = Progress(terminal)

    def __call__(self, name: str, done: int, total: int) -> None:
        self._line.show(f"{name.rpartition('/')[2]}  {human_bytes(done)} of {human_bytes(total)}")

    def clear(self) -> None:
        self._line.clear()
