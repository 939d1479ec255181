"""The way from what runs now to a plan: steps with their times, memory and price, and the plan whose whole way is cheapest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from themis_triton.core.errors import SolverError
from themis_triton.solver.fleet import ServerHolding, evaluate_fleet
from themis_triton.solver.pack import Batches
from themis_triton.solver.plans import ChainPlan
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import solve_joint


class StepKind(StrEnum):
    """A count change in place, a batching change (a reload beside the old instances), a cold start, a drain and stop."""

    GROW = "grow"
    SHRINK = "shrink"
    REBATCH = "rebatch"
    LAUNCH = "launch"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class MoveTimes:
    """Measured durations of the levers, in seconds. A model's instances start side by side and stop one after the other."""

    instance_init_s: float = 1.0
    instance_stop_s: float = 1.2
    server_launch_s: float = 5.0
    drain_s: float = 2.0


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
class Step:
    """One step on one server; `requires` names earlier steps by their index.

    `before` and `after` are (instances, batch) of `stage`. A launch or a stop concerns the whole server: `stage` is None, the pairs
    hold (all instances, 0), and `holding` is what a launched server comes with.
    `peak_memory_bytes` is what the server's instances take at most while the step runs: a reload holds old and new instances.
    """

    kind: StepKind
    server: str
    stage: str | None
    before: tuple[int, int]
    after: tuple[int, int]
    starts_s: float
    ends_s: float
    peak_memory_bytes: int
    requires: tuple[int, ...] = ()
    holding: ServerHolding | None = None


@dataclass(frozen=True, slots=True)
class Path:
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


def solve_path(
    problem: ChainProblem, now: Sequence[ServerHolding], times: MoveTimes | None = None, prices: MovePrices | None = None
) -> Path:
    """The plan with the cheapest whole way among all server counts, with the batches that run now and with free ones.

    `now` holds all stages on every server (a co-located chain); it may be empty. A way whose steps need more memory than
    `device_memory_bytes` is not taken. SolverError when no way is left, which means that what runs already exceeds the memory.
    """
    times, prices = times or MoveTimes(), prices or MovePrices()
    paths = [path_to(problem, now, plan, times, prices) for plan in _candidates(problem, now)]
    limit = math.inf if problem.device_memory_bytes is None else problem.device_memory_bytes
    fitting = [path for path in paths if path.peak_memory_bytes <= limit]
    if not fitting:
        raise SolverError(f"no move fits {limit:.0f} bytes of device memory; lower the instances' bounds or free memory")
    return min(fitting, key=lambda path: (not path.plan.feasible, path.slo_holds_after_s == math.inf, path.objective))


def path_to(problem: ChainProblem, now: Sequence[ServerHolding], plan: ChainPlan, times: MoveTimes, prices: MovePrices) -> Path:
    """The way to one plan, make before break: launches and growth at once, then reloads server by server, then shrinking and stops."""
    steps = tuple(_Builder(problem, times).build(now, plan))
    ends = max((step.ends_s for step in steps), default=0.0)
    holds = _holds_after(problem, now, steps)
    risk = sum(prices.risk[step.kind] for step in steps)
    missing = max(0.0, problem.demand_rps - _carried_now(problem, now)) if holds > 0 else 0.0
    lost = prices.lost_request * missing * min(holds, prices.horizon_s)
    objective = plan.cost * prices.horizon_s + _overlap(problem, now, steps) + risk + lost
    resting = max((_memory(problem, held.instances) for held in now), default=0)
    peak = max((step.peak_memory_bytes for step in steps), default=resting)
    return Path(plan, steps, holds, ends, max(peak, resting), objective)


def fleet_at(problem: ChainProblem, now: Sequence[ServerHolding], steps: Sequence[Step], at_s: float) -> list[ServerHolding]:
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


def _candidates(problem: ChainProblem, now: Sequence[ServerHolding]) -> Iterator[ChainPlan]:
    held: list[Batches | None] = [None]
    if now:
        held.append([sorted({min(server.batches[s], stage.max_batch) for server in now}) for s, stage in enumerate(problem.stages)])
    for batches in held:
        for servers in range(problem.min_servers, problem.max_servers + 1):
            plan = solve_joint(problem, servers=servers, batches=batches)
            if plan.feasible or servers == problem.max_servers:
                yield plan


