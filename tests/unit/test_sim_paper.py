"""The paper's world: central queues, replicas of one stage with cores, prices a model, and settings that need no `launch` section."""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from themis_triton.core.config import Mode, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.fleet import ModelState
from themis_triton.core.policy import PolicyName
from themis_triton.evaluation.clairvoyant import clairvoyant
from themis_triton.evaluation.starts import start_for
from themis_triton.load.traces import TraceOptions, arrivals, load_trace
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped
from themis_triton.sim.cluster import Cluster
from themis_triton.sim.engine import Simulation
from themis_triton.sim.layout import Layout
from themis_triton.sim.result import SimResult
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions, simulated
from themis_triton.sim.virtual_time import run_virtual
from themis_triton.sim.world import SimWorld, paper_world, triton_world, world_for
from themis_triton.solver.surface import FloatArray, paper_surface

DETECTOR, CLASSIFIER = "video-detector", "video-classifier"
SURFACES = np.stack(
    [
        paper_surface(39.90889958924582, 7.784141716703453, 1.8333345492230113, 0.4507066167132669).latency_ms,
        paper_surface(28.084275010842124, 2.626952412159743, 6.807172001409088, 0.4588339579256442).latency_ms,
    ]
)
SERVICE_S = SURFACES[:, 0, 0] / 1000.0
AT_ONCE = replace(paper_world(), central_delay_s=0.0)
SURGE = arrivals(load_trace(TraceOptions("surge", duration_s=40)), 1)


def settings(pipeline: str = "video", policy: PolicyName = PolicyName.HORIZONTAL, mode: Mode = Mode.ACTIVE) -> ThemisConfig:
    config = load_settings(shipped("config") / f"paper-{pipeline}.yaml")
    return replace(config, mode=mode, policy=replace(config.policy, name=policy))


def poisson(rate_rps: float, duration_s: float, seed: int = 3) -> FloatArray:
    times = np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate_rps, int(2 * rate_rps * duration_s)))
    inside: FloatArray = times[times < duration_s]
    return inside


def served_in_order(arrival_s: FloatArray, service_s: float, replicas: int) -> FloatArray:
    """Ends in a queue with deterministic service and n workers, where request i starts once request i − n has ended."""
    ends: list[float] = []
    for number, at_s in enumerate(arrival_s):
        ends.append(max(at_s, ends[number - replicas] if number >= replicas else 0.0) + service_s)
    return np.array(ends)


def replicas(detectors: int, classifiers: int, cores: int = 1, batch: int = 1) -> tuple[dict[str, ModelState], ...]:
    return ({DETECTOR: ModelState(cores, batch)},) * detectors + ({CLASSIFIER: ModelState(cores, batch)},) * classifiers


@pytest.mark.parametrize(("count", "load"), [(1, 0.6), (5, 0.9), (30, 0.95)])
def test_every_request_of_a_central_queue_ends_as_theory_says(count: int, load: float) -> None:
    arrival_s = poisson(load * count / SERVICE_S[0], 2000.0 / count)
    built = Simulation(Layout(SURFACES, ((0,),), tuple(range(count)), 4), AT_ONCE, arrival_s, np.zeros(arrival_s.size, dtype=np.int64), 0)
    for server in range(count):
        built.configure(server, 0, ModelState(1, 1))
    built.route(0, tuple(range(count)))
    built.advance(np.inf)
    assert built.engine.ended_s == pytest.approx(served_in_order(arrival_s, SERVICE_S[0], count))


def deprioritizing(arrival_s: FloatArray, service_s: float, workers: int, deprioritize_after_s: float) -> FloatArray:
    """Ends where a worker that frees takes the first who waited at most `deprioritize_after_s`, or else the first of all."""
    ends, free_s = np.full(arrival_s.size, np.nan), [0.0] * workers
    waiting = list(range(arrival_s.size))
    while waiting:
        worker = free_s.index(min(free_s))
        now_s = max(free_s[worker], arrival_s[waiting[0]])
        here = [each for each in waiting if arrival_s[each] <= now_s]
        chosen = next((each for each in here if now_s - arrival_s[each] <= deprioritize_after_s), here[0])
        waiting.remove(chosen)
        free_s[worker] = ends[chosen] = now_s + service_s
    return ends


