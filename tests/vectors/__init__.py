"""Comparisons of outputs: relative errors with the worst coordinate, and the stored vectors (README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image


def relative_error(got, want) -> float:
    """Norm of the difference over the norm of `want`."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def assert_near(got, want, bar: float, what: str = "") -> None:
    """Relative error of the whole array at most `bar`; says where the worst value is."""
    assert np.shape(got) == np.shape(want), f"{what}: shape {np.shape(got)}, expected {np.shape(want)}"
    assert np.isfinite(got).all(), f"{what}: not finite at {tuple(int(i[0]) for i in np.nonzero(~np.isfinite(got)))}"
    error = relative_error(got, want)
    if error > bar:
        difference = np.abs(np.asarray(got, np.float64) - want)
        at = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
        raise AssertionError(
            f"{what}: relative error {error:.2e}, at most {bar:.0e} allowed; worst at {at}: got {got[at]:.7g}, "
            f"expected {want[at]:.7g}"
        )


def assert_same_bits(got, want, what: str = "") -> None:
    """float32 arrays equal bit by bit."""
    got, want = np.ascontiguousarray(got, np.float32), np.ascontiguousarray(want, np.float32)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    different = np.nonzero(got.view(np.uint32) != want.view(np.uint32))
    if len(different[0]):
        at = tuple(int(i[0]) for i in different)
        raise AssertionError(
            f"{what}: {len(different[0])} of {got.size} values differ, first at {at}: {got[at]!r}, {want[at]!r}"
        )


def agreeing(got, want) -> int:
    """How many leading ids agree."""
    different = np.nonzero(np.asarray(got)[: len(want)] != np.asarray(want)[: len(got)])[0]
    return int(different[0]) if len(different) else min(len(got), len(want))


# Which rows and columns of the full outputs are stored: as in check.py beside the vectors.


def stored_rows(n: int, k: int = 16):
    return np.unique(np.linspace(0, n - 1, min(n, k)).round().astype(int))


def stored_columns(n_vocab: int):
    return np.sort(np.random.default_rng(n_vocab).permutation(n_vocab)[:96])


VECTORS = Path(__file__).resolve().parent
PROMPTS = ("text", "mm", "long")


@dataclass
class Vectors:
    """The stored vectors of one checkpoint, its prompts and its pictures. folder: what make_tiny.py wrote."""

    folder: Path
    config: str

    @cached_property
    def stored(self):
        with np.load(VECTORS / f"ref-{self.config}.npz") as file:
            return dict(file)

    @cached_property
    def prompts(self):
        return json.loads((self.folder / "prompts.json").read_text())

    @property
    def pictures(self) -> list[str]:
        """Names, height x width."""
        return list(self.prompts["images"])

    def picture(self, name: str):
        with Image.open(self.folder / f"image-{name}.png") as image:
            return np.array(image)

    def parts(self, prompt: str, encode_image):
        """Ids and embeddings of a prompt."""
        if prompt != "mm":
            return [np.array(self.prompts[prompt], np.int32)]
        name = self.prompts["mm_image"].removeprefix("image-").removesuffix(".png")
        ids = [np.array(self.prompts[key], np.int32) for key in ("mm_pre", "mm_post")]
        return [ids[0], encode_image(self.picture(name)), ids[1]]

    def text_file(self, kind: str) -> Path:
        """kind: f32, f16, f32-oldkvb, q8_0 or q4_k_m."""
        return self.folder / f"text-{kind}.gguf"

    def mmproj_file(self, kind: str) -> Path:
        return self.folder / f"mmproj-{kind}.gguf"

    def check_rows(self, got, name: str, bar: float, kind: str = "ref") -> None:
        """got: the full tower/HxW or proj/HxW."""
        key = f"{kind}:{name}"
        assert got.shape == tuple(self.stored[key + "/shape"])
        assert_near(got[stored_rows(len(got))], self.stored[key], bar, key)

    def check_logits(self, logits, prompt: str, bar: float, kind: str = "ref") -> None:
        """logits: [n_positions, n_vocab]."""
        rows = stored_rows(len(logits)) if prompt == "long" else slice(None)
        got = logits[rows][:, stored_columns(logits.shape[1])]
        assert_near(got, self.stored[f"{kind}:{prompt}/cols"], bar, f"{self.config} {kind}:{prompt}")

    def of(self, kind: str, prompt: str, what: str):
        """A stored array: argmax, lse, top5, ids, gaps, margin."""
        return self.stored[f"{kind}:{prompt}/{what}"]
