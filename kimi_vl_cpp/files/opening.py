"""Opens a GGUF file by a path as users write it, and names files that are only a piece of one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .._core import GGUFFile
from ..errors import BadModelFile

_PIECE = re.compile(
    r"""(?ix) (?: [.\-_] (?: part[-_.]?\d+ (?:[-_.]?of[-_.]?\d+)? | part-?[a-z]{2} | split-?[a-z]{1,2} )
              | [.\-_] \d{1,5} of \d{1,5}
              | \.gguf [.\-_]? (?: \d{1,5} | [a-z]{2} | part-?[a-z] )
              | -\d{5}-of-\d{5} ) (?:\.gguf)? $"""
)
_UNFINISHED = re.compile(r"(?i)\.(?:part|partial|crdownload|download|incomplete|aria2|tmp|!ut|opdownload)$")


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """The file's directory. Raises BadModelFile with what the core says; for a file whose name calls it a piece of
    another or an unfinished download, with what to do about that."""
    try:
        return GGUFFile(os.fspath(path))
    except BadModelFile as failure:
        advice = _advice(Path(path).name)
        if not advice or not failure.code.startswith("gguf.") or failure.code == "gguf.split_missing":
            raise
        raise BadModelFile(f"{failure}. {advice}", failure.code) from None


def _advice(name: str) -> str:
    if _UNFINISHED.search(name):
        return "Its name says that the download is not finished: let it finish, or download the file again"
    if _PIECE.search(name):
        return (
            "Its name says that it is one piece of a file that was cut: join all pieces in order into one file "
            "(cat NAME.gguf.part* > NAME.gguf) and give that"
        )
    return ""
