"""quantize(): a checkpoint folder or a GGUF file in, one GGUF file (or two) of the wanted types out.

Owns the order of things: everything that can be refused is refused before the first byte is written.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kimi_vl_cpp.checks import expand_home
from kimi_vl_cpp.errors import BadRequest, shown
from kimi_vl_cpp.files.variants import KEY_IN_TOKEN_LIMIT, variant_of_text
from kimi_vl_cpp.types import Progress
from kimi_vl_cpp.version import __version__

from . import budget
from .blocks import Importance, blocks
from .output.layout import Layout, plan_layout
from .output.metadata import (
    KEY_FILE_TYPE,
    KEY_IMATRIX,
    KEY_NAME,
    KEY_RECIPE,
    PREPROCESSOR_NAME,
    Metadata,
    checkpoint_metadata,
    copied,
    general,
    is_about_vision,
    text,
    u32,
)
from .output.stream import stream
from .output.write import OutputFile, check_output, check_space
from .recipe import MIXES, Chooser, Recipe, check_type, named_recipe, read_recipe, with_rules
from .report import FileReport, Report, TensorReport
from .source.checkpoint import Checkpoint
from .source.config import read_config
from .source.files import InputFile
from .source.gguf import GGUFSource, quantized_types
from .source.source import FLOAT_TYPES, Source
from .source.tensor_map import Target, map_checkpoint
from .source.tokenizer import read_tokenizer

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
    allow_requantize: bool = False,
    resume: bool = False,
    force: bool = False,
    n_threads: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Converts and quantizes a model; returns what it did.

    src: a folder with a Hugging Face checkpoint of Kimi-VL, or a GGUF file of one.
    dst: the GGUF file to write. It is there at the end or not at all.
    type: a mix (`recipe.MIXES`), or a recipe of ours (`recipe.RECIPES`).
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
    allow_requantize: take an already quantized source, whose own rounding cannot be undone.
    resume: go on with what an interrupted run of the same inputs and options left; the same bytes as without it.
    force: replace an existing `dst`.
    n_threads: 0: automatic. The bytes do not depend on it.
    progress: progress("quantize", done, total) in weights; an exception from it stops the run.

    Raises BadModelFile for a source that is not what it should be; BadRequest (also "quantize.output_exists",
    "quantize.output_is_input", "quantize.requantize", "quantize.type", "quantize.pattern", "quantize.imatrix",
    "quantize.size", "quantize.resume"); Unsupported; KimiVLError "quantize.disk_space" and "quantize.disk_full".
    """
    began = time.perf_counter()
    if n_threads.__class__ is not int or not 0 <= n_threads <= 1024:
        raise BadRequest(f"n_threads is {shown(n_threads)}, expected 0 (automatic) to 1024", "quantize.n_threads")
    if name is not None and not _is_name(name):
        raise BadRequest(f"name is {shown(name)}, expected a text of 1 to 200 characters", "quantize.name")
    src, dst = _path(src, "src"), _path(dst, "dst")
    chosen = read_recipe(_path(recipe, "recipe")) if recipe is not None else named_recipe(type)
    chosen = with_rules(chosen, types)
    allowed = None if size is None else budget.parse_size(size)
    wanted_vision = check_type(vision, "vision") if vision is not None else chosen.vision
    weights = None if imatrix is None else _open_importance(_path(imatrix, "imatrix"))
    model = _open(src, None if mmproj is None else _path(mmproj, "mmproj"), name)
    try:
        measured = _measured(model, progress)
        plan = _plan(
            model, dst, chosen, wanted_vision, weights, allowed, split, allow_requantize, resume, force, measured
        )
        check_space(plan.layouts)
        outputs: list[OutputFile] = []
        try:
            for layout in plan.layouts:
                outputs.append(OutputFile(layout, plan.fingerprint, resume, force))
            return _write(model.source, plan, outputs, n_threads, progress, began)
        finally:
            for output in outputs:
                output.close()
    finally:
        model.source.close()


def _path(value: PathLike, what: str) -> Path:
    spelled = os.fsdecode(value) if isinstance(value, (str, bytes, os.PathLike)) else ""
    if not spelled or "\0" in spelled:
        raise BadRequest(f"{what} is {shown(value)}, expected a path", "quantize.path")
    return Path(expand_home(spelled))


def _is_name(value: object) -> bool:
    """Whether a value can be what a model calls itself."""
    if not isinstance(value, str) or not 0 < len(value.strip()) <= 200:
        return False
    return not any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in value)


@dataclass
class _Model:
    """An opened source. targets: text before vision. text, vision: metadata; with general keys for a GGUF source."""

    source: Source
    targets: list[Target]
    text: Metadata
    vision: Metadata
    name: str
    n_layers: int
    notices: list[str]


@dataclass(frozen=True)
class _Weights:
    """An importance matrix and the (closed) file that it comes from."""

    importance: Importance
    file: InputFile


@dataclass
class _Plan:
    layouts: list[Layout]
    importance: Importance | None
    recipe: Recipe
    vision: str | None
    fingerprint: str
    warnings: list[str]
    notices: list[str]


