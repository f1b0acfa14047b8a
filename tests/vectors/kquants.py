"""The Q4_K_M text files of the checkpoints, exactly as llama-quantize wrote them, without storing all of them.

Of a Q4_K or Q6_K block, quantized/text-*-q4_k_m.npz holds the scales (16 of 144 bytes, 18 of 210). Given the weights
and the scales, each code is the nearest one, so the other bytes follow. Q5_0 and Q8_0 blocks follow from the weights
alone. The SHA-256 of each tensor is stored beside the scales and compared when the tensor is made.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent / "quantized"


def q8_0(weights):
    """Q8_0 blocks, uint8 [n, 34], of float32 weights: scale max/127 in float16, halves rounded away from zero."""
    x = weights.reshape(-1, 32).astype(np.float32)
    d = np.abs(x).max(1, keepdims=True) / np.float32(127)
    inverse = np.where(d > 0, np.float32(1) / np.where(d > 0, d, 1), 0).astype(np.float32)
    y = x * inverse
    codes = np.trunc(y + np.copysign(np.float32(0.5), y)).astype(np.int8)
    return np.concatenate([d.astype("<f2").view(np.uint8), codes.view(np.uint8)], 1)


def q5_0(weights):
    """Q5_0 blocks, uint8 [n, 22]: the value of largest magnitude gets code 0, which stands for -16."""
    x = weights.reshape(-1, 32).astype(np.float32)
    largest = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    d = largest / np.float32(-16)
    inverse = np.where(d != 0, np.float32(1) / np.where(d != 0, d, 1), 0).astype(np.float32)
    codes = np.minimum(31, np.trunc(x * inverse + np.float32(16.5))).astype(np.uint8)
    high = np.packbits(codes >> 4, axis=1, bitorder="little")
    low = (codes[:, :16] & 15) | (codes[:, 16:] & 15) << 4
    return np.concatenate([d.astype("<f2").view(np.uint8), high, low], 1)


def q4_k(weights, scales):
    """Q4_K blocks, uint8 [n, 144]. scales: uint8 [n, 16], the blocks' first bytes."""
    x, s = weights.reshape(-1, 8, 32), scales[:, 4:].astype(np.int32)
    d = scales[:, :4].copy().view("<f2").astype(np.float32)
    factors = np.concatenate([s[:, :4] & 63, (s[:, 8:] & 15) | s[:, :4] >> 6 << 4], 1)
    offsets = np.concatenate([s[:, 4:8] & 63, s[:, 8:] >> 4 | s[:, 4:8] >> 6 << 4], 1)
    step = (d[:, :1] * factors.astype(np.float32))[..., None]
    offset = (d[:, 1:] * offsets.astype(np.float32))[..., None]
    codes = _nearest(x + offset, step, 0, 15).astype(np.uint8)
    return np.concatenate([scales, (codes[:, ::2] | codes[:, 1::2] << 4).reshape(-1, 128)], 1)


def q6_k(weights, scales):
    """Q6_K blocks, uint8 [n, 210]. scales: uint8 [n, 18], the blocks' last bytes."""
    step = scales[:, 16:].copy().view("<f2").astype(np.float32) * scales[:, :16].copy().view(np.int8)
    codes = _nearest(weights.reshape(-1, 16, 16), step[..., None], -32, 31) + 32
    codes = codes.astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = codes & 15, codes >> 4
    lows = np.concatenate([low[:, :, :2] | low[:, :, 2:] << 4], 2)
    highs = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return np.concatenate([lows.reshape(-1, 128), highs.reshape(-1, 64), scales], 1)


def _nearest(x, step, lowest: int, highest: int):
    codes = np.divide(x, step, out=np.zeros(x.shape, np.float32), where=step != 0)
    return np.clip(np.rint(codes), lowest, highest)


def stored_types(config: str) -> dict[str, str]:
    """Name -> type of the tensors of the Q4_K_M file of checkpoint `config`."""
    with np.load(FOLDER / f"text-{config}-q4_k_m.npz") as file:
        return dict(zip(file["names"].tolist(), file["types"].tolist(), strict=True))


def blocks_as_stored(config: str, name: str, weights) -> bytes:
    """The tensor's bytes in the Q4_K_M file. ValueError: the weights are not those that the file was made of."""
    with np.load(FOLDER / f"text-{config}-q4_k_m.npz") as file:
        at = file["names"].tolist().index(name)
        kind, digest = str(file["types"][at]), str(file["sha256"][at])
        scales = file[f"scales/{name}"] if kind in ("Q4_K", "Q6_K") else None
    if kind == "F32":
        data = np.ascontiguousarray(weights, "<f4")
    elif scales is None:
        data = {"Q5_0": q5_0, "Q8_0": q8_0}[kind](weights)
    else:
        data = {"Q4_K": q4_k, "Q6_K": q6_k}[kind](weights, scales)
    raw = np.ascontiguousarray(data).tobytes()
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError(f"{name}: the {kind} blocks differ from those of the stored file")
    return raw
