"""A growth while requests wait cannot be corrected before the backlog is gone: it is sized once, the rest comes from elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.samples import DETECTOR, NOW_S, config, estimate, model, server, snapshot
from themis_triton.core.action import ActionKind
from themis_triton.core.config import LatencyTable, ThemisConfig
from themis_triton.core.decision import Target
from themis_triton.core.fleet import ModelState
from themis_triton.core.observation import ModelCounters, ServerReading
from themis_triton.core.policy import PolicyConfig, ScaleUpConfig
from themis_triton.decide.demand import fast_demand, surge_demand
from themis_triton.decide.guards import within_pace
from themis_triton.sim.result import SimResult
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions

SERVICE_MS = 40.0
"""Of one request, whatever else runs: an instance serves 25/s."""


def lone(slots: int, max_instances: int) -> ThemisConfig:
    base = config(slots=slots, burst_headroom_factor=1.5)
    flat = LatencyTable((1,), tuple(range(1, 17)), ((SERVICE_MS,) * 16,))
    alone = replace(model(DETECTOR, flat), max_instances=max_instances, max_batch=1)
    alone = replace(alone, profile=replace(alone.profile, server_launch_s=2.0))
    return replace(base, models={DETECTOR: alone}, pipelines=(replace(base.pipelines[0], stages=(DETECTOR,)),))


def surged(*steps: tuple[float, float], until_s: float, slots: int = 1, max_instances: int = 4, servers: int = 1) -> SimResult:
    """One instance on each server under regular arrivals, whose rate changes at each step (time, rate)."""
    ends = [*(at_s for at_s, _ in steps[1:]), until_s]
    arrival_s = np.concatenate([np.arange(at_s, end_s, 1.0 / rate) for (at_s, rate), end_s in zip(steps, ends, strict=True)])
    options = SimOptions(servers=[{DETECTOR: ModelState(1, 1)}] * servers)
    return simulate(lone(slots, max_instances), {"video": arrival_s}, until_s + 6.0, options)


def grown(result: SimResult) -> list[tuple[int, int]]:
    actions = [(o.action.before, o.action.after) for o in result.outcomes if o.action.kind is ActionKind.GROW]
    return [(before.instances, after.instances) for before, after in actions if before is not None and after is not None]


@pytest.mark.parametrize("rate_rps", [70.0, 80.0])
@pytest.mark.parametrize("since_tick_s", [0.0, 0.16, 0.17, 0.18, 0.2])
def test_the_first_growth_under_a_backlog_suffices_for_the_whole_surge(rate_rps: float, since_tick_s: float) -> None:
    result = surged((since_tick_s, rate_rps), until_s=8.0)
    assert grown(result)[0] == (1, 4)
    # All at once, asked four seconds into the load, makes requests wait 3.3 s on a real server; steps make them wait 9.9 s.
    assert result.pipelines[0].latency_ms.max() < 1000.0


def test_what_a_growth_under_way_leaves_uncarried_comes_from_another_server() -> None:
    result = surged((0.0, 60.0), (1.0, 140.0), until_s=10.0, slots=2, max_instances=8)
    first = next(o for o in result.outcomes if o.action.kind is ActionKind.GROW and o.action.server == "initial-0")
    launch = next(o for o in result.outcomes if o.action.kind is ActionKind.LAUNCH)
    assert launch.started_at_s < first.ended_at_s
    assert max(record.decision.evidence[0].servers_desired for record in result.ticks if record.decision.evidence) == 2


@pytest.mark.parametrize("since_tick_s", [0.0, 0.12, 0.24])
def test_a_surge_that_outgrows_the_first_growth_gets_a_second_one_server_after_server(since_tick_s: float) -> None:
    result = surged((since_tick_s, 60.0), (since_tick_s + 1.5, 190.0), until_s=10.0, slots=2, max_instances=8, servers=2)
    unrouted = [record.decision.target.unrouted for record in result.ticks if record.decision.target is not None]
    assert {len(pairs) for pairs in unrouted} == {0, 1}
    assert {pair for pairs in unrouted for pair in pairs} == {("initial-0", DETECTOR), ("initial-1", DETECTOR)}
    assert not result.pipelines[0].failed.any()
    assert result.pipelines[0].latency_ms.max() < 1200.0, "2.3 s while no server is taken out of the routes"


def test_without_a_backlog_the_surge_s_demand_is_not_asked_for() -> None:
    video = estimate(40.0).pipelines["video"]
    waiting = replace(video, backlog=60.0, newest_rps=70.0)
    policy = PolicyConfig()
    assert surge_demand(waiting, policy, 0.5, 25.0).total_rps == pytest.approx(1.5 * 70.0 + (60.0 - 4.0) + 45.0 * 0.5)
    assert fast_demand(waiting, policy, 0.5).total_rps == pytest.approx(40.0 + 56.0)


def test_growth_where_requests_wait_is_not_divided_among_ticks() -> None:
    cfg = config(PolicyConfig(scale_up=ScaleUpConfig(max_added_instances=2)))
    servers = (server("a"), server("b"))
    target = Target({name: {DETECTOR: ModelState(5, 8)} for name in ("a", "b")})
    pending = ServerReading("b", NOW_S, {DETECTOR: ModelCounters(pending=9.0)})
    kept, clamps = within_pace(target, replace(snapshot(servers), readings=(pending,)), cfg)
    assert {name: models[DETECTOR].instances for name, models in kept.servers.items()} == {"a": 1, "b": 5}
    assert [clamp.sentence for clamp in clamps] == ["4 of 8 instances are added now, the others in the next ticks"]
