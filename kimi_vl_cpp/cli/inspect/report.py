"""`kimi-vl inspect FILE`: the card of any GGUF file, what would not work with it and why.

Reads through the runtime's own reader and runs the loader's own checks, so that a file passes here exactly when it
loads. Of large tensors these read one block each, so that a file of any size takes a moment; --check reads every value.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import errors
from ...adapters.opening import is_adapter
from ...files import file_types, rules, variants
from ...files.opening import open_gguf
from ...files.rules import Finding
from ...text.template_check import DEFAULT_SYSTEM_MESSAGE, OTHER_TEMPLATE, default_system_message
from ...text.vocabulary import CHAT_TOKENS, MEDIA_TOKENS
from .. import exits, opening
from ..adapters import Scaled
from ..progress import Progress
from ..terminal import DIM, Terminal

if TYPE_CHECKING:
    from ..._core import GGUFFile, TensorInfo


@dataclass(frozen=True)
class Options:
    """The command line of `inspect`. file: None is the built-in model. lora: adapters to judge beside it."""

    file: str | None
    json: bool = False
    tensors: bool = False
    check: bool = False
    lora: tuple[Scaled, ...] = ()


def run(options: Options, terminal: Terminal) -> int:
    """Prints the card; errors.EXIT_BAD_MODEL_FILE when Kimi-VL cannot run from the file, EXIT_OK otherwise. Raises
    KimiVLError."""
    from . import adapter, values
    from . import card as inspect_card

    if options.file is None:
        path = str(opening.choose_model(opening.Opening()).model)
    else:
        path = options.file
        if os.path.isdir(path) and is_adapter(path):
            return _adapter_alone(options, path, terminal)
        exits.check_readable(path, "model file", exits.MODEL_SUFFIXES, errors.BadModelFile, "gguf.open")
        if is_adapter(path):
            return _adapter_alone(options, path, terminal)
    gguf = open_gguf(path)
    report = make_report(gguf)
    if options.lora:
        if "text" not in report:
            raise exits.UsageError(
                f"--lora: an adapter is judged beside the text model that it changes, not beside {path}"
            )
        vision = open_gguf(report["mmproj"]) if report.get("mmproj") else None
        report["adapters"], problems = adapter.beside(gguf, vision, options.lora)
        report["findings"] = [asdict(Finding("error", problem)) for problem in problems] + report["findings"]
        if report["text"]["memory_bytes"] is not None:
            report["text"]["memory_bytes"] += sum(one["memory_bytes"] for one in report["adapters"])
    if options.check:
        bad = values.check_values(gguf, Progress(terminal))
        report["checked"] = True
        report["findings"] = [asdict(f) for f in bad] + report["findings"]
    report["works"] = not any(f["severity"] == "error" for f in report["findings"])
    if options.json:
        if options.tensors:
            report["tensors"] = [_tensor_dict(t) for t in gguf.tensors]
        terminal.out.write(json.dumps(_encodable(report), indent=2) + "\n")
        terminal.out.flush()
    else:
        inspect_card.print_card(report, terminal)
        if options.tensors:
            inspect_card.print_tensors(gguf.tensors, terminal)
        if options.file is None:
            terminal.say(f"This is the model that is built in; it is not Kimi-VL. {exits.HOW_TO_GET_A_MODEL}", DIM)
    return errors.EXIT_OK if report["works"] else errors.EXIT_BAD_MODEL_FILE


def _adapter_alone(options: Options, path: str, terminal: Terminal) -> int:
    from . import adapter

    if options.lora:
        raise exits.UsageError(f"{path} is an adapter itself: name the model first, and every adapter with --lora")
    return adapter.inspect(path, options.json, options.tensors, options.check, terminal)


def make_report(gguf: GGUFFile) -> dict[str, Any]:
    """What the file holds and whether it loads, as plain values fit for JSON."""
    tensors = gguf.tensors
    get = gguf.get
    tokens = get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else None
    findings = rules.judge(gguf, tensors, tokens)
    if not any(f.severity == "error" for f in findings):
        refusal = _refusal(gguf, rules.is_text_model(gguf), rules.has_vision(gguf, tensors))
        findings = [Finding("error", refusal), *findings] if refusal else findings
    findings += _judge_template(get("tokenizer.chat_template"), tokens or ())
    findings += [Finding("warning", warning) for warning in gguf.warnings]
    text, vision = rules.is_text_model(gguf), rules.has_vision(gguf, tensors)
    report: dict[str, Any] = {
        "file": gguf.path,
        "name": _text(get("general.name")) or _text(get("general.basename")),
        "architecture": _text(get("general.architecture")),
        "kind": "model with vision"
        if text and vision
        else "text model"
        if text
        else "vision file"
        if vision
        else "unknown",
        "gguf_version": gguf.version,
        "n_shards": gguf.n_shards,
        "file_bytes": gguf.file_bytes,
        "n_tensors": len(tensors),
        "n_parameters": sum(t.n_elems for t in tensors),
        "quantization": file_type(get("general.file_type")),
        "types": _types(tensors),
        "lora": _text(get("kimi_vl.lora")),
    }
    if text:
        report["variant"] = variants.detect_variant(gguf.get, gguf.path)
        report["text"] = _text_part(gguf, report["file_bytes"], tokens)
    if vision:
        report["vision"] = _vision_part(gguf)
    if text and not vision:
        report["mmproj"], why = _mmproj_of(gguf)
        if why:
            findings.append(Finding("note", f"answers texts only, not pictures. {why}"))
    card = variants.stored_card(get)
    if card:
        report["card"] = card
    report["findings"] = [asdict(f) for f in findings]
    return report


def _refusal(gguf: GGUFFile, text: bool, vision: bool) -> str:
    """What loading the file would say, by the very checks of the loader; "" when it loads."""
    from ... import _core
    from ...text.tokenizer import Tokenizer

    try:
        if text:
            _core.check_text_model(gguf)
            Tokenizer.from_gguf(gguf, vision=vision)
        else:
            _core.check_vision_file(gguf)
    except errors.KimiVLError as error:
        return str(error)
    return ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def file_type(value: object) -> str:
    """The name of a general.file_type, "" when there is none."""
    number = _int(value)
    return "" if number is None else file_types.NAMES.get(number, f"file type {number}")


def _types(tensors: list[TensorInfo]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for t in tensors:
        row = rows.setdefault(
            t.type, {"type": t.type, "supported": t.supported, "n_tensors": 0, "n_elements": 0, "bytes": 0}
        )
        row["n_tensors"] += 1
        row["n_elements"] += t.n_elems
        row["bytes"] += t.n_bytes
    return sorted(rows.values(), key=lambda row: (-row["bytes"], row["type"]))


def _text_part(gguf: GGUFFile, file_bytes: int, tokens: list[str] | None) -> dict[str, Any]:
    def number(key: str) -> int | None:
        return _int(gguf.get("deepseek2." + key))

    from ..._core import kv_row_bytes
    from ...machine.memory import SAMPLE_CONTEXT, estimate_bytes

    layers, rank, rope = number("block_count"), number("attention.kv_lora_rank"), number("rope.dimension_count")
    kv = layers * kv_row_bytes("f16", rank, rope) if layers and rank and rope else None
    n_ctx = min(SAMPLE_CONTEXT, number("context_length") or SAMPLE_CONTEXT)
    present = set(tokens or ())
    special = {name: name in present for name in (*CHAT_TOKENS, *MEDIA_TOKENS)}
    return {
        "layers": layers,
        "hidden_size": number("embedding_length"),
        "heads": number("attention.head_count"),
        "experts": number("expert_count"),
        "experts_used": number("expert_used_count"),
        "experts_shared": number("expert_shared_count"),
        "context_length": number("context_length"),
        "kv_bytes_per_token": kv,
        "memory_bytes": None if kv is None else estimate_bytes(file_bytes, kv, n_ctx),
        "memory_context": n_ctx,
        "vocabulary": len(tokens or ()),
        "tokenizer": _text(gguf.get("tokenizer.ggml.model")),
        "pre_tokenizer": _text(gguf.get("tokenizer.ggml.pre")),
        "special_tokens_missing": [name for name, found in special.items() if not found],
        "chat_template": isinstance(gguf.get("tokenizer.chat_template"), str),
    }


def _judge_template(template: object, tokens: Sequence[str]) -> list[Finding]:
    if not isinstance(template, str):
        return []
    is_kimis, system = default_system_message(template, pictures="<|media_pad|>" in tokens)
    if not is_kimis:
        return [Finding("warning", OTHER_TEMPLATE)]
    if system == DEFAULT_SYSTEM_MESSAGE:
        return []
    said = "no default system message" if system is None else f"another default system message: {errors.shown(system)}"
    return [Finding("note", f"the chat template of the file has {said}")]


def _vision_part(gguf: GGUFFile) -> dict[str, Any]:
    def number(key: str) -> int | None:
        return _int(gguf.get("clip.vision." + key))

    patch = number("patch_size")
    stored = variants.stored_in_token_limit(gguf.get)
    limit = stored or variants.default_in_token_limit(variants.detect_variant(gguf.get, gguf.path))
    return {
        "projector": _text(gguf.get("clip.projector_type")) or _text(gguf.get("clip.vision.projector_type")),
        "layers": number("block_count"),
        "hidden_size": number("embedding_length"),
        "patch_size": patch,
        "in_token_limit": limit,
        "max_pixels": None if patch is None else limit * patch * patch,
        "max_side": None if patch is None else 512 * patch,
    }


def _mmproj_of(gguf: GGUFFile) -> tuple[str, str]:
    """The vision file that would be used with a text model, or "" and why there is none."""
    from ...files.model_files import find_mmproj

    try:
        found, why = find_mmproj(Path(gguf.path), gguf)
    except errors.BadModelFile as failure:
        return "", str(failure)
    return ("", why) if found is None else (str(found), "")


def _tensor_dict(t: TensorInfo) -> dict[str, Any]:
    return {
        "name": t.name,
        "type": t.type,
        "supported": t.supported,
        "ne": list(t.ne),
        "bytes": t.n_bytes,
        "offset": t.offset,
        "shard": t.shard,
    }


def _encodable(value: Any) -> Any:
    """`value` without lone surrogates, which stand for bytes of the file that are not UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list) else value
