"""The chat template: messages to the exact sequence of token ids and pictures that the model was trained on.

Owns the template (no bos, no newline, no space anywhere), where each message lies in it, and the check of messages. A
picture is an index here; what it looks like and how many positions it takes is for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from ..errors import BadRequest, shown
from .tokenizer import Tokenizer

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant", "content": str | [{"type": "text", "text": str} |
{"type": "image", "image": int}]}; other keys are not looked at."""


@dataclass(frozen=True)
class ImagePart:
    """The place of a picture in a prompt: its embeddings stand there instead of token ids."""

    index: int
    """Which picture: the `image` of the message part."""


Part = list[int] | ImagePart
"""A piece of a prompt: token ids, never none, or a picture. Two lists of ids are never neighbours."""


@dataclass(frozen=True)
class Span:
    """Where a message lies in a prompt, counted in items: a token is one, and so is a picture.

    start: the token of its role. content: where what it says begins. end: behind what it says; the token that ends a
    message stands there, unless the prompt ends with this one.
    """

    role: str
    start: int
    content: int
    end: int

    def moved(self, n: int) -> Span:
        """The same message n items further on."""
        return Span(self.role, self.start + n, self.content + n, self.end + n)


@dataclass(frozen=True)
class Prompt:
    """parts: what the model sees. messages: where the messages lie in it, in their order."""

    parts: list[Part]
    messages: list[Span]

    @property
    def n_tokens(self) -> int:
        """Positions that it takes without its pictures."""
        return sum(len(part) for part in self.parts if not isinstance(part, ImagePart))


def text_of(message: Message) -> str:
    """The text of a checked message, without its pictures."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or () if part.get("type") == "text")


def user_content(text: str, around: Sequence[tuple[str, str]], first: int = 0) -> list[dict[str, Any]]:
    """The content of a user's message: pictures, numbered from `first`, each between two texts, then the text."""
    content: list[dict[str, Any]] = []
    for index, (before, behind) in enumerate(around):
        picture = {"type": "image", "image": first + index}
        texts = [{"type": "text", "text": words} if words else None for words in (before, behind)]
        content += [part for part in (texts[0], picture, texts[1]) if part is not None]
    return [*content, {"type": "text", "text": text}]


def build_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True, **form: Any
) -> list[Part]:
    """The parts of `write_prompt`, which documents the arguments."""
    return write_prompt(tokenizer, messages, add_generation_prompt, **form).parts


