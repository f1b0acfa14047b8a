"""What models are compared on: the texts and pictures of a folder, or a small set of our own.

Owns where in a prompt predictions count: in a text at every token of it; with a picture at every token of the answer,
because nobody asks a model to predict the question. Reads folders as importance matrices do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from kimi_vl_cpp.cache.keys import Picture
from kimi_vl_cpp.errors import BadRequest

from ..importance.data import Prompt, load_data

if TYPE_CHECKING:
    from kimi_vl_cpp.model import KimiVL

Before = tuple[list[int] | Picture, ...]


@dataclass(frozen=True)
class Item:
    """A prompt and where its predictions count.

    before: what is read first, without looking at predictions. scored: token ids whose successors are predicted: of a
    text the token before it and all of its own but the last; of a picture prompt the last token of the prompt, which
    the answer follows. targets: for a text what comes after each of `scored`; empty for a picture.
    """

    name: str
    prompt: Prompt
    before: Before
    scored: tuple[int, ...]
    targets: tuple[int, ...]
    question: str = ""

    @property
    def is_picture(self) -> bool:
        return self.prompt.is_picture

    @property
    def n_before(self) -> int:
        """Positions of `before`."""
        return sum(part.n_tokens if isinstance(part, Picture) else len(part) for part in self.before)


@dataclass(frozen=True)
class Prompts:
    """Which prompts models are compared on. folder: of the texts and pictures. ctx: tokens of a stretch of text.
    n_answer: tokens of the answer to a picture. limit: prompts at most, None for all."""

    folder: Path
    ctx: int
    n_answer: int
    limit: int | None


@dataclass(frozen=True)
class Items:
    """items: texts first, then pictures, each in the order of the folder. skipped: (file, why)."""

    items: tuple[Item, ...]
    skipped: tuple[tuple[Path, str], ...]
    n_left_out: int


def load_items(model: KimiVL, wanted: Prompts, tick: Callable[[int, int], None]) -> Items:
    """The prompts of a folder. tick and errors: those of importance/data.py, `load_data`."""
    folder = wanted.folder
    found = load_data(model, folder, wanted.ctx, wanted.n_answer, wanted.limit, tick)
    root = folder if folder.is_dir() else folder.parent
    stretch: dict[Path, int] = {}
    items = []
    for prompt in found.prompts:
        number = stretch[prompt.source] = stretch.get(prompt.source, 0) + 1
        name = prompt.source.relative_to(root).as_posix() + (f" #{number}" if number > 1 else "")
        item = _picture(name, prompt, model) if prompt.is_picture else _text(name, prompt, model)
        if item.scored:
            items.append(item)
    if not items:
        raise BadRequest(f"{folder}: its texts have no token to predict: give longer ones", "compare.data")
    items.sort(key=lambda item: item.is_picture)
    return Items(tuple(items), tuple(found.skipped), found.n_left_out)


def _text(name: str, prompt: Prompt, model: KimiVL) -> Item:
    """The user's words, which lie between the end of the user's header and the end of the turn."""
    (ids,) = prompt.parts
    assert isinstance(ids, list)
    tokenizer = model.loaded.tokenizer
    first = ids.index(tokenizer.im_middle_id, ids.index(tokenizer.im_user_id)) + 1
    end = len(ids) - ids[::-1].index(tokenizer.im_end_id) - 1
    return Item(name, prompt, (ids[: first - 1],), tuple(ids[first - 1 : end - 1]), tuple(ids[first:end]))


def _picture(name: str, prompt: Prompt, model: KimiVL) -> Item:
    *front, last = prompt.parts
    assert isinstance(last, list)
    tokenizer = model.loaded.tokenizer
    question = last[last.index(tokenizer.media_end_id) + 1 : last.index(tokenizer.im_end_id)]
    return Item(name, prompt, (*front, last[:-1]), (last[-1],), (), tokenizer.decode(question))


# The set of our own

TEXTS = {
    "kettle": """The kettle on the stove is older than the house. Its handle was replaced twice, once with wood and once
with wire, and its lid belongs to another pot. Nobody in the family would sell it. When the water begins to move it
makes a low sound, a little like a cat that has found the sun, and whoever is nearest gets up without being asked. Tea
is poured in the order in which people came in, which means that guests wait, and no guest has ever complained twice.
On winter evenings it stays on the back plate until midnight, so that there is always something warm for the person
who comes home last.""",
    "tides": """Tides are made by the difference between the pull of the Moon on the near side of the Earth and on the
far side. Because gravity becomes weaker with distance, the water that faces the Moon is pulled a little more than the
planet as a whole, and the water on the opposite side a little less. The result is two bulges, and as the Earth turns
under them most coasts see high water about every 12 hours and 25 minutes. The Sun adds its own, smaller effect. When
Sun, Moon and Earth stand in a line, at new and full moon, the two add up to spring tides; at the quarters they work
against each other, and the range is smallest.""",
    "code": """Here is a function that counts how often each word occurs in a text:

