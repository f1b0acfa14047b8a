"""Page numbers as users write them behind a file's name: `report.pdf#3,7-9,40-`. Knows no document."""

from __future__ import annotations

import re

from ..errors import BadDocument, shown

_RANGE = re.compile(r"(\d{1,9}|last)?\s*(-)?\s*(\d{1,9}|last)?")


def parse(text: str, n_pages: int, label: str) -> tuple[list[int], list[str]]:
    """The pages that a text names, from 1, in its order, and notices about those that it names twice.

    text: numbers, `last`, and ranges of them (`7-9`, `40-`, `-3`) separated by commas. label: what messages call the
    document. Raises BadDocument (code "document.pages").
    """
    found: dict[int, None] = {}
    doubles: dict[int, None] = {}
    for item in text.split(","):
        match = _RANGE.fullmatch(item.strip())
        if match is None or not (match[1] or match[3]):
            raise BadDocument(
                f"{label}: {shown(item.strip())} is not a page or a range of pages: expected for example #3,7-9,40- "
                f"(it has {_pages(n_pages)})",
                "document.pages",
            )
        first, dash, end = match.groups()
        start = _number(first, n_pages) if first else 1
        stop = start if not dash else _number(end, n_pages) if end else n_pages
        for number in (start, stop):
            if not 1 <= number <= n_pages:
                raise BadDocument(
                    f"{label} has {_pages(n_pages)}; {shown(item.strip())} names page {number}", "document.pages"
                )
        if stop < start:
            raise BadDocument(
                f"{label}: {shown(item.strip())} runs backwards: write the smaller page first", "document.pages"
            )
        for number in range(start, stop + 1):
            (doubles if number in found else found)[number] = None
    named = ", ".join(map(str, list(doubles)[:8])) + (", …" if len(doubles) > 8 else "")
    return list(found), [f"{label}: page {named} is named twice and used once"] if doubles else []


def _number(text: str, n_pages: int) -> int:
    return n_pages if text == "last" else int(text)


def _pages(n: int) -> str:
    return f"{n} page{'' if n == 1 else 's'}"
