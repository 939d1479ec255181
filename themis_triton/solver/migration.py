"""Migrations from what runs now to a plan: steps with their times, memory and price, and the plan with the cheapest migration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from themis_triton.core.action import ActionKind
from themis_triton.core.replacing import replaced
from themis_triton.solver.fleet import ServerAssignment, assignments_price, evaluate_fleet, memory_bytes
from themis_triton.solver.migration_steps import MoveTimes, Step, steps_to
from themis_triton.solver.pack import Batches
from themis_triton.solver.plans import Binding, ChainPlan, StagePlan
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import plans_by_servers, solve_joint

ROUNDING = 1e-9  # of sums of prices
REMOVALS = frozenset({ActionKind.SHRINK, ActionKind.RETIRE})


@dataclass(frozen=True, slots=True)
class MovePrices:
    """What a migration costs beyond the servers that run while it lasts, in the plans' price unit times seconds.

    `risk`: the expected price of a failure of one such change of a model or a server. `lost_request`: one request of the demand that is
    not carried inside the SLO. `horizon_s`: how long the plan is expected to hold, so that a saving can be weighed against its migration.
    """

    risk: dict[ActionKind, float] = field(
        default_factory=lambda: {
            ActionKind.GROW: 0.1,
            ActionKind.SHRINK: 0.2,
            ActionKind.REBATCH: 3.0,
            ActionKind.LAUNCH: 2.0,
            ActionKind.RETIRE: 1.0,
        }
    )
    lost_request: float = 1.0
    horizon_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Migration:
    """Steps in order of their start, the plan that they lead to, and what the migration costs.

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
    problem: ChainProblem,
    now: Sequence[ServerAssignment],
    times: MoveTimes | None = None,
    prices: MovePrices | None = None,
    known: Callable[..., Any] | None = None,
) -> Migration:
    """The plan with the cheapest migration among all server counts, with the batches that run now and with free ones.

    `now` holds all stages on every server (a co-located chain); it may be empty. Servers retire from its end. A migration that needs
    more memory than `device_memory_bytes` is left out. Where none fits, everything stays as it is: a migration without steps.
    The steps' `requires` is left empty; see `with_requirements`. `known(key, build)` keeps steps, which do not depend on the demand: it
    must be the same only for the same models.
    """
    candidates = _candidates(problem, now, times, prices, known)
    # Best efforts count where whatever holds is out of reach for want of memory, or nothing holds.
    return candidates.cheapest(candidates.plans()) or candidates.cheapest(_best_efforts(problem, now)) or candidates.stay()


def find_migration(
    problem: ChainProblem,
    now: Sequence[ServerAssignment],
    times: MoveTimes | None = None,
    prices: MovePrices | None = None,
    known: Callable[..., Any] | None = None,
) -> Migration | None:
    """The migration of `solve_migration` where a plan holds whose migration fits the memory, else None: many times faster."""
    candidates = _candidates(problem, now, times, prices, known)
    return candidates.cheapest(candidates.plans())


def _candidates(
    problem: ChainProblem,
    now: Sequence[ServerAssignment],
    times: MoveTimes | None,
    prices: MovePrices | None,
    known: Callable[..., Any] | None,
) -> _Candidates:
    return _Candidates(problem, tuple(now), times or MoveTimes(), prices or MovePrices(), known or (lambda _, build: build()))


def migration_to(
    problem: ChainProblem, now: Sequence[ServerAssignment], plan: ChainPlan, times: MoveTimes, prices: MovePrices
) -> Migration | None:
    """The migration to one plan, with its times, memory and price; None where the devices' memory does not allow it."""
    return _Candidates(problem, tuple(now), times, prices, lambda _, build: build()).migration_to(plan)


def fleet_at(problem: ChainProblem, now: Sequence[ServerAssignment], steps: Sequence[Step], at_s: float) -> list[ServerAssignment]:
    """What serves at a time: a step counts from its end, but what it takes away is gone from its start."""
    return list(_fleets(problem, now, [step for step in steps if _effect_s(step) <= at_s])[-1][1])


def _effect_s(step: Step) -> float:
    return step.starts_s if step.kind in REMOVALS else step.ends_s


