"""`kimi-vl run`: one question, one answer.

The answer goes to standard output as it comes and nothing else does; everything for the user goes to standard error.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from ..tasks import citations
from . import attachments, exits, opening, options, several, videos
from .answer import AnswerWriter, ThinkingMode
from .progress import Progress
from .terminal import DIM, Terminal, is_terminal
from .videos import FrameOptions

try:
    import fcntl
    import termios
except ImportError:  # Windows
    pass

if TYPE_CHECKING:
    from ..media.paged import Page
    from ..model import KimiVL
    from ..types import Response


@dataclass(frozen=True)
class Options:
    """The command line of `run`."""

    files: opening.Opening
    sampling: opening.Sampling
    prompt: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    frames: FrameOptions = field(default_factory=FrameOptions)
    pages: str | None = None
    find: int | None = None
    image_patches: int | None = None
    password_file: str | None = None
    markers: str = "auto"
    text_layer: str = "never"
    isolate: bool = False
    cite: bool = False
    file: str | None = None
    system: str | None = None
    json: bool = False
    timings: bool = False
    answers: int | None = None
    vote: bool = False
    thinking: ThinkingMode = "auto"


@options.grouped
def command(
    *,
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="The question, in quotes.", show_default=False)
    ] = None,
    files: opening.Opening,
    image: options.Images = None,
    file: Annotated[
        str | None,
        typer.Option("-f", "--file", metavar="FILE", help="Read the prompt from a file; '-' is standard input."),
    ] = None,
    pages: options.Pages = None,
    find: options.Find = None,
    video: videos.Videos = None,
    frames: FrameOptions,
    image_patches: options.ImagePatches = None,
    password_file: options.PasswordFile = None,
    markers: options.Markers = "auto",
    text_layer: options.TextLayer = "never",
    isolate: options.Isolate = False,
    cite: options.Cite = False,
    json: options.Json = False,
    timings: Annotated[bool, typer.Option("--timings", help="Print a line of timings on standard error.")] = False,
    answers: Annotated[
        int | None,
        typer.Option("--answers", metavar="N", help="N answers, each with another seed, computed together."),
    ] = None,
    vote: Annotated[
        bool, typer.Option("--vote", help="Of the answers (5 unless --answers says otherwise), print the commonest.")
    ] = False,
    sampling: opening.Sampling,
    system: options.System = None,
    thinking: options.Thinking = None,
) -> options.Job:
    """Answer one question about pictures or text.

    kimi-vl run -m kimi.gguf -i photo.jpg "What does the sign say?"
    kimi-vl run -m kimi.gguf -i report.pdf#3,7-9 "What changed?"

    kimi-vl run -m kimi.gguf -v talk.mp4#00:10:00-00:20:00 "What is on the slides?"
    """

    def job(terminal: Terminal) -> int:
        return run(
            Options(
                files=files,
                sampling=sampling,
                prompt=tuple(prompt or ()),
                images=tuple(image or ()),
                videos=tuple(video or ()),
                frames=frames,
                pages=pages,
                find=find,
                image_patches=image_patches,
                password_file=password_file,
                markers=markers,
                text_layer=text_layer,
                isolate=isolate,
                cite=cite,
                file=file,
                system=system,
                json=json,
                timings=timings,
                answers=several.count(answers, vote),
                vote=vote,
                thinking=options.thinking_mode(thinking),
            ),
            terminal,
        )

    return job


def run(options: Options, terminal: Terminal) -> int:
    """Answers and returns the exit code. Everything that is quick to check is checked before the model is loaded."""
    options = replace(options, files=opening.choose_model(options.files))
    named, filmed = attachments.told_apart(attachments.resolve(path) for path in options.images)
    options = replace(options, images=tuple(named), videos=(*filmed, *options.videos))
    prompt, images, notices = gather(options)
    attachments.check_find(options.find, images)
    patches = options.image_patches
    chosen = options.frames.choice(patches)
    asked, said = videos.plan(options.videos, chosen, options.frames.subtitles, options.isolate)
    notices += said
    progress = Progress(terminal)

    likely = attachments.some_pages(images, options.find)
    shown, text = attachments.given(likely, options.text_layer)

    def more(model: KimiVL) -> int:
        return videos.positions(asked, chosen, model) + (len(model.tokenize(text)) if text else 0)

    with attachments.open_model_for(shown, prompt, options.files, options.sampling, patches, progress, more) as model:
        opening.introduce(model, options.files, terminal)
        images, said = attachments.find_pages(model, images, prompt, options.find, progress)
        notices += said
        pages = attachments.pages_among(images)
        images, text = attachments.given(images, options.text_layer)
        prompt = text + prompt
        if asked:
            model.require_vision()
            room = attachments.room_beside(model, images, prompt, options.sampling, patches)
            seen, said = videos.pictures(asked, chosen, model, room, may_shrink=patches is None)
            images, notices = [*images, *seen], [*notices, *said]
        for notice in notices:
            terminal.note(notice)
        if options.answers is not None:
            response = _ask_several(model, prompt, images, pages, options, progress, terminal)
        elif options.json:
            response = _ask_quietly(model, prompt, images, options, progress, terminal)
            terminal.out.write(json.dumps(_as_json(response, model, options, pages)) + "\n")
            terminal.out.flush()
        else:
            response = _ask_streaming(model, prompt, images, options, progress, terminal)
            for notice in response.notices:
                terminal.note(notice)
            opening.explain_end(response, terminal)
        opening.CacheNotices(model, terminal).say()
    if options.cite:
        for problem in citations.problems(_citations(response, pages)):
            terminal.note(problem)
    if len(images) > 1 and model.variant == "demo":
        terminal.note(exits.ONE_PICTURE)
    if options.prompt and options.file is None and not options.images and _stdin_has_data():
        terminal.note("standard input was not read: -i - reads a picture from it, -f - a text")
    if options.timings:
        terminal.say(opening.timings_line(response), DIM)
    return errors.EXIT_OK


def gather(options: Options) -> tuple[str, list[Any], list[str]]:
    """The prompt, the pictures and pages, and notices about these, from wherever they come. Raises UsageError or
    BadImage."""
    if options.images.count("-") + (options.file == "-") > 1:
        raise exits.UsageError("standard input can be read once: '-' was given for more than one thing")
    for path in options.images:
        if path != "-":
            attachments.check(path)
    for word in options.prompt:
        if Path(word).suffix.lower() in exits.ATTACHMENT_SUFFIXES and Path(word).is_file():
            raise exits.UsageError(f"{word} is a file, not a question: give it as -i {word}")
    parts = [" ".join(options.prompt)]
    if options.file == "-":
        parts.append(_read_prompt_from_stdin())
    elif options.file is not None:
        parts.append(opening.read_text_file(options.file))
    elif not options.prompt and "-" not in options.images and not is_terminal(sys.stdin):
        parts.append(_read_prompt_from_stdin())
    prompt = "\n\n".join(part for part in (p.rstrip("\r\n") for p in parts) if part.strip())
    if not prompt:
        raise exits.UsageError("no question: give it in quotes, as a file with -f, or through a pipe")
    opened = attachments.Attachments(
        options.images, options.pages, options.password_file, options.markers, options.text_layer, options.isolate
    )
    images: list[Any] = []
    for path in options.images:
        picture = _picture(path)
        images += opened.open_bytes(picture) if isinstance(picture, bytes) else opened.open(picture)
    if options.cite:
        if not attachments.pages_among(images):
            raise exits.UsageError("--cite names pages of a document, but none was given: -i FILE.pdf")
        prompt = f"{prompt}\n{citations.REQUEST}"
    return prompt, images, opened.notices


def _stdin_has_data() -> bool:
    """Whether a pipe or a file at standard input still holds something. Takes nothing from it and waits for nothing."""
    try:
        handle = sys.stdin.fileno()
        mode = os.fstat(handle).st_mode
        if stat.S_ISREG(mode):
            return os.lseek(handle, 0, os.SEEK_CUR) < os.fstat(handle).st_size
        if not stat.S_ISFIFO(mode):
            return False
        waiting = fcntl.ioctl(handle, termios.FIONREAD, bytes(4))
    except (AttributeError, NameError, OSError, ValueError):  # closed, or a system without these
        return False
    return int.from_bytes(waiting, sys.byteorder) > 0


def _read_prompt_from_stdin() -> str:
    return opening.decode_text(
        opening.read_stdin_bytes(opening.MAX_PROMPT_BYTES, "prompt"), "prompt from standard input"
    )


def _picture(path: str) -> str | bytes:
    """A path as it is; standard input and the pipes of a shell's <(command) as their bytes."""
    if path == "-":
        return _read_picture_from_stdin()
    if path.startswith("/dev/fd/") and stat.S_ISFIFO(os.stat(path).st_mode):
        with open(path, "rb") as pipe:
            return opening.read_bytes(pipe, opening.MAX_PICTURE_BYTES, f"picture {path}")
    return path


