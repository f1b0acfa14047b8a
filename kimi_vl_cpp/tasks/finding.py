"""Which pages of a long document a question is about: by their text layers, or by looking at them in small.

Text layers are ranked by BM25 (Robertson and Zaragoza, 2009); pages without one that is text are skimmed by the model,
which says yes or no. A page that is not chosen is not seen at all, so a caller names those that are.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..media.paged import is_usable
from .looking import likelihoods

if TYPE_CHECKING:
    from ..media.paged import Page
    from ..model import KimiVL

REQUEST = "Does this page help to answer the following question? Answer yes or no.\n"

_K1, _B = 1.2, 0.75  # the usual constants
_WORD = re.compile(r"\w+")


def best_pages(
    model: KimiVL,
    pages: Sequence[Page],
    question: str,
    n: int,
    before: Callable[[int], None] | None = None,
) -> list[Page]:
    """The n pages that a question is about, in the order of `pages`. Pages that were skimmed and those that were ranked
    by their text take turns, the best of each first.

    before: called with how many pages were skimmed before each of them. Raises what `KimiVL.chat` raises.
    """
    if len(pages) <= n:
        return list(pages)
    texts = [page.text() for page in pages]
    read = [index for index, text in enumerate(texts) if is_usable(text)]
    skimmed = [index for index in range(len(pages)) if index not in set(read)]
    scores = bm25(question, [texts[index] for index in read])
    by_text = sorted(read, key=lambda index: -scores[read.index(index)])
    says: dict[int, float] = {}
    for done, index in enumerate(skimmed):
        if before is not None:
            before(done)
        says[index] = _helps(model, pages[index], question)
    by_look = sorted(skimmed, key=lambda index: -says[index])
    chosen = [index for pair in _in_turn(by_text, by_look) for index in pair][:n]
    return [pages[index] for index in sorted(chosen)]


def bm25(question: str, texts: Sequence[str]) -> list[float]:
    """How well each text fits a question: the sum over the question's words. 0 for none of them."""
    counts = [Counter(words(text)) for text in texts]
    lengths = [max(1, count.total()) for count in counts]
    average = sum(lengths) / max(1, len(lengths))
    scores = [0.0] * len(texts)
    for word in set(words(question)):
        n_with = sum(word in count for count in counts)
        weight = math.log(1 + (len(texts) - n_with + 0.5) / (n_with + 0.5))
        for index, count in enumerate(counts):
            norm = _K1 * (1 - _B + _B * lengths[index] / average)
            scores[index] += weight * count[word] * (_K1 + 1) / (count[word] + norm)
    return scores


def words(text: str) -> list[str]:
    """The words of a text in small letters. A plural and its singular are one word in most cases."""
    return [word.removesuffix("s") if len(word) > 3 else word for word in _WORD.findall(text.casefold())]


def _in_turn(first: Sequence[int], second: Sequence[int]) -> list[list[int]]:
    longest = max(len(first), len(second))
    return [[*first[index : index + 1], *second[index : index + 1]] for index in range(longest)]


def _helps(model: KimiVL, page: Page, question: str) -> float:
    """How much likelier yes is than no, as the difference of their log probabilities."""
    found = likelihoods(model, page, REQUEST + question, ("yes", "no"))
    return found["yes"] - found["no"]
