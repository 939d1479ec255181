"""What is constant from tick to tick: the configuration, and each pipeline's problem for the solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from themis_triton.core.action import ActionKind
from themis_triton.core.config import ModelConfig, PipelineConfig, Placement, ThemisConfig, ThroughputRule
from themis_triton.core.estimate import ONE_ROW, RequestSize
from themis_triton.core.price import instance_price, may_use, server_price
from themis_triton.decide.device_share import DeviceShare, device_share_of
from themis_triton.solver.migration import MovePrices
from themis_triton.solver.migration_steps import MoveTimes
from themis_triton.solver.problem import ChainProblem, StageProblem
from themis_triton.solver.surface import surface_from_table

MAX_BUSY = 256
"""Busy instances of a device up to which surfaces are kept; the solver extends them where there are more."""


@dataclass(frozen=True, eq=False)
class Rules:
    """Built once; the problems keep their `stages` tuples alive because the solver caches packed arrays by them.

    `server_problems`: the same with an instance price of 0, for the fewest servers. Of pipelines in which models call others both count
    on the usual share of the busy instances on the device; `working_problems` are theirs with surfaces over those that work.
    """

    config: ThemisConfig
    problems: dict[str, ChainProblem]
    server_problems: dict[str, ChainProblem]
    working_problems: dict[str, ChainProblem] = field(default_factory=dict)
    device_shares: Mapping[str, DeviceShare] = field(default_factory=dict)

    @cached_property
    def pipelines(self) -> Mapping[str, PipelineConfig]:
        """The pipelines by name."""
        return {pipeline.name: pipeline for pipeline in self.config.pipelines}

    @cached_property
    def move_prices(self) -> MovePrices:
        """Prices of migration steps, beyond the servers that run meanwhile."""
        prices = self.config.prices
        risk = {
            ActionKind.GROW: prices.grow_risk,
            ActionKind.SHRINK: prices.shrink_risk,
            ActionKind.REBATCH: prices.rebatch_risk,
            ActionKind.LAUNCH: prices.launch_risk,
            ActionKind.RETIRE: prices.retire_risk,
        }
        return MovePrices(risk, prices.lost_request, self.config.policy.plan_horizon_s)

    def move_times(self, pipeline: PipelineConfig) -> MoveTimes:
        """The actuators' times for a chain: those of its slowest model."""
        profiles = [self.config.models[stage].profile for stage in pipeline.stages]
        return MoveTimes(
            instance_init_s=max(profile.instance_init_s for profile in profiles),
            instance_stop_s=max(profile.instance_stop_s for profile in profiles),
            server_launch_s=max(profile.server_launch_s for profile in profiles),
            whole_changes=self.whole_changes,
        )

    @cached_property
    def fast_actuation(self) -> bool:
        """Whether every in-place change takes less than a tick."""
        profiles = [model.profile for model in self.config.models.values()]
        return all(max(profile.instance_init_s, profile.instance_stop_s) <= self.config.policy.tick_s for profile in profiles)

    @cached_property
    def dispatcher_sets_batches(self) -> bool:
        """Whether a dispatcher before the servers forms the planned batches (the paper's); else servers form them, up to their limits."""
        planning = self.config.planning
        papers = planning.placement is Placement.SEPARATE and planning.throughput is ThroughputRule.CORES
        return papers and not self.config.policy.queueing.predicts_busy

    @cached_property
    def whole_changes(self) -> bool:
        """Whether in-place changes need no small steps: they take less than a tick, or another batch needs no reload."""
        return self.fast_actuation or self.dispatcher_sets_batches

    @cached_property
    def max_servers(self) -> int:
        """Servers, or places of servers, that plans may use: as configured, else as many as the devices may hold.

        A server may hold several stages that are separate, because it was adopted or slots are few, and counts once for each.
        """
        config = self.config
        if config.planning.max_servers is not None:
            return config.planning.max_servers
        by_device = config.places
        places = sum(max(1, by_device[device]) for device in config.devices)
        if config.planning.placement is Placement.COLOCATED:
            return max(1, places)
        longest = max((len(pipeline.stages) for pipeline in config.pipelines), default=1)
        return max(longest, places + (longest - 1) * len(config.servers))

    def called(self, pipeline: str, per_request: Sequence[float], sizes: Sequence[RequestSize] = ()) -> Rules:
        """The rules with so many requests of each stage per request of a pipeline, and requests of such sizes; empty: of one row.

        Plans count in requests: the batches of a stage are of so many requests, and its surfaces of as many times their rows.
        """
        config = self.pipelines[pipeline]
        sizes = sizes or (ONE_ROW,) * len(config.stages)

        def changed(problems: dict[str, ChainProblem]) -> dict[str, ChainProblem]:
            problem = problems.get(pipeline)
            if problem is None:
                return problems
            executed = [calls * size.executed for calls, size in zip(per_request, sizes, strict=True)]
            stages = stages_called(tuple(map(_sized, problem.stages, sizes)), executed, config)
            return problems | {pipeline: replace(problem, stages=stages)}

        return self.with_problems(changed)

    def with_problems(self, changed: Callable[[dict[str, ChainProblem]], dict[str, ChainProblem]]) -> Rules:
        """The rules with every set of problems changed in the same way."""
        return replace(
            self,
            problems=changed(self.problems),
            server_problems=changed(self.server_problems),
            working_problems=changed(self.working_problems),
        )

    def counted_elsewhere(self, pipeline: str, busy: int, share: float | None = None) -> int:
        """Busy instances of others beside a pipeline's own, of which only a share works at a time (None: the usual one)."""
        if pipeline not in self.device_shares:
            return busy
        return math.ceil(busy / (self.device_shares[pipeline].usual if share is None else share) - 1e-9)

    def init_s(self, pipeline: PipelineConfig) -> float:
        """Longest initialisation of an instance of the chain."""
        return self._times_s(pipeline)[0]

    def launch_s(self, pipeline: PipelineConfig) -> float:
        """Longest launch of a server that holds the chain."""
        return self._times_s(pipeline)[1]

    def _times_s(self, pipeline: PipelineConfig) -> tuple[float, float]:
        times_s = self._times_of.get(pipeline.stages)
        if times_s is None:
            profiles = [self.config.models[stage].profile for stage in pipeline.stages]
            times_s = max(each.instance_init_s for each in profiles), max(each.server_launch_s for each in profiles)
            self._times_of[pipeline.stages] = times_s
        return times_s

    @cached_property
    def _times_of(self) -> dict[tuple[str, ...], tuple[float, float]]:
        """What `_times_s` has found, by the stages."""
        return {}


