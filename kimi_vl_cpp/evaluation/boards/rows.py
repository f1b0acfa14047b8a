"""The rows of a benchmark's file: TSV as VLMEvalKit publishes it, or JSON and JSONL of the benchmark itself.

A TSV is read row by row, never whole: pictures lie in it as base64 and files have gigabytes.
"""

from __future__ import annotations

import ast
import base64
import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ...errors import BadRequest, Unsupported, shown

Row = dict[str, Any]

MAX_JSON_BYTES = 1 << 30
_MAX_FIELD_CHARS = 256 << 20
_LONGEST_REFERENCE = 64  # characters: an `image` this short names the row that has the picture


def bad(path: Path, row: object, problem: str) -> NoReturn:
    """Raises BadRequest "eval.data" about a row of a file."""
    raise BadRequest(f"{path}: row {shown(row)}: {problem}", "eval.data")


def read_rows(path: Path) -> Iterator[Row]:
    """Every row with its own index (or number from 0) under "index". Raises BadRequest "eval.data", Unsupported."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        raise Unsupported(
            f"{path}: Parquet is not read: convert it, for example with pandas: "
            "pandas.read_parquet(FILE).to_json(OUT, orient='records', lines=True)",
            "eval.parquet",
        )
    try:
        if suffix == ".tsv":
            yield from _tsv(path)
        elif suffix in (".json", ".jsonl"):
            yield from _json(path)
        else:
            raise BadRequest(f"{path}: expected a .tsv, .json or .jsonl file of the benchmark", "eval.data")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path}: is not UTF-8 at byte {error.start}", "eval.data") from None
    except OSError as error:
        raise BadRequest(f"{path}: cannot be read: {error.strerror}", "eval.data") from None


def _tsv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_MAX_FIELD_CHARS)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        try:
            for number, row in enumerate(reader):
                found = {key: value for key, value in row.items() if key is not None and value not in (None, "")}
                yield {"index": str(number), **found}
        except csv.Error as error:
            raise BadRequest(f"{path}: line {reader.line_num}: {error}", "eval.data") from None


def _json(path: Path) -> Iterator[Row]:
    size = os.stat(path).st_size
    if size > MAX_JSON_BYTES:
        raise BadRequest(f"{path}: has {size} bytes, expected at most {MAX_JSON_BYTES}", "eval.data")
    text = path.read_text("utf-8-sig")
    try:
        if path.suffix.lower() == ".jsonl":
            value: Any = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{path}: is not JSON: {error}", "eval.data") from None
    if isinstance(value, dict) and isinstance(value.get("data"), list):  # InfographicVQA
        value = value["data"]
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, row in rows:
        if not isinstance(row, dict):
            bad(path, key, f"is {shown(row)}, expected an object")
        yield {"index": str(key), **row}


def as_list(value: Any) -> list[Any]:
    """A list that a TSV holds as text, a list as it is, and one of a single value."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [value]
    return list(value) if isinstance(value, list | tuple) else [value]


class Pictures:
    """The pictures of rows: base64 in the row or in an earlier row that it names, or files in `folder`."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._path, self._folder = path, folder
        self._by_index: dict[str, str] = {}

    def of(self, row: Row, *names: str) -> list[bytes | Path]:
        """names: the columns to look for files in, after "image" with base64. Raises BadRequest "eval.data"."""
        stored = row.get("image")
        if isinstance(stored, str) and self._path.suffix.lower() == ".tsv":
            found = [self._decoded(row, str(one)) for one in as_list(stored)]
            if len(found) == 1 and len(stored) > _LONGEST_REFERENCE:
                self._by_index[str(row["index"])] = stored
            return list(found)
        for name in (*names, "image", "image_path"):
            if isinstance(row.get(name), str):
                return [self.file(row, str(one)) for one in as_list(row[name])]
        bad(self._path, row["index"], f"has no picture, expected one of {', '.join((*names, 'image'))}")

    def _decoded(self, row: Row, text: str) -> bytes:
        if len(text) <= _LONGEST_REFERENCE:
            if text not in self._by_index:
                bad(self._path, row["index"], f"image names row {shown(text)}, which is not before it")
            text = self._by_index[text]
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            bad(self._path, row["index"], "image is not base64")

    def file(self, row: Row, name: str) -> Path:
        """A file that a row names. Raises BadRequest "eval.data"."""
        path = self._folder / name
        inside = os.path.commonpath([os.path.realpath(self._folder), os.path.realpath(path)])
        if inside != os.path.realpath(self._folder):
            bad(self._path, row["index"], f"the picture {shown(name)} lies outside of {self._folder}")
        if not path.is_file():
            bad(self._path, row["index"], f"the picture {name} is not in {self._folder}: name its folder with --images")
        return path
