import numpy as np
import pytest

from themis_triton.adapters.store.frozen_values import frozen, thawed
from themis_triton.core.observation import LatencyHistogram, RouteReading
from themis_triton.estimate.counter_kernels import BURST, DISPERSION, GROWTH, NEWEST
from themis_triton.estimate.counters import NO_COUNTERS, Counters, CounterTable, RateWindows
from themis_triton.estimate.routed import NO_ROUTES, RoutedSeries
from themis_triton.solver.surface import FloatArray

WINDOWS = RateWindows(1.0, 5.0, 5.0, 0.5, 1.0, 2.0, 0.5, 15.0)


def append(counters: Counters, at_s: float, keep_s: float = 60.0, **raw: float) -> Counters:
    return counters.append(at_s, tuple(raw), np.array([list(raw.values())], dtype=np.float64), keep_s)


def table(*readings: tuple[float, float], keep_s: float = 60.0) -> CounterTable:
    """Readings of one counter."""
    counters = NO_COUNTERS
    for at_s, raw in readings:
        counters = append(counters, at_s, keep_s, one=raw)
    return counters.tables[0]


def only(values: FloatArray) -> float:
    """The value of the only column."""
    (value,) = values.tolist()
    return float(value)


def rate(of: CounterTable, window_s: float, lag_s: float = 0.0) -> float:
    return only(of.rates(0, window_s, lag_s=lag_s)[0])


def demand_rate(of: CounterTable, row: int, **windows_s: float) -> float:
    """A row of `demand_rates` over these windows; the others are of no matter."""
    return only(of.demand_rates(WINDOWS._replace(**windows_s))[row])


def test_nothing_read_is_no_rate() -> None:
    assert NO_COUNTERS.rates(0, 1.0) == NO_COUNTERS.increases(0, 1.0, 2.0) == {}
    assert NO_COUNTERS.span_s == 0.0


def test_what_was_counted_before_the_first_reading_is_not_a_rate() -> None:
    assert rate(table((10.0, 1_000_000.0)), 1.0) == 0.0
    assert rate(table((10.0, 1_000_000.0), (11.0, 1_000_005.0)), 1.0) == pytest.approx(5.0)


def test_a_restarted_counter_goes_on_counting() -> None:
    assert table((0.0, 100.0), (1.0, 110.0), (2.0, 4.0)).totals.tolist() == [[[0.0, 10.0, 14.0]]]


def test_a_reading_from_the_past_or_read_twice_is_ignored() -> None:
    before = append(append(NO_COUNTERS, 1.0, one=5.0), 2.0, one=7.0)
    assert append(before, 1.5, one=99.0).tables == before.tables
    assert append(before, 2.0, one=99.0).tables == before.tables


def test_old_readings_are_dropped() -> None:
    kept = table(*((float(second), 10.0 * second) for second in range(100)), keep_s=5.0)
    assert len(kept.times_s) <= 6
    assert rate(kept, 3.0) == pytest.approx(10.0)


def test_a_rate_over_more_than_there_is_covers_what_there_is() -> None:
    assert rate(table((0.0, 0.0), (2.0, 20.0)), 60.0) == pytest.approx(10.0)
    assert rate(table((0.0, 0.0), (2.0, 20.0)), 1.0, lag_s=5.0) == 0.0


def test_rate_peak_and_growth_of_a_step() -> None:
    """10/s for 5 s, then 50/s for 2 s, then 10/s for 1 s."""
    step = table((0.0, 0.0), (5.0, 50.0), (6.0, 100.0), (7.0, 150.0), (8.0, 160.0))
    assert rate(step, 1.0) == pytest.approx(10.0)
    assert rate(step, 3.0) == pytest.approx(110.0 / 3)
    assert demand_rate(step, BURST, rate_s=1.0, burst_s=5.0) == pytest.approx(50.0)
    assert demand_rate(step, BURST, rate_s=1.0, burst_s=1.0) == pytest.approx(10.0)
    assert demand_rate(step, GROWTH, growth_s=2.0) == pytest.approx((30.0 - 30.0) / 2.0)
    assert demand_rate(step, GROWTH, growth_s=1.0) == pytest.approx(-40.0)


def test_growth_needs_two_half_windows() -> None:
    short = table((0.0, 0.0), (1.0, 10.0), (2.0, 40.0))
    assert demand_rate(short, GROWTH, growth_s=1.0) == pytest.approx(20.0)
    assert demand_rate(short, GROWTH, growth_s=1.1) == 0.0


def test_after_a_rest_all_new_arrivals_lie_in_the_newest_window() -> None:
    assert demand_rate(table((0.0, 0.0), (8.0, 5.0)), NEWEST, newest_s=0.5) == pytest.approx(10.0)
    assert demand_rate(table((0.0, 0.0), (0.25, 5.0)), NEWEST, newest_s=0.5) == pytest.approx(20.0)