def build_rules(config: ThemisConfig) -> Rules:
    """The rules of a configuration. Plans aim at the SLO less its margin, at the demand and headroom of each tick."""
    bare = Rules(config, {}, {})
    max_busy = min(MAX_BUSY, sum(model.max_instances for model in config.models.values()))
    stages = {name: _stage(model, config, max_busy) for name, model in config.models.items()}
    problems = {
        p.name: ChainProblem(
            stages=stages_called([stages[stage] for stage in p.stages], p.per_request, p),
            slo_ms=p.slo_ms * (1.0 - config.policy.slo_margin_fraction),
            demand_rps=0.0,
            percentile=p.percentile,
            queueing=config.policy.queueing,
            placement=config.planning.placement,
            throughput=config.planning.throughput,
            min_servers=_server_range(p, bare)[0],
            max_servers=_server_range(p, bare)[1],
            device_memory_bytes=_slot_memory_bytes(config),
            headroom_sigmas=config.policy.demand.headroom_sigmas,
            # A work-conserving queue forms other batches than planned, so rounding to whole requests/s does not apply.
            paper_rounding=config.planning.paper_rounding and not config.policy.queueing.work_conserving,
            graph=p.graph,
        )
        for p in config.pipelines
    }
    shares = {p.name: share for p in config.pipelines if (share := device_share_of(p, config.pipelines, stages)) is not None}
    working = {name: problems[name] for name in shares}
    problems |= {name: replace(working[name], stages=share.applied(working[name].stages, share.usual)) for name, share in shares.items()}
    server_problems = {name: replace(problem, stages=_free(problem.stages)) for name, problem in problems.items()}
    return Rules(config, problems, server_problems, working, shares)


