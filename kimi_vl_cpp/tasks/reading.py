"""Reading a document page by page: one request a page, another try where an answer is bad, nothing read twice.

Owns the order of tries and when an answer counts as bad. The journal keeps what is done, and the caller writes files.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..media.drawn import Drawn, Part
from ..media.paged import Page, is_usable
from ..media.processor import LimitedImage
from . import recipes
from .journal import Journal
from .recipes import Recipe
from .upright import quarter_turns, turned

if TYPE_CHECKING:
    from ..media.processor import ImageInput
    from ..model import KimiVL

RETRIES = ((0.2, 1), (0.5, 2), (0.8, 3))
"""Temperature and seed of the tries after the first, which is greedy."""

_LONGEST_PAGE = 4096  # tokens
_MIN_SHARE = 0.3  # of the words of a page's text layer, below which an answer is taken as invented
_MIN_WORDS = 20  # of a text layer that an answer is held against
_OVERLAP = 0.05  # of a page's height, for each half
_WORD = re.compile(r"\w{3,}")


@dataclass(frozen=True)
class ReadPage:
    """A page that was read, or not. source: "model", "halves" (the upper and the lower half were asked for one by one),
    "text layer", or "none". problem: why the last answer of the model was bad, "" for a good one: "repetition",
    "length", or "other text". turned: quarters counter-clockwise by which the page was turned upright before."""

    number: int
    text: str
    source: str
    problem: str
    attempts: int
    prompt_tokens: int
    new_tokens: int
    seconds: float
    turned: int = 0

    @property
    def is_read(self) -> bool:
        """Whether there is a text that counts as the page's."""
        return self.source != "none"


@dataclass
class _Tries:
    """The requests about one page so far."""

    model: KimiVL
    options: dict[str, Any]
    attempts: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0

    @property
    def tokens(self) -> tuple[int, int]:
        """Of all prompts, and of all answers."""
        return self.prompt_tokens, self.new_tokens

    def ask(self, image: ImageInput | LimitedImage, prompt: str, temperature: float, seed: int) -> tuple[str, str]:
        """The answer, and "" or what is bad about it."""
        content = [{"type": "image", "image": 0}, {"type": "text", "text": prompt}]
        stream = self.model.start(
            [{"role": "user", "content": content}],
            [image],
            temperature=temperature,
            seed=seed,
            loop_guard=True,
            **self.options,
        )
        response = stream.drain()
        self.attempts += 1
        self.prompt_tokens += response.usage.prompt_tokens
        self.new_tokens += response.usage.completion_tokens
        problem = response.stop_reason or ("length" if response.finish_reason == "length" else "")
        return recipes.clean(response.text), problem


def read_pages(
    model: KimiVL,
    pages: Sequence[tuple[int, ImageInput]],
    recipe: Recipe,
    journal: Journal,
    *,
    patches: int | None = None,
    max_new_tokens: int | None = None,
    upright: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    before: Callable[[int], None] | None = None,
) -> Iterator[ReadPage]:
    """Reads the pages that the journal does not hold yet and yields all of them in order.

    pages: their numbers and pictures. patches: of each picture, None is the model's limit. max_new_tokens: of a page.
    upright: whether pages that lie on their side are turned first, which costs a short look at each.
    before: called with the number of a page before it is asked about. Raises what `KimiVL.chat` raises; what was read
    until then is in the journal.
    """
    longest = max_new_tokens or default_max_new_tokens(model)
    for number, image in pages:
        record = journal.done.get(number)
        if record is None:
            if before is not None:
                before(number)
            options: dict[str, Any] = {"max_new_tokens": longest, "progress": progress}
            if recipe.grammar is not None:
                options["grammar"] = recipe.grammar
            turns = quarter_turns(model, image) if upright else 0
            page = _read(model, number, image, recipe, patches, options, turns)
            record = asdict(page)
            del record["number"]
            journal.add(number, record)
        yield ReadPage(number=number, **record)


def default_max_new_tokens(model: KimiVL) -> int:
    """Where the text of a page is cut: far beyond a full page of print, and no more than half of the context."""
    longest = model.defaults.max_new_tokens
    return min(longest if model.variant == "demo" else max(longest, _LONGEST_PAGE), model.n_ctx // 2)


def _read(
    model: KimiVL,
    number: int,
    image: ImageInput,
    recipe: Recipe,
    patches: int | None,
    options: dict[str, Any],
    turns: int,
) -> ReadPage:
    started = time.perf_counter()
    tries = _Tries(model, options)
    layer = image.text().strip() if recipe.transcribes and isinstance(image, Page) else ""
    image = turned(image, turns) if turns else image

    def limited(picture: ImageInput) -> ImageInput | LimitedImage:
        return picture if patches is None else LimitedImage(picture, patches)

    def done(text: str, source: str, problem: str) -> ReadPage:
        seconds = round(time.perf_counter() - started, 3)
        return ReadPage(number, text, source, problem, tries.attempts, *tries.tokens, seconds, turns)

    problem, cut = "", ""
    for temperature, seed in ((0.0, 0), *RETRIES):
        text, problem = tries.ask(limited(image), recipe.prompt, temperature, seed)
        problem = problem or ("" if agrees(text, layer) else "other text")
        if not problem:
            return done(text, "model", "")
        cut = cut or (text if problem == "length" else "")
    if recipe.transcribes and isinstance(image, Drawn):
        halves = [Part(image, 0, 0.5 + _OVERLAP), Part(image, 0.5 - _OVERLAP, 1)]
        answers = [tries.ask(limited(half), recipe.prompt, 0, 0) for half in halves]
        joined = join_halves(*(text for text, _ in answers))
        if not any(bad for _, bad in answers) and agrees(joined, layer):
            return done(joined, "halves", problem)
    if is_usable(layer):
        return done(layer, "text layer", problem)
    return done(cut, "none", problem)


def agrees(text: str, layer: str) -> bool:
    """Whether an answer has enough of the words of the page's text layer; True where that layer says too little."""
    words = set(_WORD.findall(layer.lower()))
    if len(words) < _MIN_WORDS or not is_usable(layer):
        return True
    return len(words & set(_WORD.findall(text.lower()))) >= _MIN_SHARE * len(words)


def join_halves(upper: str, lower: str) -> str:
    """Two texts that overlap: lines at the end of the first that begin the second stand once."""
    first, second = upper.splitlines(), lower.splitlines()
    for n in range(min(len(first), len(second)), 0, -1):
        if [line.strip() for line in first[-n:]] == [line.strip() for line in second[:n]]:
            second = second[n:]
            break
    return "\n".join([*first, *second])
