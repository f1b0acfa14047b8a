"""Random weight blocks and comparisons that the kernel tests share."""

from __future__ import annotations

from collections.abc import Sequence

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from kimi_vl_cpp import _core

ISAS: list[str] = _core.ops.isas()
FLOAT_TYPES = ["F32", "F16", "BF16"]


def isas_with_own(*groups: str) -> list[str]:
    """The instruction sets of this machine that have kernels of these groups, those of a plainer one alone left out: no
    test need run again on the same code. The groups are those of `_core.ops.addresses`."""
    own: dict[tuple[tuple[int, ...], ...], str] = {}
    for isa in reversed(ISAS):
        addresses = _core.ops.addresses(isa)
        functions = tuple(tuple(addresses[group]) for group in groups)
        if any(map(any, functions)):
            own.setdefault(functions, isa)
    return list(own.values())


def isas_with_own_sessions(text_type: str = "F32", kv_type: str = "f16", activations: str = "int8") -> list[str]:
    """The same for sessions of such a model and their pictures: bf16 stands beside quantized text in int8 only."""
    floats = text_type in FLOAT_TYPES or activations == "float"
    bf16 = () if floats or kv_type == "f32" else ("bf16 products", "bf16 latents")
    return isas_with_own("int8", "float", "attention", "rows", *bf16)


every_isa_in_floats = pytest.mark.parametrize("isa", isas_with_own_sessions(), indirect=True)


def every_isa_of(names: str, cases: Sequence[tuple[str, ...]]) -> pytest.MarkDecorator:
    """Parameters `isa` and those named, of text_type, kv_type and activations: each case on the code that it has."""
    keys = names.split(", ")
    rows = [(isa, *case) for case in cases for isa in isas_with_own_sessions(**dict(zip(keys, case, strict=True)))]
    return pytest.mark.parametrize(["isa", *keys], rows, indirect=["isa"])


# Byte offsets of the f16 numbers in a block. MXFP4 has a power of two in its first byte instead, SCATTERED types have a
# nibble in the upper half of each of the bytes named there.
F16_FIELDS: dict[str, list[int]] = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "MXFP4": [],
    **{name: [0] for name in ("IQ3_XXS", "IQ3_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S")},
    "IQ1_M": [49],
    "TQ1_0": [52],
    "TQ2_0": [64],
}
SCATTERED = {"IQ1_M": [49, 51, 53, 55]}
QUANT_TYPES = list(F16_FIELDS)
U = 2.0**-24  # unit roundoff of float32


def sizes(type_name: str) -> tuple[int, int]:
    """(elements, bytes) of a block."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]


def dequantize(type_name: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The oracle: uint8 [..., row_bytes] -> float32 [..., n]."""
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(np.ascontiguousarray(raw), gguf.GGMLQuantizationType[type_name])


def set_scales(type_name: str, blocks: NDArray[np.uint8], scales: NDArray[np.float16]) -> None:
    """Writes `scales` [n_blocks, n_fields] into the f16 fields of blocks [n_blocks, block_bytes], in place."""
    for i, offset in enumerate(SCATTERED.get(type_name, ())):
        nibble = (np.ascontiguousarray(scales[:, 0]).view(np.uint16) >> (4 * i)) & 15
        blocks[:, offset] = (blocks[:, offset] & 15) | (nibble << 4).astype(np.uint8)
    for i, offset in enumerate(F16_FIELDS[type_name] if type_name not in SCATTERED else ()):
        blocks[:, offset : offset + 2] = np.ascontiguousarray(scales[:, i : i + 1]).view(np.uint8)


def random_rows(type_name: str, n_rows: int, k: int, seed: int) -> NDArray[np.uint8]:
    """uint8 [n_rows, row_bytes]: random bits under finite scales, some of them zero, subnormal or negative."""
    rng = np.random.default_rng(seed)
    elems, n_bytes = sizes(type_name)
    n_blocks = n_rows * (k // elems)
    blocks = rng.integers(0, 256, (n_blocks, n_bytes), dtype=np.uint8)
    if type_name == "MXFP4":
        blocks[:, 0] = rng.integers(118, 132, n_blocks)
    else:
        fields = len(F16_FIELDS[type_name])
        scales = rng.uniform(-0.1, 0.1, (n_blocks, fields))
        scales *= rng.choice([1.0, 1.0, 1.0, 1e-5, 0.0], (n_blocks, fields))  # 1e-6 is subnormal in f16
        set_scales(type_name, blocks, scales.astype(np.float16))
    return blocks.reshape(n_rows, -1)


def unpack_rows(
    isa: str, type_name: str, w: NDArray[np.uint8], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32] | None]:
    """Rows as the panels of `isa` hold them: q [n_rows, k], scale [n_rows, k/group], min [n_rows, k/group] or None."""
    lanes = _core.ops.sizes(isa)["panel_lanes"]
    parts = []
    for first in range(0, len(w), lanes):
        rows = w[first : first + lanes]
        panel = _core.ops.pack_panel(isa, type_name, np.ascontiguousarray(rows), k)
        assert panel["q"].max() <= panel["max_q"]
        q = panel["q"].astype(np.int64).transpose(1, 0, 2).reshape(lanes, k) - panel["bias"]
        low = None if panel["min"] is None else panel["min"].T[: len(rows)]
        parts.append((q[: len(rows)], panel["scale"].T[: len(rows)], low))
    q, scale = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return q, scale, None if parts[0][2] is None else np.concatenate([part[2] for part in parts])


def assert_bits_equal(got: NDArray[np.float32], want: NDArray[np.float32]) -> None:
    """The same bits everywhere, but any NaN equals any NaN."""
    assert got.shape == want.shape and got.dtype == want.dtype == np.float32
    differ = (got.view(np.uint32) != want.view(np.uint32)) & ~(np.isnan(got) & np.isnan(want))
    if differ.any():
        at = tuple(int(i) for i in np.argwhere(differ)[0])
        raise AssertionError(f"{differ.sum()} of {got.size} differ, first at {at}: got {got[at]!r}, want {want[at]!r}")


def assert_within(got: NDArray[np.float32], want: NDArray[np.float64], bound: NDArray[np.float64] | float) -> None:
    """|got - want| <= bound everywhere; on failure shows the worst coordinate and both values."""
    assert got.shape == want.shape
    assert np.isfinite(got).all(), f"not finite at {np.argwhere(~np.isfinite(got))[0]}"
    error = np.abs(got.astype(np.float64) - want)
    excess = error - bound
    if (excess > 0).any():
        at = np.unravel_index(int(np.argmax(excess)), got.shape)
        limit = np.broadcast_to(bound, got.shape)[at]
        raise AssertionError(
            f"worst at {at}: got {got[at]!r}, want {want[at]!r}, error {error[at]:.3g}, bound {limit:.3g}"
        )
