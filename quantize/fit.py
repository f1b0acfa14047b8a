"""Which type of weights suits a machine: what a file of each type takes of its memory, and how fast it answers.

Arithmetic over shapes: no weights are read. Answers are bound by memory: every token reads the weights that it meets
once, so a type's speed is the bandwidth over those bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from kimi_vl_cpp._core import GGUFFile, kv_row_bytes
from kimi_vl_cpp.adapters.card import Card
from kimi_vl_cpp.adapters.sides import PICTURE_PREFIXES, network_shapes
from kimi_vl_cpp.errors import BadModelFile
from kimi_vl_cpp.files import model_files
from kimi_vl_cpp.files.rules import TEXT_ARCHITECTURE
from kimi_vl_cpp.files.variants import default_in_token_limit, detect_variant, stored_in_token_limit
from kimi_vl_cpp.wording import human_bytes, human_count

from .blocks import n_bytes
from .recipe import Chooser, named_recipe
from .source.config import TextConfig, VisionConfig
from .source.tensor_map import text_targets, vision_targets

TYPES = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K")
"""Offered, the best first."""
PROCESS_BYTES = 54_000_000
"""Interpreter and libraries, measured."""
LARGEST_CHUNK = 2048
"""Rows of a prompt that are computed together at most (scheduler/tasks.py)."""
MLP_ROWS = 1024
"""Of a picture, that are in a block's inner layer together (model/moonvit.cpp)."""
PACKED_BYTES = 24 << 20
"""Of a matrix as floats that are packed together at most (ops/matmul.cpp)."""
KEYS_AT_ONCE = 512
"""Keys and values that are expanded together (ops/mla_expanded.cpp)."""
SHARE_OF_BANDWIDTH = 0.87
"""What decoding reaches of the bandwidth measured beside it (docs/performance.md: 84 to 93 %)."""
USUAL = "Q4_K_M"
"""No type below it is recommended for speed alone."""
FLUENT = 10.0
"""Tokens per second that a type should reach: faster than one reads."""


@dataclass(frozen=True)
class Widths:
    """Floats that a row of a prompt takes in the buffers of the decoder. inner: of all experts that a row visits, or
    of the dense layer, whichever is more."""

    hidden: int
    heads: int
    q_head: int
    v_head: int
    latent: int
    inner: int


FULL_TEXT = TextConfig(
    vocab_size=163840,
    hidden_size=2048,
    intermediate_size=11264,
    moe_intermediate_size=1408,
    num_hidden_layers=27,
    num_attention_heads=16,
    n_shared_experts=2,
    n_routed_experts=64,
    num_experts_per_tok=6,
    first_k_dense_replace=1,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    max_position_embeddings=131072,
    n_group=1,
    topk_group=1,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
    norm_topk_prob=True,
    routed_scaling_factor=2.446,
    rms_norm_eps=1e-5,
    rope_theta=800000.0,
)
FULL_VISION = VisionConfig(1152, 4304, 27, 16, 14, 64, 2)
_PATCH_SIDE = 14
_FULL_HEADER_BYTES = 6_000_000  # the vocabulary


@dataclass(frozen=True)
class Shape:
    """A model without its weights. tensors: name -> shape, NumPy order; matrices: the same of its network, and
    projector: what its vision file calls itself, for adapters; header_bytes: of its files, beside the weights; share:
    of the routed experts that a token visits; n_patches: of the largest picture; adapter_bytes: what adapters take,
    by the name of the matrix."""

    name: str
    tensors: Mapping[str, tuple[int, ...]]
    matrices: Mapping[str, tuple[int, ...]]
    projector: object
    header_bytes: int
    n_layers: int
    share: float
    kv_bytes_per_token: int
    context_length: int
    n_patches: int
    vision_width: int
    vision_inner: int
    widths: Widths
    adapter_bytes: Mapping[str, int] = field(default_factory=dict)

    def with_adapters(self, cards: Sequence[Card]) -> Shape:
        """The model with adapters beside it that were read for its `matrices`."""
        found: dict[str, int] = dict(self.adapter_bytes)
        for card in cards:
            for name, size in card.bytes_of.items():
                found[name] = found.get(name, 0) + size
        return replace(self, adapter_bytes=found)


@dataclass(frozen=True)
class Option:
    """A type on a machine. file_bytes: text and vision together. memory_bytes: with n_ctx tokens of context and one
    picture. n_ctx_max: tokens of context for which the memory suffices. tokens_per_s: of an answer, None where the
    bandwidth is unknown."""

    type: str
    file_bytes: int
    memory_bytes: int
    fits: bool
    n_ctx_max: int
    tokens_per_s: float | None


