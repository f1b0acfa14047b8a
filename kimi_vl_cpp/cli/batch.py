"""The command line of `kimi-vl batch`. Imports only what is quick: it is read at every start."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .. import errors
from . import exits, opening, options
from .failures import needs_server
from .progress import Progress
from .terminal import Terminal

SUMMARY = "Answer a file of requests in OpenAI's batch format."


@partial(options.grouped, serves=True)
def command(
    *,
    source: Annotated[str, typer.Argument(metavar="FILE", help="The requests, one JSON object per line.")],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="The answers; requests that it already answers are skipped.")
    ],
    files: opening.Opening,
    concurrency: Annotated[int, typer.Option("--concurrency", metavar="N", help="Requests answered concurrently.")] = 8,
) -> options.Job:
    """Answer a file of requests; started again, it goes on where it was stopped.

    kimi-vl batch -m kimi.gguf requests.jsonl answers.jsonl
    """

    def job(terminal: Terminal) -> int:
        chosen = opening.choose_model(files)
        exits.check_readable(source, "file of requests", (), exits.UsageError, "")
        if not 1 <= concurrency <= 1024:
            raise exits.UsageError(f"--concurrency {concurrency}: expected 1 to 1024")
        with needs_server("batch"):
            from ..server.batch import run_batch
        with opening.introduced(chosen, Progress(terminal), terminal) as opened:
            counts = run_batch(opened, Path(source), Path(target), concurrency=concurrency)
        terminal.say(f"{counts.answered} answered, {counts.refused} refused, {counts.before} were there before")
        return errors.EXIT_OK

    return job
