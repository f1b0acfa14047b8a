"""The option tables of docs/cli.md, made from what the commands declare.

    python tests/option_tables.py      # writes them

`kimi-vl COMMAND --help` prints the same names and descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
BEGIN = "<!-- options: written by tests/option_tables.py -->\n"
END = "<!-- end of options -->\n"


def tables() -> str:
    """A heading and a table for every command of `kimi-vl`, in the order of `kimi-vl --help`."""
    from kimi_vl_cpp.cli.app import app

    root: Any = typer.main.get_command(app)
    return "\n".join(f"### {name}\n\n{_table(command)}" for name, command in _commands(root, ""))


def _commands(group: Any, before: str) -> Iterator[tuple[str, Any]]:
    """Every command under its name, those of a group behind the group's."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def with_tables(page: str) -> str:
    """`page` with the text between BEGIN and END replaced by today's tables; ValueError without the marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN.strip()!r} and {END.strip()!r}")
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def _table(command: Any) -> str:
    rows = [(_names(parameter), _description(parameter)) for parameter in command.params if not parameter.hidden]
    return "".join(f"| {names} | {description} |\n" for names, description in [("", ""), ("---", "---"), *rows])


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    value = "" if parameter.is_flag else f" {parameter.metavar}"
    return f"`{names}{value}`".replace("|", "\\|")


def _description(parameter: Any) -> str:
    """The help on one line, with the characters escaped that Markdown would interpret."""
    text = " ".join((parameter.help or "").split())
    for mark in ("\\", "|", "<", "*"):
        text = text.replace(mark, f"\\{mark}")
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
