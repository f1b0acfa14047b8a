"""Byte-level BPE as Kimi-VL's own tokenizer does it: the true pattern, by tiktoken, over pieces of bounded length.

Owns the pattern and the cutting of long texts. Knows nothing of special tokens: every text is plain text here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# At the top and not on first use: it starts what the interpreter refuses to start once its main thread has ended, and
# the first question may come from a thread that is still running then.
import tiktoken

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"  # Lm, Lo and M are in both classes: backtracking decides
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        _LEAD + _UPPER + "*" + _LOWER + "+" + _CONTRACTION,
        _LEAD + _UPPER + "+" + _LOWER + "*" + _CONTRACTION,
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""Where text is cut before merging (model-family constant; in the syntax of Rust's regex crate)."""

# The family's tokenizer encodes at most this many characters at once, and cuts longer runs of white space, or of
# anything else. The second also keeps the regex engine's stack (about a million white-space characters) out of reach.
MAX_CHUNK_CHARS = 400_000
MAX_RUN_CHARS = 25_000

_WHOLE_RUN = re.compile(r"\s+|\S+")  # Python's \s is str.isspace(), which is what the family's tokenizer asks


def cut_long_text(text: str) -> Iterator[str]:
    """The pieces that are encoded one by one; joined they are `text`. Most texts are one piece. Linear time."""
    for start in range(0, len(text), MAX_CHUNK_CHARS):
        yield from _cut_long_runs(text[start : start + MAX_CHUNK_CHARS])


def _cut_long_runs(chunk: str) -> Iterator[str]:
    start = 0
    if _may_have_long_run(chunk):
        for run in _WHOLE_RUN.finditer(chunk):
            for cut in range(run.start() + MAX_RUN_CHARS, run.end(), MAX_RUN_CHARS):
                yield chunk[start:cut]
                start = cut
    yield chunk[start:]


def _may_have_long_run(chunk: str) -> bool:
    # A run longer than the limit covers the whole of at least one window of half the limit, wherever it starts.
    half = MAX_RUN_CHARS // 2
    windows = range(0, len(chunk) - MAX_RUN_CHARS + half, half) if len(chunk) > MAX_RUN_CHARS else ()
    return any(_WHOLE_RUN.fullmatch(chunk, at, at + half) for at in windows)


class BytePairEncoder:
    """Text to token ids. ranks: bytes -> id of every normal token; must hold all 256 single bytes and no id twice."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        self._ranks = ranks
        self._encoding: tiktoken.Encoding | None = None

    def encode(self, text: str) -> list[int]:
        """text: without surrogates (UTF-8 encodable)."""
        encoding = self._encoding
        if encoding is None:
            encoding = self._encoding = self._build()
        ids: list[int] = []
        for piece in cut_long_text(text):
            ids += encoding.encode_ordinary(piece)
        return ids

    def _build(self) -> tiktoken.Encoding:
        # On first use: decoding and `inspect` do without. Two threads may both build one; either is good.
        return tiktoken.Encoding("kimi-vl", pat_str=PATTERN, mergeable_ranks=self._ranks, special_tokens={})
