"""From messages and pictures to a request: the prompt's tokens and pictures, checked against the context."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..cache.keys import Item, Picture, Positions, n_positions
from ..checks import about_argument
from ..errors import BadRequest, ContextFull, shown
from ..files.variants import REASONING
from ..text.chat_template import ImagePart, find_answers, text_of, write_prompt
from ..text.thinking import NO_THINKING
from . import sampling
from .fitting import fit_images
from .generation import Request
from .overflow import drop_turns
from .pixels import PixelSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..media.processor import ImageInput, LimitedImage, ProcessedImage
    from ..text.chat_template import Message, Part, Prompt, Span
    from ..types import Reasoning
    from .adapters import LoadedAdapter
    from .loaded import LoadedModel
    from .tools import ToolUse

MAX_PICTURES = 512
"""Pictures in one request."""

_LISTED = 8  # pictures named one by one in a message


def check_images(images: Any) -> list[Any]:
    """The pictures as a list, else BadRequest: a single picture instead of a list is a likely slip."""
    if isinstance(images, (str, bytes, bytearray, os.PathLike)) or not isinstance(images, (list, tuple)):
        raise BadRequest(
            f"images: got {type(images).__name__}, expected a list of pictures: images=[picture]", "request.images"
        )
    return list(images)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a model in the form of the chat template.

    images: what the messages' image parts count through. answers: assistant turn (0 is the first) -> the token ids it
    was given in, used instead of its text, which would not always be cut into the same tokens again. continue_final:
    the answer continues the last message, an assistant's. tools: the functions that the answer may call. keep: opens
    pictures for a caller that keeps them, as `Request.seen`; None where the request alone needs them.
    """

    messages: Sequence[Message]
    images: Sequence[ImageInput | LimitedImage | ProcessedImage] = ()
    answers: Mapping[int, Sequence[int]] | None = None
    continue_final: bool = False
    tools: ToolUse | None = None
    keep: Callable[[ImageInput | LimitedImage | ProcessedImage], ProcessedImage] | None = None


def build_request(model: LoadedModel, question: Question, *, options: dict[str, Any], started: float) -> Request:
    """Checks a request and writes its prompt. options: those of sampling. started: the time.perf_counter() of its
    arrival.

    Raises BadRequest, BadImage, ContextFull.
    """
    model.gate.check()
    params = sampling.resolve(model.defaults, **options)
    adapter = model.adapters.pick(params.lora)
    prompt, opening = _written(model, question, params)
    _check_pictures(model, prompt.parts, len(question.images), params)
    pictures = _opened(model, question, params, adapter, prompt.n_tokens)
    items, spans = placed(prompt.parts, pictures.places), prompt.messages
    n_dropped = 0
    if model.overflow == "drop_turns":
        shortened = drop_turns(items, spans, model.n_ctx)
        items, spans, n_dropped = shortened.items, shortened.messages, shortened.n_tokens
        if n_dropped:
            pictures.notices.append(shortened.notice)
    return _finish_request(
        model,
        items,
        spans,
        params,
        n_dropped=n_dropped,
        length_given=options.get("max_new_tokens") is not None,
        pixels=pictures.pixels.getters,
        seen=pictures.kept,
        notices=pictures.notices,
        prepare_s=time.perf_counter() - started,
        reasoning=REASONING[model.variant],
        begun=text_of(question.messages[-1]) if question.continue_final else opening,
        may_reason=not opening,
        tools=question.tools,
        adapter=adapter,
    )


def _written(model: LoadedModel, question: Question, params: sampling.SamplingParams) -> tuple[Prompt, str]:
    """The prompt, and the text of the answer that it begins already."""
    tools, continued = question.tools, question.continue_final
    if tools is not None and continued:
        raise BadRequest("tools: a message that is continued cannot call functions: leave tools out", "request.tools")
    reasons = REASONING[model.variant] != "no"
    opening = NO_THINKING if params.thinking_budget == 0 and reasons and not continued else ""
    prompt = write_prompt(
        model.tokenizer,
        question.messages,
        continue_final=continued,
        opening=opening,
        instructions="" if tools is None else tools.instructions,
        answers=question.answers,
    )
    return prompt, opening


