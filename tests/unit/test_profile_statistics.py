"""Percentiles with intervals, outliers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from themis_triton.profile.statistics import count_outliers, interval_ranks, samples_needed, summarise


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_interval_is_closed_from_the_samples_needed_on(share: float) -> None:
    needed = samples_needed(share)
    assert None not in interval_ranks(needed, share)
    assert None in interval_ranks(needed - 1, share)


@pytest.mark.parametrize("percent", [50.0, 90.0, 99.0])
def test_the_interval_holds_the_true_percentile_as_often_as_it_says(percent: float) -> None:
    rng = np.random.default_rng(7)
    true = -math.log(1.0 - percent / 100.0)
    held = 0
    for _ in range(400):
        summary = summarise(rng.exponential(size=500), percent)
        assert summary.low is not None
        assert summary.high is not None
        held += summary.low <= true <= summary.high
    assert 0.925 <= held / 400 <= 1.0


def test_few_samples_leave_the_interval_open() -> None:
    summary = summarise([1.0, 2.0, 3.0], 99.0)
    assert summary.percentile == 3.0
    assert summary.high is None
    assert summary.relative_halfwidth == math.inf


def test_outliers_are_counted_and_kept() -> None:
    values = np.array([10.0] * 99 + [100.0])
    assert count_outliers(values) == 1
    summary = summarise(values, 99.9)
    assert summary.samples == 100
    assert summary.percentile == 100.0
    assert summary.mean == pytest.approx(10.9)


def test_no_samples_are_no_summary() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarise([], 50.0)
