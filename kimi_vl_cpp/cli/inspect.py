"""`kimi-vl inspect FILE`: the card of any GGUF file, what would not work with it and why.

Reads through the runtime's own reader, so that what it says is what the runtime sees. Without --check no tensor data is read: a file of
any size takes a moment.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .. import errors, variants
from . import exits, inspect_rules
from .inspect_rules import Finding
from .terminal import BOLD, DIM, GREEN, RED, YELLOW, Progress, Terminal, human_bytes, human_count, plural, printable

if TYPE_CHECKING:
    from .._core import GGUFFile, TensorInfo

# general.file_type -> the name people know it by.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
    14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M",
    32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip

# Resident beyond the file's size: tables, scratch for prefill and picture. The KV cache comes on top.
OVERHEAD_BYTES = 900_000_000
SAMPLE_CONTEXT = 8192
CHECK_ELEMENTS = 1 << 20  # decoded at a time by --check


@dataclass(frozen=True)
class Options:
    """The command line of `inspect`."""

    file: str
    json: bool = False
    tensors: bool = False
    check: bool = False


def run(options: Options, terminal: Terminal) -> int:
    """Prints the card; errors.EXIT_BAD_MODEL_FILE when Kimi-VL cannot run from the file, EXIT_OK otherwise. Raises KimiVLError."""
    from .. import _core

    exits.check_readable(options.file, "model file", exits.MODEL_SUFFIXES, errors.BadModelFile, "gguf.open")
    gguf = _core.GGUFFile(options.file)
    report = make_report(gguf)
    if options.check:
        bad = check_values(gguf, Progress(terminal))
        report["checked"] = True
        report["findings"] = [asdict(f) for f in bad] + report["findings"]
    report["works"] = not any(f["severity"] == "error" for f in report["findings"])
    if options.json:
        if options.tensors:
            report["tensors"] = [_tensor_dict(t) for t in gguf.tensors]
        terminal.out.write(json.dumps(_encodable(report), ensure_ascii=False, indent=2) + "\n")
        terminal.out.flush()
    else:
        _print_card(report, terminal)
        if options.tensors:
            _print_tensors(gguf.tensors, terminal)
    return errors.EXIT_OK if report["works"] else errors.EXIT_BAD_MODEL_FILE


def make_report(gguf: GGUFFile) -> dict[str, Any]:
    """Everything that the directory of the file tells, as plain values fit for JSON."""
    tensors = gguf.tensors
    get = gguf.get
    tokens = get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else None
    findings = inspect_rules.judge(gguf, tensors, tokens)
    findings += [Finding("warning", warning) for warning in gguf.warnings]
    text, vision = inspect_rules.is_text_model(gguf), inspect_rules.has_vision(gguf, tensors)
    report: dict[str, Any] = {
        "file": gguf.path,
        "name": _text(get("general.name")) or _text(get("general.basename")),
        "architecture": _text(get("general.architecture")),
        "kind": "model with vision" if text and vision else "text model" if text else "vision file" if vision else "unknown",
        "gguf_version": gguf.version,
        "n_shards": gguf.n_shards,
        "file_bytes": gguf.file_bytes,
        "n_tensors": len(tensors),
        "n_parameters": sum(t.n_elems for t in tensors),
        "quantization": _file_type(get("general.file_type")),
        "types": _types(tensors),
    }
    if text:
        report["variant"] = variants.detect_variant(gguf.get, gguf.path)
        report["text"] = _text_part(gguf, report["file_bytes"], tokens)
    if vision:
        report["vision"] = _vision_part(gguf)
    if text and not vision:
        report["mmproj_beside"] = _mmproj_beside(gguf.path)
        if not report["mmproj_beside"]:
            findings.append(Finding("note", "no vision file (mmproj*.gguf) beside it: answers text only until one is named with --mmproj"))
    report["findings"] = [asdict(f) for f in findings]
    return report


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _file_type(value: object) -> str:
    number = _int(value)
    return "" if number is None else FILE_TYPES.get(number, f"file type {number}")


def _types(tensors: list[TensorInfo]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for t in tensors:
        row = rows.setdefault(t.type, {"type": t.type, "supported": t.supported, "n_tensors": 0, "n_elements": 0, "bytes": 0})
        row["n_tensors"] += 1
        row["n_elements"] += t.n_elems
        row["bytes"] += t.n_bytes
    return sorted(rows.values(), key=lambda row: (-row["bytes"], row["type"]))


def _text_part(gguf: GGUFFile, file_bytes: int, tokens: list[str] | None) -> dict[str, Any]:
    def number(key: str) -> int | None:
        return _int(gguf.get("deepseek2." + key))

    layers, rank, rope = number("block_count"), number("attention.kv_lora_rank"), number("rope.dimension_count")
    kv = 2 * layers * (rank + rope) if layers and rank and rope else None
    present = set(tokens or ())
    special = {names[0]: any(name in present for name in names) for names in inspect_rules.SPECIAL_TOKENS}
    return {
        "layers": layers,
        "hidden_size": number("embedding_length"),
        "heads": number("attention.head_count"),
        "experts": number("expert_count"),
        "experts_used": number("expert_used_count"),
        "experts_shared": number("expert_shared_count"),
        "context_length": number("context_length"),
        "kv_bytes_per_token": kv,
        "memory_bytes": None if kv is None else file_bytes + OVERHEAD_BYTES + kv * SAMPLE_CONTEXT,
        "vocabulary": len(tokens or ()),
        "tokenizer": _text(gguf.get("tokenizer.ggml.model")),
        "pre_tokenizer": _text(gguf.get("tokenizer.ggml.pre")),
        "special_tokens_missing": [name for name, found in special.items() if not found],
        "chat_template": isinstance(gguf.get("tokenizer.chat_template"), str),
    }


def _vision_part(gguf: GGUFFile) -> dict[str, Any]:
    def number(key: str) -> int | None:
        return _int(gguf.get("clip.vision." + key))

    patch = number("patch_size")
    limit = variants.default_in_token_limit(variants.detect_variant(gguf.get, gguf.path))
    return {
        "projector": _text(gguf.get("clip.projector_type")) or _text(gguf.get("clip.vision.projector_type")),
        "layers": number("block_count"),
        "hidden_size": number("embedding_length"),
        "patch_size": patch,
        "in_token_limit": limit,
        "max_pixels": None if patch is None else limit * patch * patch,
        "max_side": None if patch is None else 512 * patch,
    }


def _mmproj_beside(path: str) -> list[str]:
    try:
        with os.scandir(os.path.dirname(os.path.abspath(path))) as entries:
            return sorted(e.name for e in entries if "mmproj" in e.name.lower() and e.name.lower().endswith(".gguf"))
    except OSError:
        return []


def _print_card(report: dict[str, Any], terminal: Terminal) -> None:
    def row(label: str, value: str) -> None:
        if value:
            terminal.print(f"  {terminal.style(label.ljust(14), DIM, err=False)}{printable(value, one_line=True)}")

    terminal.print(terminal.style(printable(report["name"] or os.path.basename(report["file"]), one_line=True), BOLD, err=False))
    shards = f", {report['n_shards']} parts" if report["n_shards"] > 1 else ""
    row("file", f"{report['file']}, {human_bytes(report['file_bytes'])}, GGUF v{report['gguf_version']}{shards}")
    variant = f", {report['variant']}" if report.get("variant", "unknown") != "unknown" else ""
    row("architecture", f"{report['architecture'] or 'not given'} ({report['kind']}{variant})")
    row("parameters", f"{_parameters(report['n_parameters'])} in {plural(report['n_tensors'], 'tensor')}")
    mix = " · ".join(f"{t['type']}{'' if t['supported'] else ' (unsupported)'} {human_bytes(t['bytes'])} in {t['n_tensors']}" for t in report["types"])
    row("quantization", f"{report['quantization']}: {mix}" if report["quantization"] and mix else report["quantization"] or mix)
    text, vision = report.get("text"), report.get("vision")
    if text:
        experts = f", {text['experts']} experts ({text['experts_used']} used + {text['experts_shared']} shared)" if text["experts"] else ""
        row("network", f"{text['layers']} layers, hidden size {text['hidden_size']}, {text['heads']} heads{experts}")
        if text["context_length"] and text["kv_bytes_per_token"]:
            row("context", f"{human_count(text['context_length'])} tokens, {human_count(text['kv_bytes_per_token'])} bytes of memory each")
        if text["memory_bytes"]:
            row("memory", f"about {human_bytes(text['memory_bytes'])} with {human_count(SAMPLE_CONTEXT)} tokens of context, without the vision file")
        missing = text["special_tokens_missing"]
        words = f"{len(missing)} special tokens missing" if missing else "special tokens present"
        kind = ", ".join(part for part in (text["tokenizer"], text["pre_tokenizer"]) if part)
        row("vocabulary", f"{human_count(text['vocabulary'])} tokens ({kind or 'kind not given'}), {words}")
        row("chat template", "present" if text["chat_template"] else "absent (built in)")
        if "mmproj_beside" in report:
            row("vision", f"in its own file: {', '.join(report['mmproj_beside']) or 'none found beside this one'}")
    if vision:
        row("vision", f"{vision['projector'] or 'projector not given'}, {vision['layers']} layers, hidden size {vision['hidden_size']}")
        if vision["max_pixels"]:
            row("pictures", f"{vision['in_token_limit']} patches of {vision['patch_size']}x{vision['patch_size']} "
                            f"({vision['max_pixels'] / 1e6:.1f} megapixels) by default, at most {vision['max_side']} pixels a side")  # fmt: skip
    _print_findings(report, terminal)


def _print_findings(report: dict[str, Any], terminal: Terminal) -> None:
    colours = {"error": RED, "warning": YELLOW, "note": DIM}
    checked = " Every value is a finite number." if report.get("checked") and report["works"] else ""
    what = {"vision file": "This vision file works with Kimi-VL."}.get(report["kind"], "This file works with Kimi-VL.")
    if report["works"]:
        terminal.print(terminal.style(what + checked, GREEN, err=False))
    else:
        terminal.print(terminal.style("This file does not work with Kimi-VL:", BOLD, RED, err=False))
    for finding in report["findings"]:
        label = terminal.style(finding["severity"].ljust(8), colours[finding["severity"]], err=False)
        terminal.print(f"  {label}{printable(finding['message'], one_line=True)}")


def _parameters(n: int) -> str:
    return f"{n / 1e9:.2f} billion" if n >= 1e9 else f"{n / 1e6:.1f} million" if n >= 1e6 else human_count(n)


def _print_tensors(tensors: list[TensorInfo], terminal: Terminal) -> None:
    width = max((len(t.name) for t in tensors), default=4)
    terminal.print(f"{'tensor'.ljust(width)}  {'type':8} {'bytes':>14}  shape (contiguous dimension first)")
    for t in tensors:
        name = printable(t.name, one_line=True).ljust(width)
        terminal.print(f"{name}  {t.type:8} {human_count(t.n_bytes):>14}  {' x '.join(str(n) for n in t.ne)}")


def _tensor_dict(t: TensorInfo) -> dict[str, Any]:
    return {"name": t.name, "type": t.type, "supported": t.supported, "ne": list(t.ne), "bytes": t.n_bytes, "offset": t.offset, "shard": t.shard}


def _encodable(value: Any) -> Any:
    """`value` without lone surrogates, which stand for bytes of the file that are not UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list) else value


