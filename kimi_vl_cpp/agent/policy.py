"""Who decides on the next step: a model, a script, or the user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import AgentStopped
from ..types import Usage
from . import code, prompts
from .actions import Action, in_words
from .environment.base import Observation

if TYPE_CHECKING:
    from ..model import KimiVL

TRIES = 3
"""Answers that a model may give until one can be performed."""
RETRY_TEMPERATURE = 0.2
MAX_NEW_TOKENS, MAX_NEW_TOKENS_REASONING = 1024, 4096


@dataclass(frozen=True)
class Step:
    """What is to be done next. thought, action_text, thinking, raw: what the model said about it; raw is its answer."""

    actions: tuple[Action, ...]
    thought: str = ""
    action_text: str = ""
    thinking: str = field(default="", repr=False)
    raw: str = field(default="", repr=False)
    usage: Usage | None = field(default=None, compare=False, repr=False)

    @property
    def in_words(self) -> str:
        """The actions, for a user."""
        return "; ".join(map(in_words, self.actions))


@dataclass(frozen=True)
class Past:
    """A step that was taken: its number from 1, the screen before it, and what came of it that the screen does not
    show."""

    number: int
    observation: Observation
    step: Step
    result: str = ""


class Policy(Protocol):
    """Decides on the next step."""

    def next(self, task: str, past: Sequence[Past], observation: Observation) -> Step:
        """Raises AgentStopped when there is none."""
        ...


class ModelPolicy:
    """A model that looks at the last screenshots. An answer that cannot be performed is shown to it with the reason,
    and it answers again."""

    def __init__(
        self, model: KimiVL, *, screenshots: int = prompts.SCREENSHOTS, image_patches: int | None = None, **options: Any
    ) -> None:
        """screenshots: that a request shows, from 1. image_patches: of each. options: of sampling, as for `chat`;
        greedy unless said otherwise."""
        self._model = model
        self._n = max(1, screenshots)
        self._patches = image_patches
        longest = MAX_NEW_TOKENS_REASONING if model.variant.startswith("thinking") else MAX_NEW_TOKENS
        self._options = {"temperature": 0, "seed": 0, "max_new_tokens": min(longest, model.n_ctx // 4), **options}

    def next(self, task: str, past: Sequence[Past], observation: Observation) -> Step:
        """Raises AgentStopped (code "agent.action") when no answer can be performed, and what `KimiVL.start` raises."""
        shown = [one.observation for one in past[max(0, len(past) - self._n + 1) :]] if self._n > 1 else []
        images = self._limited([*shown, observation])
        problem: tuple[str, str] | None = None
        for attempt in range(TRIES):
            options = dict(self._options)
            if attempt:
                options |= {"temperature": max(RETRY_TEMPERATURE, options["temperature"]), "seed": attempt}
            asked = prompts.messages(task, past, len(images), problem)
            response = self._model.start(asked, images, **options).drain()
            try:
                if not response.text.strip() and response.thinking:
                    raise AgentStopped("the model was still reasoning at the end: raise max_new_tokens", "agent.action")
                written = code.read_answer(response.text)
            except AgentStopped as error:
                problem = response.text, str(error)
                continue
            return Step(
                written.actions,
                written.thought,
                written.action_text,
                response.thinking,
                response.text,
                response.usage,
            )
        assert problem is not None
        raise AgentStopped(f"{TRIES} answers could not be performed, the last because {problem[1]}", "agent.action")

    def _limited(self, shown: Sequence[Observation]) -> list[Any]:
        from ..media.processor import LimitedImage

        pictures: list[Any] = [one.png for one in shown]
        return pictures if self._patches is None else [LimitedImage(one, self._patches) for one in pictures]


class ScriptedPolicy:
    """Steps that are known beforehand: for tests, and to run a trace again."""

    def __init__(self, steps: Iterable[Step | Action]) -> None:
        self._steps: Iterator[Step | Action] = iter(steps)

    def next(self, task: str, past: Sequence[Past], observation: Observation) -> Step:
        """Raises AgentStopped (code "agent.script") behind the last one."""
        found = next(self._steps, None)
        if found is None:
            raise AgentStopped("the script has ended", "agent.script")
        return found if isinstance(found, Step) else Step((found,))


class HumanPolicy:
    """The user types the code of each step, as a model would write it."""

    def next(self, task: str, past: Sequence[Past], observation: Observation) -> Step:
        """Asks until what is typed can be performed. Raises AgentStopped (code "agent.stopped") at the end of input."""
        while True:
            try:
                line = input(f"step {len(past) + 1} (click(0.5, 0.5), write('text'), terminate()): ")
            except EOFError:
                raise AgentStopped("the input has ended", "agent.stopped") from None
            try:
                return Step(tuple(code.parse(line)), raw=line)
            except AgentStopped as error:
                print(error)
