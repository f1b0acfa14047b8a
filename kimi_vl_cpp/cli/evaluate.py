"""`kimi-vl eval`: what a model gets right of the bundled picture questions, or of a folder of the user's.

Owns the options and the progress line; the table is in evaluate_output.py, questions and judging are in evaluate.py of
the package. Imports only what is quick: it is read at every start.
"""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from ..wording import duration, plural, printable
from . import adapters, evaluate_bench, evaluate_output, evaluate_reasoning, exits, opening, options
from .evaluate_output import Measured
from .progress import Progress
from .terminal import Terminal

if TYPE_CHECKING:
    from ..evaluation.questions import Question
    from ..model import KimiVL

MAX_PICTURES = 64


@dataclass(frozen=True)
class Runs:
    """Another run than one greedy answer for each question: --thinking with --plot, --votes, --pictures; --temp."""

    thinking: str | None = None
    plot: str | None = None
    votes: int | None = None
    temperature: float | None = None
    pictures: int = 1

    @property
    def sampling(self) -> dict[str, Any]:
        """What was said about it."""
        return {} if self.temperature is None else {"temperature": self.temperature}

    def check(self) -> None:
        """Raises UsageError."""
        evaluate_reasoning.check_plot(self.plot, self.thinking)
        if self.temperature is not None and self.thinking is None and self.votes is None:
            raise exits.UsageError("--temp: questions are asked greedily; it is for --votes and --thinking")
        if self.thinking is not None and self.votes is not None:
            raise exits.UsageError("--thinking and --votes are two runs: give one of them")
        if self.thinking is not None:
            evaluate_reasoning.read_lengths(self.thinking)
        if not 1 <= self.pictures <= MAX_PICTURES:
            raise exits.UsageError(f"--pictures {self.pictures}: expected 1 to {MAX_PICTURES}")
        if self.pictures > 1 and (self.thinking is not None or self.votes is not None):
            raise exits.UsageError("--pictures and --thinking or --votes are two runs: give one of them")
        if self.votes is not None and not 2 <= self.votes <= 64:
            raise exits.UsageError(f"--votes {self.votes}: expected 2 to 64")


SUMMARY = "Measure what a model gets right."


def command(
    model: options.Model = None,
    mmproj: options.Mmproj = None,
    lora: options.Lora = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="Questions of your own: questions.jsonl and pictures; or the --bench file.",
        ),
    ] = None,
    pictures: Annotated[
        int,
        typer.Option(
            "--pictures", metavar="N", help="Pictures in each chat; the question names its own by number. Default: 1."
        ),
    ] = 1,
    bench: Annotated[
        str | None,
        typer.Option(
            "--bench",
            metavar="NAME",
            help="A public benchmark: mmmu, mathvista, infovqa, ocrbench, screenspot, screenspot-pro, mmlongbench-doc.",
        ),
    ] = None,
    mapping: Annotated[
        str,
        typer.Option(
            "--mapping",
            metavar="KIND",
            help="Of which picture --bench screenspot takes coordinates for shares: unpadded, padded, or both (two "
            "tables from the same answers).",
        ),
    ] = "unpadded",
    images: Annotated[
        str | None,
        typer.Option(
            "--images", metavar="FOLDER", help="The benchmark's pictures or documents. Default: beside its file."
        ),
    ] = None,
    journal: Annotated[
        str | None,
        typer.Option(
            "--journal", metavar="FILE", help="Answers of the benchmark, kept for resuming. Default: here, by its name."
        ),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Discard the benchmark's journal and start over.")] = False,
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="TASK", help="Only this task. May be given several times.")
    ] = None,
    number: Annotated[
        int | None, typer.Option("-n", "--number", metavar="N", help="Only the first N questions (of every task).")
    ] = None,
    failures: Annotated[bool, typer.Option("--failures", help="List the wrong answers too.")] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            metavar="N",
            help="Longest answer, in tokens. Default: 256, or 4096 for one that reasons, or less as the file says.",
        ),
    ] = None,
    thinking: Annotated[
        str | None,
        typer.Option(
            "--thinking",
            metavar="LENGTHS",
            help="How right a model that reasons is by the tokens of its reasoning, as 256,1k,4k,16k.",
        ),
    ] = None,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw the curve of --thinking as a .png.")
    ] = None,
    votes: Annotated[
        int | None,
        typer.Option("--votes", metavar="N", help="N answers to each question, and how right most of them are."),
    ] = None,
    temp: options.Temp = None,
    ctx: options.Context = None,
    in_token_limit: options.InTokenLimit = None,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    json: options.Json = False,
    isa: options.Isa = "auto",
) -> options.Job:
    """Measure what a model gets right of a few hundred picture questions.

    kimi-vl eval -m kimi.gguf --task receipt_total --failures
    """

    def job(terminal: Terminal) -> int:
        files = opening.Opening(
            model=model,
            mmproj=mmproj,
            n_ctx=ctx,
            n_threads=threads,
            device=device,
            in_token_limit=in_token_limit,
            isa=isa,
            lora=adapters.always(lora),
        )
        runs = Runs(thinking, plot, votes, temp, pictures)
        if bench is None and mapping != "unpadded":
            raise exits.UsageError("--mapping is for benchmarks of pointing: --bench screenspot or screenspot-pro")
        if bench is None:
            return run(files, data, task or [], number, failures, max_tokens, json, terminal, runs)
        if task or failures or runs != Runs():
            raise exits.UsageError("--bench has a run of its own: leave out options for questions of your own")
        return evaluate_bench.run(
            files, bench, data, images, journal, restart, number, max_tokens, json, terminal, mapping
        )

    return job