def check_values(gguf: GGUFFile, progress: Progress) -> list[Finding]:
    """Decodes every tensor and names those that hold NaN or infinity, with how many and where the first one is."""
    import numpy as np

    from .. import _core

    tensors = [t for t in gguf.tensors if t.supported]
    block = {f["name"]: (int(f["block_elems"]), int(f["block_bytes"])) for f in _core.formats()}
    total = max(1, sum(t.n_elems for t in tensors) >> 20)
    done, findings = 0, []
    for t in tensors:
        raw = gguf.tensor_raw(t.name).reshape(-1)
        elems, size = block[t.type]
        step = CHECK_ELEMENTS // elems * elems
        n_bad, first = 0, -1
        for start in range(0, t.n_elems, step):
            n = min(step, t.n_elems - start)
            values = _core.decode(t.type, raw[start // elems * size : (start + n) // elems * size], n)
            with np.errstate(over="ignore", invalid="ignore"):
                suspect = not np.isfinite(values.sum(dtype=np.float32))  # a sum is much cheaper; large finite values may trip it
            if suspect:
                bad = np.flatnonzero(~np.isfinite(values))
                if bad.size:
                    first = first if n_bad else start + int(bad[0])
                    n_bad += int(bad.size)
            done += n
            progress(f"checking {t.name}", done >> 20, total)
        if n_bad:
            where = [int(i) for i in np.unravel_index(first, t.shape)]
            findings.append(Finding("error", f"tensor {t.name} ({t.type}): {plural(n_bad, 'value')} not finite (NaN or infinity), the first at {where}; download the file again"))
    progress.clear()
    return findings
