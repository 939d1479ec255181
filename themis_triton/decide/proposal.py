"""What a policy proposes for one pipeline, before the guards."""

from __future__ import annotations

from dataclasses import dataclass, field

from themis_triton.core.decision import PipelineEvidence, Reason, Stage
from themis_triton.decide.demand import Demand
from themis_triton.decide.state import PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.plan.steps import by_retirement


@dataclass(frozen=True, slots=True)
class Proposal:
    """Instances and batches a stage for every ready server, with `overrides` for single servers by name and stage.

    `launch`: servers to launch a group, with `launch_instances` a stage; `retire`: names of servers. `allow_shrink` False: a server with
    more instances keeps them. Where a dispatcher sets batches, `batches` are what it forms; else limits that are only raised.
    """

    instances: tuple[int, ...]
    batches: tuple[int, ...]
    stage: Stage
    reason: Reason
    evidence: PipelineEvidence
    launch: tuple[int, ...]
    launch_instances: tuple[int, ...]
    retire: tuple[str, ...] = ()
    allow_shrink: bool = True
    overrides: dict[str, dict[str, int]] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """A proposal and the policy's next state."""

    state: PipelineState
    proposal: Proposal


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
        capacity_rps=view.capacity_rps(),
        slo_ms=view.pipeline.slo_ms,
        measured_p99_ms=view.estimate.p99_ms,
        predicted_p99_ms=predicted_p99_ms,
        servers_now=sum(view.ready),
        servers_desired=sum(desired),
        servers_missing=missing,
        runner_up=runner_up,
        holds_after_s=holds_after_s,
    )


def to_launch(view: PipelineView, desired: tuple[int, ...]) -> tuple[int, ...]:
    """Servers to launch a group: those desired that are neither ready nor coming."""
    return tuple(max(0, count - ready - coming) for count, ready, coming in zip(desired, view.ready, view.coming, strict=True))


def leaving(view: PipelineView, kept: tuple[int, ...]) -> tuple[str, ...]:
    """Servers to retire: launched ones beyond the counts to keep, in groups without coming servers.

    Those with the fewest instances first; co-located ones one at a time, because the others take over every stage.
    """
    names: list[str] = []
    for group, count in zip(view.groups, kept, strict=True):
        launched = [server.name for server in by_retirement(group.ready) if server.launched]
        surplus = max(0, len(group.ready) - count) if not group.coming else 0
        names += launched[len(launched) - min(surplus, 1 if len(view.groups) == 1 else surplus, len(launched)) :]
    return tuple(names)


def grows(view: PipelineView, instances: tuple[int, ...]) -> bool:
    """Whether a stage gets more instances than now."""
    return any(count > now for count, now in zip(instances, view.instances_now, strict=True))


def shrinks(view: PipelineView, instances: tuple[int, ...]) -> bool:
    """Whether a stage gets fewer instances than now."""
    return any(count < now for count, now in zip(instances, view.instances_now, strict=True))
