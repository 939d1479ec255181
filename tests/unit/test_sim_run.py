"""The tick in virtual time: changes take their time, and the same policies scale a surge as live."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, config
from themis_triton.core.config import StageCalls
from themis_triton.core.errors import ChangeRefusedError, SettingsError
from themis_triton.core.fleet import ModelState
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.load.traces import TraceOptions, arrivals, load_trace
from themis_triton.sim.cluster import Cluster
from themis_triton.sim.engine import Simulation
from themis_triton.sim.layout import Layout
from themis_triton.sim.result import SimResult
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions
from themis_triton.sim.virtual_time import VirtualClock, run_virtual
from themis_triton.sim.world import ServiceNoise, SimWorld

SURGE = arrivals(load_trace(TraceOptions("surge", duration_s=60)), 1)
PIPELINE = config().pipelines[0].name


def surged(policy: PolicyName, options: SimOptions | None = None, *, burst_headroom_factor: float = 1.0, duration_s: int = 60) -> SimResult:
    """A policy under the surge, or its beginning."""
    settings = config(PolicyConfig(name=policy), burst_headroom_factor=burst_headroom_factor)
    return simulate(replace(settings, servers=()), {PIPELINE: SURGE[duration_s > SURGE]}, duration_s, options)


plain = lru_cache(surged)
"""The same result for whoever only looks at it."""


def test_virtual_time_jumps_from_timer_to_timer() -> None:
    async def main() -> tuple[float, ...]:
        clock = VirtualClock()

        async def after(seconds: float) -> float:
            await clock.sleep(seconds)
            return clock.now_s()

        return tuple(await asyncio.gather(after(1e6), after(3.0), after(0.5)))

    assert run_virtual(main()) == (1e6, 3.0, 0.5)


def test_a_program_that_waits_for_nothing_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="stuck"):
        run_virtual(main())


def cluster(world: SimWorld) -> Cluster:
    settings = config()
    surfaces = np.full((2, 8, 16), 10.0)
    simulation = Simulation(Layout(surfaces, ((0, 1),), (0, 1), 16), world, np.array([]), np.array([], dtype=np.int64), 0)
    built = Cluster(settings, world, simulation, seed=0)
    built.start("s", 0, {DETECTOR: ModelState(4, 8), CLASSIFIER: ModelState(1, 8)})
    built.hold("s")
    return built


def test_changes_take_the_profile_s_times_one_after_the_other_for_a_model() -> None:
    async def main() -> tuple[tuple[float, ...], list[int]]:
        built = cluster(SimWorld(control_s=0.1))

        async def changed(model: str, instances: int) -> float:
            await built.change("s", model, ModelState(instances, 8))
            return built.now_s()

        ends = await asyncio.gather(changed(DETECTOR, 2), changed(DETECTOR, 5), changed(CLASSIFIER, 3))
        return tuple(ends), [use.instances for use in built.usage]

    ends, instances = run_virtual(main())
    assert ends == pytest.approx((0.1 + 2 * 1.2, 2.5 + 0.6, 0.6))
    assert instances == [5, 4, 6, 5, 8]


def backlogged(counts: tuple[int, ...]) -> tuple[list[float], list[tuple[float, int]], float]:
    """70 requests/s for 8 s before one instance of 25/s, growth from 2 s on: ends of the calls, counts over time, longest latency."""

    async def main() -> tuple[list[float], list[tuple[float, int]], float]:
        settings, world = config(), SimWorld(control_s=0.0, hop_s=0.0)
        arrivals = np.arange(0.0, 8.0, 1.0 / 70.0)
        layout = Layout(np.full((2, 8, 16), 40.0), ((0,),), (0,), 16)
        simulation = Simulation(layout, world, arrivals, np.zeros(arrivals.size, dtype=np.int64), 0)
        built = Cluster(settings, world, simulation, seed=0)
        built.start("s", 0, {DETECTOR: ModelState(1, 1)})
        built.hold("s")
        simulation.route(0, (0,))
        await asyncio.sleep(2.0)
        ends = []
        for count in counts:
            await built.change("s", DETECTOR, ModelState(count, 1))
            ends.append(built.now_s())
        simulation.advance(60.0)
        longest_s = float((simulation.engine.ended_s - simulation.engine.arrival_s).max())
        return ends, [(use.at_s, use.instances) for use in built.usage[1:]], longest_s

    return run_virtual(main())


def test_a_growth_under_a_backlog_serves_after_one_initialisation_and_ends_when_the_queue_is_empty() -> None:
    ends, counts, longest_s = backlogged((4,))
    assert counts == [(2.5, 4)]
    assert ends == [pytest.approx(2.5 + 45 * 2.5 / 30.0, abs=0.1)]
    assert longest_s < 2.0


def test_a_correction_waits_until_the_queue_was_empty() -> None:
    ends, counts, longest_s = backlogged((2, 4))
    assert counts[0] == (2.5, 2)
    assert counts[1][0] == pytest.approx(ends[0] + 0.5)
    assert ends[0] > 8.0
    assert longest_s > 3.0


def test_a_shrink_waits_until_the_queue_was_empty() -> None:
    ends, counts, _ = backlogged((4, 3))
    assert counts[1][0] == pytest.approx(ends[0], abs=0.1)
    assert counts[1][1] == 3
    assert ends[1] == pytest.approx(ends[0] + 1.2, abs=0.1)


def test_many_starting_instances_take_processor_time_from_each_other() -> None:
    async def main() -> float:
        built = cluster(SimWorld(control_s=0.0, init_work_s=0.2, host_cores=2))
        await asyncio.gather(built.change("s", DETECTOR, ModelState(6, 8)), built.change("s", CLASSIFIER, ModelState(2, 8)))
        return built.now_s()

    assert run_virtual(main()) == pytest.approx(0.5 + 2 * 0.2 / 2)


def test_a_refused_change_leaves_the_old_state() -> None:
    async def main() -> dict[str, ModelState]:
        built = cluster(SimWorld(refuse_share=1.0))
        with pytest.raises(ChangeRefusedError, match="injected"):
            await built.change("s", DETECTOR, ModelState(6, 8))
        return built.find("s").models

    assert run_virtual(main())[DETECTOR] == ModelState(4, 8)


# The queue-time autoscaler adds its first server after a minute.
@pytest.mark.parametrize("policy", [name for name in PolicyName if name not in {PolicyName.STATIC, PolicyName.QUEUE_TIME}])
def test_every_policy_scales_the_surge_without_losing_a_request(policy: PolicyName) -> None:
    result = plain(policy)
    assert result.requests == SURGE.size
    assert result.failed == 0
    assert result.max_servers > 1
    assert result.actions["launch"] >= 1
    series = result.series()
    assert sum(series.rate_rps) == SURGE.size
    assert max(series.instances) > series.instances[0]
    assert result.cost == pytest.approx(10.0 * result.server_seconds + result.instance_seconds)


def test_themis_absorbs_the_surge_in_place_before_new_servers_serve() -> None:
    result = surged(PolicyName.THEMIS, burst_headroom_factor=PolicyConfig().scale_up.burst_headroom_factor)
    launched = next(o for o in result.outcomes if o.action.kind.value == "launch")
    assert launched.duration_s > 5.0
    assert any(o.action.kind.value == "grow" and o.ended_at_s < launched.ended_at_s for o in result.outcomes)
    assert result.violations < plain(PolicyName.HORIZONTAL).violations


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    noisy = SimWorld(noise=ServiceNoise.LOGNORMAL, noise_cv=0.2, refuse_share=0.2)
    results = [surged(PolicyName.THEMIS, SimOptions(seed=seed, world=noisy), duration_s=30) for seed in (1, 1, 2)]
    assert results[0].actions["launch"] >= 1
    assert {outcome.kind.value for outcome in results[0].outcomes} == {"done", "refused"}
    digests = [result.digest() for result in results]
    assert digests[0] == digests[1] != digests[2]


def test_a_server_that_dies_is_replaced_and_its_requests_are_retried() -> None:
    result = surged(PolicyName.HORIZONTAL, SimOptions(launched=2, deaths_s=(30.2,)))
    assert result.failed == 0
    death = next(index for index, use in enumerate(result.usage) if use.at_s == pytest.approx(result.start_s + 30.2))
    before, after, *later = [use.servers for use in result.usage[death - 1 :]]
    assert after == before - 1
    assert max(later) >= before
    assert "replace" in {record.decision.reason.value for record in result.ticks}


def test_a_longer_cold_start_costs_horizontal_violations() -> None:
    fast, slow = (surged(PolicyName.HORIZONTAL, SimOptions(world=SimWorld(cold_start_s=s))).violations for s in (2.0, 20.0))
    assert fast < slow


def test_arrivals_for_an_unknown_pipeline_are_refused() -> None:
    with pytest.raises(SettingsError, match="expected a pipeline of the settings"):
        simulate(config(), {"audio": SURGE}, 60)


@pytest.mark.parametrize(
    ("per_request", "sequential", "most"), [(2.5, False, None), (2.0, True, None), (0.5, False, None), (2.5, False, 4.0), (1.5, False, 6.0)]
)
def test_requests_make_as_many_calls_of_a_stage_as_the_settings_say(per_request: float, most: float | None, *, sequential: bool) -> None:
    settings = config(burst_headroom_factor=1.0)
    calls = (StageCalls(), StageCalls(per_request, sequential, most))
    (video,) = settings.pipelines
    called = replace(settings, pipelines=(replace(video, calls=calls),))
    result = simulate(called, {PIPELINE: np.arange(0.0, 40.0, 0.05)}, 40)
    models, (run,) = result.ticks[-1].estimate.models, result.pipelines
    assert models[CLASSIFIER].stable_rps == pytest.approx(per_request * models[DETECTOR].stable_rps, abs=6.0)
    assert np.all(np.isfinite(run.latency_ms))
    assert not run.failed.any()
    assert result.ticks[-1].estimate.pipelines[PIPELINE].per_request == pytest.approx((1.0, per_request), rel=0.15)


def test_too_many_calls_are_refused() -> None:
    (video,) = config().pipelines
    called = replace(config(), pipelines=(replace(video, calls=(StageCalls(), StageCalls(1000.0))),))
    with pytest.raises(SettingsError, match="30,000,000 calls of stages are too many to simulate: expected at most 5,000,000"):
        simulate(called, {PIPELINE: np.linspace(0.0, 40.0, 30_000)}, 40)
