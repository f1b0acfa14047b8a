"""The option tables of docs/cli.md say what the commands declare."""

import subprocess
import sys

import option_tables
import pytest


def test_the_page_has_the_options_of_today():
    page = option_tables.PAGE.read_text(encoding="utf-8")
    assert page == option_tables.with_tables(page), "docs/cli.md is out of date: run python tests/option_tables.py"


def test_a_changed_description_is_noticed():
    page = option_tables.PAGE.read_text(encoding="utf-8")
    changed = page.replace("The system message.", "Another message.")
    assert changed != page and option_tables.with_tables(changed) == page


def test_a_page_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="end of options"):
        option_tables.with_tables("# The command line\n")


@pytest.mark.parametrize("command", ["run", "quantize"])
def test_help_prints_every_name_in_the_table(command):
    printed = subprocess.run(
        [sys.executable, "-m", "kimi_vl_cpp", command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    table = option_tables.tables().split(f"### {command}\n", 1)[1].split("###", 1)[0]
    names = [row.split("`")[1].split(",")[0].split()[0] for row in table.splitlines() if row.startswith("| `")]
    assert len(names) > 10 and all(name in printed for name in names)
