"""What a conversion will write: a type for every tensor, the layout of every file, and why a request is refused.

Everything that can be refused is refused here, before the first byte is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kimi_vl_cpp.adapters.change import Adapter, Changes, LowRank
from kimi_vl_cpp.errors import BadRequest
from kimi_vl_cpp.files.input_file import InputFile
from kimi_vl_cpp.files.stored import FLOAT_TYPES
from kimi_vl_cpp.version import __version__

from . import budget
from .blocks import Importance, blocks
from .opening import Model
from .output.layout import Layout, plan_layout
from .output.metadata import KEY_FILE_TYPE, KEY_IMATRIX, KEY_LORA, KEY_NAME, KEY_RECIPE, Metadata, general, text, u32
from .output.write import check_output
from .recipe import MIXES, Chooser, Recipe
from .source.gguf import quantized_types
from .source.tensor_map import Target


@dataclass(frozen=True)
class Weights:
    """An importance matrix and the (closed) file that it comes from."""

    importance: Importance
    file: InputFile


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for; see `quantize()`. allowed: bytes of the output, None: as the recipe says."""

    recipe: Recipe
    vision: str | None
    weights: Weights | None
    allowed: int | None
    split: bool
    allow_requantize: bool
    resume: bool
    force: bool
    adapters: Sequence[Adapter]


@dataclass
class Plan:
    """The files to write. vision: the type of the vision part's matrices, None: there is none. changes: of adapters."""

    layouts: list[Layout]
    importance: Importance | None
    recipe: Recipe
    vision: str | None
    fingerprint: str
    changes: Changes
    adapter_files: list[InputFile]
    warnings: list[str]
    notices: list[str]


def make_plan(model: Model, dst: Path, request: Request, measured: Callable[[str, int], None]) -> Plan:
    """measured(name, n_elems) is called for each matrix that is measured to keep to a size. Raises BadRequest."""
    has_vision = any(target.is_vision for target in model.targets)
    _check_vision(request, has_vision)
    recipe, weights = request.recipe, request.weights
    vision = request.vision or (recipe.base if recipe.base in FLOAT_TYPES else "F16")
    names = [target.name for target in model.targets]
    chooser = Chooser(recipe, vision, model.n_layers, "output.weight" in names, weights is not None)
    chosen: Sequence[budget.Chosen] = _choose(model, chooser, keep_vision=request.vision is None)
    chooser.finish(names)
    inputs = [*model.source.inputs, *([] if weights is None else [weights.file])]
    adapter_files = [file for adapter in request.adapters for file in adapter.files]
    inputs += adapter_files
    changes = merged_changes(request.adapters)
    paths = [dst, dst.with_name(f"mmproj-{dst.name}")] if request.split else [dst]
    paths = [check_output(path, inputs, request.resume, request.force) for path in paths]
    keys = _metadata(model, request, vision)
    if request.allowed is not None:
        importance = None if weights is None else weights.importance
        layouts = _layouts(paths, keys, chosen)
        found = budget.fit(model.source, chosen, chooser.has_rule, layouts, request.allowed, importance, measured)
        chosen = found.chosen
        reason = f"The least measured error in {request.allowed} bytes."
        recipe = replace(recipe, name=_shown_type(request), reason=reason)
        chooser.notices.append(found.summary)
    warnings = _requantized(model, chosen, request.allow_requantize, changes)
    if weights is not None:
        warnings += _unweighted(weights, chosen)
    return Plan(
        layouts=_layouts(paths, keys, chosen),
        importance=None if weights is None else weights.importance,
        recipe=recipe,
        vision=vision if has_vision else None,
        fingerprint=_fingerprint(inputs, request.adapters),
        changes=changes,
        adapter_files=adapter_files,
        warnings=warnings,
        notices=[*model.notices, *chooser.notices, *_other_bases(model, request.adapters)],
    )


def _check_vision(request: Request, has_vision: bool) -> None:
    if request.vision is not None and not has_vision:
        raise BadRequest(f"vision={request.vision}: the source has no vision part: leave it out", "quantize.vision")
    if request.split and not has_vision:
        raise BadRequest("split: the source has no vision part, one file holds it all: leave it out", "quantize.split")