@pytest.mark.parametrize("deprioritize_after_s", [0.0, 0.1, 0.4])
def test_who_waited_too_long_lets_all_others_pass(deprioritize_after_s: float) -> None:
    arrival_s = np.concatenate([poisson(1.6 * 3 / SERVICE_S[0], 6.0), 6.0 + poisson(0.7 * 3 / SERVICE_S[0], 20.0, seed=4)])
    layout = Layout(SURFACES, ((0,),), (0, 1, 2), 4, (deprioritize_after_s, math.inf))
    built = Simulation(layout, AT_ONCE, arrival_s, np.zeros(arrival_s.size, dtype=np.int64), 0)
    for server in range(3):
        built.configure(server, 0, ModelState(1, 1))
    built.route(0, (0, 1, 2))
    built.advance(np.inf)
    assert built.engine.ended_s == pytest.approx(deprioritizing(arrival_s, SERVICE_S[0], 3, deprioritize_after_s))


def test_a_late_request_does_not_wait_for_the_delay_of_a_fresh_one() -> None:
    arrival_s = np.array([0.0, 0.15, 0.39])
    surface = np.full((1, 8, 1), 300.0)
    layout = Layout(surface, ((0,),), (0,), 8, (0.2,))
    world = replace(triton_world(), hop_s=0.0)
    built = Simulation(layout, world, arrival_s, np.zeros(3, dtype=np.int64), 0)
    built.configure(0, 0, ModelState(1, 8, 100_000))
    built.route(0, (0,))
    built.advance(np.inf)
    assert built.engine.ended_s == pytest.approx([0.4, 0.7, 0.7])


def test_a_replica_that_frees_takes_its_own_batch_at_once_or_waits_for_a_full_one() -> None:
    def ends_ms(world: SimWorld, *arrivals_ms: float) -> list[float]:
        count = len(arrivals_ms)
        layout = Layout(SURFACES, ((0,),), (0, 1), 4)
        built = Simulation(layout, world, np.array(arrivals_ms) / 1000.0, np.zeros(count, dtype=np.int64), 0)
        built.configure(0, 0, ModelState(1, 1))
        built.configure(1, 0, ModelState(4, 3))
        built.route(0, (0, 1))
        built.advance(np.inf)
        return [float(ms) for ms in (1000.0 * built.engine.ended_s).round(6)]

    def service_ms(size: int, cores: int) -> float:
        return float(SURFACES[0, size - 1, cores - 1])

    waiting, one = replace(AT_ONCE, central_delay_s=0.05), service_ms(1, 1)
    second = 1 + service_ms(1, 4)
    assert ends_ms(AT_ONCE, 0, 1, 2, 3) == [one, second, second + service_ms(2, 4), second + service_ms(2, 4)]
    assert ends_ms(waiting, 0, 1, 2, 3) == [one, *[3 + service_ms(3, 4)] * 3]
    assert ends_ms(waiting, 0, 1, 2) == [one, *[51 + service_ms(2, 4)] * 2]


def test_a_fleet_that_nobody_changes_serves_both_stages_as_theory_says_and_costs_its_prices() -> None:
    arrival_s = poisson(60.0, 60.0)
    options = SimOptions(world=AT_ONCE, servers=replicas(5, 4))
    result = simulate(settings(mode=Mode.ADVISORY), {"video": arrival_s}, 60.0, options)
    first = served_in_order(arrival_s, SERVICE_S[0], 5)
    expected_ms = 1000.0 * (served_in_order(first, SERVICE_S[1], 4) - arrival_s)
    assert result.pipelines[0].latency_ms == pytest.approx(expected_ms, abs=1e-6)
    assert result.mean_cost == pytest.approx(5 * (2 + 18) + 4 * (1 + 18))
    assert result.cost == pytest.approx(60.0 * result.mean_cost)


def surged(options: SimOptions, policy: PolicyName = PolicyName.HORIZONTAL) -> SimResult:
    return simulate(settings(policy=policy), {"video": SURGE}, 40, options)


@pytest.mark.parametrize("policy", PolicyName)
def test_settings_without_a_launch_section_scale_replicas_of_a_stage(policy: PolicyName) -> None:
    config = settings(policy=policy)
    result = surged(SimOptions(servers=start_for(config, 31.0, batch=1)), policy)
    assert result.failed == 0
    assert result.requests == SURGE.size
    assert all(len(record.snapshot.servers[0].models) == 1 for record in result.ticks)
    assert surged(SimOptions(servers=start_for(config, 31.0, batch=1)), policy).digest() == result.digest()


