"""The built-in model's file: the converted model with what it says of itself.

python -m demo.card converted.gguf docs/builtin-model.md kimi_vl_cpp/builtin/model.gguf \\
    --measured tests/builtin_accuracy.json

The card is the page down to its mark. --measured, from `kimi-vl eval --json`, writes the page's table first.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, ReaderField

from kimi_vl_cpp.files.variants import KEY_CARD, KEY_DEMO, KEY_MAX_NEW_TOKENS, KEY_TEMPERATURE

NAME = "Kimi-VL demonstration model"
LONGEST_ANSWER = 48
END_OF_CARD = "<!-- The card in the file ends here. -->"

# In the words of the page; a task that is not here keeps its name.
TASK_NAMES = {
    "words": "printed words, a line or all of them",
    "prices": "printed prices",
    "receipt_total": "receipt: the total",
    "receipt_price": "receipt: the price of a named row",
    "shape": "which shape",
    "colour": "which colour",
    "count": "how many",
    "where": "where, of nine places",
    "button": "a point inside the named button",
}


def with_figures(page: str, measured: dict[str, Any]) -> str:
    """The page with the table of what was measured: `tasks` and `all` of `kimi-vl eval --json`."""
    rows = [("task", "exactly right", "95 % interval", "of"), ("---",) * 4]
    for task, row in [*measured["tasks"].items(), ("all", measured["all"])]:
        low, high = (100 * end for end in row["interval"])
        rows.append(
            (TASK_NAMES.get(task, task), f"{100 * row['exact']:.1f} %", f"{low:.1f} to {high:.1f}", str(row["n"]))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    table = "\n".join(f"| {line} |" for line in lines)
    found = re.compile(r"(<!-- accuracy -->\n).*?(\n<!-- end of accuracy -->)", re.DOTALL)
    if not found.search(page):
        raise ValueError("the page has no <!-- accuracy --> and <!-- end of accuracy -->")
    return found.sub(lambda marks: marks[1] + table + marks[2], page)


def card_of(page: str) -> str:
    """The card: the page down to END_OF_CARD, without the marks."""
    lines = page.split(END_OF_CARD)[0].splitlines()
    return "\n".join(line for line in lines if not line.startswith("<!--")).strip() + "\n"


def add_card(source: Path, card: str, target: Path) -> None:
    """Copies a GGUF file and adds the card, greedy sampling and a limit of answers to its metadata."""
    reader = GGUFReader(source)
    writer = GGUFWriter(None, reader.fields["general.architecture"].contents())
    ours = {
        "general.name": (NAME, GGUFValueType.STRING),
        "general.description": (card.strip().splitlines()[0].lstrip("# "), GGUFValueType.STRING),
        KEY_DEMO: (True, GGUFValueType.BOOL),
        KEY_CARD: (card, GGUFValueType.STRING),
        KEY_TEMPERATURE: (0.0, GGUFValueType.FLOAT32),
        KEY_MAX_NEW_TOKENS: (LONGEST_ANSWER, GGUFValueType.UINT32),
    }
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in (*ours, "general.architecture"):
            _copy(writer, key, field)
    for key, (value, kind) in ours.items():
        writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file(target)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy(writer: GGUFWriter, key: str, field: ReaderField) -> None:
    kind = field.types[0]
    element = field.types[-1] if kind == GGUFValueType.ARRAY else None
    writer.add_key_value(key, field.contents(), kind, sub_type=element)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--measured", type=Path)
    args = parser.parse_args()
    page = args.page.read_text()
    if args.measured is not None:
        page = with_figures(page, json.loads(args.measured.read_text()))
        args.page.write_text(page)
    add_card(args.source, card_of(page), args.target)


if __name__ == "__main__":
    main()
