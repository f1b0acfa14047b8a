"""`kimi-vl chat`: a conversation at a terminal, or line by line through a pipe.

Owns the loop, Ctrl-C and the pictures that wait for the next message; the commands are in chat_commands.py. Answers go
to standard output and everything else to standard error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ... import errors
from ...wording import human_count, plural
from .. import attachments, exits, failures, opening, paths, videos
from ..answer import AnswerWriter, ThinkingMode
from ..progress import Progress
from ..terminal import DIM, Terminal
from . import commands
from .input import Reader, make_reader, unechoed

if TYPE_CHECKING:
    from ...chat.conversation import Conversation
    from ...generation.stream import PieceStream
    from ...media.processor import ProcessedImage
    from ...model import KimiVL
    from ...types import Response

TWICE_SECONDS = 1.0  # two Ctrl-C within this time leave


@dataclass(frozen=True)
class Options:
    """The command line of `chat`."""

    files: opening.Opening
    sampling: opening.Sampling
    images: tuple[str, ...] = ()
    films: tuple[str, ...] = ()
    frames: videos.FrameOptions = field(default_factory=videos.FrameOptions)
    load: str | None = None
    system: str | None = None
    timings: bool = False
    thinking: ThinkingMode = "auto"


@dataclass(frozen=True)
class Attached:
    """What goes with the next message. path: where it was read; seen: the pictures as the model will see them, whatever
    the file is then: one, the pages of a document, or the frames of a video."""

    path: str
    seen: tuple[ProcessedImage, ...]


@dataclass
class Chat:
    """One conversation and what belongs to it while it runs."""

    model: KimiVL
    conversation: Conversation
    options: Options
    terminal: Terminal
    progress: Progress
    attached: list[Attached] = field(default_factory=list)
    last: Response | None = None
    forked: list[Conversation] = field(default_factory=list)  # where /back returns to
    file: str | None = None  # of /save and /load
    n_regenerated: int = 0
    cache_notices: opening.CacheNotices = field(init=False)
    first_failure: int = errors.EXIT_OK
    _last_interrupt: float = float("-inf")
    _armed: bool = False  # Ctrl-C was pressed and nothing else since

    def __post_init__(self) -> None:
        self.cache_notices = opening.CacheNotices(self.model, self.terminal)

    def loop(self, reader: Reader) -> int:
        """Reads and answers until the end; returns the exit code."""
        while True:
            try:
                message = reader.read(self.prompt())
                self._armed = False
                self.handle(message)
            except EOFError:
                return errors.EXIT_OK if reader.interactive else self.first_failure
            except commands.Leave as leave:
                return leave.code
            except KeyboardInterrupt:
                if not reader.interactive or self.interrupted():
                    return errors.EXIT_CANCELLED
                self.terminal.say("Press Ctrl-C again to leave.", DIM)
            except errors.KimiVLError as failure:
                self.fail(failure)
            except (OSError, MemoryError):
                raise
            except Exception as failure:  # a bug must not cost the user the conversation
                self.progress.clear()
                self.first_failure = self.first_failure or failures.report(failure, self.terminal)

    def prompt(self) -> str:
        """What stands before the cursor: how many pictures wait, and a sign."""
        waiting = sum(len(one.seen) for one in self.attached)
        return f"[{plural(waiting, 'picture')}] > " if waiting else "> "

    def interrupted(self) -> bool:
        """Notes a Ctrl-C; True when it is the second one and means leaving."""
        now = time.monotonic()
        leave = self._armed or now - self._last_interrupt < TWICE_SECONDS
        self._last_interrupt, self._armed = now, True
        return leave

    def fail(self, failure: errors.KimiVLError) -> None:
        """Shows an error; the conversation goes on."""
        self.progress.clear()
        self.terminal.error(str(failure), failure.code)
        failures.explain_names(str(failure), self.terminal)
        if isinstance(failure, errors.ContextFull):
            self.terminal.say("/undo or /clear makes room; a larger context is chosen at the start with -c.", DIM)
        self.first_failure = self.first_failure or errors.exit_code(failure)

    def handle(self, message: str) -> None:
        """One message: a command, pictures, a question, or pictures with a question."""
        if not message.strip():
            return
        if commands.is_command(message):
            commands.execute(self, message.strip())
            return
        self.send(paths.read_message(message))

    def send(self, found: paths.Message) -> None:
        """Attaches the pictures of a message, then asks what is left of it. Raises KimiVLError for a picture that
        cannot be read, before anything is asked."""
        for path in found.pictures:
            self.attach(path)
        for note in found.notes:
            self.terminal.note(note)
        if found.text.strip():
            self.ask(found.text.strip("\n"))

    def attach(self, path: str) -> None:
        """Reads a picture, document or video for the next message and says how the model will see it. Raises
        KimiVLError."""
        attachments.check(path)
        if attachments.told_apart([path])[1]:
            self.attach_frames(path)
            return
        opened = attachments.Attachments([path])
        images = opened.open(path)
        for notice in opened.notices:
            self.terminal.note(notice)
        if attachments.pages_among(images):
            self._attach_pages(path, images)
            return
        seen = self.model.process_image(images[0])
        self.attached.append(Attached(path, (seen,)))
        (width, height), (seen_width, seen_height) = seen.original_size, seen.resized_size
        resized = "" if (width, height) == (seen_width, seen_height) else f", seen as {seen_width}x{seen_height}"
        self.terminal.say(
            f"{opening.display_name(path)}: {width}x{height}{resized}, {plural(seen.n_tokens, 'token')}; "
            "it goes with your next message",
            DIM,
        )
        for notice in seen.notices:
            self.terminal.note(f"{opening.display_name(path)}: {notice}")

    def _attach_pages(self, path: str, pages: list[Any]) -> None:
        """Draws pages for the next message, in the size in which they fit into what is left of the context."""
        from ...generation.fitting import fit_images, text_needed

        loaded = self.model.loaded
        n_text = self._n_held() + text_needed(loaded, pages)
        fitted, notices = fit_images(loaded, pages, n_text, self.options.sampling.get("max_new_tokens"))
        self._wait(path, "page", [loaded.kept_image(image) for image in fitted], notices)

    def attach_frames(self, path: str) -> None:
        """Decodes frames of a video for the next message, smaller ones where they would not fit into what the context
        has left."""
        from ...generation.fitting import answer_reserve

        self.model.require_vision()
        chosen = self.options.frames.choice(None)
        asked, notices = videos.plan([path], chosen, self.options.frames.subtitles)
        reserve = answer_reserve(self.model.loaded, self.options.sampling.get("max_new_tokens"))
        room = self.model.n_ctx - self._n_held() - reserve
        seen, said = videos.pictures(asked, chosen, self.model, room, may_shrink=True)
        self._wait(path, "frame", seen, [*notices, *said])

    def _n_held(self) -> int:
        """Positions of the context that are taken by what was said and by what waits."""
        return self.conversation.n_positions + sum(seen.n_tokens for one in self.attached for seen in one.seen)

    def _wait(self, path: str, kind: str, seen: list[ProcessedImage], notices: list[str]) -> None:
        """Pictures of one file wait for the next message."""
        self.attached.append(Attached(path, tuple(seen)))
        tokens = sum(one.n_tokens for one in seen)
        goes = "it goes" if len(seen) == 1 else "they go"
        self.terminal.say(
            f"{opening.display_name(path)}: {plural(len(seen), kind)}, {plural(tokens, 'token')}; "
            f"{goes} with your next message",
            DIM,
        )
        for notice in notices:
            self.terminal.note(notice)

    def ask(self, text: str) -> None:
        """Asks with the pictures that wait. They stay waiting when the question does not become part of the
        conversation."""
        pictures = [seen for one in self.attached for seen in one.seen]
        before = len(self.conversation.turns)
        earlier = sum(len(turn.images) for turn in self.conversation.turns)
        if self.model.variant == "demo" and pictures and earlier + len(pictures) > 1:
            self.terminal.note(f"{exits.ONE_PICTURE}; /clear begins anew")
        wait = attachments.LongWait(self.progress, self.terminal, len(pictures))

        def start() -> PieceStream:
            stream = self.conversation.ask(text, images=pictures, stream=True, progress=wait, **self.options.sampling)
            wait.about = lambda: stream.seconds_left
            return stream

        try:
            self.answer(start)
        finally:
            if len(self.conversation.turns) > before:
                self.attached.clear()

    def answer(self, start: Callable[[], PieceStream]) -> None:
        """Streams an answer. Ctrl-C stops it and keeps what was said; KimiVLError comes out."""
        writer = AnswerWriter(self.terminal, self.progress, self.options.thinking)
        stream: PieceStream | None = None
        stopped = False
        try:
            with unechoed():
                stream = start()
                for piece in stream:
                    writer.write(piece.kind, piece.text)
        except KeyboardInterrupt:
            stopped = True
            self.interrupted()
        finally:
            if stream is not None:
                stream.close()
            self.progress.clear()
            writer.finish()
        response = stream.result if stream is not None else None
        if stopped:
            begun = response is not None and bool(response.token_ids)
            kept = "/regen answers again, /undo takes the question back" if begun else "The question was not answered"
            self.terminal.say(f"Stopped. {kept}; Ctrl-C again leaves.", DIM)
        if response is None or not response.token_ids:
            return
        self.last = response
        opening.explain_end(response, self.terminal)
        self.cache_notices.say()
        if self.options.timings:
            self.terminal.say(opening.timings_line(response, load=False), DIM)


def run(options: Options, terminal: Terminal) -> int:
    """Loads the model and talks until the user leaves. Raises KimiVLError when it cannot begin."""
    options = replace(options, files=opening.choose_model(options.files))
    images = [attachments.resolve(path) for path in options.images]
    if "-" in images:
        raise exits.UsageError("-i -: a chat reads its messages from standard input; give a picture file, or use run")
    for path in images:
        attachments.check(path)
    progress = Progress(terminal)
    with open_model(images, options, progress) as model:
        chat = Chat(model, model.conversation(options.system), options, terminal, progress)
        reader = make_reader(terminal, commands.NAMES)
        if reader.interactive:
            greet(model, terminal)
        opening.introduce(model, options.files, terminal)
        if options.files.builtin and reader.interactive:  # a line that scripts wait for
            terminal.say("`kimi-vl inspect` tells what it can do and what it cannot.", DIM)
        if options.load is not None:
            commands.load(chat, options.load)
        for path in images:
            chat.attach(path)
        for path in options.films:
            chat.attach_frames(path)
        return chat.loop(reader)


def open_model(names: Sequence[str], options: Options, progress: Progress) -> KimiVL:
    """Opens the model, with a context into which the documents and videos of the first message fit where that is not
    said. Raises KimiVLError."""
    pictures, films = attachments.told_apart(names)
    opened = attachments.Attachments(pictures)
    pages = [page for name in pictures for page in opened.open(name)]
    chosen = options.frames.choice(None)
    asked, _ = videos.plan([*films, *options.films], chosen, options.frames.subtitles)
    return attachments.open_model_for(
        pages,
        "",
        options.files,
        options.sampling,
        None,
        progress,
        lambda model: videos.positions(asked, chosen, model),
    )


def greet(model: KimiVL, terminal: Terminal) -> None:
    """Says what was loaded and how to begin."""
    vision = "" if model.has_vision else ", text only (no vision file was found: --mmproj names one)"
    terminal.say(
        f"{model.name}, {human_count(model.n_ctx)} tokens of context, {plural(model.n_threads, 'thread')}{vision}"
    )
    terminal.say("Type a message, or drop a picture here. /help lists the commands, Ctrl-D leaves.", DIM)
