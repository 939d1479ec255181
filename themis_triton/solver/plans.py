"""The solvers' results. An infeasible problem has a result too, with the constraint that binds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from themis_triton.core.construction import quick_init


class Binding(StrEnum):
    """The constraint that keeps a plan from being cheaper, or from being feasible."""

    BOUNDS = "bounds"
    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"
    DEVICES = "devices"


@quick_init
@dataclass(frozen=True, slots=True)
class StageSize:
    """The size of one stage: `instances` (or cores) per server on `servers` servers, and the largest batch.

    `extra_instance_servers` of the servers run one instance more.
    """

    name: str
    servers: int
    instances: int
    batch: int
    extra_instance_servers: int = field(default=0, kw_only=True)

    @property
    def total_instances(self) -> int:
        """On all servers together."""
        return self.servers * self.instances + self.extra_instance_servers


@quick_init
@dataclass(frozen=True, slots=True)
class StagePlan(StageSize):
    """A stage's size with the solver's prediction. Times are at the SLO's percentile, those of the slowest server.

    `capacity_rps` counts the stage's own requests over all servers, with everything on the device busy.
    """

    latency_ms: float
    queueing_ms: float
    capacity_rps: float


def instances_of(stages: Iterable[StageSize]) -> tuple[int, ...]:
    """Instances per server, a number a stage."""
    return tuple(stage.instances for stage in stages)


def batches_of(stages: Iterable[StageSize]) -> tuple[int, ...]:
    """Largest batches, a number a stage."""
    return tuple(stage.batch for stage in stages)


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """The best plan that lost: with another number of servers (COLOCATED), or the next dearer one with a lower p99 (SEPARATE).

    There is none where no dearer one is faster, nor (SEPARATE) where all of those cost over 5 % more.
    """

    servers: int
    cost: float
    predicted_p99_ms: float

    def sentence(self, winner_cost: float, unit: str = "server") -> str:
        """Why it lost, in one sentence. `unit`: what the plan counts, a server or a device of one."""
        extra = self.cost - winner_cost
        price = f"costs {extra:.4g} more" if extra > 1e-9 else "costs the same and is no faster"
        counted = f"{self.servers} {unit}{'' if self.servers == 1 else 's'}"
        return f"{counted} with a predicted p99 of {self.predicted_p99_ms:.0f} ms {price}"


@quick_init
@dataclass(frozen=True, slots=True)
class ChainPlan:
    """A whole plan. Infeasible: `stages` is the best effort (the plan of the largest demand that is feasible, else the fastest one).

    `capacity_rps` counts requests of the chain; `cost` is per second in the prices' unit.
    """

    feasible: bool
    stages: tuple[StagePlan, ...]
    cost: float
    predicted_p99_ms: float
    capacity_rps: float
    binding: Binding
    runner_up: RunnerUp | None = None

    @property
    def servers(self) -> int:
        """Servers of a co-located chain; in total where stages are separate, use the stages' own counts."""
        return max(stage.servers for stage in self.stages)


@quick_init
@dataclass(frozen=True, slots=True)
class VerticalPlan:
    """The plan for given servers. Infeasible: `plan` carries `largest_demand_rps`, exact to 1 request/s.

    `servers_missing` is what the whole demand would need on top (a total; `stage_servers_missing` has it by stage where stages are
    separate). None: no number of servers that was tried meets the SLO, or (`largest_demand_rps` 0) not even an idle chain does.
    """

    plan: ChainPlan
    feasible: bool
    largest_demand_rps: float
    servers_missing: int | None = 0
    stage_servers_missing: tuple[int, ...] = ()


@quick_init
@dataclass(frozen=True, slots=True)
class VerticalTarget:
    """Sizes of the stages on given servers for a demand. `missing`: servers that the whole demand needs beyond them, by group or stage.

    Infeasible: the sizes of the greatest capacity.
    """

    feasible: bool
    stages: tuple[StagePlan, ...]
    missing: tuple[int, ...]
    predicted_p99_ms: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Whether a configuration meets SLO, capacity and memory; predicted p99, and capacity of the chain in requests/s.

    `stages`: empty for servers that differ.
    """

    feasible: bool
    predicted_p99_ms: float
    capacity_rps: float
    cost: float
    stages: tuple[StagePlan, ...] = ()
