"""`kimi-vl eval --bench NAME --data FILE`: a public benchmark, with a journal that a stopped run resumes from."""

from __future__ import annotations

import itertools
import json as json_module
import time
from collections.abc import Sequence
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

MAPPINGS = {"unpadded": ("unpadded",), "padded": ("padded",), "both": ("unpadded", "padded")}
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
    mapping: str = "unpadded",
) -> int:
    """Asks what the journal has no answer to, and prints the table or one JSON object. Raises KimiVLError."""
    from ..evaluation.boards.board import board
    from ..tasks.journal import Journal

    chosen = board(name)
    if mapping not in MAPPINGS:
        raise exits.UsageError(f"--mapping {mapping}: expected one of {', '.join(MAPPINGS)}")
    if mapping != "unpadded" and not chosen.points:
        raise exits.UsageError(f"--mapping is for benchmarks of pointing, which {name} is not")
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
        _print(chosen, found, model, longest, as_json, terminal, MAPPINGS[mapping])
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
    board: Board,
    found: list[tuple[Item, Answer]],
    model: KimiVL,
    longest: int,
    as_json: bool,
    terminal: Terminal,
    mappings: Sequence[str],
) -> None:
    """A table for each reading of points; of other benchmarks there is one."""
    from ..evaluation.boards.run import table

    plan = model.loaded.processor.plan
    tables = {how: table(board, found, model.variant, plan if how == "padded" else None) for how in mappings}
    if as_json:
        report = {"schema": "kimi-vl bench 1", "model": model.name, "variant": model.variant, "max_new_tokens": longest}
        report |= tables[mappings[0]] | ({"mapping": mappings[0]} if board.points else {})
        report |= {how: tables[how] for how in mappings[1:]}
        terminal.print(json_module.dumps(report, indent=2))
        return
    terminal.print(terminal.style(f"{board.title}: {printable(model.name, one_line=True)}", BOLD, err=False))
    for how, report in tables.items():
        if board.points:
            terminal.print(f"  coordinates as shares of the {how} picture")
        _print_rows(report, " %" if board.scale == 100 else f" of {board.scale:g}", terminal)
    shown = ", ".join(f"{_VARIANTS[variant]} {value:g}" for variant, value in board.paper.items())
    terminal.print(f"  {'the paper':<28} {shown}")
    terminal.say(
        f"Greedy, at most {longest} tokens; settings other than the paper's change the score. {board.note}",
        DIM,
    )


def _print_rows(report: dict[str, Any], unit: str, terminal: Terminal) -> None:
    for name, row in (("all", report["all"]), *report["groups"].items()):
        if name == "":
            continue
        low, high = row["interval_95"]
        open_ = f"  {row['undecided']} undecided: {row['low']:.1f} to {row['high']:.1f}" if row["undecided"] else ""
        failed = f"  {row['failed']} failed" if row["failed"] else ""
        label = printable(name, one_line=True)
        terminal.print(f"  {label:<28} {row['value']:6.1f}{unit}  [{low:.1f}, {high:.1f}]  n {row['n']}{open_}{failed}")
