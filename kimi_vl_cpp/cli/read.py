"""`kimi-vl read`: a document or a picture into Markdown, text, HTML, LaTeX, JSON or tables, page by page.

Owns the options, the progress line and the output file. Imports only what is quick: it is read at every start.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from ..media.named_part import split
from ..wording import duration, plural, printable
from . import attachments, exits, journaled, opening, options
from .progress import Progress
from .terminal import Terminal

if TYPE_CHECKING:
    from ..model import KimiVL
    from ..tasks.reading import ReadPage
    from ..tasks.recipes import Kind, Recipe

SUMMARY = "Read a document, page by page."
WRITE_EVERY = 10  # pages, after which the output is written
_KINDS = ("md", "text", "html", "latex", "table")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `read`."""

    files: opening.Opening
    file: str
    out: str
    kind: str | None = None
    prompt_file: str | None = None
    schema: str | None = None
    pages: str | None = None
    image_patches: int | None = None
    max_tokens: int | None = None
    upright: bool = False
    isolate: bool = False
    password_file: str | None = None
    restart: bool = False
    force: bool = False
    csv_safe: bool = False


@options.grouped
def command(
    *,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A PDF or TIFF document, FILE.pdf#3,7-9, or a picture.")],
    out: Annotated[
        str,
        typer.Option(
            "-o",
            "--out",
            metavar="OUT",
            help="Where to: .md, .txt, .html, .tex, .json, or .csv for tables (a file for each: OUT.t3-1.csv).",
        ),
    ],
    files: opening.Opening,
    kind: Annotated[
        str | None,
        typer.Option("--as", metavar="KIND", help=f"What to read: {', '.join(_KINDS)}. Default: what OUT ends with."),
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option("--prompt-file", metavar="FILE", help="What to ask about each page instead of the recipe."),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(
            "--schema", metavar="FILE", help="Extract data by this JSON schema into OUT.json, merged over the pages."
        ),
    ] = None,
    pages: options.Pages = None,
    image_patches: options.ImagePatches = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("-n", "--max-tokens", metavar="N", help="Longest text of a page, in tokens. Default: 4096."),
    ] = None,
    upright: Annotated[
        bool, typer.Option("--upright", help="Turn pages that were scanned on their side: a short look at each first.")
    ] = False,
    isolate: options.Isolate = False,
    restart: options.Restart = False,
    force: options.Force = False,
    csv_safe: Annotated[
        bool, typer.Option("--csv-safe", help="Keep spreadsheets from taking a cell of a .csv for a formula.")
    ] = False,
    password_file: options.PasswordFile = None,
) -> options.Job:
    """Read a document, page by page, into a file.

    kimi-vl read -m kimi.gguf report.pdf -o report.md

    Every page that is done is kept in OUT.journal: a run that was stopped goes on where it was with the same command.
    """

    def job(terminal: Terminal) -> int:
        return run(
            Options(
                files=files,
                file=file,
                out=out,
                kind=kind,
                prompt_file=prompt_file,
                schema=schema,
                pages=pages,
                image_patches=image_patches,
                max_tokens=max_tokens,
                upright=upright,
                isolate=isolate,
                password_file=password_file,
                restart=restart,
                force=force,
                csv_safe=csv_safe,
            ),
            terminal,
        )

    return job


def run(options: Options, terminal: Terminal) -> int:
    """Reads and returns the exit code: 1 when a page could not be read. Raises KimiVLError, OSError."""
    from ..checks import check_int
    from ..generation.sampling import MAX_NEW_TOKENS
    from ..tasks.journal import Journal

    if options.max_tokens is not None:
        check_int("max_new_tokens", options.max_tokens, 1, MAX_NEW_TOKENS)
    schema = _schema(options)
    way, recipe = _recipe(options, schema)
    options = replace(options, file=attachments.resolve(options.file), files=opening.choose_model(options.files))
    attachments.check(options.file)
    opened = attachments.Attachments([options.file], options.pages, options.password_file, isolate=options.isolate)
    images = opened.open(options.file)
    numbered = [(getattr(image, "number", 1), image) for image in images]
    out = Path(options.out)
    journal_path = journaled.journal_of(out)
    journaled.check_output(out, split(options.file)[0], force=options.force)
    for notice in opened.notices:
        terminal.note(notice)
    progress = Progress(terminal)
    with opening.introduced(options.files, progress, terminal) as model:
        model.require_vision()
        if options.image_patches is not None:
            check_int("image_patches", options.image_patches, 4, model.loaded.processor.in_token_limit)
        about = {"file": os.path.basename(options.file), "model": model.name}
        with Journal(journal_path, _head(model, options, recipe), restart=options.restart) as journal:
            n_before = sum(number in journal.done for number, _ in numbered)
            if n_before:
                terminal.note(f"{n_before} of {plural(len(numbered), 'page')} were read before and are in the journal")
            writer = _Writer(out, way, recipe.kind, about, options.csv_safe, schema)
            reading = _Reading(terminal, progress, writer, len(numbered), n_before)
            pages = reading.run(model, numbered, recipe, journal, options)
    return _report(pages, out, journal_path, writer, terminal)


