"""The same mathematics in plain Python, slow and without tricks: the kernels' oracle. Every combination is tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from themis_triton.core.graph import Graph, Parallel, Series, parts_of
from themis_triton.core.policy import QueueingModel
from themis_triton.solver import queueing
from themis_triton.solver.problem import ChainProblem, Placement, StageProblem, ThroughputRule
from themis_triton.solver.surface import Surface

TOLERANCE = 1e-9
TOLERANCE_MS = 1e-6


class Choice(NamedTuple):
    """One stage of a configuration."""

    servers: int
    instances: int
    batch: int


@dataclass(frozen=True, slots=True)
class Judged:
    """A configuration's cost, predicted p99 and whether it holds."""

    choices: tuple[Choice, ...]
    cost: float
    p99_ms: float
    holds: bool


def judge(problem: ChainProblem, choices: Sequence[Choice]) -> Judged:
    """Cost, predicted p99 and feasibility of one configuration."""
    parts = [stage_part(problem, s, choice, total_beside(problem, choices, s)) for s, choice in enumerate(choices)]
    return _joined(problem, choices, parts, cost(problem, choices))


def _joined(problem: ChainProblem, choices: Sequence[Choice], parts: Sequence[tuple[float, bool]], price: float) -> Judged:
    p99 = longest_path(problem, [part[0] for part in parts])
    holds = all(part[1] for part in parts) and p99 <= problem.slo_ms + TOLERANCE_MS and memory_fits(problem, choices)
    return Judged(tuple(choices), price, p99, holds)


def paths(graph: Graph) -> list[tuple[str, ...]]:
    """Every way of a request through the graph: the stages that it waits for one after the other."""
    if isinstance(graph, str):
        return [(graph,)]
    if not isinstance(graph, Series):
        return [path for part in parts_of(graph) for path in paths(part)]
    return [tuple(itertools.chain(*each)) for each in itertools.product(*(paths(part) for part in graph.parts))]


def apart(graph: Graph) -> set[frozenset[str]]:
    """The pairs of stages that run one after the other, or one inside the other."""
    if isinstance(graph, str):
        return set()
    inner = set[frozenset[str]]().union(*(apart(part) for part in parts_of(graph)))
    if isinstance(graph, Parallel):
        return inner
    stages = [set(itertools.chain(*paths(part))) for part in parts_of(graph)]
    return inner.union(*({frozenset(pair) for pair in itertools.product(one, other)} for one, other in itertools.combinations(stages, 2)))


@lru_cache(256)
def _indexed_paths(graph: Graph | None, names: tuple[str, ...]) -> list[list[int]]:
    return [list(range(len(names)))] if graph is None else [[names.index(name) for name in path] for path in paths(graph)]


def longest_path(problem: ChainProblem, values: Sequence[float]) -> float:
    """The largest sum of the stages' values on a path."""
    return max(sum(values[s] for s in path) for path in _indexed_paths(problem.graph, tuple(stage.name for stage in problem.stages)))


@lru_cache(256)
def _most_side_by_side(graph: Graph | None, names: tuple[str, ...]) -> int:
    """The largest set of stages of which any two run side by side."""
    return 1 if graph is None else _largest_beside(list(names), apart(graph))


def _largest_beside(names: Sequence[str], pairs: set[frozenset[str]]) -> int:
    sets = (chosen for size in range(len(names), 0, -1) for chosen in itertools.combinations(names, size))
    return next((len(each) for each in sets if pairs.isdisjoint(map(frozenset, itertools.combinations(each, 2)))), 0)


def brute_force(problem: ChainProblem, servers: Sequence[int] | None = None, *, any_plan: bool = False) -> Judged | None:
    """The cheapest configuration that holds (ties to the lower p99) among all; None when none does. `servers` fixes n a stage.

    `any_plan`: the first one that holds will do.
    """
    best: Judged | None = None
    known: dict[tuple[int, Choice, int], tuple[float, bool]] = {}
    for choices in configurations(problem, servers):
        price = cost(problem, choices)
        if best is not None and price > best.cost + TOLERANCE:
            continue
        parts = []
        for s, choice in enumerate(choices):
            key = (s, choice, total_beside(problem, choices, s))
            if key not in known:
                known[key] = stage_part(problem, *key)
            parts.append(known[key])
            if not parts[-1][1]:
                break
        if not parts[-1][1]:
            continue
        result = _joined(problem, choices, parts, price)
        if result.holds and (best is None or _better(result, best)):
            best = result
            if any_plan:
                break
    return best


