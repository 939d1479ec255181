"""Several pipelines on one pool of devices: each pipeline's cost by devices, and the split with the least loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from themis_triton.core.errors import SolverError
from themis_triton.core.memory import Memory
from themis_triton.core.replacing import replaced
from themis_triton.solver import kernels
from themis_triton.solver.pack import pack
from themis_triton.solver.plans import Binding, ChainPlan, StagePlan
from themis_triton.solver.problem import ChainProblem, Placement
from themis_triton.solver.slot_kernels import split_slots
from themis_triton.solver.solve import largest_demand, largest_demands, solve_joint


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


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a member makes of 0..devices devices of the pool: least costs, the devices that it needs, carried and lost demand."""

    costs: tuple[float, ...]
    need: int
    carried_rps: tuple[float, ...]
    lost_rps: tuple[float, ...]


def solve_pool(members: Sequence[PoolMember], devices: int) -> PoolPlan:
    """Divide `devices` equal devices among the pipelines: least weighted loss, then least cost, and never more than there are.

    A server takes one device, of the pool or of the member's own. Where all SLOs can be met the loss is 0 and the costs decide.
    """
    rows, split, loss = _division(members, devices, Memory(4 * len(members)).get)
    plans = [_plan(member, n, row.need, row.carried_rps[n]) for member, n, row in zip(members, split, rows, strict=True)]
    lost_rps = tuple(row.lost_rps[n] for row, n in zip(rows, split, strict=True))
    return PoolPlan(tuple(plans), split, lost_rps, loss, sum(plan.cost for plan in plans))


def divide_pool(members: Sequence[PoolMember], devices: int, known: Callable[..., Any]) -> tuple[int, ...]:
    """The split of `solve_pool` without its plans; `known(key, build)` keeps what each member makes of the pool."""
    return _division(members, devices, known)[1]


def _division(members: Sequence[PoolMember], devices: int, known: Callable[..., Any]) -> tuple[list[_Rows], tuple[int, ...], float]:
    if devices < 0 or not members:
        raise SolverError(f"{len(members)} pipelines on {devices} devices; allowed are at least one pipeline and 0 devices")

    short = sum(_need(_costs(member, devices, known)) for member in members) > devices
    keys = [("pool", *_key(member.problem), member.own_devices, devices, short) for member in members]
    rows = [known(key, partial(_rows_of, member, devices, known, short=short)) for key, member in zip(keys, members, strict=True)]
    loss = np.array([[member.weight * rps for rps in row.lost_rps] for member, row in zip(members, rows, strict=True)])
    costs = np.array([row.costs for row in rows])
    split = tuple(split_slots(loss, np.where(np.isfinite(costs), costs, 0.0)).tolist())
    return rows, split, math.fsum(loss[p, n] for p, n in enumerate(split))


def _key(problem: ChainProblem) -> tuple[int, ChainProblem]:
    """A problem as part of a key: its hash leaves out the stages, so that equal numbers of several pipelines would be compared whole."""
    return id(problem.stages), problem


def _rows_of(member: PoolMember, devices: int, known: Callable[..., Any], *, short: bool) -> _Rows:
    """`short`: what fewer devices than needed carry counts too; else whatever is not enough carries nothing."""
    costs = _costs(member, devices, known)
    need = _need(costs)
    carried = _carried(member, need, devices, known) if short else _all_carried(member, costs)
    return _Rows(tuple(costs), need, tuple(carried), tuple(max(0.0, member.problem.demand_rps - rps) for rps in carried))


def _costs(member: PoolMember, devices: int, known: Callable[..., Any]) -> list[float]:
    """The least costs with 0..devices devices of the pool."""
    pool = devices + member.own_devices
    costs: list[float] = known(("frontier", *_key(member.problem), pool), lambda: frontier(member.problem, pool))
    return costs[member.own_devices :]


def _need(costs: Sequence[float]) -> int:
    """The fewest devices that suffice; one more than there are, where none do."""
    return next((n for n, cost in enumerate(costs) if cost < math.inf), len(costs))


def _bounded(problem: ChainProblem, devices: int) -> ChainProblem:
    max_servers = max(1, min(problem.max_servers, devices))
    return replaced(problem, max_servers=max_servers, min_servers=min(problem.min_servers, max_servers))


def _all_carried(member: PoolMember, costs: Sequence[float]) -> list[float]:
    """Where the devices suffice for all: −1 without a plan, so that a pipeline without demand gets a plan too."""
    return [member.problem.demand_rps if cost < math.inf else -1.0 for cost in costs]


def _carried(member: PoolMember, need: int, devices: int, known: Callable[..., Any]) -> list[float]:
    """Largest demand with 0..devices devices of the pool; the whole demand from `need` on."""
    problem, carried = member.problem, [0.0]
    short = min(need - 1, devices) + member.own_devices
    largest = _largest_by_devices(problem, min(short, problem.max_servers), known)
    for n in range(devices + 1):
        available = n + member.own_devices
        if n >= need:
            carried.append(problem.demand_rps)
        elif 0 < available <= problem.max_servers:
            carried.append(max(0.0, largest[available - 1]))
        else:
            carried.append(carried[-1])
    return carried[1:]


def _largest_by_devices(problem: ChainProblem, devices: int, known: Callable[..., Any]) -> list[float]:
    """The largest demand up to the problem's with 1..devices devices."""
    if problem.placement is Placement.COLOCATED and problem.only_slower_with_rate:
        bare = replaced(problem, demand_rps=0.0)
        capacities_rps: list[int] = known(("capacities", *_key(bare)), list)
        _complete(capacities_rps, bare, devices)
        whole_rps = math.floor(problem.demand_rps)
        return [float(min(rps, whole_rps)) for rps in capacities_rps[:devices]]
    return [_largest(problem, n, known) for n in range(1, devices + 1)]


def _complete(capacities_rps: list[int], problem: ChainProblem, devices: int) -> None:
    """Append the largest demands up to so many devices: a capacity is asked for once for all demands."""
    first = len(capacities_rps) + 1
    if first <= devices:
        last, before = [0, 0, *capacities_rps][:-3:-1]
        capacities_rps += largest_demands(problem, first, devices, max(0, 2 * last - before))


def _largest(problem: ChainProblem, devices: int, known: Callable[..., Any]) -> float:
    """The largest demand up to the problem's with so many devices. A capacity is asked for once for many demands."""
    bounded = _bounded(problem, devices)
    limit_rps = 2.0 ** math.ceil(math.log2(max(1.0, 2.0 * problem.demand_rps)))
    key = ("capacity", *_key(replaced(bounded, demand_rps=limit_rps)))
    capacity_rps: float = known(key, lambda: largest_demand(bounded, None, max_rate_rps=limit_rps))
    # A chain that gathers batches may carry a larger rate, but not this one.
    return capacity_rps if capacity_rps < problem.demand_rps else largest_demand(bounded, None)


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
