"""What happens to a conversation that has outgrown the context: its oldest questions go, whole, with their answers.

Owns which of them. Where the cut lies depends on what was said alone, and stays where it is for the turns that follow:
they share their beginning, and what was computed of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..cache.keys import Item, Picture, n_positions

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

LEFT = 0.6
"""The share of the context that the rest of a conversation takes at most when turns were dropped."""


@dataclass(frozen=True)
class Shortened:
    """A prompt without its oldest turns, of which there were n_turns with n_tokens positions and n_pictures."""

    items: list[Item]
    n_turns: int = 0
    n_tokens: int = 0
    n_pictures: int = 0

    @property
    def notice(self) -> str:
        """What a person should know about it."""
        questions = f"the oldest {self.n_turns} questions" if self.n_turns > 1 else "the oldest question"
        answers = "their answers" if self.n_turns > 1 else "its answer"
        pictures = f", {self.n_pictures} of them pictures" if self.n_pictures else ""
        return f"{questions} and {answers} ({self.n_tokens} tokens{pictures}) were left out to fit into the context"


def drop_turns(tokenizer: Tokenizer, items: Sequence[Item], n_ctx: int) -> Shortened:
    """The prompt of a conversation, without the oldest turns where it would not fit into n_ctx tokens with one more.

    What stands before the first question, and the last question, always stay. Goes through the conversation as it was
    held: whenever a question did not fit, turns go until LEFT of the context is taken.
    """
    head, turns = _turns(tokenizer, items)
    n_head = n_positions(head)
    whole = [n_positions(turn) for turn in turns]
    asked = [n_positions(_question(tokenizer, turn)) for turn in turns]
    if turns:
        asked[-1] = whole[-1]  # as it is asked now, perhaps with the beginning of its answer
    first = 0
    for index, n_asked in enumerate(asked):
        n = n_head + sum(whole[first:index]) + n_asked
        if n + 1 > n_ctx:
            while first < index and n > LEFT * n_ctx:
                n -= whole[first]
                first += 1
    kept = [*head, *(item for turn in turns[first:] for item in turn)]
    n_pictures = sum(isinstance(item, Picture) for turn in turns[:first] for item in turn)
    return Shortened(kept, first, sum(whole[:first]), n_pictures)


def _turns(tokenizer: Tokenizer, items: Sequence[Item]) -> tuple[list[Item], list[list[Item]]]:
    """What stands before the first question, and every question with what follows it up to the next."""
    head: list[Item] = []
    turns: list[list[Item]] = []
    for item in items:
        if item == tokenizer.im_user_id:
            turns.append([])
        (turns[-1] if turns else head).append(item)
    return head, turns


def _question(tokenizer: Tokenizer, turn: Sequence[Item]) -> list[Item]:
    """A turn up to where its answer begins."""
    answers = False
    for index, item in enumerate(turn):
        answers = answers or item == tokenizer.im_assistant_id
        if answers and item == tokenizer.im_middle_id:
            return list(turn[: index + 1])
    return list(turn)
