"""A file's name with a part of the file behind it: `report.pdf#3,7-9`, `talk.mp4#10:00-20:00`. Knows neither kind."""

from __future__ import annotations

import os
import re

_PART = re.compile(r"\S*|(?:last|[\d,:.\s-])*")  # words behind it are no part, but what somebody says about the file


def split(name: str) -> tuple[str, str | None]:
    """("report.pdf#3,7-9") -> ("report.pdf", "3,7-9"). A file that really has the whole name wins; where no file stands
    before the "#", the whole is the name."""
    path, mark, part = name.rpartition("#")
    if not mark or not path or not _PART.fullmatch(part) or "\0" in name:
        return name, None
    if os.path.exists(name) or not os.path.exists(os.path.expanduser(path)):
        return name, None
    return path, part