def _better(result: Judged, best: Judged) -> bool:
    return result.cost < best.cost - TOLERANCE or (result.cost <= best.cost + TOLERANCE and result.p99_ms < best.p99_ms)


def brute_largest_demand(problem: ChainProblem, servers: Sequence[int]) -> int:
    """The largest whole rate up to the problem's demand that some configuration on these servers holds; −1: not even 0."""
    for rate in range(math.floor(problem.demand_rps), -1, -1):
        if brute_force(replace(problem, demand_rps=float(rate)), servers, any_plan=True) is not None:
            return rate
    return -1


def configurations(problem: ChainProblem, servers: Sequence[int] | None = None) -> Iterator[tuple[Choice, ...]]:
    """Every configuration inside the bounds on servers, instances and batches."""
    free = range(problem.min_servers, problem.max_servers + 1)
    colocated = problem.placement is Placement.COLOCATED
    numbers: list[Sequence[int]] = [servers] if servers is not None else []
    if servers is None and colocated:
        numbers = [[n] * len(problem.stages) for n in free]
    elif servers is None:
        numbers = [held for held in itertools.product(free, repeat=len(problem.stages)) if sum(held) <= problem.max_servers]
    for held in numbers:
        options = [
            [Choice(n, c, b) for c in range(stage.min_instances, stage.max_instances + 1) for b in range(1, stage.max_batch + 1)]
            for n, stage in zip(held, problem.stages, strict=True)
        ]
        yield from itertools.product(*options)


def stage_part(problem: ChainProblem, s: int, choice: Choice, total: int) -> tuple[float, bool]:
    """(ms at the percentile, whether the capacity suffices) of one stage, with `total` instances on its device."""
    stage = problem.stages[s]
    full = total if problem.throughput is ThroughputRule.CORES else total + problem.busy_elsewhere
    capacity = choice.servers * server_capacity_rps(problem, stage, choice, full)
    enough = capacity >= wanted_rps(problem, stage, problem.demand_rps) * (1 - TOLERANCE)
    if not enough:
        return math.inf, False
    return sum(stage_times(problem, stage, choice, *busy_columns(problem, s, choice.servers, full, choice.batch))), True


def total_beside(problem: ChainProblem, choices: Sequence[Choice], s: int) -> int:
    """Instances on the device of stage s; with cores, those of its replica."""
    if problem.throughput is ThroughputRule.CORES or problem.placement is Placement.SEPARATE:
        return choices[s].instances
    return sum(choice.instances for choice in choices)


def cost(problem: ChainProblem, choices: Sequence[Choice]) -> float:
    """Price per second of a configuration."""
    colocated = problem.placement is Placement.COLOCATED
    price = choices[0].servers * problem.stages[0].server_price if colocated else 0.0
    for stage, choice in zip(problem.stages, choices, strict=True):
        price += choice.servers * (choice.instances * stage.instance_price + (0.0 if colocated else stage.server_price))
    return price


def memory_fits(problem: ChainProblem, choices: Sequence[Choice]) -> bool:
    """Whether one server's instances fit its device."""
    if problem.device_memory_bytes is None:
        return True
    used = [c.instances * s.instance_memory_bytes for s, c in zip(problem.stages, choices, strict=True)]
    return (sum(used) if problem.placement is Placement.COLOCATED else max(used)) <= problem.device_memory_bytes


def latency_ms(problem: ChainProblem, stage: StageProblem, batch: int, column: int, surface: Surface | None = None) -> float:
    """A surface, by default the percentile's, extended.

    Instances are never faster on a busier device, nor with Triton's waits a larger batch than a smaller.
    """
    batches = 1 if problem.queueing.predicts_busy else batch
    columns = 1 if problem.throughput is ThroughputRule.INSTANCES else column
    return _slowest(surface or stage.surface, batches, batch, columns, column)


@lru_cache(4096)
def _slowest(surface: Surface, first_batch: int, last_batch: int, first_column: int, last_column: int) -> float:
    return float(surface.extended(last_batch, last_column)[first_batch - 1 : last_batch, first_column - 1 : last_column].max())


