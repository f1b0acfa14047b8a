"""The best types for a file of a given size: bits go where a measured error falls most for a byte.

Every matrix is quantized to every candidate type on a sample of its rows. What a type costs in quality is the relative
squared error of the decoded rows, weighted by the importance of columns where that is known, times how much the network
feels an error there (`SENSITIVITY`). From the smallest types on, the upgrades of all matrices are taken in the order of
error saved per byte, as many as fit: a larger budget keeps them all, so it is never worse.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kimi_vl_cpp.errors import BadRequest, shown
from kimi_vl_cpp.files.stored import FLOAT_TYPES

from .blocks import Importance, decode, encode, n_bytes
from .output.layout import ALIGNMENT, Layout
from .output.stream import float_rows
from .recipe import fallback, is_fixed
from .source.source import Source
from .source.tensor_map import Part, Target

CANDIDATES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
SAMPLE_ROWS = 48

# (part of the name, weight, why), the first that fits.
SENSITIVITY = (
    ("output", 2.0, "its error goes into the logits with no layer behind it to make up for it"),
    ("token_embd", 1.0, "it is where every layer begins, but one row of it at a time"),
    ("_exps", 0.4, "the error of one routed expert is averaged over those that answer with it, beside the shared ones"),
    ("attn_kv_a_mqa", 1.5, "its error stays in the cache and is seen by every later token"),
    ("", 1.0, "every token passes it"),
)

Chosen = tuple[Target, str, tuple[str, ...]]
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


@dataclass(frozen=True)
class Option:
    """A type for a matrix. n_bytes: with its padding in the file. error: relative, times the sensitivity."""

    type: str
    n_bytes: int
    error: float


@dataclass(frozen=True)
class Upgrade:
    """A step from one option of matrix `index` to a better one."""

    index: int
    to: Option
    more_bytes: int
    less_error: float


@dataclass(frozen=True)
class Fit:
    """chosen: with the types that fit. error: the sum over matrices. n_left: bytes of the budget that are left."""

    chosen: list[Chosen]
    error: float
    n_left: int
    is_largest: bool

    @property
    def summary(self) -> str:
        """One sentence for the user."""
        counts = Counter(kind for target, kind, _ in self.chosen if is_free(target))
        types = ", ".join(f"{n} of {kind}" for kind, n in counts.most_common())
        left = f"{self.n_left} bytes are left" + (", for no type is larger" if self.is_largest else "")
        return f"types chosen by measured error: {types}; predicted error {self.error:.4g}; {left}"


def parse_size(size: object) -> int:
    """Bytes of a size such as 8.0GB, 7GiB, 500MB or 1000000. Raises BadRequest "quantize.size"."""
    if type(size) is int and size > 0:
        return size
    text = size if isinstance(size, str) and len(size) < 40 else ""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in _UNITS or float(found[1]) <= 0:
        raise BadRequest(f"size: {shown(size)}, expected a size such as 8.0GB, 7.5GiB or 500MB", "quantize.size")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def fit(
    source: Source,
    chosen: Sequence[Chosen],
    has_rule: Callable[[str], bool],
    layouts: Sequence[Layout],
    allowed: int,
    importance: Importance | None,
    advance: Callable[[str, int], None],
) -> Fit:
    """The types under which the files have at most `allowed` bytes together.

    chosen: with the types of those that are not free. has_rule: whether a name's type is given. layouts: the files as
    they would be with the types of `chosen`. advance: called with name and elements after every matrix measured.
    Raises BadRequest "quantize.size" when the smallest types are too large, which names how large.
    """
    free = [i for i, (target, _, _) in enumerate(chosen) if is_free(target) and not has_rule(target.name)]
    n_overhead = sum(layout.n_bytes for layout in layouts)
    n_overhead -= sum(padded_bytes(chosen[i][1], chosen[i][0]) for i in free)
    options = {}
    for i in free:
        options[i] = measure(source, chosen[i][0], importance)
        advance(chosen[i][0].name, chosen[i][0].n_elems)
    now = {i: options[i][0] for i in free}
    smallest = n_overhead + sum(option.n_bytes for option in now.values())
    if smallest > allowed:
        raise BadRequest(
            f"size: {allowed} bytes are too few: with the smallest types the output has {smallest} bytes "
            f"({smallest / 1e9:.3g} GB)",
            "quantize.size",
        )
    left = allowed - smallest
    steps = sorted(
        (step for i in free for step in upgrades(i, options[i])),
        key=lambda step: (-step.less_error / step.more_bytes, step.index, step.to.n_bytes),
    )
    n_taken = 0
    for step in steps:
        if step.more_bytes > left:
            break
        now[step.index] = step.to
        left -= step.more_bytes
        n_taken += 1
    types = {i: option.type for i, option in now.items()}
    return Fit(
        [(target, types.get(i, kind), stored) for i, (target, kind, stored) in enumerate(chosen)],
        sum(option.error for option in now.values()),
        left,
        n_taken == len(steps),
    )


def upgrades(index: int, options: Sequence[Option]) -> list[Upgrade]:
    """The steps along the lower convex hull of error over bytes: each saves less for a byte than the one before."""
    hull: list[Option] = []
    for option in options:  # by bytes
        if hull and option.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return [
        Upgrade(index, after, after.n_bytes - before.n_bytes, before.error - after.error)
        for before, after in pairwise(hull)
    ]


def _slope(before: Option, after: Option) -> float:
    return (before.error - after.error) / (after.n_bytes - before.n_bytes)


def measure(source: Source, target: Target, importance: Importance | None) -> list[Option]:
    """The options of a matrix, smallest first, of different sizes."""
    n_cols = target.shape[-1]
    rows, matrices = sample(source, target)
    weights = None if importance is None else importance.rows(target.name)
    weight = sensitivity(target.name)
    found: dict[int, Option] = {}
    for kind in dict.fromkeys(fallback(candidate, n_cols) for candidate in CANDIDATES):
        size = padded_bytes(kind, target)
        option = Option(kind, size, weight * relative_error(kind, rows, matrices, weights))
        if size not in found or option.error < found[size].error:
            found[size] = option
    return [found[size] for size in sorted(found)]


def relative_error(
    kind: str, rows: NDArray[np.float32], matrices: NDArray[np.int64], weights: NDArray[np.float32] | None
) -> float:
    """Squared error of rows after `kind`, as a share of their squares. matrices: [n_rows], which matrix of a stack each
    row is of. weights: importance of columns, [n_cols] or [n_matrices, n_cols]."""
    error = total = 0.0
    for matrix in np.unique(matrices):
        part = np.ascontiguousarray(rows[matrices == matrix])
        columns = None if weights is None else weights if weights.ndim == 1 else weights[matrix]
        raw = encode(kind, part, 1, None if kind in FLOAT_TYPES else columns)
        made = decode(kind, raw.reshape(-1), part.size).reshape(part.shape)
        scale = np.ones(part.shape[1]) if columns is None else columns.astype(np.float64)
        error += float((np.square(made.astype(np.float64) - part) * scale).sum())
        total += float((np.square(part.astype(np.float64)) * scale).sum())
    return error / total if total > 0 else 0.0


def sample(source: Source, target: Target) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows spread evenly over a matrix or a stack of them: float32 [n, n_cols], and which matrix each is of."""
    n_cols = target.shape[-1]
    n_rows = target.n_elems // n_cols
    in_matrix = target.shape[-2]
    wanted = np.unique(np.linspace(0, n_rows - 1, min(SAMPLE_ROWS, n_rows)).astype(np.int64))
    rows = []
    first = 0
    for part in target.parts:
        n = part.n_rows * part.n_cols // n_cols
        here = wanted[(wanted >= first) & (wanted < first + n)] - first
        if len(here):
            if part.transposed:
                rows.append(float_rows(source, part).T[here])
            else:
                picked = (Part(part.source, part.first + int(row), 1, part.n_cols) for row in here)
                rows.append(np.concatenate([float_rows(source, one) for one in picked]))
        first += n
    return np.ascontiguousarray(np.concatenate(rows), np.float32), wanted // in_matrix


def padded_bytes(kind: str, target: Target) -> int:
    """Of a matrix in the file."""
    return -(-n_bytes(kind, target.n_elems) // ALIGNMENT) * ALIGNMENT


def sensitivity(name: str) -> float:
    """How much the network feels an error in a matrix."""
    stem = name.rpartition(".")[0]
    return next(weight for part, weight, _ in SENSITIVITY if (stem == part if part == "output" else part in stem))


def is_free(target: Target) -> bool:
    """Whether the budget may choose a type: matrices of the text model."""
    return not target.is_vision and not is_fixed(target.name, target.shape)