def _schema(options: Options) -> dict[str, Any] | None:
    if options.schema is None:
        return None
    from ..tasks.extract import read_schema

    if Path(options.out).suffix.lower() != ".json":
        raise exits.UsageError(f"--schema {options.schema}: data are written as JSON: expected -o NAME.json")
    if options.kind is not None or options.prompt_file is not None:
        raise exits.UsageError("--schema says what to ask: leave --as and --prompt-file out")
    return read_schema(opening.read_text_file(options.schema))


def _recipe(options: Options, schema: dict[str, Any] | None) -> tuple[str, Recipe]:
    """How the output is written, and what is asked about a page."""
    from ..tasks.extract import recipe_for
    from ..tasks.outputs import SUFFIXES
    from ..tasks.recipes import RECIPES, Recipe

    suffix = Path(options.out).suffix.lower()
    if suffix not in SUFFIXES:
        raise exits.UsageError(f"-o {options.out}: its end says what to write: expected one of {', '.join(SUFFIXES)}")
    way, kind = SUFFIXES[suffix]
    if schema is not None:
        return "data", recipe_for(schema)
    if options.kind is not None:
        if options.kind not in _KINDS:
            raise exits.UsageError(f"--as {options.kind}: expected one of {', '.join(_KINDS)}")
        named: dict[str, Kind] = {name: name for name in RECIPES}
        kind = named[options.kind]
    recipe = RECIPES[kind]
    if options.prompt_file is not None:
        recipe = Recipe(kind, opening.read_text_file(options.prompt_file).strip())
        if not recipe.prompt:
            raise exits.UsageError(f"--prompt-file {options.prompt_file}: it is empty")
    return way, recipe


def _head(model: KimiVL, options: Options, recipe: Recipe) -> dict[str, Any]:
    """What a journal must agree on for its pages to be used. Which pages are asked for may change."""
    return {
        "document": journaled.digest(split(options.file)[0]),
        **journaled.model_part(model),
        "prompt": recipe.prompt,
        "image_patches": options.image_patches,
        "in_token_limit": model.loaded.processor.in_token_limit,
        "max_new_tokens": options.max_tokens,
        "n_ctx": model.n_ctx,
        "upright": options.upright or None,  # not in journals from before there was such a thing
    }


class _Writer:
    """The output file, written as a whole from the pages that are there."""

    def __init__(
        self,
        out: Path,
        way: str,
        kind: Kind,
        about: dict[str, Any],
        csv_safe: bool,
        schema: dict[str, Any] | None,
    ) -> None:
        self._out, self._way, self._kind = out, way, kind
        self._about, self._csv_safe, self._schema = about, csv_safe, schema
        self.missing: list[str] = []  # required fields of the schema that no page has
        self.files: list[Path] = []
        self.notices: list[str] = []

    def write(self, pages: list[ReadPage]) -> None:
        """Replaces the output by these pages."""
        from ..tasks import outputs

        if self._way == "csv":
            self.files, self.notices = outputs.write_csv(pages, self._out, safe=self._csv_safe)
            return
        if self._schema is not None:
            text, merged = outputs.as_data(pages, self._schema, self._about)
            self.missing = merged.missing
            self.notices = [_conflict(one) for one in merged.conflicts]
        elif self._way == "json":
            text = outputs.as_json(pages, self._about)
        else:
            text = outputs.as_text(pages, self._kind)
        outputs.replace_file(self._out, text)
        self.files = [self._out]


