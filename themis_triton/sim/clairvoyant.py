"""The yardstick of costs: for each second the cheapest configuration that carries its arrivals by the rules it is given.

Nothing takes time: no launch, no change, no drain. Plans keep those rules (queueing, headroom, rounding, the margin of
the SLO), so that the ratio of a policy's cost to this one is the price of not knowing and of being slow. It is no bound on the
violations, nor on the cost of a policy that accepts some.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from themis_triton.core.config import Placement, ThemisConfig
from themis_triton.decide.rules import build_rules
from themis_triton.sim.setup import SimOptions, simulated
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import solve_joint
from themis_triton.solver.surface import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Clairvoyant:
    """Rows by the second, all pipelines together.

    `infeasible_s` counts seconds that no configuration carries: there the best effort's cost counts, and a ratio to it says little.
    """

    duration_s: float
    rate_rps: FloatArray
    cost_per_s: FloatArray
    servers: IntArray
    instances: IntArray
    infeasible_s: int

    @property
    def cost(self) -> float:
        """Integral over the run; the last second may be a part of one."""
        widths = np.minimum(1.0, self.duration_s - np.arange(self.cost_per_s.size))
        return float((self.cost_per_s * widths).sum())

    @property
    def mean_cost(self) -> float:
        """Time average, per second."""
        return self.cost / self.duration_s


@dataclass(frozen=True, slots=True)
class _Least:
    cost: float
    servers: int
    instances: int
    feasible: bool


def clairvoyant(
    config: ThemisConfig, arrivals: Mapping[str, FloatArray], duration_s: float, options: SimOptions | None = None
) -> Clairvoyant:
    """The bound for arrivals as `simulate` takes them; demand is each second's own count, service times are those of the profiles.

    Pipelines are planned each for itself; seconds in which they want more servers than there can be count as infeasible.
    """
    rules = build_rules(simulated(config, options or SimOptions()))
    seconds = int(np.ceil(duration_s))
    rows = np.zeros((4, seconds))
    infeasible = np.zeros(seconds, dtype=bool)
    for name, problem in rules.problems.items():
        counts = np.bincount(np.asarray(arrivals.get(name, ())).astype(np.int64), minlength=seconds)[:seconds]
        least = {int(count): _least(problem, float(count)) for count in np.unique(counts)}
        found = [least[int(count)] for count in counts]
        rows += np.array([counts, *([getattr(each, row) for each in found] for row in ("cost", "servers", "instances"))])
        infeasible |= np.array([not each.feasible for each in found])
    infeasible |= rows[2] > rules.max_servers
    return Clairvoyant(duration_s, rows[0], rows[1], rows[2].astype(np.int64), rows[3].astype(np.int64), int(np.count_nonzero(infeasible)))


def _least(problem: ChainProblem, rate_rps: float) -> _Least:
    plan = solve_joint(replace(problem, demand_rps=rate_rps))
    instances = sum(stage.servers * stage.instances for stage in plan.stages)
    servers = sum(stage.servers for stage in plan.stages) if problem.placement is Placement.SEPARATE else plan.servers
    return _Least(plan.cost, servers, instances, plan.feasible)
