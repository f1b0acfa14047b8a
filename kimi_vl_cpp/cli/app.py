"""The commands and their options, and what happens when one fails.

A typer function only turns the command line into an options object and a job; the job runs outside of typer, so that
errors, Ctrl-C and exit codes are ours alone. The modules of the commands, and with them the model, are imported when a
job starts: --help stays quick.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .. import errors
from ..checks import expand_home
from ..version import __version__
from ..wording import printable
from . import compare, evaluate, exits, imatrix, quantize
from .terminal import DIM, Terminal

_PATH_METAVAR = re.compile(r"\b(?:FILE|FOLDER|SRC|DST|OUT|REFERENCE)\b")

Job = Callable[[Terminal], int]

app = typer.Typer(
    name="kimi-vl",
    help="Ask Kimi-VL about pictures, on this computer.",
    add_completion=False,
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Python names that messages use, where the option is spelled differently.
OPTION_OF = {
    "n_ctx": "-c",
    "n_threads": "-t",
    "max_new_tokens": "-n",
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "repeat_penalty": "--repeat-penalty",
    "in_token_limit": "--in-token-limit",
    "kv_type": "--kv-type",
}

Model = Annotated[
    str | None,
    typer.Option("-m", "--model", metavar="FILE", help="The model: a GGUF file. Default: the small built-in one."),
]
NamedModel = Annotated[str | None, typer.Option("-m", "--model", metavar="FILE", help="The model: a GGUF file.")]
Mmproj = Annotated[
    str | None,
    typer.Option("--mmproj", metavar="FILE", help="The vision file. Default: the mmproj*.gguf beside the model."),
]
Context = Annotated[
    int | None,
    typer.Option("-c", "--ctx", metavar="N", help="Room for the conversation, in tokens. Default: 8192."),
]
Threads = Annotated[
    int | None,
    typer.Option("-t", "--threads", metavar="N", help="Threads. Default: the CPUs that this process may use."),
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system message.")]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="The same seed gives the same answer. Default: a new one every time."),
]
MaxTokens = Annotated[
    int | None,
    typer.Option("-n", "--max-tokens", metavar="N", help="Longest answer, in tokens, reasoning included."),
]
Temp = Annotated[
    float | None,
    typer.Option("--temp", metavar="X", help="Temperature; 0 always takes the likeliest token. Default: the model's."),
]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="N", help="Only the N likeliest tokens; 0 is off.")]
TopP = Annotated[
    float | None, typer.Option("--top-p", metavar="X", help="Only the likeliest tokens up to probability X.")
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", metavar="X", help="Only tokens at least X times as likely as the likeliest; 0 is off."),
]
RepeatPenalty = Annotated[
    float | None,
    typer.Option("--repeat-penalty", metavar="X", help="Above 1: tokens used lately become less likely; 1 is off."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End the answer before this text. May be given several times."),
]
InTokenLimit = Annotated[
    int | None,
    typer.Option(
        "--in-token-limit",
        metavar="N",
        help="Scale pictures down to N patches of 14x14 pixels. Default: 4096, or 16384 for Thinking-2506.",
    ),
]
Thinking = Annotated[
    bool | None,
    typer.Option(
        "--show-thinking/--hide-thinking",
        help="Print the reasoning, or not. Default: dimmed on a terminal, left out of a pipe or file.",
        show_default=False,
    ),
]
KvType = Annotated[
    str,
    typer.Option(
        "--kv-type",
        metavar="TYPE",
        help="Numbers of the KV cache: f16, q8_0 (half the memory), f32. Default: f16.",
        show_default=False,
    ),
]
Isa = Annotated[str, typer.Option("--isa", hidden=True)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and leave.")] = False,
) -> Job | None:
    if version:
        print(f"kimi-vl {__version__}")
        raise typer.Exit(errors.EXIT_OK)
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(errors.EXIT_USAGE)
    return None


@app.command("run")
def _run(
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="The question, in quotes.", show_default=False)
    ] = None,
    model: Model = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "-i",
            "--image",
            metavar="FILE",
            help="A picture; '-' reads it from standard input. May be given several times.",
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("-f", "--file", metavar="FILE", help="Read the prompt from a file; '-' is standard input."),
    ] = None,
    mmproj: Mmproj = None,
    json: Json = False,
    timings: Annotated[bool, typer.Option("--timings", help="Print a line of timings on standard error.")] = False,
    max_tokens: MaxTokens = None,
    temp: Temp = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repeat_penalty: RepeatPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    system: System = None,
    thinking: Thinking = None,
    ctx: Context = None,
    threads: Threads = None,
    in_token_limit: InTokenLimit = None,
    kv_type: KvType = "auto",
    isa: Isa = "auto",
) -> Job:
    """Answer one question about pictures or text.

    kimi-vl run -m kimi.gguf -i photo.jpg "What does the sign say?"
    """

    def job(terminal: Terminal) -> int:
        from . import opening, run

        return run.run(
            run.Options(
                files=opening.Opening(model, mmproj, ctx, threads, in_token_limit, isa, kv_type),
                sampling=opening.sampling(max_tokens, temp, top_k, top_p, min_p, repeat_penalty, seed, stop),
                prompt=tuple(prompt or ()),
                images=tuple(image or ()),
                file=file,
                system=system,
                json=json,
                timings=timings,
                thinking=_thinking(thinking),
            ),
            terminal,
        )

    return job


@app.command("chat")
def _chat(
    model: Model = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "-i", "--image", metavar="FILE", help="A picture for the first message. May be given several times."
        ),
    ] = None,
    mmproj: Mmproj = None,
    load: Annotated[str | None, typer.Option("--load", metavar="FILE", help="Go on with a saved conversation.")] = None,
    timings: Annotated[bool, typer.Option("--timings", help="Print a line of timings after every answer.")] = False,
    max_tokens: MaxTokens = None,
    temp: Temp = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repeat_penalty: RepeatPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    system: System = None,
    thinking: Thinking = None,
    ctx: Context = None,
    threads: Threads = None,
    in_token_limit: InTokenLimit = None,
    kv_type: KvType = "auto",
    isa: Isa = "auto",
) -> Job:
    """Talk about pictures and text. /help inside tells the commands."""

    def job(terminal: Terminal) -> int:
        from . import opening
        from .chat import loop

        return loop.run(
            loop.Options(
                files=opening.Opening(model, mmproj, ctx, threads, in_token_limit, isa, kv_type),
                sampling=opening.sampling(max_tokens, temp, top_k, top_p, min_p, repeat_penalty, seed, stop),
                images=tuple(image or ()),
                load=load,
                system=system,
                timings=timings,
                thinking=_thinking(thinking),
            ),
            terminal,
        )

    return job


@app.command("inspect", short_help="Show what a GGUF file is and whether it works.")
def _inspect(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="A GGUF file: a model, a vision file, or any other. Default: the built-in model.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Decode every tensor and look for NaN and infinity.")] = False,
) -> Job:
    """Show what a GGUF file is, and what would not work with it and why."""

    def job(terminal: Terminal) -> int:
        from .inspect import report as inspect

        return inspect.run(inspect.Options(file, json, tensors, check), terminal)

    return job


@app.command("bench", short_help="Measure the speed of a model on this computer.")
def _bench(
    model: NamedModel = None,
    mmproj: Mmproj = None,
    prompts: Annotated[
        str | None, typer.Option("-p", "--prompt", metavar="N,N", help="Time prompts of N tokens. Default: 512.")
    ] = None,
    decode: Annotated[
        str | None, typer.Option("-n", "--decode", metavar="N,N", help="Time N tokens one by one. Default: 64.")
    ] = None,
    depths: Annotated[
        str, typer.Option("-d", "--depth", metavar="N,N", help="Both after N tokens that are there already.")
    ] = "0",
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="SIZES", help="Time pictures: 448,1344x1008 (width x height in pixels)."),
    ] = None,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", metavar="N", help="How often each.")] = 5,
    threads: Threads = None,
    ctx: Annotated[
        int | None,
        typer.Option("-c", "--ctx", metavar="N", help="Room of the cache, in tokens. Default: what each test needs."),
    ] = None,
    kv_type: KvType = "auto",
    output: Annotated[str, typer.Option("-o", "--output", metavar="FORMAT", help="md, csv, json or jsonl.")] = "md",
    plot: Annotated[str | None, typer.Option("--plot", metavar="FILE.png", help="Draw the figures too.")] = None,
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
    isa: Isa = "auto",
    probe_seconds: Annotated[float, typer.Option("--probe-seconds", hidden=True)] = 0.2,
) -> Job:
    """Measure how fast a model is on this computer, and how fast it could be.

    kimi-vl bench -m kimi.gguf -p 512,2048 -n 64 -d 0,4096 --image 448,896
    """

    def job(terminal: Terminal) -> int:
        from . import bench, opening

        options = bench.Options(
            files=opening.Opening(model, mmproj, ctx, threads, None, isa, kv_type),
            prompts=prompts,
            decode=decode,
            depths=depths,
            images=image,
            repetitions=repetitions,
            output=output,
            plot=plot,
            compare=compare,
            against=against,
            against_regex=against_regex,
            probe_seconds=probe_seconds,
        )
        return bench.run(options, terminal)

    return job


@app.command("doctor", short_help="Check this computer.")
def _doctor(json: Json = False) -> Job:
    """Check this computer: processor, memory, and a self-test on a small model made on the spot."""

    def job(terminal: Terminal) -> int:
        from . import doctor

        return doctor.run(doctor.Options(json), terminal)

    return job


app.command("eval", short_help="Measure what a model gets right.")(evaluate.command)
app.command("quantize", short_help="Convert and quantize a model.")(quantize.command)
app.command("imatrix", short_help="Measure which weights matter, for quantize.")(imatrix.command)
app.command("compare", short_help="Measure what quantization cost.")(compare.command)


def _thinking(flag: bool | None) -> Any:
    return "auto" if flag is None else "show" if flag else "hide"


def main(argv: list[str]) -> int:
    """Parses and runs; prints every error; returns the exit code. Lets only BrokenPipeError out."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # an odd locale must not turn an answer into a UnicodeEncodeError
            stream.reconfigure(errors="replace")
    terminal = Terminal()
    try:
        command = expanding_home(typer.main.get_command(app))
        outcome = command.main(args=argv, prog_name="kimi-vl", standalone_mode=False)
        return outcome(terminal) if callable(outcome) else outcome if isinstance(outcome, int) else errors.EXIT_OK
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return errors.EXIT_CANCELLED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else errors.EXIT_FAILED
    except Exception as failure:
        return report(failure, terminal)