def test_totals_are_interpolated_and_the_ends_hold() -> None:
    line = table((0.0, 0.0), (2.0, 20.0))
    assert [line.increases(-1.0, end_s).tolist() for end_s in (-0.5, 0.5, 9.0)] == [[[0.0]], [[5.0]], [[20.0]]]
    assert line.increases(0.5, 1.0).tolist() == [[pytest.approx(5.0)]]


def test_a_stream_without_noise_has_no_dispersion_and_a_trend_adds_little() -> None:
    assert demand_rate(table(*((0.5 * i, 5.0 * i) for i in range(40))), DISPERSION) == pytest.approx(0.0, abs=1e-9)
    ramp = table(*((0.5 * i, 0.5 * i * (i + 1)) for i in range(40)))
    assert demand_rate(ramp, DISPERSION) < 0.1


def test_too_little_to_tell_dispersion_counts_as_poisson() -> None:
    assert demand_rate(table((0.0, 0.0)), DISPERSION) == 1.0
    assert demand_rate(table((0.0, 0.0), (1.0, 40.0)), DISPERSION) == 1.0
    assert demand_rate(table(*((float(i), 0.0) for i in range(30))), DISPERSION) == 1.0


def test_counters_that_come_and_go_keep_their_own_history_and_share_a_table_again() -> None:
    counters = append(append(NO_COUNTERS, 0.0, a=0.0, c=0.0), 1.0, a=10.0, b=7.0, c=5.0)
    assert [each.names for each in counters.tables] == [("a", "c"), ("b",)]
    counters = append(counters, 2.0, a=20.0, c=5.0)
    assert counters.rates(0, 2.0) == {"a": 10.0, "c": 2.5, "b": 0.0}
    counters = append(counters, 3.0, a=30.0, b=11.0, c=5.0)
    assert counters.rates(0, 2.0)["b"] == pytest.approx(2.0)
    assert counters.increases(0, 0.0, 3.0) == {"a": 30.0, "b": 4.0, "c": 5.0}
    for second in range(4, 9):
        counters = append(counters, float(second), 4.0, a=10.0 * second, b=11.0, c=5.0)
    assert [each.names for each in counters.tables] == [("a", "b", "c")]


def test_a_table_is_recorded_exactly() -> None:
    before = table((0.1, 0.3), (0.7, 0.9))
    after = thawed(frozen(Counters((before,)))).tables[0]
    assert (after.names, after.times_s.tolist()) == (before.names, before.times_s.tolist())
    assert (after.totals.tolist(), after.raw.tolist()) == (before.totals.tolist(), before.raw.tolist())


def test_a_models_rates_have_their_names() -> None:
    """A steady 20 arrivals/s, of which 2 fail, 4 are refused and 10 are the rest of larger requests; they began 30 s ago."""
    series = NO_ROUTES
    for half in range(61):
        counts = (10.0 * half, 0.0, half, LatencyHistogram((), ()), 2.0 * half, 5.0 * half)
        series = series.append([RouteReading("one", 0.5 * half, *counts), RouteReading("two", 0.5 * half, *counts)])
    rates = series.rates(WINDOWS)
    assert rates["one"] == rates["two"]
    assert rates["one"]._asdict() == {
        **dict.fromkeys(("rate", "recent", "stable", "burst", "newest", "trend_base"), pytest.approx(20.0)),
        **dict.fromkeys(("growth", "trend", "dispersion"), pytest.approx(0.0, abs=1e-9)),
        "failures": pytest.approx(2.0),
        "refused": pytest.approx(4.0),
        "rest": pytest.approx(10.0),
        "last_s": 30.0,
    }


def routed(*readings: tuple[float, float]) -> RoutedSeries:
    series = NO_ROUTES
    for at_s, arrivals in readings:
        series = series.append([RouteReading("one", at_s, arrivals, 0.0, 0.0, LatencyHistogram((), ()))])
    return series


def test_seconds_are_counted_from_the_last_reading_backwards() -> None:
    half_seconds = routed(*((0.5 * index, float(index * index)) for index in range(9)))
    assert half_seconds.per_second("one", 3) == pytest.approx((12.0, 20.0, 28.0))
    assert half_seconds.per_second("one", 60) == pytest.approx((4.0, 12.0, 20.0, 28.0))
    assert sum(half_seconds.per_second("one", 60)) == pytest.approx(64.0)


def test_there_are_no_seconds_before_a_whole_one_is_covered() -> None:
    assert NO_ROUTES.per_second("one", 60) == ()
    assert routed((1.0, 5.0)).per_second("one", 60) == ()
    assert routed((1.0, 5.0), (1.75, 7.0)).per_second("one", 60) == ()
