"""The options that several commands share, each declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .. import errors
from . import adapters, videos
from .answer import ThinkingMode
from .opening import Opening, caching, sampling
from .terminal import Terminal


def help_without_command(context: typer.Context) -> None:
    """Of a group that was named without one of its commands: prints its help, and ends as a wrong usage."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(errors.EXIT_USAGE)


Job = Callable[[Terminal], int]
"""What a command returns: its work, which runs outside of typer and returns the exit code."""

Model = Annotated[
    str | None,
    typer.Option(
        "-m", "--model", metavar="FILE", help="The model: a GGUF file, or hf:REPO[:TYPE]. Default: the built-in one."
    ),
]
NamedModel = Annotated[
    str | None, typer.Option("-m", "--model", metavar="FILE", help="The model: a GGUF file, or hf:REPO[:TYPE].")
]
Mmproj = Annotated[
    str | None,
    typer.Option("--mmproj", metavar="FILE", help="The vision file. Default: the mmproj*.gguf beside the model."),
]
Context = Annotated[
    int | None,
    typer.Option("-c", "--ctx", metavar="N", help="Context size, in tokens. Default: 8192 to 32768, as memory allows."),
]
KvMemory = Annotated[
    str | None,
    typer.Option(
        "--kv-memory",
        metavar="SIZE",
        help="Memory of the KV cache, as 4GiB. Default: a quarter of what is free, at most as much as the weights, one "
        "context at least.",
    ),
]
CacheDir = Annotated[
    str | None,
    typer.Option(
        "--cache-dir",
        metavar="FOLDER",
        help="Keep what was computed of prompts and pictures in this folder for later runs. Not encrypted.",
    ),
]
CacheDisk = Annotated[
    str | None,
    typer.Option("--cache-disk", metavar="SIZE", help="What the folder may take, as 20GiB. Default: 10GiB."),
]
Overflow = Annotated[
    str,
    typer.Option(
        "--overflow",
        metavar="MODE",
        help="When a conversation outgrows the context: error, or drop_turns, which leaves out its oldest questions.",
    ),
]
NoSpeculate = Annotated[
    bool, typer.Option("--no-speculate", help="Do not guess tokens that have followed the same ones before.")
]
Threads = Annotated[
    int | None,
    typer.Option("-t", "--threads", metavar="N", help="Threads. Default: the CPUs that this process may use."),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="DIR[=SCALE]",
        help="Add a LoRA adapter (PEFT's folder, or GGUF) beside the weights, scaled by SCALE. Repeatable.",
    ),
]
NamedLora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="[NAME=]DIR[=SCALE]",
        help="Add a LoRA adapter beside the weights; one with a NAME only to requests for the model NAME. Repeatable.",
    ),
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
    typer.Option(
        "--temp", metavar="X", help="Temperature; 0 always takes the most likely token. Default: the model's."
    ),
]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="N", help="Only the N most likely tokens; 0: off.")]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", metavar="X", help="Only the most likely tokens up to a total probability of X."),
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", metavar="X", help="Only tokens at least X times as likely as the most likely one; 0: off."),
]
RepeatPenalty = Annotated[
    float | None,
    typer.Option("--repeat-penalty", metavar="X", help="Above 1, recently used tokens become less likely; 1: off."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End the answer before this text. May be given several times."),
]
ThinkingBudget = Annotated[
    int | None,
    typer.Option("--thinking-budget", metavar="N", help="Maximum tokens of reasoning; 0 turns it off."),
]
AnswerReserve = Annotated[
    int | None,
    typer.Option("--answer-reserve", metavar="N", help="Tokens of the longest answer that reasoning leaves for it."),
]
ThinkingClose = Annotated[
    str | None,
    typer.Option("--thinking-close", metavar="TEXT", help="Text that ends reasoning when it is cut short."),
]
LoopGuard = Annotated[
    bool,
    typer.Option("--loop-guard", help="End an answer that repeats itself; close reasoning that does."),
]
InTokenLimit = Annotated[
    int | None,
    typer.Option(
        "--in-token-limit",
        metavar="N",
        help="Scale pictures down to N patches of 14x14 pixels. Default: 4096, or 16384 for Thinking-2506.",
    ),
]
ImagePatches = Annotated[
    int | None,
    typer.Option(
        "--image-patches",
        metavar="N",
        help="Patches of 14x14 pixels for each picture or page. Default: as many as the model knows, and fewer for "
        "pages when they would not fit together.",
        show_default=False,
    ),
]
Images = Annotated[
    list[str] | None,
    typer.Option(
        "-i",
        "--image",
        metavar="FILE",
        help="A picture, or a PDF or TIFF document, perhaps with pages: report.pdf#3,7-9. '-' is standard input. May "
        "be given several times.",
    ),
]
Markers = Annotated[
    str,
    typer.Option(
        "--markers",
        metavar="KIND",
        help="Text before a page: short (Page 3 of 50:), full (with the document's name) or none. Default: short, full "
        "for several documents.",
        show_default=False,
    ),
]
Isolate = Annotated[
    bool,
    typer.Option(
        "--isolate", help="Open documents and videos in a process of its own: for files that you do not trust."
    ),
]
TextLayer = Annotated[
    str,
    typer.Option(
        "--text-layer",
        metavar="KIND",
        help="The text that the file has of a page: never given, auto (behind the picture of the page), or only (no "
        "pictures). It need not be what the page shows. Default: never.",
        show_default=False,
    ),
]
Cite = Annotated[bool, typer.Option("--cite", help="Ask for page numbers behind claims, and check them afterwards.")]
Find = Annotated[
    int | None,
    typer.Option(
        "--find",
        metavar="N",
        help="Only the N pages that the question is about: by their text, or by a look at them in small.",
    ),
]
Pages = Annotated[
    str | None,
    typer.Option("--pages", metavar="PAGES", help="Pages of the document, such as 3,7-9,40- or last. Default: all."),
]
PasswordFile = Annotated[
    str | None,
    typer.Option("--password-file", metavar="FILE", help="A file with the password of a protected document."),
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
        help="Data type of the KV cache: f16, q8_0 (half the memory), f32. Default: f16.",
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where the model runs: cpu, or cuda for an NVIDIA GPU. Default: cpu.",
        show_default=False,
    ),
]
Isa = Annotated[str, typer.Option("--isa", hidden=True)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
Restart = Annotated[bool, typer.Option("--restart", help="Start over, whatever the journal holds.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]


def thinking_mode(flag: bool | None) -> ThinkingMode:
    """--show-thinking, --hide-thinking or neither."""
    return "auto" if flag is None else "show" if flag else "hide"


# Groups of options, with their defaults.
_Group = dict[str, tuple[Any, object]]
_MODEL: _Group = {"model": (Model, None), "mmproj": (Mmproj, None)}
_SAMPLING: _Group = {
    "max_tokens": (MaxTokens, None),
    "temp": (Temp, None),
    "top_k": (TopK, None),
    "top_p": (TopP, None),
    "min_p": (MinP, None),
    "repeat_penalty": (RepeatPenalty, None),
    "seed": (Seed, None),
    "stop": (Stop, None),
    "thinking_budget": (ThinkingBudget, None),
    "answer_reserve": (AnswerReserve, None),
    "thinking_close": (ThinkingClose, None),
    "loop_guard": (LoopGuard, False),
}
_FRAMES: _Group = {
    "frames": (videos.Frames, None),
    "sample": (videos.Sample, "uniform"),
    "fps": (videos.Fps, None),
    "timestamps": (videos.Timestamps, "hms"),
    "dedupe": (videos.Dedupe, False),
    "subtitles": (videos.Subtitles, None),
}
_CONTEXT: _Group = {"ctx": (Context, None)}
_LORA: _Group = {"lora": (Lora, None)}
_NAMED_LORA: _Group = {"lora": (NamedLora, None)}
_CACHING: _Group = {
    "kv_memory": (KvMemory, None),
    "cache_dir": (CacheDir, None),
    "cache_disk": (CacheDisk, None),
    "no_speculate": (NoSpeculate, False),
}
_CONVERSATION: _Group = {"overflow": (Overflow, "error")}
_COMPUTING: _Group = {
    "threads": (Threads, None),
    "device": (Device, "cpu"),
    "in_token_limit": (InTokenLimit, None),
    "kv_type": (KvType, "auto"),
    "isa": (Isa, "auto"),
}


def grouped(command: Callable[..., Job], conversation: bool = False, serves: bool = False) -> Callable[..., Job]:
    """A command with its parameter `files` (an `opening.Opening`) declared as the options that choose a model, and at
    the end those that say how to open it; `sampling` and `frames` (a `videos.FrameOptions`), where it has them, as the
    sampling options and those of videos. conversation: with --overflow too. serves: others send requests, which may
    name an adapter."""
    declared = inspect.signature(command, eval_str=True).parameters
    caches = _CACHING | (_CONVERSATION if conversation else {})
    model = _MODEL | (_NAMED_LORA if serves else _LORA)
    expanded: dict[str, inspect.Parameter] = {}
    for name, parameter in declared.items():
        group = {"files": model, "sampling": _SAMPLING, "frames": _FRAMES}.get(name)
        expanded |= {name: parameter} if group is None else _parameters(group)
    expanded |= _parameters(_CONTEXT | caches | _COMPUTING)

    @functools.wraps(command)
    def called(**given: Any) -> Job:
        def job(terminal: Terminal) -> int:
            named = {name: given.pop(name) for name in (*_MODEL, *_CONTEXT, *_COMPUTING)}
            remembered = caching(**{name: given.pop(name) for name in caches})
            n_ctx, n_threads = named.pop("ctx"), named.pop("threads")
            adapted = (adapters.always_or_named if serves else adapters.always)(given.pop("lora"))
            given["files"] = Opening(n_ctx=n_ctx, n_threads=n_threads, lora=adapted, caching=remembered, **named)
            if "sampling" in declared:
                given["sampling"] = sampling(**{name: given.pop(name) for name in _SAMPLING})
            if "frames" in declared:
                given["frames"] = videos.FrameOptions(**{name: given.pop(name) for name in _FRAMES})
            return command(**given)(terminal)

        return job

    called.__signature__ = inspect.Signature(list(expanded.values()))  # type: ignore[attr-defined]
    called.__annotations__ = {name: parameter.annotation for name, parameter in expanded.items()}
    return called


def _parameters(options: _Group) -> dict[str, inspect.Parameter]:
    kind = inspect.Parameter.KEYWORD_ONLY
    return {
        name: inspect.Parameter(name, kind, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    }