def write_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    *,
    continue_final: bool = False,
    opening: str = "",
    instructions: str = "",
    answers: Mapping[int, Sequence[int]] | None = None,
) -> Prompt:
    """The prompt of a conversation.

    The tokenizer's default system message goes first unless the first message is a system message. Text is encoded with
    special tokens off, so no text can forge one. add_generation_prompt: it ends with the beginning of the assistant's
    answer, and with `opening`, text that the answer begins with. continue_final: the last message, an assistant's, is
    left open instead, so that the answer continues it. instructions: text for the end of the first system message.
    answers: message of an assistant, 0 is the first -> the token ids it was given in, which stand for its content: its
    text might be cut into other tokens.

    Raises BadRequest "request.messages" that names messages[i].content[j]; BadModelFile when a picture is asked for and
    the vocabulary has no media tokens.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        _bad("messages", f"got {shown(messages)}, expected a list of messages")
    if not messages:
        _bad("messages", "the list is empty, expected at least one message")
    writer = _Writer(tokenizer)
    n_answers = 0
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, Mapping):
            _bad(where, f"got {shown(message)}, expected a dict with role and content")
        role = message.get("role")
        if not isinstance(role, str) or role not in writer.role_ids:
            _bad(f"{where}.role", f"got {shown(role)}, expected 'system', 'user' or 'assistant'")
        content = _content(message.get("content"), f"{where}.content")
        if i == 0 and role == "system" and instructions:
            content[-1] = _joined(str(content[-1]), instructions)
        elif i == 0 and role != "system" and (tokenizer.default_system is not None or instructions):
            writer.message("system", [_joined(tokenizer.default_system or "", instructions)])
        ids = None
        if role == "assistant":
            ids = answers.get(n_answers) if answers else None
            n_answers += 1
        writer.message(role, content if ids is None else [ids])
    if continue_final:
        if messages[-1].get("role") != "assistant":
            _bad(f"messages[{len(messages) - 1}]", "is to be continued, but its role is not 'assistant'")
        writer.reopen()
    elif add_generation_prompt:
        writer.begin("assistant")
        writer.text(opening)
    return Prompt(writer.parts, writer.messages)


def find_answers(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Span]:
    """The messages of assistants in a prompt that somebody else wrote, by the template's own tokens:
    `<|im_assistant|>` ... `<|im_middle|>` content `<|im_end|>`."""
    found: list[Span] = []
    start = content = -1
    for index, token in enumerate(ids):
        if content >= 0:
            if token == tokenizer.im_end_id:
                found.append(Span("assistant", start, content, index))
                start = content = -1
        elif start < 0 and token == tokenizer.im_assistant_id:
            start = index
        elif start >= 0 and token == tokenizer.im_middle_id:
            content = index + 1
    if content >= 0:
        found.append(Span("assistant", start, content, len(ids)))
    return found


def _joined(*texts: str) -> str:
    return "\n\n".join(filter(None, texts))


def _content(content: object, where: str) -> list[str | ImagePart]:
    """A message's content as texts and pictures; neighbouring texts are one, as the template joins before encoding."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        _bad(where, f"got {shown(content)}, expected a string or a list of parts")
    out: list[str | ImagePart] = []
    texts: list[str] = []
    for j, part in enumerate(content):
        here = f"{where}[{j}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            text = part.get("text")
            if not isinstance(text, str):
                _bad(f"{here}.text", f"got {shown(text)}, expected a string")
            texts.append(text)
        elif kind == "image":
            index = part.get("image")
            if isinstance(index, bool) or not isinstance(index, int) or index < 0:
                _bad(f"{here}.image", f"got {shown(index)}, expected the index of a picture, 0 or more")
            out += ["".join(texts), ImagePart(index)]
            texts = []
        elif isinstance(part, Mapping):
            _bad(f"{here}.type", f"got {shown(kind)}, expected 'text' or 'image'")
        else:
            _bad(here, f"got {shown(part)}, expected a dict with a type")
    return [*out, "".join(texts)]


class _Writer:
    """Builds the parts. Every stretch of text between special tokens is encoded by itself, as the family does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.parts: list[Part] = []
        self.messages: list[Span] = []
        self._n_items = 0
        self.role_ids = {
            "system": tokenizer.im_system_id,
            "user": tokenizer.im_user_id,
            "assistant": tokenizer.im_assistant_id,
        }
        self._tokenizer = tokenizer

    def message(self, role: str, content: Sequence[str | ImagePart | Sequence[int]]) -> None:
        self.begin(role)
        for piece in content:
            if isinstance(piece, ImagePart):
                self._picture(piece)
            else:
                self._say(self._tokenizer.encode(piece) if isinstance(piece, str) else piece)
        self._ids([self._tokenizer.im_end_id])

    def begin(self, role: str) -> None:
        start = self._n_items
        self._ids([self.role_ids[role], *self._tokenizer.encode(role), self._tokenizer.im_middle_id])
        self.messages.append(Span(role, start, self._n_items, self._n_items))

    def text(self, text: str) -> None:
        self._say(self._tokenizer.encode(text))

    def reopen(self) -> None:
        """Takes back the end of the last message."""
        self._n_items -= 1
        last = self.parts[-1]
        assert isinstance(last, list)
        del last[-1]
        if not last:
            del self.parts[-1]

    def _picture(self, picture: ImagePart) -> None:
        # The template writes <|media_pad|> between content and end; the picture's embeddings take its place.
        tokenizer = self._tokenizer
        self._ids([tokenizer.media_start_id, *tokenizer.encode("image"), tokenizer.media_content_id])
        self.parts.append(picture)
        self._n_items += 1
        self._say([tokenizer.media_end_id])

    def _say(self, ids: Sequence[int]) -> None:
        """Part of the last message's content."""
        self._ids(ids)
        self.messages[-1] = replace(self.messages[-1], end=self._n_items)

    def _ids(self, ids: Sequence[int]) -> None:
        self._n_items += len(ids)
        if self.parts and isinstance(self.parts[-1], list):
            self.parts[-1] += ids
        elif ids:
            self.parts.append(list(ids))


def _bad(where: str, problem: str) -> NoReturn:
    raise BadRequest(f"{where}: {problem}", "request.messages")
