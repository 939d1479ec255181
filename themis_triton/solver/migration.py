"""The way from what runs now to a plan: steps with their times, memory and price, and the plan whose whole way is cheapest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from themis_triton.solver.fleet import ServerAssignment, evaluate_fleet
from themis_triton.solver.migration_steps import MoveTimes, Step, StepKind, memory_bytes, steps_to
from themis_triton.solver.pack import Batches
from themis_triton.solver.plans import Binding, ChainPlan, StagePlan
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import find_joint, solve_joint


@dataclass(frozen=True, slots=True)
class MovePrices:
    """What a move costs beyond the servers that run while it lasts, in the plans' price unit times seconds.

    `risk`: the expected price of one such step going wrong. `lost_request`: one request of the demand not carried inside the SLO.
    `horizon_s`: how long the plan is expected to hold, so that a saving can be weighed against the way to it.
    """

    risk: dict[StepKind, float] = field(
        default_factory=lambda: {
            StepKind.GROW: 0.1,
            StepKind.SHRINK: 0.2,
            StepKind.REBATCH: 3.0,
            StepKind.LAUNCH: 2.0,
            StepKind.RETIRE: 1.0,
        }
    )
    lost_request: float = 1.0
    horizon_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Migration:
    """Steps in order of their start, the plan they lead to, and what the way costs.

    `slo_holds_after_s`: from then on the demand is carried inside the SLO (infinite: not even at the end). `objective` is the plan's
    cost over the horizon, the dearer fleet while steps run, the steps' risk and the requests lost until the SLO holds.
    """

    plan: ChainPlan
    steps: tuple[Step, ...]
    slo_holds_after_s: float
    ends_after_s: float
    peak_memory_bytes: int
    objective: float

    @property
    def holds(self) -> bool:
        """Whether its end carries the demand inside the SLO."""
        return self.plan.feasible and math.isfinite(self.slo_holds_after_s)

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Smaller is better."""
        return not self.plan.feasible, not math.isfinite(self.slo_holds_after_s), self.objective


def solve_migration(
    problem: ChainProblem, now: Sequence[ServerAssignment], times: MoveTimes | None = None, prices: MovePrices | None = None
) -> Migration:
    """The plan with the cheapest whole way among all server counts, with the batches that run now and with free ones.

    `now` holds all stages on every server (a co-located chain); it may be empty. Servers leave from its end. A way whose steps need
    more memory than `device_memory_bytes` is not taken; where growing before shrinking would, shrinking comes first. Where no way
    fits, everything stays as it is: a path without steps.
    """
    times, prices = times or MoveTimes(), prices or MovePrices()
    best = _cheapest(problem, now, _plans(problem, now), times, prices)
    if best is None:  # whatever holds is out of reach for want of memory, or nothing does
        best = _cheapest(problem, now, _best_efforts(problem, now), times, prices)
    return best if best is not None else _stay(problem, now, prices)


def _cheapest(
    problem: ChainProblem, now: Sequence[ServerAssignment], plans: Iterator[ChainPlan], times: MoveTimes, prices: MovePrices
) -> Migration | None:
    """The cheapest way that fits the memory; None where none does."""
    limit = math.inf if problem.device_memory_bytes is None else problem.device_memory_bytes
    best: Migration | None = None
    for plan in plans:
        if best is not None and best.holds and plan.cost * prices.horizon_s > best.objective:
            continue
        for room_first in (False, True):
            migration = migration_to(problem, now, plan, times, prices, room_first=room_first)
            if migration.peak_memory_bytes <= limit:
                best = migration if best is None or migration.rank < best.rank else best
                break
    return best


def _stay(problem: ChainProblem, now: Sequence[ServerAssignment], prices: MovePrices) -> Migration:
    """What runs now, as a plan and a path without steps."""
    if not now:
        return Migration(replace(solve_joint(problem), feasible=False), (), math.inf, 0.0, 0, math.inf)
    judged = evaluate_fleet(problem, now)
    stages = tuple(
        StagePlan(stage.name, len(now), min(h.instances[s] for h in now), min(h.batches[s] for h in now), 0.0, 0.0, judged.capacity_rps)
        for s, stage in enumerate(problem.stages)
    )
    plan = ChainPlan(judged.feasible, stages, judged.cost, judged.predicted_p99_ms, judged.capacity_rps, Binding.MEMORY)
    peak = max(memory_bytes(problem, held.instances) for held in now)
    return Migration(plan, (), _holds_after(problem, now, ()), 0.0, peak, judged.cost * prices.horizon_s)


