"""The held-out questions of `kimi-vl eval`: pictures of words and fonts that training never saw.

    python -m demo.render_eval FOLDER [--seed N] [-n PER_TASK]

Writes FOLDER/questions.jsonl and the pictures. The same seed gives the same questions.
"""

from __future__ import annotations

import argparse
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .example import Example, Turn
from .tasks import make_example

# Judged tasks, each with the drawing task that its pictures come from.
JUDGED = {
    "words": "words",
    "prices": "words",
    "receipt_total": "receipt",
    "receipt_price": "receipt",
    "shape": "shapes",
    "colour": "shapes",
    "count": "shapes",
    "where": "shapes",
}
MOST_PER_PICTURE = 2
_LARGEST_PNG = 9000  # bytes: noise is better kept as JPEG, and then that is the picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=20260)
    parser.add_argument("-n", type=int, default=40, help="questions of a task")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    lines = render(args.folder, args.seed, args.n)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (args.folder / "questions.jsonl").write_text(text)
    print(f"{len(lines)} questions about {len({line['image'] for line in lines})} pictures")


def render(folder: Path, seed: int, n: int) -> list[dict[str, Any]]:
    """The lines of questions.jsonl; the pictures are written to the folder."""
    found: Counter[str] = Counter()
    lines: list[dict[str, Any]] = []
    number = 0
    while len(found) < len(JUDGED) or min(found.values()) < n:
        rng = np.random.default_rng((seed, number))
        number += 1
        task = min(JUDGED, key=lambda name: (found[name], name))
        example = make_example(rng, JUDGED[task], split="held_out", difficulty=float(rng.uniform(0, 1)))
        turns = [turn for turn in example.turns if turn.task in JUDGED and found[turn.task] < n]
        turns.sort(key=lambda turn: (turn.task != task, found[turn.task]))
        if not turns or turns[0].task != task:
            continue
        name = _save(example, folder / f"{number:05d}")
        for turn in turns[:MOST_PER_PICTURE]:
            found[turn.task] += 1
            lines.append(_line(turn, name, found[turn.task]))
    return sorted(lines, key=lambda line: (list(JUDGED).index(line["task"]), line["id"]))


def _line(turn: Turn, image: str, number: int) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": f"{turn.task}-{number:03d}",
        "task": turn.task,
        "image": image,
        "question": turn.question,
        "answers": [turn.answer],
    }
    if turn.box is not None:
        line["box"] = [round(side, 1) for side in turn.box]
    return line


def _save(example: Example, stem: Path) -> str:
    image = Image.fromarray(example.image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    path = stem.with_suffix(".png")
    if buffer.tell() > _LARGEST_PNG:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        path = stem.with_suffix(".jpg")
    path.write_bytes(buffer.getvalue())
    return path.name


if __name__ == "__main__":
    main()
