"""Frontiers and pools against every plan of every split, tried in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from tests.oracles import solver_reference as reference
from tests.property.solver_problems import random_problem
from themis_triton.core.memory import Memory
from themis_triton.core.policy import QueueingModel
from themis_triton.solver.problem import ChainProblem, Placement
from themis_triton.solver.slot_allocation import PoolMember, divide_pool, frontier, solve_pool
from themis_triton.solver.solve import find_vertical, largest_demands

MOST = 4


def cheapest_by_devices(problem: ChainProblem) -> list[float]:
    """Least cost with at most 0..MOST devices, infinite where there is no plan."""
    result = [reference.brute_force(replace(problem, max_servers=maximum)) for maximum in range(1, MOST + 1)]
    return [math.inf, *(math.inf if best is None else best.cost for best in result)]


def least_lost(member: PoolMember, devices: int) -> float:
    """Weighted requests/s that are not carried with so many devices of the pool."""
    problem, held = member.problem, devices + member.own_devices
    bounded = replace(problem, max_servers=min(held, problem.max_servers)) if held else None
    if bounded is not None and reference.brute_force(bounded) is not None:
        return 0.0
    carried = 0
    if bounded is not None:
        rates = range(math.floor(problem.demand_rps), 0, -1)
        carried = next((rate for rate in rates if reference.brute_force(replace(bounded, demand_rps=float(rate))) is not None), 0)
    return member.weight * (problem.demand_rps - carried)


@pytest.mark.parametrize("chunk", range(2))
def test_the_frontier_over_devices_is_that_of_a_brute_force(chunk: int) -> None:
    """Also where a dearer plan with fewer servers is what a smaller number of devices needs."""
    rng, dearer = np.random.default_rng(3000 + chunk), 0
    for _ in range(300):
        problem = replace(random_problem(rng, most_stages=3), max_servers=MOST, min_servers=1)
        if rng.random() < 0.5:  # servers for next to nothing, so that many of them with few instances are cheapest
            stages = tuple(replace(stage, server_price=0.1, instance_price=2.0) for stage in problem.stages)
            problem = replace(problem, stages=stages, slo_ms=1e3, demand_rps=float(rng.uniform(5, 120)))
        expected = cheapest_by_devices(problem)
        assert frontier(problem, MOST) == pytest.approx(expected), problem
        dearer += any(math.inf > fewer > more for fewer, more in pairwise(expected))
    assert dearer


def test_no_split_of_a_pool_loses_less() -> None:
    rng, short = np.random.default_rng(77), 0
    for _ in range(40):
        members = [
            PoolMember(
                replace(random_problem(rng, most_stages=2), demand_rps=float(rng.integers(0, 40)), min_servers=1, max_servers=MOST),
                float(rng.choice([0.5, 1.0, 2.0])),
                int(rng.random() < 0.3),
            )
            for _ in range(int(rng.integers(1, 4)))
        ]
        devices = int(rng.integers(0, 6))
        lost = [[least_lost(member, n) for n in range(devices + 1)] for member in members]
        splits = (split for split in product(range(devices + 1), repeat=len(members)) if sum(split) <= devices)
        minimum = min(sum(row[n] for row, n in zip(lost, split, strict=True)) for split in splits)
        pool = solve_pool(members, devices)
        assert pool.loss == pytest.approx(minimum), members
        assert sum(pool.devices) <= devices
        short += minimum > 0
    assert short > 10


def test_largest_demands_are_those_of_a_scan_of_all_rates_wherever_the_search_begins() -> None:
    rng, carried = np.random.default_rng(78), set()
    for _ in range(100):
        problem = slower_with_rate(rng)
        assert problem.only_slower_with_rate
        first = int(rng.integers(1, MOST + 1))
        largest = largest_demands(problem, first, MOST, int(rng.choice([0, 1, 40, 1000])))
        rates = [replace(problem, demand_rps=float(rate)) for rate in range(100, -1, -1)]
        for n, rps in enumerate(largest, first):
            expected = next((each.demand_rps for each in rates if find_vertical(each, n) is not None), -1)
            assert min(rps, 100) == expected, problem
            carried.add(expected)
    assert len(carried) > 20


def slower_with_rate(rng: np.random.Generator) -> ChainProblem:
    """A problem whose latencies never fall as the rate rises."""
    problem = random_problem(rng, most_stages=2)
    stages = tuple(replace(s, max_queue_delay_ms=0.0, demand_ratio=min(1.0, s.demand_ratio), max_calls=0.0) for s in problem.stages)
    problem = replace(problem, stages=stages, placement=Placement.COLOCATED, min_servers=1, max_servers=MOST)
    return replace(problem, queueing=QueueingModel.DYNAMIC_BATCHING, paper_rounding=False)


def test_a_division_that_reuses_answers_for_other_demands_is_the_one_solved_anew() -> None:
    """Capacities that are known for few devices are continued for more of them."""
    rng, known, splits = np.random.default_rng(79), Memory[object](1000), set()
    problems = [slower_with_rate(rng) for _ in range(2)]
    for _ in range(60):
        members = [PoolMember(replace(each, demand_rps=float(rng.uniform(0, 400)), max_servers=8)) for each in problems]
        devices = int(rng.integers(1, 7))
        split = divide_pool(members, devices, known.get)
        assert split == divide_pool(members, devices, lambda _, build: build())
        splits.add(split)
    assert len(splits) > 5
