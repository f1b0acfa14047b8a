"""`kimi-vl agent`: a task at a screen, step by step, each action after the user agreed.

Owns the options and what is printed of a step. Imports only what is quick: it is read at every start.
"""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from . import exits, opening, options
from .progress import Progress
from .terminal import BOLD, DIM, Terminal

if TYPE_CHECKING:
    from ..agent import Environment, Policy, Taken
    from ..agent.confirm import Confirm

SUMMARY = "Do a task in a browser or on a display."


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `agent`."""

    files: opening.Opening
    task: str = ""
    url: str | None = None
    allow: tuple[str, ...] = ()
    browser: str | None = None
    visible: bool = False
    viewport: str = "1280x720"
    x11: str | None = None
    monitor: int = 1
    yes: str | None = None
    dry_run: bool = False
    trace: str | None = None
    replay: str | None = None
    max_steps: int = 30
    max_minutes: float = 60.0
    secrets: Mapping[str, str] = field(default_factory=dict)
    image_patches: int | None = None
    sampling: opening.Sampling = field(default_factory=dict)
    json: bool = False


_Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Work in a browser, from this page: an address or an HTML file."),
]
_Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="HOST", help="A host that may be visited. May be given several times."),
]
_Program = Annotated[
    str | None,
    typer.Option("--browser", metavar="PROGRAM", help="The browser. Default: the Chromium, Chrome or Edge found."),
]
_Visible = Annotated[bool, typer.Option("--visible", help="Show the browser's window.")]
_Viewport = Annotated[str, typer.Option("--viewport", metavar="WxH", help="Size of the page in the browser.")]
_Display = Annotated[
    str | None, typer.Option("--x11", metavar="DISPLAY", help="Work on an X display, as :0, with xdotool.")
]
_Monitor = Annotated[int, typer.Option("--monitor", metavar="N", help="Monitor of the display, from 1.")]
_Yes = Annotated[
    str | None,
    typer.Option(
        "--yes",
        metavar="KINDS",
        help="Do not ask before these: click,move,scroll,write,press,hotkey,wait; all: before nothing.",
    ),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Look, decide, and do nothing.")]
_Trace = Annotated[
    str | None, typer.Option("--trace", metavar="FOLDER", help="Keep screenshots and steps in a new folder.")
]
_Replay = Annotated[
    str | None, typer.Option("--replay", metavar="FOLDER", help="The steps of a trace instead of a model's.")
]
_MaxSteps = Annotated[int, typer.Option("--max-steps", metavar="N", help="Steps at most.")]
_MaxMinutes = Annotated[float, typer.Option("--max-minutes", metavar="N", help="Minutes at most.")]
_Secret = Annotated[
    list[str] | None,
    typer.Option(
        "--secret",
        metavar="NAME",
        help="An environment variable that may be typed; the model knows its name only.",
    ),
]


@options.grouped
def command(
    *,
    task: Annotated[
        list[str] | None, typer.Argument(metavar="TASK", help="What to do, in quotes.", show_default=False)
    ] = None,
    files: opening.Opening,
    url: _Url = None,
    allow: _Allow = None,
    browser: _Program = None,
    visible: _Visible = False,
    viewport: _Viewport = "1280x720",
    x11: _Display = None,
    monitor: _Monitor = 1,
    yes: _Yes = None,
    dry_run: _DryRun = False,
    trace: _Trace = None,
    replay: _Replay = None,
    max_steps: _MaxSteps = 30,
    max_minutes: _MaxMinutes = 60.0,
    secret: _Secret = None,
    image_patches: options.ImagePatches = None,
    json: options.Json = False,
    sampling: opening.Sampling,
) -> options.Job:
    """Do a task in a browser or on a display, asking before each action.

    kimi-vl agent -m kimi.gguf --url http://localhost:8000 --allow localhost "Order two tickets"
    """

    def job(terminal: Terminal) -> int:
        return run(
            Options(
                files=files,
                task=" ".join(task or ()),
                url=url,
                allow=tuple(allow or ()),
                browser=browser,
                visible=visible,
                viewport=viewport,
                x11=x11,
                monitor=monitor,
                yes=yes,
                dry_run=dry_run,
                trace=trace,
                replay=replay,
                max_steps=max_steps,
                max_minutes=max_minutes,
                secrets=_secrets(secret or ()),
                image_patches=image_patches,
                sampling=sampling,
                json=json,
            ),
            terminal,
        )

    return job


def run(options: Options, terminal: Terminal) -> int:
    """Does the task and returns the exit code: 0 when it is done, 1 when it was given up. Raises KimiVLError."""
    from .. import agent

    if (options.url is None) == (options.x11 is None):
        raise exits.UsageError("expected --url PAGE to work in a browser, or --x11 DISPLAY to work on a display")
    task, steps = agent.replay(options.replay) if options.replay is not None else (options.task, [])
    task = options.task or task
    if not task:
        raise exits.UsageError("no task: say in quotes what to do")
    confirm = _confirm(options)
    environment = _environment(options)  # what it lacks is said before a model is loaded
    progress = Progress(terminal)
    try:
        for notice in environment.notices:
            terminal.note(notice)
        if options.replay is not None:
            return _work(task, agent.ScriptedPolicy(steps), environment, confirm, options, terminal)
        files = opening.choose_model(options.files)
        with opening.open_model(files, progress) as model:
            model.require_vision()
            opening.introduce(model, files, terminal)
            if model.variant == "demo":
                terminal.note("the demonstration model never learned to use a computer")
            patches = options.image_patches
            policy = agent.ModelPolicy(model, image_patches=patches, progress=progress, **options.sampling)
            return _work(task, policy, environment, confirm, options, terminal)
    finally:
        progress.clear()
        environment.close()
        if options.trace is not None and os.path.exists(os.path.join(options.trace, "index.html")):
            terminal.note(f"what was done is in {os.path.join(options.trace, 'index.html')}")


def _work(
    task: str, policy: Policy, environment: Environment, confirm: Confirm, options: Options, terminal: Terminal
) -> int:
    from ..agent import DryRun, loop
    from ..agent.actions import Ask, Done

    taken = loop.run(
        task,
        DryRun(environment) if options.dry_run else environment,
        policy,
        confirm=confirm,
        max_steps=options.max_steps,
        max_minutes=options.max_minutes,
        secrets=options.secrets,
        trace=options.trace,
    )
    end: Any = None
    for one in taken:
        _print(one, options.json, terminal)
        end = one.end
    if isinstance(end, Ask):
        terminal.note("the agent asks something: answer it by running the command again with a clearer task")
    return errors.EXIT_OK if isinstance(end, Done) else errors.EXIT_FAILED


def _environment(options: Options) -> Any:
    from .. import agent

    if options.x11 is not None:
        return agent.X11(options.x11, monitor=options.monitor)
    width, _, height = options.viewport.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and 64 <= int(width) <= 4096 and 64 <= int(height) <= 4096):
        raise exits.UsageError(f"--viewport {options.viewport}: expected a size as 1280x720, sides from 64 to 4096")
    assert options.url is not None
    return agent.Browser(
        options.url,
        allow=options.allow,
        program=options.browser,
        viewport=(int(width), int(height)),
        visible=options.visible,
    )


def _confirm(options: Options) -> Confirm:
    """What is asked before an action. A dry run asks nothing."""
    from ..agent import confirm

    if options.dry_run:
        return confirm.everything
    return confirm.relaxed([one.strip().lower() for one in (options.yes or "").split(",") if one.strip()])


def _print(taken: Taken, as_json: bool, terminal: Terminal) -> None:
    from ..agent.actions import to_dict
    from ..wording import printable

    if as_json:
        entry = {
            "step": taken.number,
            "where": taken.observation.where,
            "thought": taken.step.thought,
            "action": taken.step.action_text,
            "actions": [to_dict(action) for action in taken.step.actions],
            "outcomes": [{"text": one.text, "performed": one.performed} for one in taken.outcomes],
        }
        terminal.print(json_module.dumps(entry, ensure_ascii=False))
        return
    words = taken.step.action_text or taken.step.in_words
    terminal.say(printable(f"{taken.number}. {words}", one_line=True), BOLD)
    if taken.step.action_text:
        terminal.say(printable(f"   {taken.step.in_words}", one_line=True), DIM)
    for outcome in taken.outcomes:
        if outcome.text:
            terminal.say(printable(f"   {outcome.text}", one_line=True), DIM)
    if taken.end is not None:
        said = next(iter(vars(taken.end).values()))
        terminal.print(printable(said or type(taken.end).__name__.lower()))


def _secrets(names: list[str] | tuple[()]) -> dict[str, str]:
    """Values of environment variables, so that none stands on a command line. Raises UsageError."""
    found = {}
    for name in names:
        if not os.environ.get(name):
            raise exits.UsageError(
                f"--secret {name}: there is no such environment variable: it holds the value, which other users could "
                "read on a command line"
            )
        found[name] = os.environ[name]
    return found
