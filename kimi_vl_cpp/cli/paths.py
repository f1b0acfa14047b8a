"""Paths of pictures in what a person types, pastes or drops into a terminal.

Terminals and file managers write a dropped file in several ways: as it is, in quotes, with backslashes before spaces,
or as a file:// address. Owns these spellings. A word counts as a picture only if the file exists, so ordinary text is
never taken for one.
"""

from __future__ import annotations

import os
import re
import urllib.parse

from .exits import PICTURE_SUFFIXES

_WORD = re.compile(r"""'[^'\n]*'|"[^"\n]*"|(?:\\.|[^\s\\])+""")


def spellings(text: str) -> list[str]:
    """The paths that `text` may mean, likeliest first: as it stands, without quotes, unescaped, decoded from
    file://."""
    text = text.strip()
    found = [text]
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        found.append(text[1:-1])
    if text.lower().startswith("file:"):
        address = urllib.parse.urlsplit(text)
        if address.netloc in ("", "localhost"):
            found.append(urllib.parse.unquote(address.path))
    if "\\" in text:
        found.append(re.sub(r"\\(.)", r"\1", text))
    found += [os.path.expanduser(path) for path in found if path.startswith("~")]
    return [path for path in dict.fromkeys(found) if path and "\0" not in path]


def existing_file(text: str) -> str | None:
    """The file that `text` spells, or None when there is no such file."""
    for path in spellings(text):
        try:
            if os.path.isfile(path):
                return path
        except (OSError, ValueError):
            continue
    return None


def picture(text: str) -> str | None:
    """The picture file that `text` spells, judged by its suffix, or None."""
    path = existing_file(text)
    return path if path is not None and os.path.splitext(path)[1].lower() in PICTURE_SUFFIXES else None


def looks_like_path(text: str) -> bool:
    """True for text that is meant as a path whether or not the file exists."""
    text = text.strip()
    bare = text.strip("'\"")
    if bare.lower().startswith("file:") or bare.startswith(("~/", "./", "../")):
        return True
    return bare.startswith("/") and "/" in bare[1:]


def split_pictures(message: str) -> tuple[list[str], str]:
    """The pictures at the beginning and at the end of a message, and the text that is left.

    A message that consists of pictures alone may name them in any way. Beside other text only words that are plainly
    paths are taken (with a slash, quoted, or file://), so that "what is in photo.jpg" keeps its last word.
    """
    whole = picture(message)
    if whole is not None:
        return [whole], ""
    words = list(_WORD.finditer(message))
    meanings = [picture(word.group()) for word in words]
    if words and all(meanings):
        return [path for path in meanings if path], ""
    plain = [
        path if path and _plainly_a_path(word.group()) else None for path, word in zip(meanings, words, strict=True)
    ]
    first = 0
    while first < len(words) and plain[first]:
        first += 1
    last = len(words)
    while last > first and plain[last - 1]:
        last -= 1
    if first == 0 and last == len(words):
        return [], message
    text = message[words[first].start() : words[last - 1].end()] if last > first else ""
    return [path for path in plain[:first] + plain[last:] if path], text


def _plainly_a_path(word: str) -> bool:
    return "/" in word or word[0] in "'\""
