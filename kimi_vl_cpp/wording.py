"""How numbers and untrusted text are written in messages, tables and reports. Knows no stream and no terminal."""

from __future__ import annotations

# C0 controls but tab and newline, DEL, and C1 controls: a terminal could take them as commands.
_CONTROLS = {c: "�" for c in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if c not in (0x09, 0x0A)}
# The same in file names and metadata, which are shown on one line.
_CONTROLS_LINE = {**_CONTROLS, 0x09: "�", 0x0A: "�"}


def printable(text: str, *, one_line: bool = False) -> str:
    """`text` with control characters replaced by U+FFFD, and lone surrogates too (they cannot be encoded)."""
    text = text.translate(_CONTROLS_LINE if one_line else _CONTROLS)
    return text.encode("utf-8", "replace").decode("utf-8") if any(0xD800 <= ord(c) < 0xE000 for c in text) else text


def human_bytes(n: float) -> str:
    """10539572544 -> "10.54 GB" (powers of 1000, as disks and download pages count)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.0f} B" if unit == "B" else f"{n:.2f} {unit}" if n < 100 else f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.2f} TB"


def human_count(n: int) -> str:
    """163840 -> "163,840"."""
    return f"{n:,}"


def plural(n: int, word: str) -> str:
    """(1, "picture") -> "1 picture"; (3, "picture") -> "3 pictures"."""
    return f"{human_count(n)} {word}" + ("" if n == 1 else "s")


def duration(seconds: float) -> str:
    """12.3 -> "12 s"; 600 -> "10 min"."""
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{seconds / 60:.0f} min"


def columns(text: str) -> int:
    """Columns that `text`, on one line and without control characters, takes on a terminal: some characters take two,
    some none."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    return max(0, int(wcswidth(text)))


def cut(text: str, n: int) -> str:
    """The longest beginning of `text` that takes at most n columns."""
    if columns(text) <= n:
        return text
    end = min(len(text), n)
    while columns(text[:end]) > n:
        end -= 1
    return text[:end]


def padded(text: str, n: int) -> str:
    """`text` with spaces behind it up to n columns."""
    return text + " " * (n - columns(text))
