"""The size in which the pictures of a request fit into the context together. Nothing is dropped to make them fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..checks import about_argument, check_int
from ..errors import ContextFull
from ..files.variants import REASONING
from ..media import budget
from ..media.drawn import Drawn, text_around
from ..media.processor import LimitedImage, ProcessedImage

if TYPE_CHECKING:
    from ..media.processor import ImageInput
    from .loaded import LoadedModel

_ANSWER_RESERVE, _REASONING_RESERVE = 1024, 8192
_TEMPLATE_TOKENS = 64  # of a request, around its messages


def limit_images(
    model: LoadedModel, images: Sequence[ImageInput | LimitedImage | ProcessedImage], patches: int | None
) -> list[ImageInput | LimitedImage | ProcessedImage]:
    """The pictures with a limit of `patches` each, where they have none yet; None leaves them as they are.

    Raises BadRequest (code "request.image_patches") for a limit above that of the model.
    """
    if patches is None:
        return list(images)
    top = model.processor.in_token_limit
    check_int("image_patches", patches, 4, top)
    limited = (ProcessedImage, LimitedImage)
    return [image if isinstance(image, limited) else LimitedImage(image, patches) for image in images]


def fit_images(
    model: LoadedModel,
    images: Sequence[ImageInput | LimitedImage | ProcessedImage],
    n_text: int,
    max_new_tokens: int | None,
) -> tuple[list[ImageInput | LimitedImage | ProcessedImage], list[str]]:
    """The pictures of a request with the pages among them in the size that they get, see `fit_pages`, and notices about
    it. n_text: positions of what else is in the prompt.
    """
    pages = [image for image in images if isinstance(image, Drawn)]
    if not pages:
        return list(images), []
    model.require_vision()
    found: list[ImageInput | LimitedImage | ProcessedImage] = []
    for index, image in enumerate(images):
        with about_argument(f"images[{index}]"):
            if isinstance(image, Drawn):
                _ = image.size  # which raises for a page that cannot be drawn
            found.append(image if isinstance(image, Drawn) else model.processor(image))
    n_beside = n_text + sum(image.n_tokens for image in found if isinstance(image, ProcessedImage))
    chosen, notices = fit_pages(model, pages, n_beside, max_new_tokens)
    return [LimitedImage(image, chosen) if isinstance(image, Drawn) else image for image in found], notices


def answer_reserve(model: LoadedModel, max_new_tokens: int | None) -> int:
    """Positions that are kept free for the answer when pictures are fitted into the context."""
    longest = model.defaults.max_new_tokens if max_new_tokens is None else max_new_tokens
    reserve = _ANSWER_RESERVE if REASONING[model.variant] == "no" else _REASONING_RESERVE
    return min(longest, reserve) if longest > 0 else reserve


def positions_needed(
    model: LoadedModel,
    images: Sequence[Drawn],
    text: str,
    max_new_tokens: int | None,
    patches: int | None = None,
    n_other: int = 0,
) -> int:
    """Positions of a request for these pages at `patches` each (None: the model's limit), its answer included; a little
    more than it will take.

    n_other: positions of what else is in the prompt.
    """
    limit = budget.largest(model.processor, images, budget.DOCUMENT_FLOOR) if patches is None else patches
    taken = budget.tokens_at(model.processor, images, limit)
    return taken + text_needed(model, images, text) + n_other + answer_reserve(model, max_new_tokens)


def text_needed(model: LoadedModel, images: Sequence[Drawn], text: str = "") -> int:
    """Positions of text, labels and template of a request that is still to be written; a little more than it will
    take."""
    return _TEMPLATE_TOKENS + len(model.tokenizer.encode(text)) + sum(_n_around(model, image) for image in images)


def fit_pages(
    model: LoadedModel, pages: Sequence[Drawn], n_beside: int, max_new_tokens: int | None
) -> tuple[int, list[str]]:
    """Patches a page so that all pages fit into the context beside n_beside positions and the answer, and notices when
    that is less than the model's limit.

    Raises ContextFull (code "context.full") with what would fit when not even the lowest rung does.
    """
    processor, top = model.processor, model.processor.in_token_limit
    around = n_beside + answer_reserve(model, max_new_tokens)
    patches = budget.fit(processor, pages, model.n_ctx - around, budget.DOCUMENT_FLOOR)
    if patches is None:
        each = around // max(len(pages), 1)
        labels = [_n_around(model, page) for page in pages]
        fits = []
        for rung in budget.rungs(budget.LADDER[0], budget.largest(processor, pages, budget.DOCUMENT_FLOOR)):
            n_fit, room = len(pages), model.n_ctx - around
            while n_fit and budget.tokens_at(processor, pages[:n_fit], rung) > room:
                n_fit -= 1
                room += labels[n_fit]
            fits.append(f"{n_fit} at {rung}")
        raise ContextFull(
            f"{len(pages)} pages do not fit into the context of {model.n_ctx} tokens at "
            f"{min(budget.DOCUMENT_FLOOR, top)} patches a page, below which print is hard to read (about {each} tokens "
            f"a page go to template, text and answer). Pages that fit by patches a page (image_patches): "
            f"{', '.join(fits)}. Give fewer pages, a larger n_ctx (up to {model.context_length}), or smaller pages",
            "context.full",
        )
    if patches == top:
        return patches, []
    return patches, [
        f"{len(pages)} pages are seen at {patches} patches each, not {top}, so that all of them fit into the context"
    ]


def _n_around(model: LoadedModel, page: Drawn) -> int:
    """Tokens of the text that belongs to a page, and of the template around it."""
    encode = model.tokenizer.encode
    return len(encode("image")) + 3 + sum(len(encode(words)) + 1 for words in text_around(page))