@dataclass(frozen=True)
class Fit:
    """The options of a model, the best type first. chosen: the recommended one, None: none fits. reason: why."""

    model: str
    n_ctx: int
    available_bytes: int | None
    bandwidth_gb_s: float | None
    options: tuple[Option, ...]
    chosen: Option | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def full_size() -> Shape:
    """Kimi-VL-A3B."""
    targets = [mapped.target for mapped in (*text_targets(FULL_TEXT), *vision_targets(FULL_VISION, 2048))]
    tensors = {target.name: target.shape for target in targets}
    text, vision = FULL_TEXT, FULL_VISION
    return Shape(
        name="Kimi-VL-A3B",
        tensors=tensors,
        matrices=tensors,
        projector="kimivl",
        header_bytes=_FULL_HEADER_BYTES,
        n_layers=text.num_hidden_layers,
        share=text.num_experts_per_tok / text.n_routed_experts,
        kv_bytes_per_token=text.num_hidden_layers * kv_row_bytes("f16", text.kv_lora_rank, text.qk_rope_head_dim),
        context_length=text.max_position_embeddings,
        n_patches=4096,
        vision_width=vision.hidden_size,
        vision_inner=vision.intermediate_size,
        widths=Widths(
            hidden=text.hidden_size,
            heads=text.num_attention_heads,
            q_head=text.qk_nope_head_dim + text.qk_rope_head_dim,
            v_head=text.v_head_dim,
            latent=text.kv_lora_rank + text.qk_rope_head_dim,
            inner=max(
                text.intermediate_size,
                (text.num_experts_per_tok + text.n_shared_experts) * text.moe_intermediate_size,
            ),
        ),
    )


def shape_of(path: Path) -> tuple[Shape, dict[str, str]]:
    """A GGUF model and the type of each of its tensors. Raises BadModelFile."""
    files = model_files.resolve(path)
    text = GGUFFile(str(files.text))
    vision = None if files.mmproj is None else GGUFFile(str(files.mmproj))
    found = [*text.tensors, *(vision.tensors if vision is not None else ())]
    tower = vision if vision is not None else text
    tensors = {tensor.name: tuple(tensor.shape) for tensor in found}

    def number(key: str) -> int:
        value = text.get(f"{TEXT_ARCHITECTURE}.{key}")
        return value if isinstance(value, int) else 0

    if not number("block_count"):
        raise BadModelFile(f"{path}: is not the text model of Kimi-VL: give that file", "checkpoint.not_kimi_vl")
    width, inner = tower.get("clip.vision.embedding_length"), tower.get("clip.vision.feed_forward_length")
    limit = stored_in_token_limit(tower.get) or default_in_token_limit(detect_variant(text.get, text.path))
    shape = Shape(
        name=str(text.get("general.name") or files.text.name),
        tensors=tensors,
        matrices=network_shapes(tensors, text.get),
        projector=tower.get("clip.projector_type"),
        header_bytes=files.file_bytes - sum(tensor.n_bytes for tensor in found),
        n_layers=number("block_count"),
        share=number("expert_used_count") / max(number("expert_count"), 1),
        kv_bytes_per_token=files.kv_bytes_per_token,
        context_length=files.context_length,
        n_patches=limit,
        vision_width=width if isinstance(width, int) else 0,
        vision_inner=inner if isinstance(inner, int) else 0,
        widths=Widths(
            hidden=number("embedding_length"),
            heads=number("attention.head_count"),
            q_head=number("attention.key_length_mla") or number("attention.key_length"),
            v_head=number("attention.value_length_mla") or number("attention.value_length"),
            latent=number("attention.kv_lora_rank") + number("rope.dimension_count"),
            inner=max(
                number("feed_forward_length"),
                (number("expert_used_count") + number("expert_shared_count")) * number("expert_feed_forward_length"),
            ),
        ),
    )
    return shape, {tensor.name: tensor.type for tensor in found}


def types_of(shape: Shape, kind: str) -> dict[str, str]:
    """The type that every tensor gets in a file of `kind`."""
    chooser = Chooser(named_recipe(kind), "F16", shape.n_layers, "output.weight" in shape.tensors)
    is_vision = {name: name.startswith(("v.", "mm.")) for name in shape.tensors}
    return {name: chooser.type_of(name, sides, is_vision[name]) for name, sides in shape.tensors.items()}


def file_bytes(shape: Shape, types: Mapping[str, str]) -> int:
    """Text and vision file together."""
    return shape.header_bytes + sum(n_bytes(types[name], prod(sides)) for name, sides in shape.tensors.items())


def bytes_per_token(shape: Shape, types: Mapping[str, str]) -> float:
    """Of weights and adapters, read for one token of an answer."""
    total = 0.0
    for name, size in shape.adapter_bytes.items():
        if not name.startswith(PICTURE_PREFIXES):
            total += size * (shape.share if "_exps." in name else 1.0)
    for name, sides in shape.tensors.items():
        size = n_bytes(types[name], prod(sides))
        if name.startswith(PICTURE_PREFIXES):
            continue
        if name == "token_embd.weight" and "output.weight" in shape.tensors:
            size //= sides[0]
        total += size * (shape.share if "_exps." in name else 1.0)
    return total


