"""Citations by page: asking for them, finding them in an answer, and checking them. An answer is never changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

REQUEST = "After each claim, name the page that it is from, like this: [p. 3]."
"""What is added to a question."""

MIN_SUPPORT = 0.6
"""Share of a claim's words that must stand in the page's text layer."""

_CITATION = re.compile(r"\[\s*(?:pp?|pages?)\.?\s*(\d{1,6}(?:\s*[,;–-]\s*\d{1,6})*)\s*\]", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+|\n+")
_WORD = re.compile(r"\w{3,}|\d+")
_LONGEST_RANGE = 100


@dataclass(frozen=True)
class Citation:
    """A page that an answer names. claim: the words before it. given: whether the page was among those that were asked
    about. supported: whether the page's text layer has the claim's words; None without a text layer or words."""

    page: int
    claim: str
    given: bool
    supported: bool | None


def check(answer: str, pages: Mapping[int, str]) -> list[Citation]:
    """The citations of an answer in its order. pages: those that were asked about, with their text layers."""
    found = []
    start = 0
    claim = ""
    for match in _CITATION.finditer(answer):
        said = _SENTENCE_END.split(_CITATION.sub("", answer[start : match.start()]).strip())
        claim = next((part for part in reversed(said) if _WORD.search(part)), claim)
        start = match.end()
        for page in _numbers(match[1]):
            found.append(Citation(page, claim, page in pages, _supported(claim, pages.get(page, ""))))
    return found


def problems(citations: Sequence[Citation]) -> list[str]:
    """One line for each citation that does not hold."""
    lines = []
    for one in citations:
        claim = one.claim if len(one.claim) <= 60 else one.claim[:59] + "…"
        if not one.given:
            lines.append(f"[p. {one.page}] is not one of the pages given: {claim}")
        elif one.supported is False:
            lines.append(f"[p. {one.page}] does not have these words in its text layer: {claim}")
    return lines


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for item in re.split(r"[,;]", text):
        ends = [int(end) for end in re.split(r"[–-]", item) if end.strip()]
        numbers += range(ends[0], min(ends[-1], ends[0] + _LONGEST_RANGE) + 1) if len(ends) > 1 else ends
    return numbers


def _supported(claim: str, layer: str) -> bool | None:
    words = set(_WORD.findall(claim.lower()))
    if not words or not layer.strip():
        return None
    return len(words & set(_WORD.findall(layer.lower()))) >= MIN_SUPPORT * len(words)
