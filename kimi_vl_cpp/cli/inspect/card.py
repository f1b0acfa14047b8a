"""What `kimi-vl inspect` prints: the card of a file and the table of its tensors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...wording import columns, human_bytes, human_count, padded, plural, printable
from ..terminal import BOLD, DIM, Terminal
from .adapter import rows as adapter_rows
from .verdict import print_verdict

if TYPE_CHECKING:
    from ..._core import TensorInfo


def print_card(report: dict[str, Any], terminal: Terminal) -> None:
    """`report`: from inspect.make_report, with "works"."""
    name = report["name"] or os.path.basename(report["file"])
    terminal.print(terminal.style(printable(name, one_line=True), BOLD, err=False))
    rows = list(_general_rows(report))
    if "text" in report:
        rows += _text_rows(report["text"], "vision" in report, bool(report.get("adapters")))
    if "mmproj" in report:
        rows.append(("vision", report["mmproj"] or "none found beside this file"))
    if "vision" in report:
        rows += _vision_rows(report["vision"])
    for adapter in report.get("adapters", ()):
        rows += adapter_rows(adapter)
    for label, value in rows:
        terminal.print(f"  {terminal.style(label.ljust(14), DIM, err=False)}{printable(value, one_line=True)}")
    if "card" in report:
        terminal.print("\n" + printable(report["card"]).strip() + "\n")
    what = "vision file" if report["kind"] == "vision file" else "file"
    print_verdict(report, what, "with Kimi-VL" + (" with these adapters" if "adapters" in report else ""), terminal)


def _general_rows(report: dict[str, Any]) -> Iterable[tuple[str, str]]:
    shards = f", {report['n_shards']} parts" if report["n_shards"] > 1 else ""
    yield "file", f"{report['file']}, {human_bytes(report['file_bytes'])}, GGUF v{report['gguf_version']}{shards}"
    variant = f", {report['variant']}" if report.get("variant", "unknown") != "unknown" else ""
    yield "architecture", f"{report['architecture'] or 'not given'} ({report['kind']}{variant})"
    yield "parameters", f"{_parameters(report['n_parameters'])} in {plural(report['n_tensors'], 'tensor')}"
    if report["quantization"]:
        yield "quantization", report["quantization"]
    for index, adapter in enumerate(filter(None, report["lora"].split("; "))):
        yield ("" if index else "merged LoRA"), adapter
    for index, row in enumerate(report["types"]):
        size = human_bytes(row["bytes"]) if row["supported"] else "cannot be read"
        yield ("" if index else "types"), f"{row['type']:8} {size:>9} in {plural(row['n_tensors'], 'tensor')}"


def _text_rows(text: dict[str, Any], has_vision: bool, has_adapters: bool) -> Iterable[tuple[str, str]]:
    network = f"{text['layers']} layers, hidden size {text['hidden_size']}, {text['heads']} heads"
    if text["experts"]:
        network += f", {text['experts']} experts ({text['experts_used']} used + {text['experts_shared']} shared)"
    yield "network", network
    if text["context_length"] and text["kv_bytes_per_token"]:
        per_token = f"{human_count(text['kv_bytes_per_token'])} bytes of memory each"
        yield "context", f"up to {human_count(text['context_length'])} tokens, {per_token}"
    if text["memory_bytes"]:
        needs = human_bytes(text["memory_bytes"])
        alone = "" if has_vision else ", without the vision file"
        adapters = " and the adapters" if has_adapters else ""
        yield "memory", f"about {needs} with {human_count(text['memory_context'])} tokens of context{adapters}{alone}"
    missing = len(text["special_tokens_missing"])
    special = f"{missing} special tokens missing" if missing else "special tokens present"
    kind = ", ".join(part for part in (text["tokenizer"], text["pre_tokenizer"]) if part) or "kind not given"
    yield "vocabulary", f"{human_count(text['vocabulary'])} tokens ({kind}), {special}"
    yield "chat template", "present" if text["chat_template"] else "absent"


def _vision_rows(vision: dict[str, Any]) -> Iterable[tuple[str, str]]:
    projector = vision["projector"] or "projector not given"
    yield "vision", f"{projector}, {vision['layers']} layers, hidden size {vision['hidden_size']}"
    if vision["max_pixels"]:
        patch, pixels = vision["patch_size"], f"{vision['max_pixels'] / 1e6:.1f} megapixels"
        yield (
            "pictures",
            f"scaled down to {human_count(vision['in_token_limit'])} patches of {patch}x{patch} ({pixels})",
        )
        yield "", f"at most {human_count(vision['max_side'])} pixels a side"


def _parameters(n: int) -> str:
    return f"{n / 1e9:.2f} billion" if n >= 1e9 else f"{n / 1e6:.1f} million" if n >= 1e6 else human_count(n)


def print_tensors(tensors: list[TensorInfo], terminal: Terminal) -> None:
    """One line for each tensor: name, type, bytes, shape."""
    width = max((columns(printable(t.name, one_line=True)) for t in tensors), default=6)
    terminal.print(f"{'tensor'.ljust(width)}  {'type':8} {'bytes':>14}  shape (contiguous dimension first)")
    for t in tensors:
        name = padded(printable(t.name, one_line=True), width)
        terminal.print(f"{name}  {t.type:8} {human_count(t.n_bytes):>14}  {' x '.join(str(n) for n in t.ne)}")
