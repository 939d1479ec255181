"""The kernels against every configuration tried in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import solver_reference as reference
from tests.property.solver_problems import random_problem
from themis_triton.solver.problem import ChainProblem, Placement
from themis_triton.solver.solve import (
    fewest_servers,
    find_joint,
    find_vertical,
    largest_demand,
    servers_missing,
    solve_joint,
    solve_vertical,
    strongest_vertical,
)

CHUNKS, PER_CHUNK = 8, 1250


def check_joint(problem: ChainProblem) -> bool:
    expected, plan = reference.brute_force(problem), solve_joint(problem)
    assert plan.feasible == (expected is not None), problem
    assert find_joint(problem) == (plan if plan.feasible else None), problem
    assert len(plan.stages) == len(problem.stages)
    if expected is None:
        return False
    assert plan.cost == pytest.approx(expected.cost, rel=1e-9, abs=1e-9), problem
    assert plan.predicted_p99_ms == pytest.approx(expected.p99_ms, rel=1e-6, abs=1e-6), problem
    judged = reference.judge(problem, [reference.Choice(s.servers, s.instances, s.batch) for s in plan.stages])
    assert judged.holds, problem
    return True


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_ten_thousand_random_problems(chunk: int) -> None:
    rng = np.random.default_rng(chunk)
    feasible = sum(check_joint(random_problem(rng)) for _ in range(PER_CHUNK))
    assert PER_CHUNK / 5 < feasible < PER_CHUNK * 4 / 5


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**63), slo_ms=st.floats(1, 1000), rate_rps=st.floats(0, 1e4))
def test_any_slo_and_rate(seed: int, slo_ms: float, rate_rps: float) -> None:
    check_joint(replace(random_problem(np.random.default_rng(seed), graphs=0.7), slo_ms=slo_ms, demand_rps=rate_rps))


def held_servers(rng: np.random.Generator, problem: ChainProblem) -> int | list[int]:
    if problem.placement is Placement.COLOCATED:
        return int(rng.integers(1, 4))
    return [int(n) for n in rng.integers(1, 4, len(problem.stages))]


@pytest.mark.parametrize("chunk", range(3))
def test_vertical_and_the_largest_demand_to_one_request_a_second(chunk: int) -> None:
    rng = np.random.default_rng(1000 + chunk)
    infeasible = 0
    for _ in range(120):
        problem = random_problem(rng, most_stages=3)
        problem = replace(problem, demand_rps=float(rng.integers(0, 90)), headroom_rps=0.0)
        servers = held_servers(rng, problem)
        each = servers if isinstance(servers, list) else [servers] * len(problem.stages)
        expected, vertical = reference.brute_force(problem, each), solve_vertical(problem, servers)
        assert vertical.feasible == (expected is not None), problem
        assert find_vertical(problem, servers) == (vertical.plan if vertical.feasible else None), problem
        if expected is not None:
            assert vertical.plan.cost == pytest.approx(expected.cost), problem
            continue
        infeasible += 1
        largest = reference.brute_largest_demand(problem, each)
        assert largest_demand(problem, servers) == largest, problem
        assert vertical.largest_demand_rps == max(0, largest)
        strongest, carried_rps = strongest_vertical(problem, servers)
        assert (replace(strongest, binding=vertical.plan.binding), carried_rps) == (vertical.plan, largest), problem
        assert servers_missing(problem, servers) == (vertical.servers_missing, vertical.stage_servers_missing), problem
        if vertical.servers_missing is not None:
            grown = servers + vertical.servers_missing if isinstance(servers, int) else np.add(servers, vertical.stage_servers_missing)
            assert solve_vertical(problem, grown if isinstance(grown, int) else grown.tolist()).feasible, problem
    assert infeasible > 20


@pytest.mark.parametrize("placement", Placement)
def test_the_fewest_servers_are_those_of_the_plan_in_which_only_servers_cost(placement: Placement) -> None:
    rng, counts = np.random.default_rng(5), set()
    for _ in range(200):
        drawn = random_problem(rng, most_stages=3)
        stages = tuple(replace(stage, server_price=1.0, instance_price=0.0) for stage in drawn.stages)
        problem = replace(drawn, stages=stages, placement=placement, max_servers=4)
        expected, result = reference.brute_force(problem), fewest_servers(problem)
        assert (result is None) == (expected is None), problem
        if expected is not None and result is not None:
            taken = sum(result) if placement is Placement.SEPARATE else result[0]
            assert taken == expected.cost, problem
            counts.add(taken)
    assert len(counts) >= 3


def test_no_grid_of_latencies_finds_a_cheaper_plan() -> None:
    """A DP over a latency grid rounds each stage up to a cell: the finer the grid the cheaper its plan, and never below ours."""
    rng = np.random.default_rng(7)
    compared = 0
    for _ in range(150):
        problem = replace(random_problem(rng, most_stages=3, graphs=0.0), slo_ms=float(rng.uniform(20, 300)), device_memory_bytes=None)
        if problem.placement is not Placement.SEPARATE:
            continue
        problem = replace(problem, max_servers=9, min_servers=1)
        plan = solve_joint(problem)
        costs = [grid_cost(problem, cells) for cells in (10, 100, 2000)]
        # Each grid divides the next one, so that a finer one never rounds up more.
        assert costs == sorted(costs, reverse=True)
        for cost in costs:
            assert cost >= (plan.cost if plan.feasible else math.inf) - 1e-9
        compared += plan.feasible and costs[-1] == pytest.approx(plan.cost)
    assert compared > 20


def grid_cost(problem: ChainProblem, cells: int) -> float:
    """A textbook DP over `cells` cells of the SLO; devices are not counted (the bound on a stage is 3)."""
    best = [0.0] + [0.0] * cells
    for s, stage in enumerate(problem.stages):
        options = []
        for n in range(1, 4):
            for c in range(stage.min_instances, stage.max_instances + 1):
                for b in range(1, stage.max_batch + 1):
                    ms, enough = reference.stage_part(problem, s, reference.Choice(n, c, b), c)
                    if enough and ms <= problem.slo_ms:
                        options.append((math.ceil(ms / problem.slo_ms * cells - 1e-9), n * (stage.server_price + c * stage.instance_price)))
        best = [min((best[cell - used] + price for used, price in options if used <= cell), default=math.inf) for cell in range(cells + 1)]
    return best[cells]
