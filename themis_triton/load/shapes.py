"""The shipped traces: seeded generators of one rate per second; their phases stretch with the duration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_BASE_RPS = 30.0
_NOISE_MEMORY = 0.6


@dataclass(frozen=True, slots=True)
class Shape:
    """A named curve: `curve(x, duration_s)` in requests/s at x in [0, 1), and the relative size of the noise on it."""

    curve: Callable[[FloatArray, float], FloatArray]
    default_duration_s: int
    noise: float
    sentence: str


def shape_rates(name: str, seed: int, duration_s: int | None = None) -> FloatArray:
    """Rates in requests/s, one per second, of the shipped shape `name`; deterministic in seed and duration.

    The noise is a first-order autoregressive process on the logarithm of the rate: bursts of a few seconds, never negative.
    """
    shape = SHAPES[name]
    seconds = duration_s or shape.default_duration_s
    x = np.arange(seconds, dtype=np.float64) / seconds
    noise = _bursty_noise(np.random.default_rng((seed, seconds)), seconds, shape.noise)
    rates: FloatArray = shape.curve(x, float(seconds)) * np.exp(noise)
    return rates


def _bursty_noise(rng: np.random.Generator, seconds: int, sigma: float) -> FloatArray:
    shocks = rng.normal(0.0, sigma * np.sqrt(1.0 - _NOISE_MEMORY**2), seconds)
    noise = np.empty(seconds)
    level = 0.0
    for second, shock in enumerate(shocks):
        level = _NOISE_MEMORY * level + shock
        noise[second] = level
    return np.clip(noise, -2.0 * sigma, 2.0 * sigma)


def _surge(x: FloatArray, _duration_s: float) -> FloatArray:
    """A base rate, a rise to ×5 within a sixth of the time, a plateau of three tenths, and the base rate for three tenths."""
    return np.interp(x, [0.0, 0.1, 0.26, 0.55, 0.66, 1.0], [_BASE_RPS, _BASE_RPS, 152.0, 152.0, _BASE_RPS, _BASE_RPS])


def _diurnal(x: FloatArray, _duration_s: float) -> FloatArray:
    """A day compressed into the duration: 25 requests/s at night, 115 at noon, a second peak in the evening."""
    day = 0.5 - 0.5 * np.cos(2.0 * np.pi * x)
    evening = 20.0 * np.exp(-(((x - 0.62) / 0.07) ** 2)) * day
    rates: FloatArray = 25.0 + 90.0 * day + evening
    return rates


def _flash(x: FloatArray, duration_s: float) -> FloatArray:
    """A flash crowd: ×5 from one second to the next, a plateau, then an exponential decay."""
    start_s, hold_s = 0.25 * duration_s, 0.2 * duration_s
    at_s = x * duration_s
    decay = np.exp(-np.maximum(0.0, at_s - start_s - hold_s) / (0.08 * duration_s))
    return np.where(at_s < start_s, _BASE_RPS, _BASE_RPS + 120.0 * decay)


def _steady(x: FloatArray, _duration_s: float) -> FloatArray:
    """A constant mean rate."""
    return np.full_like(x, 2.0 * _BASE_RPS)


SHAPES: dict[str, Shape] = {
    "surge": Shape(_surge, 120, 0.04, "30 requests/s, a surge to about 150 within 20 s, a plateau of 35 s, then 30 again"),
    "diurnal": Shape(_diurnal, 600, 0.06, "one day compressed into 10 minutes, between 25 and 125 requests/s"),
    "flash": Shape(_flash, 180, 0.05, "30 requests/s and a flash crowd of 150 from one second to the next"),
    "steady": Shape(_steady, 60, 0.0, "60 requests/s"),
}
