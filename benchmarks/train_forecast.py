"""Trains the forecasts that learn, on days 1 to 14 of the Twitter trace, and writes their weights into the package.

`THEMIS_TRACES=folder python benchmarks/train_forecast.py` takes about two minutes; days 15 and 16 are never read.
With `--days 1 12 --out FILE` days 13 and 14 are left to choose between models by.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import commit, versions
from forecast_windows import FloatArray, Kind, Windows, joined, rates_of_days, sample
from rich.progress import track
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPRegressor

import themis_triton.forecast
from themis_triton.forecast.features import (
    CLASSIFIER_FEATURES,
    QUANTILE_FEATURES,
    base_rate,
    classifier_features,
    quantile_features,
)
from themis_triton.forecast.weights import FILE, read_weights

TRAINING_DAYS = (1, 14)
SEED = 20210801
HORIZONS_S = (2, 5, 10, 20, 40, 60)
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99)
# The trace at the scales that are served; at smaller ones, with more noise; and at larger ones: a second of the trace is itself
# one draw, so there a moving mean stands for the true rate, else no window would be without its noise.
KINDS = (Kind(100_000, (1.5, 6.0)), Kind(20_000, (6.0, 30.0)), Kind(30_000, (0.05, 2.0), mean_s=9))
TREES = {"max_iter": 120, "max_leaf_nodes": 8, "min_samples_leaf": 100, "early_stopping": False}
NETWORK = {"hidden_layer_sizes": (32,), "activation": "tanh", "batch_size": 500, "max_iter": 40, "tol": 0.0, "n_iter_no_change": 40}
CAPACITY_RATIOS = (1.0, 2.0)
# The threshold finds so many of the windows in which a capacity of so many times the recent largest second is exceeded.
RECALL = 0.9
THRESHOLD_RATIO = 1.25
RECENT_S = 5
# The classifier is linear: what lies further out than all but so many of the windows must not carry it away.
CLASSIFIER_OUTSIDE = 0.01
DIGITS = 5


@dataclass(frozen=True, slots=True)
class Scaling:
    """Features as a regression's solver likes them, and the range within which they are held, then and when used."""

    low: FloatArray
    high: FloatArray
    mean: FloatArray
    spread: FloatArray

    def apply(self, features: FloatArray) -> FloatArray:
        """Mean near 0, spread near 1."""
        return (np.clip(features, self.low, self.high) - self.mean) / self.spread

    def undo(self, coefficients: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Coefficients of the raw features (features first), and what the intercepts gain."""
        raw = (coefficients.T / self.spread).T
        return raw, -(self.mean @ raw)


def main(days: tuple[int, int], out: Path) -> None:
    """Train and write."""
    rates = rates_of_days(*days)
    windows = joined([sample(rates, kind, max(HORIZONS_S), SEED + number) for number, kind in enumerate(KINDS)])
    data = {
        "facts": {
            "trace": "Twitter stream, arrivals a second, August 2021",
            "days": list(days),
            "seed": SEED,
            "kinds": [{"windows": kind.windows, "divisors": list(kind.divisors), "mean_s": kind.mean_s} for kind in KINDS],
            "threshold": {"recall": RECALL, "capacity_over_recent_largest_second": THRESHOLD_RATIO},
            "code": commit(),
            "versions": versions("scikit-learn", "numpy", "scipy"),
        },
        "horizons_s": list(HORIZONS_S),
        "quantile": quantile_weights(windows),
        "classifier": classifier_weights(windows),
    }
    read_weights(data)
    out.write_text(json.dumps(data) + "\n", encoding="utf-8")
    print(f"{out}: {out.stat().st_size / 1000:.1f} kB")


def scaling(features: FloatArray, names: tuple[str, ...], outside: float) -> Scaling:
    """The range leaves out so large a share at each end; noise may fall to none."""
    noise = np.array([name in {"noise", "roughness"} for name in names])
    low, high = np.quantile(features, (outside, 1.0 - outside), axis=0)
    return Scaling(np.where(noise, 0.0, low), high, features.mean(0), features.std(0))


def quantile_weights(windows: Windows) -> dict[str, Any]:
    """Boosted trees for each horizon and quantile; one small network learns what they all say."""
    features = quantile_features(windows.counts)
    scale = scaling(features, QUANTILE_FEATURES, 0.0)
    inputs, base = scale.apply(features), base_rate(windows.counts)
    taught = np.zeros((len(base), len(HORIZONS_S), len(QUANTILES)))
    for h, q in track([(h, q) for h in range(len(HORIZONS_S)) for q in range(len(QUANTILES))], "quantile regressions"):
        trees = HistGradientBoostingRegressor(loss="quantile", quantile=QUANTILES[q], random_state=SEED, **TREES)
        taught[:, h, q] = trees.fit(inputs, np.log(windows.largest(HORIZONS_S[h]) / base)).predict(inputs)
    flat = taught.reshape(len(base), -1)
    spread = flat.std()
    with warnings.catch_warnings():
        # A fixed number of passes is intended.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network = MLPRegressor(random_state=SEED, **NETWORK).fit(inputs, flat / spread)
    hidden, gained = scale.undo(network.coefs_[0])
    shape = (len(HORIZONS_S), len(QUANTILES))
    return {
        "features": list(QUANTILE_FEATURES),
        "quantiles": list(QUANTILES),
        **limits(scale),
        "hidden": rounded(hidden),
        "hidden_bias": rounded(network.intercepts_[0] + gained),
        "output": rounded(spread * network.coefs_[1].reshape(-1, *shape)),
        "output_bias": rounded(spread * network.intercepts_[1].reshape(shape)),
    }


def classifier_weights(windows: Windows) -> dict[str, Any]:
    """A logistic regression for each horizon, over capacities drawn at random above the recent largest second."""
    features = classifier_features(windows.counts)
    scale = scaling(features, CLASSIFIER_FEATURES, CLASSIFIER_OUTSIDE)
    base, recent = base_rate(windows.counts), windows.counts[:, -RECENT_S:].max(axis=1) + 0.5
    random = np.random.default_rng(SEED)
    drawn = recent * np.exp(random.uniform(math.log(CAPACITY_RATIOS[0]), math.log(CAPACITY_RATIOS[1]), len(recent)))
    coefficients = np.zeros((len(HORIZONS_S), len(CLASSIFIER_FEATURES)))
    intercepts, slopes, thresholds = (np.zeros(len(HORIZONS_S)) for _ in range(3))
    for h, horizon_s in enumerate(HORIZONS_S):
        largest = windows.largest(horizon_s)
        inputs = np.column_stack((scale.apply(features), np.log(drawn / base)))
        model = LogisticRegression(C=np.inf, max_iter=1000).fit(inputs, largest > drawn)
        coefficients[h], gained = scale.undo(model.coef_[0, :-1])
        slopes[h], intercepts[h] = model.coef_[0, -1], model.intercept_[0] + gained
        judged = recent * THRESHOLD_RATIO
        inputs[:, -1] = np.log(judged / base)
        thresholds[h] = np.quantile(model.predict_proba(inputs)[largest > judged, 1], 1.0 - RECALL)
    return {
        "features": list(CLASSIFIER_FEATURES),
        **limits(scale),
        "coefficients": rounded(coefficients),
        "intercepts": rounded(intercepts),
        "capacity": rounded(slopes),
        "thresholds": rounded(thresholds),
    }


def limits(scale: Scaling) -> dict[str, list[float]]:
    """The range of the features."""
    return {"low": rounded(scale.low), "high": rounded(scale.high)}


def rounded(values: FloatArray) -> list[Any]:
    """As lists for the file."""
    found: list[Any] = values.round(DIGITS).tolist()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, nargs=2, default=TRAINING_DAYS)
    parser.add_argument("--out", type=Path, default=Path(themis_triton.forecast.__path__[0]) / FILE)
    chosen = parser.parse_args()
    main(tuple(chosen.days), chosen.out)
