"""Block formats against the `gguf` package's dequantizers: bit for bit, for any bytes a file may hold."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
from kernel_support import (
    F16_FIELDS,
    FLOAT_TYPES,
    ISAS,
    QUANT_TYPES,
    assert_bits_equal,
    dequantize,
    isas_with_own,
    set_scales,
    sizes,
    unpack_rows,
)
from numpy.typing import NDArray

from kimi_vl_cpp import _core
from kimi_vl_cpp.errors import BadRequest

# Every kind of half: zeros, smallest and largest subnormals, smallest normal, one, largest, infinities, NaNs.
HALVES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF]
NOT_FINITE = [0x7C00, 0xFC00, 0x7E00, 0xFE00, 0x7C01]


def blocks_of(type_name: str) -> NDArray[np.uint8]:
    """[n, block_bytes]: random blocks, constant bytes, and every pair of special scales over random quants."""
    rng = np.random.default_rng(7)
    n_bytes = sizes(type_name)[1]
    constant = np.repeat(np.array([0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0, 0x55, 0xAA], np.uint8)[:, None], n_bytes, axis=1)
    halves = np.array(HALVES + NOT_FINITE, np.uint16).view(np.float16)
    pairs = np.stack([a.ravel() for a in np.meshgrid(halves, halves)], axis=1)
    special = rng.integers(0, 256, (len(pairs), n_bytes), dtype=np.uint8)
    if type_name == "MXFP4":
        special[:256, 0] = np.arange(256)
    else:
        set_scales(type_name, special, pairs)
    return np.concatenate([rng.integers(0, 256, (300, n_bytes), dtype=np.uint8), constant, special])


# Types whose blocks name points of a codebook: how many there are.
CODEBOOKS = {"IQ3_XXS": 256, "IQ3_S": 512, "IQ2_XXS": 256, "IQ2_XS": 512, "IQ2_S": 1024, "IQ1_S": 2048, "IQ1_M": 2048}


def float_values(type_name: str) -> NDArray[np.uint8]:
    """All 65536 bit patterns of a 16-bit type, or random ones of F32."""
    if type_name == "F32":
        return np.random.default_rng(1).integers(0, 256, 4 * 4099, dtype=np.uint8)
    return np.arange(65536, dtype=np.uint16).view(np.uint8)


@pytest.mark.parametrize("isa", isas_with_own("float"))
@pytest.mark.parametrize("type_name", QUANT_TYPES)
def test_decoder_agrees_with_gguf_bit_for_bit(type_name: str, isa: str) -> None:
    blocks = blocks_of(type_name)
    n = blocks.shape[0] * sizes(type_name)[0]
    got = _core.ops.decode_row(isa, type_name, blocks.reshape(-1), n)
    assert_bits_equal(got, dequantize(type_name, blocks).reshape(-1))


@pytest.mark.parametrize("type_name", CODEBOOKS)
def test_every_point_of_the_codebook_agrees_with_gguf(type_name: str) -> None:
    elems, n_bytes = sizes(type_name)
    blocks = np.random.default_rng(11).integers(0, 256, (2000, n_bytes), dtype=np.uint8)
    assert_bits_equal(
        _core.decode(type_name, blocks.reshape(-1), 2000 * elems), dequantize(type_name, blocks).reshape(-1)
    )
    q, _, _ = unpack_rows("generic", type_name, blocks, elems)
    points = np.rint(q / 8) if type_name.startswith("IQ1") else np.abs(q)
    width = 4 if type_name.startswith("IQ3") else 8
    assert len(np.unique(points.reshape(-1, width), axis=0)) == CODEBOOKS[type_name]


@pytest.mark.parametrize("isa", isas_with_own("float"))
@pytest.mark.parametrize("type_name", FLOAT_TYPES)
def test_float_decoder_agrees_with_gguf_bit_for_bit(type_name: str, isa: str) -> None:
    raw = float_values(type_name)
    want = dequantize(type_name, raw[None])[0]
    assert_bits_equal(_core.ops.decode_row(isa, type_name, raw, want.size), want)


@pytest.mark.parametrize("type_name", FLOAT_TYPES + QUANT_TYPES)
def test_decode_function_is_the_reference_decoder(type_name: str) -> None:
    raw = float_values(type_name) if type_name in FLOAT_TYPES else blocks_of(type_name).reshape(-1)
    elems, n_bytes = sizes(type_name)
    n = raw.size // n_bytes * elems
    assert_bits_equal(_core.decode(type_name, raw, n), dequantize(type_name, raw[None])[0])


@pytest.mark.parametrize("type_name", FLOAT_TYPES + QUANT_TYPES)
def test_decoder_reads_blocks_at_any_address(type_name: str) -> None:
    elems, n_bytes = sizes(type_name)
    raw = np.random.default_rng(3).integers(0, 256, 5 * n_bytes + 1, dtype=np.uint8)
    for isa in ISAS:
        shifted = _core.ops.decode_row(isa, type_name, raw[1:], 5 * elems)
        assert_bits_equal(shifted, _core.ops.decode_row(isa, type_name, raw[1:].copy(), 5 * elems))


def test_format_table_agrees_with_gguf() -> None:
    table = {row["name"]: row for row in _core.formats()}
    assert sorted(table) == sorted(FLOAT_TYPES + list(F16_FIELDS))
    for name, row in table.items():
        assert (row["block_elems"], row["block_bytes"]) == sizes(name)
        assert row["id"] == int(gguf.GGMLQuantizationType[name])


def test_the_page_on_types_lists_the_table() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "quantize.md").read_text(encoding="utf-8")
    for kind, writable in (("read and written", True), ("read only", False)):
        row = re.search(rf"^\| {kind} \| ([A-Z0-9_ ]+)", page, re.M)
        assert row and sorted(row[1].split()) == sorted(f["name"] for f in _core.formats() if f["writable"] == writable)


def test_decode_rejects_part_of_a_block_and_short_input() -> None:
    raw = np.zeros(144, np.uint8)
    with pytest.raises(BadRequest):
        _core.ops.decode_row("generic", "Q4_K", raw, 128)
    with pytest.raises(BadRequest):
        _core.ops.decode_row("generic", "Q4_K", raw, 512)
    with pytest.raises(BadRequest):
        _core.ops.decode_row("generic", "Q9_Z", raw, 256)
