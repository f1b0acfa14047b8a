"""What a cache's keys begin with: the model and the compiled code, whatever they are called and wherever they lie.

Of a model the header and a sample of every tensor are read, not all of the weights: that takes milliseconds where all
of a large file would take many seconds. Files that differ between the samples only do not come from a quantizer. Code
is read whole: another compiler, or one other instruction in a kernel, can give other bits under the same version.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._core import GGUFFile

_SAMPLE = 4096
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def model_digest(gguf: GGUFFile) -> bytes:
    """SHA-256 over the header, the tensor directory and the beginning, middle and end of every tensor, of all shards.

    A file that is gone since it was opened has the digest of its path.
    """
    digest = hashlib.sha256()
    try:
        for number in range(gguf.n_shards):
            tensors = sorted((one.offset, one.n_bytes, one.name) for one in gguf.tensors if one.shard == number)
            with open(_shard_path(gguf.path, number), "rb") as file:
                size = file.seek(0, 2)
                digest.update(b"%d %d " % (size, len(tensors)))
                file.seek(0)
                digest.update(file.read(tensors[0][0] if tensors else size))
                for offset, n_bytes, name in tensors:
                    digest.update(b"%d %d %s " % (offset, n_bytes, name.encode("utf-8", "surrogateescape")))
                    for start in sorted({0, max(n_bytes // 2 - _SAMPLE // 2, 0), max(n_bytes - _SAMPLE, 0)}):
                        file.seek(offset + start)
                        digest.update(file.read(min(_SAMPLE, n_bytes - start)))
    except OSError:
        return hashlib.sha256(gguf.path.encode("utf-8", "surrogateescape")).digest()
    return digest.digest()


@lru_cache
def code_digest(library: str) -> bytes:
    """SHA-256 of the compiled core in the file `library` and of the backends that lie beside it, as they are on the
    first call. One that cannot be read counts by its path."""
    digest = hashlib.sha256()
    for file in [Path(library), *sorted(Path(library).parent.glob("libkimi_*.so"))]:
        try:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError:
            digest.update(os.fsencode(file))
    return digest.digest()


def _shard_path(path: str, number: int) -> str:
    return _SHARD.sub(lambda found: f"-{number + 1:05}-of-{found[1]}.gguf", path)