def memory_bytes(shape: Shape, size: int, n_ctx: int) -> int:
    """The most that is taken at a time: process and files of `size` bytes, and either adapters while they are loaded,
    which takes twice their size, or adapters, a context of n_ctx tokens and the largest picture while it is encoded."""
    adapters = sum(shape.adapter_bytes.values())
    return PROCESS_BYTES + size + adapters + max(adapters, n_ctx * shape.kv_bytes_per_token + work_bytes(shape, n_ctx))


def work_bytes(shape: Shape, n_ctx: int) -> int:
    """Buffers of the largest picture while it is encoded, or of the largest chunk of a prompt behind it, whichever are
    more. The tower and the decoder share those of queries, of heads, of what was attended to and of expanded keys and
    values, and these stay as large as they ever were."""
    n, width = shape.n_patches if shape.vision_width else 0, shape.vision_width
    rows, w = min(n_ctx, LARGEST_CHUNK), shape.widths
    by_tower = (3 * n * width, 3 * n * width, n * width, n * width)
    packed = min((4 * width) ** 2, PACKED_BYTES // 4)  # the projector's first matrix
    kept_by_tower = 2 * n * width + min(n, MLP_ROWS) * shape.vision_inner + packed  # norms, positions, inner layer
    picture = sum(by_tower) + kept_by_tower + n * (2.5 * width + 3 * _PATCH_SIDE**2)  # rows, projector, pixels
    queries, attended = rows * w.heads * w.q_head, rows * w.heads * w.v_head
    by_decoder = (queries, queries, attended, KEYS_AT_ONCE * w.heads * (w.q_head + w.v_head))
    shared = sum(map(max, by_tower, by_decoder))
    states = w.heads * (w.v_head + 2)
    row = 2 * w.hidden + w.latent + states + w.inner + (w.hidden + w.inner) * 9 / 32  # rows, norms; the last as int8
    return int(4 * max(picture, shared + kept_by_tower + rows * row))


def option(
    shape: Shape, kind: str, types: Mapping[str, str], n_ctx: int, available: int | None, bandwidth: float | None
) -> Option:
    """bandwidth: GB/s; available: bytes; None: unknown."""
    size = file_bytes(shape, types)
    without = memory_bytes(shape, size, 0)
    room = shape.context_length if available is None else (available - without) // max(shape.kv_bytes_per_token, 1)
    speed = None if bandwidth is None else SHARE_OF_BANDWIDTH * bandwidth * 1e9 / bytes_per_token(shape, types)
    return Option(
        type=kind,
        file_bytes=size,
        memory_bytes=memory_bytes(shape, size, n_ctx),
        fits=room >= n_ctx,
        n_ctx_max=int(max(0, min(room, shape.context_length))),
        tokens_per_s=speed,
    )


def fit(
    shape: Shape,
    n_ctx: int,
    available: int | None,
    bandwidth: float | None,
    types: Mapping[str, str] | None = None,
    kinds: Sequence[str] = TYPES,
) -> Fit:
    """What each type would take and reach. types: those of an existing file, which comes first as "this file"."""
    found = [option(shape, kind, types_of(shape, kind), n_ctx, available, bandwidth) for kind in kinds]
    if types is not None:
        found.insert(0, option(shape, "this file", types, n_ctx, available, bandwidth))
    chosen, reason = recommend([one for one in found if one.type != "this file"], n_ctx)
    return Fit(shape.name, n_ctx, available, bandwidth, tuple(found), chosen, reason)


def _what_would(options: Sequence[Option]) -> str:
    """What to do when no option fits."""
    most = max(options, key=lambda one: one.n_ctx_max)
    if most.n_ctx_max:
        return f"{most.type} fits with {human_count(most.n_ctx_max)} or fewer; or free memory"
    least = min(options, key=lambda one: one.memory_bytes)
    return f"even {least.type} needs {human_bytes(least.memory_bytes)} of memory; less context would not be enough"


def recommend(options: Sequence[Option], n_ctx: int) -> tuple[Option | None, str]:
    """Of options, the best type first, the one to take and why."""
    fitting = [one for one in options if one.fits]
    if not fitting:
        return None, f"no type fits with {n_ctx} tokens of context: {_what_would(options)}"
    usual = next((i for i, one in enumerate(fitting) if one.type == USUAL), None)
    worth_it = fitting if usual is None else fitting[: usual + 1]
    fluent = [one for one in worth_it if one.tokens_per_s is not None and one.tokens_per_s >= FLUENT]
    if fluent:
        return fluent[0], f"the best type that fits and answers with {FLUENT:g} tokens per second or more"
    if usual is not None:
        reason = f"no better type is known to reach {FLUENT:g} tokens per second, and worse ones answer worse"
        return fitting[usual], reason
    return fitting[0], "the best type that fits"
