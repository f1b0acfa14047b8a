"""quantize(): a checkpoint folder or a GGUF file in, one GGUF file (or two) of the wanted types out.

Owns the order of things: open, plan, write.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from kimi_vl_cpp.adapters.opening import open_adapter
from kimi_vl_cpp.checks import expand_home
from kimi_vl_cpp.errors import BadRequest, shown
from kimi_vl_cpp.files.input_file import InputFile
from kimi_vl_cpp.types import Progress

from . import budget
from .opening import Model, open_model
from .output.stream import stream
from .output.write import OutputFile, check_space
from .plan import Plan, Request, Weights, make_plan
from .recipe import check_type, named_recipe, read_recipe, with_rules
from .report import FileReport, Report, TensorReport
from .source.source import Source

STAGE, MEASURING_STAGE = "quantize", "measure"
PathLike = str | os.PathLike[str]
_PROGRESS_S = 0.05


def quantize(
    src: PathLike,
    dst: PathLike,
    type: str = "Q4_K_M",
    *,
    vision: str | None = None,
    split: bool = False,
    types: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    recipe: PathLike | None = None,
    size: int | str | None = None,
    imatrix: PathLike | None = None,
    mmproj: PathLike | None = None,
    name: str | None = None,
    lora: Sequence[PathLike | tuple[PathLike, float]] = (),
    allow_requantize: bool = False,
    resume: bool = False,
    force: bool = False,
    n_threads: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Converts and quantizes a model; returns what it did.

    src: a folder with a Hugging Face checkpoint of Kimi-VL, or a GGUF file of one.
    dst: the GGUF file to write. It is there at the end or not at all.
    type: a mix (`recipe.MIXES`), or one of the project's recipes (`recipe.RECIPES`).
    vision: the type of the vision part's matrices. None: the recipe's, else that of a float `type`, else F16; a vision
        part that is already quantized stays as it is.
    split: two files as llama.cpp reads them: the text at `dst`, the vision part at `mmproj-` before its name.
    types: rules (pattern of tensor names, type), over the type's own; the last that fits wins.
    recipe: a TOML file with a recipe, in place of `type`.
    size: bytes that the output may have ("8.0GB"; both files of a split one together): the types of the text model are
        chosen by their measured error, in place of `type`; rules hold what they say.
    imatrix: a file of what each column of each matrix weighs, from `kimi-vl imatrix`.
    mmproj: the vision file of a GGUF `src`. None: the one inside it or beside it, as KimiVL finds it.
    name: general.name of the output. None: the source's.
    lora: adapters to merge, in float32 before the weights are encoded: PEFT's folders or llama.cpp's GGUF files, each
        alone or with a factor over its own scale.
    allow_requantize: take an already quantized source, whose own rounding cannot be undone.
    resume: go on with what an interrupted run of the same inputs and options left; the same bytes as without it.
    force: replace an existing `dst`.
    n_threads: 0: automatic. The bytes do not depend on it.
    progress: progress("quantize", done, total) in weights; an exception from it stops the run.

    Raises BadModelFile for a source that is not what it should be; BadRequest (also "quantize.output_exists",
    "quantize.output_is_input", "quantize.requantize", "quantize.type", "quantize.pattern", "quantize.imatrix",
    "quantize.size", "quantize.resume", "quantize.lora"); Unsupported (also "lora.unsupported": an adapter that is more
    than plain LoRA); KimiVLError "quantize.disk_space" and "quantize.disk_full".
    """
    began = time.perf_counter()
    if n_threads.__class__ is not int or not 0 <= n_threads <= 1024:
        raise BadRequest(f"n_threads is {shown(n_threads)}, expected 0 (automatic) to 1024", "quantize.n_threads")
    if name is not None and not _is_name(name):
        raise BadRequest(f"name is {shown(name)}, expected a string of 1 to 200 characters", "quantize.name")
    src, dst = _path(src, "src"), _path(dst, "dst")
    wanted = [_adapter(one) for one in lora]
    chosen = read_recipe(_path(recipe, "recipe")) if recipe is not None else named_recipe(type)
    chosen = with_rules(chosen, types)
    request = Request(
        recipe=chosen,
        allowed=None if size is None else budget.parse_size(size),
        vision=check_type(vision, "vision") if vision is not None else chosen.vision,
        weights=None if imatrix is None else _open_importance(_path(imatrix, "imatrix")),
        split=split,
        allow_requantize=allow_requantize,
        resume=resume,
        force=force,
        adapters=(),
    )
    model = open_model(src, None if mmproj is None else _path(mmproj, "mmproj"), name)
    try:
        return _convert(model, dst, request, wanted, n_threads, progress, began)
    finally:
        model.source.close()