def sized_rules(config: ThemisConfig) -> Rules:
    """The rules that count with the configured rows of requests, without a sidecar that measures them."""
    rules = build_rules(config)
    for pipeline in config.pipelines:
        sizes = configured_sizes(config, pipeline)
        if any(size != ONE_ROW for size in sizes):
            rules = rules.called(pipeline.name, pipeline.per_request, sizes)
    return rules


def configured_sizes(config: ThemisConfig, pipeline: PipelineConfig) -> tuple[RequestSize, ...]:
    """The configured sizes of each stage's requests."""
    return tuple(RequestSize(config.models[stage].rows_per_request) for stage in pipeline.stages)


def _free(stages: Sequence[StageProblem]) -> tuple[StageProblem, ...]:
    return tuple(replace(stage, instance_price=0.0) for stage in stages)


def _server_range(pipeline: PipelineConfig, rules: Rules) -> tuple[int, int]:
    """The fewest and the most servers of a pipeline's plans. Where stages are separate, its own bounds are those of each stage."""
    groups = len(pipeline.stages) if rules.config.planning.placement is Placement.SEPARATE else 1
    if rules.config.is_stateful(pipeline):
        return 1, groups
    most = _places_for(pipeline, rules)
    most = most if pipeline.max_servers is None else min(groups * pipeline.max_servers, most)
    return max(1, min(pipeline.min_servers, most // groups)), most


def _places_for(pipeline: PipelineConfig, rules: Rules) -> int:
    """The servers that can exist; fewer where models are bound to node types."""
    config = rules.config
    bound = any(config.models[stage].node_types for stage in pipeline.stages)
    if not bound or config.launch is None or config.planning.placement is Placement.SEPARATE:
        return rules.max_servers
    slots = sum(may_use(slot, pipeline.stages, config) for slot in config.launch.slots)
    return max(1, min(rules.max_servers, len(config.servers) + slots))


def stages_called(stages: Sequence[StageProblem], per_request: Sequence[float], pipeline: PipelineConfig) -> tuple[StageProblem, ...]:
    """The stages with so many requests of each per request of the chain in the mean."""
    called = zip(stages, per_request, map(max, per_request, pipeline.max_per_request), pipeline.sequential, strict=True)
    return tuple(
        replace(stage, demand_ratio=ratio, max_calls=most, in_turn=max(1.0, most) if turns else 1.0) for stage, ratio, most, turns in called
    )


def _sized(stage: StageProblem, size: RequestSize) -> StageProblem:
    """The stage with batches of requests in place of rows."""
    if size.rows == 1.0:
        return stage
    fitting, means = size.fitting(stage.max_batch), stage.mean_surface
    surface = stage.surface.of_groups(size.rows, fitting)
    return replace(stage, surface=surface, max_batch=fitting, mean_surface=means and means.of_groups(size.rows, fitting))


def _slot_memory_bytes(config: ThemisConfig) -> int | None:
    """The smallest configured slot memory; None where the settings leave it to NVML, which a guard reads at each tick."""
    limits = [slot.memory_bytes for slot in config.launch.slots] if config.launch is not None else []
    known = [limit for limit in limits if limit is not None]
    return min(known) if known and len(known) == len(limits) and not config.servers else None


def _stage(model: ModelConfig, config: ThemisConfig, max_busy: int) -> StageProblem:
    contending, means = config.planning.throughput is ThroughputRule.INSTANCES, model.profile.mean_table
    return StageProblem(
        name=model.name,
        surface=surface_from_table(model.profile.table, model.max_batch, max_busy, monotone=contending),
        min_instances=model.min_instances,
        max_instances=model.max_instances,
        max_batch=model.max_batch,
        server_price=server_price(model, config),
        instance_price=instance_price(model, config),
        instance_memory_bytes=model.profile.instance_memory_bytes,
        max_queue_delay_ms=model.max_queue_delay_us / 1000.0,
        mean_surface=surface_from_table(means, model.max_batch, max_busy) if means is not None and contending else None,
    )
