"""The command line of `kimi-vl bench`. Imports only what is quick: it is read at every start."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import adapters, options
from ..terminal import Terminal

SUMMARY = "Measure the speed of a model on this computer."


def command(
    model: options.NamedModel = None,
    mmproj: options.Mmproj = None,
    lora: options.Lora = None,
    prompts: Annotated[
        str | None, typer.Option("-p", "--prompt", metavar="N,N", help="Time prompts of N tokens. Default: 512.")
    ] = None,
    decode: Annotated[
        str | None, typer.Option("-n", "--decode", metavar="N,N", help="Time N tokens one by one. Default: 64.")
    ] = None,
    depths: Annotated[
        str, typer.Option("-d", "--depth", metavar="N,N", help="Run both tests after N tokens of context.")
    ] = "0",
    parallel: Annotated[
        str,
        typer.Option("--parallel", metavar="N,N", help="Decode N answers together and time the tokens of all."),
    ] = "1",
    warm: Annotated[
        bool, typer.Option("--warm", help="Time prompts that are held in memory too: seconds to the first token.")
    ] = False,
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="SIZES", help="Time pictures: 448,1344x1008 (width x height in pixels)."),
    ] = None,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", metavar="N", help="Repetitions of each test.")] = 5,
    threads: options.Threads = None,
    ctx: Annotated[
        int | None,
        typer.Option("-c", "--ctx", metavar="N", help="Context size, in tokens. Default: what each test needs."),
    ] = None,
    kv_type: options.KvType = "auto",
    output: Annotated[str, typer.Option("-o", "--output", metavar="FORMAT", help="md, csv, json or jsonl.")] = "md",
    plot: Annotated[str | None, typer.Option("--plot", metavar="FILE.png", help="Plot the figures too.")] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="FILE", help="Show the change since a report of -o json.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="COMMAND", help="Run another program's benchmark in turns, show the ratio."),
    ] = None,
    against_regex: Annotated[
        str | None,
        typer.Option("--against-regex", metavar="REGEX", help="Where its figures are: (?P<test>…), (?P<value>…)."),
    ] = None,
    isa: options.Isa = "auto",
    probe_seconds: Annotated[float, typer.Option("--probe-seconds", hidden=True)] = 0.2,
) -> options.Job:
    """Measure how fast a model is on this computer, and how fast it could be.

    kimi-vl bench -m kimi.gguf -p 512,2048 -n 64 -d 0,4096 --image 448,896

    kimi-vl bench -m kimi.gguf -n 64 --parallel 1,2,4,8
    """

    def job(terminal: Terminal) -> int:
        from .. import opening
        from . import run

        chosen = run.Options(
            files=opening.Opening(
                model=model,
                mmproj=mmproj,
                n_ctx=ctx,
                n_threads=threads,
                isa=isa,
                kv_type=kv_type,
                lora=adapters.always(lora),
            ),
            prompts=prompts,
            decode=decode,
            depths=depths,
            parallel=parallel,
            warm=warm,
            images=image,
            repetitions=repetitions,
            output=output,
            plot=plot,
            compare=compare,
            against=against,
            against_regex=against_regex,
            probe_seconds=probe_seconds,
        )
        return run.run(chosen, terminal)

    return job