@dataclass
class _Pictures:
    """The pictures of a request. places: what stands for each in the prompt. kept: for Request.seen."""

    pixels: PixelSource
    notices: list[str]
    places: list[Picture] = field(default_factory=list)
    kept: list[ProcessedImage] = field(default_factory=list)


def _opened(
    model: LoadedModel,
    question: Question,
    params: sampling.SamplingParams,
    adapter: LoadedAdapter | None,
    n_text: int,
) -> _Pictures:
    """The pictures of a request, pages as large as all of them fit beside n_text tokens. Raises BadImage,
    ContextFull."""
    images, notices = fit_images(model, question.images, n_text, params.max_new_tokens)
    found, keep = _Pictures(PixelSource(model.processor), notices), question.keep
    for index, image in enumerate(images):
        with about_argument(f"images[{index}]"):
            seen = (keep or model.processor)(image)
        digest = model.picture_key(seen, adapter, params.cache_salt)
        found.places.append(Picture(digest, seen.n_tokens))
        found.notices.extend(f"picture {index + 1}: {notice}" for notice in seen.notices)
        found.pixels.add(digest, seen if keep else image, seen)
        if keep:
            found.kept.append(seen)
    return found


def build_text_request(
    model: LoadedModel, prompt: str | Sequence[int], *, options: dict[str, Any], started: float, special: bool = False
) -> Request:
    """Checks a request whose prompt is a text or token ids as they are, without the chat template.

    special: whether text that spells a special token becomes that token. Raises BadRequest, ContextFull.
    """
    model.gate.check()
    params = sampling.resolve(model.defaults, **options)
    ids = model.tokenizer.encode(prompt, special=special) if isinstance(prompt, str) else list(prompt)
    check_ids("prompt", ids, model.n_vocab)
    if not ids:
        raise BadRequest("prompt: it is empty, expected at least one token", "request.prompt")
    return _finish_request(
        model,
        list(ids),
        find_answers(model.tokenizer, ids),
        params,
        length_given=options.get("max_new_tokens") is not None,
        prepare_s=time.perf_counter() - started,
        reasoning="no",
        adapter=model.adapters.pick(params.lora),
    )


def check_ids(name: str, ids: Iterable[Any], n_vocab: int) -> None:
    """Raises BadRequest (code "request.<name>") for what is not the id of a token."""
    for index, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < n_vocab:
            raise BadRequest(
                f"{name}[{index}]: got {shown(token)}, expected a token id from 0 to {n_vocab - 1}", f"request.{name}"
            )


def _finish_request(
    model: LoadedModel,
    items: list[Item],
    messages: Sequence[Span],
    params: sampling.SamplingParams,
    *,
    length_given: bool,
    may_reason: bool = False,
    tools: ToolUse | None = None,
    **fields: Any,
) -> Request:
    """The request of a complete prompt, when it fits into the context. messages: where they lie in it. length_given:
    max_new_tokens is the caller's."""
    tokenizer, n_ctx = model.tokenizer, model.n_ctx
    check_ids("logit_bias", (token for token, _ in params.logit_bias), model.n_vocab)
    check_ids("stop_token_ids", params.stop_token_ids, model.n_vocab)
    if params.grammar is not None or tools is not None:
        if params.min_tokens:
            raise BadRequest("min_tokens: a grammar says where the answer ends: leave it out", "request.min_tokens")
        begun = fields.get("begun", "") if may_reason else ""
        reasoning: Reasoning = fields["reasoning"] if may_reason else "no"
        fields["grammar"] = model.grammars.matcher(params.grammar, reasoning, begun, tools)
    n_prompt = n_positions(items)
    notices = fields.pop("notices", [])
    if n_ctx - n_prompt < params.max_new_tokens < sampling.MAX_NEW_TOKENS and length_given:
        notices.append(
            f"the answer may have {params.max_new_tokens} tokens, but only {n_ctx - n_prompt} fit behind the prompt's "
            f"{n_prompt} into the context of {n_ctx}"
        )
    if params.thinking_budget is not None and fields["reasoning"] == "no":
        notices.append("the model does not reason: a limit on its reasoning has no effect")
    if n_prompt + 1 > n_ctx:
        sizes = [item.n_tokens for item in items if isinstance(item, Picture)]
        raise context_full(n_prompt - sum(sizes), sizes, n_ctx, model)
    return Request(
        positions=Positions(
            model.page_root(fields["adapter"], params.cache_salt), items, answer_positions(items, messages)
        ),
        params=params,
        notices=notices,
        max_new_tokens=min(params.max_new_tokens, n_ctx - n_prompt),
        stop_ids=params.stop_token_ids | (frozenset() if params.ignore_eos else tokenizer.stop_ids),
        **fields,
    )


