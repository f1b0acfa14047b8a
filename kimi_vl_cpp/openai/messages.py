"""OpenAI's messages as those of the chat template, and the pictures in them.

Pictures come as data URLs, as {"type": "image", "image": ...} parts with a picture object, or, only where the caller
allows it, as paths of local files. Nothing is ever fetched from a network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import BadRequest, Unsupported, shown
from ..media.processor import is_bare_base64, load_data_url
from ..text.thinking import join_thinking

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Role of a message -> role in the model's template."""
MAX_MESSAGES = 10_000
MAX_PARTS = 10_000
# Keys of a message: those that are read, and those that OpenAI's own answers carry and that say nothing to the model.
_MESSAGE_KEYS = frozenset(
    "role content reasoning_content tool_calls tool_call_id function_call name refusal annotations weight".split()
)


def translate_messages(
    messages: Sequence[Mapping[str, Any]], *, allow_local_images: bool = False
) -> tuple[list[Any], list[Any]]:
    """The messages for prompt.build_prompt, and the pictures that they count through. Raises BadRequest, BadImage."""
    if not isinstance(messages, (list, tuple)):
        raise BadRequest(f"messages: got {type(messages).__name__}, expected a list", "request.messages")
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise BadRequest(f"messages: got {len(messages)}, expected 1 to {MAX_MESSAGES}", "request.messages")
    images: list[Any] = []
    plain = [_message(f"messages[{index}]", item, images, allow_local_images) for index, item in enumerate(messages)]
    return plain, images


def _message(where: str, message: Any, images: list[Any], allow_local: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRequest(f"{where}: got {shown(message)}, expected a dict", "request.messages")
    role = message.get("role")
    if role in ("tool", "function") or any(message.get(key) for key in ("tool_calls", "tool_call_id", "function_call")):
        raise Unsupported(f"{where}: tool calls are not supported by this model's template", "unsupported.tools")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRequest(f"{where}.role: got {shown(role)}, expected one of {', '.join(ROLES)}", "request.role")
    for key, value in message.items():
        if key not in _MESSAGE_KEYS and not _asks_for_nothing(value):
            hint = (
                """; a picture is a part of the content: {"type": "image_url", "image_url": {"url": "data:..."}}"""
                if "image" in str(key)
                else "; leave it out"
            )
            raise BadRequest(f"{where}.{key}: not a key of a message{hint}", "request.messages")
    content = message.get("content")
    if isinstance(content, str):
        translated: Any = content
    elif isinstance(content, (list, tuple)):
        if len(content) > MAX_PARTS:
            raise BadRequest(
                f"{where}.content: got {len(content)} parts, expected at most {MAX_PARTS}", "request.content"
            )
        translated = [
            _part(f"{where}.content[{index}]", part, images, allow_local) for index, part in enumerate(content)
        ]
    else:
        raise BadRequest(
            f"{where}.content: got {shown(content)}, expected a string or a list of parts", "request.content"
        )
    reasoning = message.get("reasoning_content")
    if reasoning is not None:
        if role != "assistant" or not isinstance(reasoning, str) or not isinstance(translated, str):
            raise BadRequest(
                f"{where}.reasoning_content: expected a string beside an assistant's content string",
                "request.reasoning_content",
            )
        translated = join_thinking(reasoning, translated)
    return {"role": ROLES[role], "content": translated}


def _asks_for_nothing(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (str, list, tuple, dict)) and not value)


def _part(where: str, part: Any, images: list[Any], allow_local: bool) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise BadRequest(f"{where}.text: got {shown(text)}, expected a string", "request.content")
        return {"type": "text", "text": text}
    if kind == "image_url":
        value = part.get("image_url")
        url = value.get("url") if isinstance(value, Mapping) else value
        if not isinstance(url, str):
            raise BadRequest(f"{where}.image_url.url: got {shown(url)}, expected a string", "request.image_url")
        images.append(_image_from_url(f"{where}.image_url.url", url, allow_local))
    elif kind == "image":
        image = part.get("image")
        if image is None:
            raise BadRequest(f"{where}.image: missing, expected a picture", "request.content")
        images.append(
            _image_from_url(f"{where}.image", image, allow_local) if isinstance(image, (str, os.PathLike)) else image
        )
    else:
        got = shown(part) if kind is None else shown(kind)
        raise BadRequest(f"{where}.type: got {got}, expected 'text', 'image_url' or 'image'", "request.content")
    return {"type": "image", "image": len(images) - 1}


def _image_from_url(where: str, url: str | os.PathLike[str], allow_local: bool) -> Any:
    spelled = os.fspath(url)
    scheme = spelled.split(":", 1)[0].strip().lower() if ":" in spelled else ""
    if scheme == "data":
        return load_data_url(spelled)
    if isinstance(url, str) and is_bare_base64(spelled):
        raise BadRequest(
            f"{where}: got {shown(spelled)}, base64 without its head: put data:image/png;base64, in front of it",
            "request.image_url",
        )
    if scheme in ("http", "https") or spelled.lstrip().startswith(("//", "\\\\")):
        raise BadRequest(
            f"{where}: got {shown(spelled)}; pictures are not fetched from a network: fetch it yourself and pass a "
            f"data: URL or its bytes",
            "request.image_url_remote",
        )
    if scheme not in ("", "file") and not (len(scheme) == 1 and os.name == "nt"):
        looks_like_path = os.path.exists(spelled) if allow_local else False
        if not looks_like_path:
            raise BadRequest(
                f"{where}: got {shown(spelled)}; expected a data: URL{' or a path' if allow_local else ''}",
                "request.image_url",
            )
    if not allow_local:
        raise BadRequest(
            f"{where}: got {shown(spelled)}; files are not opened for a chat completion unless the caller says "
            f"allow_local_images=True: pass a data: URL",
            "request.image_url_local",
        )
    if scheme == "file":
        parts = urlsplit(spelled)
        if parts.netloc not in ("", "localhost"):
            raise BadRequest(f"{where}: got {shown(spelled)}, a file on another host", "request.image_url_remote")
        return unquote(parts.path)
    return spelled
