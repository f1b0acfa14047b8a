"""What a comparison found: numbers for programs, and the one sentence for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kimi_vl_cpp.evaluation.run import wilson
from kimi_vl_cpp.wording import plural

from .weights import FileFacts, WeightErrors

VERDICTS = ((0.99, "answers practically like"), (0.95, "stays close to"), (0.85, "drifts noticeably from"))
LAST_VERDICT = "answers differently from"
"""By the share of places with the same likeliest token: at least 99, 95, 85 %, and below."""


@dataclass(frozen=True)
class Divergence:
    """Of a number of places: KL(reference || candidate) in nats, and how often both think the same token likeliest,
    with its 95 % interval (Wilson). perplexity: of the texts, reference and candidate; None for answers."""

    n: int
    mean: float
    median: float
    p90: float
    p99: float
    max: float
    top: float
    top_low: float
    top_high: float
    perplexity: tuple[float, float] | None = None

    @classmethod
    def of(
        cls,
        kl: NDArray[np.float64],
        same_top: NDArray[np.bool_],
        targets: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    ) -> Divergence | None:
        """None for no places. targets: log-probabilities of what came next, reference and candidate."""
        if not len(kl):
            return None
        median, p90, p99 = (float(q) for q in np.quantile(kl, (0.5, 0.9, 0.99)))
        n_same = int(same_top.sum())
        low, high = wilson(n_same, len(kl))
        pair = None
        if targets is not None and len(targets[0]):
            pair = tuple(math.exp(min(700.0, -float(t.mean()))) for t in targets)
        return cls(
            len(kl), float(kl.mean()), median, p90, p99, float(kl.max()), n_same / len(kl), low, high,
            None if pair is None else (pair[0], pair[1]),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values: dict[str, Any] = {
            "n": self.n,
            "kl": {"mean": self.mean, "median": self.median, "p90": self.p90, "p99": self.p99, "max": self.max},
            "top1": {"share": self.top, "low": self.top_low, "high": self.top_high},
        }
        if self.perplexity is not None:
            values["perplexity"] = {"reference": self.perplexity[0], "candidate": self.perplexity[1]}
        return values


@dataclass(frozen=True)
class PromptResult:
    """One prompt. embedding: relative error of the picture's embeddings; answers: the reference's and the candidate's
    (greedy), same: how many characters they begin with in common. Both None for texts."""

    name: str
    is_picture: bool
    question: str
    divergence: Divergence
    embedding: float | None = None
    answers: tuple[str, str] | None = None

    @property
    def same(self) -> int:
        """Characters that both answers begin with."""
        a, b = self.answers or ("", "")
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@dataclass(frozen=True)
class Speed:
    """Tokens a second while comparing: one run, on this machine, while it did whatever else it did. None: too few."""

    prefill: float | None
    decode: float | None


@dataclass(frozen=True)
class ModelFacts:
    """A model that took part."""

    path: Path
    name: str
    label: str
    facts: FileFacts
    types: dict[str, int]
    speed: Speed


@dataclass(frozen=True)
class Candidate:
    """A model against the reference. embedding: over all pictures, |error| / |reference|."""

    model: ModelFacts
    overall: Divergence
    text: Divergence | None
    picture: Divergence | None
    embedding: float | None
    prompts: tuple[PromptResult, ...]
    weights: WeightErrors | None

    @property
    def n_same_answers(self) -> int:
        """Pictures with the reference's answer, letter for letter."""
        return sum(p.answers is not None and p.answers[0] == p.answers[1] for p in self.prompts)


