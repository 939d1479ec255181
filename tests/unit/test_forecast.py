"""The forecasts: what no scale changes, what no history allows, and weights that fit the code."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from themis_triton.core.errors import ThemisError
from themis_triton.core.policy import ForecastName
from themis_triton.forecast.features import CLASSIFIER_FEATURES, QUANTILE_FEATURES, classifier_features, quantile_features
from themis_triton.forecast.forecast import Forecaster, able
from themis_triton.forecast.weights import read_weights, shipped_weights

FORECASTER = Forecaster()
LEARNT = (ForecastName.CLASSIFIER, ForecastName.QUANTILE)
QUANTILES = (0.5, 0.6, 0.75, 0.8, 0.9, 0.95, 0.99)
HORIZONS_S = (1.0, 2.0, 7.5, 10.0, 30.0, 60.0, 120.0)


def history(rate: float, growth: float = 0.0, seconds: int = 60, seed: int = 3) -> list[float]:
    """Poisson counts; the rate grows by that share a second over the last twenty."""
    times = np.maximum(np.arange(seconds) - (seconds - 20), 0)
    counts: list[float] = np.random.default_rng(seed).poisson(rate * (1.0 + growth) ** times).astype(float).tolist()
    return counts


def smooth(rate: float, growth: float) -> list[float]:
    return [rate * (1.0 + growth) ** max(second - 40, 0) for second in range(60)]


@pytest.mark.parametrize("name", ForecastName)
@pytest.mark.parametrize("growth", [0.0, 0.03, -0.03])
def test_the_scale_does_not_matter_where_noise_is_small(name: ForecastName, growth: float) -> None:
    large = smooth(1e6, growth)
    one, ten = (FORECASTER.rate(name, [scale * c for c in large], 10.0, 0.9) for scale in (1.0, 10.0))
    assert ten == pytest.approx(10.0 * one, rel=0.005)


def test_features_are_ratios() -> None:
    counts = np.array([history(1e7, 0.02)])
    for features in (classifier_features, quantile_features):
        one, ten = features(counts)[0], features(10.0 * counts)[0]
        assert ten == pytest.approx(one, abs=1e-3)
    assert quantile_features(counts).shape == (1, len(QUANTILE_FEATURES))
    assert classifier_features(counts).shape == (1, len(CLASSIFIER_FEATURES))


@pytest.mark.parametrize("rate", [15.0, 40.0, 200.0, 1000.0, 1e6])
@pytest.mark.parametrize(("name", "low", "high"), [(ForecastName.CLASSIFIER, 0.85, 1.3), (ForecastName.QUANTILE, 1.0, 1.3)])
def test_a_flat_history_is_foreseen_to_go_on(name: ForecastName, rate: float, low: float, high: float) -> None:
    result = [FORECASTER.rate(name, history(rate, seed=seed), 10.0, 0.5) for seed in range(50)]
    assert low * rate < np.mean(result) < high * rate


@pytest.mark.parametrize("name", ForecastName)
def test_what_is_flat_without_noise_stays(name: ForecastName) -> None:
    flat = FORECASTER.rate(name, [100.0] * 60, 10.0, 0.5)
    assert 85.0 < flat < 115.0
    if name not in LEARNT:
        assert flat == 100.0


@pytest.mark.parametrize("name", [ForecastName.LINEAR, ForecastName.QUANTILE])
def test_a_rise_is_foreseen_to_go_on(name: ForecastName) -> None:
    rising = smooth(60.0, 0.04)
    ahead = FORECASTER.rate(name, rising, 10.0, 0.9)
    assert ahead > 1.1 * rising[-1]
    assert ahead > FORECASTER.rate(ForecastName.NONE, rising, 10.0, 0.9) == rising[-1]


def test_a_rise_makes_the_classifier_expect_more() -> None:
    windows = np.array([smooth(60.0, 0.0), smooth(60.0, 0.02), smooth(60.0, 0.04)])
    expected = FORECASTER.learnt.exceedance(windows, np.full(3, 150.0), 10.0).tolist()
    assert expected == sorted(expected)
    assert expected[2] > 10.0 * expected[0]


def test_a_trend_within_noise_is_none() -> None:
    counts = [100.0] * 5 + [102.0] * 5
    assert FORECASTER.rate(ForecastName.LINEAR, counts, 10.0, 0.5) == 102.0
    # 30 more over 5 s, less the standard error √(230 / 5), over 12.5 s.
    rising = [100.0] * 5 + [130.0] * 5
    assert FORECASTER.rate(ForecastName.LINEAR, rising, 10.0, 0.5) == pytest.approx(130.0 + (30.0 - 46.0**0.5) / 5.0 * 12.5)


@pytest.mark.parametrize("name", ForecastName)
@pytest.mark.parametrize("counts", [history(30.0), history(60.0, 0.05), history(150.0, -0.04), [0.0] * 59 + [5.0]])
@pytest.mark.parametrize("horizon_s", HORIZONS_S)
def test_a_higher_quantile_never_foresees_less(name: ForecastName, counts: list[float], horizon_s: float) -> None:
    result = [FORECASTER.rate(name, counts, horizon_s, quantile) for quantile in QUANTILES]
    assert result == sorted(result)
    assert np.isfinite(result).all()
    assert result[0] > 0.0


@pytest.mark.parametrize("name", LEARNT)
def test_between_horizons_and_quantiles_is_between(name: ForecastName) -> None:
    counts = history(60.0, 0.03)
    ten, fifteen, twenty = (FORECASTER.rate(name, counts, h, 0.9) for h in (10.0, 15.0, 20.0))
    assert min(ten, twenty) <= fifteen <= max(ten, twenty)
    assert FORECASTER.rate(name, counts, 60.0, 0.9) == FORECASTER.rate(name, counts, 600.0, 0.9)
    assert FORECASTER.rate(name, counts, 10.0, 0.75) < FORECASTER.rate(name, counts, 10.0, 0.8) < FORECASTER.rate(name, counts, 10.0, 0.9)


@pytest.mark.parametrize(
    ("name", "seconds", "answers"),
    [
        (ForecastName.QUANTILE, 60, ForecastName.QUANTILE),
        (ForecastName.QUANTILE, 59, ForecastName.LINEAR),
        (ForecastName.CLASSIFIER, 10, ForecastName.LINEAR),
        (ForecastName.CLASSIFIER, 9, ForecastName.NONE),
        (ForecastName.LINEAR, 9, ForecastName.NONE),
        (ForecastName.NONE, 60, ForecastName.NONE),
        (ForecastName.NONE, 0, ForecastName.NONE),
    ],
)
def test_a_short_history_is_answered_by_a_simpler_forecast(name: ForecastName, seconds: int, answers: ForecastName) -> None:
    assert able(name, seconds) is answers
    counts = history(40.0, 0.05)[60 - seconds :]
    assert FORECASTER.rate(name, counts, 10.0, 0.9) == FORECASTER.rate(answers, counts, 10.0, 0.9)


@pytest.mark.parametrize("name", ForecastName)
@pytest.mark.parametrize("seconds", [0, 1, 9, 10, 60, 90])
def test_nothing_arrives(name: ForecastName, seconds: int) -> None:
    assert FORECASTER.rate(name, [0.0] * seconds, 10.0, 0.9) == 0.0


@pytest.mark.parametrize("name", LEARNT)
def test_seconds_before_the_last_minute_do_not_count(name: ForecastName) -> None:
    counts = history(40.0)
    assert FORECASTER.rate(name, [900.0] * 7 + counts, 10.0, 0.9) == FORECASTER.rate(name, counts, 10.0, 0.9)


@pytest.mark.parametrize("name", ForecastName)
def test_many_windows_at_once_are_as_one_by_one_and_the_same_each_time(name: ForecastName) -> None:
    windows = np.array([history(rate, growth) for rate in (10.0, 50.0, 200.0) for growth in (0.0, 0.03)])
    together = FORECASTER.forecast(name)(windows, 10.0, 0.9)
    assert [FORECASTER.rate(name, window.tolist(), 10.0, 0.9) for window in windows] == pytest.approx(together.tolist(), rel=1e-9)
    assert FORECASTER.forecast(name)(windows, 10.0, 0.9).tolist() == together.tolist()


@pytest.mark.parametrize(("horizon_s", "quantile"), [(0.0, 0.9), (-1.0, 0.9), (10.0, 0.4), (10.0, 1.0), (float("nan"), 0.9)])
def test_what_no_forecast_can_answer(horizon_s: float, quantile: float) -> None:
    with pytest.raises(ValueError, match=r"allowed are more than 0 s, and 0\.5 to 0\.99"):
        FORECASTER.rate(ForecastName.QUANTILE, history(40.0), horizon_s, quantile)


def test_the_classifier_is_a_distribution() -> None:
    """The rate at quantile q is the capacity that is exceeded with probability 1 − q; more capacity is exceeded less often."""
    counts = history(60.0, 0.03)
    for quantile in (0.5, 0.9, 0.99):
        rate = FORECASTER.rate(ForecastName.CLASSIFIER, counts, 10.0, quantile)
        assert FORECASTER.learnt.exceedance(np.array([counts]), np.array([rate]), 10.0)[0] == pytest.approx(1.0 - quantile)
    falling = FORECASTER.learnt.exceedance(np.array([counts] * 3), np.array([50.0, 100.0, 200.0]), 10.0).tolist()
    assert falling == sorted(falling, reverse=True)
    assert 0.0 < FORECASTER.learnt.surge_threshold(10.0) < 0.5


def shipped() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(files("themis_triton.forecast").joinpath("weights.json").read_text(encoding="utf-8"))
    return data


def test_the_shipped_weights_fit_and_say_where_they_come_from() -> None:
    facts = shipped()["facts"]
    assert facts["days"] == [1, 14]
    assert {"seed", "kinds", "versions", "code"} <= facts.keys()
    weights = shipped_weights()
    assert (weights.horizons_s[0], weights.horizons_s[-1]) == (2.0, 60.0)
    assert (weights.quantile.quantiles[0], weights.quantile.quantiles[-1]) == (0.5, 0.99)


def _short(data: dict[str, Any]) -> None:
    data["quantile"]["low"].pop()


def _renamed(data: dict[str, Any]) -> None:
    data["classifier"]["features"][0] = "phase of the moon"


def _rising(data: dict[str, Any]) -> None:
    data["classifier"]["capacity"][0] = 1.0


def _not_a_number(data: dict[str, Any]) -> None:
    data["quantile"]["output_bias"][0][0] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_short, "`low` has the shape"),
        (_renamed, "`classifier.features` are not those that the code computes"),
        (_rising, "the classifier's `capacity` be negative"),
        (_not_a_number, "`output_bias` has the shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused(spoil: Callable[[dict[str, Any]], None], problem: str) -> None:
    data = shipped()
    spoil(data)
    with pytest.raises(ThemisError, match=problem) as refused:
        read_weights(data)
    assert "install the package again" in str(refused.value)