def test_a_replica_costs_from_the_start_of_its_creation() -> None:
    async def main() -> list[tuple[float, float]]:
        config = simulated(settings(), SimOptions(slots=2))
        simulation = Simulation(Layout(SURFACES, ((0, 1),), (0, 1), 4), AT_ONCE, np.array([]), np.array([], dtype=np.int64), 0)
        cluster = Cluster(config, AT_ONCE, simulation, seed=0)
        cluster.start("a", 0, {DETECTOR: ModelState(1, 1)})
        cluster.start("b", 1, {CLASSIFIER: ModelState(2, 1)})
        cluster.hold("a")
        await cluster.change("a", DETECTOR, ModelState(4, 1))
        await cluster.change("a", DETECTOR, ModelState(1, 1))
        await cluster.stop("a")
        return [(use.at_s, use.cost) for use in cluster.usage]

    assert run_virtual(main()) == [(0.0, 20.0), (0.0, 57.0), (pytest.approx(0.1), 111.0), (pytest.approx(0.2), 57.0), (0.2, 37.0)]


def test_a_central_queue_changes_its_batches_at_once_and_a_larger_one_comes_with_its_cores() -> None:
    config = simulated(settings(), SimOptions(slots=2))
    slow = replace(AT_ONCE, grow_s=1.2, shrink_s=1.2, reload_s=1.2)

    async def main() -> list[tuple[float, ModelState]]:
        layout = Layout(SURFACES, ((0,), (1,)), (0, 1), 4)
        cluster = Cluster(config, slow, Simulation(layout, slow, np.zeros(0), np.zeros(0, dtype=np.int64), 0), seed=0)
        cluster.start("a", 0, {DETECTOR: ModelState(2, 1)})
        seen = []
        for desired in (ModelState(2, 3), ModelState(4, 4), ModelState(1, 2)):
            change = asyncio.create_task(cluster.change("a", DETECTOR, desired))
            await asyncio.sleep(0.01)
            seen.append((cluster.now_s(), cluster.find("a").models[DETECTOR]))
            assert await change == desired
            seen.append((cluster.now_s(), cluster.find("a").models[DETECTOR]))
        return seen

    times, states = zip(*run_virtual(main()), strict=True)
    assert states == (ModelState(2, 3),) * 2 + (ModelState(2, 3), ModelState(4, 4), ModelState(4, 2), ModelState(1, 2))
    assert times == pytest.approx([0.01, 0.01, 0.02, 1.21, 1.22, 2.41], abs=0.001)


def test_the_first_replicas_are_those_of_the_horizontal_plan() -> None:
    config = settings()
    started = start_for(config, 31.0, batch=1)
    demand = round(31 + np.sqrt(31))
    needs = [int(np.ceil(demand / np.floor(1 / service_s))) for service_s in SERVICE_S]
    assert [sum(name in models for models in started) for name in (DETECTOR, CLASSIFIER)] == needs
    assert all(models == {name: ModelState(1, 1)} for models in started for name in models)
    assert all(state.max_batch == 4 for models in start_for(config, 31.0) for state in models.values())


def test_more_first_servers_than_places_are_refused() -> None:
    with pytest.raises(SettingsError, match="policy horizontal starts with 9 servers, but 8 can exist"):
        simulate(settings(), {"video": SURGE}, 40, SimOptions(servers=replicas(5, 4), slots=8))


def test_the_settings_choose_their_world() -> None:
    assert world_for(settings()) == paper_world()
    assert world_for(load_settings(shipped("config") / "themis.yaml")) == triton_world()
    mixed = settings()
    planning = replace(mixed.planning, throughput=load_settings(shipped("config") / "themis.yaml").planning.throughput)
    assert world_for(replace(mixed, planning=planning)) == triton_world()


def test_service_times_can_differ_from_the_profiles() -> None:
    def p50_ms(factor: float) -> float:
        world = replace(AT_ONCE, service_factor=factor)
        result = simulate(
            settings(mode=Mode.ADVISORY), {"video": np.array([1.0, 5.0])}, 10, SimOptions(world=world, servers=replicas(1, 1))
        )
        return float(result.pipelines[0].latency_ms.max())

    assert p50_ms(1.0) == pytest.approx(1000.0 * SERVICE_S.sum())
    assert p50_ms(1.2) == pytest.approx(1200.0 * SERVICE_S.sum())


