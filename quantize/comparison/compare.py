"""compare(): how far quantized models are from a reference, on texts and on pictures.

Owns the order of things: the models are opened one after another, the reference first, and what it thought waits in a
temporary file. Every model computes a place in the same way (the reference scores its own answer again, as the others
do), so that a model compared with itself is at a distance of exactly zero.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kimi_vl_cpp.errors import BadRequest, shown
from kimi_vl_cpp.files import model_files
from kimi_vl_cpp.types import Progress

from ..importance.file import expert_stacks, read_imatrix
from .data import Prompts, write_builtin
from .report import Candidate, CompareReport, Divergence, ModelFacts, PromptResult, labels
from .run import Found, Remembered, Run
from .weights import WeightErrors, check_same_vocabulary

PathLike = str | os.PathLike[str]
DEFAULT_CTX, DEFAULT_ANSWER = 256, 32


def compare(
    reference: PathLike,
    candidates: Sequence[PathLike],
    *,
    data: PathLike | None = None,
    imatrix: PathLike | None = None,
    ctx: int = DEFAULT_CTX,
    answer: int = DEFAULT_ANSWER,
    chunks: int | None = None,
    weights: bool = True,
    in_token_limit: int | None = None,
    n_threads: int | None = None,
    isa: str = "auto",
    store: Literal["auto", "float32", "float16"] = "auto",
    progress: Progress | None = None,
) -> CompareReport:
    """Compares models of one vocabulary with a reference.

    reference, candidates: GGUF files; vision files are found beside them as KimiVL finds them.
    data: a folder with texts (.txt, .md) and pictures (NAME.txt asks about NAME.png). None: a small set of our own.
    imatrix: an importance matrix, for how often experts were used.
    ctx: tokens of a stretch of text. answer: tokens that a model answers to a picture, greedy. chunks: prompts at most.
    weights: compare the weights too. store: how the reference's probabilities wait, see compare_rows.
    in_token_limit: as KimiVL's, for all models. None: the reference's for all.
    progress: progress(stage, done, total); an exception from it stops the run.

    The numbers do not depend on n_threads. Temporary files go with the end of the call, also when it is stopped.

    Raises BadRequest ("compare.vocabulary", "compare.data", "compare.option", "imatrix.data"), KimiVLError
    "compare.disk_space", and what KimiVL raises.
    """
    began = time.perf_counter()
    paths = [Path(os.fspath(path)) for path in (reference, *candidates)]
    _check_options(paths, ctx, answer, chunks)
    for path in paths[1:]:
        check_same_vocabulary(model_files.resolve(paths[0]).text, model_files.resolve(path).text)
    experts = {} if imatrix is None else _experts(imatrix)
    names = labels(paths)
    with tempfile.TemporaryDirectory(prefix="kimi-vl-compare-") as temporary:
        scratch = Path(temporary)
        if data is None:
            folder = scratch / "data"
            folder.mkdir()
            write_builtin(folder)
        else:
            folder = Path(os.fspath(data))
        options = {"n_threads": n_threads, "isa": isa}
        wanted = Prompts(folder, ctx, answer, chunks)
        run = Run(wanted, in_token_limit, options, store, scratch, len(paths), progress)
        try:
            first = run.reference(paths[0], names[0])
            passes = [run.candidate(path, name) for path, name in zip(paths[1:], names[1:], strict=True)]
            found = []
            for (model, prompts), path in zip(passes, paths[1:], strict=True):
                errors = run.weights(paths[0], path) if weights else None
                found.append(_candidate(model, prompts, run, errors))
        finally:
            run.close()
        return CompareReport(
            reference=first,
            candidates=tuple(found),
            n_texts=sum(not item.is_picture for item in run.items.items),
            n_pictures=sum(item.is_picture for item in run.items.items),
            n_left_out=run.items.n_left_out,
            data="built in" if data is None else str(folder),
            stored_as=run.stored_as,
            n_answer=answer,
            skipped=run.items.skipped,
            warnings=tuple(run.warnings),
            thumbnails=run.thumbnails,
            experts=experts,
            seconds=time.perf_counter() - began,
        )


def _candidate(model: ModelFacts, found: Sequence[Found], run: Run, errors: WeightErrors | None) -> Candidate:
    """The places of all prompts together."""
    prompts = []
    for item, known, one in zip(run.items.items, run.remembered, found, strict=True):
        divergence = _divergence([(known, one)], not item.is_picture)
        assert divergence is not None
        if not item.is_picture:
            prompts.append(PromptResult(item.name, False, "", divergence))
            continue
        embedding = None if not one.comparable else (one.squared / one.reference) ** 0.5 if one.reference else 0.0
        prompts.append(PromptResult(item.name, True, item.question, divergence, embedding, (known.answer, one.answer)))
    pairs = list(zip(run.items.items, run.remembered, found, strict=True))
    overall = _divergence([(known, one) for _, known, one in pairs], False)
    assert overall is not None
    with_embeddings = [one for one in found if one.comparable]
    norm = sum(one.reference for one in with_embeddings)
    return Candidate(
        model=model,
        overall=overall,
        text=_divergence([(known, one) for item, known, one in pairs if not item.is_picture], True),
        picture=_divergence([(known, one) for item, known, one in pairs if item.is_picture], False),
        embedding=(sum(one.squared for one in with_embeddings) / norm) ** 0.5 if norm else None,
        prompts=tuple(prompts),
        weights=errors,
    )


def _divergence(pairs: Sequence[tuple[Remembered, Found]], is_text: bool) -> Divergence | None:
    if not pairs:
        return None
    return Divergence.of(
        np.concatenate([one.kl for _, one in pairs]),
        np.concatenate([one.same_top for _, one in pairs]),
        (np.concatenate([known.target_logs for known, _ in pairs]), np.concatenate([o.target_logs for _, o in pairs]))
        if is_text
        else None,
    )


def _experts(path: PathLike) -> dict[int, NDArray[np.int64]]:
    """Layer -> tokens that each expert saw."""
    sums = read_imatrix(path).sums
    return {int(name.split(".")[1]): sums[name][1] for name in expert_stacks(sums)}


def _check_options(paths: Sequence[Path], ctx: int, answer: int, chunks: int | None) -> None:
    if len(paths) < 2:
        raise BadRequest("candidates: none was given, expected at least one model to compare", "compare.option")
    for name, value, low in (("ctx", ctx, 16), ("answer", answer, 1), ("chunks", chunks, 1)):
        if value is None and name == "chunks":
            continue
        if value.__class__ is not int or not low <= int(value or 0) <= 1 << 20:
            raise BadRequest(f"{name} is {shown(value)}, expected a whole number of at least {low}", "compare.option")