def _convert(
    model: Model,
    dst: Path,
    request: Request,
    wanted: Sequence[tuple[Path, float]],
    n_threads: int,
    progress: Progress | None,
    began: float,
) -> Report:
    """wanted: adapters to merge, each with its scale."""
    with ExitStack() as stack:
        adapters = []
        shapes = {target.name: target.shape for target in model.targets}
        projector = model.vision.get("clip.projector_type")
        for path, scale in wanted:
            adapters.append(open_adapter(path, shapes, scale, None if projector is None else projector.value.decode()))
            stack.callback(adapters[-1].close)
        plan = make_plan(model, dst, replace(request, adapters=adapters), _measured(model, progress))
        check_space(plan.layouts)
        outputs: list[OutputFile] = []
        for layout in plan.layouts:
            outputs.append(OutputFile(layout, plan.fingerprint, request.resume, request.force))
            stack.callback(outputs[-1].close)
        return _write(model.source, plan, outputs, n_threads, progress, began)


def _path(value: PathLike, what: str) -> Path:
    named = os.fsdecode(value) if isinstance(value, (str, bytes, os.PathLike)) else ""
    if not named or "\0" in named:
        raise BadRequest(f"{what} is {shown(value)}, expected a path", "quantize.path")
    return Path(expand_home(named))


def _adapter(one: PathLike | tuple[PathLike, float]) -> tuple[Path, float]:
    path, scale = one if isinstance(one, tuple) else (one, 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise BadRequest(f"lora: the scale is {shown(scale)}, expected a finite number", "quantize.lora")
    return _path(path, "lora"), float(scale)


def _is_name(value: object) -> bool:
    """Whether a value can be what a model calls itself."""
    if not isinstance(value, str) or not 0 < len(value.strip()) <= 200:
        return False
    return not any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in value)


def _open_importance(path: Path) -> Weights:
    from .importance.file import read_importance

    file = InputFile(path, "importance matrix", "make one with kimi-vl imatrix")
    file.close()
    return Weights(read_importance(path), file)


def _measured(model: Model, progress: Progress | None) -> Callable[[str, int], None]:
    """Reports matrices that were measured for a size."""
    total = sum(target.n_elems for target in model.targets if budget.is_free(target))
    done = 0

    def measured(_name: str, n_elems: int) -> None:
        nonlocal done
        done += n_elems
        if progress is not None:
            progress(MEASURING_STAGE, done, total)

    return measured


def _write(
    source: Source,
    plan: Plan,
    outputs: Sequence[OutputFile],
    n_threads: int,
    progress: Progress | None,
    began: float,
) -> Report:
    n_resumed = sum(output.n_done for output in outputs)
    advance = _counter(outputs, progress)
    for output in outputs:
        stream(source, output, n_threads, advance, plan.importance, plan.changes)
        for file in (*source.inputs, *plan.adapter_files):
            file.check_unchanged()
        output.prepare()
    for output in reversed(outputs):  # the file that is opened by name last: whoever sees it finds the other
        output.rename()
    for output in outputs:
        output.forget()
    files = tuple(
        FileReport(
            output.layout.path,
            output.layout.n_bytes,
            tuple(
                TensorReport(t.target.name, t.target.shape, "/".join(t.source_types), t.type, t.n_bytes, checksum)
                for t, checksum in zip(output.layout.tensors, output.checksums, strict=True)
            ),
        )
        for output in outputs
    )
    return Report(
        files=files,
        type=plan.recipe.name or plan.recipe.base,
        vision=plan.vision,
        reason=plan.recipe.reason,
        warnings=tuple(plan.warnings),
        notices=tuple(plan.notices),
        n_resumed=n_resumed,
        seconds=time.perf_counter() - began,
    )


def _counter(outputs: Sequence[OutputFile], progress: Progress | None) -> Callable[[str, int], None]:
    """advance(name, elements) -> progress(stage, done, total), not too often."""
    total = done = 0
    for output in outputs:
        for i, tensor in enumerate(output.layout.tensors):
            total += tensor.target.n_elems
            done += tensor.target.n_elems if i < output.n_done else 0
    if progress is None:
        return lambda name, n: None
    last = 0.0
    progress(STAGE, done, total)

    def advance(name: str, n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= _PROGRESS_S or done == total:
            last = now
            progress(STAGE, done, total)

    return advance
