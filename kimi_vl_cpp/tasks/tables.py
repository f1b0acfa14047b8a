"""Tables in answers: found in Markdown and HTML, written as CSV (RFC 4180). Knows no model."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from html.parser import HTMLParser

Table = list[list[str]]

_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*")
_CELL = re.compile(r"(?:\\.|[^|\\])*")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_MAX_SPAN = 1000


def find_tables(text: str) -> tuple[list[Table], list[str]]:
    """The tables of a text in order, rectangular, and notices about rows that were padded. HTML tables, or Markdown
    ones when there are none."""
    tables = _html_tables(text) if "<table" in text.lower() else _markdown_tables(text)
    notices = []
    for number, table in enumerate(tables, 1):
        width = max(map(len, table))
        short = [row for row in table if len(row) < width]
        if short:
            n = len(short)
            notices.append(f"table {number}: {n} row{'s' if n > 1 else ''} padded to {width} columns")
        for row in short:
            row += [""] * (width - len(row))
    return tables, notices


def to_csv(table: Sequence[Sequence[str]], *, safe: bool = False) -> str:
    """safe: a cell that a spreadsheet would take for a formula gets an apostrophe in front."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    for row in table:
        writer.writerow([f"'{cell}" if safe and cell.startswith(_FORMULA_STARTS) else cell for cell in row])
    return out.getvalue()


def _markdown_tables(text: str) -> list[Table]:
    lines = text.splitlines()
    tables: list[Table] = []
    at = 0
    while at + 1 < len(lines):
        if "|" not in lines[at] or "-" not in lines[at + 1] or not _RULE.fullmatch(lines[at + 1]):
            at += 1
            continue
        table = [_cells(lines[at])]
        at += 2
        while at < len(lines) and "|" in lines[at]:
            table.append(_cells(lines[at]))
            at += 1
        tables.append(table)
    return tables


def _cells(line: str) -> list[str]:
    line = line.strip().removeprefix("|")
    if line.endswith("|") and not line.endswith("\\|"):
        line = line[:-1]
    cells, at = [], 0
    while True:
        match = _CELL.match(line, at)
        end = match.end() if match else at
        cells.append(line[at:end].strip().replace("\\|", "|").replace("<br>", "\n"))
        if end >= len(line):
            return cells
        at = end + 1


def _html_tables(text: str) -> list[Table]:
    parser = _Tables()
    parser.feed(text)
    parser.close()
    parser.end_table()
    return [table for table in parser.tables if table]


class _Tables(HTMLParser):
    """Rows and cells of all tables; rowspan and colspan repeat the cell. A nested table is text of its cell."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Table] = []
        self._depth = 0
        self._grid: dict[tuple[int, int], str] = {}
        self._row, self._column = -1, 0
        self._cell: list[str] | None = None
        self._span = (1, 1)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._depth += 1
            if self._depth == 1:
                self._grid, self._row = {}, -1
        if self._depth != 1:
            return
        if tag == "tr":
            self._end_cell()
            self._row, self._column = self._row + 1, 0
        elif tag in ("td", "th"):
            self._end_cell()
            self._row = max(self._row, 0)
            values = dict(attrs)
            self._span = _span(values.get("rowspan")), _span(values.get("colspan"))
            self._cell = []
        elif tag == "br" and self._cell is not None:
            self._cell.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "tr") and self._depth == 1:
            self._end_cell()
        elif tag == "table" and self._depth:
            self._depth -= 1
            if self._depth == 0:
                self.end_table()

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def end_table(self) -> None:
        """Closes the table that is open, if one is."""
        self._end_cell()
        if self._grid:
            rows, columns = (max(place[axis] for place in self._grid) + 1 for axis in (0, 1))
            self.tables.append([[self._grid.get((row, col), "") for col in range(columns)] for row in range(rows)])
        self._grid = {}

    def _end_cell(self) -> None:
        if self._cell is None:
            return
        text = "\n".join(" ".join(line.split()) for line in "".join(self._cell).split("\n")).strip()
        self._cell = None
        while (self._row, self._column) in self._grid:
            self._column += 1
        for down in range(self._span[0]):
            for across in range(self._span[1]):
                self._grid.setdefault((self._row + down, self._column + across), text)
        self._column += self._span[1]


def _span(value: str | None) -> int:
    return min(int(value), _MAX_SPAN) if value and value.isascii() and value.isdigit() and int(value) else 1
