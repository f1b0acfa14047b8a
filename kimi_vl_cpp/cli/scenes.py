"""`kimi-vl scenes`: a video split into scenes with times and descriptions, or its contact sheet.

Owns the options, the progress line and the output file. Imports only what is quick: it is read at every start.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from ..media import times as clock
from ..media.named_part import split
from ..wording import plural
from . import exits, journaled, opening, options, videos
from .progress import Progress
from .terminal import Terminal

if TYPE_CHECKING:
    from ..media.timed import TimedVideo

SUMMARY = "Split a video into scenes."
_SUFFIXES = (".json", ".srt", ".md")
_SHEET_FRAMES = 36


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `scenes`."""

    files: opening.Opening
    file: str
    out: str | None = None
    sheet: str | None = None
    fps: float | None = None
    image_patches: int | None = None
    isolate: bool = False
    restart: bool = False
    force: bool = False


@options.grouped
def command(
    *,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A video, or a part of it: talk.mp4#10:00-20:00.")],
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="OUT", help="Where to: .json, .srt or .md.", show_default=False)
    ] = None,
    files: opening.Opening,
    sheet: Annotated[
        str | None,
        typer.Option(
            "--sheet", metavar="FILE", help="Write a contact sheet (.png, .jpg). Without -o, no model is used."
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            "--fps", metavar="R", help="Frames a second that are looked at. Default: 0.5.", show_default=False
        ),
    ] = None,
    image_patches: options.ImagePatches = None,
    isolate: options.Isolate = False,
    restart: options.Restart = False,
    force: options.Force = False,
) -> options.Job:
    """Split a video into scenes, each with its times and a description.

    kimi-vl scenes -m kimi.gguf talk.mp4 -o talk.srt

    Every part that is done is kept in OUT.journal: a run that was stopped goes on where it was with the same command.
    """

    def job(terminal: Terminal) -> int:
        return run(
            Options(
                files=files,
                file=file,
                out=out,
                sheet=sheet,
                fps=fps,
                image_patches=image_patches,
                isolate=isolate,
                restart=restart,
                force=force,
            ),
            terminal,
        )

    return job


def run(options: Options, terminal: Terminal) -> int:
    """Asks about the video and returns the exit code. Raises KimiVLError, OSError."""
    if options.out is None and options.sheet is None:
        raise exits.UsageError("nothing to write: expected -o OUT or --sheet FILE")
    path = opening.resolve_picture(split(options.file)[0])
    if options.out is not None and Path(options.out).suffix.lower() not in _SUFFIXES:
        raise exits.UsageError(f"-o {options.out}: its end says what to write: expected one of {', '.join(_SUFFIXES)}")
    video, start, end = videos.open_video(options.file, options.isolate)
    for notice in video.notices:
        terminal.note(notice)
    if options.sheet is not None:
        _write_sheet(options.sheet, video, start, end, force=options.force)
    if options.out is None:
        return errors.EXIT_OK
    out = Path(options.out)
    journaled.check_output(out, path, force=options.force)
    return _ask(video, (start, end), path, out, options, terminal)


def _write_sheet(name: str, video: TimedVideo, start: float, end: float, *, force: bool) -> None:
    from ..media import sampling
    from ..media.sheet import cell, contact_sheet

    path = Path(name)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp") or not path.parent.is_dir():
        raise exits.UsageError(f"--sheet {name}: expected a .png, .jpg or .webp file in a folder that exists")
    if path.exists() and not force:
        raise exits.UsageError(f"--sheet {name}: it exists: choose another name, or replace it with --force")
    found = list(video.frames(sampling.uniform(start, end, _SHEET_FRAMES), cell))
    contact_sheet(found).save(path)


def _ask(
    video: TimedVideo, part: tuple[float, float], path: str, out: Path, options: Options, terminal: Terminal
) -> int:
    from ..media import frames
    from ..tasks import scenes
    from ..tasks.journal import Journal

    files = opening.choose_model(options.files)
    chosen = videos.FrameOptions(dedupe=True).choice(options.image_patches)
    fps = scenes.FPS if options.fps is None else videos.FrameOptions(fps=options.fps).choice(None).fps
    progress = Progress(terminal)
    with opening.introduced(files, progress, terminal) as model:
        model.require_vision()
        parts = scenes.windows(*part, fps, scenes.window_size(model, video, chosen.patches))
        progress.show("looking for cuts")
        cuts = frames.find_cuts(video, *part)
        progress.clear()
        head = {
            "video": journaled.digest(path),
            **journaled.model_part(model),
            "prompt": scenes.REQUEST,
            "frames": [round(one[0], 3) for one in parts],
            "image_patches": chosen.patches,
            "n_ctx": model.n_ctx,
        }
        with Journal(journaled.journal_of(out), head, restart=options.restart) as journal:
            if journal.done:
                terminal.note(f"{len(journal.done)} of {plural(len(parts), 'part')} are in the journal")

            def show(number: int) -> None:
                progress.show(f"{100 * (number - 1) // len(parts):3d}%  part {number} of {len(parts)}")

            try:
                records = list(
                    scenes.read_windows(model, video, parts, chosen, journal, lambda *event: None, before=show)
                )
            except (KeyboardInterrupt, errors.KimiVLError):
                progress.clear()
                terminal.note("stopped: the same command goes on where it was")
                raise
            finally:
                progress.clear()
        found, notes = scenes.joined(records, scenes.spans(parts, *part), cuts)
        looked_at = {"fps": fps, "patches": chosen.patches, "dedupe": chosen.dedupe, "cuts": cuts}
        about = {"video": _about(video, head["video"]), "model": model.name, "sampling": looked_at}
    _write(out, found, notes, about, records)
    for note in notes[:5]:
        terminal.note(note)
    more = f" ({len(notes) - 5} notes more in it)" if len(notes) > 5 and out.suffix.lower() != ".srt" else ""
    terminal.say(f"{plural(len(found), 'scene')}: {out}{more}")
    return errors.EXIT_OK if found else errors.EXIT_FAILED


def _about(video: TimedVideo, digest: Any) -> dict[str, Any]:
    width, height = video.size
    size = {"duration": round(video.duration, 3), "width": width, "height": height}
    return {"name": video.name, "sha256": digest, **size}


def _write(out: Path, found: list[Any], notes: list[str], about: dict[str, Any], records: list[Any]) -> None:
    from ..tasks import outputs, scenes

    suffix = out.suffix.lower()
    if suffix == ".json":
        listed = [
            {**asdict(one), "start_text": clock.clock(one.start), "end_text": clock.clock(one.end)} for one in found
        ]
        answers = [record["text"] for record in records]
        whole = {**about, "scenes": listed, "notes": notes, "answers": answers}
        outputs.replace_file(out, json.dumps(whole, ensure_ascii=False, indent=2) + "\n")
    elif suffix == ".srt":
        outputs.replace_file(out, scenes.as_srt(found))
    else:
        outputs.replace_file(out, scenes.as_markdown(found, notes, about["video"]["name"]))
