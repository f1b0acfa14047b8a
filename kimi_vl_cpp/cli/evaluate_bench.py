"""`kimi-vl eval --bench NAME --data FILE`: a public benchmark, with a journal that a stopped run resumes from."""

from __future__ import annotations

import itertools
import json as json_module
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import errors
from ..wording import duration, plural, printable
from . import exits, journaled, opening
from .progress import Progress
from .terminal import BOLD, DIM, Terminal

if TYPE_CHECKING:
    from ..evaluation.boards.board import Board, Item
    from ..evaluation.boards.run import Answer
    from ..model import KimiVL

_VARIANTS = {"instruct": "Instruct", "thinking": "Thinking", "thinking-2506": "Thinking-2506"}


def run(
    files: opening.Opening,
    name: str,
    data: str | None,
    images: str | None,
    journal: str | None,
    restart: bool,
    number: int | None,
    max_tokens: int | None,
    as_json: bool,
    terminal: Terminal,
) -> int:
    """Asks what the journal has no answer to, and prints the table or one JSON object. Raises KimiVLError."""
    from ..evaluation.boards.board import board
    from ..tasks.journal import Journal

    chosen = board(name)
    if data is None:
        raise exits.UsageError(
            f"--bench {name} needs --data FILE: the benchmark's own file, with {chosen.needs}",
            "Benchmarks are not part of kimi-vl; docs/evaluation.md says where each is published.",
        )
    exits.check_readable(data, "data of the benchmark", (), exits.UsageError, "")
    path = Path(data)
    folder = path.parent if images is None else Path(images)
    files = opening.choose_model(files)
    kept = Path(journal) if journal is not None else Path(f"{path.name}.{name}.answers.jsonl")
    progress = Progress(terminal)
    with opening.open_model(files, progress) as model:
        model.require_vision()
        opening.introduce(model, files, terminal)
        longest = _longest(model) if max_tokens is None else max_tokens
        head = {
            "bench": name,
            "data": path.name,
            "model": model.name,
            "bytes": model.files.file_bytes,
            "longest": longest,
            **journaled.adapter_part(model),
        }
        with Journal(kept, head, restart=restart) as answers:
            try:
                found = _ask(model, chosen.items(path, folder), number, longest, answers, progress)
            except (KeyboardInterrupt, errors.KimiVLError):
                progress.clear()
                terminal.note(
                    f"stopped after {plural(len(answers.done), 'answer')}, which {printable(str(kept))} keeps: the "
                    "same command resumes"
                )
                raise
            finally:
                progress.clear()
        _print(chosen, found, model, longest, as_json, terminal)
    return errors.EXIT_OK


def _weights(model: KimiVL) -> dict[str, Any]:
    return {"model": model.name, "bytes": model.files.file_bytes}


def _longest(model: KimiVL) -> int:
    """Reasoning takes thousands of tokens; cut short, it counts as no answer."""
    return min(model.defaults.max_new_tokens, 32768 if model.variant.startswith("thinking") else 512)


def _ask(
    model: KimiVL, items: Any, number: int | None, longest: int, journal: Any, progress: Progress
) -> list[tuple[Item, Answer]]:
    from ..evaluation.boards.run import Answer, ask

    began, n_asked = time.monotonic(), 0
    found: list[tuple[Item, Answer]] = []
    for index, item in enumerate(itertools.islice(items, number)):
        record = journal.done.get(index)
        if record is not None and record.get("id") == item.id:
            answer = Answer(record["answer"], record["failure"])
        else:
            rate = f"  {duration((time.monotonic() - began) / n_asked)} each" if n_asked else ""
            progress.show(f"question {index + 1}{rate}  {item.group}")
            answer = ask(model, item, longest)
            journal.add(index, {"id": item.id, "gold": item.gold, "answer": answer.text, "failure": answer.failure})
            n_asked += 1
        found.append((item, answer))
    return found


def _print(
    board: Board, found: list[tuple[Item, Answer]], model: KimiVL, longest: int, as_json: bool, terminal: Terminal
) -> None:
    from ..evaluation.boards.run import table

    report = table(board, found, model.variant)
    report |= {"schema": "kimi-vl bench 1", "model": model.name, "variant": model.variant, "max_new_tokens": longest}
    if as_json:
        terminal.print(json_module.dumps(report, indent=2))
        return
    unit = " %" if board.scale == 100 else f" of {board.scale:g}"
    terminal.print(terminal.style(f"{board.title}: {printable(model.name, one_line=True)}", BOLD, err=False))
    for name, row in (("all", report["all"]), *report["groups"].items()):
        if name == "":
            continue
        low, high = row["interval_95"]
        open_ = f"  {row['undecided']} undecided: {row['low']:.1f} to {row['high']:.1f}" if row["undecided"] else ""
        failed = f"  {row['failed']} failed" if row["failed"] else ""
        label = printable(name, one_line=True)
        terminal.print(f"  {label:<28} {row['value']:6.1f}{unit}  [{low:.1f}, {high:.1f}]  n {row['n']}{open_}{failed}")
    shown = ", ".join(f"{_VARIANTS[variant]} {value:g}" for variant, value in board.paper.items())
    terminal.print(f"  {'the paper':<28} {shown}")
    terminal.say(
        f"Greedy, at most {longest} tokens; settings other than the paper's change the score. {board.note}",
        DIM,
    )
