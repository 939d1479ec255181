"""Vertical only: the baseline that keeps a fixed number of servers and moves only instances in place."""

from __future__ import annotations

from themis_triton.core.decision import Reason, Stage
from themis_triton.decide.demand import fast_demand
from themis_triton.decide.proposal import Judged, Proposal, evidence_of
from themis_triton.decide.state import Need, PipelineMemory
from themis_triton.decide.view import PipelineView


def propose(memory: PipelineMemory, view: PipelineView) -> Judged:
    """The vertical plan every tick on `vertical_servers` servers (all that can exist, unless the settings say)."""
    policy = view.rules.config.policy
    wanted = min(policy.vertical_servers or view.rules.max_servers, view.rules.max_servers)
    fast = fast_demand(view.estimate, policy, view.rules.init_s(view.pipeline))
    plan = view.vertical(fast, max(1, len(view.ready)))
    need = Need(view.at_s, tuple(stage.instances for stage in plan.plan.stages), len(view.ready))
    kept = tuple(n for n in memory.needs if n.at_s > view.at_s - policy.vertical_hold_s and n.servers == need.servers)
    memory = PipelineMemory((*kept, need))
    instances = memory.held_instances(need.servers)
    launch = max(0, wanted - len(view.ready) - len(view.coming))
    growing = any(a > b for a, b in zip(instances, view.instances_now, strict=True))
    reason = Reason.SCALE_OUT if launch else Reason.SURGE if growing else Reason.STEADY if plan.feasible else Reason.INFEASIBLE
    return Judged(
        memory,
        Proposal(
            instances=instances if view.ready else (),
            batch_caps=view.batch_caps,
            stage=Stage.ABSORB if growing else Stage.OPTIMISE,
            reason=reason,
            evidence=evidence_of(view, fast, fast, wanted=wanted, predicted_p99_ms=plan.plan.predicted_p99_ms),
            launch=launch,
            launch_instances=instances,
        ),
    )
