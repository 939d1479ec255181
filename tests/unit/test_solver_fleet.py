"""Servers that differ, several pipelines on one pool, and the way from what runs to a plan."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from themis_triton.core.action import ActionKind
from themis_triton.core.errors import SolverError
from themis_triton.core.fleet import ModelState
from themis_triton.solver.fleet import ServerAssignment, evaluate_fleet
from themis_triton.solver.migration import Migration, MovePrices, fleet_at, solve_migration
from themis_triton.solver.migration_steps import with_requirements
from themis_triton.solver.plans import Binding
from themis_triton.solver.problem import ChainProblem, Placement, StageProblem
from themis_triton.solver.slot_allocation import PoolMember, frontier, solve_pool
from themis_triton.solver.slot_kernels import split_slots
from themis_triton.solver.solve import evaluate, largest_demand, solve_joint
from themis_triton.solver.surface import contention_surface

STAGES = (
    StageProblem("detector", contention_surface(4, 8, 4, 20, 8, 12), 1, 4, 8, instance_memory_bytes=1),
    StageProblem("classifier", contention_surface(2, 4, 2, 10, 8, 12), 1, 4, 8, instance_memory_bytes=1),
)


def video(rate_rps: float, **changes: object) -> ChainProblem:
    return replace(ChainProblem(STAGES, 300.0, rate_rps, headroom_sigmas=1.0), **changes)  # type: ignore[arg-type]


def assignment(name: str, instances: tuple[int, ...], batches: tuple[int, ...]) -> ServerAssignment:
    return ServerAssignment(name, tuple(map(ModelState, instances, batches)))


def equal(count: int, instances: tuple[int, ...] = (1, 1), batches: tuple[int, ...] = (8, 8)) -> list[ServerAssignment]:
    return [assignment(f"server-{i}", instances, batches) for i in range(count)]


def test_equal_servers_are_judged_as_the_chain_is() -> None:
    problem = video(80.0)
    fleet, chain = evaluate_fleet(problem, equal(3, (2, 1))), evaluate(problem, 3, [2, 1], [8, 8])
    assert fleet.predicted_p99_ms == pytest.approx(chain.predicted_p99_ms)
    assert fleet.capacity_rps == pytest.approx(chain.capacity_rps)
    assert fleet.cost == pytest.approx(chain.cost)
    assert fleet.feasible == chain.feasible


def test_a_stage_is_served_by_the_servers_that_hold_it() -> None:
    fleet = [assignment("a", (2, 0), (8, 8)), assignment("b", (1, 1), (8, 8)), assignment("c", (0, 2), (4, 4))]
    problem = video(60.0)
    assert evaluate_fleet(problem, fleet).feasible
    assert not evaluate_fleet(problem, fleet[:1]).feasible
    assert evaluate_fleet(problem, fleet).capacity_rps > evaluate_fleet(problem, fleet[:2]).capacity_rps


def test_separate_stages_are_refused() -> None:
    with pytest.raises(SolverError, match="co-located"):
        evaluate_fleet(video(10.0, placement=Placement.SEPARATE), equal(1))


def test_frontier_falls_with_devices_and_meets_the_joint_plan() -> None:
    problem = video(120.0)
    costs = frontier(problem, 8)
    assert costs[0] == math.inf
    assert all(later <= sooner for sooner, later in itertools.pairwise(costs))
    assert costs[8] == pytest.approx(solve_joint(problem).cost)


@pytest.mark.parametrize("placement", Placement)
def test_devices_enough_meet_every_slo_at_least_cost(placement: Placement) -> None:
    members = [PoolMember(video(rate, placement=placement)) for rate in (20.0, 60.0, 120.0)]
    pool = solve_pool(members, 24)
    assert pool.loss == 0
    assert all(plan.feasible for plan in pool.plans)
    assert pool.cost == pytest.approx(sum(solve_joint(member.problem).cost for member in members))


def test_devices_short_lose_least_by_weight_and_are_never_exceeded() -> None:
    light, heavy = PoolMember(video(90.0), weight=1.0), PoolMember(video(90.0), weight=5.0)
    pool = solve_pool([light, heavy], 3)
    assert sum(pool.devices) <= 3
    assert pool.plans[1].feasible
    assert not pool.plans[0].feasible
    assert pool.lost_rps[1] == 0
    assert pool.plans[0].binding is Binding.DEVICES
    assert pool.lost_rps[0] == pytest.approx(90.0 - largest_demand(video(90.0), pool.devices[0]) if pool.devices[0] else 90.0)
    assert sum(plan.servers for plan in pool.plans) <= 3


def test_no_devices_lose_everything() -> None:
    pool = solve_pool([PoolMember(video(10.0)), PoolMember(video(20.0))], 1)
    assert sorted(pool.devices) == [0, 1]
    assert pool.loss == 10.0
    assert solve_pool([PoolMember(video(10.0))], 0).plans[0].capacity_rps == 0.0


def test_a_chain_that_no_device_helps_loses_its_demand_and_no_more() -> None:
    pool = solve_pool([PoolMember(video(30.0, slo_ms=5.0), own_devices=1), PoolMember(video(20.0))], 1)
    assert pool.devices == (0, 1)
    assert pool.lost_rps == (30.0, 0.0)
    assert pool.loss == 30.0


def test_a_pipeline_without_demand_is_placed_where_there_is_room() -> None:
    pool = solve_pool([PoolMember(video(0.0)), PoolMember(video(20.0))], 2)
    assert pool.devices == (1, 1)
    assert all(plan.feasible for plan in pool.plans)


def test_the_split_is_the_best_of_all_splits() -> None:
    rng = np.random.default_rng(9)
    for _ in range(50):
        loss = -np.sort(-rng.integers(0, 9, (4, 7)).astype(float), axis=1)
        cost = rng.uniform(0, 50, (4, 7))
        split = split_slots(loss, cost)
        best = min(
            (sum(loss[p, n] for p, n in enumerate(ns)), sum(cost[p, n] for p, n in enumerate(ns)))
            for ns in itertools.product(range(7), repeat=4)
            if sum(ns) <= 6
        )
        assert split.sum() <= 6
        assert (sum(loss[p, n] for p, n in enumerate(split)), sum(cost[p, n] for p, n in enumerate(split))) == pytest.approx(best)


def states(problem: ChainProblem, now: list[ServerAssignment], path: Migration) -> list[bool]:
    moments = sorted({step.starts_s for step in path.steps} | {step.ends_s for step in path.steps})
    return [evaluate_fleet(problem, fleet_at(problem, now, path.steps, moment)).feasible for moment in moments]


def test_a_surge_is_answered_in_place_where_that_is_enough() -> None:
    path = solve_migration(video(38.0), equal(1))
    assert [step.kind for step in path.steps] == [ActionKind.GROW]
    assert path.slo_holds_after_s == 1.0


def test_a_larger_surge_launches_and_the_slo_holds_once_they_serve() -> None:
    problem = video(120.0)
    path = solve_migration(problem, equal(1))
    assert path.plan.feasible
    assert ActionKind.LAUNCH in {step.kind for step in path.steps}
    assert path.slo_holds_after_s == 6.0
    assert len(fleet_at(problem, equal(1), path.steps, path.ends_after_s)) == path.plan.servers


def test_settling_takes_away_only_after_what_is_made_and_never_breaks_the_slo() -> None:
    problem, now = video(20.0), equal(3, (2, 2))
    path = solve_migration(problem, now)
    assert path.plan.servers == 1
    assert path.slo_holds_after_s == 0.0
    assert all(states(problem, now, path))
    for step in with_requirements(path.steps):
        assert all(path.steps[i].ends_s <= step.starts_s for i in step.requires)


def test_a_short_horizon_stays_where_it_is() -> None:
    problem, now = video(20.0), equal(2, (1, 1))
    assert solve_migration(problem, now, prices=MovePrices(horizon_s=600.0)).plan.servers == 1
    stays = solve_migration(problem, now, prices=MovePrices(horizon_s=0.01))
    assert stays.plan.servers == 2
    assert stays.steps == ()


def test_a_reload_needs_room_for_old_and_new_and_is_avoided_where_there_is_none() -> None:
    now = equal(1, (1, 1), (1, 1))
    roomy, tight = solve_migration(video(25.0, max_servers=1), now), solve_migration(video(25.0, max_servers=1, device_memory_bytes=2), now)
    reloads = [step for step in roomy.steps if step.kind is ActionKind.REBATCH]
    assert reloads
    assert all(step.peak_memory_bytes > 2 for step in reloads)
    assert roomy.plan.feasible
    assert all(step.kind is not ActionKind.REBATCH for step in tight.steps)
    assert tight.peak_memory_bytes <= 2


def test_reloads_run_one_at_a_time() -> None:
    now = equal(2, (1, 1), (1, 1))
    path = solve_migration(video(50.0, max_servers=2), now)
    reloads = [step for step in path.steps if step.kind is ActionKind.REBATCH]
    assert len(reloads) >= 2
    assert all(first.ends_s <= second.starts_s for first, second in itertools.pairwise(reloads))


def test_from_nothing_the_first_servers_are_launched() -> None:
    path = solve_migration(video(60.0), [])
    assert {step.kind for step in path.steps} == {ActionKind.LAUNCH}
    assert path.slo_holds_after_s == 6.0


def test_room_is_made_first_where_old_and_new_counts_do_not_fit_together() -> None:
    now = equal(1, (1, 4))
    path = solve_migration(video(38.0, max_servers=1, device_memory_bytes=5), now)
    assert path.plan.feasible
    assert path.peak_memory_bytes <= 5
    kinds = [step.kind for step in path.steps]
    assert kinds.index(ActionKind.SHRINK) < kinds.index(ActionKind.GROW)
    grow = with_requirements(path.steps)[kinds.index(ActionKind.GROW)]
    assert kinds.index(ActionKind.SHRINK) in grow.requires


@pytest.mark.parametrize("memory_bytes", range(2, 9))
def test_whatever_fits_now_has_a_way_or_stays(memory_bytes: int) -> None:
    """Infeasible is a value: a tick must never end in an error because a device is full."""
    for counts in itertools.product(range(1, 6), repeat=2):
        for batches in ((1, 1), (4, 4)):
            now = equal(1, counts, batches)
            path = solve_migration(video(40.0, max_servers=2, device_memory_bytes=memory_bytes), now)
            fits = sum(counts) <= memory_bytes
            assert not fits or path.peak_memory_bytes <= memory_bytes
            assert path.steps or path.plan.servers >= 1


def test_headroom_is_not_waited_for() -> None:
    wanting = replace(video(60.0), headroom_rps=500.0)
    assert solve_migration(wanting, equal(3, (2, 1))).slo_holds_after_s == 0.0
