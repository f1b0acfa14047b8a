"""A conversation of several turns.

Owns the turns, their pictures and the exact tokens of the answers, so that each turn computes only what is new: the
pictures and everything said before are found in the KV cache. Keeps the tokens of an answer because its text, cut into
tokens again, may come out as other tokens.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from ..cache.keys import Positions
from ..cache.saved import load_pages, save_pages
from ..checks import Closeable, check_text
from ..errors import BadRequest
from ..generation.fitting import limit_images
from ..generation.generation import Generation, Request
from ..generation.request import Question, build_request, check_images
from ..generation.stream import PieceStream
from ..media.documents import open_pages
from ..media.drawn import text_around
from ..media.processor import ProcessedImage
from ..text.chat_template import user_content
from ..types import Response
from .kept_adapter import adapter_from_dict, adapter_to_dict
from .turns import FORMAT, FORMAT_VERSION, Turn, invalid, shown_content, text_field, turn_from_dict, turn_to_dict

if TYPE_CHECKING:
    from ..generation.loaded import Opened
    from ..media.documents import DocumentInput
    from ..media.processor import ImageInput, LimitedImage


class Conversation(Closeable):
    """Made by `KimiVL.conversation()`. Its context is the model's n_ctx. What was computed for it stays in the model's
    KV cache as long as there is room; what has gone is computed again, to the same answers. One question at a time;
    different conversations may be used from different threads.

    An answer that was cancelled (Ctrl-C, a closed stream) after its first token stays in the conversation as far as it
    got. One that failed or was cancelled before its first token leaves the conversation as if it had not been asked.

    notices: what was worth knowing when it was read back.
    """

    _instead = "send its to_dict() and call Conversation.from_dict(model, data) where a model is open"

    def __init__(self, model: Opened, system: str | None = None, lora: str | None = None) -> None:
        """See `KimiVL.conversation`."""
        self.model = model
        self._loaded = model.loaded
        self.system = None if system is None else check_text("system", system)
        self.lora = lora
        model.loaded.adapters.pick(lora)
        self.turns: list[Turn] = []
        self.last: Response | None = None
        self.notices: tuple[str, ...] = ()
        self._busy = False

    def close(self) -> None:
        """Does nothing but end a `with` block: a conversation holds no memory of its own between questions."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said, as a list of {"role", "content"} dicts. A user's content is its text, or with pictures a list
        of {"type": "image", "width", "height", "n_tokens"} and {"type": "text", "text"}. An answer with reasoning has
        it in "reasoning_content". The system message is there only if it was given."""
        result: list[dict[str, Any]] = []
        if self.system is not None:
            result.append({"role": "system", "content": self.system})
        for turn in self.turns:
            result.append({"role": "user", "content": shown_content(turn)})
            answer: dict[str, Any] = {"role": "assistant", "content": turn.answer}
            if turn.thinking:
                answer["reasoning_content"] = turn.thinking
            result.append(answer)
        return result

    @property
    def n_positions(self) -> int:
        """Positions of the context that everything said so far takes."""
        return len(self._positions()) if self.turns else 0

    @property
    def n_past(self) -> int:
        """Positions of the context that are computed and kept."""
        return self._loaded.conductor.n_held(self._positions()) if self.turns else 0

    @overload
    def ask(
        self,
        text: str,
        images: Sequence[ImageInput | ProcessedImage] = (),
        *,
        documents: Sequence[DocumentInput] = (),
        image_patches: int | None = None,
        stream: Literal[False] = False,
        **sampling: Any,
    ) -> Response: ...
    @overload
    def ask(
        self,
        text: str,
        images: Sequence[ImageInput | ProcessedImage] = (),
        *,
        documents: Sequence[DocumentInput] = (),
        image_patches: int | None = None,
        stream: Literal[True],
        **sampling: Any,
    ) -> PieceStream: ...
    @overload
    def ask(
        self,
        text: str,
        images: Sequence[ImageInput | ProcessedImage] = (),
        *,
        documents: Sequence[DocumentInput] = (),
        image_patches: int | None = None,
        stream: bool,
        **sampling: Any,
    ) -> Response | PieceStream: ...

    def ask(
        self,
        text: str,
        images: Sequence[ImageInput | ProcessedImage] = (),
        *,
        documents: Sequence[DocumentInput] = (),
        image_patches: int | None = None,
        stream: bool = False,
        **sampling: Any,
    ) -> Response | PieceStream:
        """The next question, its pictures before its text. Arguments and errors as `KimiVL.chat`, `progress` included;
        the pages of documents get the size in which they fit beside what was said before. A `Document` has to stay
        open as long as the conversation.

        With stream=True the turn joins the conversation when the stream ends. Raises BadRequest (code
        "conversation.busy") while another answer of this conversation is under way.
        """
        started = time.perf_counter()
        self._check_free()
        check_text("text", text)
        pages, notices = open_pages(documents)
        given = limit_images(self._loaded, [*pages, *check_images(images)], image_patches)
        return self._answer(text, given, self.turns, stream, started, sampling, notices)

    @overload
    def regenerate(self, *, stream: Literal[False] = False, **sampling: Any) -> Response: ...
    @overload
    def regenerate(self, *, stream: Literal[True], **sampling: Any) -> PieceStream: ...
    @overload
    def regenerate(self, *, stream: bool, **sampling: Any) -> Response | PieceStream: ...

    def regenerate(self, *, stream: bool = False, **sampling: Any) -> Response | PieceStream:
        """Another answer to the last question, in place of the one there is, which stays if this fails.

        Raises BadRequest (code "conversation.empty") when nothing was asked yet, and like `ask`.
        """
        started = time.perf_counter()
        self._check_free()
        if not self.turns:
            raise BadRequest("nothing was asked yet: there is no answer to replace", "conversation.empty")
        last = self.turns[-1]
        return self._answer(last.text, last.images, self.turns[:-1], stream, started, sampling)

    def undo(self) -> bool:
        """Forgets the last question and its answer. False when there is none."""
        self._check_free()
        if not self.turns:
            return False
        self.turns.pop()
        return True

    def clear(self) -> None:
        """Forgets all turns; the system message stays."""
        self._check_free()
        self.turns.clear()

    def fork(self) -> Conversation:
        """Another conversation with the same turns; both go on independently and share what was computed for them."""
        other = Conversation(self.model, self.system, self.lora)
        other.turns, other.last = list(self.turns), self.last
        return other

    # Keeping

    def to_dict(self) -> dict[str, Any]:
        """Everything that `from_dict` needs, fit for JSON; pictures as their processed pixels (PNG, base64)."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "tokenizer": self._loaded.tokenizer.digest,
            "adapter": adapter_to_dict(self._loaded.adapters, self.lora),
            "system": self.system,
            "turns": [turn_to_dict(turn) for turn in self.turns],
        }

    @classmethod
    def from_dict(cls, model: Opened, data: Mapping[str, Any], lora: str | None = None) -> Conversation:
        """The conversation that `to_dict` gave. Under a model with another vocabulary, or one that the data does not
        name, the answers are encoded again from their texts. lora: the adapter of the answers to come, as for
        `KimiVL.conversation`; None is the one that the data names, and a notice says so where that is not loaded.
        Raises BadRequest (code "conversation.invalid") naming the field."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise invalid("format", data.get("format") if isinstance(data, Mapping) else data, repr(FORMAT))
        if data.get("version") != FORMAT_VERSION:
            raise invalid("version", data.get("version"), str(FORMAT_VERSION))
        system = data.get("system")
        notice = None
        if lora is None:
            lora, notice = adapter_from_dict(model.loaded.adapters, data)
        conversation = cls(model, system if system is None else text_field(data, "system", ""), lora)
        conversation.notices = () if notice is None else (notice,)
        turns = data.get("turns")
        if not isinstance(turns, list):
            raise invalid("turns", turns, "a list")
        loaded = model.loaded
        same_ids = data.get("tokenizer") == loaded.tokenizer.digest
        conversation.turns = [
            turn_from_dict(loaded, f"turns[{index}].", item, same_ids=same_ids) for index, item in enumerate(turns)
        ]
        return conversation

    def save_pages(self, path: str | os.PathLike[str]) -> int:
        """Writes what is computed of the conversation and kept, beside what `to_dict` gives, so that another process
        need not compute it again: some kilobytes for each token, not encrypted, for its owner alone. Returns how many
        positions that are. Raises OSError."""
        index, positions = self._loaded.conductor.index, self._positions()
        return self._loaded.conductor.between_turns(lambda: save_pages(index, positions, Path(path)))

    def load_pages(self, path: str | os.PathLike[str]) -> int:
        """Takes what `save_pages` wrote, as far as it is whole and of this conversation, this model and this kind of
        processor; the next answer is the same either way. Returns how many positions need not be computed. Raises
        OSError."""
        index, positions = self._loaded.conductor.index, self._positions()
        return self._loaded.conductor.between_turns(lambda: load_pages(index, positions, Path(path)))

    # Inside

    def _positions(self) -> Positions:
        """Of everything that was said."""
        if not self.turns:
            return Positions(self._loaded.page_root(self._loaded.adapters.pick(self.lora)), [])
        last = self.turns[-1]
        positions = self._request(last.text, last.images, self.turns[:-1], time.perf_counter(), {}).positions
        for token in self.turns[-1].token_ids or ():
            positions.append(token)
        return positions

    def _check_free(self) -> None:
        if self._busy:
            raise BadRequest(
                "an answer of this conversation is still under way: read it to its end or close it first",
                "conversation.busy",
            )

    def _answer(
        self,
        text: str,
        images: Sequence[ImageInput | LimitedImage | ProcessedImage],
        before: list[Turn],
        stream: bool,
        started: float,
        options: dict[str, Any],
        notices: Sequence[str] = (),
    ) -> Response | PieceStream:
        progress = options.pop("progress", None) or self._loaded.progress
        request = self._request(text, images, before, started, options)
        turn = Turn(text, request.seen[len(request.seen) - len(images) :])

        def on_end(response: Response) -> None:
            self.last = response
            if response.finish_reason == "cancelled" and not response.token_ids:
                return
            turn.answer, turn.thinking = response.text, response.thinking
            turn.token_ids = response.token_ids if response.stop_string is None else None
            self.turns = [*before, turn]

        answer = PieceStream(Generation(self._loaded, request, progress, on_end, self._hold))
        answer.add_notices(notices)
        return answer if stream else answer.drain()

    def _request(
        self,
        text: str,
        new_images: Sequence[ImageInput | LimitedImage | ProcessedImage],
        before: list[Turn],
        started: float,
        options: dict[str, Any],
    ) -> Request:
        """The question with its pictures after the turns before it."""
        options = {"lora": self.lora} | options
        messages: list[Any] = [] if self.system is None else [{"role": "system", "content": self.system}]
        images: list[ImageInput | LimitedImage | ProcessedImage] = []
        answers: dict[int, tuple[int, ...]] = {}

        def ask(text: str, given: Sequence[ImageInput | LimitedImage | ProcessedImage]) -> None:
            content = user_content(text, [text_around(image) for image in given], len(images))
            images.extend(given)
            messages.append({"role": "user", "content": content})

        for index, past in enumerate(before):
            ask(past.text, past.images)
            if past.token_ids is not None:
                answers[index] = past.token_ids
            messages.append({"role": "assistant", "content": past.spoken if past.token_ids is None else ""})
        ask(text, new_images)
        question = Question(messages=messages, images=images, answers=answers, keep=self._loaded.kept_image)
        return build_request(self._loaded, question, options=options, started=started)

    @contextmanager
    def _hold(self) -> Iterator[None]:
        self._check_free()
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