def count_words(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in text.lower().split():
        word = word.strip(".,;:!?")
        if word:
            counts[word] = counts.get(word, 0) + 1
    return counts

It returns a dictionary. For the text "the cat and the dog" the result is {"the": 2, "cat": 1, "and": 1, "dog": 1}. To
print the ten most frequent words, sort the items by their count: sorted(counts.items(), key=lambda item: -item[1]).""",
    "numbers": """Question: A shop sells pencils in boxes of 12. On Monday it sold 7 boxes and 5 single pencils, on
Tuesday twice as many boxes and no single ones. How many pencils did it sell on both days together?
Answer: On Monday it sold 7 x 12 + 5 = 84 + 5 = 89 pencils. On Tuesday it sold 14 boxes, which is 14 x 12 = 168
pencils. Together that is 89 + 168 = 257 pencils.""",
    "languages": """Der Zug nach Hamburg fährt heute von Gleis neun. Le musée est fermé le lundi, mais le jardin reste
ouvert toute l'année. La biblioteca cierra a las ocho de la tarde. 今天天气很好,我们去公园散步吧。
図書館は駅の隣にあります。
All five sentences say where or when something is to be found, and a traveller would be glad of any of them.""",
}

QUESTIONS = {
    "page": "Read the text in this picture aloud, word for word.",
    "chart": "What does this chart show? Name the largest and the smallest value.",
    "shapes": "Which shapes and colours are in this picture, and where is each of them?",
    "receipt": "What was bought, and what is the total?",
}


def write_builtin(folder: Path) -> None:
    """Writes the texts, the pictures and their questions into an empty folder."""
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text.replace("\n", " ") if name != "code" else text, encoding="utf-8")
    for name, draw in (("page", _page), ("chart", _chart), ("shapes", _shapes), ("receipt", _receipt)):
        draw().save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(QUESTIONS[name], encoding="utf-8")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _page() -> Image.Image:
    picture = Image.new("RGB", (448, 336), (252, 251, 247))
    pen = ImageDraw.Draw(picture)
    pen.text((32, 24), "Opening hours", (20, 20, 24), font=_font(30))
    lines = (
        "Monday to Friday, 9 to 18 h",
        "Saturday, 10 to 14 h",
        "Closed on Sundays and on 1 May",
        "",
        "Please ring the bell twice.",
        "The workshop is in the yard, second",
        "door on the left, behind the old tree.",
    )
    for i, line in enumerate(lines):
        pen.text((32, 82 + 32 * i), line, (40, 40, 48), font=_font(20))
    return picture


def _chart() -> Image.Image:
    picture = Image.new("RGB", (448, 336), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((120, 14), "Bicycles sold, 2024", (20, 20, 24), font=_font(22))
    bars = (
        ("Spring", 42, (76, 132, 196)),
        ("Summer", 67, (222, 148, 54)),
        ("Autumn", 31, (150, 96, 60)),
        ("Winter", 12, (120, 170, 120)),
    )
    pen.line((50, 280, 420, 280), (60, 60, 60), 2)
    for i, (label, value, colour) in enumerate(bars):
        left = 70 + 90 * i
        pen.rectangle((left, 280 - 3 * value, left + 56, 279), colour)
        pen.text((left + 16, 254 - 3 * value), str(value), (20, 20, 24), font=_font(18))
        pen.text((left - 4, 288), label, (20, 20, 24), font=_font(18))
    return picture


def _shapes() -> Image.Image:
    picture = Image.new("RGB", (336, 336), (236, 239, 244))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((30, 30, 140, 140), (206, 52, 48))
    pen.rectangle((190, 40, 300, 130), (44, 98, 190))
    pen.polygon(((90, 190), (30, 300), (150, 300)), (58, 150, 78))
    pen.polygon(((246, 180), (306, 240), (246, 300), (186, 240)), (236, 186, 40))
    return picture


def _receipt() -> Image.Image:
    picture = Image.new("RGB", (280, 420), (250, 250, 248))
    pen = ImageDraw.Draw(picture)
    pen.text((66, 18), "CORNER SHOP", (30, 30, 30), font=_font(20))
    rows = (("Bread", "3.20"), ("Milk 1 l", "1.35"), ("Apples 1 kg", "2.80"), ("Coffee", "6.49"))
    for i, (what, price) in enumerate(rows):
        pen.text((24, 80 + 40 * i), what, (40, 40, 40), font=_font(18))
        pen.text((210, 80 + 40 * i), price, (40, 40, 40), font=_font(18))
    pen.line((24, 252, 256, 252), (40, 40, 40), 2)
    pen.text((24, 268), "TOTAL", (20, 20, 20), font=_font(22))
    pen.text((196, 268), "13.84", (20, 20, 20), font=_font(22))
    pen.text((24, 330), "Thank you! 14.03.2025 17:42", (90, 90, 90), font=_font(15))
    return picture
