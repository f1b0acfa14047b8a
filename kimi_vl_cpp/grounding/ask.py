"""The questions themselves: one request each, greedy, and its answer as points or boxes of the source picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from ..errors import BadRequest, GroundingError, shown
from ..types import Response
from . import mapping as pixels
from . import parse, prompts
from .mapping import Mapping
from .parse import Place, Units

if TYPE_CHECKING:
    from ..media.processor import ProcessedImage

Start = Callable[..., Any]
"""`KimiVL.start`."""

MAX_NEW_TOKENS, MAX_NEW_TOKENS_REASONING = 512, 8192


@dataclass(frozen=True)
class Point:
    """A place in a picture: pixels of the upright source, and shares of its width and height. raw, thinking: the answer
    it is from. notices: what is worth knowing about it."""

    x: int
    y: int
    share: tuple[float, float]
    raw: str = ""
    thinking: str = ""
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Box:
    """A box in a picture: its corners in pixels of the upright source, and as shares of width and height."""

    x0: int
    y0: int
    x1: int
    y1: int
    label: str
    shares: tuple[float, float, float, float]
    raw: str = ""
    notices: tuple[str, ...] = ()


def checked(options: dict[str, Any], variant: str, n_ctx: int) -> dict[str, Any]:
    """The options of a question with their defaults: greedy, and room for an answer of this variant.

    Raises BadRequest (code "request.mapping", "request.units").
    """
    for name, allowed in (("mapping", get_args(Mapping)), ("units", (None, *get_args(Units)))):
        if options.get(name, allowed[0]) not in allowed:
            listed = ", ".join(map(repr, allowed))
            raise BadRequest(f"{name}: got {shown(options[name])}, expected one of {listed}", f"request.{name}")
    longest = MAX_NEW_TOKENS_REASONING if variant.startswith("thinking") else MAX_NEW_TOKENS
    return {"temperature": 0, "seed": 0, "max_new_tokens": min(longest, n_ctx // 2), **options}


def points(
    start: Start,
    seen: ProcessedImage,
    query: str,
    *,
    several: bool = False,
    may_be_absent: bool = False,
    mapping: Mapping = "unpadded",
    units: Units | None = None,
    **options: Any,
) -> list[Point]:
    """What the model points at, in the order of its answer; nothing when it says that the thing is absent and
    may_be_absent. A box stands for its middle. Raises GroundingError, and what `start` raises."""
    text = prompts.point_request(query, several=several, may_be_absent=may_be_absent)
    response = _answer(start, seen, prompts.POINT_SYSTEM, text, options)
    if may_be_absent and prompts.ABSENT in response.text.lower() and not parse.places(response.text):
        return []
    found = parse.parse(response.text, seen.original_size, units=units)
    result = []
    for place in found.places:
        x0, y0, x1, y1 = place.numbers
        share = (x0 + x1) / 2, (y0 + y1) / 2
        x, y = pixels.to_pixel(share, seen, mapping)
        result.append(Point(x, y, share, response.text, response.thinking, found.notices))
    return result


def boxes(
    start: Start,
    seen: ProcessedImage,
    query: str,
    *,
    mapping: Mapping = "unpadded",
    units: Units | None = None,
    **options: Any,
) -> list[Box]:
    """The boxes that the model draws around things; points in its answer are left out when it has boxes too. Raises
    GroundingError (grounding.no_box when it only has points), and what `start` raises."""
    response = _answer(start, seen, None, prompts.box_request(query), options)
    found = parse.parse(response.text, seen.original_size, units=units)
    drawn = [place for place in found.places if place.is_box]
    if not drawn:
        raise GroundingError("the answer has points but no box: use point() for points", "grounding.no_box")
    return [_box(place, seen, mapping, response, found.notices) for place in drawn]


def _box(place: Place, seen: ProcessedImage, mapping: Mapping, response: Response, notices: tuple[str, ...]) -> Box:
    x0, y0 = pixels.to_pixel(place.numbers[:2], seen, mapping)
    x1, y1 = pixels.to_pixel(place.numbers[2:], seen, mapping)
    return Box(x0, y0, x1, y1, place.label, place.numbers, response.text, notices)


def _answer(start: Start, seen: ProcessedImage, system: str | None, text: str, options: dict[str, Any]) -> Response:
    content = [{"type": "image", "image": 0}, {"type": "text", "text": text}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    response: Response = start(messages, [seen], **options).drain()
    if response.thinking and not response.text.strip() and response.finish_reason == "length":
        raise GroundingError(
            f"the model was still reasoning after {response.usage.completion_tokens} tokens: raise max_new_tokens",
            "grounding.unfinished",
        )
    return response
