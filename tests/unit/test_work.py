"""Executed batches beside their profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, config, server, snapshot, table
from themis_triton.core.config import LatencyTable, ModelProfile
from themis_triton.core.observation import BatchCounters, ModelCounters, ServerReading, Snapshot
from themis_triton.estimate.work import WorkHistory, busy_during_batch, mean_ms, observe

CONFIG = config()
COARSE = ModelProfile(LatencyTable((1, 4), (1, 2), ((30.0, 40.0), (60.0, 90.0))))
BySize = Mapping[int, tuple[float, float]]


def counted(batches: BySize) -> ModelCounters:
    """Counters of a model: by batch size, how many batches so far, and their ms together."""
    return ModelCounters(batches=tuple(BatchCounters(size, count, 1000.0 * ms) for size, (count, ms) in sorted(batches.items())))


def seen(at_s: float, models: Mapping[str, BySize], counts: tuple[int, int] = (1, 1)) -> Snapshot:
    """One server's reading so many seconds after the start."""
    reading = ServerReading("a", NOW_S + at_s, {model: counted(batches) for model, batches in models.items()})
    return replace(snapshot([server("a", counts)], NOW_S + at_s), readings=(reading,))


def work(*snapshots: Snapshot) -> WorkHistory:
    history = WorkHistory()
    for each in snapshots:
        history = observe(history, each, CONFIG)
    return history


@pytest.mark.parametrize(
    ("size", "busy", "expected_ms"),
    [(1, 1.0, 30.0), (4, 2.0, 90.0), (1, 1.5, 35.0), (2, 1.0, 40.0), (2, 1.5, 48.3333333), (7, 1.0, 90.0), (1, 4.0, 60.0), (1, 0.5, 30.0)],
)
def test_the_profile_s_time_between_and_beyond_its_points(size: int, busy: float, expected_ms: float) -> None:
    assert mean_ms(COARSE, size, busy) == pytest.approx(expected_ms)


def test_a_table_that_falls_at_its_end_is_not_taken_below_its_last_point() -> None:
    falling = ModelProfile(LatencyTable((1,), (1, 2), ((30.0, 20.0),)))
    assert (mean_ms(falling, 1, 1.5), mean_ms(falling, 9, 5.0)) == (25.0, 20.0)


def test_measured_means_are_compared_with_rather_than_the_percentile() -> None:
    assert mean_ms(replace(COARSE, mean_table=LatencyTable((1,), (1,), ((21.0,),))), 1, 1.0) == 21.0


def test_a_batch_sees_itself_and_the_others_busy_on_average() -> None:
    busy = {DETECTOR: 1.5, CLASSIFIER: 0.5}
    assert busy_during_batch(busy, DETECTOR, 2) == pytest.approx(1.0 + 0.75 + 0.5)
    assert busy_during_batch(busy, CLASSIFIER, 1) == pytest.approx(1.0 + 1.5)
    assert busy_during_batch({DETECTOR: 4.0}, DETECTOR, 4) == 4.0


def test_two_models_contend_in_what_is_expected() -> None:
    """In one second the detector is busy 0.8 s and the classifier 0.4 s, each with one instance: 1.4 and 1.8 are busy for a batch."""
    first = {DETECTOR: {1: (10.0, 500.0), 2: (4.0, 200.0)}, CLASSIFIER: {1: (10.0, 200.0)}}
    then = {DETECTOR: {1: (20.0, 900.0), 2: (8.0, 600.0)}, CLASSIFIER: {1: (30.0, 600.0)}}
    samples = work(seen(0.0, first, (1, 1)), seen(1.0, then, (1, 1))).samples
    [detector], [classifier] = samples[DETECTOR], samples[CLASSIFIER]
    latency = table(4.0, 8.0, 4.0, 20.0)
    singles = 0.6 * latency.latency_ms[0][0] + 0.4 * latency.latency_ms[0][1]
    pairs = 0.6 * latency.latency_ms[1][0] + 0.4 * latency.latency_ms[1][1]
    assert (detector.executions, detector.measured_ms) == (14.0, 800.0)
    assert detector.expected_ms == pytest.approx(10 * singles + 4 * pairs)
    assert classifier.expected_ms == pytest.approx(20 * (2 * 1.8 + 4 + 2 * 1.8 + 10))


def test_an_interval_is_as_long_as_its_batches_need() -> None:
    """Batches of 300 ms: five of them fit into 1.5 s, and only then is the interval told."""
    readings = [seen(0.5 * n, {DETECTOR: {4: (2.0 * n, 600.0 * n)}}, (2, 1)) for n in range(5)]
    assert work(*readings[:3]).samples == {}
    [sample] = work(*readings).samples[DETECTOR]
    assert (sample.end_s, sample.executions, sample.measured_ms) == (NOW_S + 1.5, 6.0, 1800.0)


@pytest.mark.parametrize(
    "restarted", [{1: (3.0, 100.0)}, {1: (12.0, 300.0)}, {2: (50.0, 5000.0)}, {}], ids=["count", "time", "other sizes", "none"]
)
def test_an_interval_in_which_counters_fell_says_nothing(restarted: BySize) -> None:
    before, later = {1: (10.0, 400.0)}, {size: (count + 5.0, ms + 200.0) for size, (count, ms) in (restarted or {1: (0.0, 0.0)}).items()}
    history = work(seen(0.0, {DETECTOR: before}), seen(1.0, {DETECTOR: restarted}))
    assert history.samples == {}
    [sample] = observe(history, seen(2.0, {DETECTOR: later}), CONFIG).samples[DETECTOR]
    assert (sample.executions, sample.measured_ms) == (5.0, 200.0)


def test_readings_without_batches_are_passed_over() -> None:
    broken = seen(1.0, {DETECTOR: {}})
    silent = replace(broken, readings=(replace(broken.readings[0], batches_error="HTTP 403"),))
    history = work(seen(0.0, {DETECTOR: {1: (10.0, 400.0)}}), silent, seen(2.0, {DETECTOR: {1: (20.0, 760.0)}}))
    [sample] = history.samples[DETECTOR]
    assert (sample.executions, sample.measured_ms) == (10.0, 360.0)


def test_a_model_that_appears_and_one_that_is_not_configured_are_no_drift() -> None:
    history = work(seen(0.0, {"other": {1: (5.0, 100.0)}}), seen(1.0, {"other": {1: (9.0, 500.0)}, DETECTOR: {1: (40.0, 900.0)}}))
    assert history.samples == {}


def test_what_is_older_than_a_minute_and_servers_that_left_are_forgotten() -> None:
    readings = [seen(float(second), {DETECTOR: {1: (10.0 * second, 360.0 * second)}}) for second in range(100)]
    history = work(*readings)
    assert len(history.samples[DETECTOR]) == 60
    gone = observe(history, snapshot([], NOW_S + 200.0), CONFIG)
    assert (gone.opened, gone.samples[DETECTOR]) == ({}, ())