def run(
    files: opening.Opening,
    data: str | None,
    tasks: Sequence[str],
    number: int | None,
    failures: bool,
    max_tokens: int | None,
    as_json: bool,
    terminal: Terminal,
    runs: Runs | None = None,
) -> int:
    """Asks, and prints the table or one JSON object. Ctrl-C, and an error underway, print what was measured so far.
    Raises KimiVLError, KeyboardInterrupt."""
    from .. import builtin
    from ..checks import check_int
    from ..evaluation.questions import check_pictures, read_questions
    from ..generation.sampling import MAX_NEW_TOKENS

    runs = runs or Runs()
    runs.check()
    if number is not None and number < 1:
        raise exits.UsageError(f"-n is {number}, expected 1 or more")
    if max_tokens is not None:
        check_int("max_new_tokens", max_tokens, 1, MAX_NEW_TOKENS)
    everything = read_questions(builtin.questions_folder() if data is None else data)
    questions = _chosen(everything, tasks, number)
    files = opening.choose_model(files)
    check_pictures(questions)
    progress = Progress(terminal)
    with opening.open_model(files, progress) as model:
        model.require_vision()
        opening.introduce(model, files, terminal)
        if runs.thinking is not None or runs.votes is not None:
            _reason(model, questions, everything, runs, max_tokens, as_json, terminal, progress)
            return errors.EXIT_OK
        tasks_in_order = tuple(dict.fromkeys(question.task for question in everything))
        measured = Measured(_facts(model), tasks_in_order, len(questions))
        try:
            _ask(model, questions, everything, max_tokens, runs.pictures, measured, progress)
        except (KeyboardInterrupt, errors.KimiVLError):
            progress.clear()
            asked = f"{len(measured.judged)} of {plural(len(questions), 'question')}"
            terminal.note(f"stopped after {asked}" + (", which are below" if measured.judged else ""))
            raise
        finally:
            progress.clear()
            if as_json:
                report = evaluate_output.as_json(measured, data)
                terminal.print(json_module.dumps(report, indent=2))
            elif measured.judged:
                evaluate_output.print_table(measured, terminal)
                if failures:
                    evaluate_output.print_failures(measured, terminal)
    return errors.EXIT_OK


def _reason(
    model: KimiVL,
    questions: Sequence[Question],
    everything: Sequence[Question],
    runs: Runs,
    max_tokens: int | None,
    as_json: bool,
    terminal: Terminal,
    progress: Progress,
) -> None:
    from ..evaluation.judge import Judge
    from ..evaluation.run import default_max_new_tokens

    judge = Judge(everything)

    def before(index: int, question: Question) -> None:
        progress.show(f"{100 * index // len(questions):3d}%  question {index + 1} of {len(questions)}")

    try:
        if runs.thinking is not None:
            lengths = evaluate_reasoning.read_lengths(runs.thinking)
            evaluate_reasoning.ask_by_length(
                model, questions, judge, lengths, runs.sampling, runs.plot, as_json, terminal, before
            )
        elif runs.votes is not None:
            longest = default_max_new_tokens(model) if max_tokens is None else max_tokens
            sampling = {**runs.sampling, "max_new_tokens": longest}
            evaluate_reasoning.ask_by_votes(model, questions, judge, runs.votes, sampling, as_json, terminal, before)
    finally:
        progress.clear()


def _chosen(questions: Sequence[Question], tasks: Sequence[str], number: int | None) -> list[Question]:
    known = list(dict.fromkeys(question.task for question in questions))
    for task in tasks:
        if task not in known:
            listed = printable(", ".join(known), one_line=True)
            raise exits.UsageError(f"--task {printable(task)}: no such task; there are {listed}")
    left = {task: number if number is not None else len(questions) for task in tasks or known}
    found = []
    for question in questions:
        if left.get(question.task, 0) > 0:
            left[question.task] -= 1
            found.append(question)
    # One picture's questions follow each other, so that it is looked at once; by the pictures' names the tasks take
    # turns, so that a run that is interrupted has measured something of each.
    return sorted(found, key=lambda question: question.image.name)


def _facts(model: KimiVL) -> dict[str, Any]:
    from .inspect.report import file_type

    return {
        "name": model.name,
        "variant": model.variant,
        "file": str(model.files.text),
        "bytes": model.files.file_bytes,
        "quantization": file_type(model.loaded.engine.gguf.get("general.file_type")),
    }


def _ask(
    model: KimiVL,
    questions: Sequence[Question],
    everything: Sequence[Question],
    max_tokens: int | None,
    n_pictures: int,
    measured: Measured,
    progress: Progress,
) -> None:
    from ..evaluation.judge import Judge
    from ..evaluation.run import evaluate

    began = time.monotonic()

    def before(index: int, question: Question) -> None:
        text = f"{100 * index // len(questions):3d}%  question {index + 1} of {len(questions)}"
        if index:
            text += f"  {100 * sum(one.exact for one in measured.judged) / index:.0f} % right"
            passed = time.monotonic() - began
            if passed > 1:
                text += f"  {duration(passed / index * (len(questions) - index))} left"
        progress.show(f"{text}  {question.task}")

    judge = Judge(everything)
    asked = evaluate(model, questions, judge, max_new_tokens=max_tokens, n_pictures=n_pictures, before=before)
    for one in asked:
        measured.judged.append(one)
