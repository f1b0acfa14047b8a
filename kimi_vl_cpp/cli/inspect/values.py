"""`kimi-vl inspect --check`: looks at every value of every tensor for NaN and infinity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ... import _core
from ...files.rules import Finding
from ...wording import plural
from ..progress import Progress

if TYPE_CHECKING:
    from ..._core import GGUFFile

ELEMENTS_AT_ONCE = 1 << 20  # decoded together: 4 MB of floats, which stay in the cache


def check_values(gguf: GGUFFile, progress: Progress) -> list[Finding]:
    """Decodes every tensor and names those that hold NaN or infinity, with how many and where the first one is."""
    tensors = [t for t in gguf.tensors if t.supported]
    blocks = {f["name"]: (int(f["block_elems"]), int(f["block_bytes"])) for f in _core.formats()}
    total, done = sum(t.n_elems for t in tensors), 0
    findings: list[Finding] = []
    progress("checking the values", 0, total)
    for t in tensors:
        raw = gguf.tensor_raw(t.name).reshape(-1)
        elems, size = blocks[t.type]
        step = ELEMENTS_AT_ONCE // elems * elems
        n_bad, first = 0, 0
        for start in range(0, t.n_elems, step):
            n = min(step, t.n_elems - start)
            bad = _not_finite(_core.decode(t.type, raw[start // elems * size : (start + n) // elems * size], n))
            if bad.size:
                first = first if n_bad else start + int(bad[0])
                n_bad += int(bad.size)
            done += n
            progress("checking the values", done, total)
        if n_bad:
            where = [int(i) for i in np.unravel_index(first, t.shape)]
            what = f"{plural(n_bad, 'value')} not finite (NaN or infinity), the first at {where}"
            findings.append(Finding("error", f"tensor {t.name} ({t.type}): {what}; download the file again"))
    progress.clear()
    return findings


def _not_finite(values: NDArray[np.float32]) -> NDArray[np.intp]:
    """The places of NaN and infinity. A sum mostly shows that there are none, at a fraction of the cost."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum(dtype=np.float32)):
            return np.empty(0, np.intp)
    return np.flatnonzero(~np.isfinite(values))
