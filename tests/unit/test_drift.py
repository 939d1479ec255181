"""When drift is reported, and by how much plans are corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, config, snapshot
from tests.unit.test_work import seen
from themis_triton.core.config import LatencyTable, PlanningConfig, ThemisConfig, ThroughputRule
from themis_triton.core.estimate import DriftChange, Estimate
from themis_triton.core.policy import DriftConfig, PolicyConfig
from themis_triton.core.record import drift_event_words
from themis_triton.estimate.drift import FORGOTTEN_S, DriftHistory, DriftState, Ratio, compared, drift_state, ratio_of
from themis_triton.estimate.estimate import History, estimate
from themis_triton.estimate.work import WorkSample

POLICY = PolicyConfig()
TICK_S = 0.5


def samples(ratios: Sequence[float], executions: float = 5.0, every_s: float = 0.5) -> list[WorkSample]:
    """One after the other, the last one ends now; each has 100 ms of work by the profile."""
    ends = [NOW_S - every_s * (len(ratios) - 1 - index) for index in range(len(ratios))]
    return [WorkSample(end_s, executions, 100.0 * ratio, 100.0) for end_s, ratio in zip(ends, ratios, strict=True)]


def test_the_ratio_is_that_of_the_sums_over_the_window() -> None:
    result = ratio_of(samples([9.0] * 5 + [1.2] * 10), NOW_S, POLICY)
    assert result is not None
    assert result.ratio == pytest.approx(1.2)
    assert result.error == pytest.approx(0.0, abs=1e-12)


def test_the_error_is_that_of_the_pieces_spread() -> None:
    result = ratio_of(samples([1.0, 1.4] * 5), NOW_S, POLICY)
    assert result is not None
    assert result.ratio == pytest.approx(1.2)
    assert result.error == pytest.approx(0.2 / np.sqrt(9))


def test_few_batches_reach_further_back_and_too_few_say_nothing() -> None:
    rare = samples([1.0] * 10 + [1.5] * 10, executions=1.0, every_s=2.0)
    result = ratio_of(rare, NOW_S, POLICY)
    assert result is not None
    assert result.ratio == pytest.approx(1.25)
    assert ratio_of(rare[1:], NOW_S, POLICY) is None
    assert ratio_of([], NOW_S, POLICY) is None
    assert ratio_of(samples([1.5, 1.5], executions=500.0), NOW_S, POLICY) is None


def judge(ratios: Sequence[float], *, exact: bool = False, error: float = 0.0, policy: PolicyConfig = POLICY) -> list[DriftState]:
    """Verdicts tick by tick."""
    states, state = [], DriftState()
    for number, ratio in enumerate(ratios):
        state = drift_state(state, Ratio(ratio, error), NOW_S + TICK_S * number, policy, exact=exact)
        states.append(state)
    return states


def test_drift_begins_beyond_the_bound_and_ends_within_half_of_it() -> None:
    states = judge([1.14, 1.16, 1.09, 1.074, 1.10])
    assert [state.drifting for state in states] == [False, True, True, False, False]


def test_an_uncertain_ratio_is_no_drift() -> None:
    assert not judge([1.4], error=0.13)[-1].drifting
    assert judge([1.4], error=0.12)[-1].drifting


@pytest.mark.parametrize(("ratio", "correction"), [(1.16, 1.15), (1.4, 1.4), (1.43, 1.45), (2.98, 3.0), (7.0, 3.0)])
def test_a_correction_rises_at_once_in_steps_and_within_its_bound(ratio: float, correction: float) -> None:
    assert judge([ratio])[-1].correction == pytest.approx(correction)


def test_a_bound_of_one_reports_and_corrects_nothing() -> None:
    state = judge([1.4] * 30, policy=replace(POLICY, drift=DriftConfig(max_factor=1.0)))[-1]
    assert (state.drifting, state.correction) == (True, 1.0)


def test_a_ratio_that_wavers_does_not_make_the_correction_flicker() -> None:
    wavering = [1.40 + 0.036 * (-1) ** number for number in range(80)]
    corrections = {state.correction for state in judge([1.4, *wavering])}
    assert corrections == {1.4}


def test_a_correction_falls_to_the_largest_of_the_hold_and_ends_at_one() -> None:
    states = judge([1.4] * 30 + [1.2] * 30 + [1.0] * 30)
    assert states[29].correction == 1.4
    assert states[30 + 18].correction == 1.4
    assert states[30 + 20].correction == 1.2
    assert [state.drifting for state in states[58:61]] == [True, True, False]
    assert states[60 + 18].correction == 1.2
    assert states[60 + 20].correction == 1.0


def test_a_pause_without_data_does_not_count_as_agreement() -> None:
    state = judge([1.4] * 30)[-1]
    later_s = NOW_S + 1000.0
    for number in range(20):
        state = drift_state(state, Ratio(1.0, 0.0), later_s + TICK_S * number, POLICY, exact=False)
        assert state.correction == 1.4
    assert drift_state(state, Ratio(1.0, 0.0), later_s + 10.0, POLICY, exact=False).correction == 1.0


def test_below_a_percentile_there_is_no_drift_and_below_a_mean_it_is_corrected_late_and_with_a_margin() -> None:
    assert {(state.drifting, state.correction) for state in judge([0.5] * 60)} == {(False, 1.0)}
    states = judge([0.5] * 60, exact=True)
    assert states[0].drifting
    assert [state.correction for state in states[:20]] == [1.0] * 20
    assert states[20].correction == pytest.approx(0.65)
    assert judge([0.5] * 60 + [0.9], exact=True)[-1].correction == 1.0
    assert judge([0.2] * 60, exact=True)[-1].correction == pytest.approx(0.35)
    minimum = judge([0.01] * 60, exact=True, policy=replace(POLICY, drift=DriftConfig(max_factor=2.0)))[-1]
    assert minimum.correction == pytest.approx(0.5)


def ran(factors: Sequence[float], settings: ThemisConfig, per_s: float = 12.0) -> list[Estimate]:
    """Estimates tick by tick: one instance each, `per_s` single requests, whose times are the profile's times the factor."""
    history, result = History(), []
    spent, count, classified = 0.0, 0.0, 0.0
    for number, factor in enumerate(factors):
        snapshot = seen(number * TICK_S, {DETECTOR: {1: (count, spent)}, CLASSIFIER: {1: (count, classified)}})
        history, estimated = estimate(history, snapshot, settings)
        result.append(estimated)
        # The fixed point of both models' times: each sees the other's share of the time busy.
        detector, classifier = 36.0 * factor, 18.0
        for _ in range(60):
            busy = per_s * classifier / 1000.0
            detector, classifier = factor * (28.0 + 8.0 * (1 + busy)), 14.0 + 4.0 * (1 + per_s * detector / 1000.0)
        count, spent, classified = count + per_s * TICK_S, spent + per_s * TICK_S * detector, classified + per_s * TICK_S * classifier
    return result


