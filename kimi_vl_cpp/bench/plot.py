"""The figures of a report as a picture: for each test a bar as long as its share of the machine's ceiling, and a
line where the peer of --against ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..errors import BadRequest
from ..wording import printable
from .report import short

_LABEL, _BAR, _TAIL, _LINE, _MARGIN = 260, 420, 390, 34, 24
_INK, _PALE, _BLUE, _ORANGE = (30, 30, 34), (222, 224, 230), (52, 110, 190), (214, 128, 40)
_LATIN = {"·": "-", "…": "..."}


def check_path(path: str) -> None:
    """Raises BadRequest ("bench.plot") for a name that does not end in .png, before anything is measured."""
    if not path.lower().endswith(".png"):
        raise BadRequest(f"--plot {path}: expected a name that ends in .png", "bench.plot")


def draw(report: Mapping[str, Any], path: str) -> None:
    """Writes the PNG. Raises OSError. A bar that would be longer than the ceiling ends at it."""
    tests = report["tests"]
    font = ImageFont.load_default(15)
    width = 2 * _MARGIN + _LABEL + _BAR + _TAIL
    picture = Image.new("RGB", (width, 2 * _MARGIN + _LINE * (len(tests) + 3)), "white")
    pen = ImageDraw.Draw(picture)

    def text(x: float, y: float, words: str) -> None:
        for sign, plain in _LATIN.items():
            words = words.replace(sign, plain)
        words = printable(words, one_line=True).encode("latin-1", "replace").decode("latin-1")
        pen.text((x, y), words, _INK, font=font)

    text(_MARGIN, _MARGIN, f"kimi-vl {report['version']} · {report['model']['name']} · {report['cpu']}")
    how = f"{report['isa']}, {report['n_threads']} threads, KV {report['kv_type']}, {report['date']}"
    text(_MARGIN, _MARGIN + 22, how)
    y = _MARGIN + 2 * _LINE
    for row in tests:
        left = _MARGIN + _LABEL
        share = row["percent_of_ceiling"] / 100
        text(_MARGIN, y + 6, row["test"])
        pen.rectangle((left, y + 4, left + _BAR, y + _LINE - 6), _PALE)
        colour = _BLUE if row["bound"] == "memory" else _ORANGE
        pen.rectangle((left, y + 4, left + max(1, round(min(1.0, share) * _BAR)), y + _LINE - 6), colour)
        tail = f"{short(row['median'])} {row['unit']}  {row['percent_of_ceiling']:.0f} % of the ceiling"
        duel = row.get("against")
        if duel:
            tail += f"  {duel['ratio']:.2f} x the peer"
            peer = left + round(min(1.0, share / duel["ratio"]) * _BAR)
            pen.rectangle((peer - 1, y + 1, peer + 1, y + _LINE - 3), _INK)
        text(left + _BAR + 12, y + 6, tail)
        y += _LINE
    legend = "A full bar is what the machine could do at most. Blue: bound by memory, orange: by arithmetic."
    text(_MARGIN, y + 8, legend + ("  |  the peer" if any(row.get("against") for row in tests) else ""))
    picture.save(path, "PNG")
