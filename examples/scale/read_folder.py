"""Ray Data: one question about every picture and page of a folder, by as many copies of the model as there is room for.

    pip install 'kimi-vl-cpp[pdf,ray]'
    python read_folder.py FOLDER OUT "What is the total?" --copies 4

OUT gets one JSON file for each picture or page. What is there is not asked again: a run that was stopped goes on where
it was, and a file that changed is asked anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from kimi_vl_cpp import Document, KimiVL, KimiVLError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def pages_of(folder: Path, question: str) -> Iterator[dict[str, Any]]:
    """A row for every picture, and for every page of a document: page is 0 for a picture."""
    for path in sorted(folder.rglob("*")):
        kind = path.suffix.lower()
        if kind in PICTURES:
            n_pages = 0
        elif kind == ".pdf":
            with Document(path) as document:
                n_pages = len(document)
        else:
            continue
        digest = hashlib.sha256(path.read_bytes() + question.encode()).hexdigest()
        for page in range(1, n_pages + 1) if n_pages else (0,):
            yield {"path": str(path), "page": page, "name": f"{digest[:32]}-{page}.json"}


class Reader:
    """One copy of the model; Ray makes as many as it is told to."""

    def __init__(self, model: str | None, question: str, out: str, threads: int | None) -> None:
        self._model = KimiVL(model, n_threads=threads) if model else KimiVL.builtin(n_threads=threads)
        self._question = question
        self._out = Path(out)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        result = {"path": row["path"], "page": row["page"], **self._answer(row)}
        target = self._out / row["name"]
        unfinished = target.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(result, ensure_ascii=False))
        unfinished.replace(target)  # whole, or not there
        return {"n_failed": int("error" in result)}

    def _answer(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            if not row["page"]:
                return {"text": self._model.chat(self._question, [row["path"]], seed=0).text}
            with Document(row["path"]) as document:
                return {"text": self._model.chat(self._question, document.pages(str(row["page"])), seed=0).text}
        except KimiVLError as error:
            return {"error": str(error), "code": error.code}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("question")
    parser.add_argument("--model")
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--threads", type=int, help="of each copy")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = [row for row in pages_of(asked.folder, asked.question) if not (asked.out / row["name"]).exists()]
    print(f"{len(rows)} to read")
    if rows:
        read = (
            ray.data.from_items(rows)
            .repartition(min(len(rows), 8 * asked.copies))
            .map(
                Reader,
                fn_constructor_args=(asked.model, asked.question, str(asked.out.resolve()), asked.threads),
                concurrency=asked.copies,
                num_cpus=asked.threads or 1,
            )
        )
        print(f"{len(rows)} read, {read.sum('n_failed')} of them failed")


if __name__ == "__main__":
    main()