def _check_pictures(model: LoadedModel, parts: Sequence[Part], n_images: int, params: sampling.SamplingParams) -> None:
    """Raises BadRequest unless the model takes pictures, this many of them and with these options, and the messages
    place each that is given, and no other."""
    if n_images > MAX_PICTURES:
        raise BadRequest(
            f"images: got {n_images} pictures, expected at most {MAX_PICTURES} in one request", "request.images"
        )
    if n_images:
        model.require_vision()
        if params.prompt_logprobs is not None:
            raise BadRequest(
                "prompt_logprobs: got a request with pictures, whose positions are not tokens: leave one of them out",
                "request.prompt_logprobs",
            )
    named = {part.index for part in parts if isinstance(part, ImagePart)}
    given = f"{n_images} picture{'' if n_images == 1 else 's'} given"
    if named and max(named) >= n_images:
        raise BadRequest(f"messages: they name picture {max(named)}, counted from 0, but {given}", "request.messages")
    if len(named) < n_images:
        missing = next(index for index in range(n_images) if index not in named)
        raise BadRequest(
            f"images[{missing}]: no message names it ({given}): "
            f'a part {{"type": "image", "image": {missing}}} places it',
            "request.images",
        )


def placed(parts: Sequence[Part], pictures: Sequence[Picture]) -> list[Item]:
    """The parts as one list of tokens and pictures."""
    items: list[Item] = []
    for part in parts:
        if isinstance(part, ImagePart):
            items.append(pictures[part.index])
        else:
            items.extend(part)
    return items


def answer_positions(items: Sequence[Item], messages: Iterable[Span]) -> NDArray[np.bool_]:
    """bool [n_positions(items)]: True for the contents of assistants' messages."""
    import numpy as np

    starts = [0, *accumulate(item.n_tokens if isinstance(item, Picture) else 1 for item in items)]
    flags = np.zeros(starts[-1], dtype=np.bool_)
    for span in messages:
        if span.role == "assistant":
            flags[starts[span.content] : starts[span.end]] = True
    return flags


def context_full(n_text: int, pictures: Sequence[int], n_ctx: int, model: LoadedModel) -> ContextFull:
    """The error with all numbers and what would fit."""
    n_prompt = n_text + sum(pictures)
    needed = n_prompt + 1
    counted = f"text {n_text}"
    if pictures:
        shown_ones = ", ".join(f"#{index + 1} {size}" for index, size in enumerate(pictures[:_LISTED]))
        more = f" and {len(pictures) - _LISTED} more" if len(pictures) > _LISTED else ""
        counted += f"; pictures {shown_ones}{more}, together {sum(pictures)}"
    allowed = model.context_length
    fits = [f"n_ctx={needed} or more" if needed <= allowed else f"not even the model's full context of {allowed}"]
    if pictures:
        frame = len(model.tokenizer.encode("image")) + 3  # the template's tokens around a picture, which go with it
        n_fit, room = 0, n_ctx - 1 - (n_text - frame * len(pictures))
        while n_fit < len(pictures) and pictures[n_fit] + frame <= room:
            room -= pictures[n_fit] + frame
            n_fit += 1
        fits.append(f"the first {n_fit} of the {len(pictures)} pictures" if n_fit else "none of the pictures")
        fits.append(f"smaller pictures (in_token_limit is {model.processor.in_token_limit} patches, 4 to a token)")
    if n_text + 1 > n_ctx:
        fits.append(f"a text shorter by {n_text + 1 - n_ctx} tokens")
    return ContextFull(
        f"the prompt has {n_prompt} tokens ({counted}) and an answer needs at least 1, but n_ctx is {n_ctx}. "
        f"What would fit: {'; '.join(fits)}",
        "context.prompt_too_long",
    )
