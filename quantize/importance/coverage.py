"""Which experts saw how many tokens: what an importance matrix knows and what it does not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .file import PRIOR_TOKENS, Imatrix, expert_stacks

FEW_TOKENS = 64
"""Below it, more than a fifth of an expert's weights are not its own (PRIOR_TOKENS / (n + PRIOR_TOKENS))."""


@dataclass(frozen=True)
class LayerCoverage:
    """Tokens that each expert of a layer saw: of everything, and of texts alone (None: unknown). int64 [n_experts]."""

    layer: int
    counts: NDArray[np.int64]
    text: NDArray[np.int64] | None
    few_tokens: int

    @property
    def least(self) -> int:
        return int(self.counts.min())

    @property
    def median(self) -> int:
        return int(np.median(self.counts))

    @property
    def most(self) -> int:
        return int(self.counts.max())

    @property
    def n_few(self) -> int:
        return int((self.counts < self.few_tokens).sum())

    @property
    def n_unseen(self) -> int:
        return int((self.counts == 0).sum())

    @property
    def n_few_by_text(self) -> int | None:
        """How many would have seen too few without pictures and answers."""
        return None if self.text is None else int((self.text < self.few_tokens).sum())


@dataclass(frozen=True)
class Coverage:
    """Of all layers with experts."""

    layers: tuple[LayerCoverage, ...]
    few_tokens: int

    @staticmethod
    def of(imatrix: Imatrix, few_tokens: int = FEW_TOKENS) -> Coverage:
        layers = []
        for name in expert_stacks(imatrix.sums):
            layer = int(re.findall(r"\d+", name)[0])
            text = imatrix.text_counts.get(name)
            layers.append(LayerCoverage(layer, imatrix.sums[name][1], text, few_tokens))
        return Coverage(tuple(layers), few_tokens)

    @property
    def n_experts(self) -> int:
        return sum(len(layer.counts) for layer in self.layers)

    def sentences(self) -> list[str]:
        """What the table means, and what is done for experts that saw too few tokens."""
        if not self.layers:
            return ["the model has no experts: every matrix saw every token"]
        few, unseen = sum(layer.n_few for layer in self.layers), sum(layer.n_unseen for layer in self.layers)
        by_text = [layer.n_few_by_text for layer in self.layers]
        said = []
        if few == 0:
            said.append(f"each of the {self.n_experts:,} experts saw at least {self.few_tokens} tokens")
        else:
            said.append(
                f"{few:,} of {self.n_experts:,} experts saw fewer than {self.few_tokens} tokens: they lean on what "
                f"their layer's experts have in common, which counts as {PRIOR_TOKENS:.0f} tokens"
            )
        if unseen:
            said.append(f"{unseen:,} of them saw none and follow their layer alone")
        if all(n is not None for n in by_text):
            without = sum(n for n in by_text if n is not None)
            said.append(f"by the texts alone, {without:,} would have seen fewer than {self.few_tokens}")
        return said

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "few_tokens": self.few_tokens,
            "n_experts": self.n_experts,
            "layers": [
                {
                    "layer": layer.layer,
                    "least": layer.least,
                    "median": layer.median,
                    "most": layer.most,
                    "few": layer.n_few,
                    "unseen": layer.n_unseen,
                    "few_by_text": layer.n_few_by_text,
                }
                for layer in self.layers
            ],
        }
