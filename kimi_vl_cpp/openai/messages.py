"""OpenAI's messages as those of the chat template, and the pictures in them, pages of documents among them.

Pictures come as data URLs, as {"type": "image", "image": ...} parts with a picture object, or, only where the caller
allows it, as paths of local files. Other URLs are for the caller to open: nothing is fetched from a network here.

Calls of functions and their results, for which the template has no form, become text: see text/tool_calls.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import KimiVLError
from ..media.processor import LimitedImage, is_bare_base64, load_data_url
from ..text import tool_calls
from ..text.thinking import CLOSING, OPENING
from .documents import FILE_PARTS, OpenDocument, open_here, read_file_part
from .fields import about, bad, boolean, integer, shown, unsupported
from .tools import CallHistory
from .videos import VIDEO_PARTS, OpenVideo, read_video_part, refuse

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "user"}
"""Role of a message -> role in the model's template."""
MAX_MESSAGES = 10_000
MAX_PARTS = 10_000
LOW_DETAIL_PATCHES = 1024
DETAILS: dict[str, int | None] = {"low": LOW_DETAIL_PATCHES, "auto": None, "high": None, "original": None}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_CONTINUED = ("partial", "prefix")
# Keys of a message: those that are read, and those that OpenAI's own answers carry and that say nothing to the model.
_SILENT_KEYS = "role content tool_calls tool_call_id function_call name refusal annotations audio weight".split()
_MESSAGE_KEYS = frozenset((*_SILENT_KEYS, *_REASONING, *_CONTINUED, "reasoning_details"))
_REFUSED_PARTS = {
    "input_audio": "audio is not understood",
}


@dataclass(frozen=True)
class Picture:
    """A picture of a request. source: a data URL's bytes, or whatever `KimiVL.start` takes. place: its field.
    max_patches: 14x14 patches above which it is scaled down, None for the model's own limit."""

    source: Any
    place: str
    max_patches: int | None = None


@dataclass
class Translated:
    """messages: for chat_template.build_prompt. pictures: what their image parts count through. continue_final: the
    last message, an assistant's, is to be continued. notices: about its documents and videos."""

    messages: list[Any] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    continue_final: bool = False
    notices: list[str] = field(default_factory=list)

    @property
    def images(self) -> list[Any]:
        """The pictures as `KimiVL.start` takes them."""
        return [
            one.source if one.max_patches is None else LimitedImage(one.source, one.max_patches)
            for one in self.pictures
        ]

    @contextmanager
    def placing_errors(self) -> Iterator[None]:
        """Errors about images[i] raised inside are about the field that the picture came in."""
        try:
            yield
        except KimiVLError as error:
            found = re.fullmatch(r"images\[(\d+)\]", error.param or "")
            if found:
                error.param = self.pictures[int(found[1])].place
                error.args = (f"{error.param}: {error}",)
            raise


def has_attachments(messages: Any) -> bool:
    """Whether any message of a request, checked or not, has a part with a document or a video."""
    if not isinstance(messages, (list, tuple)):
        return False
    contents = (message.get("content") for message in messages if isinstance(message, Mapping))
    parts = (part for content in contents if isinstance(content, (list, tuple)) for part in content)
    kinds = (*FILE_PARTS, *VIDEO_PARTS)
    return any(isinstance(part, Mapping) and part.get("type") in kinds for part in parts)


OpenUrl = Callable[[str], Any]
"""What stands behind a URL that is not a data: URL, as `KimiVL.chat` takes pictures; None where it is not opened."""


def translate_messages(
    messages: Sequence[Mapping[str, Any]],
    *,
    allow_local_images: bool = False,
    continue_final: bool = False,
    open_url: OpenUrl = lambda url: None,
    open_document: OpenDocument = open_here,
    open_video: OpenVideo = refuse,
) -> Translated:
    """Reads the messages of a request. continue_final: the last is to be continued, as its own fields may say too.

    Raises BadRequest, BadImage, BadDocument, Unsupported, each with the field as its `param`.
    """
    if not isinstance(messages, (list, tuple)):
        raise bad("messages", f"got {shown(messages)}, expected a list of messages")
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise bad("messages", f"got {len(messages)}, expected 1 to {MAX_MESSAGES}")
    result = Translated()
    reader = _Reader(result.pictures, result.notices, allow_local_images, open_url, open_document, open_video)
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise bad(where, f"got {shown(message)}, expected an object")
        continued = _continued(where, message)
        if continued and index != len(messages) - 1:
            raise bad(f"{where}.{continued}", "only the last message can be continued")
        final = bool(continued) or (continue_final and index == len(messages) - 1)
        if final and message.get("role") != "assistant":
            raise bad(where, "is to be continued, but its role is not 'assistant'")
        result.continue_final = final
        read = reader.message(where, message, final)
        after_result = index and messages[index - 1].get("role") == message.get("role") == "tool"
        if after_result:  # the results of one message's calls are one turn
            result.messages[-1]["content"] += read["content"]
        else:
            result.messages.append(read)
    return result


