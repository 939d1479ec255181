"""A solver's input: stages with surfaces, bounds, prices and memory; a chain with its SLO, demand and rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from themis_triton.core.config import Placement, ThroughputRule
from themis_triton.core.errors import SolverError
from themis_triton.core.graph import Graph, longest, stages_of, width
from themis_triton.core.memory import Memory
from themis_triton.core.policy import QueueingModel
from themis_triton.solver.surface import Surface

CAPACITY_TOLERANCE = 1e-9
PACKED = 64  # variants of the stages whose arrays a problem keeps

__all__ = ["ChainProblem", "Placement", "StageProblem", "ThroughputRule"]


@dataclass(frozen=True, slots=True)
class StageProblem:
    """One stage. Instance bounds hold per server; prices are per second in any one unit; memory is that of one instance.

    `demand_ratio` is the mean number of this stage's requests per request of the chain, and `max_calls` the number at the percentile, if
    that is larger; of these, `in_turn` (at least 1) are made one after the other, and the others at the same time. `mean_surface`: mean
    service times where they are known, by which capacity counts, because the percentile's is what few batches take; without, `surface`
    does.
    """

    name: str
    surface: Surface
    min_instances: int = 1
    max_instances: int = 8
    max_batch: int = 8
    server_price: float = 10.0
    instance_price: float = 1.0
    instance_memory_bytes: int = 0
    max_queue_delay_ms: float = 0.0
    demand_ratio: float = 1.0
    mean_surface: Surface | None = None
    in_turn: float = 1.0
    max_calls: float = 0.0

    def __post_init__(self) -> None:
        """SolverError when a bound is empty or a price is negative."""
        if not 1 <= self.min_instances <= self.max_instances:
            raise SolverError(f"stage {self.name}: instances {self.min_instances}..{self.max_instances}; allowed is 1 ≤ min ≤ max")
        if self.max_batch < 1:
            raise SolverError(f"stage {self.name}: max_batch {self.max_batch}; allowed is at least 1")
        if min(self.server_price, self.instance_price, self.instance_memory_bytes, self.max_queue_delay_ms, self.demand_ratio) < 0:
            raise SolverError(f"stage {self.name}: prices, memory, queue delay and demand ratio must not be negative")
        if self.in_turn < 1:
            raise SolverError(f"stage {self.name}: {self.in_turn} calls in turn; allowed is at least 1")

    @property
    def most_calls(self) -> float:
        """The requests of this stage that a request of the chain at the percentile makes."""
        return max(self.demand_ratio, self.max_calls)


@dataclass(frozen=True, slots=True)
class ChainProblem:
    """Stages with one end-to-end SLO at `percentile`, and the arrival rate to be carried. `graph` None: a chain of the stages.

    Capacity must reach `demand = λ + headroom_sigmas·√(dispersion·λ) + headroom_rps`; waits are predicted at λ itself.
    COLOCATED takes its server price from the first stage; servers are bounded by `min_servers`..`max_servers`. SEPARATE: at least
    `min_servers` a stage, at most `max_servers` in total. `device_memory_bytes` is what one server's instances may use.
    `other_rps`: requests/s that reach each stage from outside the chain, beside its own, each call on its own; empty: none.
    `busy_elsewhere`: instances of others that are busy on the same device. COLOCATED: a "server" is one device of a server; up to
    `extra_places` of them share the queue of one of the first `processes`. `paper_rounding`: demand rounded to whole requests/s and
    a replica's throughput rounded down, as the paper's artifact does.
    `packed` keeps the kernels' arrays of this problem and of those that `replace` makes of it.
    """

    stages: tuple[StageProblem, ...] = field(hash=False)  # the numbers tell problems apart, and long tuples cost time
    slo_ms: float
    demand_rps: float
    percentile: float = 99.0
    queueing: QueueingModel = QueueingModel.DYNAMIC_BATCHING
    placement: Placement = Placement.COLOCATED
    throughput: ThroughputRule = ThroughputRule.INSTANCES
    max_servers: int = 8
    min_servers: int = 1
    device_memory_bytes: int | None = None
    headroom_sigmas: float = 0.0
    headroom_rps: float = 0.0
    dispersion: float = 1.0
    other_rps: tuple[float, ...] = ()
    busy_elsewhere: int = 0
    processes: int = 0
    extra_places: int = 0
    paper_rounding: bool = False
    graph: Graph | None = None
    packed: Memory[Any] = field(default_factory=lambda: Memory(PACKED), compare=False, repr=False)

    def __post_init__(self) -> None:
        """SolverError when the chain is empty or a number is out of its range."""
        if not self.stages:
            raise SolverError("a chain needs at least one stage")
        if self.graph is not None and sorted(stages_of(self.graph)) != sorted(stage.name for stage in self.stages):
            raise SolverError(f"graph of {', '.join(stages_of(self.graph))}; expected each of the stages once")
        if not self.demand_rps >= 0 or not math.isfinite(self.demand_rps):
            raise SolverError(f"demand {self.demand_rps} requests/s; allowed is a finite rate of at least 0")
        if not self.slo_ms > 0:
            raise SolverError(f"SLO {self.slo_ms} ms; allowed is above 0")
        if not 0 < self.percentile < 100:
            raise SolverError(f"percentile {self.percentile}; allowed is above 0 and below 100")
        if self.other_rps and (len(self.other_rps) != len(self.stages) or not all(0 <= rps < math.inf for rps in self.other_rps)):
            raise SolverError(f"other requests {self.other_rps} per s; allowed is one finite rate of at least 0 for each stage, or none")
        if not 1 <= self.min_servers <= self.max_servers:
            raise SolverError(f"servers {self.min_servers}..{self.max_servers}; allowed is 1 ≤ min ≤ max")

    @property
    def calls_in_turn(self) -> float:
        """Calls of one request that follow each other on the path with the most: one a stage at least."""
        calls = [stage.in_turn for stage in self.stages]
        return sum(calls) if self.graph is None else longest(self.graph, {s.name: n for s, n in zip(self.stages, calls, strict=True)})

    @property
    def side_by_side(self) -> float:
        """The largest number of stages that a request runs at the same time."""
        return 1.0 if self.graph is None else width(self.graph)

    @property
    def only_slower_with_rate(self) -> bool:
        """Whether neither latency nor capacity required falls as the rate rises: no batch is gathered, no calls at once fill one."""
        alone = all(stage.max_queue_delay_ms == 0.0 and stage.most_calls <= stage.in_turn for stage in self.stages)
        return self.queueing.predicts_busy and not self.paper_rounding and alone

    def total_ms(self, stages_ms: Sequence[float]) -> float:
        """The latency of a request from those of its stages: the longest path."""
        if self.graph is None:
            return sum(stages_ms)
        return longest(self.graph, {stage.name: ms for stage, ms in zip(self.stages, stages_ms, strict=True)})

    def widened(self, instances: Sequence[int], batches: Sequence[int]) -> ChainProblem:
        """The same problem with bounds that allow these counts and batches of each stage."""
        sizes = list(zip(self.stages, instances, batches, strict=True))
        if all(c <= stage.max_instances and b <= stage.max_batch for stage, c, b in sizes):
            return self
        stages = (replace(s, max_instances=max(s.max_instances, c), max_batch=max(s.max_batch, b)) for s, c, b in sizes)
        return replace(self, stages=tuple(stages))

    def required_capacity_rps(self, rate_rps: float) -> float:
        """The capacity that a chain needs for an arrival rate with its headroom; never falls as the rate rises."""
        required = rate_rps + self.headroom_sigmas * math.sqrt(self.dispersion * rate_rps) + self.headroom_rps
        return float(round(required)) if self.paper_rounding else required

    def required_stage_rps(self, s: int) -> float:
        """The capacity that a stage needs at the demand: its share, headroom for how its requests vary, and other requests.

        As the kernels' `required_rps`.
        """
        ratio, rate, other = self.stages[s].demand_ratio, self.demand_rps, self.stage_other_rps(s)
        weight = math.sqrt(ratio * max(1.0, self.stages[s].most_calls))
        required = ratio * rate + (self.required_capacity_rps(rate) - rate) * weight
        if other == 0.0:
            return required
        own = 0.0 if self.paper_rounding else rate * weight**2
        return required + other + self.headroom_sigmas * (math.sqrt(self.dispersion * (own + other)) - math.sqrt(self.dispersion * own))

    def stage_other_rps(self, s: int) -> float:
        """Requests/s that reach a stage from outside the chain."""
        return self.other_rps[s] if self.other_rps else 0.0

    def chain_capacity_rps(self, capacities_rps: Iterable[float]) -> float:
        """Requests/s of the chain that its stages carry with so many requests/s each, beside the other requests."""
        left = [rps - self.stage_other_rps(s) for s, rps in enumerate(capacities_rps)]
        return min(
            (max(0.0, rps) / s.demand_ratio for s, rps in zip(self.stages, left, strict=True) if s.demand_ratio > 0), default=math.inf
        )

    def server_capacity_rps(self, latency_ms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Requests/s of one server for each batch and count of a table of mean latencies `[b - 1, c - 1]`; as the kernels' function."""
        batches, counts = latency_ms.shape
        capacity = 1000.0 * np.arange(1, batches + 1)[:, None] / latency_ms
        if self.paper_rounding:
            capacity = np.floor(capacity + CAPACITY_TOLERANCE)
        return capacity * np.arange(1, counts + 1) if self.throughput is ThroughputRule.INSTANCES else capacity