def migration_to(
    problem: ChainProblem,
    now: Sequence[ServerAssignment],
    plan: ChainPlan,
    times: MoveTimes,
    prices: MovePrices,
    *,
    room_first: bool = False,
) -> Migration:
    """The way to one plan, with its times, memory and price; see `steps_to`."""
    steps = steps_to(problem, times, now, plan, room_first=room_first)
    ends = max((step.ends_s for step in steps), default=0.0)
    holds = _holds_after(problem, now, steps)
    risk = sum(prices.risk[step.kind] for step in steps)
    missing = max(0.0, problem.demand_rps - _carried_now(problem, now)) if holds > 0 else 0.0
    lost = prices.lost_request * missing * min(holds, prices.horizon_s)
    objective = plan.cost * prices.horizon_s + _overlap(problem, now, steps) + risk + lost
    resting = max((memory_bytes(problem, held.instances) for held in now), default=0)
    peak = max((step.peak_memory_bytes for step in steps), default=resting)
    return Migration(plan, steps, holds, ends, max(peak, resting), objective)


def fleet_at(problem: ChainProblem, now: Sequence[ServerAssignment], steps: Sequence[Step], at_s: float) -> list[ServerAssignment]:
    """What serves at a time: a step counts from its end, but what it takes away is gone from its start."""
    fleet = {held.name: held for held in now}
    names = [stage.name for stage in problem.stages]
    for step in steps:
        breaks = step.kind in {StepKind.SHRINK, StepKind.RETIRE}
        if (step.starts_s if breaks else step.ends_s) > at_s:
            continue
        if step.kind is StepKind.RETIRE:
            del fleet[step.server]
        elif step.holding is not None:
            fleet[step.server] = step.holding
        elif step.stage is not None:
            held, s = fleet[step.server], names.index(step.stage)
            count, batch = step.after
            fleet[step.server] = replace(held, instances=_put(held.instances, s, count), batches=_put(held.batches, s, batch))
    return list(fleet.values())


def _put(values: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    return (*values[:at], value, *values[at + 1 :])


def _plans(problem: ChainProblem, now: Sequence[ServerAssignment]) -> Iterator[ChainPlan]:
    """The best plan of each number of servers that holds, with any batches and with those that run now."""
    known = set()
    for batches in _batches_to_try(problem, now):
        for servers in range(problem.min_servers, problem.max_servers + 1):
            plan = find_joint(problem, servers=servers, batches=batches)
            if plan is None:
                continue
            choice = tuple((stage.servers, stage.instances, stage.batch) for stage in plan.stages)
            if choice not in known:
                known.add(choice)
                yield plan


def _best_efforts(problem: ChainProblem, now: Sequence[ServerAssignment]) -> Iterator[ChainPlan]:
    """What all servers together can do where that is not enough."""
    for batches in _batches_to_try(problem, now):
        plan = solve_joint(problem, servers=problem.max_servers, batches=batches)
        if not plan.feasible:
            yield plan


def _batches_to_try(problem: ChainProblem, now: Sequence[ServerAssignment]) -> Iterator[Batches | None]:
    yield None
    if now:
        yield [sorted({min(server.batches[s], stage.max_batch) for server in now}) for s, stage in enumerate(problem.stages)]


def _holds_after(problem: ChainProblem, now: Sequence[ServerAssignment], steps: Sequence[Step]) -> float:
    """The earliest moment from which on every state of the way carries the demand; headroom is not waited for."""
    problem, since = _bare(problem), math.inf
    for moment in sorted({0.0, *(step.starts_s for step in steps), *(step.ends_s for step in steps)}, reverse=True):
        fleet = fleet_at(problem, now, steps, moment)
        if not fleet or not evaluate_fleet(problem, fleet).feasible:
            break
        since = moment
    return since


def _bare(problem: ChainProblem) -> ChainProblem:
    return replace(problem, headroom_sigmas=0.0, headroom_rps=0.0)


def _carried_now(problem: ChainProblem, now: Sequence[ServerAssignment]) -> float:
    """The largest whole rate that what runs now carries without headroom, up to the demand."""
    problem = _bare(problem)
    if not now or not evaluate_fleet(problem, now, rate_rps=0.0).feasible:
        return 0.0
    low, high = 0, int(problem.demand_rps) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if evaluate_fleet(problem, now, rate_rps=float(middle)).feasible else (low, middle)
    return float(low)


def _overlap(problem: ChainProblem, now: Sequence[ServerAssignment], steps: Sequence[Step]) -> float:
    """Price of what runs beyond the plan until it has gone, and of what starts before it serves."""
    server = problem.stages[0].server_price
    price_of = {stage.name: stage.instance_price for stage in problem.stages}
    extra = 0.0
    for step in steps:
        if step.kind is StepKind.SHRINK and step.stage is not None:
            extra += step.ends_s * (step.before[0] - step.after[0]) * price_of[step.stage]
        if step.kind is StepKind.RETIRE:
            held = next(h for h in now if h.name == step.server)
            extra += step.ends_s * (server + sum(c * s.instance_price for s, c in zip(problem.stages, held.instances, strict=True)))
    return extra
