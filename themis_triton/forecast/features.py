"""What the learnt forecasts look at: logarithms of ratios, which no scale of the rate changes, and the noise that a rate brings with it.

Means carry half a request, so that a logarithm exists where nothing arrived.
"""

from __future__ import annotations

import numpy as np

from themis_triton.forecast.base import HISTORY_S, FloatArray

BASE_S = 5
HALF_REQUEST = 0.5
MAXIMA_S = 10
ROUGHNESS_S = 20

# Seconds of the history, from the oldest, whose mean stands against that of the newest five.
_SPANS = ((59, 60), (57, 60), (50, 55), (40, 50), (20, 40), (0, 20), (50, 60), (40, 60), (0, 60))
_SPAN_SUMS = np.array([[float(a <= second < b) for a, b in _SPANS] for second in range(HISTORY_S)])
_SPAN_S = np.array([b - a for a, b in _SPANS], dtype=np.float64)

CLASSIFIER_FEATURES = (*(f"peak {HISTORY_S - start} s ago" for start in range(0, HISTORY_S, MAXIMA_S)), "noise")
QUANTILE_FEATURES = (
    *(f"mean {HISTORY_S - a} to {HISTORY_S - b} s ago" for a, b in _SPANS),
    *CLASSIFIER_FEATURES,
    "roughness",
)


def base_rate(counts: FloatArray) -> FloatArray:
    """The mean rate (requests/s) of the newest five seconds, never zero: what the learnt forecasts multiply."""
    base: FloatArray = (counts[:, -BASE_S:].sum(axis=1) + HALF_REQUEST) / BASE_S
    return base


def classifier_features(counts: FloatArray) -> FloatArray:
    """Shape (windows, 7): the largest second of each ten, oldest first, as logarithm of its ratio to the base rate; then 1/√base."""
    base = base_rate(counts)[:, None]
    peaks = counts[:, -HISTORY_S:].reshape(len(counts), -1, MAXIMA_S).max(axis=2)
    return np.hstack((np.log((peaks + HALF_REQUEST) / base), 1.0 / np.sqrt(base)))


def quantile_features(counts: FloatArray) -> FloatArray:
    """Shape (windows, 17), in the order of `QUANTILE_FEATURES`; roughness is the spread of successive seconds over the base rate."""
    window = counts[:, -HISTORY_S:]
    base = base_rate(window)[:, None]
    means = np.log((window @ _SPAN_SUMS + HALF_REQUEST) / (_SPAN_S * base))
    peaks = classifier_features(window)
    steps = np.diff(window[:, -ROUGHNESS_S:], axis=1)
    roughness = np.sqrt((steps * steps).mean(axis=1, keepdims=True) / 2.0) / base
    return np.hstack((means, peaks, roughness))
