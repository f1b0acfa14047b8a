"""`kimi-vl eval`: what a model gets right of the bundled picture questions, or of a folder of one's own.

Owns the options, the progress line and the table; questions and judging are in evaluate.py of the package. Imports only
what is quick, for app.py registers the command at every start.
"""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from . import exits, opening
from .terminal import DIM, Progress, Terminal, plural, printable

if TYPE_CHECKING:
    from ..evaluate import Judged, Question, Share


def command(
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", metavar="FILE", help="The model: a GGUF file. Default: the small built-in one."),
    ] = None,
    mmproj: Annotated[
        str | None,
        typer.Option("--mmproj", metavar="FILE", help="The vision file. Default: the mmproj*.gguf beside the model."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FOLDER", help="Questions of your own: questions.jsonl and its pictures."),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="TASK", help="Only this task. May be given several times.")
    ] = None,
    number: Annotated[
        int | None, typer.Option("-n", "--number", metavar="N", help="Only the first N questions of every task.")
    ] = None,
    failures: Annotated[bool, typer.Option("--failures", help="List what went wrong too.")] = False,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", help="Longest answer. Default: the model's own.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("-t", "--threads", metavar="N", help="Threads. Default: the CPUs that this process may use."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    isa: Annotated[str, typer.Option("--isa", hidden=True)] = "auto",
) -> Callable[[Terminal], int]:
    """Measure what a model gets right: accuracy per task, with 95 % intervals.

    kimi-vl eval -m kimi.gguf --task receipt_total --failures
    """

    def job(terminal: Terminal) -> int:
        files = opening.Opening(model, mmproj, None, threads, None, isa)
        return run(files, data, task or [], number, failures, max_tokens, json, terminal)

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
) -> int:
    """Asks, and prints the table or one JSON object. Ctrl-C prints what was measured so far and leaves with its exit
    code. Raises KimiVLError."""
    from .. import builtin
    from ..evaluate import Judge, evaluate, read_questions

    if number is not None and number < 1:
        raise exits.UsageError(f"-n is {number}, expected 1 or more")
    everything = read_questions(builtin.questions_folder() if data is None else data)
    questions = _chosen(everything, tasks, number)
    files = opening.choose_model(files)
    progress = Progress(terminal)
    judged: list[Judged] = []
    code = errors.EXIT_OK
    with opening.open_model(files, progress) as model:
        opening.introduce(model, files, terminal)
        began = time.monotonic()

        def before(index: int, question: Question) -> None:
            left = ""
            if index > 4:
                seconds = (time.monotonic() - began) / index * (len(questions) - index)
                left = f"  {seconds:.0f} s left" if seconds < 100 else f"  {seconds / 60:.0f} min left"
            progress.show(f"{question.task}  {index}/{len(questions)}{left}")

        try:
            for one in evaluate(model, questions, Judge(everything), max_new_tokens=max_tokens, before=before):
                judged.append(one)
        except KeyboardInterrupt:
            code = errors.EXIT_CANCELLED
        finally:
            progress.clear()
        name = model.name
    if code:
        terminal.note(f"stopped after {len(judged)} of {plural(len(questions), 'question')}")
    if as_json:
        terminal.print(json_module.dumps(_as_json(name, files, judged), ensure_ascii=False, indent=2))
    elif judged:
        _print(name, judged, terminal)
        if failures:
            _print_failures(judged, terminal)
    return code


def _chosen(questions: Sequence[Question], tasks: Sequence[str], number: int | None) -> list[Question]:
    known = list(dict.fromkeys(question.task for question in questions))
    for task in tasks:
        if task not in known:
            raise exits.UsageError(f"--task {printable(task)}: no such task; there are {', '.join(known)}")
    left = {task: number if number is not None else len(questions) for task in tasks or known}
    found = []
    for question in questions:
        if left.get(question.task, 0) > 0:
            left[question.task] -= 1
            found.append(question)
    # One picture's questions follow each other, so that it is looked at once.
    place = {image: i for i, image in reversed(list(enumerate(question.image for question in found)))}
    return sorted(found, key=lambda question: place[question.image])


def _as_json(name: str, files: opening.Opening, judged: Sequence[Judged]) -> dict[str, Any]:
    from ..evaluate import by_task, shares

    def both(pair: tuple[Share, Share]) -> dict[str, Any]:
        exact, lenient = pair
        return {
            "n": exact.n,
            "exact": round(exact.value, 4),
            "interval": [round(end, 4) for end in exact.interval],
            "lenient": round(lenient.value, 4),
        }

    return {
        "model": {"name": name, "file": files.model},
        "tasks": {task: both(pair) for task, pair in by_task(judged).items()},
        "all": both(shares(judged)),
        "seconds": round(sum(one.seconds for one in judged), 2),
        "answers": [
            {
                "id": one.question.id,
                "task": one.question.task,
                "image": one.question.image.name,
                "question": one.question.question,
                "accepted": list(one.question.answers),
                "answer": one.answer,
                "exact": one.exact,
                "lenient": one.lenient,
            }
            for one in judged
        ],
    }


def _print(name: str, judged: Sequence[Judged], terminal: Terminal) -> None:
    from ..evaluate import by_task, shares

    def row(label: str, pair: tuple[Share, Share]) -> str:
        exact, lenient = pair
        low, high = exact.interval
        interval = f"{100 * low:.0f} to {100 * high:.0f}"
        return (
            f"{printable(label, one_line=True):<14}{100 * exact.value:>6.1f} %  {interval:>9}"
            f"{100 * lenient.value:>8.1f} %{exact.n:>7}"
        )

    terminal.print(printable(name, one_line=True))
    terminal.print(f"{'task':<14}{'exact':>8}  {'95 %':>9}{'lenient':>10}{'n':>7}")
    for task, pair in sorted(by_task(judged).items()):
        terminal.print(row(task, pair))
    terminal.print(row("all", shares(judged)))
    seconds = sum(one.seconds for one in judged)
    terminal.say(f"{seconds:.1f} s, {seconds / len(judged):.2f} s a question", DIM)


def _print_failures(judged: Sequence[Judged], terminal: Terminal) -> None:
    for one in judged:
        if not one.exact:
            wanted = " or ".join(one.question.answers)
            text = f"{one.question.image.name}: {one.question.question} expected {wanted}, got {one.answer}"
            terminal.print(printable(text, one_line=True))
