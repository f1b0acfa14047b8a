"""Running tiny models through the engine and through the NumPy network, for the tests of the engine."""

from __future__ import annotations

import numpy as np
from reference.projector import project
from vectors import assert_near

from kimi_vl_cpp._core import Engine, Session
from kimi_vl_cpp.testing import TinyModel

# Relative errors allowed, of whole outputs against float64.
FLOAT = 1e-5
"""float32 arithmetic: a unit roundoff of 6e-8 through some fifty sums of up to a thousand terms; measured 3e-7 to 2e-6
on every instruction set. The same bar holds for 16-bit and quantized weights when activations stay float."""
CACHE_F16 = 3e-3
"""The same with latents and keys rounded to float16 in the cache (half a unit: 2.4e-4 of each); measured 2e-4 to 5e-4.
"""
PICTURE_BF16 = 1.5e-2
"""The tower beside a quantized text, where the instruction set multiplies bf16 (2^-9 of each number); measured 4e-3 to
8e-3."""
PICTURE_HALVES = 5e-4
"""What leaves the projector there, where the instruction set has no bf16: each number to the nearest half (2^-12 of
it on average); measured 2e-4."""
INT8 = 5e-2
"""Activations rounded to int8 per block, about 0.4 % of each value for each matrix; measured 2e-2 to 3e-2."""


def open_engine(model: TinyModel, isa: str = "auto", **options) -> Engine:
    return Engine(str(model.text), str(model.mmproj) if model.mmproj else None, isa=isa, **options)


def prefill(engine: Engine, parts, kv_type: str = "f32", **options) -> np.ndarray:
    """Logits of every position in a new session."""
    n = sum(len(part) for part in parts)
    return Session(engine, n + 1, kv_type).prefill(list(parts), logits="all", **options)


def decode(engine: Engine, ids, kv_type: str = "f32") -> np.ndarray:
    """Logits of every position, token by token."""
    session, rows = Session(engine, len(ids), kv_type), []
    for token in ids:
        session.decode(int(token))
        rows.append(session.logits)
    return np.stack(rows)


def check_cache_type(engine: Engine, ids, want: np.ndarray, kv_type: str, bar: float) -> None:
    """Logits over a cache of this type against `want`: a whole prompt, token by token, and in chunks."""
    assert_near(prefill(engine, [ids], kv_type), want, bar, "expanded")
    assert_near(decode(engine, ids[:150], kv_type), want[:150], bar, "token by token")
    for chunk in (3, 40):
        assert_near(prefill(engine, [ids], kv_type, chunk=chunk), want, bar, f"chunks of {chunk}")


def greedy(engine: Engine, parts, n: int, kv_type: str = "f32") -> list[int]:
    session = Session(engine, sum(len(part) for part in parts) + n, kv_type)
    logits, ids = session.prefill(list(parts)), []
    while len(ids) < n:
        ids.append(int(logits.argmax()))
        session.decode(ids[-1])
        logits = session.logits
    return ids


class Expected:
    """What the NumPy network says of a model, computed once for all instruction sets.

    The prompt is 30 tokens, a picture of 84 x 140 and 7 tokens; without vision 40 tokens.
    """

    PICTURES = ((28, 28), (28, 1400), (84, 140), (112, 112))  # heights and widths: grids of 2x2, 2x100, 6x10, 8x8

    def __init__(self, model: TinyModel, network) -> None:
        self.model = model
        self.towers, self.embeddings = {}, {}
        if model.config["vision"] is None:
            self.parts = [model.random_ids(40)]
        else:
            for size in self.PICTURES:
                pixels = model.random_picture(*size)
                self.towers[size] = network.vision_tower(pixels)
                grid = (side // network.vision["patch_size"] for side in size)
                self.embeddings[size] = project(self.towers[size], *grid, network.weights)
            picture = self.embeddings[84, 140].astype(np.float32)
            self.parts = [model.random_ids(30), picture, model.random_ids(7, seed=1)]
        timeline = network.timeline()
        self.logits = timeline.extend(self.parts)
        self.margin = float(timeline.margin.min())
        self.absorbed = network.logits([self.ids], absorbed=True)
        self.greedy, self.greedy_gap = [], np.inf
        row = self.logits[-1]
        while len(self.greedy) < 12:
            second, first = np.sort(row)[-2:]
            self.greedy_gap = min(self.greedy_gap, float(first - second))
            self.greedy.append(int(row.argmax()))
            row = timeline.extend([self.greedy[-1:]])[-1]

    @property
    def ids(self):
        return self.parts[0]

    def check_vision(self, engine: Engine, bar: float = FLOAT, projected: float | None = None) -> None:
        """The tower, and what the projector makes of it, whose bar may differ."""
        for size in self.towers:
            pixels = self.model.random_picture(*size)
            assert_near(engine.vision_tower(pixels), self.towers[size], bar, f"tower {size}")
            assert_near(engine.encode_image(pixels), self.embeddings[size], projected or bar, f"projector {size}")

    def check_text(self, engine: Engine, bar: float = FLOAT, kv_type: str = "f32") -> None:
        """Prefill and decode."""
        assert_near(prefill(engine, self.parts, kv_type), self.logits, bar, "prefill")
        assert_near(decode(engine, self.ids, kv_type), self.absorbed, bar, "decode")

    def check_greedy(self, engine: Engine) -> None:
        assert self.greedy_gap > 1e-3  # else the test would ask for more than float32 can say
        assert greedy(engine, self.parts, 12) == self.greedy
