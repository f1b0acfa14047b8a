"""What -i names: pictures, documents whose pages are pictures, and videos. The bytes of a file decide which, not its
name."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import errors
from ..media.named_part import split
from ..wording import human_count, plural
from . import exits, opening, videos
from .progress import Progress
from .terminal import Terminal

if TYPE_CHECKING:
    from ..media.paged import Markers, Page, PagedDocument, TextLayer
    from ..model import KimiVL

CONTEXTS = (16384, 32768, 65536, 131072)
"""Sizes of context that a document chooses from when none is given."""
ONLY_TEXT = "only"
"""Of --text-layer: pages are given as text, and no pictures of them."""


def resolve(text: str) -> str:
    """The path that -i names, see opening.resolve_picture; pages behind a "#" stay there."""
    path, pages = split(text)
    path = opening.resolve_picture(path)
    return path if pages is None else f"{path}#{pages}"


def check(text: str) -> None:
    """Raises BadImage when `text` cannot name a picture or a document, see opening.check_picture."""
    opening.check_picture(split(text)[0])


def is_document(path: str) -> bool:
    """Whether a regular file is a PDF or a TIFF of several pages; a pipe is not touched. False for what cannot be read:
    opening it says why."""
    from ..media import documents

    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return documents.is_document(file)
    except (OSError, ValueError):
        return False


def told_apart(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """What names pictures and documents, and what names videos."""
    found: tuple[list[str], list[str]] = [], []
    for name in names:
        found[videos.is_video(split(name)[0])].append(name)
    return found


class Attachments:
    """Opens what -i names. Keeps the notices about documents."""

    def __init__(
        self,
        names: Sequence[str],
        pages: str | None = None,
        password_file: str | None = None,
        markers: str = "auto",
        text_layer: str = "never",
        isolate: bool = False,
    ) -> None:
        """pages: --pages, for the one document among the names; markers: --markers; text_layer: --text-layer;
        isolate: --isolate.
        Raises UsageError when there is not exactly one document, or for another kind of these two."""
        self.notices: list[str] = []
        self._password = None if password_file is None else opening.read_text_file(password_file).rstrip("\r\n")
        self._pages = pages
        self._names = names
        n_documents = sum(is_document(split(name)[0]) for name in names)
        kinds: dict[str, Markers] = {
            "auto": "full" if n_documents > 1 else "short",
            "none": "none",
            "short": "short",
            "full": "full",
        }
        if markers not in kinds:
            raise exits.UsageError(f"--markers {markers}: expected short, full or none")
        self._markers = kinds[markers]
        layers: dict[str, TextLayer] = {"never": "never", "auto": "auto", ONLY_TEXT: "never"}
        if text_layer not in layers:
            raise exits.UsageError(f"--text-layer {text_layer}: expected never, auto or only")
        self._isolate = isolate
        self._draws = text_layer != ONLY_TEXT
        self._text_layer = layers[text_layer]
        if pages is not None and n_documents + names.count("-") != 1:  # standard input is read later
            found = "no document was" if n_documents == 0 else f"{n_documents} documents were"
            raise exits.UsageError(f"--pages is for one document, but {found} given: write FILE.pdf#{pages}")

    def open(self, name: str) -> list[Any]:
        """The pictures of one name: itself, or the pages of a document. Raises BadImage, BadDocument, Unsupported."""
        path, which = split(name)
        if not is_document(path):
            if which is not None:
                raise errors.BadDocument(
                    f"{path}: page numbers (#{which}) are for PDF documents and TIFF files of several pages: give the "
                    "file alone",
                    "document.format",
                )
            return [path]
        if which is not None and self._pages is not None:
            raise exits.UsageError(f"-i {name} names pages and --pages does too: give one of the two")
        return self._pages_of(path, which if which is not None else self._pages)

    def open_bytes(self, data: bytes) -> list[Any]:
        """The same of what came from standard input."""
        from ..media import documents

        if not documents.is_document(io.BytesIO(data)):
            if self._pages is not None:
                raise exits.UsageError("--pages is for a document, but standard input is none")
            return [data]
        return self._chosen(self._opened(data), self._pages)

    def _pages_of(self, path: str, which: str | None) -> list[Page]:
        return self._chosen(self._opened(path), which)

    def _opened(self, source: str | bytes) -> PagedDocument:
        from ..media import documents, isolated

        opener = isolated.open_document if self._isolate else documents.open_document
        return opener(source, self._password)

    def _chosen(self, document: PagedDocument, which: str | None) -> list[Page]:
        pages = document.pages(which, self._markers, self._text_layer)
        if self._draws:
            for page in pages:
                _ = page.size  # a page that cannot be drawn is reported before a model is loaded
        else:
            _check_digital(document, pages)
        self.notices += document.notices
        return pages


def _check_digital(document: PagedDocument, pages: Sequence[Page]) -> None:
    """Raises BadDocument (code "document.scanned") for pages without a text layer."""
    from ..media.paged import is_usable

    scanned = [page.number for page in pages if not is_usable(page.text().strip())]
    if scanned:
        named = ", ".join(map(str, scanned[:20])) + (", …" if len(scanned) > 20 else "")
        raise errors.BadDocument(
            f"{document.name}: the file has no text, or too little that can be read, for "
            f"page{'' if len(scanned) == 1 else 's'} {named}: give these as pictures, without --text-layer {ONLY_TEXT}",
            "document.scanned",
        )


def given(images: Sequence[Any], text_layer: str) -> tuple[list[Any], str]:
    """What is given as pictures, and what as text before the question: pages, under --text-layer only."""
    from ..media.paged import fenced

    if text_layer != ONLY_TEXT:
        return list(images), ""
    pages = pages_among(images)
    text = "".join(f"{page.label}{fenced(page.number, page.text().strip(), None)}" for page in pages)
    return [image for image in images if image not in pages], text


def pages_among(images: Sequence[Any]) -> list[Any]:
    """The pages of documents among pictures."""
    from ..media.drawn import Drawn

    return [image for image in images if isinstance(image, Drawn)]


def check_find(n: int | None, images: Sequence[Any]) -> None:
    """Raises UsageError for a --find that cannot be meant."""
    if n is None:
        return
    if not 1 <= n <= 512:
        raise exits.UsageError(f"--find {n}: expected 1 to 512 pages")
    if not pages_among(images):
        raise exits.UsageError("--find chooses among the pages of a document, but none was given: -i FILE.pdf")


def some_pages(images: Sequence[Any], n: int | None) -> list[Any]:
    """As many pages as --find leaves, whichever they will be, and all pictures."""
    pages = pages_among(images)
    left = pages if n is None else pages[:n]
    return [image for image in images if image in left or image not in pages]


def find_pages(
    model: KimiVL, images: Sequence[Any], prompt: str, n: int | None, progress: Progress
) -> tuple[list[Any], list[str]]:
    """The pictures with those n pages that the prompt is about, and a notice that names them."""
    from ..tasks.finding import best_pages

    pages = pages_among(images)
    if n is None or len(pages) <= n:
        return list(images), []
    try:
        found = best_pages(model, pages, prompt, n, lambda done: progress.show(f"looking for pages  {done} skimmed"))
    finally:
        progress.clear()
    named = ", ".join(str(page.number) for page in found)
    left = [image for image in images if image in found or image not in pages]
    return left, [f"of {plural(len(pages), 'page')}, those that the question seems to be about are given: {named}"]


def open_model_for(
    images: Sequence[Any],
    prompt: str,
    files: opening.Opening,
    sampling: opening.Sampling,
    patches: int | None,
    progress: Progress,
    more: Callable[[KimiVL], int] = lambda model: 0,
) -> KimiVL:
    """Opens the model: with the next of CONTEXTS that memory allows, when no context was asked for and the pages of
    documents and what is `more` need a longer one than the default. more: positions beside them. Raises KimiVLError."""
    from ..generation.fitting import positions_needed
    from ..machine.memory import shrink_to_fit

    model = opening.open_model(files, progress)
    pages = pages_among(images)
    if files.n_ctx is not None or not model.has_vision or not (pages or more(model)):
        return model
    try:
        longest = sampling.get("max_new_tokens")
        needed = positions_needed(model.loaded, pages, prompt, longest, patches, n_other=more(model))
    except BaseException:
        model.close()
        raise
    wanted = next((size for size in CONTEXTS if size >= needed), CONTEXTS[-1])
    n_ctx = shrink_to_fit(model.files, min(wanted, model.context_length), model.n_ctx)
    if needed <= model.n_ctx or n_ctx <= model.n_ctx:
        return model
    model.close()
    return opening.open_model(replace(files, n_ctx=n_ctx), progress)


def room_beside(
    model: KimiVL, images: Sequence[Any], prompt: str, sampling: opening.Sampling, patches: int | None
) -> int:
    """Positions of the context that pages, text and answer leave."""
    from ..generation.fitting import positions_needed

    needed = positions_needed(model.loaded, pages_among(images), prompt, sampling.get("max_new_tokens"), patches)
    return model.n_ctx - needed


class LongWait:
    """Passes progress on to a line, and says once how long a prompt will take when that is over a minute.

    about: the seconds that are left, as `PieceStream.seconds_left` knows them, None while it does not. Without it the
    part that is done tells.
    """

    def __init__(
        self, progress: Progress, terminal: Terminal, n_pictures: int, about: Callable[[], float | None] | None = None
    ) -> None:
        self._progress = progress
        self._terminal = terminal
        self._n_pictures = n_pictures
        self._began: float | None = None
        self._said = False
        self.about = about

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._progress.clock()
        if self._began is None and stage != "load":
            self._began = now
        if not self._said and stage == "prefill" and 0 < done < total and self._began is not None:
            elapsed = now - self._began
            if elapsed > 2 or done > total // 10:
                self._said = True
                left = None if self.about is None else self.about()
                self._say(elapsed / done * total if left is None else elapsed + left, total)
        self._progress(stage, done, total)

    def _say(self, seconds: float, n_tokens: int) -> None:
        if seconds <= 60:
            return
        self._progress.clear()
        what = plural(self._n_pictures, "picture") if self._n_pictures else "the prompt"
        fewer = "; fewer pages (FILE.pdf#1-5) or smaller ones (--image-patches) are quicker"
        self._terminal.note(
            f"reading {what} ({human_count(n_tokens)} tokens) takes about {seconds / 60:.0f} min"
            + (fewer if self._n_pictures > 1 else "")
        )
