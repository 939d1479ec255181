"""Horizontal only: the baseline that starts and stops servers, each with the same, most economical instance counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from themis_triton.core.config import Placement
from themis_triton.core.decision import Reason, Stage
from themis_triton.decide.demand import peak_demand
from themis_triton.decide.proposal import Judged, Proposal, evidence_of
from themis_triton.decide.state import PipelineMemory
from themis_triton.decide.view import PipelineView
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import largest_demand


def propose(memory: PipelineMemory, view: PipelineView) -> Judged:
    """The joint plan with instances fixed, every tick; scale-in after `scale_in_hold_s` of agreement."""
    instances = memory.fixed_instances or efficient_instances(view.problem, view.rules.config.policy.horizontal_instances)
    demand = peak_demand(view.estimate)
    joint = view.joint(demand, instances=instances)
    most = view.rules.max_servers
    wanted = max(1, min(joint.servers if joint.feasible else most, most))
    servers = len(view.ready)
    launch = max(0, wanted - servers - len(view.coming))
    hold_s = view.rules.config.policy.scale_in_hold_s
    memory = replace(memory.with_wanted(view.at_s, wanted, hold_s), fixed_instances=instances)
    leaving = [server.name for server in view.ready if server.launched]
    due = memory.covered_s(view.at_s) >= hold_s and memory.most_wanted() < servers and not view.coming
    retire = leaving[-1] if due and leaving else None
    reason = Reason.SCALE_OUT if launch else Reason.SCALE_IN if retire else Reason.STEADY if joint.feasible else Reason.INFEASIBLE
    return Judged(
        memory,
        Proposal(
            instances=instances if servers else (),
            batch_caps=view.batch_caps,
            stage=Stage.OPTIMISE,
            reason=reason,
            evidence=evidence_of(view, demand, demand, wanted=wanted, predicted_p99_ms=joint.predicted_p99_ms),
            launch=launch,
            launch_instances=instances,
            retire=retire,
        ),
    )


def efficient_instances(problem: ChainProblem, fixed: int | None) -> tuple[int, ...]:
    """The counts that carry the most requests inside the SLO for their price, on one server (a stage); `fixed` is one count for all."""
    stages = problem.stages
    if fixed is not None:
        return tuple(min(max(fixed, stage.min_instances), stage.max_instances) for stage in stages)
    price = stages[0].server_price if problem.placement is Placement.COLOCATED else sum(stage.server_price for stage in stages)

    def value(counts: tuple[int, ...]) -> float:
        cost = price + sum(c * stage.instance_price for c, stage in zip(counts, stages, strict=True))
        return largest_demand(problem, 1, instances=counts, at_most_rps=100_000.0) / cost

    return max(product(*(range(s.min_instances, s.max_instances + 1) for s in stages)), key=value)
