"""What a policy proposes for one pipeline, before the guards."""

from __future__ import annotations

from dataclasses import dataclass

from themis_triton.core.decision import PipelineEvidence, Reason, Stage
from themis_triton.decide.demand import Demand
from themis_triton.decide.state import PipelineMemory
from themis_triton.decide.view import PipelineView


@dataclass(frozen=True, slots=True)
class Proposal:
    """Counts and batch caps for every ready server; how many servers to launch with which counts; which one to retire.

    `release` False: a server that runs more instances keeps them for now.
    """

    instances: tuple[int, ...]
    batch_caps: tuple[int, ...]
    stage: Stage
    reason: Reason
    evidence: PipelineEvidence
    launch: int = 0
    launch_instances: tuple[int, ...] = ()
    retire: str | None = None
    release: bool = True
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A proposal and what the policy will remember."""

    memory: PipelineMemory
    proposal: Proposal


def evidence_of(
    view: PipelineView, fast: Demand, slow: Demand, *, wanted: int, predicted_p99_ms: float | None, missing: int = 0, runner_up: str = ""
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
        servers_now=len(view.ready),
        servers_wanted=wanted,
        servers_missing=missing,
        runner_up=runner_up,
    )
