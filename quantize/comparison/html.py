"""A comparison as one HTML page that needs nothing else, and its figures as PNG.

Every text of a file or a model is escaped and without control characters; pictures are data URLs; the page has no
script and asks the network for nothing (its own policy says so to the browser).
"""

from __future__ import annotations

import contextlib
import os
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from kimi_vl_cpp._core import GGUFFile
from kimi_vl_cpp.errors import BadRequest, KimiVLError
from kimi_vl_cpp.files import model_files
from kimi_vl_cpp.files.input_file import InputFile
from kimi_vl_cpp.version import __version__
from kimi_vl_cpp.wording import human_bytes, plural, printable

from ..output.write import check_output
from ..source.gguf import shard_paths
from .charts import charts
from .drawing import PALETTE, Drawing, series
from .report import Candidate, CompareReport, Divergence, ModelFacts, PromptResult, percent
from .style import STYLE

_WORST_TENSORS = 15
_MOST_PICTURES = 60


@dataclass(frozen=True)
class Outputs:
    """Where a report and its figures go; None: nowhere."""

    html: Path | None
    png: Path | None
    force: bool


def check_outputs(html: str | None, png: str | None, models: Sequence[str], data: str | None, force: bool) -> Outputs:
    """Refuses, before anything is computed, what could not be written at the end.

    Raises BadRequest "quantize.output_exists", "quantize.output_is_input", "quantize.output".
    """
    if html is None and png is None:
        return Outputs(None, None, force)
    page = None if html is None else check_output(html, _inputs(models), False, force)
    if page is not None and data is not None:
        for folder, _, names in os.walk(data) if os.path.isdir(data) else [(os.path.dirname(data), (), [data])]:
            if page.exists() and any(page.samefile(path) for name in names if (path := Path(folder, name)).exists()):
                raise BadRequest(
                    f"{page}: is one of the files of {data}: give the report another path", "quantize.output_is_input"
                )
    figures = None if png is None else Path(os.path.realpath(png))
    if figures is not None:
        if figures.exists() and not figures.is_dir():
            raise BadRequest(f"{figures}: is a file, expected a folder for figures", "quantize.output")
        if not figures.parent.is_dir():
            raise BadRequest(f"{figures.parent}: there is no such folder: make it first", "quantize.output")
        there = sorted(figures.glob("compare-*.png")) if figures.is_dir() else []
        if there and not force:
            raise BadRequest(
                f"{there[0]}: exists already: give another folder, or force=True (--force) to replace it",
                "quantize.output_exists",
            )
    return Outputs(page, figures, force)


def _inputs(models: Sequence[str]) -> list[InputFile]:
    """The files of the models, closed: for their identity."""
    found = []
    for model in models:
        files = model_files.resolve(Path(model))
        for path in [*shard_paths(GGUFFile(str(files.text))), *([files.mmproj] if files.mmproj else [])]:
            found.append(InputFile(path, "GGUF file"))
            found[-1].close()
    return found


def write_outputs(report: CompareReport, outputs: Outputs) -> list[Path]:
    """Writes what is wanted, every file whole or not at all; returns the paths.

    Raises KimiVLError "compare.io".
    """
    contents: list[tuple[Path, bytes]] = []
    if outputs.html is not None:
        contents.append((outputs.html, page(report).encode()))
    if outputs.png is not None:
        with _disk_errors(outputs.png):
            outputs.png.mkdir(exist_ok=True)
        for figures in charts(report).values():
            contents += [(outputs.png / f"compare-{figure.name}.png", figure.png()) for figure in figures]
    partials = [(path.with_name(f"{path.name}.kimi-vl-partial"), path, raw) for path, raw in contents]
    try:
        for partial, _, raw in partials:
            with _disk_errors(partial), partial.open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
        for partial, path, _ in partials:
            with _disk_errors(path):
                os.replace(partial, path)
    finally:
        for partial, _, _ in partials:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    return [path for path, _ in contents]


