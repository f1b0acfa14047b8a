"""What `kimi-vl eval` prints: the table, what went wrong, and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..wording import columns, cut, duration, human_bytes, padded, plural, printable
from .terminal import BOLD, DIM, Terminal

if TYPE_CHECKING:
    from ..evaluation.run import Judged, Share


@dataclass
class Measured:
    """What was measured so far. model: name, variant, file, bytes, quantization. tasks: in the order to show them.
    wanted: how many questions it was to be."""

    model: dict[str, Any]
    tasks: tuple[str, ...]
    wanted: int
    judged: list[Judged] = field(default_factory=list)

    def rows(self) -> dict[str, list[Judged]]:
        """Task -> its answers."""
        found = {task: [one for one in self.judged if one.question.task == task] for task in self.tasks}
        return {task: ones for task, ones in found.items() if ones}


def as_json(measured: Measured, data: str | None) -> dict[str, Any]:
    """Everything, as plain values. data: the folder, None for the bundled questions."""
    judged = measured.judged
    return {
        "schema": "kimi-vl eval 1",
        "model": measured.model,
        "data": data,
        "complete": len(judged) == measured.wanted,
        "tasks": {task: _figures(ones) for task, ones in measured.rows().items()},
        "all": _figures(judged),
        "seconds": round(_seconds(judged), 3),
        "answers": [
            {
                "id": one.question.id,
                "task": one.question.task,
                "image": one.question.image.name,
                "question": one.question.question,
                "accepted": list(one.question.answers),
                "box": one.question.box,
                "answer": one.answer,
                "exact": one.exact,
                "lenient": one.lenient,
                "seconds": round(one.seconds, 4),
            }
            for one in judged
        ],
    }


def _figures(judged: Sequence[Judged]) -> dict[str, Any]:
    from ..evaluation.run import shares

    exact, lenient = shares(judged)
    return {
        "n": exact.n,
        "right": exact.right,
        "exact": round(exact.value, 4),
        "interval": _interval(exact),
        "lenient": round(lenient.value, 4),
        "lenient_interval": _interval(lenient),
        "seconds_per_question": round(_seconds(judged) / len(judged), 4) if judged else None,
    }


def _interval(share: Share) -> list[float]:
    return [round(end, 4) for end in share.interval]


def _seconds(judged: Sequence[Judged]) -> float:
    return sum(one.seconds for one in judged)


def print_table(measured: Measured, terminal: Terminal) -> None:
    """One row for each task and one for all, on standard output."""
    judged, rows = measured.judged, measured.rows()
    names = {task: cut(printable(task, one_line=True), 32) for task in rows}
    width = max(columns("task"), *map(columns, names.values()))
    facts = [measured.model["name"], measured.model["quantization"], human_bytes(measured.model["bytes"])]
    terminal.print(terminal.style(printable(", ".join(fact for fact in facts if fact), one_line=True), BOLD, err=False))
    titles = f"{'exact':>8}  {'95 % interval':>14}  {'lenient':>8}  {'right':>9}  {'a question':>10}"
    terminal.print(terminal.style(f"{'task'.ljust(width)}  {titles}", DIM, err=False))
    for task, ones in rows.items():
        terminal.print(f"{padded(names[task], width)}  {_row(ones)}")
    if len(rows) > 1:
        terminal.print(terminal.style(f"{'all'.ljust(width)}  {_row(judged)}", BOLD, err=False))
    n_pictures = len({one.question.image for one in judged})
    terminal.say(
        f"{plural(len(judged), 'question')} about {plural(n_pictures, 'picture')} in {_short_time(_seconds(judged))}; "
        "lenient: the right answer inside a sentence",
        DIM,
    )


def _short_time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)


def _row(judged: Sequence[Judged]) -> str:
    from ..evaluation.run import shares

    exact, lenient = shares(judged)
    low, high = exact.interval
    interval = f"{100 * low:.1f} to {100 * high:.1f}"
    return (
        f"{100 * exact.value:>6.1f} %  {interval:>14}  {100 * lenient.value:>6.1f} %  "
        f"{f'{exact.right}/{exact.n}':>9}  {_seconds(judged) / len(judged):>8.2f} s"
    )


def print_failures(measured: Measured, terminal: Terminal) -> None:
    """What was not exactly right: the picture, what was asked, expected and answered."""
    wrong = [one for ones in measured.rows().values() for one in ones if not one.exact]
    if not wrong:
        terminal.print("nothing went wrong")
        return
    folder = wrong[0].question.image.parent
    terminal.print()
    terminal.print(printable(f"{plural(len(wrong), 'wrong answer')}, pictures in {folder}", one_line=True))
    for one in wrong:
        asked, box = one.question, one.question.box
        expected = " or ".join(f'"{answer}"' for answer in asked.answers)
        if box is not None:
            expected += f" (in {box[0]:g}, {box[1]:g} to {box[2]:g}, {box[3]:g} pixels)"
        mark = "  (right by the lenient rule)" if one.lenient else ""
        terminal.print(
            terminal.style(
                printable(f"{asked.id}  {asked.image.name}  {asked.question}", one_line=True), DIM, err=False
            )
        )
        terminal.print(printable(f'  expected {expected}, got "{_short(one.answer)}"{mark}', one_line=True))


def _short(answer: str) -> str:
    text = " ".join(answer.split())
    return text if len(text) <= 200 else text[:199] + "…"
