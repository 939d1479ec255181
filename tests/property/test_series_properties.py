import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_triton.estimate.axis import Axes
from themis_triton.estimate.series import EMPTY, CounterSeries

Step = tuple[float, int, bool]
steps = st.lists(st.tuples(st.floats(0.05, 5.0), st.integers(0, 500), st.booleans()), min_size=2, max_size=40)


def built(readings: list[Step], *, restarts: bool) -> CounterSeries:
    """Each step is (seconds, increments, whether the counter restarted just before them)."""
    series, at_s, raw = EMPTY.append(0.0, 7.0, 1e9), 0.0, 7.0
    for wait_s, increment, restarted in readings:
        at_s += wait_s
        # a restart shows only where the counter is below what it was
        raw = float(increment) if restarts and restarted and increment < raw else raw + increment
        series = series.append(at_s, raw, 1e9)
    return series


@given(steps)
def test_restarts_change_nothing(readings: list[Step]) -> None:
    assert built(readings, restarts=True) == CounterSeries(
        built(readings, restarts=False).times_s, built(readings, restarts=False).totals, built(readings, restarts=True).last_raw
    )


@given(steps, st.floats(0.1, 30.0), st.floats(0.1, 30.0))
def test_rates_are_bounded_by_the_steepest_step_and_peaks_by_nothing_less_than_the_rate(
    readings: list[Step], window_s: float, over_s: float
) -> None:
    series = built(readings, restarts=True)
    steepest = max(increment / wait_s for wait_s, increment, _ in readings)
    rate, peak = series.rate(window_s), series.peak_rate(window_s, over_s)
    assert 0.0 <= rate <= steepest * (1 + 1e-6) + 1e-6
    assert rate - 1e-9 <= peak <= steepest * (1 + 1e-6) + 1e-6


@given(steps, st.floats(0.1, 100.0), st.floats(0.1, 100.0), st.floats(0.1, 100.0))
def test_increases_add_up(readings: list[Step], a: float, b: float, c: float) -> None:
    series = built(readings, restarts=True)
    first, middle, last = sorted((a, b, c))
    assert series.increase(first, middle) + series.increase(middle, last) == pytest.approx(series.increase(first, last), abs=1e-6)
    assert series.increase(first, middle) >= -1e-9


@given(st.integers(0, 2**32 - 1), st.sampled_from((5.0, 40.0, 300.0)))
def test_a_poisson_stream_has_dispersion_one(seed: int, rate_rps: float) -> None:
    counts = np.random.default_rng(seed).poisson(rate_rps * 0.5, size=400)
    series = EMPTY
    for index, total in enumerate(np.cumsum(counts)):
        series = series.append(0.5 * index, float(total), 1e9)
    assert 0.5 < series.dispersion(0.5, 199.0) < 1.7


@given(st.floats(0.5, 500.0), st.floats(0.05, 1.0))
def test_a_constant_rate_is_found_at_every_scale_and_does_not_grow(rate_rps: float, tick_s: float) -> None:
    series = EMPTY
    for index in range(200):
        series = series.append(index * tick_s, index * tick_s * rate_rps, 1e9)
    for result in (series.rate(1.0), series.rate(20.0), series.peak_rate(1.0, 5.0)):
        assert result == pytest.approx(rate_rps, rel=1e-6)
    assert series.growth(2.0) == pytest.approx(0.0, abs=1e-6 * rate_rps)


@given(steps, st.floats(0.1, 10.0), st.floats(0.1, 10.0), st.sampled_from((4.0, 1e9)))
def test_counters_that_share_the_times_of_their_readings_have_the_rates_that_each_has_alone(
    readings: list[Step], window_s: float, lag_s: float, keep_s: float
) -> None:
    """Each against its own totals; the second counter is read from the third time on."""
    together, alone, at_s, raw = [EMPTY, EMPTY], [EMPTY, EMPTY], 0.0, 0.0
    for number, (wait_s, increment, _) in enumerate(readings):
        at_s, raw, axes = at_s + wait_s, raw + increment, Axes()
        for counter in (0, 1) if number >= 2 else (0,):
            together[counter] = together[counter].append(at_s, (counter + 1) * raw, keep_s, axes)
            alone[counter] = alone[counter].append(at_s, (counter + 1) * raw, keep_s)
    for shared, own in zip(together, alone, strict=True):
        assert shared == own
        assert shared.peak_rate(window_s, 5.0) == own.peak_rate(window_s, 5.0)
        assert shared.dispersion(window_s, 5.0) == own.dispersion(window_s, 5.0)
        assert shared.rate(window_s, lag_s) == own.rate(window_s, lag_s)
        end_s = shared.times_s[-1] - lag_s if shared.times_s else 0.0
        start_s = max(end_s - window_s, shared.times_s[0]) if shared.times_s else 0.0
        expected = shared.increase(start_s, end_s) / (end_s - start_s) if start_s < end_s else 0.0
        assert shared.rate(window_s, lag_s) == pytest.approx(expected)
