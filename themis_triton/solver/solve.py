"""The solvers' interface: problems in, plans out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from themis_triton.core.errors import SolverError
from themis_triton.core.replacing import replaced
from themis_triton.solver import kernels, results
from themis_triton.solver.pack import Batches, pack, set_rate
from themis_triton.solver.plans import Binding, ChainPlan, Evaluation, VerticalPlan
from themis_triton.solver.problem import ChainProblem, Placement
from themis_triton.solver.queueing import RATE_GROWING, SLO
from themis_triton.solver.stage_kernels import MIN_INSTANCES, MIN_SERVERS, Chain

SERVERS_TRIED = 4096
TOTAL_TRIED = 512  # in total where waits fall with every server, so that every number is a choice

FINE_BELOW_RPS, FINE_STEPS = 16.0, 8


@dataclass(frozen=True, slots=True)
class _Limits:
    """The choices that a call fixes or restricts."""

    servers: int | Sequence[int] | None = None
    instances: Sequence[int] | None = None
    batches: Batches | None = None
    min_instances: Sequence[int] | None = None

    def pack(self, problem: ChainProblem) -> Chain:
        return pack(problem, servers=self.servers, instances=self.instances, batches=self.batches, min_instances=self.min_instances)


def solve_joint(
    problem: ChainProblem,
    *,
    servers: int | Sequence[int] | None = None,
    instances: Sequence[int] | None = None,
    batches: Batches | None = None,
) -> ChainPlan:
    """The cheapest (n, c, b) per stage that carries the demand inside the SLO; equal costs go to the lower predicted p99.

    `servers` fixes n (a number, or one per stage where stages are separate), `instances` fixes c per stage, `batches` restricts b per
    stage (None: all). At rate 0 the plan is the bounds' minimum. Infeasible: a best effort and the constraint that binds.
    """
    limits = _Limits(servers, instances, batches)
    return _plan(problem, limits) or _best_effort(problem, limits)[0]


def find_joint(
    problem: ChainProblem,
    *,
    servers: int | Sequence[int] | None = None,
    instances: Sequence[int] | None = None,
    batches: Batches | None = None,
) -> ChainPlan | None:
    """The plan of `solve_joint`, or None where no plan holds: many times faster than a best effort."""
    return _plan(problem, _Limits(servers, instances, batches))


def plans_by_servers(problem: ChainProblem, batches: Batches | None, worth: Callable[[int], bool]) -> Iterator[ChainPlan]:
    """The cheapest plan of each number of co-located servers that holds, fewest servers first, while `worth(servers)`.

    The same plans as of `find_joint` with `servers` fixed; the arrays are built once for all of them.
    """
    limits = _Limits(batches=batches)
    chain = limits.pack(problem)
    first = int(kernels.search_colocated(*chain, kernels.FEWEST, *_range(problem, limits))[0, 0])
    fewest_instances = chain.ints[:, MIN_INSTANCES].tolist()
    for servers in range(first, problem.max_servers + 1) if first > 0 else ():
        if not worth(servers):
            return
        rows = kernels.search_colocated(*chain, kernels.CHEAPEST, servers, servers).tolist()
        if _found(rows):
            yield results.plan_of(problem, rows, [(servers, count) for count in fewest_instances], feasible=True)


def fewest_servers(problem: ChainProblem, *, batches: Batches | None = None) -> tuple[int, ...] | None:
    """Servers a stage of the plan with the fewest, whatever its instances; None where no plan holds.

    Where stages are separate it is the cheapest plan's, so that instances should have no price there.
    """
    if _is_separate(problem):
        plan = find_joint(problem, batches=batches)
        return None if plan is None else tuple(stage.servers for stage in plan.stages)
    limits = _Limits(batches=batches)
    fewest = int(kernels.search_colocated(*limits.pack(problem), kernels.FEWEST, *_range(problem, limits))[0, 0])
    return (fewest,) * len(problem.stages) if fewest > 0 else None


def solve_vertical(
    problem: ChainProblem,
    servers: int | Sequence[int],
    *,
    min_instances: Sequence[int] | None = None,
    batches: Batches | None = None,
) -> VerticalPlan:
    """The fewest instances (by price) on given servers: a number, or one per stage where stages are separate.

    `min_instances` keeps counts from shrinking. Infeasible: the largest demand that is feasible, exact to 1 request/s and never
    above the problem's own; the plan for it; and the servers missing for the whole demand.
    """
    limits = _Limits(servers, None, batches, min_instances)
    plan = _plan(problem, limits)
    if plan is not None:
        return VerticalPlan(plan, feasible=True, largest_demand_rps=problem.demand_rps)
    plan, largest = _best_effort(problem, limits)
    missing, by_stage = _missing(problem, limits)
    return VerticalPlan(plan, feasible=False, largest_demand_rps=max(0.0, largest), servers_missing=missing, stage_servers_missing=by_stage)


def find_vertical(
    problem: ChainProblem,
    servers: int | Sequence[int],
    *,
    min_instances: Sequence[int] | None = None,
    batches: Batches | None = None,
) -> ChainPlan | None:
    """`solve_vertical`'s plan where one holds, else None, many times faster than a best effort."""
    return _plan(problem, _Limits(servers, None, batches, min_instances))