class _Reading:
    """The run over the pages, and its progress line."""

    def __init__(self, terminal: Terminal, progress: Progress, writer: _Writer, n_pages: int, n_before: int) -> None:
        self._terminal, self._progress, self._writer = terminal, progress, writer
        self._n_pages, self._n_before = n_pages, n_before
        self._done: list[ReadPage] = []
        self._began = time.monotonic()

    def run(
        self, model: KimiVL, pages: list[tuple[int, Any]], recipe: Recipe, journal: Any, options: Options
    ) -> list[ReadPage]:
        """Reads all pages; what is read when it is stopped is written before the exception goes on."""
        from ..tasks.reading import read_pages

        try:
            for page in read_pages(
                model,
                pages,
                recipe,
                journal,
                patches=options.image_patches,
                max_new_tokens=options.max_tokens,
                upright=options.upright,
                progress=_quiet,
                before=self._show,
            ):
                self._done.append(page)
                if len(self._done) % WRITE_EVERY == 0:
                    self._writer.write(self._done)
        except (KeyboardInterrupt, errors.KimiVLError):
            self._progress.clear()
            n_kept = len(journal.done)
            self._terminal.note(
                f"stopped; {plural(n_kept, 'page')} of {self._n_pages} in the journal: the same command goes on there"
            )
            if self._done:
                self._writer.write(self._done)
            raise
        finally:
            self._progress.clear()
        self._writer.write(self._done)
        return self._done

    def _show(self, number: int) -> None:
        n_done = len(self._done)
        text = f"{100 * n_done // self._n_pages:3d}%  page {number}, {n_done + 1} of {self._n_pages}"
        new, elapsed = n_done - self._n_before, time.monotonic() - self._began
        if new > 0 and elapsed > 1:
            left = elapsed / new * (self._n_pages - n_done)
            text += f"  {duration(left)} left"
            if new == 1 and left > 60:
                self._progress.clear()
                self._terminal.note(f"the other {plural(self._n_pages - n_done, 'page')} take about {duration(left)}")
        self._progress.show(text)


def _quiet(stage: str, done: int, total: int) -> None:
    """The progress of one page is not shown: its number is."""


def _report(pages: list[ReadPage], out: Path, journal: Path, writer: _Writer, terminal: Terminal) -> int:
    for notice in writer.notices:
        terminal.note(notice)
    layers = [page for page in pages if page.source == "text layer"]
    again = [page for page in pages if page.attempts > 1 and page.is_read and page not in layers]
    missing = [page for page in pages if not page.is_read]
    for turns, how in ((1, "90° to the left"), (2, "by 180°"), (3, "90° to the right")):
        if lying := [page for page in pages if page.turned == turns]:
            terminal.note(f"{_named(lying)}: turned {how} before reading")
    if layers:
        terminal.note(f"{_named(layers)}: the model's text was bad, and the text layer of the document stands for it")
    if again:
        terminal.note(f"{_named(again)}: read after more than one try")
    names = ", ".join(printable(path.name, one_line=True) for path in writer.files[:5]) or "no table was found"
    more = f" and {len(writer.files) - 5} more" if len(writer.files) > 5 else ""
    terminal.say(f"{plural(len(pages) - len(missing), 'page')} read: {names}{more} (journal: {journal.name})")
    for problem in dict.fromkeys(page.problem for page in missing):
        hint = "; -n allows longer texts" if problem == "length" else ""
        bad = [page for page in missing if page.problem == problem]
        terminal.error(f"not read ({problem}{hint}): {_named(bad)}", "document.page_not_read")
    for path in writer.missing:
        terminal.error(f"the schema requires {path}, which no page has", "document.schema")
    return errors.EXIT_FAILED if missing or writer.missing else errors.EXIT_OK


def _conflict(conflict: dict[str, Any]) -> str:
    said = ", ".join(f"page {one['page']} {errors.shown(one['value'])}" for one in conflict["values"][:4])
    return f"pages disagree on {conflict['path']}: {said}; the first is taken"


def _named(pages: list[ReadPage]) -> str:
    """pages 3-5, 9: neighbours as a range."""
    runs: list[list[int]] = []
    for page in pages:
        if runs and page.number == runs[-1][-1] + 1:
            runs[-1].append(page.number)
        else:
            runs.append([page.number])
    listed = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"page{'' if len(pages) == 1 else 's'} {listed}"
