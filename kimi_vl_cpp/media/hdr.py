"""HDR frames for a model that was trained on ordinary ones: light is decoded, bright parts are compressed, and the rest
keeps its brightness. Arithmetic only.

PQ is SMPTE ST 2084, HLG is ARIB STD-B67; both as ITU-R BT.2100 writes them, and 203 candelas a square metre as white as
BT.2408 says.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Curve = Literal["PQ", "HLG"]

WHITE = 203.0
"""Brightness of paper white, in candelas a square metre."""

_PEAK, _SYSTEM_GAMMA = 1000.0, 1.2  # of a display that HLG is shown on
_KNEE = 0.75  # of white, above which brightness is compressed
_BT2020_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
)
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593])


def to_sdr(signal: NDArray[np.uint16], curve: Curve) -> NDArray[np.uint8]:
    """An HDR picture in the primaries of BT.2020, uint16 [H, W, 3] of the full range, as sRGB, uint8 [H, W, 3]."""
    coded = signal.astype(np.float64) / 65535
    light = (_pq(coded) if curve == "PQ" else _hlg(coded)) / WHITE
    light = np.maximum(light @ _BT2020_TO_BT709.T, 0)
    brightest = light.max(axis=-1, keepdims=True)
    light *= np.divide(_compressed(brightest), brightest, out=np.ones_like(brightest), where=brightest > 0)
    result: NDArray[np.uint8] = np.rint(_srgb(light) * 255).astype(np.uint8)
    return result


def _pq(coded: NDArray[np.float64]) -> NDArray[np.float64]:
    """Candelas a square metre."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = coded ** (1 / m2)
    light: NDArray[np.float64] = 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    return light


def _hlg(coded: NDArray[np.float64]) -> NDArray[np.float64]:
    """Candelas a square metre of a display with the peak of 1000."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    luma = (scene @ _BT2020_LUMA)[..., None]
    light: NDArray[np.float64] = _PEAK * luma ** (_SYSTEM_GAMMA - 1) * scene
    return light


def _compressed(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Up to the knee as it is, above it ever less, below 1."""
    room = 1 - _KNEE
    above = np.maximum(light - _KNEE, 0)
    return np.where(light <= _KNEE, light, _KNEE + room * (1 - np.exp(-above / room)))


def _srgb(light: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