def _open_importance(path: Path) -> _Weights:
    from .importance.file import read_importance

    file = InputFile(path, "importance matrix", "make one with kimi-vl imatrix")
    file.close()
    return _Weights(read_importance(path), file)


def _open(src: Path, mmproj: Path | None, name: str | None) -> _Model:
    if not src.is_dir():
        if src.suffix in (".safetensors", ".json", ".bin") and src.is_file():
            raise BadRequest(f"{src}: is one file of a checkpoint: give its folder {src.parent}", "quantize.source")
        return _open_gguf(src, mmproj, name)
    if mmproj is not None:
        raise BadRequest(
            f"mmproj: {mmproj} was given, but {src} is a checkpoint folder with a vision part of its own: leave it out",
            "quantize.mmproj",
        )
    checkpoint = Checkpoint(src)
    try:
        config = read_config(checkpoint.config, src / "config.json")
        targets, unused = map_checkpoint(checkpoint, config)
        keys, vision_keys = checkpoint_metadata(checkpoint, config, read_tokenizer(checkpoint, config.text.vocab_size))
    except BaseException:
        checkpoint.close()
        raise
    notices = []
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        notices.append(f"{src}: tensors that the model does not use are left out: {', '.join(unused[:3])}{more}")
    if KEY_IN_TOKEN_LIMIT not in vision_keys:
        notices.append(
            f"{src}: no {PREPROCESSOR_NAME} with in_token_limit: how large pictures may be will be guessed from the "
            "model's name"
        )
    if variant_of_text(name or checkpoint.name) == "unknown":
        notices.append(
            f"the model will call itself {shown(name or checkpoint.name)}, which does not say Instruct, Thinking or "
            "Thinking-2506: how to sample by default depends on it; --name (name=) gives it another one"
        )
    if "tokenizer.chat_template" not in keys:
        notices.append(f"{src}: no chat template in tokenizer_config.json: the output will have none")
    layers = config.text.num_hidden_layers
    return _Model(checkpoint, targets, keys, vision_keys, name or checkpoint.name, layers, notices)


def _open_gguf(src: Path, mmproj: Path | None, name: str | None) -> _Model:
    source = GGUFSource(src, mmproj)
    try:
        targets = source.targets()
        keys = copied(source.text)
        vision = {key: value for key, value in keys.items() if is_about_vision(key)}
        keys = {key: value for key, value in keys.items() if not is_about_vision(key)}
        if source.vision is not None:
            found = copied(source.vision)
            vision |= {key: value for key, value in found.items() if is_about_vision(key)}
    except BaseException:
        source.close()
        raise
    notices = []
    if not any(target.is_vision for target in targets):
        notices.append(f"the output answers texts only: {source.why_no_vision}")
    return _Model(source, targets, keys, vision, name or source.name, source.n_layers, notices)


def _plan(
    model: _Model,
    dst: Path,
    recipe: Recipe,
    wanted_vision: str | None,
    weights: _Weights | None,
    allowed: int | None,
    split: bool,
    allow_requantize: bool,
    resume: bool,
    force: bool,
    measured: Callable[[str, int], None],
) -> _Plan:
    has_vision = any(target.is_vision for target in model.targets)
    if wanted_vision is not None and not has_vision:
        raise BadRequest(f"vision={wanted_vision}: the source has no vision part: leave it out", "quantize.vision")
    if split and not has_vision:
        raise BadRequest("split: the source has no vision part, one file holds it all: leave it out", "quantize.split")
    vision = wanted_vision or (recipe.base if recipe.base in FLOAT_TYPES else "F16")
    names = [target.name for target in model.targets]
    chooser = Chooser(recipe, vision, model.n_layers, "output.weight" in names, weights is not None)
    chosen = []
    for target in model.targets:
        kind = chooser.type_of(target.name, target.shape, target.is_vision)
        stored = tuple(dict.fromkeys(model.source.tensors[part.source].type for part in target.parts))
        if target.is_vision and wanted_vision is None and stored[0] not in FLOAT_TYPES:
            kind = stored[0] if not chooser.has_rule(target.name) else kind
        chosen.append((target, kind, stored))
    chooser.finish(names)
    inputs = [*model.source.inputs]
    if weights is not None:
        inputs.append(weights.file)
    paths = [dst, dst.with_name(f"mmproj-{dst.name}")] if split else [dst]
    paths = [check_output(path, inputs, resume, force) for path in paths]

    shown_type = recipe.name or recipe.base if allowed is None else f"size-{allowed}"
    file_type = MIXES[recipe.base].file_type
    text_keys = general("deepseek2", "model", model.name, file_type) | model.text
    text_keys |= {KEY_NAME: text(model.name), KEY_FILE_TYPE: u32(file_type), KEY_RECIPE: text(shown_type)}
    if weights is not None:
        text_keys[KEY_IMATRIX] = text(weights.file.path.name)

    def layouts_of(chosen: Sequence[budget.Chosen]) -> list[Layout]:
        if not split:
            return [plan_layout(paths[0], text_keys | model.vision, chosen)]
        vision_keys = general("clip", "mmproj", model.name, _file_type(vision)) | model.vision
        halves = ((False, text_keys), (True, vision_keys))
        return [
            plan_layout(path, keys, [one for one in chosen if one[0].is_vision is is_vision])
            for path, (is_vision, keys) in zip(paths, halves, strict=True)
        ]

    if allowed is not None:
        importance = None if weights is None else weights.importance
        found = budget.fit(model.source, chosen, chooser.has_rule, layouts_of(chosen), allowed, importance, measured)
        chosen = found.chosen
        recipe = replace(recipe, name=shown_type, reason=f"The least measured error in {allowed} bytes.")
        chooser.notices.append(found.summary)
    warnings = _requantized(model, chosen, allow_requantize)
    if weights is not None:
        warnings += _unweighted(weights, chosen)
    return _Plan(
        layouts=layouts_of(chosen),
        importance=None if weights is None else weights.importance,
        recipe=recipe,
        vision=vision if has_vision else None,
        fingerprint=_fingerprint(inputs),
        warnings=warnings,
        notices=[*model.notices, *chooser.notices],
    )