def _fleets(
    problem: ChainProblem, now: Sequence[ServerAssignment], steps: Sequence[Step]
) -> list[tuple[float, tuple[ServerAssignment, ...]]]:
    """What serves from each moment at which it changes, in order of time; the first is 0."""
    fleet = {server.name: server for server in now}
    stages = {stage.name: s for s, stage in enumerate(problem.stages)}
    moment_s, fleets = 0.0, []
    for step in sorted(steps, key=_effect_s):
        if _effect_s(step) > moment_s:
            fleets.append((moment_s, tuple(fleet.values())))
            moment_s = _effect_s(step)
        if step.kind is ActionKind.RETIRE:
            del fleet[step.server]
        elif step.kind is ActionKind.LAUNCH:
            fleet[step.server] = ServerAssignment(step.server, tuple(step.models[stage.name] for stage in problem.stages))
        elif step.model is not None and step.after is not None:
            s, states = stages[step.model], fleet[step.server].stages
            fleet[step.server] = ServerAssignment(step.server, (*states[:s], step.after, *states[s + 1 :]))
    return [*fleets, (moment_s, tuple(fleet.values()))]


@dataclass(slots=True)
class _Candidates:
    """Weighs migrations from one fleet; what several of them pass through is evaluated once."""

    problem: ChainProblem
    now: tuple[ServerAssignment, ...]
    times: MoveTimes
    prices: MovePrices
    known: Callable[..., Any]
    bare: ChainProblem = field(init=False)
    _holds: dict[tuple[ServerAssignment, ...], bool] = field(default_factory=dict)
    _carried_rps: float | None = None
    _best: Migration | None = None

    def __post_init__(self) -> None:
        self.bare = replaced(self.problem, headroom_sigmas=0.0, headroom_rps=0.0)

    def cheapest(self, plans: Iterator[ChainPlan]) -> Migration | None:
        """The cheapest migration that fits the memory; None where none does."""
        self._best = None
        for plan in plans:
            if not self._may_win(plan.cost, self._least_risk(plan)):
                continue
            migration = self.migration_to(plan)
            if migration is not None and (self._best is None or migration.rank < self._best.rank):
                self._best = migration
        return self._best

    def plans(self) -> Iterator[ChainPlan]:
        """The best plan of each number of servers that holds, with any batches and with those that run now, while one may win."""
        known, problem = set(), self.problem
        each = problem.stages[0].server_price + sum(stage.min_instances * stage.instance_price for stage in problem.stages)
        for batches in _batches_to_try(problem, self.now):
            for plan in plans_by_servers(problem, batches, lambda servers: self._may_win(servers * each * (1.0 - ROUNDING))):
                choice = tuple((stage.servers, stage.instances, stage.batch) for stage in plan.stages)
                if choice not in known:
                    known.add(choice)
                    yield plan

    def _may_win(self, cost: float, risk: float = 0.0) -> bool:
        """Whether a migration of at least this risk to a plan of at least this cost can be the best."""
        return self._best is None or not self._best.holds or cost * self.prices.horizon_s + risk <= self._best.objective

    def _least_risk(self, plan: ChainPlan) -> float:
        """A lower bound of the risk of all steps, of which each changed model of a server takes at least one."""
        risk, launches = self.prices.risk, plan.servers - len(self.now)
        total = launches * risk[ActionKind.LAUNCH] if launches > 0 else -launches * risk[ActionKind.RETIRE]
        recount = min(risk[ActionKind.GROW], risk[ActionKind.SHRINK])
        for server in self.now[: plan.servers]:
            for stage, state in zip(plan.stages, server.stages, strict=True):
                if state.max_batch != stage.batch:
                    total += risk[ActionKind.REBATCH]
                elif state.instances != stage.instances:
                    total += recount
        return total * (1.0 - ROUNDING)

    def migration_to(self, plan: ChainPlan) -> Migration | None:
        """The migration to one plan; None where it does not fit the memory."""
        sizes = tuple((stage.name, stage.instances, stage.batch) for stage in plan.stages)
        key = ("steps", self.now, self.times, plan.servers, sizes, self.problem.device_memory_bytes)
        steps: tuple[Step, ...] | None = self.known(key, lambda: steps_to(self.problem, self.times, self.now, plan))
        if steps is None:
            return None
        resting = max((memory_bytes(self.problem, server.instances) for server in self.now), default=0)
        peak = max([resting, *(step.peak_memory_bytes for step in steps)])
        if self.problem.device_memory_bytes is not None and peak > self.problem.device_memory_bytes:
            return None
        holds_after_s = self.holds_after_s(steps)
        risk = sum(self.prices.risk[kind] for kind, _, _ in {(step.kind, step.server, step.model) for step in steps})
        missing = max(0.0, self.problem.demand_rps - self.carried_rps()) if holds_after_s > 0 else 0.0
        lost = self.prices.lost_request * missing * min(holds_after_s, self.prices.horizon_s)
        objective = plan.cost * self.prices.horizon_s + self._overlap(steps) + risk + lost
        return Migration(plan, steps, holds_after_s, max((step.ends_s for step in steps), default=0.0), peak, objective)

    def stay(self) -> Migration:
        """What runs now, as a plan and a migration without steps."""
        problem, now = self.problem, self.now
        if not now:
            return Migration(replaced(solve_joint(problem), feasible=False), (), math.inf, 0.0, 0, math.inf)
        current = evaluate_fleet(problem, now)
        stages = tuple(
            StagePlan(stage.name, len(now), min(s.instances for s in states), min(s.max_batch for s in states), 0, 0, current.capacity_rps)
            for stage, states in zip(problem.stages, zip(*(server.stages for server in now), strict=True), strict=True)
        )
        plan = ChainPlan(current.feasible, stages, current.cost, current.predicted_p99_ms, current.capacity_rps, Binding.MEMORY)
        peak = max(memory_bytes(problem, server.instances) for server in now)
        return Migration(plan, (), self.holds_after_s(()), 0.0, peak, current.cost * self.prices.horizon_s)

    def holds_after_s(self, steps: Sequence[Step]) -> float:
        """The earliest moment from which on every state carries the demand; headroom is not waited for."""
        since = math.inf
        for moment_s, fleet in reversed(_fleets(self.problem, self.now, steps)):
            if not self._carries(fleet):
                break
            since = moment_s
        return since

    def _carries(self, fleet: tuple[ServerAssignment, ...]) -> bool:
        if fleet not in self._holds:
            self._holds[fleet] = bool(fleet) and evaluate_fleet(self.bare, fleet).feasible
        return self._holds[fleet]

    def carried_rps(self) -> float:
        """The largest whole rate that what runs now carries without headroom, up to the demand."""
        if self._carried_rps is None:
            self._carried_rps = self._largest_carried_rps()
        return self._carried_rps

    def _largest_carried_rps(self) -> float:
        if not self.now or not evaluate_fleet(self.bare, self.now, rate_rps=0.0).feasible:
            return 0.0
        low, high = 0, int(self.problem.demand_rps) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if evaluate_fleet(self.bare, self.now, rate_rps=float(middle)).feasible else (low, middle)
        return float(low)

    def _overlap(self, steps: Sequence[Step]) -> float:
        """Price of what runs beyond the plan until it has gone."""
        price_of = {stage.name: stage.instance_price for stage in self.problem.stages}
        prices = {server.name: assignments_price(self.problem, [server]) for server in self.now}
        extra = 0.0
        for step in steps:
            if step.kind is ActionKind.SHRINK and step.model is not None and step.before is not None and step.after is not None:
                extra += step.ends_s * (step.before.instances - step.after.instances) * price_of[step.model]
            if step.kind is ActionKind.RETIRE:
                extra += step.ends_s * prices[step.server]
        return extra


def _best_efforts(problem: ChainProblem, now: Sequence[ServerAssignment]) -> Iterator[ChainPlan]:
    """What all servers together can do where that is not enough."""
    for batches in _batches_to_try(problem, now):
        plan = solve_joint(problem, servers=problem.max_servers, batches=batches)
        if not plan.feasible:
            yield plan


def _batches_to_try(problem: ChainProblem, now: Sequence[ServerAssignment]) -> Iterator[Batches | None]:
    if now:  # first, so that a plan which reloads must be cheaper than its risk to be looked at
        yield [sorted({min(server.stages[s].max_batch, stage.max_batch) for server in now}) for s, stage in enumerate(problem.stages)]
    yield None
