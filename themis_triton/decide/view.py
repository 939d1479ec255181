"""One pipeline as a policy sees it in one tick: its places, what they run, and the solver bound to its problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from themis_triton.core.config import PipelineConfig, Placement
from themis_triton.core.estimate import PipelineEstimate
from themis_triton.core.fleet import Place
from themis_triton.core.observation import OpenCall
from themis_triton.core.policy import QueueingModel
from themis_triton.decide.demand import Demand
from themis_triton.decide.devices import FreeDevices, waits
from themis_triton.decide.planner import Planner, PlanQuery
from themis_triton.decide.rules import Rules
from themis_triton.decide.state import Group, PolicyInput
from themis_triton.plan.steps import by_retirement
from themis_triton.solver.fleet import assignment_of
from themis_triton.solver.migration import Migration
from themis_triton.solver.plans import ChainPlan, StageSize, VerticalPlan, VerticalTarget
from themis_triton.solver.problem import ChainProblem


@dataclass(frozen=True, slots=True)
class PipelineView:
    """One pipeline's places by group: one group of all stages where they are co-located, else one a stage.

    Counts of places are tuples with one number per group; a server of one device is one place, so that baselines speak of servers.
    `busy_elsewhere`: instances of other pipelines' models on its places. `reachable`: new places that its running servers may have now;
    `free_slots`: servers that may be launched now.
    `open_calls`: growth of its models that takes longer than an initialisation, because requests wait.
    """

    pipeline: PipelineConfig
    estimate: PipelineEstimate
    groups: tuple[Group, ...]
    planner: Planner
    at_s: float
    busy_elsewhere: int = 0
    open_calls: tuple[OpenCall, ...] = ()
    reachable: int = 0
    free_slots: int = 0

    @property
    def rules(self) -> Rules:
        """The planner's rules."""
        return self.planner.rules

    @property
    def problem(self) -> ChainProblem:
        """The pipeline's problem, without a demand."""
        return self.rules.problems[self.pipeline.name]

    @property
    def ready(self) -> tuple[int, ...]:
        """Ready places a group."""
        return tuple(len(group.ready) for group in self.groups)

    @property
    def unit(self) -> str:
        """What its places are to a reader: servers, or devices where a server may use several."""
        return "device" if any(place.server.reach for group in self.groups for place in group.ready) else "server"

    @property
    def extra(self) -> int:
        """Ready places beyond the first one of their server."""
        return sum(place.extra for group in self.groups for place in group.ready)

    @property
    def extending(self) -> int:
        """Places that are being added to running servers."""
        return sum(place.extra for group in self.groups for place in group.coming)

    @property
    def coming(self) -> tuple[int, ...]:
        """Coming places a group."""
        return tuple(len(group.coming) for group in self.groups)

    def without(self, retire: tuple[str, ...]) -> tuple[int, ...]:
        """Ready places a group without those to give up."""
        return tuple(sum(place.name not in retire for place in group.ready) for group in self.groups)

    @property
    def serves(self) -> bool:
        """Whether every stage has a ready place."""
        return all(self.ready)

    def holders(self, stage: int) -> tuple[Place, ...]:
        """The ready places that hold a stage."""
        return next(group.ready for group in self.groups if stage in group.stages)

    @property
    def batch_caps(self) -> tuple[int, ...]:
        """Largest batch of each stage that every ready server forms without a reload; the settings' bound where none is ready."""
        names, bounds = self.pipeline.stages, [stage.max_batch for stage in self.problem.stages]
        limits = [[place.models[name].max_batch for place in self.holders(s)] for s, name in enumerate(names)]
        return tuple(min([bound, *batches]) for bound, batches in zip(bounds, limits, strict=True))

    @property
    def instances_now(self) -> tuple[int, ...]:
        """Smallest instance count of each stage over its ready servers."""
        names = self.pipeline.stages
        return tuple(min((place.models[name].instances for place in self.holders(s)), default=0) for s, name in enumerate(names))

    @property
    def sizes_now(self) -> tuple[StageSize, ...]:
        """The size of each stage by its smallest ready server."""
        return self.sizes(self.instances_now, self.batch_caps)

    def sizes(self, instances: tuple[int, ...], batches: tuple[int, ...]) -> tuple[StageSize, ...]:
        """The sizes of the stages on their ready servers with so many instances each."""
        rows = enumerate(zip(self.pipeline.stages, instances, batches, strict=True))
        return tuple(StageSize(name, len(self.holders(s)), count, batch) for s, (name, count, batch) in rows)

    def vertical(self, demand: Demand, servers: tuple[int, ...], *, min_instances: tuple[int, ...] | None = None) -> VerticalPlan:
        """The fewest instances on so many servers; where none suffice, the counts of the greatest capacity and the servers missing.

        `min_instances` keeps counts from shrinking.
        """
        return self.planner.vertical(self._query(demand), servers, min_instances)

    def in_place(self, demand: Demand, servers: tuple[int, ...]) -> VerticalTarget:
        """The target of given servers for a demand: counts that may differ by one where a server holds one stage, else equal ones."""
        if self.rules.config.planning.placement is Placement.SEPARATE and self.problem.queueing is QueueingModel.SLO_MARGIN:
            return self.planner.mixed(self._query(demand), servers)
        vertical = self.vertical(demand, servers)
        missing = vertical.stage_servers_missing or (vertical.servers_missing or 0,) * len(self.groups)
        return VerticalTarget(vertical.feasible, vertical.plan.stages, missing, vertical.plan.predicted_p99_ms)

    def joint(self, demand: Demand, *, instances: tuple[int, ...] | None = None, reload: bool = False) -> ChainPlan:
        """The cheapest servers × instances × batch; `reload` allows batches that the ready servers would have to reload for."""
        return self.planner.joint(self._query(demand, reload=reload), instances)

    def fewest_servers(self, demand: Demand) -> tuple[int, ...]:
        """The cheapest servers at their largest instance counts, by server prices alone; all that can exist if these are too few."""
        fewest = self.planner.fewest(self._query(demand))
        return tuple(fewest[group.stages[0]] for group in self.groups) if fewest is not None else self.max_servers_by_group

    def migration(self, demand: Demand) -> Migration:
        """The plan with the cheapest migration from the present fleet, itself included; co-located chains only."""
        now = tuple(assignment_of(place, self.pipeline.stages, self.rules.config) for place in by_retirement(self.groups[0].ready))
        kept = sum(not place.removable for place in self.groups[0].ready)
        return self.planner.migration(replace(self._query(demand, reload=True), min_servers=max(1, kept)), now, self.reachable)

    def servers_of(self, stages: Sequence[StageSize]) -> tuple[int, ...]:
        """The stages' servers a group."""
        return tuple(stages[group.stages[0]].servers for group in self.groups)

    @property
    def max_servers_by_group(self) -> tuple[int, ...]:
        """The servers a group that can exist; separate stages share them evenly."""
        return tuple(max(1, self.rules.max_servers // len(self.groups)) for _ in self.groups)

    def capacity_rps(self) -> float:
        """The rate that the ready servers carry inside the SLO as they are, without headroom.

        Co-located servers with different counts are added up; separate ones count with the fewest instances of their stage.
        """
        if not self.serves:
            return 0.0
        if self.rules.config.planning.placement is Placement.SEPARATE:
            return self.planner.carried(self._query(Demand(0.0, 0.0, 1.0, 0.0)), self.ready, self.instances_now)
        return self._carried([tuple(place.models[stage].instances for stage in self.pipeline.stages) for place in self.groups[0].ready])

    def committed_rps(self, planned: tuple[int, ...]) -> float:
        """The rate that co-located servers carry with the counts of open calls, and the planned ones of models without any."""
        after = {(call.server, call.model): call.after for call in self.open_calls}

        def committed(place: Place, stage: str, count: int) -> int:
            state = after.get((place.server.name, stage))
            return count if state is None else state.on(place.device) if place.device else state.instances

        stages = tuple(zip(self.pipeline.stages, planned, strict=True))
        return self._carried([tuple(committed(place, *stage) for stage in stages) for place in self.groups[0].ready])

    def _carried(self, counts: list[tuple[int, ...]]) -> float:
        query = self._query(Demand(0.0, 0.0, 1.0, 0.0))
        groups = [(len(counts), counts[0])] if len(set(counts)) == 1 else [(1, instances) for instances in counts]
        return sum(max(0.0, self.planner.carried(query, (n,), instances)) for n, instances in groups)

    def _query(self, demand: Demand, *, reload: bool = False) -> PlanQuery:
        caps = None if reload or self.rules.dispatcher_sets_batches else self.batch_caps
        extra = self.extra if len(self.groups) == 1 else 0
        processes = self.ready[0] - extra if extra else 0
        return PlanQuery(self.pipeline.name, demand, caps, self.busy_elsewhere, processes=processes, extra_places=extra)


def view_of(pipeline: PipelineConfig, policy_input: PolicyInput, planner: Planner, devices: FreeDevices) -> PipelineView:
    """The view of one pipeline; instances of other models on its places count as busy."""
    snapshot, groups = policy_input.snapshot, policy_input.groups(pipeline, planner.rules.config.planning.placement)
    ready = [place for group in groups for place in group.ready]
    others = [sum(state.instances for name, state in place.models.items() if name not in pipeline.stages) for place in ready]
    colocated = planner.rules.config.planning.placement is Placement.COLOCATED
    return PipelineView(
        pipeline=pipeline,
        estimate=policy_input.estimate.pipelines[pipeline.name],
        groups=groups,
        planner=planner,
        at_s=snapshot.at_s,
        busy_elsewhere=max(others, default=0),
        open_calls=tuple(
            call for call in snapshot.open_calls if call.model in pipeline.stages and waits(call, snapshot, planner.rules.config)
        ),
        reachable=len(devices.extensions(ready, pipeline.stages)) if colocated else 0,
        free_slots=len(devices.slots),
    )