class _disk_errors(contextlib.AbstractContextManager[None]):
    """OSError -> KimiVLError with the path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise KimiVLError(f"{self._path}: {error.strerror}: the report was not written", "compare.io") from None


# The page


def page(report: CompareReport) -> str:
    """The whole page."""
    figures = charts(report)
    title = f"{report.reference.label} and {', '.join(c.model.label for c in report.candidates)}"
    names = [("#results", "Results")]
    parts = [_header(report), _results(report)]
    if report.n_pictures:
        names.append(("#pictures", "Pictures"))
        parts.append(_pictures(report))
    names.append(("#predictions", "Predictions"))
    parts.append(_section("predictions", "Predictions", _figures(figures["predictions"]) + _prompts(report)))
    if figures["weights"]:
        names.append(("#weights", "Weights"))
        parts.append(_section("weights", "Weights", _figures(figures["weights"]) + _worst(report)))
    if figures["experts"]:
        names.append(("#experts", "Experts"))
        parts.append(_section("experts", "Experts", _figures(figures["experts"])))
    names.append(("#how", "How it was measured"))
    parts.append(_how(report))
    links = "".join(f'<a href="{where}">{escape(name)}</a>' for where, name in names)
    light = "".join(f"--{name}:{pair[0]};" for name, pair in PALETTE.items())
    dark = "".join(f"--{name}:{pair[1]};" for name, pair in PALETTE.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{_text(title)}</title>
<style>:root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{STYLE}</style></head>
<body><nav>{links}</nav><main>
{"".join(parts)}
</main></body></html>
"""


def _text(words: str, *, lines: bool = False) -> str:
    return escape(printable(words, one_line=not lines))


def _words(words: str) -> str:
    """A sentence of the report: numbers stay with their per cent signs."""
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", _text(words))


def _section(name: str, title: str, inside: str) -> str:
    return f'<section id="{name}"><h2>{escape(title)}</h2>{inside}</section>\n'


def _header(report: CompareReport) -> str:
    data = f"{report.prompts()} ({_text(report.data)})"
    return f"""<header><p class="kind">kimi-vl compare</p><h1>{_words(report.verdict())}</h1>
<p class="pale">Compared on {data}, {report.candidates[0].overall.n} scored places. Reference:
{_text(report.reference.label)}, {human_bytes(report.reference.facts.n_bytes)}.</p>{_warnings(report)}</header>
"""


def _warnings(report: CompareReport) -> str:
    found = [*report.warnings, *(f"skipped {path}: {why}" for path, why in report.skipped[:5])]
    if len(report.skipped) > 5:
        found.append(f"skipped {len(report.skipped) - 5} more files")
    return "".join(f'<p class="warning">{_text(warning)}</p>' for warning in found)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], css: str = "") -> str:
    """Cells are HTML; the first column is a heading."""
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return f'<div class="wide"><table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def number(x: float | None) -> str:
    """Three digits; an exponent where there would be only zeros."""
    if x is None:
        return "–"
    if 0 < x < 1e-3:
        return f"{x:.2g}".replace("e-0", "e\N{MINUS SIGN}")  # which must not break the line
    return "0" if x == 0 else f"{x:.4f}" if x < 1 else f"{x:.3g}"


def _swatch(i: int) -> str:
    return f'<i style="background:var(--{series(i)})"></i>'


def _top(d: Divergence | None) -> str:
    if d is None:
        return "–"
    return f"{percent(d.top)}<small>{100 * d.top_low:.1f}–{100 * d.top_high:.1f}</small>"


def _kl(d: Divergence | None) -> str:
    return "–" if d is None else f"{number(d.mean)}<small>99 %: {number(d.p99)}</small>"


def _off(error: float | None) -> str:
    return "–" if error is None else "0" if error == 0 else f"{100 * error:.3g} %"


