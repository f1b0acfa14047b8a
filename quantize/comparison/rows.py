"""Log-probabilities of one model on the disk, and how far another model's are from them.

The rows of the reference are as wide as the vocabulary (655 KB as float32 for Kimi-VL), so they lie in a temporary file
and are read back in the order in which they were written. As float32 they are exact to 1e-7 of a logarithm; as float16
(where float32 would take more than FLOAT32_BYTES) every logarithm has a relative error of at most 2**-11, and rows are
brought back to a sum of one: a divergence from the reference is then off by at most 2**-10 times the entropy of the
reference and 2**-10 times the divergence, together about 0.002 nats where a text has 2 nats a token, usually far less,
because the errors of thousands of tokens have no common sign.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kimi_vl_cpp.errors import KimiVLError

FLOAT32_BYTES = 4 << 30
_AT_A_TIME = 8  # rows in float64 at once


class RowFile:
    """Rows of log-probabilities in a file that has no name: whatever ends the process takes it along.

    n_rows, n_vocab: what will be written. Raises KimiVLError "compare.disk_space" when the folder has no room for it.
    """

    def __init__(self, folder: Path, n_rows: int, n_vocab: int, dtype: Literal["auto", "float32", "float16"]) -> None:
        if dtype == "auto":
            dtype = "float32" if n_rows * n_vocab * 4 <= FLOAT32_BYTES else "float16"
        self.dtype: Any = np.dtype(dtype)
        self.n_vocab = n_vocab
        self.n_bytes = n_rows * n_vocab * self.dtype.itemsize
        self._folder = folder
        self._written = 0
        free = shutil.disk_usage(folder).free
        if free < self.n_bytes + (64 << 20):
            raise KimiVLError(
                f"{folder}: {free / 1e9:.1f} GB are free, but the reference's probabilities at {n_rows} places take "
                f"{self.n_bytes / 1e9:.1f} GB: use fewer prompts (chunks, --chunks) or another folder for temporary "
                "files (TMPDIR)",
                "compare.disk_space",
            )
        path = folder / "rows"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(path)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def write(self, rows: NDArray[np.float32]) -> None:
        """Appends rows [n, n_vocab]. Raises KimiVLError "compare.disk_space"."""
        view = np.ascontiguousarray(rows, self.dtype).view(np.uint8).reshape(-1).data
        try:
            while view:
                n = os.pwrite(self._fd, view, self._written)
                view, self._written = view[n:], self._written + n
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise KimiVLError(
                f"{self._folder}: {error.strerror}: use fewer prompts (--chunks) or another folder for temporary files "
                "(TMPDIR)",
                "compare.disk_space",
            ) from None

    def read(self, first: int, n: int) -> NDArray[Any]:
        """Rows [n, n_vocab] from row `first` on, as they are stored."""
        row = self.n_vocab * int(self.dtype.itemsize)
        raw = np.empty(n * row, np.uint8)
        view, at = raw.data, 0
        while at < len(raw):
            got = os.preadv(self._fd, [view[at:]], first * row + at)
            if got == 0:
                raise KimiVLError(f"{self._folder}: a temporary file was cut: start again", "compare.temporary")
            at += got
        rows: NDArray[Any] = raw.view(self.dtype).reshape(n, self.n_vocab)
        return rows


@dataclass(frozen=True)
class Judged:
    """Of every place: divergence [n] in nats, same_top [n], and the candidate's log-probability of the target [n]."""

    kl: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    target: NDArray[np.float64]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, n_vocab], computed in float64. logits: finite."""
    out = np.empty(logits.shape, np.float32)
    for at in range(0, len(logits), _AT_A_TIME):
        x = logits[at : at + _AT_A_TIME].astype(np.float64)
        x -= x.max(1, keepdims=True)
        x -= np.log(np.exp(x).sum(1, keepdims=True))
        out[at : at + _AT_A_TIME] = x
    return out


def judge(
    reference: NDArray[Any], top: NDArray[np.int64], logits: NDArray[np.float32], targets: NDArray[np.int64]
) -> Judged:
    """KL(reference || candidate) and whether both think the same token likeliest.

    reference: log-probabilities [n, n_vocab] as stored. top: its likeliest tokens [n], found before rounding. logits:
    the candidate's [n, n_vocab]. targets: [n].
    """
    n = len(logits)
    found = log_softmax(logits)
    kl = np.empty(n)
    for at in range(0, n, _AT_A_TIME):
        p = reference[at : at + _AT_A_TIME].astype(np.float64)
        if reference.dtype == np.float16:
            p -= np.log(np.exp(p).sum(1, keepdims=True))
        q = found[at : at + _AT_A_TIME].astype(np.float64)
        kl[at : at + _AT_A_TIME] = (np.exp(p) * (p - q)).sum(1)
    same = top == np.argmax(found, 1)
    return Judged(np.maximum(kl, 0.0), same, found[np.arange(n), targets].astype(np.float64))
