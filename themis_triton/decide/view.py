"""One pipeline as a policy sees it in one tick: its places, what they run, and the solver bound to its problem."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from themis_triton.core.attainment import EndedRequests
from themis_triton.core.config import PipelineConfig, Placement
from themis_triton.core.estimate import ONE_ROW, ModelEstimate, PipelineEstimate, RequestSize
from themis_triton.core.fleet import Models, Place
from themis_triton.core.observation import OpenCall
from themis_triton.core.policy import QueueingModel
from themis_triton.core.replacing import replaced
from themis_triton.decide.crowding import crowded_places
from themis_triton.decide.demand import Demand, recent_others
from themis_triton.decide.devices import FreeDevices
from themis_triton.decide.plan_query import PlanQuery, rounded_up_rps
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import Rules
from themis_triton.decide.sharing import SharedModels
from themis_triton.decide.state import Group, PolicyInput
from themis_triton.plan.steps import by_retirement
from themis_triton.solver.fleet import ServerAssignment, assignment_of
from themis_triton.solver.migration import Migration
from themis_triton.solver.plans import Binding, ChainPlan, StageSize, VerticalPlan, VerticalTarget
from themis_triton.solver.problem import ChainProblem


@dataclass(frozen=True)
class PipelineView:
    """One pipeline's places by group: one group of all stages where they are co-located, else one a stage.

    Counts of places are tuples with one number per group; a server of one device is one place, so that baselines speak of servers.
    `busy_elsewhere`: busy instances of other models on the busiest of its places.
    `reachable`: new places that its running servers may have now;
    `within_reach`: whether they may have some now or once open calls have returned;
    `begun`: those of them that take no free device; `free_slots`: servers that may be launched now.
    `crowded`: places of its servers where others are so busy that it cannot meet its SLO; it leaves them as they are, for other ones.
    `one_server`: it has a stateful stage, so that all of its calls go to one server, and no other is launched.
    `in_turn`: whether its slow loop plans in this tick.
    `alone`: no other pipeline has anything to do with its models and servers; False: not known.
    `open_calls`: growth of its models that takes longer than an initialisation, because requests wait.
    `models`: what was measured of each model. `age_s`: how old its newest counters are, where that is more than a tick.
    `ended`: its requests that ended since the last tick.
    """

    pipeline: PipelineConfig
    estimate: PipelineEstimate
    groups: tuple[Group, ...]
    planner: Planner
    at_s: float
    busy_elsewhere: int = 0
    crowded: tuple[Place, ...] = ()
    open_calls: tuple[OpenCall, ...] = ()
    one_server: bool = False
    in_turn: bool = True
    alone: bool = field(default=False, compare=False)
    reachable: int = 0
    within_reach: bool = False
    begun: int = 0
    free_slots: int = 0
    models: Mapping[str, ModelEstimate] = field(default_factory=dict)
    age_s: float = 0.0
    ended: EndedRequests = field(default_factory=EndedRequests)

    @property
    def rules(self) -> Rules:
        """The planner's rules."""
        return self.planner.rules

    @property
    def prompt(self) -> bool:
        """Whether the effect of an in-place change shows within a tick."""
        return self.rules.fast_actuation and not self.age_s

    @property
    def jump_rps(self) -> float:
        """What a recurring rise that is due jumps to before a growth in place helps; 0: nothing."""
        return 0.0 if self.prompt else self.estimate.due_jump_rps

    @cached_property
    def problem(self) -> ChainProblem:
        """The pipeline's problem, without a demand."""
        return self.rules.problems[self.pipeline.name]

    @cached_property
    def ready(self) -> tuple[int, ...]:
        """Ready places a group."""
        return tuple(len(group.ready) for group in self.groups)

    @property
    def counted_elsewhere(self) -> int:
        """`busy_elsewhere` as the pipeline's problem counts busy instances."""
        return self.rules.counted_elsewhere(self.pipeline.name, self.busy_elsewhere)

    @property
    def unit(self) -> str:
        """What its places are to a reader: servers, or devices where a server may use several."""
        return "device" if any(place.server.reach for group in self.groups for place in group.ready) else "server"

    @cached_property
    def extra(self) -> int:
        """Ready places beyond the first one of their server."""
        return sum(place.extra for group in self.groups for place in group.ready)

    @cached_property
    def extending(self) -> int:
        """Places that are being added to running servers."""
        return sum(place.extra for group in self.groups for place in group.coming)

    @cached_property
    def coming(self) -> tuple[int, ...]:
        """Coming places a group."""
        return tuple(len(group.coming) for group in self.groups)

    @cached_property
    def lacking(self) -> tuple[bool, ...]:
        """Whether a group has no place, not even a coming one: without its first server, the next request would wait for a cold start."""
        return tuple(not ready and not coming for ready, coming in zip(self.ready, self.coming, strict=True))

    @cached_property
    def running(self) -> dict[str, Models]:
        """What runs at the ready places, of the pipeline's models."""
        return {place.name: {name: place.models[name] for name in group.names} for group in self.groups for place in group.ready}

    @cached_property
    def layout(self) -> Hashable:
        """What runs where for the pipeline and beside it, what is coming, and how fast its models are."""
        running = tuple((place.name, tuple(place.models[name] for name in group.names)) for group in self.groups for place in group.ready)
        corrections = tuple(self.models[stage].correction if stage in self.models else 1.0 for stage in self.pipeline.stages)
        return (self.pipeline, running, self.coming, self.busy_elsewhere, corrections)

    def without(self, retire: tuple[str, ...]) -> tuple[int, ...]:
        """Ready places a group without those to give up."""
        return tuple(sum(place.name not in retire for place in group.ready) for group in self.groups)

    @property
    def serves(self) -> bool:
        """Whether every stage has a ready place."""
        return all(self.ready)

    def holders(self, stage: int) -> tuple[Place, ...]:
        """The ready places that hold a stage."""
        return self.groups[0].ready if len(self.groups) == 1 else next(group.ready for group in self.groups if stage in group.stages)

    @cached_property
    def batch_caps(self) -> tuple[int, ...]:
        """Largest batch of each stage that every ready server forms without a reload; the settings' bound where none is ready.

        As all batches of plans, in requests.
        """
        names, bounds = self.pipeline.stages, [stage.max_batch for stage in self.problem.stages]
        limits = [[self.size(s).fitting(place.models[name].max_batch) for place in self.holders(s)] for s, name in enumerate(names)]
        return tuple(min([bound, *batches]) for bound, batches in zip(bounds, limits, strict=True))

    def size(self, stage: int) -> RequestSize:
        """The size of a stage's requests."""
        return self.estimate.sizes[stage] if self.estimate.sizes else ONE_ROW

    @cached_property
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

    def find_joint(self, demand: Demand) -> ChainPlan | None:
        """`joint` where a plan holds, else None."""
        return self.planner.find_joint(self._query(demand))

    def fewest_servers(self, demand: Demand) -> tuple[int, ...]:
        """The cheapest servers at their largest instance counts, by server prices alone; all that can exist if these are too few."""
        fewest = self.planner.fewest(self._query(demand))
        return tuple(fewest[group.stages[0]] for group in self.groups) if fewest is not None else self.most_servers(demand)

    def most_servers(self, demand: Demand) -> tuple[int, ...]:
        """All servers that can exist, a group; separate stages share them so that they carry as much of the demand as they can."""
        if len(self.groups) == 1:
            return self.max_servers_by_group
        plan = self.joint(demand)
        return self.max_servers_by_group if plan.binding is Binding.LATENCY else self.servers_of(plan.stages)

    def migration(self, demand: Demand) -> Migration:
        """The plan with the cheapest migration from the present fleet, itself included; co-located chains only."""
        return self.planner.migration(self._migration_query(demand), self._assignments, self.reachable)

    def find_migration(self, demand: Demand) -> Migration | None:
        """`migration` where a plan holds, else None."""
        return self.planner.find_migration(self._migration_query(demand), self._assignments, self.reachable)

    def _migration_query(self, demand: Demand) -> PlanQuery:
        kept = sum(not place.removable for place in self.groups[0].ready)
        return self._query(demand, reload=True)._replace(min_servers=max(1, kept))

    @property
    def _assignments(self) -> tuple[ServerAssignment, ...]:
        """What the ready places run, in the order in which they are kept."""
        places = [
            assignment_of(place, self.pipeline.stages, self.rules.config)
            for place in by_retirement(self.groups[0].ready, self.rules.config.launch)
        ]
        return tuple(place.in_requests(self.estimate.sizes) for place in places)

    def servers_of(self, stages: Sequence[StageSize]) -> tuple[int, ...]:
        """The stages' servers a group."""
        return tuple(stages[group.stages[0]].servers for group in self.groups)

    @property
    def max_servers_by_group(self) -> tuple[int, ...]:
        """The servers a group that can exist; separate stages share them evenly."""
        return tuple(max(1, self.rules.max_servers // len(self.groups)) for _ in self.groups)

    @property
    def max_places(self) -> int:
        """The most places that it may have: those that can exist, or as bounded."""
        bound = self.pipeline.max_servers
        return self.rules.max_servers if bound is None else min(bound, self.rules.max_servers)

    @cached_property
    def capacity_rps(self) -> float:
        """The rate that the ready servers carry inside the SLO as they are, without headroom.

        Co-located servers with different counts are added up, places of one server share its queues. Separate ones count with the fewest
        instances of their stage.
        """
        if not self.serves:
            return 0.0
        if self.rules.config.planning.placement is Placement.SEPARATE:
            query = self._capacity_query(1, self.instances_now, self.instances_now)
            return self.planner.carried(query, self.ready, self.instances_now)
        return self._carried([tuple(place.models[stage].instances for stage in self.pipeline.stages) for place in self.groups[0].ready])

    @cached_property
    def committed_now_rps(self) -> float:
        """The rate that co-located servers carry with the counts of open calls, and the present ones of models without any."""
        return self.committed_rps(self.instances_now)

    def committed_rps(self, planned: tuple[int, ...]) -> float:
        """The rate that co-located servers carry with the counts of open calls, and the planned ones of models without any."""
        after = {(call.server, call.model): call.after for call in self.open_calls}

        def committed(place: Place, stage: str, count: int) -> int:
            state = after.get((place.server.name, stage))
            return count if state is None else state.on(place.device) if place.device else state.instances

        stages = tuple(zip(self.pipeline.stages, planned, strict=True))
        return self._carried([tuple(committed(place, *stage) for stage in stages) for place in self.groups[0].ready])

    def _carried(self, counts: list[tuple[int, ...]]) -> float:
        totals = [sum(column) for column in zip(*counts, strict=True)]
        if len(set(counts)) == 1:
            return max(0.0, self.planner.carried(self._capacity_query(len(counts), counts[0], totals), (len(counts),), counts[0]))
        servers: dict[str, list[tuple[int, ...]]] = {}
        for place, instances in zip(self.groups[0].ready, counts, strict=True):
            servers.setdefault(place.server.name, []).append(instances)
        each = {own: self._carried_by_server(own, totals) for own in dict.fromkeys(map(tuple, servers.values()))}
        return sum(each[tuple(own)] for own in servers.values())

    def _carried_by_server(self, counts: Sequence[tuple[int, ...]], totals: Sequence[int]) -> float:
        """What one server's places carry: its instances of a stage have one queue, so that it counts how many each place has on average."""
        places = len(counts)
        mean = tuple(sum(column) // places for column in zip(*counts, strict=True))
        if min(mean) == 0:
            return 0.0
        query = self._capacity_query(places, mean, totals)._replace(processes=1 if places > 1 else 0, extra_places=places - 1)
        return max(0.0, self.planner.carried(query, (places,), mean))

    def _capacity_query(self, places: int, instances: tuple[int, ...], totals: Sequence[int]) -> PlanQuery:
        """The query for what places carry beside their share of other requests, which spread over all places by instances."""
        shares = [places * count / total if total else 1.0 for count, total in zip(instances, totals, strict=True)]
        others = recent_others(self.estimate)
        other_rps = tuple(rounded_up_rps(share * rps) for share, rps in zip(shares, others, strict=True)) if others else ()
        return self._query(Demand(0.0, 0.0, 1.0, 0.0, other_rps=other_rps))

    def _query(self, demand: Demand, *, reload: bool = False) -> PlanQuery:
        caps = None if reload or self.rules.dispatcher_sets_batches else self.batch_caps
        extra = self.extra if len(self.groups) == 1 else 0
        processes = self.ready[0] - extra if extra else 0
        return PlanQuery(self.pipeline.name, demand, caps, self.busy_elsewhere, processes=processes, extra_places=extra)


def view_of(
    pipeline: PipelineConfig,
    policy_input: PolicyInput,
    planner: Planner,
    devices: FreeDevices,
    left: Collection[str] = (),
    shared: SharedModels | None = None,
    *,
    in_turn: bool = True,
) -> PipelineView:
    """The view of one pipeline; see `PolicyInput.busy_elsewhere`. `left`: servers that it has left because they were crowded.

    `shared`: the tick's account of models that several pipelines use; None: a new one.
    """
    shared = shared or SharedModels(policy_input, planner.rules.config)
    snapshot, groups = policy_input.snapshot, policy_input.groups(pipeline, planner.rules.config.planning.placement)
    one_server = policy_input.stateful(pipeline.stages) or planner.rules.config.is_stateful(pipeline)
    colocated = planner.rules.config.planning.placement is Placement.COLOCATED
    busy = {place.name: policy_input.busy_elsewhere(place, group.names) for group in groups for place in group.ready}
    known = {place.name: busy[place.name] for place in groups[0].ready if policy_input.knows_busy(place, pipeline.stages)}
    crowded = crowded_places(pipeline, groups[0].ready, known, planner, left) if colocated and not one_server else ()
    if crowded and (len(crowded) < len(groups[0].ready) or groups[0].coming or devices.slots_for(pipeline.stages)):
        groups = (replaced(groups[0], ready=tuple(place for place in groups[0].ready if place not in crowded)),)
    else:
        crowded = ()
    ready = [place for group in groups for place in group.ready]
    may_extend = colocated and not one_server
    extensions = devices.extensions(ready, pipeline.stages) if may_extend else ()
    return PipelineView(
        pipeline=pipeline,
        estimate=shared.at(pipeline, groups),
        groups=groups,
        planner=planner,
        at_s=snapshot.at_s,
        busy_elsewhere=max((busy[place.name] for place in ready), default=0),
        crowded=crowded,
        open_calls=tuple(
            call for call in snapshot.open_calls if call.model in pipeline.stages and (call.server, call.model) in devices.waiting
        ),
        one_server=one_server,
        in_turn=in_turn,
        reachable=len(extensions),
        within_reach=may_extend and devices.within_reach(ready, pipeline.stages),
        begun=devices.begun(extensions),
        free_slots=max(len(devices.slots_for(group.names)) for group in groups),
        models=policy_input.estimate.models,
        ended=policy_input.estimate.ended.get(pipeline.name, EndedRequests()),
        age_s=age_s(pipeline, policy_input, planner.rules),
    )


def age_s(pipeline: PipelineConfig, policy_input: PolicyInput, rules: Rules) -> float:
    """How old a pipeline's newest counters are, where that is more than a tick."""
    return next((age for age in policy_input.ages_s.get(pipeline.front, ()) if age > rules.config.policy.tick_s), 0.0)
