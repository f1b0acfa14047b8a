"""`kimi-vl eval --thinking` and `--votes`: the runs, and what they print."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..wording import human_count, plural
from . import exits
from .terminal import BOLD, DIM, Terminal

if TYPE_CHECKING:
    from ..evaluation.judge import Judge
    from ..evaluation.questions import Question
    from ..evaluation.reasoning import Reasoned, Voted
    from ..model import KimiVL

Before = Callable[[int, Any], None]
_UNITS = {"": 1, "k": 1024}


def read_lengths(text: str) -> list[int]:
    """ "256,1k,4k" as numbers of tokens. Raises UsageError."""
    found = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d{1,7})(k?)", item.strip().lower())
        if match is None or not int(match[1]):
            raise exits.UsageError(f"--thinking {text}: expected lengths in tokens, as 256,1k,4k,16k")
        found.append(int(match[1]) * _UNITS[match[2]])
    return found


def check_plot(path: str | None, thinking: str | None) -> None:
    """Raises UsageError for a --plot that cannot be written, before anything is asked."""
    if path is None:
        return
    if thinking is None:
        raise exits.UsageError("--plot draws accuracy by length of reasoning: give the lengths with --thinking")
    if Path(path).suffix.lower() != ".png" or not Path(path).absolute().parent.is_dir():
        raise exits.UsageError(f"--plot {path}: expected a .png file in a folder that exists")


def ask_by_length(
    model: KimiVL,
    questions: Sequence[Question],
    judge: Judge,
    lengths: Sequence[int],
    sampling: Mapping[str, Any],
    plot: str | None,
    as_json: bool,
    terminal: Terminal,
    before: Before,
) -> None:
    """Runs, and prints what was measured, also when it was stopped. Raises KimiVLError, KeyboardInterrupt."""
    from ..evaluation import reasoning

    found: list[Reasoned] = []
    try:
        for one in reasoning.by_length(model, questions, judge, lengths, before=before, **sampling):
            found.append(one)
    finally:
        if as_json:
            terminal.print(json.dumps(_lengths_as_json(found, model, len(questions)), indent=2))
        elif found:
            _print_lengths(found, terminal)
        if plot is not None and found:
            _draw(found, model.name, plot)


def ask_by_votes(
    model: KimiVL,
    questions: Sequence[Question],
    judge: Judge,
    n: int,
    sampling: Mapping[str, Any],
    as_json: bool,
    terminal: Terminal,
    before: Before,
) -> None:
    """The same of several answers that vote."""
    from ..evaluation import reasoning

    found: list[Voted] = []
    try:
        for one in reasoning.by_votes(model, questions, judge, n, before=before, **sampling):
            found.append(one)
    finally:
        if as_json:
            terminal.print(json.dumps(_votes_as_json(found, model, len(questions)), indent=2))
        elif found:
            _print_votes(found, n, terminal)


def _print_lengths(found: Sequence[Reasoned], terminal: Terminal) -> None:
    from ..evaluation.reasoning import shares_by_length

    terminal.print(
        terminal.style(f"{'reasoning up to':>16}  {'closed by itself':>24}  {'forced to answer':>24}", DIM, err=False)
    )
    for length, (cut, forced) in shares_by_length(found).items():
        terminal.print(f"{f'{human_count(length)} tokens':>16}  {_share(cut):>24}  {_share(forced):>24}")
    n_open = sum(not one.closed for one in found)
    mean = sum(one.tokens for one in found) / len(found)
    never = f"; {plural(n_open, 'reasoning')} had not ended at the longest" if n_open else ""
    terminal.say(
        f"{plural(len(found), 'question')}, {mean:.0f} tokens of reasoning each{never}; by the lenient rule", DIM
    )


def _print_votes(found: Sequence[Voted], n: int, terminal: Terminal) -> None:
    from ..evaluation.run import Share

    terminal.print(terminal.style(f"{'answers':>8}  {'right':>24}", DIM, err=False))
    for k in range(1, n + 1):
        share = Share(sum(one.right[k - 1] for one in found), len(found))
        terminal.print(terminal.style(f"{k:>8}  {_share(share):>24}", *([BOLD] if k == n else []), err=False))
    agreement = sum(one.agreement for one in found) / len(found)
    tokens = sum(one.tokens for one in found) / len(found)
    terminal.say(
        f"{plural(len(found), 'question')}; {100 * agreement:.0f} % of the answers to a question agree; all answers to "
        f"one have {tokens:.0f} tokens; by the lenient rule",
        DIM,
    )


def _share(share: Any) -> str:
    low, high = share.interval
    return f"{100 * share.value:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def _lengths_as_json(found: Sequence[Reasoned], model: KimiVL, wanted: int) -> dict[str, Any]:
    from ..evaluation.reasoning import shares_by_length

    return {
        "schema": "kimi-vl eval thinking 1",
        "model": model.name,
        "complete": len(found) == wanted,
        "lengths": [
            {"tokens": length, "n": cut.n, "cut": round(cut.value, 4), "forced": round(forced.value, 4)}
            for length, (cut, forced) in shares_by_length(found).items()
        ],
        "answers": [
            {
                "id": one.question.id,
                "reasoning_tokens": one.tokens,
                "closed": one.closed,
                "cut": {str(length): right for length, right in one.cut.items()},
                "forced": {str(length): right for length, right in one.forced.items()},
                "answers": {str(length): answer for length, answer in one.answers.items()},
            }
            for one in found
        ],
    }


def _votes_as_json(found: Sequence[Voted], model: KimiVL, wanted: int) -> dict[str, Any]:
    n = len(found[0].right) if found else 0
    return {
        "schema": "kimi-vl eval votes 1",
        "model": model.name,
        "complete": len(found) == wanted,
        "right": [round(sum(one.right[k] for one in found) / len(found), 4) for k in range(n)],
        "answers": [
            {
                "id": one.question.id,
                "answers": list(one.answers),
                "right": list(one.right),
                "agreement": round(one.agreement, 4),
                "tokens": one.tokens,
            }
            for one in found
        ],
    }


_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 720, 420, 70, 60, 60
_COLOURS = {"forced to answer": (52, 110, 190), "closed by itself": (214, 128, 40)}


def _draw(found: Sequence[Reasoned], name: str, path: str) -> None:
    """Accuracy over the logarithm of the length."""
    from math import log

    from PIL import Image, ImageDraw, ImageFont

    from ..evaluation.reasoning import shares_by_length
    from ..wording import printable

    shares = shares_by_length(found)
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    lengths = list(shares)
    span = log(lengths[-1] / lengths[0]) or 1.0
    inner, tall = _WIDTH - _LEFT - 40, _HEIGHT - _TOP - _BOTTOM

    def at(length: int, value: float) -> tuple[float, float]:
        return _LEFT + inner * (log(length / lengths[0]) / span), _TOP + tall * (1 - value)

    title = printable(f"{name}: right answers by tokens of reasoning", one_line=True)
    pen.text((_LEFT, 14), title.encode("latin-1", "replace").decode("latin-1"), "black", font=font)
    for percent in range(0, 101, 20):
        _, y = at(lengths[0], percent / 100)
        pen.line((_LEFT, y, _LEFT + inner, y), (225, 226, 230))
        pen.text((_LEFT - 50, y - 8), f"{percent} %", "black", font=font)
    for length in lengths:
        x, _ = at(length, 0)
        pen.text((x - 12, _HEIGHT - _BOTTOM + 8), human_count(length), "black", font=font)
    for index, (label, colour) in enumerate(_COLOURS.items()):
        points = [at(length, shares[length][1 - index].value) for length in lengths]
        pen.line(points, colour, width=3)
        for x, y in points:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), colour)
        pen.text((_LEFT + 200 * index, 34), label, colour, font=font)
    picture.save(path, "PNG")
