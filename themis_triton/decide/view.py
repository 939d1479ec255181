"""One pipeline as a policy sees it in one tick: its servers, what they run, and the solver bound to its problem."""

from __future__ import annotations

from dataclasses import dataclass, replace

from themis_triton.core.config import PipelineConfig
from themis_triton.core.estimate import PipelineEstimate
from themis_triton.core.fleet import Server
from themis_triton.decide.demand import Demand
from themis_triton.decide.rules import Rules
from themis_triton.decide.state import Situation
from themis_triton.solver.plans import ChainPlan, VerticalPlan
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import largest_demand, solve_joint, solve_vertical

CAPACITY_LIMIT_RPS = 100_000.0


@dataclass(frozen=True, slots=True)
class PipelineView:
    """`ready` servers are routed, `coming` ones will be; `free_slots` are slots where a server could be launched now."""

    pipeline: PipelineConfig
    estimate: PipelineEstimate
    ready: tuple[Server, ...]
    coming: tuple[Server, ...]
    free_slots: tuple[str, ...]
    problem: ChainProblem
    rules: Rules
    at_s: float

    @property
    def batch_caps(self) -> tuple[int, ...]:
        """Largest batch of each stage that every ready server forms without a reload; the settings' bound where none is ready."""
        bounds = [stage.max_batch for stage in self.problem.stages]
        return tuple(
            min([bound, *(server.models[stage].max_batch for server in self.ready)])
            for stage, bound in zip(self.pipeline.stages, bounds, strict=True)
        )

    @property
    def instances_now(self) -> tuple[int, ...]:
        """Fewest instances of each stage over the ready servers."""
        return tuple(min((s.models[stage].instances for s in self.ready), default=0) for stage in self.pipeline.stages)

    def vertical(self, demand: Demand, servers: int) -> VerticalPlan:
        """The fewest instances on so many servers; where none suffice, the counts of the greatest capacity and the servers missing."""
        asked = self._asked(demand)
        found = solve_vertical(asked, servers, batches=self._batches())
        if found.feasible:
            return found
        # Headroom for a backlog must not hide how much can be carried: what waits drains fastest at the greatest capacity.
        bare = replace(asked, demand_rps=CAPACITY_LIMIT_RPS, headroom_rps=0.0, headroom_sigmas=0.0)
        return replace(found, plan=solve_vertical(bare, servers, batches=self._batches()).plan)

    def joint(self, demand: Demand, *, instances: tuple[int, ...] | None = None, reload: bool = False) -> ChainPlan:
        """The cheapest servers × instances × batch; `reload` allows batches that the ready servers would have to reload for."""
        return solve_joint(self._asked(demand), instances=instances, batches=None if reload else self._batches())

    def carries(self, demand: Demand, servers: int, instances: tuple[int, ...]) -> bool:
        """Whether a given configuration carries the demand inside the SLO."""
        problem = self._asked(demand)
        return largest_demand(problem, servers, instances=instances, batches=self._batches()) >= int(demand.rate_rps)

    def capacity_rps(self) -> float:
        """What the ready servers carry inside the SLO as they are, without headroom; servers with different counts are added up."""
        plain = replace(self.problem, headroom_sigmas=0.0)
        counts = [tuple(server.models[stage].instances for stage in self.pipeline.stages) for server in self.ready]
        if not counts:
            return 0.0
        groups = [(len(counts), counts[0])] if len(set(counts)) == 1 else [(1, instances) for instances in counts]
        return sum(max(0.0, self._largest(plain, n, instances)) for n, instances in groups)

    def _largest(self, problem: ChainProblem, servers: int, instances: tuple[int, ...]) -> float:
        return largest_demand(problem, servers, instances=instances, batches=self._batches(), at_most_rps=CAPACITY_LIMIT_RPS)

    def _asked(self, demand: Demand) -> ChainProblem:
        return replace(self.problem, demand_rps=demand.rate_rps, headroom_rps=demand.extra_rps, dispersion=demand.dispersion)

    def _batches(self) -> list[list[int]]:
        return [list(range(1, cap + 1)) for cap in self.batch_caps]


def view_of(pipeline: PipelineConfig, situation: Situation, rules: Rules, free_slots: tuple[str, ...]) -> PipelineView:
    """The view of one pipeline; instances of other models on its servers count as busy."""
    ready = situation.ready(pipeline)
    others = [sum(state.instances for name, state in s.models.items() if name not in pipeline.stages) for s in ready]
    problem = replace(rules.problems[pipeline.name], busy_elsewhere=max(others, default=0))
    return PipelineView(
        pipeline=pipeline,
        estimate=situation.estimate.pipelines[pipeline.name],
        ready=ready,
        coming=situation.coming(pipeline),
        free_slots=free_slots,
        problem=problem,
        rules=rules,
        at_s=situation.snapshot.at_s,
    )