def test_the_observer_can_see_the_world_late() -> None:
    def seen(lag_s: float) -> dict[float, float]:
        world = replace(AT_ONCE, lag_s=lag_s)
        result = simulate(settings(mode=Mode.ADVISORY), {"video": SURGE}, 10, SimOptions(world=world, servers=replicas(5, 4)))
        return {record.snapshot.at_s: route.arrivals for record in result.ticks for route in record.snapshot.routes[:1]}

    prompt, late = seen(0.0), seen(1.5)
    assert min(late) == min(prompt) + 1.5
    assert all(arrived == prompt[at_s - 1.5] for at_s, arrived in late.items())
    assert list(seen(1.3).values()) == list(late.values())


def test_a_late_observer_costs_violations() -> None:
    start = start_for(settings(), 31.0, batch=1)
    prompt, late = (surged(SimOptions(servers=start, world=replace(paper_world(), lag_s=lag_s))).violations for lag_s in (0.0, 3.0))
    assert prompt < late


def cheapest_cost(demand_rps: int) -> int:
    """Over all cores and batches of both stages: memory of 2 and 1 GB, 18 a core, whole requests/s, waits for b - 1 arrivals."""
    costs = []
    for choice in itertools.product(range(4), range(4), repeat=2):
        stages = list(enumerate(zip(choice[::2], choice[1::2], strict=True)))
        service_ms = [float(SURFACES[stage, b, c]) for stage, (b, c) in stages]
        waits_ms = [1000.0 * b * math.log(100.0) / demand_rps for _, (b, _) in stages]
        counts = [math.ceil(demand_rps / math.floor(1000.0 * (b + 1) / service_ms[stage])) for stage, (b, _) in stages]
        if sum(service_ms) + sum(waits_ms) <= 300.0:
            costs.append(sum(n * (gb + 18 * (c + 1)) for n, gb, (_, (_, c)) in zip(counts, (2, 1), stages, strict=True)))
    return min(costs)


def test_the_bound_is_the_cheapest_plan_of_each_second() -> None:
    times = np.concatenate([np.linspace(0.0, 0.99, 20), np.linspace(2.0, 2.49, 40)])
    bound = clairvoyant(simulated(settings(), SimOptions()), {"video": times}, 2.5)
    # With a standard deviation of headroom, 20 and 40 a second ask for 24 and 46.
    assert bound.cost_per_s[0] == cheapest_cost(24)
    assert bound.cost_per_s[2] == cheapest_cost(46)
    assert bound.rate_rps.tolist() == [20.0, 0.0, 40.0]
    assert bound.infeasible_s == 0
    assert bound.cost == pytest.approx(bound.cost_per_s[0] + bound.cost_per_s[1] + 0.5 * bound.cost_per_s[2])
    assert bound.mean_cost == pytest.approx(bound.cost / 2.5)
    assert bound.cost_per_s[1] == 2 + 1 + 2 * 18
    assert bound.servers[1] == bound.instances[1] == 2


def test_the_bound_costs_less_than_any_policy_and_no_devices_means_best_effort() -> None:
    config = settings()
    bound = clairvoyant(simulated(config, SimOptions()), {"video": SURGE}, 40)
    assert bound.mean_cost < surged(SimOptions(servers=start_for(config, 31.0, batch=1))).mean_cost
    short = clairvoyant(simulated(config, SimOptions(slots=4)), {"video": SURGE}, 40)
    assert 0 < short.infeasible_s <= 40
    assert short.servers.max() <= 4


def test_seconds_in_which_pipelines_together_want_more_servers_than_there_are_count_as_infeasible() -> None:
    config = load_settings(shipped("config") / "themis.yaml")
    alone = {pipeline.name: clairvoyant(simulated(config, SimOptions()), {pipeline.name: 1.3 * SURGE}, 52) for pipeline in config.pipelines}
    together = clairvoyant(simulated(config, SimOptions()), dict.fromkeys(alone, 1.3 * SURGE), 52)
    desired = sum(bound.servers for bound in alone.values())
    # A pipeline without arrivals wants a server too, and is in all three sums.
    assert together.infeasible_s == np.count_nonzero(desired - 6 > 4) > 0
    assert together.infeasible_s > max(bound.infeasible_s for bound in alone.values())
