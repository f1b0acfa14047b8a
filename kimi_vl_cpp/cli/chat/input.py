"""Where the messages of a chat come from: an editor line on a terminal, plain lines otherwise.

Both readers give whole messages, which may have several lines. KeyboardInterrupt is Ctrl-C at the prompt; EOFError
is the end.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..terminal import Terminal, is_terminal

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession


class Reader(Protocol):
    """Gives one message after the other."""

    interactive: bool

    def read(self, prompt: str) -> str:
        """The next message. Raises EOFError at the end and KeyboardInterrupt for Ctrl-C with nothing typed."""
        ...


@contextlib.contextmanager
def unechoed() -> Iterator[None]:
    """Keys typed meanwhile are kept for the next message but not shown: they would end up in the middle of an answer.

    Ctrl-C still works. Does nothing where standard input is not a terminal.
    """
    if termios is None or not is_terminal(sys.stdin):
        yield
        return
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    quiet = list(before)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(handle, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(handle, termios.TCSANOW, before)


def state_folder() -> Path:
    """Where the user's history is kept: $XDG_STATE_HOME/kimi-vl, or ~/.local/state/kimi-vl."""
    base = os.environ.get("XDG_STATE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~")) / ".local" / "state"
    return root / "kimi-vl"


def make_reader(terminal: Terminal, commands: Iterable[str]) -> Reader:
    """The editor when both standard input and output are a terminal that can move its cursor, else plain lines."""
    if is_terminal(sys.stdin) and terminal.out_tty and os.environ.get("TERM", "") not in ("", "dumb"):
        return Editor(terminal, commands)
    return Lines(terminal)


class Lines:
    """Plain lines of standard input. A backslash at the end of a line continues the message on the next one."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.interactive = is_terminal(sys.stdin)
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")

    def read(self, prompt: str) -> str:
        lines: list[str] = []
        while True:
            if self.interactive:
                self._terminal.err.write(prompt if not lines else "… ")
                self._terminal.err.flush()
            line = sys.stdin.readline() if sys.stdin is not None else ""
            if not line:
                if lines:
                    return "\n".join(lines)
                raise EOFError
            line = line.rstrip("\r\n")
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])


class Editor:
    """prompt_toolkit: history across sessions, Tab completes commands and paths, Alt-Enter or a final backslash breaks
    the line."""

    interactive = True

    def __init__(self, terminal: Terminal, commands: Iterable[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import ColorDepth

        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            enable_suspend=True,
            history=_history(),
            key_bindings=_key_bindings(),
            completer=_completer(list(commands)),
            complete_while_typing=False,
            prompt_continuation="  ",
            color_depth=None if terminal.out_colour else ColorDepth.DEPTH_1_BIT,
        )

    def read(self, prompt: str) -> str:
        text: str = self._session.prompt(prompt)
        return text


def _history() -> Any:
    """The history file, created for its owner alone; a history in memory when it cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class ForgivingHistory(FileHistory):
        """A full disk or a folder that became read-only costs the history, never the conversation."""

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):
                super().store_string(string)

        def load_history_strings(self) -> Iterable[str]:
            try:
                return list(super().load_history_strings())
            except OSError:
                return []

    path = state_folder() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return ForgivingHistory(str(path))


def _key_bindings() -> Any:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\" and not buffer.document.text_after_cursor:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: Any) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys


def _completer(commands: list[str]) -> Any:
    from prompt_toolkit.completion import Completer, PathCompleter
    from prompt_toolkit.completion import Completion as Choice
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class CommandCompleter(Completer):
        """Commands at the start of the message; paths after those that take one."""

        def get_completions(self, document: Any, complete_event: Any) -> Iterable[Any]:
            text = document.text_before_cursor
            command, space, rest = text.partition(" ")
            if space and command in ("/image", "/load", "/save"):
                yield from paths.get_completions(Document(rest, len(rest)), complete_event)
            elif not space and text.startswith("/"):
                for name in commands:
                    if name.startswith(text):
                        yield Choice(name, start_position=-len(text))
            if not space and "/" in text[1:]:
                yield from paths.get_completions(Document(text, len(text)), complete_event)

    return CommandCompleter()
