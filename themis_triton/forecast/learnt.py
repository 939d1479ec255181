"""Forecasts with weights: a small network of quantiles, and the paper's classifier read as a distribution.

Between the horizons of the weights they are interpolated over the horizon's logarithm; beyond the ends the nearest one holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from themis_triton.core.memory import Memory
from themis_triton.forecast.base import FloatArray
from themis_triton.forecast.features import base_rate, classifier_features, quantile_features
from themis_triton.forecast.weights import Weights

KEPT = 64  # layers of horizons and quantiles


class LearntForecasts:
    """The forecasts with given weights. What a horizon or a quantile makes of the weights is kept for those used last."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._kept: Memory[Any] = Memory(KEPT)

    def quantile(self, counts: FloatArray, horizon_s: float, quantile: float) -> FloatArray:
        """The base rate times e to the output of a small network, which was taught by quantile regressions. Needs sixty seconds.

        Between the quantiles of the weights it is interpolated over their log-odds; it never falls as the quantile rises.
        """
        weights = self.weights.quantile
        output, output_bias = self._output_layer(horizon_s)
        features = np.minimum(np.maximum(quantile_features(counts), weights.low), weights.high)
        logs = np.maximum.accumulate(np.tanh(features @ weights.hidden + weights.hidden_bias) @ output + output_bias, axis=1)
        rate: FloatArray = base_rate(counts) * np.exp(logs @ self._quantile_shares(quantile))
        return rate

    def classifier(self, counts: FloatArray, horizon_s: float, quantile: float) -> FloatArray:
        """The least capacity that the classifier expects to be exceeded with a probability of at most `1 - quantile`.

        Needs sixty seconds. It knows only the largest second of each ten, and lags behind a steep rise.
        """
        plane = self._classifier_plane(horizon_s)
        capacity = plane[-2]
        log_ratio = (self._log_odds_at_base(counts, plane) + _log_odds(quantile)) / -capacity
        rate: FloatArray = base_rate(counts) * np.exp(log_ratio)
        return rate

    def exceedance(self, counts: FloatArray, capacity_rps: FloatArray, horizon_s: float) -> FloatArray:
        """The classifier's probability that the largest rate of the horizon exceeds the capacity (> 0), one a row of `counts`."""
        plane = self._classifier_plane(horizon_s)
        odds = self._log_odds_at_base(counts, plane) + plane[-2] * np.log(capacity_rps / base_rate(counts))
        probability: FloatArray = 1.0 / (1.0 + np.exp(-odds))
        return probability

    def surge_threshold(self, horizon_s: float) -> float:
        """The probability of exceedance above which the classifier calls a surge: chosen in training for its recall."""
        return float(self._horizon_shares(horizon_s) @ self.weights.classifier.thresholds)

    def _log_odds_at_base(self, counts: FloatArray, plane: FloatArray) -> FloatArray:
        weights = self.weights.classifier
        features = np.minimum(np.maximum(classifier_features(counts), weights.low), weights.high)
        odds: FloatArray = features @ plane[:-2] + plane[-1]
        return odds

    def _horizon_shares(self, horizon_s: float) -> FloatArray:
        return _shares(np.log(self.weights.horizons_s), float(np.log(horizon_s)))

    def _quantile_shares(self, quantile: float) -> FloatArray:
        known = self.weights.quantile.quantiles
        shares: FloatArray = self._kept.get(
            ("quantile shares", quantile), lambda: _shares(np.log(known / (1.0 - known)), _log_odds(quantile))
        )
        return shares

    def _output_layer(self, horizon_s: float) -> tuple[FloatArray, FloatArray]:
        """The output layer for a horizon: shapes (units, quantiles) and (quantiles,)."""

        def build() -> tuple[FloatArray, FloatArray]:
            weights, shares = self.weights.quantile, self._horizon_shares(horizon_s)
            return np.einsum("h,uhq->uq", shares, weights.output), shares @ weights.output_bias

        layer: tuple[FloatArray, FloatArray] = self._kept.get(("output layer", horizon_s), build)
        return layer

    def _classifier_plane(self, horizon_s: float) -> FloatArray:
        """The features' coefficients, then the capacity's, then the intercept, for a horizon."""

        def build() -> FloatArray:
            weights, shares = self.weights.classifier, self._horizon_shares(horizon_s)
            return np.concatenate((shares @ weights.coefficients, [shares @ weights.capacity, shares @ weights.intercepts]))

        plane: FloatArray = self._kept.get(("classifier plane", horizon_s), build)
        return plane


def _log_odds(probability: float) -> float:
    return float(np.log(probability / (1.0 - probability)))


def _shares(knots: FloatArray, at: float) -> FloatArray:
    """What each of the ascending knots counts in a linear interpolation; the ends hold beyond them."""
    return np.array([np.interp(at, knots, unit) for unit in np.eye(len(knots))])
