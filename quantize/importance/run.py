"""make_imatrix(): runs a model over texts and pictures and writes down what its matrices were multiplied with.

The picture is prefilled apart from the tokens around it, so that it is known which expert saw how many tokens of texts,
of pictures and of answers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kimi_vl_cpp import _core
from kimi_vl_cpp.cache.keys import Picture
from kimi_vl_cpp.errors import BadModelFile, BadRequest, shown
from kimi_vl_cpp.files.input_file import InputFile
from kimi_vl_cpp.generation.raw import RawSession
from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.types import Progress

from ..output.write import check_output
from ..source.gguf import shard_paths
from .coverage import FEW_TOKENS, Coverage
from .data import Data, Prompt, load_data, picture_pixels
from .file import Imatrix, expert_stacks, write_imatrix

PathLike = str | os.PathLike[str]
STAGE_DATA, STAGE = "imatrix_data", "imatrix"
DEFAULT_CTX, DEFAULT_ANSWER = 512, 32
PREDICTED = 64
"""Last tokens of a text of which the output matrix is seen too; of pictures, of the last and of the answer."""

KINDS = ("text", "picture", "answer")

# What a token costs beside a token of text, on CPUs: for the time that is left.
_COST_PATCH, _COST_ANSWER = 0.25, 4.0


@dataclass(frozen=True)
class ImatrixReport:
    """What a run did. tokens: of texts (with questions and the template), pictures, answers. skipped: (file, why)."""

    path: Path
    n_bytes: int
    model: str
    n_texts: int
    n_pictures: int
    n_left_out: int
    tokens: tuple[int, int, int]
    n_tensors: int
    coverage: Coverage
    skipped: tuple[tuple[Path, str], ...]
    warnings: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": str(self.path),
            "n_bytes": self.n_bytes,
            "model": self.model,
            "prompts": {"texts": self.n_texts, "pictures": self.n_pictures, "left_out": self.n_left_out},
            "tokens": dict(zip(KINDS, self.tokens, strict=True)),
            "n_tensors": self.n_tensors,
            "coverage": self.coverage.to_dict(),
            "skipped": [{"file": str(path), "why": why} for path, why in self.skipped],
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        }


def make_imatrix(
    model: PathLike,
    data: PathLike,
    dst: PathLike,
    *,
    mmproj: PathLike | None = None,
    ctx: int = DEFAULT_CTX,
    answer: int = DEFAULT_ANSWER,
    chunks: int | None = None,
    few_tokens: int = FEW_TOKENS,
    in_token_limit: int | None = None,
    n_threads: int | None = None,
    isa: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
) -> ImatrixReport:
    """Makes an importance matrix from a run of `model` over what is in `data`, and writes it to `dst`.

    model, mmproj, n_threads, isa, in_token_limit: as of KimiVL.
    data: a folder with texts (.txt, .md) and pictures, or one such file; see imatrix_data.
    dst: the file to write. It is there at the end or not at all.
    ctx: tokens of text in a prompt; longer texts are cut. answer: tokens that the model answers to every prompt
        (greedy), which are seen too. chunks: prompts at most.
    few_tokens: experts that saw fewer are listed in the report.
    force: replace an existing `dst`.
    progress: progress(stage, done, total); stage is "load", "imatrix_data" (in files) or "imatrix" (in tokens, patches
        and answers by what they cost). An exception from it stops the run, and nothing is written.

    The same inputs and options give the same bytes for any n_threads.

    Raises BadRequest ("imatrix.data", "imatrix.option", "quantize.output_exists", "quantize.output_is_input"), what
    KimiVL raises, BadModelFile "imatrix.not_finite" when the model computes infinities.
    """
    began = time.perf_counter()
    _check_options(ctx, answer, chunks, few_tokens)
    data_path, out = Path(os.fspath(data)), Path(os.fspath(dst))
    check_output(out, [], False, force)
    n_ctx = ctx + answer + 256
    with KimiVL(
        model,
        mmproj,
        n_ctx=64,  # of conversations, which there are none of
        n_threads=n_threads,
        isa=isa,
        in_token_limit=in_token_limit,
        image_cache_bytes=0,
        progress=progress,
    ) as opened:
        opened.progress = None
        room = opened.context_length
        if n_ctx > room:
            raise BadRequest(
                f"ctx is {ctx} and answer is {answer}, together with the chat template more than the model's "
                f"context of {room}: make them smaller",
                "imatrix.option",
            )
        real = check_output(out, _inputs(opened), False, force)
        found = load_data(opened, data_path, ctx, answer, chunks, _stage(progress, STAGE_DATA))
        _check_not_data(real, data_path)
        run = _Run(opened, found, ctx, answer, progress)
        imatrix, coverage, warnings = run.run(few_tokens, data_path.resolve().name)
        n_bytes = write_imatrix(real, imatrix)
        assert imatrix.tokens is not None
        return ImatrixReport(
            path=out,
            n_bytes=n_bytes,
            model=opened.name,
            n_texts=found.n_texts,
            n_pictures=found.n_pictures,
            n_left_out=found.n_left_out,
            tokens=imatrix.tokens,
            n_tensors=len(imatrix.sums),
            coverage=coverage,
            skipped=tuple(found.skipped),
            warnings=tuple(warnings),
            seconds=time.perf_counter() - began,
        )


@dataclass
class _Run:
    """The prompts of one run, one after another."""

    model: KimiVL
    data: Data
    ctx: int
    n_answer: int
    progress: Progress | None
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    counts: dict[str, dict[str, NDArray[np.int64]]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    _done: float = 0.0

    def run(self, few_tokens: int, dataset: str) -> tuple[Imatrix, Coverage, list[str]]:
        """The sums of all prompts, which experts saw how many tokens, and what the user should know."""
        model = self.model
        self._importance = model.raw.observe()
        try:
            self._seen = self._expert_counts()
            self._total = sum(self._cost(prompt) for prompt in self.data.prompts)
            longest = max(prompt.n_tokens for prompt in self.data.prompts) + self.n_answer
            session = model.raw.session(longest)
            for prompt in self.data.prompts:
                before = self._done
                session.truncate(0)
                self._prompt(session, prompt)
                self._done = before + self._cost(prompt)
                self._report(0)
            with np.errstate(over="ignore"):
                sums = {name: (s.astype(np.float32), n) for name, (s, n) in self._importance.sums().items()}
        finally:
            self._importance.close()
        for name, (values, _) in sums.items():
            if not np.isfinite(values).all():
                raise BadModelFile(
                    f"{model.files.text}: what {name} is multiplied with is not finite, or its squares are not: the "
                    "model is damaged (kimi-vl inspect --check lists its tensors)",
                    "imatrix.not_finite",
                )
        stacks = expert_stacks(sums)
        of_text = {name: self._of_kind("text", name, len(sums[name][1])) for name in stacks}
        imatrix = Imatrix(
            sums=sums,
            datasets=(dataset,),
            n_prompts=len(self.data.prompts),
            prompt_tokens=self.ctx,
            model=model.name,
            tokens=(self.tokens["text"], self.tokens["picture"], self.tokens["answer"]),
            text_counts=of_text,
        )
        coverage = Coverage.of(imatrix, few_tokens)
        return imatrix, coverage, self._warnings(coverage)

    def _warnings(self, coverage: Coverage) -> list[str]:
        found = []
        if self.model.has_vision and not self.data.n_pictures:
            found.append(
                "no picture was among the data: what pictures ask of the experts and of the vision part is not in "
                "this file"
            )
        unseen = sum(layer.n_unseen for layer in coverage.layers)
        if unseen:
            found.append(f"{unseen} experts saw no token at all: more and more varied data would say what they need")
        return found

    def _prompt(self, session: RawSession, prompt: Prompt) -> None:
        for index, part in enumerate(prompt.parts):
            if isinstance(part, Picture):
                pixels = picture_pixels(self.model, prompt)
                embeddings = self.model.raw.encode_image(pixels, self._tick(prompt.n_patches * _COST_PATCH))
                self._done += prompt.n_patches * _COST_PATCH
                self._prefill(session, embeddings, "picture", "none")
                continue
            ids = np.asarray(part, np.int32)
            is_last = index == len(prompt.parts) - 1
            n_last = min(len(ids), 1 if prompt.is_picture else PREDICTED) if is_last else 0
            if len(ids) > n_last:
                self._prefill(session, ids[: len(ids) - n_last], "text", "none")
            if n_last:
                self._prefill(session, ids[len(ids) - n_last :], "text", "all")
        sampler = _core.Sampler(temperature=0.0)
        for _ in range(self.n_answer):
            token = session.sample(sampler)
            if token in self.model.loaded.tokenizer.stop_ids:
                break
            session.decode(token)
            self.tokens["answer"] += 1
            self._done += _COST_ANSWER
            self._report(0)
        self._count("answer")

    def _prefill(self, session: RawSession, part: NDArray[Any], kind: str, logits: Any) -> None:
        session.prefill([part], logits, self._tick(len(part)))
        self.tokens[kind] += len(part)
        self._done += len(part)
        self._count(kind)

    def _count(self, kind: str) -> None:
        """Books what experts saw since the last call."""
        now = self._expert_counts()
        for name, counts in now.items():
            new = counts - self._seen[name] if name in self._seen else counts
            have = self.counts[kind].get(name)
            self.counts[kind][name] = new if have is None else have + new
        self._seen = now

    def _expert_counts(self) -> dict[str, NDArray[np.int64]]:
        counts = self._importance.counts()
        return {name: counts[name] for name in expert_stacks(counts)}

    def _of_kind(self, kind: str, name: str, n_experts: int) -> NDArray[np.int64]:
        found = self.counts[kind].get(name)
        return np.zeros(n_experts, np.int64) if found is None else found

    def _cost(self, prompt: Prompt) -> float:
        return prompt.n_tokens + prompt.n_patches * _COST_PATCH + self.n_answer * _COST_ANSWER

    def _tick(self, cost: float) -> Callable[[int, int], None]:
        def tick(done: int, total: int) -> None:
            self._report(cost * done / max(total, 1))

        return tick

    def _report(self, extra: float) -> None:
        if self.progress is not None:
            self.progress(STAGE, min(round(self._done + extra), round(self._total)), round(self._total))


def _stage(progress: Progress | None, stage: str) -> Callable[[int, int], None]:
    return (lambda done, total: None) if progress is None else (lambda done, total: progress(stage, done, total))


def _inputs(model: KimiVL) -> list[InputFile]:
    """The files of the model, closed: for their identity."""
    paths = shard_paths(model.loaded.engine.gguf)
    if model.files.mmproj is not None:
        paths.append(model.files.mmproj)
    files = [InputFile(path, "GGUF file") for path in paths]
    for file in files:
        file.close()
    return files


def _check_not_data(out: Path, data: Path) -> None:
    """The data are not to be replaced by what is made of them."""
    if not out.exists():
        return
    for folder, _, names in os.walk(data) if data.is_dir() else [(data.parent, (), [data.name])]:
        for name in names:
            path = Path(folder) / name
            if path.exists() and path.samefile(out):
                raise BadRequest(
                    f"{out}: is one of the files of {data}: give the output another path", "quantize.output_is_input"
                )


def _check_options(ctx: int, answer: int, chunks: int | None, few_tokens: int) -> None:
    for name, value, low in (
        ("ctx", ctx, 16),
        ("answer", answer, 0),
        ("chunks", chunks, 1),
        ("few_tokens", few_tokens, 1),
    ):
        if value is None and name == "chunks":
            continue
        if value.__class__ is not int or not low <= value <= 1 << 24:
            raise BadRequest(f"{name} is {shown(value)}, expected a whole number of at least {low}", "imatrix.option")
