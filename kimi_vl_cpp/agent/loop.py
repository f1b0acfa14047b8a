"""The loop: look, decide, ask the user, act; until the task is done or a limit is met."""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..checks import check_int, check_text
from ..errors import AgentStopped
from .actions import ENDS, Action, Ask, Done, Fail, in_words
from .confirm import Confirm, ask
from .environment.base import Environment, Observation, Outcome
from .policy import Past, Policy, Step
from .secrets import Secrets
from .trace import Trace, marked

MAX_STEPS = 30
MAX_MINUTES = 60.0
SAME_SCREENS = 3
"""The same actions on the same screenshot this often in a row are getting nowhere."""
_REFUSED = Outcome("the user refused this action", performed=False)


@dataclass(frozen=True)
class Taken:
    """A step that was taken. number: from 1. observation: the screen before it. outcomes: one an action, as far as they
    went. end: what ended the run, in its last step."""

    number: int
    observation: Observation
    step: Step
    outcomes: tuple[Outcome, ...]
    end: Done | Fail | Ask | None = None


def run(
    task: str,
    environment: Environment,
    policy: Policy,
    *,
    confirm: Confirm = ask,
    max_steps: int = MAX_STEPS,
    max_minutes: float = MAX_MINUTES,
    secrets: Mapping[str, str] | None = None,
    trace: str | os.PathLike[str] | None = None,
) -> Iterator[Taken]:
    """Takes steps until the policy says that the task is done, gives up, or asks the user; yields each of them.

    confirm: is asked before every action, see agent/confirm.py. An action that the user refuses is not performed, nor
    is what follows it in its step, and the policy learns of it. secrets: name -> value, see agent/secrets.py. trace: a
    folder for screenshots and steps. The environment stays open.

    Raises AgentStopped: "agent.stopped" (the user), "agent.stuck", "agent.limit", "agent.action", "agent.host", ...
    """
    check_text("task", task)
    check_int("max_steps", max_steps, 1, 10_000)
    hidden = Secrets(secrets)
    if hidden.names:
        task += "\nSecret values are written by their names: " + ", ".join(f"{{{{{name}}}}}" for name in hidden.names)
    deadline = time.monotonic() + 60 * max_minutes
    past: list[Past] = []
    recent: deque[tuple[str, tuple[Action, ...]]] = deque(maxlen=SAME_SCREENS)
    with ExitStack() as stack:
        kept = None if trace is None else Trace(trace, task)
        scratch = None if trace is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number in range(1, max_steps + 1):
            if time.monotonic() > deadline:
                raise AgentStopped(f"the task was not done in {max_minutes:g} minutes", "agent.limit")
            observation = environment.observe()
            step = policy.next(task, past, observation)
            recent.append((observation.digest, step.actions))
            if len(recent) == SAME_SCREENS and len(set(recent)) == 1:
                raise AgentStopped(
                    f"the same step {SAME_SCREENS} times on the same screen, and nothing changes: {step.in_words}",
                    "agent.stuck",
                )
            began = time.monotonic()
            outcomes: list[Outcome] = []
            shown = _shown(observation, step, kept, scratch)
            try:
                _perform(environment, step, shown, confirm, hidden, outcomes)
            finally:
                if kept is not None:
                    kept.took(observation, step, outcomes, time.monotonic() - began)
            end = next((one for one in step.actions if isinstance(one, ENDS)), None)
            ended = end if all(one.performed for one in outcomes) else None
            yield Taken(number, observation, step, tuple(outcomes), ended)
            if ended is not None:
                return
            past.append(Past(number, observation, step, "; ".join(one.text for one in outcomes if one.text)))
    raise AgentStopped(f"the task was not done in {max_steps} steps", "agent.limit")


def _perform(
    environment: Environment, step: Step, shown: Path, confirm: Confirm, secrets: Secrets, outcomes: list[Outcome]
) -> None:
    """The actions of a step, each after the user agreed, up to one that is refused or ends the run."""
    for action in step.actions:
        if isinstance(action, ENDS):
            return
        decision = confirm(action, shown)
        if decision == "stop":
            raise AgentStopped(f"stopped by the user before: {in_words(action)}", "agent.stopped")
        if decision == "no":
            outcomes.append(_REFUSED)
            return
        outcome = environment.perform(secrets.revealed(action))
        outcomes.append(Outcome(secrets.hidden(outcome.text), outcome.performed))


def _shown(observation: Observation, step: Step, trace: Trace | None, scratch: Path | None) -> Path:
    """A picture of what the step means, for the one who is asked."""
    if trace is not None:
        return trace.observed(observation, step)
    assert scratch is not None
    path = scratch / "step.png"
    marked(observation, step.actions).save(path)
    return path