def _results(report: CompareReport) -> str:
    def size(model: ModelFacts) -> str:
        share = (
            "reference" if model is report.reference else percent(model.facts.n_bytes / report.reference.facts.n_bytes)
        )
        return f"{human_bytes(model.facts.n_bytes)}<small>{share}</small>"

    def speed(model: ModelFacts) -> str:
        read, written = (
            ("–" if s is None else f"{s:,.0f}" if s >= 100 else f"{s:.3g}")
            for s in (model.speed.prefill, model.speed.decode)
        )
        return f"{read} / {written}"

    pictures, texts = report.n_pictures > 0, report.n_pictures < len(report.candidates[0].prompts)
    columns: list[tuple[bool, str, Callable[[Candidate], str]]] = [
        (pictures, "Same next token<small>pictures</small>", lambda c: _top(c.picture)),
        (texts, "Same next token<small>texts</small>", lambda c: _top(c.text)),
        (pictures, "Mean KL<small>pictures</small>", lambda c: _kl(c.picture)),
        (texts, "Mean KL<small>texts</small>", lambda c: _kl(c.text)),
        (pictures, "Picture embeddings<small>relative error</small>", lambda c: _off(c.embedding)),
        (
            pictures,
            "Same answers<small>letter for letter</small>",
            lambda c: f"{c.n_same_answers} of {report.n_pictures}",
        ),
    ]
    wanted = [(title, cell) for is_wanted, title, cell in columns if is_wanted]
    titles = ["Model", "Size", "Bits per weight", *(title for title, _ in wanted)]
    titles.append("Tokens per second<small>read / written</small>")

    def row(model: ModelFacts, swatch: str, cells: Sequence[str]) -> list[str]:
        bits = f"{model.facts.bits_per_weight:.2f}"
        return [swatch + _text(model.label), size(model), bits, *cells, speed(model)]

    rows = [row(report.reference, "", ["–"] * len(wanted))]
    rows += [row(c.model, _swatch(i), [cell(c) for _, cell in wanted]) for i, c in enumerate(report.candidates)]
    sentences = "".join(f"<p>{_words(report.sentence(c))}</p>" for c in report.candidates if len(report.candidates) > 1)
    return _section("results", "Results", sentences + _table(titles, rows, "numbers"))


def _pictures(report: CompareReport) -> str:
    """Of every picture the question and the answers, side by side."""
    prompts = report.candidates[0].prompts
    order = sorted(
        (k for k, prompt in enumerate(prompts) if prompt.answers is not None),
        key=lambda k: (-sum(c.prompts[k].divergence.mean for c in report.candidates), k),
    )
    left_out = f" The {len(order) - _MOST_PICTURES} that differ least are left out." if order[_MOST_PICTURES:] else ""
    out = [
        f'<p class="pale">Greedy answers of at most {report.n_answer} tokens, the most different ones first; '
        f"<mark>marked</mark> from the first difference on.{left_out}</p>"
    ]
    for k in order[:_MOST_PICTURES]:
        prompt = prompts[k]
        assert prompt.answers is not None
        raw = report.thumbnails[prompt.name]
        kind = "png" if raw.startswith(b"\x89PNG") else "jpeg"
        thumbnail = f"data:image/{kind};base64,{b64encode(raw).decode()}"
        answers = [
            f'<div class="answer"><h4>{_text(report.reference.label)}</h4>'
            f"<blockquote>{_answer(prompt.answers[0])}</blockquote></div>"
        ]
        for i, candidate in enumerate(report.candidates):
            answers.append(_candidate_answer(candidate, candidate.prompts[k], i))
        out.append(
            f'<article><figure><img src="{thumbnail}" alt="{_text(prompt.name)}">'
            f"<figcaption>{_text(prompt.name)}</figcaption></figure>"
            f'<div><p class="question">{_text(prompt.question, lines=True)}</p>'
            f'<div class="answers">{"".join(answers)}</div></div></article>'
        )
    return _section("pictures", "Pictures", "\n".join(out))


def _answer(text: str) -> str:
    return _text(text, lines=True) or '<span class="pale">(nothing)</span>'


def _candidate_answer(candidate: Candidate, prompt: PromptResult, i: int) -> str:
    assert prompt.answers is not None
    mine = prompt.answers[1]
    if mine == prompt.answers[0]:
        words = _answer(mine)
        state = "the same"
    else:
        at = prompt.same
        rest = _text(mine[at:], lines=True) or "(ends here)"
        words = f"{_text(mine[:at], lines=True)}<mark>{rest}</mark>"
        state = f"differs from letter {at + 1} on"
    d = prompt.divergence
    below = f"{state}; same next token at {percent(d.top)} of {plural(d.n, 'place')}, mean KL {number(d.mean)}"
    if prompt.embedding:
        below += f", embeddings off by {_off(prompt.embedding)}"
    return (
        f'<div class="answer"><h4>{_swatch(i)}{_text(candidate.model.label)}</h4><blockquote>{words}</blockquote>'
        f'<p class="pale">{_words(below)}</p></div>'
    )


