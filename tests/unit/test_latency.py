import math

import pytest

from themis_triton.core.observation import LatencyHistogram
from themis_triton.estimate.latency import difference, percentiles_between

BOUNDS_MS = (10.0, 20.0, 40.0, math.inf)


def histogram(*counts: float) -> LatencyHistogram:
    return LatencyHistogram(BOUNDS_MS, counts)


def percentile(counted: LatencyHistogram, percent: float) -> float | None:
    return percentiles_between(counted, None, (percent,))[0]


@pytest.mark.parametrize(
    ("counts", "percent", "expected_ms"),
    [
        ((100.0, 100.0, 100.0, 100.0), 50.0, 5.0),
        ((0.0, 100.0, 100.0, 100.0), 50.0, 15.0),
        ((50.0, 100.0, 100.0, 100.0), 99.0, 19.8),
        ((50.0, 50.0, 100.0, 100.0), 50.0, 10.0),
        ((0.0, 0.0, 1.0, 1.0), 100.0, 40.0),
    ],
)
def test_percentiles_are_interpolated_within_their_bucket(counts: tuple[float, ...], percent: float, expected_ms: float) -> None:
    assert percentile(histogram(*counts), percent) == pytest.approx(expected_ms)


def test_beyond_the_last_finite_bound_that_bound_is_the_answer() -> None:
    assert percentile(histogram(0.0, 0.0, 0.0, 10.0), 99.0) == 40.0
    assert percentile(LatencyHistogram((math.inf,), (3.0,)), 99.0) == 0.0


def test_nothing_counted_is_no_latency() -> None:
    assert percentile(histogram(0.0, 0.0, 0.0, 0.0), 99.0) is None
    assert percentile(LatencyHistogram((), ()), 99.0) is None


def test_percentiles_grow_with_the_percent() -> None:
    result = [percentile(histogram(3.0, 40.0, 95.0, 100.0), float(percent)) for percent in range(1, 101)]
    known = [value for value in result if value is not None]
    assert len(known) == 100
    assert known == sorted(known)


def test_a_difference_counts_what_came_between() -> None:
    assert difference(histogram(5.0, 9.0, 9.0, 10.0), histogram(1.0, 4.0, 4.0, 4.0)) == histogram(4.0, 5.0, 5.0, 6.0)


def test_a_histogram_that_restarted_or_changed_its_bounds_counts_as_new() -> None:
    restarted = histogram(1.0, 1.0, 2.0, 2.0)
    assert difference(restarted, histogram(9.0, 9.0, 9.0, 9.0)) == restarted
    assert difference(restarted, LatencyHistogram((1.0, math.inf), (0.0, 0.0))) == restarted


def test_percentiles_between_two_readings_are_those_of_their_difference() -> None:
    newer, older, percents = histogram(5.0, 30.0, 80.0, 90.0), histogram(1.0, 4.0, 40.0, 40.0), (50.0, 90.0, 99.0)
    other_bounds = LatencyHistogram((1.0, math.inf), (0.0, 0.0))
    for newest, oldest in ((newer, older), (older, newer), (newer, newer), (newer, other_bounds)):
        assert percentiles_between(newest, oldest, percents) == percentiles_between(difference(newest, oldest), None, percents)
