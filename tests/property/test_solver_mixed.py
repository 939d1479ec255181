"""Counts that differ by server, against every distribution tried."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_triton.core.config import Placement, ThroughputRule
from themis_triton.core.errors import SolverError
from themis_triton.core.graph import Parallel
from themis_triton.core.policy import QueueingModel
from themis_triton.solver.mixed import solve_mixed
from themis_triton.solver.problem import ChainProblem, StageProblem
from themis_triton.solver.surface import Surface


def stage(rng: np.random.Generator, name: str, *, smooth: bool) -> StageProblem:
    batches, counts = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    b, c = np.arange(1, batches + 1)[:, None], np.arange(1, counts + 1)[None, :]
    paper = rng.uniform(5, 60) * b / c + rng.uniform(0, 10) * b + rng.uniform(0, 10) / c + rng.uniform(1, 10)
    values = paper if smooth else rng.uniform(5, 80, (batches, counts))
    price = float(rng.integers(0, 4))
    return StageProblem(name, Surface(values), 1, counts, batches, server_price=float(rng.integers(0, 5)), instance_price=price)


def problem(rng: np.random.Generator, *, smooth: bool) -> ChainProblem:
    stages = tuple(stage(rng, f"stage-{s}", smooth=smooth) for s in range(int(rng.integers(1, 3))))
    return ChainProblem(
        stages,
        slo_ms=float(rng.uniform(20, 120) * len(stages)),
        demand_rps=float(rng.choice([0.0, rng.uniform(0, 150)])),
        queueing=QueueingModel.SLO_MARGIN,
        placement=Placement.SEPARATE,
        throughput=ThroughputRule.CORES,
        headroom_sigmas=float(rng.choice([0.0, 1.0])),
        max_servers=100,
        graph=Parallel(tuple(each.name for each in stages)) if len(stages) > 1 and rng.random() < 0.5 else None,
    )


def stage_options(asked: ChainProblem, each: StageProblem, servers: int, *, adjacent: bool) -> Iterator[tuple[float, float]]:
    """(price, latency) of every distribution of counts, and batch, that carries the demand."""
    desired = asked.required_capacity_rps(asked.demand_rps)
    for counts in combinations_with_replacement(range(each.min_instances, each.max_instances + 1), servers):
        if adjacent and max(counts) - min(counts) > 1:
            continue
        for batch in range(1, each.max_batch + 1):
            times = [float(each.surface.latency_ms[batch - 1, count - 1]) for count in counts]
            # Of counts that differ by one, the slower ones bound the latency, as the plan says it.
            latency = float(each.surface.latency_ms[batch - 1, min(counts) - 1]) if adjacent else max(times)
            if sum(1000.0 * batch / ms for ms in times) >= desired * (1 - 1e-9):
                yield sum(counts) * each.instance_price, latency


def cheapest(asked: ChainProblem, servers: tuple[int, ...], *, adjacent: bool) -> float | None:
    options = [list(stage_options(asked, each, n, adjacent=adjacent)) for each, n in zip(asked.stages, servers, strict=True)]
    total = sum if asked.graph is None else max
    fitting = [sum(price for price, _ in chosen) for chosen in product(*options) if total(ms for _, ms in chosen) <= asked.slo_ms + 1e-6]
    return min(fitting, default=None)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_no_distribution_of_counts_is_cheaper(seed: int, smooth: bool) -> None:
    rng = np.random.default_rng(seed)
    asked = problem(rng, smooth=smooth)
    servers = tuple(int(rng.integers(1, 5)) for _ in asked.stages)
    plan = solve_mixed(asked, servers)
    # A paper-like surface has a concave capacity, so that nothing beats counts that differ by one; noise may.
    best = cheapest(asked, servers, adjacent=not smooth)
    assert plan.feasible == (best is not None)
    if best is not None:
        instances = sum(each.total_instances * s.instance_price for each, s in zip(plan.stages, asked.stages, strict=True))
        assert instances == pytest.approx(best)
        assert plan.predicted_p99_ms <= asked.slo_ms + 1e-6
        assert plan.missing == (0,) * len(servers)
    for each, n in zip(plan.stages, servers, strict=True):
        assert each.servers == n
        assert 0 <= each.extra_instance_servers < max(1, n)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_instances_cannot_carry_the_missing_servers_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked = problem(rng, smooth=True)
    servers = tuple(1 for _ in asked.stages)
    plan = solve_mixed(asked, servers)
    if not plan.feasible and plan.predicted_p99_ms <= asked.slo_ms:
        assert any(plan.missing)
        enough = tuple(n + missing for n, missing in zip(servers, plan.missing, strict=True))
        assert solve_mixed(asked, enough).feasible
    assert math.isfinite(plan.predicted_p99_ms)


def test_stages_that_share_servers_are_refused() -> None:
    asked = problem(np.random.default_rng(0), smooth=True)
    together = ChainProblem(asked.stages, 100.0, 1.0, placement=Placement.COLOCATED)
    with pytest.raises(SolverError, match="separate stages"):
        solve_mixed(together, [1] * len(asked.stages))
