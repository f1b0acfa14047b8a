"""Pictures with questions as batches of equal shapes: tokens, positions, who sees whom, and what is to be learned.

A sequence is the chat format up to the picture's end, then turns. Most often every turn is a branch of its own that
sees only the picture, as a first question does; sometimes the turns form one conversation.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.multiprocessing as mp

from .example import PATCH, Box, Example, Turn
from .tokenizer import Vocabulary

SYSTEM = "You are a helpful assistant"
IGNORE = -100
_ROUND = 32  # lengths are padded to a multiple: few shapes, few compiled kernels


@dataclass
class Guide:
    """What tokens should look at: at[i] is a token's row and place, seen[i] the places from `first` on, weight[i] the
    share of its attention that they should get, and spot[i] where in the picture that leads, (x, y) from 0 to 1."""

    at: np.ndarray  # int64 [n, 2]
    seen: np.ndarray  # bool [n, places]
    weight: np.ndarray  # float32 [n]
    spot: np.ndarray  # float32 [n, 2]
    first: int


@dataclass
class Batch:
    """B pictures of one size. targets[b, i] is the token after i; answers: [(row, first target, end, task)]."""

    images: np.ndarray  # uint8 [B, H, W, 3]
    glyphs: np.ndarray  # uint8 [B, H/14, W/14, 2]
    colours: np.ndarray  # uint8 [B, H/14, W/14]
    tokens: np.ndarray  # int64 [B, L]
    positions: np.ndarray  # int64 [B, L]
    branches: np.ndarray  # int16 [B, L]: 0 is seen by all, -1 is padding, others by themselves
    targets: np.ndarray  # int64 [B, L]
    image_at: int
    answers: list[tuple[int, int, int, str]]
    asked: Guide  # names in questions: at what they name in the picture
    named: Guide  # tokens before those of an answer: at the name in the question
    looks: Guide  # the same tokens: at where the answer is found in the picture
    counted: Guide  # the token before a number: at all that is counted and the picture's beginning, in equal shares


class Prompt:
    """The chat format around pictures and turns."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        v, s = vocabulary, vocabulary.special
        self.vocabulary = v
        middle, end = s["<|im_middle|>"], s["<|im_end|>"]
        self.user = [s["<|im_user|>"], *v.encode("user"), middle]
        system = [s["<|im_system|>"], *v.encode("system"), middle, *v.encode(SYSTEM), end]
        self.before_image = [*system, *self.user, s["<|media_start|>"], *v.encode("image"), s["<|media_content|>"]]
        self.after_image = [s["<|media_end|>"]]
        self.assistant = [end, s["<|im_assistant|>"], *v.encode("assistant"), middle]
        self.end, self.pad = end, s["<|media_pad|>"]

    def turn(self, turn: Turn, is_first: bool) -> tuple[list[int], list[int]]:
        """Tokens of a question up to where the answer begins, and the answer with its end."""
        lead = [] if is_first else self.user
        question = [*lead, *self.vocabulary.encode(turn.question), *self.assistant]
        return question, [*self.vocabulary.encode(turn.answer), self.end]

    def cells(
        self, text: str, boxes: Sequence[Sequence[Box]], size: tuple[int, int]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The tokens of a text whose characters have boxes, each with the merged patches under them."""
        per_byte = [found for character, found in zip(text, boxes, strict=False) for _ in character.encode()]
        begin = 0
        for i, token in enumerate(self.vocabulary.encode(text) if boxes else ()):
            end = begin + len(self.vocabulary.pieces[token])
            found = [_cells(box, size) for boxes_of_byte in per_byte[begin:end] for box in boxes_of_byte]
            if found:
                yield i, np.concatenate(found)
            begin = end


def collate(examples: Sequence[Example], prompt: Prompt, as_chat: Sequence[bool]) -> Batch:
    images = np.stack([example.image for example in examples])
    n_image = images.shape[1] * images.shape[2] // 784
    prefix = [*prompt.before_image, *[prompt.pad] * n_image, *prompt.after_image]
    size = images.shape[2], images.shape[1]
    rows = []
    answers = []
    wide, high = size[0] // (2 * PATCH), size[1] // (2 * PATCH)
    asked: list[_Look] = []
    named: list[_Look] = []
    looks: list[_Look] = []
    counted: list[_Look] = []

    def spot(cells: np.ndarray) -> tuple[float, float]:
        return (cells % wide + 0.5).mean() / wide, (cells // wide + 0.5).mean() / high

    for b, example in enumerate(examples):
        tokens, positions, branches = list(prefix), list(range(len(prefix))), [0] * len(prefix)
        targets = [IGNORE] * len(prefix)
        for k, turn in enumerate(example.turns):
            question, answer = prompt.turn(turn, is_first=k == 0 or not as_chat[b])
            begin = len(tokens) if as_chat[b] else len(prefix)
            at = len(tokens) + len(question)
            tokens += question + answer
            positions += range(begin, begin + len(question) + len(answer))
            branches += [1 if as_chat[b] else k + 1] * (len(question) + len(answer))
            targets += [IGNORE] * (len(question) - 1) + answer + [IGNORE]
            answers.append((b, at - 1, at - 1 + len(answer), turn.task))
            first = at - len(prompt.assistant) - len(prompt.vocabulary.encode(turn.question))
            boxes = [*[()] * turn.asked_from, *turn.asked]
            names = list(prompt.cells(turn.question, boxes, size))
            asked += [(b, first + i, cells, 1.0, spot(cells)) for i, cells in names]
            if names:
                name = np.array([first + i for i, _ in names])
                whole = spot(np.concatenate([cells for _, cells in names]))
                named += [(b, at - 1 + i, name, 1.0, whole) for i in range(len(answer))]
            found = prompt.cells(turn.answer, turn.looks, size)
            looks += [(b, at - 1 + i, cells, 1.0, spot(cells)) for i, cells in found]
            if turn.counted is not None:
                picture = len(prompt.before_image)
                things = [np.array([picture - 1]), *(picture + _cells(box, size) for box in turn.counted)]
                counted += [(b, at - 1, cells, 1 / len(things), (0.0, 0.0)) for cells in things]
        rows.append((tokens, positions, branches, targets))
    length = -(-max(len(row[0]) for row in rows) // _ROUND) * _ROUND

    def padded(i: int, fill: int, dtype: Any) -> np.ndarray:
        return np.array([row[i] + [fill] * (length - len(row[i])) for row in rows], dtype)

    return Batch(
        images,
        np.stack([example.glyphs for example in examples]),
        np.stack([example.colours for example in examples]),
        padded(0, prompt.end, np.int64),
        padded(1, 0, np.int64),
        padded(2, -1, np.int16),
        padded(3, IGNORE, np.int64),
        len(prompt.before_image),
        answers,
        _guide(asked, n_image, len(prompt.before_image)),
        _guide(named, length, 0),
        _guide(looks, n_image, len(prompt.before_image)),
        _guide(counted, length, 0),
    )


_Look = tuple[int, int, np.ndarray, float, tuple[float, float]]  # row, place, what it looks at, weight, spot


def _guide(found: list[_Look], n_places: int, first: int) -> Guide:
    at = np.array([look[:2] for look in found], np.int64).reshape(-1, 2)
    seen = np.zeros((len(found), n_places), bool)
    for row, look in zip(seen, found, strict=True):
        row[look[2]] = True
    weight = np.array([look[3] for look in found], np.float32)
    return Guide(at, seen, weight, np.array([look[4] for look in found], np.float32).reshape(-1, 2), first)


def _cells(box: Box, size: tuple[int, int]) -> np.ndarray:
    """Numbers of the merged patches under a box, its edges left out."""
    wide, high = size[0] // (2 * PATCH), size[1] // (2 * PATCH)
    x0, y0, x1, y1 = box
    dx, dy = (x1 - x0) * 0.25, (y1 - y0) * 0.25
    left, right = np.clip([(x0 + dx) // (2 * PATCH), (x1 - dx) // (2 * PATCH)], 0, wide - 1).astype(int)
    top, bottom = np.clip([(y0 + dy) // (2 * PATCH), (y1 - dy) // (2 * PATCH)], 0, high - 1).astype(int)
    return (np.arange(top, bottom + 1)[:, None] * wide + np.arange(left, right + 1)).ravel()


def make_batch(
    rng: np.random.Generator, prompt: Prompt, task: str, n: int, hardest: float, split: str, chat_share: float = 0.2
) -> Batch:
    """n pictures of one task in one of its sizes. hardest: difficulties are drawn from 0 to it."""
    from .tasks import SIZES, make_example

    sizes = SIZES[task]
    size = sizes[int(rng.integers(len(sizes)))]
    examples = [
        make_example(rng, task, split=split, difficulty=float(rng.uniform(0, hardest)), size=size) for _ in range(n)
    ]
    chat = rng.random(n) < chat_share
    for example in examples:
        rng.shuffle(example.turns)  # type: ignore[arg-type]
    return collate(examples, prompt, [bool(c) for c in chat])


class Feeder:
    """Renders batches in another process, a few ahead. The stream of pictures follows from `seed` and `first`."""

    def __init__(self, vocabulary: Vocabulary, tasks: Sequence[str], n: int, seed: int, first: int) -> None:
        context = mp.get_context("spawn")
        self._hardest = context.Value("d", 0.0)
        self._queue: Any = context.Queue(8)
        args = (vocabulary.pieces, list(tasks), n, seed, first, self._hardest, self._queue)
        self._process = context.Process(target=_render, args=args, daemon=True)
        self._process.start()

    def set_hardest(self, value: float) -> None:
        self._hardest.value = value

    def next(self) -> tuple[str, float, Batch]:
        """Task, seconds that rendering took, batch."""
        while True:
            try:
                found: tuple[str, float, Batch] = self._queue.get(timeout=60)
                return found
            except queue.Empty:
                if not self._process.is_alive():
                    raise RuntimeError("the rendering process ended") from None

    def close(self) -> None:
        self._process.terminate()


def _render(pieces: list[bytes], tasks: list[str], n: int, seed: int, first: int, hardest: Any, out: Any) -> None:
    prompt = Prompt(Vocabulary(pieces))
    number = first
    while True:
        rng = np.random.default_rng((seed, number))
        task = tasks[number % len(tasks)]
        began = time.monotonic()
        batch = make_batch(rng, prompt, task, n, hardest.value, "train")
        out.put((task, time.monotonic() - began, batch))
        number += 1