def busy_columns(problem: ChainProblem, s: int, servers: int, full: int, batch: int) -> tuple[float, int]:
    """The columns (usual, busy) for the times: with Triton's waits those that the rate keeps busy usually and at the percentile."""
    if problem.throughput is ThroughputRule.CORES or not problem.queueing.predicts_busy:
        return full, full
    members = problem.stages if problem.placement is Placement.COLOCATED else problem.stages[s : s + 1]
    total, elsewhere = full - problem.busy_elsewhere, problem.busy_elsewhere
    others = _others(problem, s)
    single, batched = (_usual(problem, members, servers, total, batches=batches) for batches in (False, True))
    single, batched = (beside_own(each + elsewhere, others, servers, full, elsewhere) for each in (max(single, batched), batched))
    usual = batched + (single - batched) / batch
    for k in range(1, total):
        means = [_mean_busy(problem, [stage], servers, k + elsewhere) for stage in members]
        variance = sum(
            _mean_busy(problem, [stage], servers, k + elsewhere, group=max(1.0, stage.most_calls / servers)) for stage in members
        )
        if 1 + sum(means) + queueing.BUSY_SIGMAS * math.sqrt(variance * problem.dispersion) <= k + TOLERANCE:
            return usual, int(beside_own(k + elsewhere, others, servers, full, elsewhere, whole=True))
    return usual, full


def beside_own(busy: float, others: int, servers: int, full: int, elsewhere: int, *, whole: bool = False) -> float:
    """With the stages that a request runs beside its own: on one server all of them, and a share of them beyond what is busy anyhow."""
    share = others / servers
    return min(float(full), max(busy + (math.ceil(share) if whole else share), 1.0 + others + elsewhere)) if others else busy


def _others(problem: ChainProblem, s: int) -> int:
    """The most stages of which any two run side by side with each other and with stage s, where stages share devices."""
    if problem.graph is None or problem.placement is Placement.SEPARATE:
        return 0
    own, pairs = problem.stages[s].name, apart(problem.graph)
    beside = [stage.name for stage in problem.stages if stage.name != own and frozenset({own, stage.name}) not in pairs]
    return _largest_beside(beside, pairs)


def _usual(problem: ChainProblem, members: Sequence[StageProblem], servers: int, total: int, *, batches: bool) -> float:
    usual = 1.0
    for _ in range(queueing.FIXED_POINT_STEPS):
        share = _mean_busy(problem, members, servers, usual + problem.busy_elsewhere) / total
        following = 1 + (total - 1) * (math.tanh(queueing.BUSY_GAIN * share) if batches else min(1.0, share))
        if following - usual < TOLERANCE:
            break
        usual = following
    return usual


def _mean_busy(problem: ChainProblem, members: Sequence[StageProblem], servers: int, busy: float, *, group: float = 1.0) -> float:
    rates = [group * problem.demand_rps * stage.demand_ratio + others_rps(problem, stage) for stage in members]
    return sum(rps / servers / 1000 * between(problem, stage, 1, busy) for rps, stage in zip(rates, members, strict=True))


def others_rps(problem: ChainProblem, stage: StageProblem) -> float:
    """The requests that reach a stage from outside the chain."""
    return dict(zip((each.name for each in problem.stages), problem.other_rps, strict=False)).get(stage.name, 0.0)


def between(problem: ChainProblem, stage: StageProblem, batch: int, busy: float) -> float:
    """The surface in ms, linear between its columns."""
    low, part = math.floor(busy), busy - math.floor(busy)
    under = latency_ms(problem, stage, batch, low)
    return under if part <= 0 else under * (1 - part) + latency_ms(problem, stage, batch, low + 1) * part


def server_capacity_rps(problem: ChainProblem, stage: StageProblem, choice: Choice, column: int) -> float:
    """Requests/s of one server with everything busy."""
    capacity = 1000 * choice.batch / latency_ms(problem, stage, choice.batch, column, stage.mean_surface)
    if problem.paper_rounding:
        capacity = math.floor(capacity + TOLERANCE)
    return capacity * (1 if problem.throughput is ThroughputRule.CORES else choice.instances)


def wanted_rps(problem: ChainProblem, stage: StageProblem, rate_rps: float) -> float:
    """The capacity that a stage must have."""
    headroom = problem.required_capacity_rps(rate_rps) - rate_rps
    weight, other = math.sqrt(stage.demand_ratio * max(1.0, stage.most_calls)), others_rps(problem, stage)
    own = 0.0 if problem.paper_rounding else rate_rps * weight**2
    more = math.sqrt(problem.dispersion * (own + other)) - math.sqrt(problem.dispersion * own)
    return stage.demand_ratio * rate_rps + headroom * weight + other + problem.headroom_sigmas * more