def _figures(drawings: Sequence[Drawing]) -> str:
    """Of figures of one kind for every candidate all but the first are folded."""
    out = []
    folded = [d for d in drawings if d.folds]
    for d in drawings:
        inside = f'<div class="wide">{d.svg()}</div><figcaption>{_words(d.note)}</figcaption>'
        if len(folded) > 1 and d.folds:
            is_open = " open" if d is folded[0] else ""
            inside = f"<details{is_open}><summary>{_text(d.title)}</summary>{inside}</details>"
        else:
            inside = f"<h3>{_text(d.title)}</h3>{inside}"
        out.append(f'<figure class="chart">{inside}</figure>')
    return "".join(out)


def _prompts(report: CompareReport) -> str:
    tables = []
    for i, c in enumerate(report.candidates):
        rows = []
        for prompt in c.prompts:
            d = prompt.divergence
            perplexity = "–" if d.perplexity is None else f"{d.perplexity[1]:.4g}<small>{d.perplexity[0]:.4g}</small>"
            rows.append(
                [
                    _text(prompt.name),
                    str(d.n),
                    _top(d),
                    *(number(x) for x in (d.mean, d.median, d.p90, d.p99, d.max)),
                    perplexity,
                ]
            )
        titles = ["Prompt", "Places", "Same next token", "KL mean", "median", "90 %", "99 %", "worst"]
        titles += ["Perplexity<small>reference</small>"]
        tables.append(
            f"<details><summary>{_swatch(i)}Every prompt: {_text(c.model.label)}</summary>"
            f"{_table(titles, rows, 'numbers')}</details>"
        )
    return "".join(tables)


def _worst(report: CompareReport) -> str:
    """The tensors that are furthest from the reference, and those that could not be compared."""
    out = []
    for i, c in enumerate(report.candidates):
        if c.weights is None:
            continue
        worst = sorted(c.weights.tensors, key=lambda t: -t.relative)[:_WORST_TENSORS]
        rows = [[_text(t.name), f"{t.type_a} → {t.type_b}", f"{t.n_elems:,}", _off(t.relative)] for t in worst]
        note = ""
        if c.weights.unmatched:
            names = ", ".join(c.weights.unmatched[:8]) + (", …" if len(c.weights.unmatched) > 8 else "")
            note = f'<p class="pale">In one of the files only, or of another shape: {_text(names)}.</p>'
        out.append(
            f"<details><summary>{_swatch(i)}Furthest tensors: {_text(c.model.label)}</summary>"
            f"{_table(['Tensor', 'Type', 'Weights', 'Relative error'], rows, 'numbers')}{note}</details>"
        )
    return "".join(out)


def _how(report: CompareReport) -> str:
    how = [
        "A text is what the user says; every one of its tokens is a place where the next token is predicted. With a "
        f"picture, the reference answers the question greedily with at most {report.n_answer} tokens, and all models "
        "predict every token of that answer.",
        "KL is the Kullback-Leibler divergence of the candidate's probabilities of the next token from the "
        "reference's, in nats: 0 is the same, 0.01 is hard to notice, 1 is another model.",
        "Same next token: the share of places where both think the same token likeliest, with the interval of 95 % "
        "confidence by Wilson. Places of one prompt are not independent, so truth may lie outside of it more often.",
        "Picture embeddings: what the decoder gets of a picture; the length of the difference divided by the length "
        "of the reference's. Candidates see their own embeddings, so all other numbers of pictures include this error.",
        f"The reference's probabilities were kept as {report.stored_as}. Speeds are from this run, on this machine, "
        "and only show orders of magnitude: kimi-vl bench measures them properly.",
    ]
    paragraphs = "".join(f"<p>{_words(words)}</p>" for words in how)
    files = "".join(
        f"<li>{_text(str(m.path))}: {human_bytes(m.facts.n_bytes)}; "
        f"{_text(', '.join(f'{n} {kind}' for kind, n in m.types.items()))}</li>"
        for m in (report.reference, *(c.model for c in report.candidates))
    )
    return _section(
        "how", "How it was measured", f"{paragraphs}<ul>{files}</ul><p class='pale'>kimi-vl {__version__}</p>"
    )
