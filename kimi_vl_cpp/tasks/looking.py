"""A short look at a picture in small, answered by one of a few words: how likely the model finds each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..media.processor import LimitedImage

if TYPE_CHECKING:
    from ..media.processor import ImageInput
    from ..model import KimiVL

LOOK_PATCHES = 1024
"""Of the picture: a quarter of what a page is read at."""

_N_TOP = 20  # alternatives among which the words are looked for


def likelihoods(model: KimiVL, image: ImageInput, request: str, words: Sequence[str]) -> dict[str, float]:
    """The log probability of each word as the beginning of the answer; one that is not among the likeliest has that of
    the least likely of them. All are 0.0 when the model says nothing. Raises what `KimiVL.chat` raises."""
    top = model.loaded.processor.in_token_limit
    picture: Any = LimitedImage(image, min(LOOK_PATCHES, top))
    response = model.chat(
        request, [picture], temperature=0, seed=0, max_new_tokens=1, logprobs=_N_TOP, thinking_budget=0
    )
    if not response.logprobs:
        return dict.fromkeys(words, 0.0)
    first = response.logprobs[0]
    found = dict.fromkeys(words, min((logprob for _, logprob in first.top), default=first.logprob))
    for token, logprob in first.top:
        said = model.detokenize([token]).strip().casefold()
        for word in words:
            if said and word.startswith(said):
                found[word] = max(found[word], logprob)
    return found
