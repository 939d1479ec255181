"""Several pipelines on one pool of devices: each pipeline's cost by devices, and the split with the least loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from themis_triton.core.errors import SolverError
from themis_triton.solver import kernels
from themis_triton.solver.pack import pack
from themis_triton.solver.plans import Binding, ChainPlan, StagePlan
from themis_triton.solver.problem import ChainProblem, Placement
from themis_triton.solver.slot_kernels import split_slots
from themis_triton.solver.solve import largest_demand, solve_joint


@dataclass(frozen=True, slots=True)
class PoolMember:
    """A pipeline, the weight of one request/s of it that is not carried, and its devices outside the pool."""

    problem: ChainProblem
    weight: float = 1.0
    own_devices: int = 0


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """The split, in the members' order: plans on the devices of the pool and their own; `devices` counts those of the pool.

    `lost_rps` is the demand above what the plan carries inside the SLO; `loss` weighs it.
    """

    plans: tuple[ChainPlan, ...]
    devices: tuple[int, ...]
    lost_rps: tuple[float, ...]
    loss: float
    cost: float


def frontier(problem: ChainProblem, max_devices: int) -> list[float]:
    """Least cost with at most 0..max_devices devices; infinite where the demand is not carried inside the SLO."""
    bounded = _bounded(problem, max_devices)
    reach = min(max_devices, bounded.max_servers)
    search = kernels.search_colocated if problem.placement is Placement.COLOCATED else kernels.search_separate
    costs: list[float] = search(*pack(bounded), kernels.COSTS, 1, reach)[:, 0].tolist()
    return [*costs, *[costs[-1]] * (max_devices - reach)]


def solve_pool(members: Sequence[PoolMember], devices: int) -> PoolPlan:
    """Divide `devices` equal devices among the pipelines: least weighted loss, then least cost, and never more than there are.

    A server takes one device, of the pool or of the member's own. Where all SLOs can be met the loss is 0 and the costs decide.
    """
    if devices < 0 or not members:
        raise SolverError(f"{len(members)} pipelines on {devices} devices; allowed are at least one pipeline and 0 devices")
    costs = [frontier(member.problem, devices + member.own_devices)[member.own_devices :] for member in members]
    needs = [next((n for n, cost in enumerate(row) if cost < math.inf), devices + 1) for row in costs]
    carried = [_all_carried(member, row) for member, row in zip(members, costs, strict=True)]
    if sum(needs) > devices:
        carried = [_carried(member, need, devices) for member, need in zip(members, needs, strict=True)]
    lost = [[max(0.0, member.problem.demand_rps - rps) for rps in row] for member, row in zip(members, carried, strict=True)]
    loss = np.array([[member.weight * rps for rps in row] for member, row in zip(members, lost, strict=True)])
    split = split_slots(loss, np.where(np.isfinite(costs), costs, 0.0)).tolist()
    plans = [_plan(member, n, need, row[n]) for member, n, need, row in zip(members, split, needs, carried, strict=True)]
    lost_rps = tuple(row[n] for row, n in zip(lost, split, strict=True))
    return PoolPlan(
        tuple(plans), tuple(split), lost_rps, math.fsum(loss[p, n] for p, n in enumerate(split)), sum(plan.cost for plan in plans)
    )


def _bounded(problem: ChainProblem, devices: int) -> ChainProblem:
    max_servers = max(1, min(problem.max_servers, devices))
    return replace(problem, max_servers=max_servers, min_servers=min(problem.min_servers, max_servers))


def _all_carried(member: PoolMember, costs: Sequence[float]) -> list[float]:
    """Where the devices suffice for all: −1 without a plan, so that a pipeline without demand gets a plan too."""
    return [member.problem.demand_rps if cost < math.inf else -1.0 for cost in costs]


def _carried(member: PoolMember, need: int, devices: int) -> list[float]:
    """Largest demand with 0..devices devices of the pool; the whole demand from `need` on."""
    problem, carried = member.problem, [0.0]
    for n in range(devices + 1):
        available = n + member.own_devices
        if n >= need:
            carried.append(problem.demand_rps)
        elif 0 < available <= problem.max_servers:
            carried.append(max(0.0, largest_demand(_bounded(problem, available), None)))
        else:
            carried.append(carried[-1])
    return carried[1:]


def _plan(member: PoolMember, n: int, need: int, carried_rps: float) -> ChainPlan:
    problem, devices = member.problem, n + member.own_devices
    if devices == 0:
        stages = tuple(StagePlan(stage.name, 0, 0, 0, 0.0, 0.0, 0.0) for stage in problem.stages)
        return ChainPlan(feasible=False, stages=stages, cost=0.0, predicted_p99_ms=0.0, capacity_rps=0.0, binding=Binding.DEVICES)
    bounded = _bounded(problem, devices)
    if n >= need:
        return solve_joint(bounded)
    plan = solve_joint(replace(bounded, demand_rps=carried_rps))
    return replace(plan, feasible=False, binding=Binding.DEVICES)
