"""The learnt forecasts' weights, as they ship in `weights.json`; `benchmarks/train_forecast.py` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from themis_triton.core.errors import ThemisError
from themis_triton.forecast.base import FloatArray
from themis_triton.forecast.features import CLASSIFIER_FEATURES, QUANTILE_FEATURES

FILE = "weights.json"


@dataclass(frozen=True, slots=True, eq=False)
class QuantileWeights:
    """`log(largest rate / base rate)` from one hidden layer: `tanh(features @ hidden + hidden_bias)`, then linear.

    Shapes: hidden (features, units), hidden_bias (units,), output (units, horizons, quantiles), output_bias (horizons, quantiles).
    Features are held within `low` and `high`, the range that was seen in training.
    """

    quantiles: FloatArray
    low: FloatArray
    high: FloatArray
    hidden: FloatArray
    hidden_bias: FloatArray
    output: FloatArray
    output_bias: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class ClassifierWeights:
    """Log-odds that the largest rate exceeds a capacity: linear in the features, and falling in `log(capacity / base rate)`.

    `capacity` (negative) are that logarithm's coefficients, one a horizon; `thresholds` the probabilities above which to call it a surge.
    """

    low: FloatArray
    high: FloatArray
    coefficients: FloatArray
    capacity: FloatArray
    intercepts: FloatArray
    thresholds: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Both learnt forecasts, for the same ascending horizons (s)."""

    horizons_s: FloatArray
    quantile: QuantileWeights
    classifier: ClassifierWeights


def shipped_weights() -> Weights:
    """Those of the installed package. ThemisError when the file does not fit the code."""
    return read_weights(json.loads(files(__package__).joinpath(FILE).read_text(encoding="utf-8")))


def read_weights(data: Mapping[str, Any]) -> Weights:
    """Out of the file's content; ThemisError names what does not fit, KeyError a key that is missing."""
    horizons = _array(data, "horizons_s")
    quantile = data["quantile"]
    classifier = data["classifier"]
    _require_features("quantile", quantile["features"], QUANTILE_FEATURES)
    _require_features("classifier", classifier["features"], CLASSIFIER_FEATURES)
    quantiles = _array(quantile, "quantiles")
    bias = _array(quantile, "hidden_bias")
    shape = (len(horizons), len(quantiles))
    weights = Weights(
        horizons,
        QuantileWeights(
            quantiles,
            _array(quantile, "low", len(QUANTILE_FEATURES)),
            _array(quantile, "high", len(QUANTILE_FEATURES)),
            _array(quantile, "hidden", len(QUANTILE_FEATURES), len(bias)),
            bias,
            _array(quantile, "output", len(bias), *shape),
            _array(quantile, "output_bias", *shape),
        ),
        ClassifierWeights(
            _array(classifier, "low", len(CLASSIFIER_FEATURES)),
            _array(classifier, "high", len(CLASSIFIER_FEATURES)),
            _array(classifier, "coefficients", len(horizons), len(CLASSIFIER_FEATURES)),
            _array(classifier, "capacity", len(horizons)),
            _array(classifier, "intercepts", len(horizons)),
            _array(classifier, "thresholds", len(horizons)),
        ),
    )
    if not (np.diff(horizons) > 0).all() or not (np.diff(quantiles) > 0).all() or not (weights.classifier.capacity < 0).all():
        raise _misfit("horizons and quantiles must ascend, and the classifier's `capacity` be negative")
    return weights


def _array(data: Mapping[str, Any], key: str, *shape: int) -> FloatArray:
    array = np.asarray(data[key], dtype=np.float64)
    if (shape and array.shape != shape) or not np.isfinite(array).all():
        raise _misfit(f"`{key}` has the shape {array.shape}, or holds what is no number; allowed: finite numbers, {shape or 'any shape'}")
    return array


def _require_features(model: str, found: Sequence[str], known: Sequence[str]) -> None:
    if list(found) != list(known):
        raise _misfit(f"`{model}.features` are not those that the code computes")


def _misfit(problem: str) -> ThemisError:
    return ThemisError(f"forecast/{FILE}: {problem}; install the package again, or train again: python benchmarks/train_forecast.py")
