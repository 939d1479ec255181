"""Requests of several rows, and those that a response cache answers: measured, and what plans make of them."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, config, decided, model, record, route, server, snapshot, table
from themis_triton.adapters.triton.metrics import parse_metrics
from themis_triton.commands.status_command import show
from themis_triton.core.estimate import ONE_ROW, Estimate, PipelineEstimate, RequestSize
from themis_triton.core.observation import ModelCounters, ServerReading, Snapshot
from themis_triton.daemon.status import StatusBoard
from themis_triton.decide.demand import Demand
from themis_triton.decide.plan_query import PlanQuery
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.estimate.estimate import History, estimate
from themis_triton.estimate.served import Served
from themis_triton.estimate.sizes import measured_size
from themis_triton.evaluation.clairvoyant import clairvoyant
from themis_triton.planning import WhatIf, plan_rates
from themis_triton.planning_measured import with_measured_calls
from themis_triton.sim.run import simulate
from themis_triton.solver.surface import contention_surface

CONFIG = config()
FOURS = (RequestSize(4.0), RequestSize(4.0))


def done(requests: float, rows: float = 1.0, cached: float = 0.0) -> Served:
    return Served(ended=requests, inferences=rows * (requests - cached), executions=requests, cached=cached)


def test_rows_are_used_once_a_few_requests_show_them() -> None:
    assert measured_size(ONE_ROW, done(4.0, 16.0)) == ONE_ROW
    assert measured_size(ONE_ROW, done(5.0, 16.0)) == RequestSize(16.0)
    assert measured_size(RequestSize(16.0), done(500.0, 4.0)) == RequestSize(4.0)
    assert measured_size(RequestSize(16.0), done(500.0, 0.0)) == ONE_ROW, "of a backend that counts no rows"


def test_what_requests_of_different_rows_make_by_chance_changes_nothing() -> None:
    assert measured_size(RequestSize(8.0), done(25.0, 11.0)) == RequestSize(8.0)
    assert measured_size(RequestSize(8.0), done(2500.0, 11.0)) == RequestSize(11.0)


def test_cached_requests_are_no_work_but_a_cache_may_be_emptied() -> None:
    half = measured_size(ONE_ROW, done(400.0, 2.0, cached=200.0))
    assert half == RequestSize(2.0, 0.5)
    assert measured_size(half, done(400.0, 2.0, cached=210.0)) == half
    assert measured_size(half, done(400.0, cached=400.0)) == RequestSize(2.0, 0.05)
    assert measured_size(half, done(0.0)) == half


def test_times_of_batches_are_those_of_executed_requests() -> None:
    """As Triton counted 20 requests of 2 rows, 16 from the cache, in 4 batches of about 50 ms."""
    served = Served(ended=20, inferences=8, executions=4, compute_us=200_000, cached=16)
    assert served.batches_us == 200_000


def test_groups_of_rows_have_the_times_of_their_batches() -> None:
    surface = contention_surface(0.5, 2.0, 1.0, 7.0, 8, 3)
    assert np.allclose(surface.of_groups(2.0, 4).latency_ms, surface.latency_ms[1::2])
    assert np.allclose(surface.of_groups(2.5, 3).latency_ms, contention_surface(1.25, 5.0, 1.0, 7.0, 3, 3).latency_ms)
    # A request of more rows than a batch of the settings is executed alone.
    assert np.allclose(surface.of_groups(12.0, 1).latency_ms, contention_surface(6.0, 24.0, 1.0, 7.0, 1, 3).latency_ms)


@pytest.mark.parametrize("rate_rps", [2.0, 9.0, 17.0, 60.0])
def test_plans_for_requests_of_four_rows_are_those_of_models_that_take_four_times_as_long_a_request(rate_rps: float) -> None:
    slow = {
        DETECTOR: replace(model(DETECTOR, table(16.0, 32.0, 4.0, 20.0)), max_batch=2),
        CLASSIFIER: replace(model(CLASSIFIER, table(8.0, 16.0, 2.0, 10.0)), max_batch=2),
    }
    slower, fours = Planner(build_rules(replace(CONFIG, models=slow))), Planner(build_rules(CONFIG)).called("video", (), FOURS)
    query = PlanQuery("video", Demand(rate_rps, 0.0, 1.0, 1.0), None)
    for planner in (slower, fours):
        assert planner.rules.problems["video"].stages[0].max_batch == 2
    assert fours.joint(query, None) == slower.joint(query, None)
    assert fours.vertical(query, (2,)) == slower.vertical(query, (2,))


def test_an_answer_of_the_cache_is_a_request_less() -> None:
    planner = Planner(build_rules(CONFIG))
    sizes = (ONE_ROW, RequestSize(1.0, 0.25))
    assert [stage.demand_ratio for stage in planner.called("video", (), sizes).rules.problems["video"].stages] == [1.0, 0.25]
    assert planner.called("video", (), sizes) is planner.called("video", (1.0, 1.0), sizes)


def test_servers_get_limits_in_rows() -> None:
    """The batches of plans are of requests; a server that is launched takes as many rows as the settings allow."""
    demand = PipelineEstimate("video", 40.0, 40.0, 40.0, 0.0, 0.0, None, sizes=FOURS)
    seen = PolicyInput(snapshot([server("a", (4, 2))]), Estimate(NOW_S, pipelines={"video": demand}, history_s=60.0))
    _, decision = decided(PolicyState(), seen, Planner(build_rules(CONFIG)))
    assert decision.target is not None
    assert decision.target.launch
    assert {state.max_batch for models in decision.target.launch.values() for state in models.values()} == {8}
    assert {state.max_batch for state in decision.target.servers["a"].values()} == {8}


def seen_with(counters: dict[str, ModelCounters], after_s: float) -> Snapshot:
    at_s, arrivals = NOW_S + after_s, 20.0 * after_s
    routes = tuple(route(name, at_s, arrivals, (arrivals, arrivals, arrivals)) for name in (DETECTOR, CLASSIFIER))
    return replace(snapshot([server("a")], at_s), routes=routes, readings=(ServerReading("a", at_s, counters),))


def test_the_sidecar_measures_says_and_plans_with_them() -> None:
    history, result = History(), None
    for second in range(12):
        n = 20.0 * second
        counters = {
            DETECTOR: ModelCounters(success=n, inferences=8 * n, executions=n, compute_infer_us=9000.0 * n),
            CLASSIFIER: ModelCounters(success=n, inferences=n / 4, executions=n / 4, compute_infer_us=1000.0 * n, cached=0.75 * n),
        }
        history, result = estimate(history, seen_with(counters, second), CONFIG)
    assert result is not None
    assert result.pipelines["video"].sizes == (RequestSize(8.0), RequestSize(1.0, 0.25))
    assert result.models[CLASSIFIER].compute_ms == 4.0
    board, shown = StatusBoard(CONFIG, NOW_S), io.StringIO()
    board.take(replace(record(seen=snapshot()), estimate=result), 1.0)
    show(board.status(), Console(file=shown, width=200), NOW_S)
    assert f"rows: requests of {DETECTOR} have 8 rows of a batch" in shown.getvalue()
    assert f"rows: a cache answers 75% of those of {CLASSIFIER}" in shown.getvalue()
    measured = with_measured_calls(CONFIG, board.status())
    assert measured.models[DETECTOR].rows_per_request == 8.0
    assert measured.pipelines[0].per_request == (1.0, 0.25)
    (own,), (one,) = plan_rates(measured, [12.0], WhatIf()), plan_rates(CONFIG, [12.0], WhatIf())
    assert own.feasible
    assert own.cost > one.cost


def test_what_the_cache_answered_is_read_from_triton() -> None:
    lines = ("nv_inference_request_success{%s} 30", "nv_cache_num_hits_per_model{%s} 24", "nv_cache_num_hits 24")
    text = "\n".join(line.replace("%s", 'model="a",version="1"') for line in lines)
    assert parse_metrics(text) == {"a": ModelCounters(success=30, cached=24)}


def test_a_limit_of_batches_is_in_rows_again_where_a_server_is_told() -> None:
    assert RequestSize(3.0).fitting(8) == 2
    assert RequestSize(3.0).rows_of(2) == 6
    assert RequestSize(2.5).rows_of(3) == 8
    assert RequestSize(12.0).fitting(8) == 1


def test_simulated_requests_of_four_rows_go_as_those_of_models_that_take_four_times_as_long_a_request() -> None:
    slow = {
        DETECTOR: replace(model(DETECTOR, table(16.0, 32.0, 4.0, 20.0)), max_batch=2),
        CLASSIFIER: replace(model(CLASSIFIER, table(8.0, 16.0, 2.0, 10.0)), max_batch=2),
    }
    fours = {name: replace(each, rows_per_request=4.0) for name, each in CONFIG.models.items()}
    times = np.sort(np.random.default_rng(5).uniform(0.0, 20.0, 160))
    runs = [simulate(replace(CONFIG, models=models), {"video": times}, 20.0) for models in (slow, fours)]
    assert np.array_equal(runs[0].pipelines[0].latency_ms, runs[1].pipelines[0].latency_ms)
    assert runs[0].usage == runs[1].usage
    assert runs[1].ticks[-1].estimate.pipelines["video"].sizes == FOURS
    bounds = [clairvoyant(replace(CONFIG, models=models), {"video": times}, 20.0) for models in (slow, fours)]
    assert bounds[0].cost_per_s.tolist() == bounds[1].cost_per_s.tolist()
