import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.series_reference import Series
from themis_triton.estimate.counter_kernels import BURST, DISPERSION, GROWTH, RATE, RECENT, STABLE, TREND, TREND_BASE
from themis_triton.estimate.counters import NO_COUNTERS, Counters, RateWindows

NAMES = ("a", "b", "c")
Reading = tuple[float, dict[str, tuple[int, bool]]]
readings = st.lists(
    st.tuples(st.floats(0.05, 5.0), st.dictionaries(st.sampled_from(NAMES), st.tuples(st.integers(0, 500), st.booleans()), min_size=1)),
    min_size=2,
    max_size=40,
)
"""(seconds since the reading before, by counter that is read: increments, and whether it restarted just before them)."""


def both(steps: list[Reading], keep_s: float) -> tuple[Counters, dict[str, Series]]:
    """The counters in tables, and each alone in the slow form."""
    counters, alone, at_s, raw = NO_COUNTERS, dict[str, Series](), 0.0, dict.fromkeys(NAMES, 7.0)
    for wait_s, read in steps:
        at_s += wait_s
        for name, (increment, restarted) in read.items():
            raw[name] = float(increment) if restarted else raw[name] + increment
            alone.setdefault(name, Series()).append(at_s, raw[name], keep_s)
        counters = counters.append(at_s, tuple(read), np.array([[raw[name] for name in read]]), keep_s)
    return counters, alone


def windows(**windows_s: float) -> RateWindows:
    """These windows; the others are of no matter."""
    return RateWindows(1.0, 5.0, 5.0, 0.5, 1.0, 2.0, 0.5, 15.0)._replace(**windows_s)


@settings(deadline=None)
@given(readings, st.floats(0.1, 30.0), st.floats(0.0, 10.0), st.sampled_from((4.0, 1e9)))
def test_each_column_says_what_its_counter_says_alone(steps: list[Reading], window_s: float, lag_s: float, keep_s: float) -> None:
    counters, alone = both(steps, keep_s)
    assert sorted(name for table in counters.tables for name in table.names) == sorted(alone)
    ends = (lag_s, lag_s + window_s)
    assert counters.increases(0, *ends) == pytest.approx({name: each.increase(*ends) for name, each in alone.items()}, abs=1e-9)
    lagging = counters.by_name(lambda table: table.rates(0, window_s, lag_s=lag_s)[0])
    assert lagging == pytest.approx({name: each.rate(window_s, lag_s) for name, each in alone.items()}, abs=1e-6)
    peaks = counters.by_name(lambda table: table.demand_rates(windows(rate_s=window_s, burst_s=20.0))[BURST])
    assert peaks == pytest.approx({name: each.peak_rate(window_s, 20.0) for name, each in alone.items()}, abs=1e-6)


@settings(deadline=None)
@given(readings, st.floats(0.1, 100.0), st.floats(0.1, 100.0), st.floats(0.1, 100.0))
def test_increases_add_up_and_are_never_negative(steps: list[Reading], a: float, b: float, c: float) -> None:
    counters, _ = both(steps, 1e9)
    first, middle, last = sorted((a, b, c))
    for name, whole in counters.increases(0, first, last).items():
        parts = [counters.increases(0, *span)[name] for span in ((first, middle), (middle, last))]
        assert sum(parts) == pytest.approx(whole, abs=1e-6)
        assert min(parts) >= -1e-9


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from((5.0, 40.0, 300.0)))
def test_a_poisson_stream_has_dispersion_one(seed: int, rate_rps: float) -> None:
    counts = np.random.default_rng(seed).poisson(rate_rps * 0.5, size=400)
    counters = NO_COUNTERS
    for index, total in enumerate(np.cumsum(counts)):
        counters = counters.append(0.5 * index, ("a",), np.array([[float(total)]]), 1e9)
    assert 0.5 < counters.tables[0].demand_rates(windows(dispersion_over_s=199.0))[DISPERSION, 0] < 1.7


@settings(deadline=None)
@given(st.floats(0.5, 500.0), st.floats(0.05, 1.0))
def test_a_constant_rate_is_found_at_every_scale_and_does_not_grow(rate_rps: float, tick_s: float) -> None:
    counters = NO_COUNTERS
    for index in range(200):
        counters = counters.append(index * tick_s, ("a",), np.array([[index * tick_s * rate_rps]]), 1e9)
    table = counters.tables[0]
    found = table.demand_rates(windows(stable_s=20.0))
    for row in (RATE, RECENT, STABLE, BURST, TREND_BASE):
        assert found[row] == pytest.approx(rate_rps, rel=1e-6)
    assert found[[GROWTH, TREND]] == pytest.approx(0.0, abs=1e-6 * rate_rps)