def find_vertical_late(
    problem: ChainProblem,
    servers: int | Sequence[int],
    slo_factors: Sequence[float],
    *,
    min_instances: Sequence[int] | None = None,
    batches: Batches | None = None,
) -> ChainPlan | None:
    """The plan of `find_vertical` under the first of these multiples of the SLO, in rising order, that allows one; None without any."""
    limits = _Limits(servers, None, batches, min_instances)
    chain = limits.pack(problem)
    for factor in slo_factors:
        chain.rate[SLO] = factor * problem.slo_ms
        rows = _rows(problem, limits, chain)
        if _found(rows):
            eased = replaced(problem, slo_ms=factor * problem.slo_ms)
            return results.plan_of(eased, rows, _min_counts(problem, limits, chain), feasible=True)
    return None


def strongest_vertical(
    problem: ChainProblem,
    servers: int | Sequence[int],
    *,
    min_instances: Sequence[int] | None = None,
    batches: Batches | None = None,
    guess_rps: float | None = None,
) -> tuple[ChainPlan, float]:
    """The plan of the largest whole rate up to the problem's demand that the servers carry, and that rate; quick near a guess.

    −1 with the least counts when not even an idle chain meets the SLO. The plan's `binding` is not looked for: THROUGHPUT or LATENCY.
    """
    return _best_effort(problem, _Limits(servers, None, batches, min_instances), why=False, guess_rps=guess_rps)


def finer_vertical(
    problem: ChainProblem,
    servers: int | Sequence[int],
    largest: tuple[ChainPlan, float],
    *,
    min_instances: Sequence[int] | None = None,
    batches: Batches | None = None,
) -> tuple[ChainPlan, float]:
    """The answer of `strongest_vertical` in steps of an eighth, where whole requests/s would hide much: below `FINE_BELOW_RPS`."""
    limits = _Limits(servers, None, batches, min_instances)
    rate_rps = _finest(problem, limits, largest[1])
    if rate_rps == largest[1]:
        return largest
    plan = _plan(replaced(problem, demand_rps=rate_rps), limits)
    return largest if plan is None else (replaced(plan, feasible=False, binding=largest[0].binding), rate_rps)


def finer_demand(
    problem: ChainProblem, servers: int | Sequence[int], largest: float, *, instances: Sequence[int], batches: Batches | None = None
) -> float:
    """The answer of `largest_demand` in steps of an eighth below `FINE_BELOW_RPS`."""
    return _finest(problem, _Limits(servers, instances, batches), largest)


def _finest(problem: ChainProblem, limits: _Limits, whole_rps: float) -> float:
    """The largest rate in steps of an eighth between two whole ones, of which the smaller holds."""
    if not 0.0 <= whole_rps < FINE_BELOW_RPS:
        return whole_rps
    chain = limits.pack(problem)

    def holds(step: int) -> bool:
        set_rate(chain.rate, problem, whole_rps + step / FINE_STEPS)
        return _found(_rows(problem, limits, chain))

    if not problem.only_slower_with_rate:
        return whole_rps + next((step for step in range(FINE_STEPS - 1, 0, -1) if holds(step)), 0) / FINE_STEPS
    return whole_rps + (bisect_left(range(1, FINE_STEPS), 1, key=lambda step: int(not holds(step)))) / FINE_STEPS


