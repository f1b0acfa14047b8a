"""What `kimi-vl inspect` knows of adapters: one alone, judged beside Kimi-VL-A3B, or those named beside a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ... import errors
from ...adapters.card import card_of, factors_of, read_cards
from ...adapters.opening import open_adapter
from ...adapters.sides import network_shapes
from ...wording import columns, human_bytes, human_count, padded, printable
from .. import failures
from ..adapters import Scaled
from ..progress import Progress
from ..terminal import BOLD, DIM, Terminal
from .verdict import print_verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..._core import GGUFFile
    from ...adapters.change import Adapter
    from ...files.stored import SourceTensor


def inspect(path: str, as_json: bool, tensors: bool, check: bool, terminal: Terminal) -> int:
    """Prints the card of an adapter; errors.EXIT_BAD_MODEL_FILE when it cannot be used with Kimi-VL-A3B. Raises
    KimiVLError for what is no adapter at all."""
    with failures.needs_quantize("inspect"):
        from kimi_vl_cpp.quantize import fit
    shape = fit.full_size()
    report: dict[str, Any] = {"file": path, "kind": "adapter", "findings": [], "works": True}
    stored: list[SourceTensor] = []
    try:
        adapter = open_adapter(path, shape.matrices, 1.0, shape.projector)
        try:
            report["adapter"] = card_of(adapter).to_dict()
            stored = factors_of(adapter)
            if check:
                report["checked"] = True
                _check_values(adapter, Progress(terminal))
        finally:
            adapter.close()
    except errors.KimiVLError as failure:
        advice = ""
        if failure.code in ("lora.module", "lora.shape"):
            advice = f". To judge it beside another model than {shape.name}: kimi-vl inspect MODEL --lora {path}"
        report |= {"works": False, "findings": [{"severity": "error", "message": f"{failure}{advice}"}]}
    if as_json:
        if tensors:
            report["tensors"] = [{"name": t.name, "type": t.type, "shape": t.shape, "bytes": t.n_bytes} for t in stored]
        terminal.print(json.dumps(report, indent=2))
    else:
        _print(report, shape.name, terminal)
        if tensors:
            _print_tensors(stored, terminal)
    return errors.EXIT_OK if report["works"] else errors.EXIT_BAD_MODEL_FILE


def beside(text: GGUFFile, vision: GGUFFile | None, lora: Sequence[Scaled]) -> tuple[list[dict[str, Any]], list[str]]:
    """The cards of adapters beside a model, and what is wrong with those that do not fit it."""
    files = [text] if vision is None else [text, vision]
    shapes = network_shapes({one.name: tuple(one.shape) for file in files for one in file.tensors}, text.get)
    cards, problems = [], []
    for source in lora:
        try:
            cards += read_cards([source], shapes, files[-1].get("clip.projector_type"))
        except errors.KimiVLError as failure:
            problems.append(str(failure))
    return [card.to_dict() for card in cards], problems


def rows(card: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A card's lines: label, value."""
    kind = "PEFT" if card["is_folder"] else "GGUF"
    scaled = "" if card["scale"] == 1 else f", scaled by {card['scale']:g}"
    yield "LoRA", f"{card['path']}, {human_bytes(card['file_bytes'])}, {kind}{scaled}"
    low, high = card["ranks"]
    rank = f"rank {low}" if low == high else f"ranks {low} to {high}"
    yield "", f"{rank}, {human_count(card['n_parameters'])} parameters, {human_bytes(card['memory_bytes'])} of memory"
    yield "", f"trained on {card['base'] or 'a model that it does not name'}"
    changed = ", ".join(f"{name} ({human_count(n)})" for name, n in card["n_matrices"].items())
    yield "", f"changes {changed}"
    if card["changes_pictures"]:
        yield "", "changes how pictures are seen: they are encoded once for each adapter"


def _check_values(adapter: Adapter, progress: Progress) -> None:
    """Reads every factor. Raises BadModelFile "lora.not_finite"."""
    changes = [change for found in adapter.changes.values() for change in found]
    for done, change in enumerate(changes):
        progress("checking the values", done, len(changes))
        change.a.read()
        change.b.read()
    progress.clear()


def _print(report: dict[str, Any], model: str, terminal: Terminal) -> None:
    terminal.print(terminal.style(printable(report["file"], one_line=True), BOLD, err=False))
    for label, value in rows(report["adapter"]) if "adapter" in report else ():
        terminal.print(f"  {terminal.style(label.ljust(14), DIM, err=False)}{printable(value, one_line=True)}")
    print_verdict(report, "adapter", f"beside {model}", terminal)


def _print_tensors(tensors: list[SourceTensor], terminal: Terminal) -> None:
    width = max((columns(printable(t.name, one_line=True)) for t in tensors), default=6)
    terminal.print(f"{'factor'.ljust(width)}  {'type':8} {'bytes':>14}  shape")
    for t in tensors:
        name = padded(printable(t.name, one_line=True), width)
        terminal.print(f"{name}  {t.type:8} {human_count(t.n_bytes):>14}  {' x '.join(map(str, t.shape))}")
