"""The command line of `kimi-vl chat`. Imports only what is quick: it is read at every start."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import options
from ..terminal import Terminal


def command(
    model: options.Model = None,
    image: Annotated[
        list[str] | None,
        typer.Option("-i", "--image", metavar="FILE", help="A picture or a PDF document for the first message."),
    ] = None,
    mmproj: options.Mmproj = None,
    load: Annotated[str | None, typer.Option("--load", metavar="FILE", help="Continue a saved conversation.")] = None,
    timings: Annotated[bool, typer.Option("--timings", help="Print a line of timings after every answer.")] = False,
    max_tokens: options.MaxTokens = None,
    temp: options.Temp = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    system: options.System = None,
    thinking: options.Thinking = None,
    ctx: options.Context = None,
    kv_memory: options.KvMemory = None,
    cache_dir: options.CacheDir = None,
    cache_disk: options.CacheDisk = None,
    no_speculate: options.NoSpeculate = False,
    overflow: options.Overflow = "error",
    threads: options.Threads = None,
    in_token_limit: options.InTokenLimit = None,
    kv_type: options.KvType = "auto",
    isa: options.Isa = "auto",
) -> options.Job:
    """Talk about pictures and text. Inside, /help lists the commands."""

    def job(terminal: Terminal) -> int:
        from .. import opening
        from . import loop

        return loop.run(
            loop.Options(
                files=opening.Opening(
                    model=model,
                    mmproj=mmproj,
                    n_ctx=ctx,
                    n_threads=threads,
                    in_token_limit=in_token_limit,
                    isa=isa,
                    kv_type=kv_type,
                    caching=opening.caching(kv_memory, cache_dir, cache_disk, no_speculate, overflow),
                ),
                sampling=opening.sampling(max_tokens, temp, top_k, top_p, min_p, repeat_penalty, seed, stop),
                images=tuple(image or ()),
                load=load,
                system=system,
                timings=timings,
                thinking=options.thinking_mode(thinking),
            ),
            terminal,
        )

    return job