def servers_missing(
    problem: ChainProblem,
    servers: int | Sequence[int],
    *,
    min_instances: Sequence[int] | None = None,
    batches: Batches | None = None,
) -> tuple[int | None, tuple[int, ...]]:
    """The fewest servers that a demand needs beyond those given, where these cannot carry it: in total and a stage (see `VerticalPlan`)."""
    return _missing(problem, _Limits(servers, None, batches, min_instances))


def largest_demand(
    problem: ChainProblem,
    servers: int | Sequence[int] | None,
    *,
    instances: Sequence[int] | None = None,
    batches: Batches | None = None,
    max_rate_rps: float | None = None,
    guess_rps: float | None = None,
) -> float:
    """The largest whole rate that the servers carry inside the SLO, headroom included, up to `max_rate_rps` (the problem's demand).

    Quick near a guess, which does not change the answer. `servers` None: as many as the problem allows. With `instances` and `batches`
    fixed it is the capacity of what runs now. −1 when not even an idle chain meets the SLO.
    """
    max_rps = problem.demand_rps if max_rate_rps is None else max_rate_rps
    return _largest(problem, _Limits(servers, instances, batches), max_rps, guess_rps)


def largest_demands(problem: ChainProblem, first: int, last: int, guess_rps: int) -> list[int]:
    """The answers of `largest_demand` without a limit for first..last co-located servers; quick where the first is near the guess."""
    chain = pack(problem, rate_rps=float(guess_rps))
    return [int(row[0]) for row in kernels.search_colocated(*chain, kernels.LARGEST_RATES, first, last)[: last - first + 1].tolist()]


def evaluate(
    problem: ChainProblem, servers: int | Sequence[int], instances: Sequence[int], batches: Sequence[int], *, rate_rps: float | None = None
) -> Evaluation:
    """Predicted p99, capacity and cost of a given configuration at a rate (the problem's demand). Counts may exceed the plan's bounds."""
    widened = problem.widened(instances, batches)
    if rate_rps is not None:
        widened = replaced(widened, demand_rps=rate_rps)
    server_counts = np.broadcast_to(np.asarray(servers, dtype=np.int64), (len(problem.stages),)).copy()
    counts, sizes = np.asarray(instances, dtype=np.int64), np.asarray(batches, dtype=np.int64)
    rows = kernels.describe_plan(*pack(widened, servers=servers), not _is_separate(problem), server_counts, counts, sizes)
    stages = results.stage_plans(widened, rows.tolist())
    p99 = widened.total_ms([stage.latency_ms + stage.queueing_ms for stage in stages])
    enough = results.throughput_slack(widened, stages) >= 1 - results.SLACK
    feasible = enough and results.memory_fits(widened, instances) and p99 <= problem.slo_ms + 1e-6
    return Evaluation(feasible, p99, results.capacity_rps(widened, stages), results.cost_of(widened, stages), stages)


def _is_separate(problem: ChainProblem) -> bool:
    return problem.placement is Placement.SEPARATE


def _plan(problem: ChainProblem, limits: _Limits) -> ChainPlan | None:
    chain = limits.pack(problem)
    rows = _rows(problem, limits, chain)
    return results.plan_of(problem, rows, _min_counts(problem, limits, chain), feasible=True) if _found(rows) else None


def _joint(problem: ChainProblem, limits: _Limits) -> list[list[float]]:
    return _rows(problem, limits, limits.pack(problem))


def _rows(problem: ChainProblem, limits: _Limits, chain: Chain) -> list[list[float]]:
    if _is_separate(problem):
        out = kernels.search_separate(*chain, kernels.CHEAPEST, 0, 0)
    else:
        out = kernels.search_colocated(*chain, kernels.CHEAPEST, *_range(problem, limits))
    rows: list[list[float]] = out.tolist()
    return rows


def _min_counts(problem: ChainProblem, limits: _Limits, chain: Chain) -> list[tuple[int, int]]:
    """Fewest servers and instances per stage that a call allows."""
    separate, rows = _is_separate(problem), chain.ints.tolist()
    return [(row[MIN_SERVERS] if separate else _range(problem, limits)[0], row[MIN_INSTANCES]) for row in rows]


def _found(rows: list[list[float]]) -> bool:
    return rows[-1][0] > 0


def _range(problem: ChainProblem, limits: _Limits) -> tuple[int, int]:
    if limits.servers is None:
        return problem.min_servers, problem.max_servers
    if isinstance(limits.servers, int):
        return limits.servers, limits.servers
    raise SolverError("servers of a co-located chain are one number; counts per stage belong to separate stages")


