"""What a GGUF file must hold to work as Kimi-VL, as data: keys, tensors with their shapes, special tokens.

Judges a file from its directory alone, without its tensor data, and collects everything that is wrong, where loading
stops at the first fault. The loader's own checks decide whether a file works; these say why in one go.
Names and shapes: docs/model.md (`ne` order, the contiguous dimension first).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..text.vocabulary import CHAT_TOKENS, MEDIA_TOKENS

Severity = Literal["error", "warning", "note"]
Shape = tuple[int, ...]

TEXT_ARCHITECTURE = "deepseek2"
VISION_ARCHITECTURE = "clip"
KEY_TIED = "kimi_vl.tied_embeddings"  # true: the output matrix is the embedding table
PROJECTORS = ("kimivl", "kimik25")


class Tensor(Protocol):
    """The part of _core.TensorInfo that the rules read."""

    @property
    def name(self) -> str: ...
    @property
    def ne(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> str: ...
    @property
    def supported(self) -> bool: ...


class Gguf(Protocol):
    """The part of _core.GGUFFile that the rules read."""

    def get(self, key: str) -> Any: ...
    def keys(self) -> list[str]: ...


@dataclass(frozen=True)
class Finding:
    """One remark about a file. An "error" means that Kimi-VL cannot run from it."""

    severity: Severity
    message: str


class Keys:
    """Metadata by key; a missing or mistyped key becomes an error finding and the value 0."""

    def __init__(self, gguf: Gguf, findings: list[Finding]) -> None:
        self._gguf = gguf
        self._findings = findings

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number, not negative."""
        value = self._gguf.get(key)
        if value is None:
            if default is None:
                self._findings.append(Finding("error", f"key {key}: missing"))
            return default or 0
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self._findings.append(Finding("error", f"key {key}: {_short(value)}, expected a whole number"))
            return 0
        return value

    def text(self, key: str) -> str:
        """A string, "" when absent or of another type."""
        value = self._gguf.get(key)
        return value if isinstance(value, str) else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


def missing_media_tokens(gguf: Gguf) -> list[str]:
    """The tokens around a picture that the vocabulary lacks; none of a file without a vocabulary."""
    tokens = gguf.get("tokenizer.ggml.tokens")
    present = set(tokens) if isinstance(tokens, list) else set(MEDIA_TOKENS)
    return [name for name in MEDIA_TOKENS if name not in present]


def is_text_model(gguf: Gguf) -> bool:
    """True for a file of the decoder's architecture."""
    return bool(gguf.get("general.architecture") == "deepseek2")


def has_vision(gguf: Gguf, tensors: Iterable[Tensor]) -> bool:
    """True for an mmproj file, and for one file that holds both halves."""
    return bool(gguf.get("general.architecture") == "clip") or any(t.name.startswith(("v.", "mm.")) for t in tensors)


def judge(gguf: Gguf, tensors: Sequence[Tensor], tokens: list[str] | None) -> list[Finding]:
    """Everything to be said about the file, errors first."""
    findings: list[Finding] = []
    architecture = gguf.get("general.architecture")
    text, vision = is_text_model(gguf), has_vision(gguf, tensors)
    if not text and architecture != "clip":
        name = f"{_short(architecture)}" if architecture is not None else "missing"
        findings.append(
            Finding(
                "error",
                f"general.architecture: {name}, expected deepseek2 (model) or clip (vision file): not a Kimi-VL file",
            )
        )
        return findings
    by_name = {t.name: t for t in tensors}
    known: set[str] = set()
    if text:
        _judge_name(gguf, findings)
        _judge_text(gguf, by_name, known, findings)
        _judge_tokens(gguf, tokens, vision, findings)
    if vision:
        _judge_vision(gguf, by_name, known, findings)
    _judge_types(by_name, known, findings)
    extra = sorted(set(by_name) - known)
    if extra and not any(f.severity == "error" and f.message.startswith("key ") for f in findings):
        own = (("blk.", "output", "token_embd") if text else ()) + (("v.", "mm.") if vision else ())
        lost = [name for name in extra if name.startswith(own)]
        ignored = [name for name in extra if not name.startswith(own)]
        if lost:
            message = f"{len(lost)} tensors that are not part of Kimi-VL's network: {_names(lost)}"
            findings.append(Finding("error", f"{message}; ignoring them would change the answers"))
        if ignored:
            findings.append(Finding("warning", f"{len(ignored)} unknown tensors, which are ignored: {_names(ignored)}"))
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda f: order[f.severity])


