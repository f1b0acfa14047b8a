"""The command line of `kimi-vl chat`. Imports only what is quick: it is read at every start."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from .. import opening, options, videos
from ..terminal import Terminal


@partial(options.grouped, conversation=True)
def command(
    *,
    files: opening.Opening,
    image: Annotated[
        list[str] | None,
        typer.Option("-i", "--image", metavar="FILE", help="A picture, PDF document or video for the first message."),
    ] = None,
    video: videos.Videos = None,
    frames: videos.FrameOptions,
    load: Annotated[str | None, typer.Option("--load", metavar="FILE", help="Continue a saved conversation.")] = None,
    timings: Annotated[bool, typer.Option("--timings", help="Print a line of timings after every answer.")] = False,
    sampling: opening.Sampling,
    system: options.System = None,
    thinking: options.Thinking = None,
) -> options.Job:
    """Talk about pictures and text. Inside, /help lists the commands."""

    def job(terminal: Terminal) -> int:
        from . import loop

        return loop.run(
            loop.Options(
                files=files,
                sampling=sampling,
                images=tuple(image or ()),
                films=tuple(video or ()),
                frames=frames,
                load=load,
                system=system,
                timings=timings,
                thinking=options.thinking_mode(thinking),
            ),
            terminal,
        )

    return job
