"""What a pipeline with `overload: shed` admits: the limit that stands, when it changes, and what it does to an overload in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fakes import Bench
from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, config, decided, estimate, model, server, snapshot, table
from tests.unit.test_tick import Engine
from themis_triton.core.action import Plan
from themis_triton.core.config import Mode, Overload, PipelineConfig, ThemisConfig
from themis_triton.core.decision import Decision
from themis_triton.core.estimate import PROXY, Estimate
from themis_triton.core.fleet import ModelState, Server
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.core.routes import RouteLimit
from themis_triton.decide.admission import BURST_TOKENS, CALM_S, LARGE_CHANGE, MIN_FRACTION
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.plan.steps import plan
from themis_triton.sim.result import SimResult
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions
from themis_triton.solver.surface import BoolArray


def shedding(overload: Overload | None = Overload.SHED, slots: int = 4) -> ThemisConfig:
    base = config(slots=slots)
    return replace(base, pipelines=tuple(replace(pipeline, overload=overload) for pipeline in base.pipelines))


CONFIG = shedding()
PLANNER = Planner(build_rules(CONFIG))
SMALL, LARGE = server("a", (2, 2)), server("b", (4, 3))


def seen(result: Estimate, *servers: Server, at_s: float = NOW_S) -> PolicyInput:
    return PolicyInput(snapshot(servers, at_s), replace(result, at_s=at_s))


def changed(result: Estimate, **values: Any) -> Estimate:
    return replace(result, pipelines={name: replace(each, **values) for name, each in result.pipelines.items()})


def limit_of(decision: Decision) -> RouteLimit:
    assert decision.admissions is not None
    [admission] = decision.admissions
    assert (admission.pipeline, admission.model) == ("video", DETECTOR)
    return admission.limit


def test_the_limit_stands_before_any_overload_and_is_what_serves_now_carries() -> None:
    _, decision = decided(PolicyState(), seen(estimate(5.0), SMALL), PLANNER)
    [evidence] = decision.evidence
    limit = limit_of(decision)
    assert limit.requests_per_s == evidence.capacity_rps == evidence.limit_rps
    assert evidence.capacity_rps > 5.0
    assert 2 <= limit.burst <= BURST_TOKENS
    assert limit.min_deadline_ms == 18.0, "half of a lone call of the detector, which takes 36 ms"
    for word in ("video", f"{evidence.capacity_rps:.0f} requests/s", "300 ms"):
        assert word in limit.reason
    assert plan(decision, snapshot((SMALL,)), CONFIG).limits == {DETECTOR: limit}


def test_nothing_is_refused_by_service_times_that_are_a_guess() -> None:
    detector = CONFIG.models[DETECTOR]
    models = CONFIG.models | {DETECTOR: replace(detector, profile=replace(detector.profile, learnt_from=0.0))}
    _, decision = decided(PolicyState(), seen(estimate(500.0), SMALL), Planner(build_rules(replace(CONFIG, models=models))))
    assert decision.admissions == ()


@pytest.mark.parametrize("overload", [None, Overload.QUEUE, Overload.DEPRIORITIZE])
def test_other_pipelines_have_no_limit(overload: Overload | None) -> None:
    settings_seen = shedding(overload)
    _, decision = decided(PolicyState(), seen(estimate(500.0), SMALL), Planner(build_rules(settings_seen)))
    assert decision.admissions == ()
    assert decision.evidence[0].limit_rps is None
    assert plan(decision, snapshot((SMALL,)), settings_seen).limits == {}


def test_the_limit_rises_when_a_server_joins_and_falls_at_once_when_it_is_gone() -> None:
    state, alone = decided(PolicyState(), seen(estimate(100.0), SMALL), PLANNER)
    state, joined = decided(state, seen(estimate(100.0), SMALL, LARGE, at_s=NOW_S + CALM_S), PLANNER)
    _, gone = decided(state, seen(estimate(100.0), SMALL, at_s=NOW_S + CALM_S + 0.25), PLANNER)
    assert limit_of(joined).requests_per_s > 2.0 * limit_of(alone).requests_per_s
    assert limit_of(gone) == limit_of(alone)


def test_without_readings_the_limit_stays_as_it_is() -> None:
    state, before = decided(PolicyState(), seen(estimate(100.0), SMALL), PLANNER)
    blind = replace(estimate(100.0), stale={PROXY: "no answer"})
    state, held = decided(state, seen(blind, SMALL, LARGE), PLANNER)
    assert held.admissions is None
    assert plan(held, snapshot((SMALL,)), CONFIG).limits is None
    _, after = decided(state, seen(estimate(100.0), SMALL), PLANNER)
    assert limit_of(after) == limit_of(before)


def test_without_a_serving_server_the_last_limit_waits_for_it() -> None:
    state, before = decided(PolicyState(), seen(estimate(100.0), SMALL), PLANNER)
    _, nothing = decided(state, seen(estimate(100.0)), PLANNER)
    assert limit_of(nothing) == limit_of(before)


def test_nothing_is_refused_where_not_even_a_lone_request_meets_the_slo() -> None:
    slow = replace(CONFIG, pipelines=(replace(CONFIG.pipelines[0], slo_ms=20.0),))
    _, decision = decided(PolicyState(), seen(estimate(100.0), SMALL), Planner(build_rules(slow)))
    assert decision.admissions == ()


def test_a_backlog_beyond_the_bucket_lowers_the_limit_and_never_below_a_part_of_the_capacity() -> None:
    full = limit_of(decided(PolicyState(), seen(estimate(100.0), SMALL), PLANNER)[1]).requests_per_s
    some, endless = (
        limit_of(decided(PolicyState(), seen(changed(estimate(100.0), backlog=waiting), SMALL), PLANNER)[1]).requests_per_s
        for waiting in (full, 1e6)
    )
    assert endless == pytest.approx(MIN_FRACTION * full, abs=0.01)
    assert endless < some < full


def test_small_changes_wait_and_those_that_hardly_matter_are_left_out() -> None:
    state, first = decided(PolicyState(), seen(estimate(100.0), SMALL), PLANNER)
    full, burst = limit_of(first).requests_per_s, limit_of(first).burst
    # Of waiting requests beyond the bucket each lowers the limit by one a second.
    waiting = burst + 0.6 * LARGE_CHANGE * full
    little = changed(estimate(100.0), backlog=waiting)
    state, early = decided(state, seen(little, SMALL, at_s=NOW_S + CALM_S / 2), PLANNER)
    assert limit_of(early) == limit_of(first)
    state, later = decided(state, seen(little, SMALL, at_s=NOW_S + CALM_S), PLANNER)
    assert limit_of(later).requests_per_s < full


def test_a_limit_that_changes_while_requests_are_refused_begins_with_fewer_tokens_and_gets_all_of_them_afterwards() -> None:
    state, calm = decided(PolicyState(), seen(estimate(100.0), SMALL), PLANNER)
    refusing = changed(estimate(100.0), refused_rps=60.0)
    state, grown = decided(state, seen(refusing, LARGE, at_s=NOW_S + CALM_S), PLANNER)
    state, still = decided(state, seen(refusing, LARGE, at_s=NOW_S + 9.0), PLANNER)
    _, over = decided(state, seen(estimate(10.0), LARGE, at_s=NOW_S + 10.0), PLANNER)
    assert limit_of(grown).burst < limit_of(calm).burst
    assert limit_of(still) == limit_of(grown)
    assert limit_of(over).burst > limit_of(calm).burst / 2
    assert limit_of(over).requests_per_s == limit_of(grown).requests_per_s


def test_the_limit_follows_how_requests_are_divided_between_grpc_and_rest() -> None:
    state, first = decided(PolicyState(), seen(estimate(100.0), SMALL), PLANNER)
    half = changed(estimate(100.0), rest_fraction=0.5)
    state, divided = decided(state, seen(half, SMALL, at_s=NOW_S + CALM_S), PLANNER)
    _, silent = decided(state, seen(estimate(0.0), SMALL, at_s=NOW_S + 2 * CALM_S), PLANNER)
    assert [limit_of(each).rest_fraction for each in (first, divided, silent)] == [0.0, 0.5, 0.5]


def test_limits_of_several_pipelines_change_together_and_seldom_because_each_change_fills_the_buckets_of_all() -> None:
    """Two pipelines, at each tick another one with a backlog of another size: before, each of these ticks rewrote the routes."""
    base = config()
    pipelines = tuple(PipelineConfig(name, (name,), 300.0, overload=Overload.SHED) for name in (DETECTOR, CLASSIFIER))
    planner = Planner(build_rules(replace(base, pipelines=pipelines)))
    ticks, tick_s = 48, 0.25
    state, changes, before = PolicyState(), list[float](), list[RouteLimit]()
    for tick in range(ticks):
        at_s = NOW_S + tick * tick_s
        backlogs = {DETECTOR: 40.0 * (tick % 3), CLASSIFIER: 200.0 * (tick % 2)}
        demand = {name: replace(estimate(50.0).pipelines["video"], pipeline=name, backlog=backlogs[name]) for name in backlogs}
        state, decision = decided(state, seen(Estimate(at_s, pipelines=demand, history_s=60.0), SMALL, LARGE, at_s=at_s), planner)
        limits = [admission.limit for admission in decision.admissions or ()]
        assert len(limits) == 2
        if limits != before:
            changes.append(at_s)
        before = limits
    assert 2 <= len(changes) <= 1 + ticks * tick_s / CALM_S
    assert np.diff(changes).min() >= CALM_S


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0.0, 2000.0),
    backlog=st.floats(0.0, 1e5),
    refused=st.floats(0.0, 2000.0),
    share=st.none() | st.floats(0.0, 1.0),
    later_s=st.floats(0.0, 100.0),
)
def test_any_estimate_gives_a_limit_within_its_bounds(
    rate: float, backlog: float, refused: float, share: float | None, later_s: float
) -> None:
    state, _ = decided(PolicyState(), seen(estimate(10.0), SMALL), PLANNER)
    result = changed(estimate(rate), backlog=backlog, refused_rps=refused, rest_fraction=share)
    _, decision = decided(state, seen(result, SMALL, at_s=NOW_S + later_s), PLANNER)
    limit, capacity = limit_of(decision), decision.evidence[0].capacity_rps
    assert MIN_FRACTION * capacity * 0.97 - 0.01 <= limit.requests_per_s <= capacity * 1.03 + 0.01
    assert 1 <= limit.burst <= 100
    assert 0.0 <= limit.rest_fraction <= 1.0


def test_limits_reach_the_routes_and_stand_until_the_next_decision() -> None:
    async def scenario() -> None:
        bench = Bench(server("a"))
        limit = RouteLimit(20.0, 4, reason="full")
        for limits, expected in (({DETECTOR: limit}, limit), (None, limit), ({}, None)):
            bench.executor.submit(Plan("d", limits=limits))
            await bench.settled()
            await bench.executor.routes.write()
            assert bench.routes.tables[-1].models[DETECTOR].limit == expected
            assert bench.routes.tables[-1].models[CLASSIFIER].limit is None

    asyncio.run(scenario())


@pytest.mark.parametrize("paused", [True, False])
def test_a_limit_follows_what_serves_during_a_pause_and_stays_unwritten_in_advisory_mode(paused: bool) -> None:
    """A crash may take a server, and an operator may add one: the limit of before would refuse too much or too little."""

    async def scenario() -> None:
        bench = Bench(server("a", (2, 2), slot="cpu:0"), server("b", (4, 3), slot="cpu:1"))
        engine = Engine(bench, replace(CONFIG, mode=Mode.ADVISORY))
        engine.paused = paused
        await engine.run(20.0, 8)
        both = bench.executor.routes.limits.get(DETECTOR)
        bench.fleet.remove("b")
        await engine.run(20.0, 8)
        alone = bench.executor.routes.limits.get(DETECTOR)
        if paused:
            assert both is not None
            assert alone is not None
            assert alone.requests_per_s < 0.5 * both.requests_per_s
        else:
            assert (both, alone) == (None, None)
        assert not [line for line in bench.log if line.split()[0] in {"launch", "change", "stop"}]
        await engine.close()

    asyncio.run(scenario())


SLO_MS, RATE_RPS = 200.0, 226.0
"""The rate that the fixed server below carries inside the SLO."""


def overloaded(overload: Overload, factor: float, duration_s: int = 24) -> tuple[SimResult, BoolArray]:
    """A fixed server under a multiple of its capacity for ten seconds, between lighter ones; and which requests came meanwhile."""
    base = config(slots=1)
    settings_seen = replace(
        base,
        models={"m": model("m", table(2.0, 4.0, 2.0, 10.0))},
        pipelines=(PipelineConfig("p", ("m",), SLO_MS, overload=overload),),
        policy=PolicyConfig(name=PolicyName.STATIC),
    )
    rng = np.random.default_rng(1)
    rates = [RATE_RPS * (factor if 8 <= second < 18 else 0.5) for second in range(duration_s)]
    times = np.concatenate([second + np.sort(rng.random(rng.poisson(rate))) for second, rate in enumerate(rates)])
    result = simulate(settings_seen, {"p": times}, float(duration_s), SimOptions(seed=1, servers=({"m": ModelState(4, 8)},)))
    return result, (times >= 8) & (times < 18)


def test_an_overload_is_refused_from_its_first_request_on_and_what_is_admitted_meets_the_slo() -> None:
    result, meanwhile = overloaded(Overload.SHED, 3.0)
    [run] = result.pipelines
    admitted = meanwhile & ~run.refused
    inside = admitted & ~run.violated
    assert result.ticks[-1].decision.evidence[0].capacity_rps == pytest.approx(RATE_RPS, rel=0.05)
    assert inside.sum() >= 0.99 * admitted.sum()
    assert inside.sum() >= 0.95 * 10 * RATE_RPS
    assert not run.refused[run.arrival_s < 8].any()
    assert run.violated[run.arrival_s >= 20].sum() == 0
    assert result.refused == run.refused.sum() == run.failed.sum()
    refusing = max(tick.decision.evidence[0].refused_rps for tick in result.ticks if tick.decision.evidence)
    assert refusing == pytest.approx(2.0 * RATE_RPS, rel=0.2)
    demand = max(tick.estimate.pipelines["p"].recent_rps for tick in result.ticks)
    assert demand == pytest.approx(3.0 * RATE_RPS, rel=0.2), "refused requests count as demand"


def test_in_a_queue_nearly_every_request_of_the_same_overload_is_late() -> None:
    result, meanwhile = overloaded(Overload.QUEUE, 3.0)
    [run] = result.pipelines
    assert result.refused == 0
    assert run.violated[meanwhile].mean() > 0.8


def test_below_the_capacity_hardly_anything_is_refused() -> None:
    result, _ = overloaded(Overload.SHED, 0.9)
    assert result.refused <= 0.01 * result.requests