def _read_picture_from_stdin() -> bytes:
    if is_terminal(sys.stdin):
        raise exits.UsageError(
            "-i - reads a picture from standard input, which is a terminal: use < photo.jpg or a pipe"
        )
    data = opening.read_stdin_bytes(opening.MAX_PICTURE_BYTES, "picture")
    if not data:
        raise errors.BadImage("picture from standard input: it is empty", "image.empty")
    return data


def _ask_quietly(
    model: KimiVL, prompt: str, images: Sequence[Any], options: Options, progress: Progress, terminal: Terminal
) -> Response:
    try:
        return model.chat(
            prompt,
            images=images,
            image_patches=options.image_patches,
            system=options.system,
            stream=False,
            progress=attachments.LongWait(progress, terminal, len(images)),
            **options.sampling,
        )
    finally:
        progress.clear()


def _ask_streaming(
    model: KimiVL,
    prompt: str,
    images: Sequence[Any],
    options: Options,
    progress: Progress,
    terminal: Terminal,
) -> Response:
    writer = AnswerWriter(terminal, progress, options.thinking)
    wait = attachments.LongWait(progress, terminal, len(images))
    stream = model.chat(
        prompt,
        images=images,
        image_patches=options.image_patches,
        system=options.system,
        stream=True,
        progress=wait,
        **options.sampling,
    )
    wait.about = lambda: stream.seconds_left
    try:
        for piece in stream:
            writer.write(piece.kind, piece.text)
    finally:
        stream.close()
        writer.finish()
    if stream.result is None:
        raise errors.KimiVLError("the answer ended without a result", "internal")
    return stream.result


