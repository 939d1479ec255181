"""What a policy proposes for one pipeline, before the guards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from themis_triton.core.construction import quick_init
from themis_triton.core.decision import PipelineEvidence, Reason, Stage
from themis_triton.core.fleet import Models, ModelState
from themis_triton.core.replacing import replaced
from themis_triton.decide.demand import Demand
from themis_triton.decide.state import PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.plan.steps import by_retirement
from themis_triton.solver.plans import StageSize


@quick_init
@dataclass(frozen=True, slots=True)
class Proposal:
    """The pipeline's models at every ready place, by the place's name.

    `launch`: servers to launch a group, each with the group's `launch_models`; `extend`: places to add to running servers, with those
    models too; `retire`: names of places to give up.
    """

    servers: dict[str, Models]
    stage: Stage
    reason: Reason
    evidence: PipelineEvidence
    launch: tuple[int, ...]
    launch_models: tuple[Models, ...]
    retire: tuple[str, ...] = ()
    detail: str = ""
    extend: int = 0


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """A proposal and the policy's next state."""

    state: PipelineState
    proposal: Proposal


def server_models(
    view: PipelineView, sizes: Sequence[StageSize], *, retire: tuple[str, ...] = (), allow_shrink: bool = True
) -> dict[str, Models]:
    """The models at every ready place by the stages' sizes. Of the places that stay, those with the most instances run the extra ones.

    `allow_shrink` False: a place with more instances keeps them. Batch limits are not lowered, a reload without benefit, unless a
    dispatcher forms the planned batches.
    """
    servers: dict[str, Models] = {}
    for s, size in enumerate(sizes):
        holders = view.holders(s)
        staying = sorted((h for h in holders if h.name not in retire), key=lambda place: -place.models[size.name].instances)
        larger = {place.name for place in staying[: size.extra_instance_servers]}
        for place in holders:
            now = place.models[size.name]
            instances, batch = size.instances + (place.name in larger), _limit(view, s, size.batch, now.max_batch)
            instances = instances if allow_shrink else max(instances, now.instances)
            same = (instances, batch) == (now.instances, now.max_batch)
            servers.setdefault(place.name, {})[size.name] = now if same else replaced(now, instances=instances, max_batch=batch)
    return servers


def launch_models(view: PipelineView, sizes: Sequence[StageSize]) -> tuple[Models, ...]:
    """The models of a new server or place, a group; their batch limits are the settings' bounds, which cost nothing until requests wait."""

    def state(s: int) -> ModelState:
        model = view.rules.config.models[sizes[s].name]
        return ModelState(sizes[s].instances, _limit(view, s, sizes[s].batch, model.max_batch), model.max_queue_delay_us)

    return tuple({sizes[s].name: state(s) for s in group.stages} for group in view.groups)


def _limit(view: PipelineView, stage: int, batch: int, least: int) -> int:
    """A server's batch limit in rows: the planned batch where a dispatcher forms it, else no less than what costs nothing to keep."""
    rows = min(view.size(stage).rows_of(batch), view.rules.config.models[view.pipeline.stages[stage]].max_batch)
    return rows if view.rules.dispatcher_sets_batches else max(rows, least)


def evidence_of(
    view: PipelineView,
    fast: Demand,
    slow: Demand,
    *,
    desired: tuple[int, ...],
    predicted_p99_ms: float | None,
    missing: int = 0,
    runner_up: str = "",
    holds_after_s: float | None = None,
) -> PipelineEvidence:
    """The numbers behind a proposal."""
    return PipelineEvidence(
        pipeline=view.pipeline.name,
        demand_fast_rps=fast.total_rps,
        demand_slow_rps=slow.total_rps,
        capacity_rps=view.capacity_rps,
        slo_ms=view.pipeline.slo_ms,
        measured_p99_ms=view.estimate.p99_ms,
        predicted_p99_ms=predicted_p99_ms,
        servers_now=sum(view.ready),
        servers_desired=sum(desired),
        servers_missing=missing,
        runner_up=runner_up,
        holds_after_s=holds_after_s,
        unit=view.unit,
        stage_servers_now=view.ready if len(view.groups) > 1 else (),
        stage_servers_desired=desired if len(view.groups) > 1 else (),
    )


def explains(view: PipelineView, proposal: Proposal) -> bool:
    """Whether the pipeline has a part in the decision: it asks for a change, leaves a server, or has no feasible plan."""
    if proposal.reason is Reason.INFEASIBLE or any(proposal.launch) or proposal.extend or proposal.retire or view.crowded:
        return True
    if proposal.servers is view.running:
        return False
    now = {place.name: place.models for group in view.groups for place in group.ready}
    return any(now[name].get(model, state) != state for name, models in proposal.servers.items() for model, state in models.items())


def with_explains(evidence: PipelineEvidence, *, explains: bool) -> PipelineEvidence:
    """The evidence of a pipeline, and whether it has a part in the decision."""
    return evidence if evidence.explains is explains else replaced(evidence, explains=explains)


def to_launch(view: PipelineView, desired: tuple[int, ...]) -> tuple[int, ...]:
    """Places to add a group: those desired that are neither ready nor coming."""
    return tuple(max(0, count - ready - coming) for count, ready, coming in zip(desired, view.ready, view.coming, strict=True))


def leaving(view: PipelineView, kept: tuple[int, ...]) -> tuple[str, ...]:
    """Places to give up, beyond the counts to keep: extra ones of a server first, then launched servers; none while one is coming.

    Those with the fewest instances first; co-located ones one at a time, because the others take over every stage. A server that holds
    several separate stages, such as an adopted one, is given up once it is surplus for each of them.
    """
    names: list[str] = []
    for group, count in zip(view.groups, kept, strict=True):
        removable = [place.name for place in by_retirement(group.ready, view.rules.config.launch) if place.removable]
        surplus = max(0, len(group.ready) - count) if not group.coming else 0
        names += removable[len(removable) - min(surplus, 1 if len(view.groups) == 1 else surplus, len(removable)) :]
    held = Counter(place.name for group in view.groups for place in group.ready)
    return tuple(name for name, groups in Counter(names).items() if groups == held[name])


def grows(view: PipelineView, instances: tuple[int, ...]) -> bool:
    """Whether a stage gets more instances than now."""
    return any(count > now for count, now in zip(instances, view.instances_now, strict=True))


def shrinks(view: PipelineView, instances: tuple[int, ...]) -> bool:
    """Whether a stage gets fewer instances than now."""
    return any(count < now for count, now in zip(instances, view.instances_now, strict=True))