@dataclass(frozen=True)
class CompareReport:
    """thumbnails: prompt name -> the bytes of a PNG or JPEG. experts: layer -> tokens of each expert, int64
    [n_experts]."""

    reference: ModelFacts
    candidates: tuple[Candidate, ...]
    n_texts: int
    n_pictures: int
    n_left_out: int
    data: str
    stored_as: str
    n_answer: int
    skipped: tuple[tuple[Path, str], ...]
    warnings: tuple[str, ...]
    thumbnails: dict[str, bytes] = field(repr=False)
    experts: dict[int, NDArray[np.int64]] = field(repr=False)
    seconds: float

    def prompts(self) -> str:
        """ "5 texts and 1 picture"."""
        counts = ((self.n_texts, "text"), (self.n_pictures, "picture"))
        return " and ".join(plural(n, word) for n, word in counts if n)

    def verdict(self) -> str:
        """One sentence for all candidates."""
        if len(self.candidates) == 1:
            return self.sentence(self.candidates[0])
        best = max(self.candidates, key=lambda c: (_judged(c).top, -_judged(c).mean, -c.model.facts.n_bytes))
        small = min(self.candidates, key=lambda c: c.model.facts.n_bytes)
        if best is small:
            return f"Of {len(self.candidates)} candidates the smallest is the best one: {self.sentence(best)}"
        return (
            f"Of {len(self.candidates)} candidates {best.model.label} stays nearest "
            f"({percent(_judged(best).top)} the same next token, {self._share(best)} of the size); "
            f"the smallest, {small.model.label}, {_word(small)} {self.reference.label} "
            f"({percent(_judged(small).top)}, {self._share(small)})."
        )

    def sentence(self, candidate: Candidate) -> str:
        """What the user should know of one candidate."""
        judged, where = _judged(candidate), "on pictures" if candidate.picture else "on texts"
        return (
            f"{candidate.model.label} {_word(candidate)} {self.reference.label} {where}: the same next token at "
            f"{percent(judged.top)} of {judged.n} places, mean KL {judged.mean:.2g}, at {self._share(candidate)} of "
            "the size."
        )

    def _share(self, candidate: Candidate) -> str:
        return percent(candidate.model.facts.n_bytes / self.reference.facts.n_bytes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON. What the clock says is under "seconds" and "speed"; everything else is the same in every run."""
        return {
            "verdict": self.verdict(),
            "reference": _model(self.reference),
            "data": {
                "source": self.data,
                "texts": self.n_texts,
                "pictures": self.n_pictures,
                "left_out": self.n_left_out,
                "answer_tokens": self.n_answer,
                "skipped": [{"file": str(path), "why": why} for path, why in self.skipped],
            },
            "stored_as": self.stored_as,
            "candidates": [_candidate(c, self.reference) for c in self.candidates],
            "experts": {str(layer): counts.tolist() for layer, counts in self.experts.items()},
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        }


def _judged(candidate: Candidate) -> Divergence:
    """Pictures decide where there are any."""
    return candidate.picture or candidate.overall


def _word(candidate: Candidate) -> str:
    top = _judged(candidate).top
    return next((words for least, words in VERDICTS if top >= least), LAST_VERDICT)


def percent(share: float) -> str:
    """0.9876 -> "98.8 %"; never 100 % for what is less."""
    value = 100 * share
    shown = f"{value:.1f}" if value < 99.95 or value >= 100 else "99.9"
    return f"{shown.removesuffix('.0')} %"


def _model(model: ModelFacts) -> dict[str, Any]:
    return {
        "path": str(model.path),
        "name": model.name,
        "label": model.label,
        "n_bytes": model.facts.n_bytes,
        "bits_per_weight": round(model.facts.bits_per_weight, 4),
        "tensors_by_type": model.types,
        "speed": {"prefill_tokens_per_s": model.speed.prefill, "decode_tokens_per_s": model.speed.decode},
    }


def _candidate(candidate: Candidate, reference: ModelFacts) -> dict[str, Any]:
    weights = candidate.weights
    return {
        **_model(candidate.model),
        "size_ratio": candidate.model.facts.n_bytes / reference.facts.n_bytes,
        "overall": candidate.overall.to_dict(),
        "text": candidate.text.to_dict() if candidate.text else None,
        "picture": candidate.picture.to_dict() if candidate.picture else None,
        "embedding_error": candidate.embedding,
        "same_answers": candidate.n_same_answers,
        "prompts": [_prompt(prompt) for prompt in candidate.prompts],
        "weights": None
        if weights is None
        else {
            "by_role": {name: finite(error) for name, error in weights.by_role().items()},
            "text_by_layer": {str(layer): finite(e) for layer, e in weights.by_layer(False).items()},
            "vision_by_layer": {str(layer): finite(e) for layer, e in weights.by_layer(True).items()},
            "tensors": [
                {"name": t.name, "types": [t.type_a, t.type_b], "relative_error": finite(t.relative)}
                for t in weights.tensors
            ],
            "not_in_both": list(weights.unmatched),
        },
    }


def _prompt(prompt: PromptResult) -> dict[str, Any]:
    values: dict[str, Any] = {"name": prompt.name, "picture": prompt.is_picture, **prompt.divergence.to_dict()}
    if prompt.answers is not None:
        values["question"] = prompt.question
        values["answers"] = {"reference": prompt.answers[0], "candidate": prompt.answers[1], "same": prompt.same}
        values["embedding_error"] = prompt.embedding
    return values


def finite(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return value if math.isfinite(value) else None


def labels(paths: Sequence[Path]) -> list[str]:
    """Short names that distinguish the files: without what they begin with in common, "Kimi-VL-Q4_K_M" is "Q4_K_M"."""
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        return [f"{i + 1}: {stem}" for i, stem in enumerate(stems)]
    n_common = next((i for i, letters in enumerate(zip(*stems, strict=False)) if len(set(letters)) > 1), 0)
    cut = max(stems[0].rfind(sign, 0, n_common) for sign in "-.") + 1
    return [stem[cut:] for stem in stems] if all(len(stem) > cut for stem in stems) else stems
