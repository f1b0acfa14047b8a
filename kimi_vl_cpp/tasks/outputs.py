"""What was read, as files: one text with page marks, JSON, or a CSV file a table. Files are replaced as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import extract, tables
from .extract import Merged
from .reading import ReadPage
from .recipes import Kind

SUFFIXES: Mapping[str, tuple[str, Kind]] = {
    ".md": ("text", "md"),
    ".txt": ("text", "text"),
    ".html": ("text", "html"),
    ".tex": ("text", "latex"),
    ".json": ("json", "md"),
    ".csv": ("csv", "table"),
}
"""End of the output's name -> how it is written, and the recipe that is read with when none is named."""


def as_text(pages: Sequence[ReadPage], kind: Kind) -> str:
    """All pages one after the other, each behind its mark."""
    parts = []
    for page in pages:
        said = _mark(page)
        mark = {"md": f"<!-- {said} -->", "html": f"<!-- {said} -->", "latex": f"% {said}"}.get(kind, f"[{said}]")
        parts.append(f"{mark}\n\n{page.text}\n" if page.text else f"{mark}\n")
    return "\n".join(parts)


def as_json(pages: Sequence[ReadPage], about: Mapping[str, Any]) -> str:
    """One object: what was read from what, and the pages. Times are left out: the same run gives the same file."""
    listed = [
        {"page": page.number, "text": page.text, "source": page.source, "problem": page.problem} for page in pages
    ]
    return json.dumps({**about, "pages": listed}, ensure_ascii=False, indent=2) + "\n"


def as_data(pages: Sequence[ReadPage], schema: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[str, Merged]:
    """One object: the record that the pages make together, what they disagree on, and the record of each."""
    records = [(page.number, _parsed(page.text)) for page in pages]
    merged = extract.merge(records, schema)
    listed = [
        {"page": page.number, "data": data, "problem": page.problem}
        for page, (_, data) in zip(pages, records, strict=True)
    ]
    result = {**about, **asdict(merged), "pages": listed}
    return json.dumps(result, ensure_ascii=False, indent=2) + "\n", merged


def _parsed(text: str) -> Any:
    """The value of a page's JSON, None where it was cut off."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def write_csv(pages: Sequence[ReadPage], out: Path, *, safe: bool) -> tuple[list[Path], list[str]]:
    """A file for every table, `OUT.t3-1.csv` for the first of page 3. Returns them and notices."""
    written, notices = [], []
    for page in pages:
        found, said = tables.find_tables(page.text)
        notices += [f"page {page.number}, {notice}" for notice in said]
        for number, table in enumerate(found, 1):
            path = out.with_name(f"{out.stem}.t{page.number}-{number}{out.suffix}")
            replace_file(path, tables.to_csv(table, safe=safe))
            written.append(path)
    return written, notices


def replace_file(path: Path, text: str) -> None:
    """Writes a file beside it and moves it there, so that a reader sees the old one or the new one. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", errors="replace", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _mark(page: ReadPage) -> str:
    said = f"page {page.number}"
    if page.source == "text layer":
        return f"{said}: the document's text layer, not read from the picture ({page.problem})"
    if page.is_read:
        return said
    return f"{said} read in part: {page.problem}" if page.text else f"{said} not read: {page.problem}"