def _measured(model: _Model, progress: Progress | None) -> Callable[[str, int], None]:
    """Reports matrices that were measured for a size."""
    total = sum(target.n_elems for target in model.targets if budget.is_free(target))
    done = 0

    def measured(_name: str, n_elems: int) -> None:
        nonlocal done
        done += n_elems
        if progress is not None:
            progress(MEASURING_STAGE, done, total)

    return measured


def _file_type(type_name: str) -> int:
    """general.file_type of a vision file."""
    whole = {"Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S", "Q3_K": "Q3_K_S"}.get(type_name, type_name)
    return MIXES[whole].file_type if whole in MIXES else MIXES["F16"].file_type


def _requantized(model: _Model, chosen: Sequence[tuple[Target, str, tuple[str, ...]]], allowed: bool) -> list[str]:
    """The warning about sources that are quantized already. Raises BadRequest "quantize.requantize"."""
    changed = [
        model.source.tensors[target.parts[0].source]
        for target, kind, stored in chosen
        if stored[0] not in FLOAT_TYPES and stored[0] != kind
    ]
    found = quantized_types(changed)
    if not found:
        return []
    counts = ", ".join(f"{n} tensors of {kind}" for kind, n in found.items())
    loss = (
        f"{changed[0].file.path} is quantized already ({counts} would change their type): the error of its own "
        "rounding stays and that of the new types comes on top, so the result is worse than the same types made from "
        "the original"
    )
    if not allowed:
        raise BadRequest(
            f"{loss}. Start from the checkpoint or an F16 or BF16 file, or say allow_requantize=True "
            "(--allow-requantize)",
            "quantize.requantize",
        )
    return [loss]


def _unweighted(weights: _Weights, chosen: Sequence[tuple[Target, str, tuple[str, ...]]]) -> list[str]:
    """The warning about matrices that an importance matrix says nothing about. Raises BadRequest "quantize.imatrix"."""
    lacking = []
    n_blocks = 0
    has_output = any(target.name == "output.weight" for target, _, _ in chosen)
    for target, kind, _ in chosen:
        if blocks()[kind][0] == 1:
            continue
        found = weights.importance.rows(target.name)
        allowed = [target.shape[-1:], (*target.shape[:-2], target.shape[-1])]
        looked_up = target.name == "token_embd.weight" and has_output  # rows of it are never multiplied with anything
        if found is None and (target.is_vision or looked_up):
            continue
        n_blocks += 1
        if found is None:
            lacking.append(target.name)
        elif found.shape not in allowed and found.shape != (math.prod(allowed[-1]),):  # llama.cpp's, of heads
            raise BadRequest(
                f"{weights.file.path}: {target.name} has importance of shape {list(found.shape)}, expected "
                f"{list(allowed[-1])}: it was made with another model; make one from this model",
                "quantize.imatrix",
            )
    if n_blocks and len(lacking) == n_blocks:
        raise BadRequest(
            f"{weights.file.path}: says nothing about any matrix of this model: it was made with another one",
            "quantize.imatrix",
        )
    if not lacking:
        return []
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    return [f"{weights.file.path} says nothing about {', '.join(lacking[:3])}{more}: quantized without it"]


def _fingerprint(inputs: Sequence[InputFile]) -> str:
    """Of the inputs, for resume: names, sizes and times."""
    files = [f"{file.path.name} {file.n_bytes} {file.modified_ns}" for file in inputs]
    return "\n".join([f"kimi-vl {__version__}", *files])


def _write(
    source: Source,
    plan: _Plan,
    outputs: Sequence[OutputFile],
    n_threads: int,
    progress: Progress | None,
    began: float,
) -> Report:
    n_resumed = sum(output.n_done for output in outputs)
    advance = _counter(outputs, progress)
    for output in outputs:
        stream(source, output, n_threads, advance, plan.importance)
        for file in source.inputs:
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