def expanding_home(command: Any) -> Any:
    """`command` with every path option and argument (those whose metavar names a path) read with ~ expanded: a shell
    leaves the one in --model=~/x as it is."""
    for parameter in command.params:
        if _PATH_METAVAR.search(parameter.metavar or ""):
            parameter.callback = _expand_value
    for child in getattr(command, "commands", {}).values():
        expanding_home(child)
    return command


def _expand_value(context: Any, parameter: Any, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(expand_home(item) for item in value)
    return expand_home(value) if isinstance(value, str) else value


def report(failure: Exception, terminal: Terminal) -> int:
    """Prints what went wrong, for a person, and returns the exit code. KIMI_VL_LOG=debug adds the traceback."""
    if os.environ.get("KIMI_VL_LOG") == "debug":
        traceback.print_exception(failure, file=terminal.err)
    if isinstance(failure, (exits.UsageError, exits.NoModel)):
        terminal.error(str(failure), "" if isinstance(failure, exits.UsageError) else failure.code)
        if failure.hint:
            terminal.say(failure.hint)
    elif isinstance(failure, errors.KimiVLError):
        terminal.error(str(failure), getattr(failure, "code", ""))
        explain_names(str(failure), terminal)
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
    meant = [f"{name} is the option {option}" for name, option in OPTION_OF.items() if name in words]
    if meant:
        terminal.say(f"({'; '.join(meant)})", DIM)


def _report_parse_error(failure: Any, terminal: Terminal) -> None:
    context = getattr(failure, "ctx", None)
    terminal.error(printable(str(failure.format_message()).rstrip(".")))
    if context is not None:
        terminal.say(f"`{context.command_path} --help` tells the options.")