def test_a_model_that_slows_down_is_named_and_the_other_that_waits_for_it_on_the_device_is_not() -> None:
    result = ran([1.0] * 40 + [1.4] * 40 + [1.0] * 60, config())
    assert all(each.models[CLASSIFIER].drift_ratio in (None, pytest.approx(1.0)) for each in result)
    assert not any(each.models[CLASSIFIER].drifting for each in result)
    assert result[1].models[DETECTOR].drift_ratio is None
    assert result[39].models[DETECTOR].drift_ratio == pytest.approx(1.0)
    detector = result[79].models[DETECTOR]
    assert (detector.drifting, detector.correction) == (True, 1.4)
    assert detector.drift_ratio == pytest.approx(1.4)
    began = next(number for number, each in enumerate(result) if each.drift_events)
    assert (began - 40) * TICK_S <= 5.0
    last = result[-1].models[DETECTOR]
    assert (last.drifting, last.correction) == (False, 1.0)


def test_a_model_whose_times_are_not_learnt_yet_has_none_to_drift_from() -> None:
    settings = config()
    guess = replace(settings.models[DETECTOR].profile, learnt_from=0.0)
    learning = replace(settings, models=settings.models | {DETECTOR: replace(settings.models[DETECTOR], profile=guess)})
    result = ran([3.3] * 60, learning)
    assert {event.model for each in result for event in each.drift_events} <= {CLASSIFIER}
    last = result[-1].models[DETECTOR]
    assert (last.drift_ratio, last.drifting, last.correction) == (None, False, 1.0)