def stage_times(problem: ChainProblem, stage: StageProblem, choice: Choice, usual: float, busy: int) -> tuple[float, float]:
    """(service ms, wait ms) at the percentile."""
    rate = problem.demand_rps * stage.demand_ratio + others_rps(problem, stage)
    gaps = _gaps(problem.queueing, problem.percentile, choice.batch)
    comes = rate > queueing.NO_RATE_RPS
    if not problem.queueing.predicts_busy:
        wait = float(math.ceil(gaps * 1000 / rate - TOLERANCE)) if comes and gaps > 0 else 0.0
        return stage.in_turn * latency_ms(problem, stage, choice.batch, busy), stage.in_turn * wait
    delayed = stage.max_queue_delay_ms > 0 and choice.batch > 1
    held = stage.max_queue_delay_ms if delayed else 0.0
    queues = 1 if problem.queueing is QueueingModel.CENTRAL_QUEUE else choice.servers
    delay = min(held, gaps * 1000 * queues / rate) if delayed and comes else 0.0
    wait, size = batching_wait(problem, stage, choice, usual, rate / queues / 1000, held)
    low, part = math.floor(size), size - math.floor(size)
    service = latency_ms(problem, stage, low, busy)
    whole = service + (part * (latency_ms(problem, stage, low + 1, busy) - service) if part > 0 else 0.0)
    return stage.in_turn * whole, stage.in_turn * (wait + delay)


@lru_cache(4096)
def _gaps(model: QueueingModel, percentile: float, batch: int) -> float:
    return float(queueing.gather_table(model, percentile, batch)[batch - 1])


def batching_wait(
    problem: ChainProblem, stage: StageProblem, choice: Choice, usual: float, rate_per_ms: float, held_ms: float
) -> tuple[float, float]:
    """(wait ms, mean size of the request's own batch) with work-conserving batches; see `queueing.batching_wait`."""
    in_turn = longest_path(problem, [each.in_turn for each in problem.stages])
    beside = _most_side_by_side(problem.graph, tuple(each.name for each in problem.stages))
    calls, batch = max(1.0, stage.demand_ratio / stage.in_turn), choice.batch
    tail = queueing.stage_tail(problem.percentile, in_turn) / beside / calls
    workers = 1 if problem.throughput is ThroughputRule.CORES else choice.instances
    queues = choice.servers
    if problem.queueing is QueueingModel.CENTRAL_QUEUE:
        workers, queues = workers * queues, 1
    group = max(1.0, stage.most_calls / stage.in_turn / queues)
    by_batch = [between(problem, stage, b, usual) for b in range(1, batch + 1)]
    theta = decay(rate_per_ms * by_batch[-1], workers * batch)
    if theta <= 0:
        return math.inf, float(batch)
    typical = next((j for j in range(1, batch) if workers * j >= rate_per_ms * by_batch[j - 1]), batch)
    pooled = max(1, math.floor(min(queues, queueing.POOLED_SERVERS) / calls))
    groups = max(1, math.floor(workers / group))
    pressed, wait = all_busy_probability(pooled * groups, pooled * rate_per_ms * by_batch[0] * groups / workers), 0.0
    if pressed > tail:
        whole_group = by_batch[typical - 1] * max(1.0, group / workers / typical)
        wait = whole_group * (1 - (tail / pressed) ** (1 / min(groups, queueing.INDEPENDENT_ENDS)))
        rounds = math.log(math.sqrt(pressed) / tail) * problem.dispersion * group / (theta * batch * queues)
        wait += max(0.0, rounds) * by_batch[-1] / workers
    later = max(0.0, group - workers)
    if later > 0:
        wait += by_batch[0] * min(1.0, later) + by_batch[-1] * max(0, math.ceil(later / workers / batch - TOLERANCE) - 1)
    arrivals = rate_per_ms * (wait + held_ms) + max(0.0, later / workers - 1)
    return wait, min(float(batch), 1 + arrivals) if arrivals > tail else 1.0


def all_busy_probability(instances: int, load: float) -> float:
    """Erlang's C from its sums."""
    if load >= instances:
        return 1.0
    terms = [load**i / math.factorial(i) for i in range(instances + 1)]
    waiting = terms[-1] * instances / (instances - load)
    return waiting / (sum(terms[:-1]) + waiting)


def decay(load: float, ahead: float) -> float:
    """The positive root θ of `load·(e^θ − 1) = ahead·θ`, by bisection."""
    if load <= ahead * queueing.NEGLIGIBLE_LOAD:
        return queueing.STEEPEST
    ratio = ahead / load
    if ratio <= 1:
        return 0.0
    low, high = math.log(ratio), 2 * math.log(ratio) + 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if math.expm1(middle) < ratio * middle else (low, middle)
    return high
