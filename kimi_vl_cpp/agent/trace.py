"""A folder with what an agent did: the screenshots, the places that were meant, and every step as a line of JSON."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AgentStopped, shown
from ..grounding.ask import Point
from ..grounding.overlay import draw
from .actions import Action, from_dict, in_words, places, to_dict
from .environment.base import Observation, Outcome, pixel
from .policy import Step

if TYPE_CHECKING:
    from PIL import Image

SCHEMA = "kimi-vl agent 1"
STEPS = "steps.jsonl"
PAGE = "index.html"
_STYLE = (
    "body{font:15px sans-serif;margin:2em auto;max-width:60em}img{max-width:100%;border:1px solid #999}"
    "pre{white-space:pre-wrap}"
)


def marked(observation: Observation, actions: Sequence[Action]) -> Image.Image:
    """The screenshot with the places of the actions."""
    picture = observation.picture()
    for action in actions:
        found = [Point(pixel(x, picture.width), pixel(y, picture.height), (x, y)) for x, y in places(action)]
        if found:
            picture = draw(picture, found, in_words(action))
    return picture


class Trace:
    """Writes a folder, step by step, so that what was done is there whatever happens then."""

    def __init__(self, folder: str | os.PathLike[str], task: str) -> None:
        """Raises AgentStopped (code "agent.trace") for a folder that is not empty."""
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise AgentStopped(f"{self.folder}: it exists and is not an empty folder: name another", "agent.trace")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._n = 0
        self._lines = self.folder / STEPS
        self._write({"schema": SCHEMA, "task": task})
        self._page = self.folder / PAGE
        title = html.escape(task)
        self._page.write_text(
            f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>\n',
            encoding="utf-8",
        )

    def observed(self, observation: Observation, step: Step) -> Path:
        """Keeps a screenshot and the places of the step that follows; the path of the picture with the marks."""
        self._n += 1
        (self.folder / f"{self._n:03d}.png").write_bytes(observation.png)
        path = self.folder / f"{self._n:03d}-overlay.png"
        marked(observation, step.actions).save(path)
        return path

    def took(self, observation: Observation, step: Step, outcomes: Sequence[Outcome], seconds: float) -> None:
        """Keeps a step and what came of it, after `observed`."""
        self._write(
            {
                "step": self._n,
                "at": observation.at,
                "where": observation.where,
                "screenshot": observation.digest,
                "raw": step.raw,
                "thinking": step.thinking,
                "thought": step.thought,
                "action": step.action_text,
                "actions": [to_dict(action) for action in step.actions],
                "outcomes": [{"text": one.text, "performed": one.performed} for one in outcomes],
                "seconds": round(seconds, 3),
            }
        )
        results = "".join(f"<p>{html.escape(one.text)}</p>" for one in outcomes if one.text)
        name = f"{self._n:03d}-overlay.png"
        with open(self._page, "a", encoding="utf-8") as page:
            page.write(
                f"<h2>{self._n}. {html.escape(step.action_text or step.in_words)}</h2>"
                f"<p>{html.escape(step.in_words)}</p>{results}"
                f'<a href="{self._n:03d}.png"><img src="{name}" alt="the screen before step {self._n}"></a>'
                f"<details><summary>answer</summary><pre>{html.escape(step.raw)}</pre></details>\n"
            )

    def _write(self, entry: dict[str, Any]) -> None:
        with open(self._lines, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def replay(folder: str | os.PathLike[str]) -> tuple[str, list[Step]]:
    """The task and the steps of a trace. Raises AgentStopped (code "agent.trace")."""
    path = Path(folder).expanduser() / STEPS
    try:
        entries = list(_entries(path))
        head, steps = entries[0], entries[1:]
        if head.get("schema") != SCHEMA:
            raise AgentStopped(f"{path}: schema {shown(head.get('schema'))}, expected {SCHEMA!r}", "agent.trace")
        found = [
            Step(
                tuple(from_dict(action) for action in one["actions"]),
                one["thought"],
                one["action"],
                one["thinking"],
                one["raw"],
            )
            for one in steps
        ]
        return str(head["task"]), found
    except OSError as error:
        raise AgentStopped(f"{path}: cannot be read: {error.strerror}", "agent.trace") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise AgentStopped(f"{path}: damaged: expected the lines that a trace has", "agent.trace") from None


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):  # the last line of a run that was killed may be cut off
                yield json.loads(line)
