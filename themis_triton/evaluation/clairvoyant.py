"""The reference for costs: for each second the cheapest configuration that carries its arrivals by the given rules.

Launches, changes and drains take no time. Plans keep the rules (queueing, headroom, rounding, the margin of the SLO), so that the
ratio of a policy's cost to this one is the cost of not knowing the future and of slow actuators. It bounds neither violations nor
the cost of a policy that accepts violations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from themis_triton.core.config import Placement, ThemisConfig
from themis_triton.decide.rules import sized_rules
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import solve_joint
from themis_triton.solver.surface import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Clairvoyant:
    """One row a second, all pipelines together.

    `infeasible_s`: seconds that no configuration carries; they count with the cost of the largest feasible demand.
    """

    duration_s: float
    rate_rps: FloatArray
    cost_per_s: FloatArray
    servers: IntArray
    instances: IntArray
    infeasible_s: int

    @property
    def cost(self) -> float:
        """Integral over the run; the last second may be partial."""
        widths = np.minimum(1.0, self.duration_s - np.arange(self.cost_per_s.size))
        return float((self.cost_per_s * widths).sum())

    @property
    def mean_cost(self) -> float:
        """Time average, per second."""
        return self.cost / self.duration_s


@dataclass(frozen=True, slots=True)
class _Cheapest:
    cost: float
    servers: int
    instances: int
    feasible: bool


def clairvoyant(config: ThemisConfig, arrivals: Mapping[str, FloatArray], duration_s: float) -> Clairvoyant:
    """The reference for arrivals as `simulate` takes them; the demand is each second's count, service times are the profiles'.

    Each pipeline is planned alone; seconds in which all together need more servers than can exist count as infeasible.
    """
    rules = sized_rules(config)
    seconds = int(np.ceil(duration_s))
    rows = np.zeros((4, seconds))
    infeasible = np.zeros(seconds, dtype=bool)
    for name, problem in rules.problems.items():
        counts = np.bincount(np.asarray(arrivals.get(name, ())).astype(np.int64), minlength=seconds)[:seconds]
        by_count = {int(count): _cheapest(problem, float(count)) for count in np.unique(counts)}
        cheapest = [by_count[int(count)] for count in counts]
        rows += np.array([counts, *([getattr(each, row) for each in cheapest] for row in ("cost", "servers", "instances"))])
        infeasible |= np.array([not each.feasible for each in cheapest])
    infeasible |= rows[2] > rules.max_servers
    return Clairvoyant(duration_s, rows[0], rows[1], rows[2].astype(np.int64), rows[3].astype(np.int64), int(np.count_nonzero(infeasible)))


def _cheapest(problem: ChainProblem, rate_rps: float) -> _Cheapest:
    plan = solve_joint(replace(problem, demand_rps=rate_rps))
    instances = sum(stage.servers * stage.instances for stage in plan.stages)
    servers = sum(stage.servers for stage in plan.stages) if problem.placement is Placement.SEPARATE else plan.servers
    return _Cheapest(plan.cost, servers, instances, plan.feasible)
