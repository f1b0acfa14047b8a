"""Paths of pictures in what someone types, pastes or drops into a terminal.

Terminals and file managers write a dropped file in several ways: as it is, in quotes, with backslashes before spaces,
or as a file:// address. Owns these spellings, and what in a message is a path and what is prose. A word counts as a
picture when the file exists, or when it can hardly be anything else (`./reciept.png`): then attaching it says what is
wrong. Whatever looks like a picture and is not attached gets a note.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..media.named_part import split
from .exits import ATTACHMENT_SUFFIXES

_PLAIN_WORD = re.compile(r"(?:\\.|[^\s\\]|\\(?=\s|$))+")
_SHELL_WORD = re.compile(r"""(?:'[^'\n]*'|"[^"\n]*"|\\.|[^\s\\'"])+""")
_SEGMENT = re.compile(r"""'([^'\n]*)'|"([^"\n]*)"|\\(.)|([^\\'"]+)""")
_EXPLICIT = re.compile(r"""['"]*(?:\.{1,2}/|~[\w.-]*/|file:|[A-Za-z]:[\\/]\S|\\\\\w)""", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:https?|ftp)://", re.IGNORECASE)
_BEFORE, _BEHIND = "([{<`“‘«„@", ",;:.!?)]}>`”’»…"  # punctuation around a path
_MAX_JOINED_WORDS = 12  # of a file name with spaces that nobody escaped


@dataclass
class Message:
    """A message taken apart. pictures: paths to attach, some of which may not exist; text: what is left to ask; notes:
    about what looks like a picture and is not attached."""

    pictures: list[str] = field(default_factory=list)
    text: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Mention:
    """A path at [start, end) of a message."""

    start: int
    end: int
    path: str


def spellings(text: str) -> list[str]:
    """The paths that `text` may mean, likeliest first: as it stands, without quotes, unescaped, decoded from file://,
    a Windows path as the Windows Subsystem for Linux mounts it."""
    text = text.strip()
    if "\0" in text:
        return []
    found = [text]
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        found.append(text[1:-1])
    if any(mark in text for mark in "'\"\\") and "".join(m.group() for m in _SEGMENT.finditer(text)) == text:
        found.append("".join("".join(part or "" for part in m.groups()) for m in _SEGMENT.finditer(text)))
    for one in found[:]:
        if one.lower().startswith("file:"):
            address = urllib.parse.urlsplit(one.replace("?", "%3F").replace("#", "%23"))
            if address.netloc in ("", "localhost"):
                found.append(urllib.parse.unquote(address.path))
        if re.match(r"[A-Za-z]:[\\/]", one):
            found.insert(0, f"/mnt/{one[0].lower()}/" + one[3:].replace("\\", "/"))
            found.append(one)  # what a message calls it
    found += [os.path.expanduser(path) for path in found if path.startswith("~")]
    last = dict.fromkeys(reversed([path for path in found if path and "\0" not in path]))
    return list(reversed(last))


def existing_file(text: str) -> str | None:
    """The file that `text` spells, with the pages behind its name, or None when there is no such file."""
    for path in spellings(text):
        try:
            if os.path.isfile(split(path)[0]):
                return path
        except (OSError, ValueError):
            continue
    return None


def resolve(text: str) -> str:
    """The file that `text` names, else its last reading, for messages; `text` itself when it has none."""
    return existing_file(text) or (spellings(text) or [text])[-1]


def has_picture_suffix(path: str) -> bool:
    """Whether a name ends like that of a picture or a document; pages behind it do not count."""
    return os.path.splitext(split(path)[0])[1].lower() in ATTACHMENT_SUFFIXES


def picture(text: str) -> str | None:
    """The picture file that `text` names, judged by its suffix, or None."""
    path = existing_file(text)
    return path if path is not None and has_picture_suffix(path) else None


def looks_like_path(text: str) -> bool:
    """True for text that is meant as a path whether or not the file exists."""
    text = text.strip()
    bare = text.strip("'\"")
    return _EXPLICIT.match(text) is not None or (bare.startswith("/") and "/" in bare[1:])


def read_message(message: str, *, named: bool = False) -> Message:
    """Finds the pictures in a message. named: the message is what follows /image, so bare names are paths too.

    Pictures at the beginning and the end are taken out of the text; for one inside a sentence, the sentence stays as it
    is. A bare name inside a sentence ("what is in photo.jpg") is not attached, with a note.
    """
    whole = message.strip()
    if not whole:
        return Message()
    if picture(whole) is not None or (named and existing_file(whole) is not None):
        return Message([resolve(whole)])
    found = Message()
    words = list(_words(message, named))
    alone = all(has_picture_suffix(word.path) or looks_like_path(word.path) for word in words)

    def bare(word: _Mention) -> bool:
        return alone or (named and (has_picture_suffix(word.path) or existing_file(word.path) is not None))

    taken = [word for word in words if _is_picture(word, message, bare(word), found)]
    inside = _cut(message, words, taken, found)
    found.notes += [f"{word.path} is attached; your message stays as it is" for word in inside]
    found.pictures = [resolve(word.path) for word in taken]
    if named and not taken:
        one = os.path.exists(resolve(whole)) or whole[0] in "'\"" or not words
        found.pictures = [resolve(whole if one else words[0].path)]
    return found