def _largest(problem: ChainProblem, limits: _Limits, max_rate_rps: float, guess_rps: float | None = None) -> float:
    chain, max_rps = limits.pack(problem), min(int(max_rate_rps), kernels.RATE_LIMIT)
    if _is_separate(problem):
        question = kernels.LARGEST_RATE_IN_TOTAL if limits.servers is None else kernels.LARGEST_RATE
        return float(kernels.search_separate(*chain, question, 0, max_rps)[0, 0])
    servers = _range(problem, limits)[1]
    if guess_rps is None or not problem.only_slower_with_rate:
        return float(kernels.search_colocated(*chain, kernels.LARGEST_RATE, servers, max_rps)[0, 0])
    chain.rate[RATE_GROWING] = max(0.0, guess_rps)
    return min(float(kernels.search_colocated(*chain, kernels.LARGEST_RATES, servers, servers)[0, 0]), float(max_rps))


def _best_effort(problem: ChainProblem, limits: _Limits, *, why: bool = True, guess_rps: float | None = None) -> tuple[ChainPlan, float]:
    """The plan of the largest feasible demand, and that demand; a plan of the least counts and −1 where there is none."""
    largest = _largest(problem, limits, problem.demand_rps, guess_rps)
    simply = Binding.THROUGHPUT if largest >= 0 else Binding.LATENCY
    binding = _infeasible_because(problem, limits) if why else simply
    if largest >= 0:
        eased = replaced(problem, demand_rps=largest)
        plan = _plan(eased, limits)
        if plan is not None:
            return replaced(plan, feasible=False, binding=binding), largest
    counts = limits.instances or limits.min_instances or [stage.min_instances for stage in problem.stages]
    sizes = [min(allowed) if allowed else 1 for allowed in (limits.batches or [None] * len(problem.stages))]
    evaluation = evaluate(problem, limits.servers if limits.servers is not None else problem.min_servers, counts, sizes)
    return ChainPlan(False, evaluation.stages, evaluation.cost, evaluation.predicted_p99_ms, evaluation.capacity_rps, binding), -1.0


def _infeasible_because(problem: ChainProblem, limits: _Limits) -> Binding:
    if problem.device_memory_bytes is not None and _found(_joint(replaced(problem, device_memory_bytes=None), limits)):
        return Binding.MEMORY
    if limits.servers is None:
        most = SERVERS_TRIED if problem.queueing.predicts_busy else kernels.RATE_LIMIT
        many = [most] * len(problem.stages) if _is_separate(problem) else SERVERS_TRIED
        if _found(_joint(problem, replaced(limits, servers=many))):
            return Binding.DEVICES
    return Binding.THROUGHPUT if _found(_joint(replaced(problem, demand_rps=0.0, headroom_rps=0.0), limits)) else Binding.LATENCY


def _missing(problem: ChainProblem, limits: _Limits) -> tuple[int | None, tuple[int, ...]]:
    if _is_separate(problem):
        return _missing_by_stage(problem, limits)
    given = _range(problem, limits)[0]
    needed = int(kernels.search_colocated(*limits.pack(problem), kernels.ENOUGH, given, SERVERS_TRIED)[0, 0])
    return (needed - given if needed > 0 else None), ()


def _missing_by_stage(problem: ChainProblem, limits: _Limits) -> tuple[int | None, tuple[int, ...]]:
    """The fewest servers in total that the whole demand needs beyond the given ones: servers cost 1, instances nothing."""
    given = np.broadcast_to(np.asarray(limits.servers, dtype=np.int64), (len(problem.stages),)).tolist()
    few = problem.queueing.predicts_busy
    most = 2 * sum(given) if few else kernels.RATE_LIMIT
    while True:
        chain = replaced(limits, servers=None).pack(replaced(problem, max_servers=most))
        chain.ints[:, 2] = given
        counted = chain.floats.copy()
        counted[:, 0], counted[:, 1] = 1.0, 0.0
        rows = kernels.search_separate(*chain._replace(floats=counted), kernels.CHEAPEST, 0, 0).tolist()
        if _found(rows):
            by_stage = tuple(int(row[0]) - n for row, n in zip(rows[:-1], given, strict=True))
            return sum(by_stage), by_stage
        most *= 2
        if most > (TOTAL_TRIED if few else kernels.RATE_LIMIT):
            return None, ()
