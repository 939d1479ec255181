"""Paths against every candidate weighed one by one, and against what their steps leave running at the end."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.property.solver_problems import random_problem
from themis_triton.core.fleet import ModelState
from themis_triton.core.memory import Memory
from themis_triton.solver.fleet import ServerAssignment, evaluate_fleet, memory_bytes
from themis_triton.solver.migration import Migration, MovePrices, fleet_at, migration_to, solve_migration
from themis_triton.solver.migration_steps import MoveTimes
from themis_triton.solver.plans import ChainPlan
from themis_triton.solver.problem import ChainProblem, Placement
from themis_triton.solver.solve import solve_joint

TIMES, PRICES = MoveTimes(0.7, 0.9, 3.0, 1.5), MovePrices()


def random_fleet(rng: np.random.Generator, problem: ChainProblem) -> list[ServerAssignment]:
    """Up to three servers inside the bounds and the devices' memory."""
    fleet = []
    for i in range(int(rng.integers(0, 4))):
        counts = tuple(int(rng.integers(stage.min_instances, stage.max_instances + 1)) for stage in problem.stages)
        batches = tuple(int(rng.integers(1, stage.max_batch + 1)) for stage in problem.stages)
        if problem.device_memory_bytes is None or memory_bytes(problem, counts) <= problem.device_memory_bytes:
            fleet.append(ServerAssignment(f"server-{i}", tuple(map(ModelState, counts, batches))))
    return fleet


def plans(problem: ChainProblem, now: list[ServerAssignment]) -> list[ChainPlan]:
    """The cheapest plan of each number of servers, with any batches and with those that run."""
    held = [sorted({server.stages[s].max_batch for server in now}) for s in range(len(problem.stages))]
    numbers = range(problem.min_servers, problem.max_servers + 1)
    result = [solve_joint(problem, servers=n, batches=batches) for n in numbers for batches in ([None, held] if now else [None])]
    return [plan for plan in result if plan.feasible]


def fits(problem: ChainProblem, migration: Migration) -> bool:
    return problem.device_memory_bytes is None or migration.peak_memory_bytes <= problem.device_memory_bytes


def check(problem: ChainProblem, now: list[ServerAssignment]) -> bool:
    migration = solve_migration(problem, now, TIMES, PRICES)
    assert fits(problem, migration) or not migration.steps
    if migration.plan.feasible and migration.steps:
        end = fleet_at(problem, now, migration.steps, migration.ends_after_s)
        target = tuple(ModelState(stage.instances, stage.batch) for stage in migration.plan.stages)
        assert len(end) == migration.plan.servers
        assert all(held.stages == target for held in end), (problem, now, migration)
    for plan in plans(problem, now):
        taken = migration_to(problem, now, plan, TIMES, PRICES)
        assert taken is None or fits(problem, taken)
        assert taken is None or migration.rank <= (*taken.rank[:2], taken.objective + 1e-9), (problem, now, plan)
    return migration.plan.feasible and bool(migration.steps)


def random_case(seed: int) -> tuple[ChainProblem, list[ServerAssignment]]:
    rng = np.random.default_rng(seed)
    problem = replace(random_problem(rng, most_stages=3), placement=Placement.COLOCATED, max_servers=4, min_servers=1)
    return problem, random_fleet(rng, problem)


@pytest.mark.parametrize("chunk", range(2))
def test_no_candidate_has_a_cheaper_way_and_steps_lead_to_the_plan(chunk: int) -> None:
    moved = sum(check(*random_case(10_000 * chunk + seed)) for seed in range(400))
    assert moved > 50


def test_the_slo_holds_from_the_moment_that_was_said_and_not_before() -> None:
    """At a grid of moments, what serves carries the demand just from `slo_holds_after_s` on."""
    seen = 0
    for seed in range(200):
        problem, now = random_case(50_000 + seed)
        migration = solve_migration(problem, now, TIMES, PRICES)
        if not migration.steps or not math.isfinite(migration.slo_holds_after_s):
            continue
        bare = replace(problem, headroom_sigmas=0.0, headroom_rps=0.0)
        moments = np.arange(0.01, migration.ends_after_s + 0.2, 0.1)
        serving = [(moment, fleet_at(problem, now, migration.steps, float(moment))) for moment in moments]
        holds = {moment: bool(fleet) and evaluate_fleet(bare, fleet).feasible for moment, fleet in serving}
        assert all(held for moment, held in holds.items() if moment >= migration.slo_holds_after_s), (problem, now)
        before = [held for moment, held in holds.items() if moment < migration.slo_holds_after_s]
        assert not before or not before[-1], (problem, now)
        seen += 1
    assert seen > 30


@pytest.mark.parametrize("seed", range(40))
def test_steps_that_are_kept_from_other_demands_lead_to_the_same_migrations(seed: int) -> None:
    memory, (problem, now) = Memory[object](64), random_case(90_000 + seed)
    for factor in (0.5, 1.0, 2.0, 1.0):
        asked = replace(problem, demand_rps=factor * problem.demand_rps)
        assert solve_migration(asked, now, TIMES, PRICES, memory.get) == solve_migration(asked, now, TIMES, PRICES)