class _Builder:
    """Collects steps; `ready_s` is when everything that makes room or capacity has ended."""

    def __init__(self, problem: ChainProblem, times: MoveTimes) -> None:
        self.problem, self.times = problem, times
        self.steps: list[Step] = []

    def build(self, now: Sequence[ServerHolding], plan: ChainPlan) -> list[Step]:
        target = [(stage.instances, stage.batch) for stage in plan.stages]
        staying, leaving = now[: plan.servers], now[plan.servers :]
        for i in range(len(now), plan.servers):
            self._launch(f"new-{i + 1}", target)
        for held in staying:
            self._grow(held, target)
        self._rebatch(staying, target)
        made = tuple(range(len(self.steps)))
        ready = max((step.ends_s for step in self.steps), default=0.0)
        for held in staying:
            self._shrink(held, target, ready, made)
        for held in leaving:
            self._retire(held, ready, made)
        return self.steps

    def _launch(self, name: str, target: list[tuple[int, int]]) -> None:
        counts, batches = zip(*target, strict=True)
        holding, total = ServerHolding(name, counts, batches), (sum(counts), 0)
        ends, memory = self.times.server_launch_s + self.times.instance_init_s, _memory(self.problem, counts)
        self.steps.append(Step(StepKind.LAUNCH, name, None, (0, 0), total, 0.0, ends, memory, holding=holding))

    def _grow(self, held: ServerHolding, target: list[tuple[int, int]]) -> None:
        grown = _memory(self.problem, [max(c, wanted) for c, (wanted, _) in zip(held.instances, target, strict=True)])
        for s, (stage, (count, batch)) in enumerate(zip(self.problem.stages, target, strict=True)):
            if count > held.instances[s] and batch == held.batches[s]:
                before, after = (held.instances[s], batch), (count, batch)
                self.steps.append(Step(StepKind.GROW, held.name, stage.name, before, after, 0.0, self.times.instance_init_s, grown))

    def _rebatch(self, staying: Sequence[ServerHolding], target: list[tuple[int, int]]) -> None:
        """One model on one server at a time, after what makes capacity: old and new instances exist together for a while."""
        starts = max((step.ends_s for step in self.steps), default=0.0)
        requires = tuple(range(len(self.steps)))
        for held in staying:
            grown = _memory(self.problem, [max(c, wanted) for c, (wanted, _) in zip(held.instances, target, strict=True)])
            for s, (stage, after) in enumerate(zip(self.problem.stages, target, strict=True)):
                if after[1] == held.batches[s]:
                    continue
                beside = min(held.instances[s], after[0]) * stage.instance_memory_bytes
                ends = starts + self.times.instance_init_s
                before = (held.instances[s], held.batches[s])
                self.steps.append(Step(StepKind.REBATCH, held.name, stage.name, before, after, starts, ends, grown + beside, requires))
                starts, requires = ends, (len(self.steps) - 1,)

    def _shrink(self, held: ServerHolding, target: list[tuple[int, int]], starts: float, requires: tuple[int, ...]) -> None:
        memory = _memory(self.problem, held.instances)
        for s, (stage, after) in enumerate(zip(self.problem.stages, target, strict=True)):
            gone = held.instances[s] - after[0]
            if gone > 0 and after[1] == held.batches[s]:
                ends, before = starts + gone * self.times.instance_stop_s, (held.instances[s], held.batches[s])
                self.steps.append(Step(StepKind.SHRINK, held.name, stage.name, before, after, starts, ends, memory, requires))

    def _retire(self, held: ServerHolding, starts: float, requires: tuple[int, ...]) -> None:
        ends, memory = starts + self.times.drain_s, _memory(self.problem, held.instances)
        self.steps.append(Step(StepKind.RETIRE, held.name, None, (sum(held.instances), 0), (0, 0), starts, ends, memory, requires))


def _memory(problem: ChainProblem, instances: Sequence[int]) -> int:
    return sum(c * stage.instance_memory_bytes for stage, c in zip(problem.stages, instances, strict=True))


def _holds_after(problem: ChainProblem, now: Sequence[ServerHolding], steps: Sequence[Step]) -> float:
    """The earliest moment from which on every state of the way holds."""
    moments = sorted({0.0, *(step.starts_s for step in steps), *(step.ends_s for step in steps)})
    since = math.inf
    for moment in moments:
        fleet = fleet_at(problem, now, steps, moment)
        holds = bool(fleet) and evaluate_fleet(problem, fleet).feasible
        since = min(since, moment) if holds else math.inf
    return since


def _carried_now(problem: ChainProblem, now: Sequence[ServerHolding]) -> float:
    """The largest whole rate that what runs now carries, up to the demand."""
    if not now or not evaluate_fleet(problem, now, rate_rps=0.0).feasible:
        return 0.0
    low, high = 0, int(problem.demand_rps) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if evaluate_fleet(problem, now, rate_rps=float(middle)).feasible else (low, middle)
    return float(low)


def _overlap(problem: ChainProblem, now: Sequence[ServerHolding], steps: Sequence[Step]) -> float:
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
