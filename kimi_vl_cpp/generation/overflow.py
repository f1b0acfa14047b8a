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
    from ..text.chat_template import Span

LEFT = 0.6
"""The share of the context that the rest of a conversation takes at most when turns were dropped."""


@dataclass(frozen=True)
class Shortened:
    """A prompt without its oldest turns, of which there were n_turns with n_tokens positions and n_pictures. messages:
    where the others lie in it."""

    items: list[Item]
    messages: list[Span]
    n_turns: int = 0
    n_tokens: int = 0
    n_pictures: int = 0

    @property
    def notice(self) -> str:
        """What the user should know about it."""
        questions = f"the oldest {self.n_turns} questions" if self.n_turns > 1 else "the oldest question"
        answers = "their answers" if self.n_turns > 1 else "its answer"
        pictures = f", {self.n_pictures} of them pictures" if self.n_pictures else ""
        return f"{questions} and {answers} ({self.n_tokens} tokens{pictures}) were left out to fit into the context"


def drop_turns(items: Sequence[Item], messages: Sequence[Span], n_ctx: int) -> Shortened:
    """The prompt of a conversation, without the oldest turns where it would not fit into n_ctx tokens with one more.

    messages: where they lie in it. What stands before the first question, and the last question, always stay. Goes
    through the conversation as it was held: whenever a question did not fit, turns go until LEFT of the context is
    taken.
    """
    starts = [span.start for span in messages if span.role == "user"]
    ends = [*starts[1:], len(items)]
    n_head = n_positions(items[: starts[0]] if starts else items)
    whole = [n_positions(items[start:end]) for start, end in zip(starts, ends, strict=False)]
    asked = [
        n_positions(items[start : _answer_in(messages, start, end)]) for start, end in zip(starts, ends, strict=False)
    ]
    if starts:
        asked[-1] = whole[-1]  # as it is asked now, perhaps with the beginning of its answer
    first = 0
    for index, n_asked in enumerate(asked):
        n = n_head + sum(whole[first:index]) + n_asked
        if n + 1 > n_ctx:
            while first < index and n > LEFT * n_ctx:
                n -= whole[first]
                first += 1
    if not first:
        return Shortened(list(items), list(messages))
    gone = range(starts[0], starts[first])
    return Shortened(
        [*items[: gone.start], *items[gone.stop :]],
        [span if span.start < gone.start else span.moved(-len(gone)) for span in messages if span.start not in gone],
        first,
        sum(whole[:first]),
        sum(isinstance(item, Picture) for item in items[gone.start : gone.stop]),
    )


def _answer_in(messages: Sequence[Span], start: int, end: int) -> int:
    """Where the answer begins in a turn from item `start` to `end`; its end where there is none."""
    return next((span.content for span in messages if span.role == "assistant" and start <= span.start < end), end)
