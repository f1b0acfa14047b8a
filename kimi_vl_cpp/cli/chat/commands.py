"""The commands of a chat: /image, /undo, /regen, /fork, /back, /clear, /save, /load, /stats, /help, /exit.

A command is a line that begins with a slash and one of these names; a path of an existing picture is never one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from ... import errors
from ...machine import system
from ...wording import human_bytes, human_count, plural
from .. import exits, opening, paths
from ..terminal import DIM
from . import store

if TYPE_CHECKING:
    from .loop import Chat

HELP = """\
/image PATH   add a picture, a PDF (FILE.pdf#3-5) or a video (FILE.mp4#1:00-2:00) to the
              next message (or just paste or drop its path)
/undo         take the last question and its answer back
/regen        answer the last question again
/fork         try something else from here; /back returns to this place
/back         return to where /fork was
/clear        forget everything and begin anew
/save FILE    write the conversation to a file; with --pages behind it, also what
              was computed of it, so that going on takes no time
/load FILE    go on with a saved conversation
/stats        tokens, speed and memory
/help         this list
/exit         leave (also Ctrl-D, or Ctrl-C twice)
Enter sends; Alt-Enter, or a backslash at the end of a line, begins a new line. Ctrl-C stops an answer.
A message that begins with a slash: put a space before it."""


class Leave(Exception):
    """The user wants to leave; `code` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def is_command(message: str) -> bool:
    """True for a message that is meant as a command: it begins with a slash and is not the path of a picture."""
    word = message.split(maxsplit=1)[0]
    if not message.startswith("/") or paths.picture(message) is not None:
        return False
    return word in COMMANDS or not paths.looks_like_path(word)


def execute(chat: Chat, line: str) -> None:
    """Carries out a command. Raises KimiVLError, and Leave for /exit."""
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    command = COMMANDS.get(word)
    if command is None:
        near = difflib.get_close_matches(word, NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "/help lists the commands"
        raise exits.UsageError(f"unknown command {word}: {hint}")
    if rest and word not in ("/image", "/save", "/load"):
        raise exits.UsageError(f"{word} takes nothing after it, got {rest!r}")
    command(chat, rest)


def image(chat: Chat, rest: str) -> None:
    """/image PATH [PATH …] [QUESTION]"""
    if not rest:
        names = ", ".join(opening.display_name(picture.path) for picture in chat.attached)
        waiting = f"waiting for your next message: {names}" if names else "no picture is waiting"
        raise exits.UsageError(f"/image needs the path of a picture, document or video ({waiting})")
    chat.send(paths.read_message(rest, named=True))


def undo(chat: Chat, rest: str) -> None:
    """/undo: what waits first, then the last turn."""
    if chat.attached:
        chat.terminal.say(f"{opening.display_name(chat.attached.pop().path)} is no longer waiting.", DIM)
        return
    if not chat.conversation.turns:
        raise exits.UsageError("/undo: nothing was asked yet")
    chat.conversation.undo()
    chat.last = None
    n_turns = len(chat.conversation.turns)
    chat.terminal.say(f"Took the last question back; {plural(n_turns, 'question')} left.", DIM)


def regen(chat: Chat, rest: str) -> None:
    """/regen: with another seed, or it would be the same answer."""
    options = dict(chat.options.sampling)
    chat.n_regenerated += 1
    if "seed" in options:
        options["seed"] = (int(options["seed"]) + chat.n_regenerated) % (1 << 64)
    chat.answer(lambda: chat.conversation.regenerate(stream=True, progress=chat.progress, **options))


def clear(chat: Chat, rest: str) -> None:
    """/clear: everything but the system message."""
    chat.conversation.clear()
    chat.attached.clear()
    chat.last = None
    chat.terminal.say("Everything forgotten.", DIM)


def fork(chat: Chat, rest: str) -> None:
    """/fork: the conversation goes on in a copy; what was computed for it serves both."""
    chat.forked.append(chat.conversation)
    chat.conversation = chat.conversation.fork()
    chat.terminal.say(f"Forked after {plural(len(chat.conversation.turns), 'question')}; /back returns here.", DIM)


def back(chat: Chat, rest: str) -> None:
    """/back: to where the last /fork was."""
    if not chat.forked:
        raise exits.UsageError("/back: nothing was forked")
    chat.conversation = chat.forked.pop()
    chat.last = chat.conversation.last
    chat.terminal.say(f"Back after {plural(len(chat.conversation.turns), 'question')}.", DIM)


def save(chat: Chat, rest: str) -> None:
    """/save FILE [--pages]"""
    name = rest.removesuffix("--pages").rstrip()
    target = paths.resolve(name) if name else chat.file
    if target is None:
        raise exits.UsageError("/save needs the name of a file, for example /save talk.json")
    store.save(chat.conversation, chat.model, target)
    chat.file = target
    chat.terminal.say(f"Saved to {target}.", DIM)
    if name != rest:
        n = store.save_pages(chat.conversation, target)
        chat.terminal.say(f"{plural(n, 'token')} need not be computed again: {target}{store.PAGES}.", DIM)


def load(chat: Chat, rest: str) -> None:
    """/load FILE"""
    if not rest:
        raise exits.UsageError("/load needs the name of a file that /save wrote")
    source = paths.resolve(rest)
    conversation, saved_with = store.load(chat.model, source)
    chat.conversation.close()
    chat.conversation = conversation
    chat.attached.clear()
    chat.last, chat.file = None, source
    if saved_with and saved_with != chat.model.name:
        chat.terminal.note(f"this conversation was held with another model, {saved_with}")
    for notice in conversation.notices:
        chat.terminal.note(notice)
    chat.terminal.say(f"Loaded {source}: {plural(len(conversation.turns), 'question')}.", DIM)
    if conversation.turns:
        chat.terminal.say(f"The last one was: {_shortened(conversation.turns[-1].text)}", DIM)


def _shortened(text: str, n: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= n else line[: n - 1] + "…"


def stats(chat: Chat, rest: str) -> None:
    """/stats"""
    model, last = chat.model, chat.last
    say = chat.terminal.say
    if last is not None:
        used = last.usage.prompt_tokens + last.usage.completion_tokens
        say(f"context      {human_count(used)} of {human_count(model.n_ctx)} tokens ({100 * used // model.n_ctx} %), "
            f"{human_count(last.usage.image_tokens)} of them pictures")  # fmt: skip
        say(f"last answer  {opening.timings_line(last, load=False)}")
    else:
        say(f"context      {human_count(model.n_ctx)} tokens; no answer yet")
    resident = system.resident_bytes()
    if resident is not None:
        say(f"memory       {human_bytes(resident)}, the parts of the model file in use included")
    threads = plural(model.n_threads, "thread")
    say(f"model        {model.name} ({model.variant}), {threads}, {model.isa}")


def show_help(chat: Chat, rest: str) -> None:
    """/help"""
    chat.terminal.say(HELP)


def leave(chat: Chat, rest: str) -> None:
    """/exit"""
    raise Leave(errors.EXIT_OK)


COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "/image": image,
    "/undo": undo,
    "/regen": regen,
    "/fork": fork,
    "/back": back,
    "/clear": clear,
    "/save": save,
    "/load": load,
    "/stats": stats,
    "/help": show_help,
    "/exit": leave,
    "/quit": leave,
}
NAMES = tuple(COMMANDS)