def test_what_happens_is_told_once() -> None:
    result = ran([1.0] * 40 + [1.4] * 40 + [1.0] * 60, config())
    events = [event for each in result for event in each.drift_events]
    changes = [event.change for event in events]
    assert (changes[0], changes.count(DriftChange.BEGAN), changes.count(DriftChange.ENDED)) == (DriftChange.BEGAN, 1, 1)
    ended = changes.index(DriftChange.ENDED)
    corrections = [event.correction for event in events]
    assert corrections[:ended] == sorted(corrections[:ended])
    assert corrections[ended - 1] == corrections[ended] == 1.4
    assert [(event.model, event.change, event.correction) for event in events[ended + 1 :]] == [(DETECTOR, DriftChange.CHANGED, 1.0)]


def test_drift_is_forgotten_minutes_after_the_last_batches() -> None:
    cfg = config()
    drifting = DriftState(drifting=True, correction=1.4, candidates=((NOW_S, 1.4),))
    history = DriftHistory(drift_states={DETECTOR: drifting})
    history, drifts, events = compared(history, snapshot([], NOW_S + FORGOTTEN_S), cfg)
    assert (drifts[DETECTOR].state, events) == (drifting, ())
    history, drifts, events = compared(history, snapshot([], NOW_S + FORGOTTEN_S + 1.0), cfg)
    assert drifts[DETECTOR].state.correction == 1.0
    assert [drift_event_words(event) for event in events] == [
        f"drift ended: {DETECTOR} has executed too few batches for minutes to tell; plans use the expected time"
    ]
    assert compared(history, snapshot([], NOW_S + FORGOTTEN_S + 2.0), cfg)[2] == ()


def test_noise_alone_is_no_drift() -> None:
    rng = np.random.default_rng(1)
    factors = rng.lognormal(-0.045, 0.3, 1200)
    result = ran(factors.tolist(), config())
    assert not any(each.models[DETECTOR].drifting for each in result)


def test_means_of_a_measured_profile_are_what_is_compared() -> None:
    settings = config()
    detector = settings.models[DETECTOR]
    latency = detector.profile.table
    means = LatencyTable(latency.batches, latency.instances, tuple(tuple(0.7 * ms for ms in row) for row in latency.latency_ms))
    exact = replace(detector, profile=replace(detector.profile, mean_table=means))
    settings = replace(settings, models=settings.models | {DETECTOR: exact})
    assert ran([0.7] * 40, settings)[-1].models[DETECTOR].drift_ratio == pytest.approx(1.0)
    assert ran([1.0] * 40, settings)[-1].models[DETECTOR].correction == pytest.approx(1.45)


def test_replicas_with_cores_are_not_compared() -> None:
    cores = replace(config(), planning=PlanningConfig(throughput=ThroughputRule.CORES))
    assert all(each.models[DETECTOR].drift_ratio is None for each in ran([2.0] * 40, cores))


def test_a_server_whose_batches_cannot_be_read_is_told_as_stale() -> None:
    snapshot = seen(0.0, {DETECTOR: {}})
    silent = replace(snapshot, readings=(replace(snapshot.readings[0], batches_error="HTTP 403"),))
    _, result = estimate(History(), silent, config())
    assert result.stale == {"a batches": "drift is unknown: HTTP 403"}