def _continued(where: str, message: Mapping[str, Any]) -> str:
    """The field that says that a message is to be continued, or ""."""
    for name in _CONTINUED:
        if message.get(name) is not None and boolean(f"{where}.{name}", message[name]):
            return name
    return ""


@dataclass
class _Reader:
    """Reads one message after the other. pictures, notices: those found so far."""

    pictures: list[Picture]
    notices: list[str]
    allow_local: bool
    open_url: OpenUrl
    open_document: OpenDocument
    open_video: OpenVideo
    history: CallHistory = field(default_factory=CallHistory)

    def message(self, where: str, message: Mapping[str, Any], final: bool) -> dict[str, Any]:
        """One message as the template takes it. final: it is to be continued."""
        role = message.get("role")
        if role == "function" or message.get("function_call"):
            raise unsupported(
                where, "function_call is out of date: use tool_calls and the role 'tool'", "unsupported.tools"
            )
        if not isinstance(role, str) or role not in ROLES:
            raise bad(f"{where}.role", f"got {shown(role)}, expected one of {', '.join(ROLES)}", "request.role")
        _check_keys(where, message)
        content = message.get("content")
        calls = ""
        if message.get("tool_calls"):
            if role != "assistant" or final:
                raise bad(f"{where}.tool_calls", "expected in a whole message of the assistant's", "request.tool_calls")
            calls = self.history.calls(f"{where}.tool_calls", message["tool_calls"])
            content = content or ""
        read = self._content(f"{where}.content", content)
        if role == "tool":
            name = self.history.called(f"{where}.tool_call_id", message.get("tool_call_id"))
            read = _wrapped(tool_calls.result_opening(name), read, tool_calls.RESULT_CLOSING)
        elif calls:
            read = _wrapped("", read, calls)
        return {"role": ROLES[role], "content": _with_reasoning(where, message, role, read, final)}

    def _content(self, where: str, content: Any) -> Any:
        if isinstance(content, str):
            return content
        if not isinstance(content, (list, tuple)):
            raise bad(where, f"got {shown(content)}, expected a string or a list of parts", "request.content")
        if len(content) > MAX_PARTS:
            raise bad(where, f"got {len(content)} parts, expected at most {MAX_PARTS}", "request.content")
        return [one for index, part in enumerate(content) for one in self._part(f"{where}[{index}]", part)]

    def _part(self, where: str, part: Any) -> list[dict[str, Any]]:
        """The template's parts of one part: a document is one for every page, and one for what stands before it."""
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("text", "input_text", "output_text"):
            text = part.get("text")
            if not isinstance(text, str):
                raise bad(f"{where}.text", f"got {shown(text)}, expected a string", "request.content")
            return [{"type": "text", "text": text}]
        if kind in FILE_PARTS:
            return self._document(where, part)
        if kind in VIDEO_PARTS:
            return self._video(where, part)
        if kind in ("image_url", "input_image"):
            value = part.get("image_url")
            inner = value if isinstance(value, Mapping) else part
            url = inner.get("url") if isinstance(value, Mapping) else value
            place = f"{where}.image_url"
            if not isinstance(url, str):
                raise bad(place, f"got {shown(url)} as its url, expected a string", "request.image_url")
            return [self._picture(self._from_url(place, url), place, _max_patches(place, inner))]
        if kind == "image":
            image = part.get("image")
            place = f"{where}.image"
            if image is None:
                raise bad(place, "missing, expected a picture", "request.content")
            if isinstance(image, (str, os.PathLike)):
                image = self._from_url(place, image)
            return [self._picture(image, place)]
        if isinstance(kind, str) and kind in _REFUSED_PARTS:
            raise unsupported(f"{where}.type", f"got {shown(kind)}: {_REFUSED_PARTS[kind]}", "unsupported.part")
        got = shown(part) if kind is None else shown(kind)
        raise bad(
            f"{where}.type",
            f"got {got}, expected 'text', 'image_url', 'image', 'file' or 'video_url'",
            "request.content",
        )

    def _picture(self, source: Any, place: str, max_patches: int | None = None) -> dict[str, Any]:
        self.pictures.append(Picture(source, place, max_patches))
        return {"type": "image", "image": len(self.pictures) - 1}

    def _document(self, where: str, part: Mapping[str, Any]) -> list[dict[str, Any]]:
        file = read_file_part(where, part)
        limit = _max_patches(file.place, file.options)
        with about(file.place):
            document = self.open_document(file.data, file.name)
            pages = document.pages(file.pages, file.markers, file.text_layer)
        self.notices += document.notices
        parts: list[dict[str, Any]] = []
        for page in pages:
            picture = self._picture(page, file.place, limit)
            parts += [{"type": "text", "text": page.label}] if page.label else []
            parts += [picture, {"type": "text", "text": page.caption}] if page.caption else [picture]
        return parts

    def _video(self, where: str, part: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A part for every frame, and one for the time that stands before it."""
        video = read_video_part(where, part, _max_patches)
        with about(video.place):
            frames, notices = self.open_video(video)
        self.notices += notices
        parts: list[dict[str, Any]] = []
        for frame in frames:
            parts += [{"type": "text", "text": frame.label}] if frame.label else []
            parts.append(self._picture(frame, video.place))
        return parts

    def _from_url(self, where: str, url: str | os.PathLike[str]) -> Any:
        is_data = isinstance(url, str) and url.lstrip()[:5].lower() == "data:"
        with about(where):
            opened = self.open_url(url) if isinstance(url, str) and not is_data else None
        return _image_from_url(where, url, self.allow_local) if opened is None else opened


def _check_keys(where: str, message: Mapping[str, Any]) -> None:
    """Raises BadRequest for a key that nobody knows."""
    for key, value in message.items():
        if key not in _MESSAGE_KEYS and not _asks_for_nothing(value):
            hint = (
                """; a picture is a part of the content: {"type": "image_url", "image_url": {"url": "data:..."}}"""
                if "image" in str(key)
                else "; leave it out"
            )
            raise bad(f"{where}.{key}", f"not a key of a message{hint}", "request.messages")


def _wrapped(before: str, content: Any, after: str) -> list[dict[str, Any]]:
    """Content between two texts, as parts."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [{"type": "text", "text": before}, *parts, {"type": "text", "text": after}]


def _with_reasoning(where: str, message: Mapping[str, Any], role: str, content: Any, final: bool) -> Any:
    """The content behind the reasoning that came beside it. A reasoning whose answer is still to come, in a message
    that is to be continued, is left open."""
    given = [name for name in _REASONING if message.get(name) is not None]
    if not given:
        return content
    place = f"{where}.{given[0]}"
    reasoning = message[given[0]]
    if role != "assistant" or not isinstance(reasoning, str):
        raise bad(place, "expected a string, beside the content of an assistant", "request.reasoning_content")
    if any(message[name] != reasoning for name in given[1:]):
        raise bad(place, f"{given[1]} is given too and differs: give one", "request.reasoning_content")
    if not reasoning:
        return content
    opened = f"{OPENING}{reasoning}" if final and not content else f"{OPENING}{reasoning}{CLOSING}"
    return opened + content if isinstance(content, str) else [{"type": "text", "text": opened}, *content]


def _asks_for_nothing(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (str, list, tuple, dict)) and not value)


