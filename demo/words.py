"""Words to print: real ones from Debian's word list and invented ones, apart for training and for judging."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np

WORD_LIST = Path("/usr/share/dict/words")
_CONSONANTS = ("b c d f g h j k l m n p q r s t v w x z br ch cl cr dr fl gr ph pl pr qu sh sl sp st str th tr").split()
_VOWELS = "a e i o u y ai ea ee ie oa oo ou".split()

ITEMS = (
    "coffee tea milk bread butter cheese eggs rice pasta apples bananas oranges grapes lemon tomato onion potato "
    "carrot salad soup burger pizza fries sandwich bagel muffin cookie brownie cake donut croissant waffle pancake "
    "yogurt honey jam sugar salt pepper oil vinegar flour juice water soda cola beer wine cider latte mocha "
    "espresso cappuccino chicken beef pork fish salmon tuna shrimp bacon ham sausage tofu beans lentils corn peas "
    "spinach kale garlic ginger soap shampoo towel paper pen pencil notebook stapler tape glue scissors battery "
    "candle lamp bulb brush sponge bucket socks shirt hat gloves scarf belt shoes jeans jacket umbrella bag wallet "
    "watch mug plate bowl fork spoon knife glass hammer nails screws wrench drill saw paint rope chain hook ladder "
    "ticket map stamp card gift toy puzzle book magazine newspaper flowers plant seeds soil pot hose rake shovel "
    "dog_food cat_litter green_tea iced_tea hot_dog ice_cream orange_juice peanut_butter olive_oil brown_rice "
    "red_wine tooth_brush face_mask light_bulb paper_cups trash_bags"
).split()
SHOPS = (
    "market store shop cafe bakery grocery deli pharmacy diner bistro kiosk books tools garden music sports flowers "
    "pets"
).split()


def is_held_out(word: str) -> bool:
    """About a fifth of all words, for good."""
    return hashlib.sha256(word.lower().encode()).digest()[0] < 51


@functools.cache
def _real_words(split: str) -> tuple[str, ...]:
    if not WORD_LIST.exists():
        raise FileNotFoundError(f"no word list {WORD_LIST}: apt-get install wamerican")
    plain = {word for word in WORD_LIST.read_text().split() if word.isascii() and word.isalpha() and word.islower()}
    words = {word for word in plain if 2 <= len(word) <= 12 and is_held_out(word) is (split == "held_out")}
    return tuple(sorted(words))


@functools.cache
def items(split: str) -> tuple[str, ...]:
    return tuple(item.replace("_", " ") for item in ITEMS if is_held_out(item) is (split == "held_out"))


@functools.cache
def _words_up_to(split: str, longest: int) -> tuple[str, ...]:
    return tuple(word for word in _real_words(split) if len(word) <= longest)


def real_word(rng: np.random.Generator, split: str, longest: int = 12) -> str:
    words = _words_up_to(split, max(4, longest))  # there are hardly any shorter ones
    return words[int(rng.integers(len(words)))]


def invented_word(rng: np.random.Generator, split: str, longest: int = 9) -> str:
    while True:
        if rng.random() < 0.35:
            n = int(rng.integers(2, min(7, longest) + 1))
            word = "".join(chr(97 + int(c)) for c in rng.integers(0, 26, n))
        else:
            parts = []
            for _ in range(int(rng.integers(1, 4))):
                parts += [_CONSONANTS[int(rng.integers(len(_CONSONANTS)))], _VOWELS[int(rng.integers(len(_VOWELS)))]]
            if rng.random() < 0.5:
                parts.append(_CONSONANTS[int(rng.integers(18))])
            word = "".join(parts)
        if 2 <= len(word) <= longest and is_held_out(word) is (split == "held_out"):
            return word


def cased(rng: np.random.Generator, word: str) -> str:
    kind = rng.random()
    return word if kind < 0.4 else word.upper() if kind < 0.65 else word.capitalize()


def price(rng: np.random.Generator, sign: str, highest: float = 100.0) -> str:
    """As printed, with its currency sign in front."""
    cents = int(np.exp(rng.uniform(np.log(25), np.log(highest * 100))))
    if rng.random() < 0.5:
        cents = cents // 5 * 5
    return money(cents, sign)


def money(cents: int, sign: str) -> str:
    return f"{sign}{cents // 100}.{cents % 100:02d}"


def any_text(rng: np.random.Generator, split: str, longest: int) -> str:
    """A word, a number, a price, a time, a date or a code."""
    kind = rng.random()
    if kind < 0.36:
        return cased(rng, real_word(rng, split, longest))
    if kind < 0.72:
        return cased(rng, invented_word(rng, split, longest))
    if kind < 0.84:
        return price(rng, ("$", "$", "€", "£", "")[int(rng.integers(5))])
    if kind < 0.90:
        return str(int(10 ** rng.uniform(0, 5)))
    if kind < 0.93:
        return f"{int(rng.integers(1, 24))}:{int(rng.integers(60)):02d}"
    if kind < 0.96:
        return f"{int(rng.integers(1, 101))}%"
    code = "".join("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"[int(c)] for c in rng.integers(0, 34, int(rng.integers(3, 7))))
    return code
