"""The autoscalers that users run today, as baselines: each rule by its definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, config, decided, estimate, server
from themis_triton.core.decision import Decision, Reason
from themis_triton.core.estimate import Estimate, ModelEstimate
from themis_triton.core.observation import Snapshot
from themis_triton.core.policy import ConcurrencyConfig, PolicyConfig, PolicyName, QueueTimeConfig, VerticalConfig
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.evaluation.concurrency import concurrency_of
from themis_triton.evaluation.queue_time import recommended, stabilized, within_pace
from themis_triton.forecast.forecast import Forecaster
from themis_triton.forecast.known import KnownArrivals
from themis_triton.solver.solve import evaluate

TICK_S = 1.0


def planner_of(policy: PolicyConfig, slots: int = 8, known: KnownArrivals | None = None) -> Planner:
    return Planner(build_rules(config(policy, slots=slots)), Forecaster(known))


def model(name: str, *, waiting: float = 0.0, batch_rps: float = 0.0, in_flight: float = 0.0) -> ModelEstimate:
    return ModelEstimate(name, 1.0, 1.0, 1.0, in_flight, 0.0, 1.0, 0.0, waiting=waiting, batch_rps=batch_rps)


def seen(at_s: float, *models: ModelEstimate) -> Estimate:
    return replace(estimate(30.0, at_s), models={each.model: each for each in models})


def decisions(planner: Planner, measured: Callable[[float], Estimate], servers: int, until_s: float) -> list[tuple[float, int, int]]:
    """Every change of the fleet, as (seconds from the start, launches, retirements); servers come and go at once."""
    names, state, changes, tick = [f"s{number}" for number in range(servers)], PolicyState(), list[tuple[float, int, int]](), 0
    while (after_s := tick * TICK_S) <= until_s:
        fleet = tuple(server(name, slot=f"cpu:{number}") for number, name in enumerate(names))
        state, decision = decided(state, PolicyInput(Snapshot(NOW_S + after_s, fleet), measured(NOW_S + after_s)), planner)
        launched, retired = changed(decision)
        if launched or retired:
            changes.append((after_s, launched, len(retired)))
        names = [name for name in names if name not in retired] + [f"n{tick}-{number}" for number in range(launched)]
        tick += 1
    return changes


def changed(decision: Decision) -> tuple[int, tuple[str, ...]]:
    assert decision.target is not None
    return len(decision.target.launch), tuple(decision.target.retire)


QUEUE_TIME = PolicyConfig(name=PolicyName.QUEUE_TIME)


def test_queue_time_recommends_servers_in_proportion_to_the_ready_ones_and_none_within_a_tenth() -> None:
    assert [recommended(ratio, 3, 4) for ratio in (0.0, 0.34, 0.89, 0.9, 1.0, 1.1, 1.11, 2.5)] == [1, 2, 3, 4, 4, 4, 4, 8]


def test_queue_time_takes_the_least_of_the_last_minute_up_and_the_largest_of_ten_minutes_down() -> None:
    shipped = QueueTimeConfig()
    window = ((0.0, 5), (545.0, 2), (590.0, 3), (600.0, 4))
    assert stabilized(window, 1, 600.0, shipped) == 2
    assert stabilized(window, 3, 600.0, shipped) == 3
    assert stabilized(window, 9, 600.0, shipped) == 4
    assert stabilized(window[1:], 1, 606.0, shipped) == 3


def test_queue_time_adds_one_server_a_minute_and_removes_one_in_two() -> None:
    assert within_pace(9, 2, (), 100.0) == 3
    assert within_pace(9, 3, ((41.0, 1),), 100.0) == 3
    assert within_pace(9, 3, ((40.0, 1),), 100.0) == 4
    assert within_pace(1, 5, (), 100.0) == 4
    assert within_pace(1, 4, ((0.0, -1),), 119.0) == 4
    assert within_pace(1, 4, ((0.0, -1),), 120.0) == 3


def test_queue_time_adds_its_first_server_after_a_minute_of_long_queues_and_then_one_a_minute() -> None:
    # 30 requests wait and 100 batches are executed a second, by both models together: 300 ms a batch.
    def long(at_s: float) -> Estimate:
        return seen(at_s, model(DETECTOR, waiting=30.0, batch_rps=40.0), model(CLASSIFIER, batch_rps=60.0))

    assert decisions(planner_of(QUEUE_TIME), long, 1, 200.0) == [(60.0, 1, 0), (120.0, 1, 0), (180.0, 1, 0)]


def test_queue_time_removes_a_server_after_ten_minutes_without_queues() -> None:
    changes = decisions(planner_of(QUEUE_TIME), lambda at_s: seen(at_s, model(DETECTOR, batch_rps=50.0)), 3, 800.0)
    assert changes == [(600.0, 0, 1), (720.0, 0, 1)]


def test_queue_time_below_the_threshold_and_without_batches_changes_nothing() -> None:
    for measured in (model(DETECTOR, waiting=10.0, batch_rps=100.0), model(DETECTOR)):
        assert decisions(planner_of(QUEUE_TIME), lambda at_s, each=measured: seen(at_s, each), 1, 100.0) == []  # type: ignore[misc]


CONCURRENCY = PolicyConfig(name=PolicyName.CONCURRENCY, concurrency=ConcurrencyConfig(target=10.0))


def inside(at_s: float, requests: float) -> Estimate:
    return seen(at_s, model(DETECTOR, in_flight=requests / 2), model(CLASSIFIER, in_flight=requests / 2))


def test_concurrency_keeps_each_server_at_seventy_per_cent_of_its_target() -> None:
    assert decisions(planner_of(CONCURRENCY), lambda at_s: inside(at_s, 13.9), 1, 60.0) == [(0.0, 1, 0)]
    assert decisions(planner_of(CONCURRENCY), lambda at_s: inside(at_s, 7.0), 1, 60.0) == []


def test_a_burst_is_met_by_the_six_seconds_window_and_nothing_is_removed_for_a_minute_after() -> None:
    def burst(at_s: float) -> Estimate:
        return inside(at_s, 42.0 if 20.0 < at_s - NOW_S <= 26.0 else 5.0)

    changes = decisions(planner_of(CONCURRENCY), burst, 1, 120.0)
    grown = [(at_s, count) for at_s, count, _ in changes if count]
    assert sum(count for _, count in grown) == 5
    assert 20.0 < grown[0][0] < 24.0
    assert grown[-1][0] <= 26.0
    assert changes[-1][2] == 1
    assert min(at_s for at_s, _, count in changes if count) > grown[0][0] + 60.0


def test_several_servers_at_the_start_stay_for_a_minute() -> None:
    changes = decisions(planner_of(CONCURRENCY), lambda at_s: inside(at_s, 5.0), 4, 70.0)
    assert changes
    assert changes[0][0] > 60.0
    # At most half of the ready ones go in one decision, and co-located ones one after the other.
    assert changes[0][2] == 1


def test_the_default_target_is_what_a_server_holds_at_its_largest_rate() -> None:
    problem = replace(build_rules(config()).problems["video"], headroom_sigmas=0.0)
    (held,) = concurrency_of(problem, (2, 2))
    largest_rps = 1000.0 * held / problem.slo_ms
    inside, beyond = (evaluate(replace(problem, demand_rps=factor * largest_rps), 1, (2, 2), (8, 8)) for factor in (0.95, 1.1))
    assert (inside.feasible, beyond.feasible) == (True, False)


def test_vertical_with_our_decisions_keeps_the_servers_of_the_known_peak() -> None:
    policy = PolicyConfig(name=PolicyName.VERTICAL_THEMIS, vertical=VerticalConfig(planned_rps=120.0))
    planner = planner_of(policy)
    state, first = decided(PolicyState(), PolicyInput(Snapshot(NOW_S, (server("a", slot="cpu:0"),)), estimate(20.0)), planner)
    launched, _ = changed(first)
    assert launched >= 2
    assert first.reason is Reason.SCALE_OUT
    fleet = tuple(server(f"s{number}", slot=f"cpu:{number}") for number in range(launched + 1))
    for tick in range(60):
        at_s = NOW_S + 1.0 + tick * TICK_S
        state, decision = decided(state, PolicyInput(Snapshot(at_s, fleet), estimate(5.0, at_s)), planner)
        assert changed(decision) == (0, ())
    _, surge = decided(state, PolicyInput(Snapshot(at_s + 1.0, fleet), estimate(120.0, at_s + 1.0)), planner)
    assert surge.target is not None
    assert sum(models[DETECTOR].instances for models in surge.target.servers.values()) > len(fleet)
    assert changed(surge) == (0, ())


def known(*pieces: tuple[float, float, float]) -> KnownArrivals:
    """Arrivals at even distances: pieces of (start, end, rate)."""
    return KnownArrivals({"video": np.concatenate([NOW_S + np.arange(start, end, 1.0 / rate) for start, end, rate in pieces])})


def test_known_arrivals_give_the_largest_window_that_begins_in_an_interval() -> None:
    arrivals = known((0.0, 10.0, 10.0), (10.0, 12.0, 50.0), (12.0, 20.0, 5.0))
    assert arrivals.largest_rps("video", NOW_S, NOW_S + 5.0, 1.0) == pytest.approx(10.0)
    assert arrivals.largest_rps("video", NOW_S + 5.0, NOW_S + 11.0, 1.0) == pytest.approx(50.0)
    assert arrivals.largest_rps("video", NOW_S + 13.0, NOW_S + 19.0, 1.0) == pytest.approx(5.0)
    assert arrivals.largest_rps("video", NOW_S + 30.0, NOW_S + 40.0, 1.0) == 0.0


def test_the_oracle_launches_a_cold_start_ahead_and_grows_an_initialisation_ahead() -> None:
    base = config(PolicyConfig(name=PolicyName.ORACLE), slots=4)
    slow = {name: replace(each, profile=replace(each.profile, server_launch_s=20.0)) for name, each in base.models.items()}
    planner = Planner(build_rules(replace(base, models=slow)), Forecaster(known((0.0, 60.0, 10.0), (60.0, 90.0, 110.0))))
    launched, grown = {}, {}
    for second in range(0, 60, 2):
        at_s = NOW_S + second
        policy_input = PolicyInput(Snapshot(at_s, (server("a", slot="cpu:0"),)), estimate(10.0, at_s))
        _, decision = decided(PolicyState(), policy_input, planner)
        assert decision.target is not None
        launched[second], grown[second] = len(decision.target.launch), decision.target.servers["a"][DETECTOR].instances
    first_launch = min(second for second, count in launched.items() if count)
    assert 60 - 24 <= first_launch <= 60 - 20
    assert min(second for second, count in grown.items() if count > 1) >= 60 - 4


def test_the_oracle_without_known_arrivals_plans_for_the_present_rate() -> None:
    planner = planner_of(PolicyConfig(name=PolicyName.ORACLE))
    few, many = (decided(PolicyState(), PolicyInput(Snapshot(NOW_S, (server("a"),)), estimate(rps)), planner)[1] for rps in (10.0, 120.0))
    assert changed(few) == (0, ())
    assert changed(many)[0] > 0