def _names(names: list[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def _judge_types(by_name: Mapping[str, Tensor], known: set[str], findings: list[Finding]) -> None:
    unsupported: dict[str, list[str]] = {}
    for tensor in by_name.values():
        if not tensor.supported and tensor.name in known:
            unsupported.setdefault(tensor.type, []).append(tensor.name)
    for type_name, names in sorted(unsupported.items()):
        findings.append(
            Finding(
                "error",
                f"type {type_name} cannot be read: {_names(names)}; use a file of another type (Q4_K_M, Q8_0, …)",
            )
        )


def _expect(
    by_name: Mapping[str, Tensor], known: set[str], findings: list[Finding], wanted: Iterator[tuple[str, Shape]]
) -> None:
    """Checks presence and shape of every wanted tensor; missing ones are gathered into one finding per kind."""
    missing: dict[str, list[str]] = {}
    for name, shape in wanted:
        tensor = by_name.get(name)
        known.add(name)
        if tensor is None:
            kind = ".".join("N" if part.isdigit() else part for part in name.split("."))
            missing.setdefault(kind, []).append(name)
        elif _trim(tensor.ne) != _trim(shape):
            findings.append(
                Finding("error", f"tensor {name}: shape {list(tensor.ne)}, expected {list(shape)} from the metadata")
            )
    for kind, names in missing.items():
        what = (
            f"tensor {names[0]}: missing"
            if len(names) == 1
            else f"tensors {kind}: {len(names)} missing ({_names(names)})"
        )
        findings.append(Finding("error", what))


def _trim(shape: Shape) -> Shape:
    shape = tuple(shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _judge_name(gguf: Gguf, findings: list[Finding]) -> None:
    name = gguf.get("general.name")
    if name is not None and not isinstance(name, str):
        findings.append(Finding("error", f"key general.name: {_short(name)}, expected a string"))


def _judge_text(gguf: Gguf, by_name: Mapping[str, Tensor], known: set[str], findings: list[Finding]) -> None:
    before = len(findings)
    keys = Keys(gguf, findings)
    prefix = "deepseek2."
    n_layers = keys.count(prefix + "block_count")
    hidden = keys.count(prefix + "embedding_length")
    inter = keys.count(prefix + "feed_forward_length")
    heads = keys.count(prefix + "attention.head_count")
    rank = keys.count(prefix + "attention.kv_lora_rank")
    rope = keys.count(prefix + "rope.dimension_count")
    dense = keys.count(prefix + "leading_dense_block_count")
    experts = keys.count(prefix + "expert_count")
    expert_inter = keys.count(prefix + "expert_feed_forward_length")
    shared = keys.count(prefix + "expert_shared_count")
    legacy = gguf.get(prefix + "attention.key_length_mla") is None
    key_dim = keys.count(prefix + ("attention.key_length" if legacy else "attention.key_length_mla"))
    value_dim = keys.count(prefix + ("attention.value_length" if legacy else "attention.value_length_mla"))
    if gguf.get(prefix + "attention.q_lora_rank"):
        findings.append(
            Finding(
                "error", f"key {prefix}attention.q_lora_rank: this is a larger DeepSeek-style model; Kimi-VL has none"
            )
        )
    if len(findings) > before:
        return
    if n_layers > 1024 or key_dim <= rope:
        findings.append(
            Finding(
                "error", f"metadata makes no sense: {n_layers} layers, key length {key_dim}, rope dimensions {rope}"
            )
        )
        return
    nope = key_dim - rope
    vocabulary = by_name["token_embd.weight"].ne[-1] if "token_embd.weight" in by_name else 0

    def wanted() -> Iterator[tuple[str, Shape]]:
        yield "token_embd.weight", (hidden, vocabulary)
        if "output.weight" in by_name or gguf.get(KEY_TIED) is not True:
            yield "output.weight", (hidden, vocabulary)
        yield "output_norm.weight", (hidden,)
        for i in range(n_layers):
            b = f"blk.{i}."
            yield b + "attn_norm.weight", (hidden,)
            yield b + "ffn_norm.weight", (hidden,)
            yield b + "attn_q.weight", (hidden, heads * key_dim)
            yield b + "attn_kv_a_mqa.weight", (hidden, rank + rope)
            yield b + "attn_kv_a_norm.weight", (rank,)
            yield b + "attn_output.weight", (heads * value_dim, hidden)
            if b + "attn_k_b.weight" not in by_name and b + "attn_kv_b.weight" in by_name:
                yield b + "attn_kv_b.weight", (rank, heads * (nope + value_dim))
            else:
                yield b + "attn_k_b.weight", (nope, rank, heads)
                yield b + "attn_v_b.weight", (rank, value_dim, heads)
            if i < dense:
                yield b + "ffn_gate.weight", (hidden, inter)
                yield b + "ffn_up.weight", (hidden, inter)
                yield b + "ffn_down.weight", (inter, hidden)
                continue
            yield b + "ffn_gate_inp.weight", (hidden, experts)
            if b + "exp_probs_b.bias" in by_name or gguf.get(prefix + "expert_gating_func") != 1:
                yield b + "exp_probs_b.bias", (experts,)
            if b + "ffn_gate_up_exps.weight" in by_name:
                yield b + "ffn_gate_up_exps.weight", (hidden, 2 * expert_inter, experts)
            else:
                yield b + "ffn_gate_exps.weight", (hidden, expert_inter, experts)
                yield b + "ffn_up_exps.weight", (hidden, expert_inter, experts)
            yield b + "ffn_down_exps.weight", (expert_inter, hidden, experts)
            if shared:
                yield b + "ffn_gate_shexp.weight", (hidden, shared * expert_inter)
                yield b + "ffn_up_shexp.weight", (hidden, shared * expert_inter)
                yield b + "ffn_down_shexp.weight", (shared * expert_inter, hidden)

    _expect(by_name, known, findings, wanted())
    known |= {
        n for n in by_name if n.endswith(".attn_kv_b.weight")
    }  # beside the split pair it is redundant, not unknown
    fused = any(f"blk.{layer}.ffn_gate_up_exps.weight" in by_name for layer in (0, dense))
    tied = "output.weight" not in by_name and gguf.get(KEY_TIED) is True
    findings += _text_layout(legacy, fused, tied, gguf.get("deepseek2.expert_gating_func"))


def _text_layout(legacy: bool, fused: bool, tied: bool, gating: object) -> Iterator[Finding]:
    """What is laid out in one of several valid ways, and a router that is not Kimi-VL's."""
    if legacy:
        yield Finding("note", "older layout (attn_kv_b in one piece): fine, it is split when the model is loaded")
    if fused:
        yield Finding("note", "fused ffn_gate_up_exps: fine")
    if tied:
        yield Finding("note", f"output.weight absent: {KEY_TIED} says that the token embedding is used in its place")
    if gating is None:
        yield Finding("note", "expert_gating_func absent: sigmoid is assumed, as Kimi-VL has it")
    elif gating not in (1, 2):
        yield Finding("error", f"key deepseek2.expert_gating_func: {_short(gating)}, expected 2 (sigmoid)")


def _judge_tokens(gguf: Gguf, tokens: list[str] | None, vision: bool, findings: list[Finding]) -> None:
    if not tokens:
        findings.append(
            Finding("error", "key tokenizer.ggml.tokens: missing or empty; text cannot be turned into tokens")
        )
        return
    present = set(tokens)
    media: Severity = "error" if vision else "note"
    kinds: tuple[tuple[tuple[str, ...], Severity, str], ...] = (
        (CHAT_TOKENS, "error", "the chat format cannot be written"),
        (MEDIA_TOKENS, media, "pictures cannot be placed in a prompt"),
    )
    for names, severity, consequence in kinds:
        findings += [
            Finding(severity, f"special token {name}: not in the vocabulary; {consequence}")
            for name in names
            if name not in present
        ]
    for role, name in (("bos", "[BOS]"), ("eos", "[EOS]")):
        if gguf.get(f"tokenizer.ggml.{role}_token_id") is None:
            found = f"found by its name {name}" if name in present else f"and no {name} in the vocabulary"
            findings.append(
                Finding(
                    "note" if name in present or role == "bos" else "warning",
                    f"tokenizer.ggml.{role}_token_id absent: {found}",
                )
            )
    if not isinstance(gguf.get("tokenizer.chat_template"), str):
        findings.append(Finding("note", "no chat template in the file: not needed, Kimi-VL's own format is built in"))


def _judge_vision(gguf: Gguf, by_name: Mapping[str, Tensor], known: set[str], findings: list[Finding]) -> None:
    projector = gguf.get("clip.projector_type") or gguf.get("clip.vision.projector_type")
    if projector not in PROJECTORS:
        findings.append(
            Finding(
                "error",
                f"key clip.projector_type: {_short(projector)}, expected kimivl: the vision file of another model",
            )
        )
        return
    before = len(findings)
    keys = Keys(gguf, findings)
    hidden = keys.count("clip.vision.embedding_length")
    inter = keys.count("clip.vision.feed_forward_length")
    n_layers = keys.count("clip.vision.block_count")
    patch = keys.count("clip.vision.patch_size")
    merge = keys.count("clip.vision.projector.scale_factor", 2)
    if len(findings) > before:
        return
    if n_layers > 1024:
        findings.append(Finding("error", f"key clip.vision.block_count: {n_layers}, at most 1024"))
        return
    merged = hidden * merge * merge
    out = by_name["mm.2.weight"].ne[-1] if "mm.2.weight" in by_name else keys.count("clip.vision.projection_dim", 0)
    table = by_name.get("v.position_embd.weight")
    positions = math.prod(table.ne[1:]) if table is not None else 4096
    side = math.isqrt(positions)

    def wanted() -> Iterator[tuple[str, Shape]]:
        yield "v.patch_embd.weight", (patch, patch, 3, hidden)
        yield "v.patch_embd.bias", (hidden,)
        square = table is not None and len(_trim(table.ne)) == 3  # [hidden, side, side] is the same bytes
        yield "v.position_embd.weight", (hidden, side, side) if square else (hidden, positions)
        for i in range(n_layers):
            b = f"v.blk.{i}."
            for part in ("ln1", "ln2"):
                yield f"{b}{part}.weight", (hidden,)
                yield f"{b}{part}.bias", (hidden,)
            if b + "attn_qkv.weight" in by_name:
                yield b + "attn_qkv.weight", (hidden, 3 * hidden)
                yield b + "attn_qkv.bias", (3 * hidden,)
            else:
                for part in ("attn_q", "attn_k", "attn_v"):
                    yield f"{b}{part}.weight", (hidden, hidden)
                    yield f"{b}{part}.bias", (hidden,)
            yield b + "attn_out.weight", (hidden, hidden)
            yield b + "attn_out.bias", (hidden,)
            yield b + "ffn_up.weight", (hidden, inter)
            yield b + "ffn_up.bias", (inter,)
            yield b + "ffn_down.weight", (inter, hidden)
            yield b + "ffn_down.bias", (hidden,)
        for part in ("v.post_ln", "mm.input_norm"):
            yield part + ".weight", (hidden,)
            yield part + ".bias", (hidden,)
        yield "mm.1.weight", (merged, merged)
        yield "mm.1.bias", (merged,)
        yield "mm.2.weight", (merged, out)
        yield "mm.2.bias", (out,)

    _expect(by_name, known, findings, wanted())
    if side * side != positions:
        findings.append(
            Finding(
                "error",
                f"tensor v.position_embd.weight: {positions} positions, expected a square number (64 x 64 = 4096)",
            )
        )