def _max_patches(where: str, options: Mapping[str, Any]) -> int | None:
    """The smaller of what `detail` and `max_patches` say."""
    detail, patches = options.get("detail"), options.get("max_patches")
    if detail is not None and (not isinstance(detail, str) or detail not in DETAILS):
        raise bad(f"{where}.detail", f"got {shown(detail)}, expected one of {', '.join(DETAILS)}", "request.image_url")
    limits = [DETAILS[detail] if detail is not None else None]
    if patches is not None:
        limits.append(integer(f"{where}.max_patches", patches, 4, 512 * 512))
    return min((limit for limit in limits if limit is not None), default=None)


def _image_from_url(where: str, url: str | os.PathLike[str], allow_local: bool) -> Any:
    address = os.fspath(url)
    scheme = address.split(":", 1)[0].strip().lower() if ":" in address else ""
    if scheme == "data":
        with about(where):
            return load_data_url(address)
    if isinstance(url, str) and is_bare_base64(address):
        raise bad(
            where,
            f"got {shown(address)}, base64 without its head: put data:image/png;base64, in front of it",
            "request.image_url",
        )
    if scheme in ("http", "https") or address.lstrip().startswith(("//", "\\\\")):
        raise bad(
            where,
            f"got {shown(address)}; pictures are not fetched from a network: fetch it yourself and pass a "
            f"data: URL or its bytes",
            "request.image_url_remote",
        )
    if scheme not in ("", "file") and not (len(scheme) == 1 and os.name == "nt"):
        looks_like_path = os.path.exists(address) if allow_local else False
        if not looks_like_path:
            raise bad(
                where,
                f"got {shown(address)}; expected a data: URL{' or a path' if allow_local else ''}",
                "request.image_url",
            )
    if not allow_local:
        raise bad(
            where, f"got {shown(address)}; files are not opened here: pass a data: URL", "request.image_url_local"
        )
    if scheme == "file":
        parts = urlsplit(address)
        if parts.netloc not in ("", "localhost"):
            raise bad(where, f"got {shown(address)}, a file on another host", "request.image_url_remote")
        return unquote(parts.path)
    return address
