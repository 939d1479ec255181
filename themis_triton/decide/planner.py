"""The planner: the solver's answers to the policies' queries, each solved once. Demands are rounded up a little for that."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from themis_triton.core.brackets import Brackets
from themis_triton.core.config import Placement
from themis_triton.core.estimate import RequestSize
from themis_triton.core.memory import Memory
from themis_triton.core.replacing import replaced
from themis_triton.decide.correction import corrected_rules
from themis_triton.decide.demand import Demand
from themis_triton.decide.plan_query import PlanQuery, rounded_busy
from themis_triton.decide.rules import Rules
from themis_triton.forecast.forecast import Forecaster
from themis_triton.solver.fleet import ServerAssignment
from themis_triton.solver.migration import Migration, MovePrices, find_migration, solve_migration
from themis_triton.solver.migration_steps import MoveTimes
from themis_triton.solver.mixed import solve_mixed
from themis_triton.solver.plans import ChainPlan, VerticalPlan, VerticalTarget
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import (
    fewest_servers,
    find_joint,
    find_vertical,
    find_vertical_late,
    finer_demand,
    finer_vertical,
    largest_demand,
    servers_missing,
    solve_joint,
    strongest_vertical,
)

CAPACITY_LIMIT_RPS = 100_000.0
SLO_FACTORS = (1.5, 2.0, 3.0, 4.0, 8.0)
ANY_SLO_MS = 1e9
REMEMBERED = 16_384
QUESTIONS = 4096
CORRECTED = 32
Value = TypeVar("Value")
FORMED_BATCH = 2
_Moves = tuple[ChainProblem, tuple[ServerAssignment, ...], MoveTimes, MovePrices, Callable[..., Any]]
_PlanOrMissing = tuple[ChainPlan | None, int | None, tuple[int, ...]]


class Planner:
    """Solves plan queries under fixed rules and caches the results; owns the forecasts. Policies use one planner per set of rules."""

    def __init__(self, rules: Rules, forecaster: Forecaster | None = None) -> None:
        self.rules = rules
        self.forecaster = forecaster or Forecaster()
        self._answers: Memory[Any] = Memory(REMEMBERED)
        self._counts = Brackets(QUESTIONS)
        self._found_rps: Memory[list[float]] = Memory(QUESTIONS)
        self._corrected: Memory[Planner] = Memory(max(CORRECTED, 2 * len(rules.config.pipelines)))

    def corrected(self, factors: Mapping[str, float]) -> Planner:
        """The planner with each model's latency multiplied by its factor (above 0; 1 where absent); the same for the same factors."""
        changed = tuple(sorted((model, factor) for model, factor in factors.items() if factor != 1.0))
        if not changed:
            return self
        return self._corrected.get(changed, lambda: Planner(corrected_rules(self.rules, dict(changed)), self.forecaster))

    def called(self, pipeline: str, per_request: tuple[float, ...], sizes: tuple[RequestSize, ...] = ()) -> Planner:
        """The planner that counts with so many requests of each stage per request of a pipeline; empty: as configured.

        `sizes`: of each stage's requests; empty: each of one row.
        """
        configured = self.rules.pipelines[pipeline].per_request
        if per_request in ((), configured) and not sizes:
            return self
        key = (pipeline, per_request or configured, sizes)
        return self._corrected.get(key, lambda: Planner(self.rules.called(*key), self.forecaster))

    def remembered(self, key: Hashable, build: Callable[[], Value]) -> Value:
        """The answer under a key, built when it is not there."""
        answer: Value = self._answers.get(key, build)
        return answer

    def joint(self, query: PlanQuery, instances: tuple[int, ...] | None) -> ChainPlan:
        """`solve_joint`, with instances fixed or free."""
        query = query.rounded()
        return self.remembered(
            ("joint", query, instances), lambda: solve_joint(self._problem(query), instances=instances, batches=self._batches(query))
        )

    def find_joint(self, query: PlanQuery) -> ChainPlan | None:
        """The plan of `joint` where one holds, else None: many times faster than a best effort."""
        query = query.rounded()
        return self.remembered(("find joint", query), lambda: find_joint(self._problem(query), batches=self._batches(query)))

    def fewest(self, query: PlanQuery) -> tuple[int, ...] | None:
        """The fewest servers a stage, by their price alone, with as many instances as they may run; None where no plan holds."""
        query = query.rounded()._replace(free_instances=True)
        return self.remembered(("fewest", query), lambda: self._solve_fewest(query))

    def vertical(self, query: PlanQuery, servers: tuple[int, ...], min_instances: tuple[int, ...] | None = None) -> VerticalPlan:
        """`solve_vertical`, with no count below `min_instances`; infeasible: with the counts of the greatest capacity.

        An SLO that no plan meets is never a reason to run less: the counts are then the fewest under the least multiple of the SLO that
        allows the demand; where none does, those of the greatest throughput.
        """
        query = query.rounded()
        return self.remembered(("vertical", query, servers, min_instances), lambda: self._solve_vertical(query, servers, min_instances))

    def mixed(self, query: PlanQuery, servers: tuple[int, ...]) -> VerticalTarget:
        """`solve_mixed`."""
        query = query.rounded()
        return self.remembered(("mixed", query, servers), lambda: solve_mixed(self._problem(query), servers, query.batch_caps))

    def migration(self, query: PlanQuery, now: tuple[ServerAssignment, ...], reachable: int) -> Migration:
        """`solve_migration` from what runs now, with the times of the pipeline's profiles and the settings' prices.

        The first `reachable` new places take an instance's initialisation, the others a server's launch.
        """
        query = query.rounded()
        return self.remembered(("migration", query, now, reachable), lambda: solve_migration(*self._moves(query, now, reachable)))

    def find_migration(self, query: PlanQuery, now: tuple[ServerAssignment, ...], reachable: int) -> Migration | None:
        """`find_migration`, as `migration`."""
        query = query.rounded()
        return self.remembered(("find migration", query, now, reachable), lambda: find_migration(*self._moves(query, now, reachable)))

    def carried(self, query: PlanQuery, servers: tuple[int, ...], instances: tuple[int, ...]) -> float:
        """The largest rate that a configuration carries inside the SLO without headroom, whole where it is large; −1: not even rate 0.

        Instances that run may be outside the settings' bounds: the problem is widened to them.
        """
        return self.remembered(("carried", query, servers, instances), lambda: self._solve_carried(query, servers, instances))

    def meets_slo_alone(self, pipeline: str, busy_elsewhere: int) -> bool:
        """Whether a lone request of a pipeline meets the SLO on a device on which so many instances of others are busy."""
        busy = rounded_busy(busy_elsewhere)
        return self.remembered(("alone", pipeline, busy), lambda: self._solve_alone(pipeline, busy))

    def _solve_alone(self, pipeline: str, busy_elsewhere: int) -> bool:
        problem = self._problem(PlanQuery(pipeline, Demand(0.0, 0.0, 1.0, 0.0), None, busy_elsewhere))
        return find_vertical(problem, _counts(problem, (1,))) is not None

    def _solve_fewest(self, query: PlanQuery) -> tuple[int, ...] | None:
        def fewest() -> tuple[int, ...] | None:
            return fewest_servers(self._problem(query), batches=self._batches(query))

        def count() -> float:
            found = fewest()
            return math.inf if found is None else found[0]

        if not self._rises_with_load(query):
            return fewest()
        servers = self._counts.get(("fewest", query.unloaded()), query.load, count)
        return None if servers == math.inf else (int(servers),) * len(self.rules.problems[query.pipeline].stages)

    def _rises_with_load(self, query: PlanQuery) -> bool:
        """Whether more load never makes fewer servers enough, and those of all stages are one number."""
        problem = self.rules.problems[query.pipeline]
        return problem.placement is Placement.COLOCATED and problem.only_slower_with_rate

    def _solve_carried(self, query: PlanQuery, servers: tuple[int, ...], instances: tuple[int, ...]) -> float:
        problem = self.problem_with_counts(query, instances)
        problem = problem.widened(instances, [stage.max_batch for stage in problem.stages])
        counts, batches = _counts(problem, servers), self._batches(query)
        last = self._found_rps.get(("carried", query.pipeline, servers), list)
        guess_rps = last[0] if last else None
        largest = largest_demand(
            problem, counts, instances=instances, batches=batches, max_rate_rps=CAPACITY_LIMIT_RPS, guess_rps=guess_rps
        )
        last[:] = [largest]
        return finer_demand(problem, counts, largest, instances=instances, batches=batches)

    def _solve_vertical(self, query: PlanQuery, servers: tuple[int, ...], min_instances: tuple[int, ...] | None) -> VerticalPlan:
        problem = self._problem(query)
        plan, missing, by_stage = self._plan_or_missing(query, problem, servers, min_instances)
        if plan is not None:
            return VerticalPlan(plan, feasible=True, largest_demand_rps=problem.demand_rps)
        # Headroom for a backlog must not hide how much can be carried: a backlog drains fastest at the greatest capacity.
        unbounded = query._replace(demand=query.demand._replace(rate_rps=CAPACITY_LIMIT_RPS, extra_rps=0.0, sigmas=0.0))
        plan, largest = self._strongest(unbounded, servers, min_instances)
        if largest < 1.0:
            counts, batches = _counts(problem, servers), self._batches(query)
            late = find_vertical_late(problem, counts, SLO_FACTORS, min_instances=min_instances, batches=batches)
            plan = replaced(late or self._anyhow(unbounded, servers, min_instances), feasible=False)
        return VerticalPlan(plan, False, max(0.0, largest), missing, by_stage)

    def _plan_or_missing(
        self, query: PlanQuery, problem: ChainProblem, servers: tuple[int, ...], min_instances: tuple[int, ...] | None
    ) -> _PlanOrMissing:
        """The plan of `find_vertical`, else `servers_missing`. Of a load between two with one number of these, no plan is looked for."""
        counts, batches, solutions = _counts(problem, servers), self._batches(query), list[_PlanOrMissing]()

        def solve() -> _PlanOrMissing:
            plan = find_vertical(problem, counts, min_instances=min_instances, batches=batches)
            if plan is not None:
                return plan, 0, ()
            return None, *servers_missing(problem, counts, min_instances=min_instances, batches=batches)

        def count() -> float:
            solutions.append(solve())
            missing = solutions[0][1]
            return math.inf if missing is None else missing

        if not self._rises_with_load(query):
            return solve()
        missing = self._counts.get(("missing", query.unloaded(), servers, min_instances), query.load, count)
        if solutions or missing == 0:
            return solutions[0] if solutions else solve()
        return None, None if missing == math.inf else int(missing), ()

    def _strongest(self, query: PlanQuery, servers: tuple[int, ...], min_instances: tuple[int, ...] | None) -> tuple[ChainPlan, float]:
        return self.remembered(
            ("strongest", query, servers, min_instances),
            lambda: self._greatest("strongest", query, self._problem(query), servers, min_instances),
        )

    def _anyhow(self, query: PlanQuery, servers: tuple[int, ...], min_instances: tuple[int, ...] | None) -> ChainPlan:
        """The counts of the greatest throughput, whatever the times: requests that are late anyway must not also queue without end."""
        return self.remembered(
            ("anyhow", query, servers, min_instances),
            lambda: self._greatest("anyhow", query, replaced(self._problem(query), slo_ms=ANY_SLO_MS), servers, min_instances)[0],
        )

    def _greatest(
        self, kind: str, query: PlanQuery, problem: ChainProblem, servers: tuple[int, ...], min_instances: tuple[int, ...] | None
    ) -> tuple[ChainPlan, float]:
        """The plan of the largest rate up to the demand, and that rate; among a few requests/s fractions tell counts apart."""
        counts, batches = _counts(problem, servers), self._batches(query)
        last = self._found_rps.get((kind, query.pipeline, servers), list)
        guess_rps = last[0] if last else None
        largest = strongest_vertical(problem, counts, min_instances=min_instances, batches=batches, guess_rps=guess_rps)
        last[:] = [largest[1]]
        return finer_vertical(problem, counts, largest, min_instances=min_instances, batches=batches)

    def _moves(self, query: PlanQuery, now: tuple[ServerAssignment, ...], reachable: int) -> _Moves:
        times = replaced(self.rules.move_times(self.rules.pipelines[query.pipeline]), reachable=reachable)
        return self._problem(query), now, times, self.rules.move_prices, self.remembered

    def _batches(self, query: PlanQuery) -> list[range] | None:
        """The batch sizes that plans count on: none of one for callers, which serve a batch's requests in turn, as servers form larger."""
        callers = self.rules.device_shares[query.pipeline].waiting if query.pipeline in self.rules.device_shares else ()
        if query.batch_caps is None and not callers:
            return None
        stages = self.rules.problems[query.pipeline].stages
        caps = query.batch_caps or [stage.max_batch for stage in stages]
        return [range(min(cap, FORMED_BATCH) if stage.name in callers else 1, cap + 1) for stage, cap in zip(stages, caps, strict=True)]

    def problem_with_counts(self, query: PlanQuery, instances: tuple[int, ...]) -> ChainProblem:
        """The problem of these counts: of models that call others, with the part of them that works at a time."""
        if query.pipeline not in self.rules.device_shares:
            return self._problem(query)
        device, working = self.rules.device_shares[query.pipeline], self.rules.working_problems[query.pipeline]
        share = device.with_counts(instances)
        stages = self.remembered(("working", query.pipeline, share), lambda: device.applied(working.stages, share))
        busy = self.rules.counted_elsewhere(query.pipeline, query.busy_elsewhere, share)
        return replaced(self._problem(query), stages=stages, busy_elsewhere=busy)

    def _problem(self, query: PlanQuery) -> ChainProblem:
        problems = self.rules.server_problems if query.free_instances else self.rules.problems
        problem, demand = problems[query.pipeline], query.demand
        fewest = max(query.min_servers, problem.min_servers)
        return replaced(
            problem,
            demand_rps=demand.rate_rps,
            headroom_rps=demand.extra_rps,
            headroom_sigmas=demand.sigmas,
            dispersion=demand.dispersion,
            other_rps=demand.other_rps,
            busy_elsewhere=self.rules.counted_elsewhere(query.pipeline, query.busy_elsewhere),
            min_servers=fewest,
            processes=query.processes,
            extra_places=query.extra_places,
            max_servers=max(fewest, problem.max_servers),
        )


def _counts(problem: ChainProblem, servers: tuple[int, ...]) -> int | list[int]:
    return list(servers) if problem.placement is Placement.SEPARATE else servers[0]
