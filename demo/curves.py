"""The curves of a training run as a picture.

python -m demo.curves RUN curves.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from .render_eval import JUDGED


def read_log(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Name -> [(step, value)]; what was measured on held-out pictures as "held-out NAME"."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in path.read_text().splitlines():
        values = json.loads(line)
        step = values["step"]
        for task, value in values.pop("held_out", {}).items():
            found[f"held-out {task}"].append((step, value))
        for name, value in values.items():
            found[name].append((step, value))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    curves = read_log(args.run / "log.jsonl")
    panels = {
        "answers on held-out words and fonts, exact": [
            f"held-out {task}" for task in JUDGED if f"held-out {task}" in curves
        ],
        "loss of the answers": [n for n in curves if n.endswith("/answer")],
        "patches with a character or shape that the eye names": [n for n in curves if n.endswith("/glyph")],
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(15, 4.5), layout="constrained")
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in sorted(names):
            label = name.removeprefix("held-out ").partition("/")[0]
            axis.plot(*zip(*curves[name], strict=True), label=label, linewidth=1.2)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("steps of 48 pictures")
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
        if names:
            axis.legend(fontsize=7, ncols=2)
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main()