def _ask_several(
    model: KimiVL,
    prompt: str,
    images: Sequence[Any],
    pages: Sequence[Page],
    options: Options,
    progress: Progress,
    terminal: Terminal,
) -> Response:
    """Prints all answers, or the one that won, and returns that one, else the first."""
    assert options.answers is not None
    try:
        found = model.answers(
            prompt,
            images,
            image_patches=options.image_patches,
            n=options.answers,
            vote=options.vote,
            system=options.system,
            progress=attachments.LongWait(progress, terminal, len(images)),
            **options.sampling,
        )
    finally:
        progress.clear()
    if options.json:
        result = several.as_json(found, lambda response: _as_json(response, model, options, pages))
        terminal.out.write(json.dumps(result) + "\n")
    else:
        several.write(found, options.vote, terminal)
    return found.winner or found.responses[0]


def _citations(response: Response, pages: Sequence[Page]) -> list[citations.Citation]:
    return citations.check(response.text, {page.number: page.text() for page in pages})


def _as_json(response: Response, model: KimiVL, options: Options, pages: Sequence[Page]) -> dict[str, Any]:
    result = response.to_dict()
    fields = ("text", "thinking", "finish_reason", "usage", "timings", "notices", "seed")
    chosen = {name: result[name] for name in fields}
    chosen["model"] = {"name": model.name, "variant": model.variant, "file": options.files.model}
    if options.cite:
        chosen["citations"] = [asdict(one) for one in _citations(response, pages)]
    return chosen
