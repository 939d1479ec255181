import pytest

from themis_triton.estimate.series import EMPTY, CounterSeries


def series(*readings: tuple[float, float], keep_s: float = 60.0) -> CounterSeries:
    built = EMPTY
    for at_s, raw in readings:
        built = built.append(at_s, raw, keep_s)
    return built


def test_nothing_read_is_no_rate() -> None:
    assert EMPTY.rate(1.0) == EMPTY.peak_rate(1.0, 5.0) == EMPTY.growth(1.0) == EMPTY.at(3.0) == EMPTY.span_s == 0.0
    assert EMPTY.dispersion(0.5, 15.0) == 1.0


def test_what_was_counted_before_the_first_reading_is_not_a_rate() -> None:
    once = series((10.0, 1_000_000.0))
    assert once.rate(1.0) == 0.0
    assert once.append(11.0, 1_000_005.0, 60.0).rate(1.0) == pytest.approx(5.0)


def test_a_restarted_counter_goes_on_counting() -> None:
    assert series((0.0, 100.0), (1.0, 110.0), (2.0, 4.0)).totals == (0.0, 10.0, 14.0)


def test_a_reading_from_the_past_or_read_twice_is_ignored() -> None:
    before = series((1.0, 5.0), (2.0, 7.0))
    assert before.append(1.5, 99.0, 60.0) == before
    assert before.append(2.0, 99.0, 60.0) == before


def test_old_readings_are_dropped() -> None:
    kept = series(*((float(second), 10.0 * second) for second in range(100)), keep_s=5.0)
    assert len(kept.times_s) <= 6
    assert kept.rate(3.0) == pytest.approx(10.0)


def test_a_rate_over_more_than_there_is_covers_what_there_is() -> None:
    assert series((0.0, 0.0), (2.0, 20.0)).rate(60.0) == pytest.approx(10.0)
    assert series((0.0, 0.0), (2.0, 20.0)).rate(1.0, lag_s=5.0) == 0.0


def test_rate_peak_and_growth_of_a_step() -> None:
    """10/s for 5 s, then 50/s for 2 s, then 10/s for 1 s."""
    step = series((0.0, 0.0), (5.0, 50.0), (6.0, 100.0), (7.0, 150.0), (8.0, 160.0))
    assert step.rate(1.0) == pytest.approx(10.0)
    assert step.rate(3.0) == pytest.approx(110.0 / 3)
    assert step.peak_rate(1.0, 5.0) == pytest.approx(50.0)
    assert step.peak_rate(1.0, 1.0) == pytest.approx(10.0)
    assert step.growth(2.0) == pytest.approx((30.0 - 30.0) / 2.0)
    assert step.growth(1.0) == pytest.approx(-40.0)


def test_growth_needs_two_half_windows() -> None:
    short = series((0.0, 0.0), (1.0, 10.0), (2.0, 40.0))
    assert short.growth(1.0) == pytest.approx(20.0)
    assert short.growth(1.1) == 0.0


def test_totals_are_interpolated_and_the_ends_hold() -> None:
    line = series((0.0, 0.0), (2.0, 20.0))
    assert (line.at(-1.0), line.at(0.5), line.at(9.0)) == (0.0, 5.0, 20.0)
    assert line.increase(0.5, 1.0) == pytest.approx(5.0)


def test_a_stream_without_noise_has_no_dispersion_and_a_trend_adds_little() -> None:
    assert series(*((0.5 * i, 5.0 * i) for i in range(40))).dispersion(0.5, 15.0) == pytest.approx(0.0, abs=1e-9)
    ramp = series(*((0.5 * i, 0.5 * i * (i + 1)) for i in range(40)))
    assert ramp.dispersion(0.5, 15.0) < 0.1


def test_too_little_to_tell_dispersion_counts_as_poisson() -> None:
    assert series((0.0, 0.0), (1.0, 40.0)).dispersion(0.5, 15.0) == 1.0
    assert series(*((float(i), 0.0) for i in range(30))).dispersion(0.5, 15.0) == 1.0


def test_seconds_are_counted_from_the_last_reading_backwards() -> None:
    half_seconds = series(*((0.5 * index, float(index * index)) for index in range(9)))
    assert half_seconds.per_second(3) == pytest.approx((12.0, 20.0, 28.0))
    assert half_seconds.per_second(60) == pytest.approx((4.0, 12.0, 20.0, 28.0))
    assert sum(half_seconds.per_second(60)) == pytest.approx(64.0)


def test_there_are_no_seconds_before_a_whole_one_is_covered() -> None:
    assert EMPTY.per_second(60) == ()
    assert series((1.0, 5.0)).per_second(60) == ()
    assert series((1.0, 5.0), (1.75, 7.0)).per_second(60) == ()