def _choose(model: Model, chooser: Chooser, keep_vision: bool) -> list[budget.Chosen]:
    """Of each target the type it gets and the types it has. keep_vision: quantized matrices of the vision part stay
    what they are unless a rule names them."""
    chosen = []
    for target in model.targets:
        kind = chooser.type_of(target.name, target.shape, target.is_vision)
        stored = tuple(dict.fromkeys(model.source.tensors[part.source].type for part in target.parts))
        if target.is_vision and keep_vision and stored[0] not in FLOAT_TYPES:
            kind = stored[0] if not chooser.has_rule(target.name) else kind
        chosen.append((target, kind, stored))
    return chosen


def _shown_type(request: Request) -> str:
    return request.recipe.name or request.recipe.base if request.allowed is None else f"size-{request.allowed}"


def _metadata(model: Model, request: Request, vision: str) -> list[Metadata]:
    """The keys of each output file: of the one, or of the text's and the vision part's."""
    file_type = MIXES[request.recipe.base].file_type
    keys = general("deepseek2", "model", model.name, file_type) | model.text
    keys |= {KEY_NAME: text(model.name), KEY_FILE_TYPE: u32(file_type), KEY_RECIPE: text(_shown_type(request))}
    if request.weights is not None:
        keys[KEY_IMATRIX] = text(request.weights.file.path.name)
    if request.adapters:
        keys[KEY_LORA] = text("; ".join(_record(adapter) for adapter in request.adapters))
    if not request.split:
        return [keys | model.vision]
    return [keys, general("clip", "mmproj", model.name, _file_type(vision)) | model.vision]


def merged_changes(adapters: Sequence[Adapter]) -> dict[str, list[LowRank]]:
    """The changes of all adapters, one after the other."""
    changes: dict[str, list[LowRank]] = {}
    for adapter in adapters:
        for name, found in adapter.changes.items():
            changes.setdefault(name, []).extend(found)
    return changes


def _record(adapter: Adapter) -> str:
    return f"{adapter.path.name} scale {adapter.scale:g} sha256 {adapter.digest}"


def _other_bases(model: Model, adapters: Sequence[Adapter]) -> list[str]:
    """A notice for each adapter that names another model than this one as its base."""
    return [notice for adapter in adapters if (notice := adapter.notice_beside(model.name))]


def _layouts(paths: Sequence[Path], keys: Sequence[Metadata], chosen: Sequence[budget.Chosen]) -> list[Layout]:
    if len(paths) == 1:
        return [plan_layout(paths[0], keys[0], chosen)]
    return [
        plan_layout(path, own, [one for one in chosen if one[0].is_vision is is_vision])
        for path, own, is_vision in zip(paths, keys, (False, True), strict=True)
    ]


def _file_type(type_name: str) -> int:
    """general.file_type of a vision file."""
    whole = {"Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S", "Q3_K": "Q3_K_S"}.get(type_name, type_name)
    return MIXES[whole].file_type if whole in MIXES else MIXES["F16"].file_type


def _requantized(
    model: Model, chosen: Sequence[tuple[Target, str, tuple[str, ...]]], allowed: bool, changes: Changes
) -> list[str]:
    """The warning about sources that are quantized already. Raises BadRequest "quantize.requantize"."""
    changed = [
        model.source.tensors[target.parts[0].source]
        for target, kind, stored in chosen
        if stored[0] not in FLOAT_TYPES and (stored[0] != kind or target.name in changes)
    ]
    found = quantized_types(changed)
    if not found:
        return []
    counts = ", ".join(f"{n} tensors of {kind}" for kind, n in found.items())
    loss = (
        f"{changed[0].file.path} is quantized already ({counts} would be encoded again): the error of its own "
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


def _unweighted(weights: Weights, chosen: Sequence[tuple[Target, str, tuple[str, ...]]]) -> list[str]:
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


def _fingerprint(inputs: Sequence[InputFile], adapters: Sequence[Adapter]) -> str:
    """Of the inputs, for resume: names, sizes and times, and how much each adapter counts."""
    files = [f"{file.path.name} {file.n_bytes} {file.modified_ns}" for file in inputs]
    return "\n".join([f"kimi-vl {__version__}", *files, *(f"{adapter.scale!r}" for adapter in adapters)])