def _cut(message: str, words: list[_Mention], taken: list[_Mention], found: Message) -> list[_Mention]:
    """Sets the text to what is between the pictures at both ends; returns the pictures inside of it."""
    first, last = 0, len(words)
    while first < last and words[first] in taken:
        first += 1
    while last > first and words[last - 1] in taken:
        last -= 1
    start = words[first - 1].end if first else 0
    end = words[last].start if last < len(words) else len(message)
    text = message[start:end] if last > first else ""
    found.text = text if not taken else text.strip()
    return [word for word in words[first:last] if word in taken]


def _is_picture(word: _Mention, message: str, alone: bool, found: Message) -> bool:
    """Whether a word is a picture to attach; adds a note when it only looks like one."""
    path, explicit = word.path, _EXPLICIT.match(word.path) is not None
    suffix = has_picture_suffix(path.rstrip("'\""))
    at_an_end = not message[: word.start].strip() or not message[word.end :].strip(f" \n\t{_BEHIND}")
    if _ADDRESS.match(path):
        suffix = has_picture_suffix(urllib.parse.urlsplit(path).path) if "[" not in path else suffix
        if suffix and not at_an_end:
            found.notes.append(f"{path}: nothing is fetched from the web; the question goes without it")
        return suffix and at_an_end
    file = existing_file(path)
    rooted = looks_like_path(path) or path[0] in "'\""
    if file is not None:
        if has_picture_suffix(file) and (alone or rooted or "/" in path):
            return True
        if alone or (rooted and _begins_like_a_picture(file)):
            return True
        if has_picture_suffix(file):
            found.notes.append(f"{path} is not attached: write ./{path} for the picture")
        elif rooted:
            found.notes.append(f"{path} is not a picture: the question goes without what is in it")
        return False
    if alone or (suffix and rooted):
        return True
    if suffix or explicit:
        found.notes.append(f"{path}: there is no such picture; the question goes without one")
    return False


def _begins_like_a_picture(file: str) -> bool:
    """Whether the first bytes of a file are those of a picture that can be decoded, a document or a video."""
    from ..media.decode import format_of
    from ..media.pdf import is_pdf
    from ..media.video import is_video

    try:
        path = split(file)[0]
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as opened:
            head = opened.read(1024)
    except OSError:
        return True  # attaching it says why it cannot be read
    return format_of(head) is not None or is_pdf(head) or is_video(head)


def _words(message: str, named: bool) -> Iterator[_Mention]:
    """The words of a message, a path with spaces as one, without the punctuation around a path."""
    at = 0
    while word := _PLAIN_WORD.search(message, at):
        start, end = word.span()
        shell = _SHELL_WORD.match(message, start)
        if shell is not None and (shell.group()[0] in "'\"" or looks_like_path(shell.group())):
            inner = spellings(shell.group())[-1:] or [""]
            if existing_file(shell.group()) or has_picture_suffix(inner[0]):
                end = shell.end()
        raw = message[start:end]
        if not existing_file(raw):
            longer = _joined(message, start, end, named and at == 0)
            if longer is not None:
                end = longer
                raw = message[start:end]
        yield from _trimmed(raw, start)
        at = end


def _joined(message: str, start: int, end: int, named: bool) -> int | None:
    """Where a path with unescaped spaces ends that begins with the word at [start, end), or None: the shortest that
    exists, or else ends like a picture."""
    first = message[start:end]
    if not (named or looks_like_path(first)) or has_picture_suffix(first.rstrip(_BEHIND)):
        return None
    line_end = message.find("\n", start)
    ends: list[int] = []
    at = end
    while len(ends) < _MAX_JOINED_WORDS and (word := _PLAIN_WORD.search(message, at)):
        if (line_end >= 0 and word.start() > line_end) or looks_like_path(word.group()) or word.group()[0] in "'\"":
            break
        at = word.end()
        ends.append(at - (len(word.group()) - len(word.group().rstrip(_BEHIND))))
    existing = next((one for one in ends if existing_file(message[start:one])), None)
    if existing is not None or existing_file(first.rstrip(_BEHIND)):
        return existing
    return next((one for one in ends if has_picture_suffix(message[start:one])), None)


def _trimmed(raw: str, start: int) -> Iterator[_Mention]:
    """A word as a mention, or as several when it is paths with commas between them. Punctuation around a path that
    does not belong to its name is part of the mention but not of the path."""
    end = start + len(raw)
    if existing_file(raw):
        yield _Mention(start, end, raw)
        return
    pieces = [piece for piece in re.split(r"[,;]", raw) if piece]
    if len(pieces) > 1 and not _ADDRESS.match(raw) and all(existing_file(one) or picture_name(one) for one in pieces):
        at = start
        for piece in pieces:
            at = raw.index(piece, at - start) + start
            yield _Mention(at, at + len(piece), piece)
            at += len(piece)
        return
    path = raw.lstrip(_BEFORE)
    while path and not existing_file(path) and path[-1] in _BEHIND:
        path = path[:-1]
    yield _Mention(start, end, path or raw)


def picture_name(text: str) -> bool:
    """Whether a word ends like the name of a picture, behind its punctuation."""
    return has_picture_suffix(text.strip(_BEFORE + _BEHIND + "'\""))
