"""What a model is asked to make of a page, and how its answer is taken. Text only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ..generation.grammar import GrammarSource

Kind = Literal["md", "text", "html", "latex", "table", "data"]

NOTHING = "(nothing)"
"""What a model is asked to write for a blank page."""


@dataclass(frozen=True)
class Recipe:
    """prompt: the request, behind the picture. transcribes: whether the answer is all the text of the page, so that it
    can be compared with the page's text layer. grammar: what the answer has to follow."""

    kind: Kind
    prompt: str
    transcribes: bool = False
    grammar: GrammarSource | None = None


_KEEP = (
    "Keep the reading order. Copy the text exactly as it is printed, without adding, leaving out or explaining "
    f"anything. For an empty page write {NOTHING}."
)

RECIPES: dict[Kind, Recipe] = {
    recipe.kind: recipe
    for recipe in (
        Recipe(
            "md",
            "Convert this page to Markdown: headings, lists and tables as Markdown, formulas as LaTeX between dollar "
            f"signs. {_KEEP}",
            transcribes=True,
        ),
        Recipe("text", f"Read all the text on this page, line by line. {_KEEP}", transcribes=True),
        Recipe(
            "html", f"Convert this page to HTML, tables as <table>, without a head or styles. {_KEEP}", transcribes=True
        ),
        Recipe("latex", "Generate the LaTeX code of the formula."),
        Recipe("table", "Parse the complete table into Markdown table format."),
    )
}

_FENCE = re.compile(r"\s*(`{3,}|~{3,})[ \t]*[\w+-]*[ \t]*\n(.*?)\n?[ \t]*\1[ \t]*\s*", re.DOTALL)


def clean(answer: str) -> str:
    """An answer without the fence around all of it and without white space at its ends; "" for NOTHING."""
    match = _FENCE.fullmatch(answer)
    text = (match[2] if match and match[1] not in match[2] else answer).strip()
    return "" if text.strip(".").lower() == NOTHING else text
