"""Vertical with the decisions of policy `themis`: its fast loop on a fixed number of servers, those for the load's known peak."""

from __future__ import annotations

from dataclasses import replace

from themis_triton.core.config import ThemisConfig
from themis_triton.core.decision import Reason
from themis_triton.core.fleet import Models
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.decide import themis
from themis_triton.decide.policy import Load, Policy
from themis_triton.decide.proposal import PolicyResult, to_launch
from themis_triton.decide.state import PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.evaluation.starts import start_for_peak
from themis_triton.evaluation.vertical import fixed_servers


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """What `themis` does where it may neither launch nor retire; the fixed servers are launched if they do not run."""
    fixed = state.fixed_servers or fixed_servers(view)
    result = themis.propose(replace(state, fixed_servers=fixed), replace(view, one_server=True, reachable=0, free_slots=0))
    launch = to_launch(view, fixed)
    reason = Reason.SCALE_OUT if any(launch) else result.proposal.reason
    proposal = replace(result.proposal, launch=launch, extend=0, retire=(), reason=reason, detail="")
    return PolicyResult(result.state, proposal)


def _prepared(config: PolicyConfig, load: Load) -> PolicyConfig:
    return replace(config, vertical=replace(config.vertical, planned_rps=config.vertical.planned_rps or load.peak_rps))


def _first_servers(config: ThemisConfig, load: Load) -> tuple[Models, ...] | None:
    return start_for_peak(config, config.policy.vertical.planned_rps or load.peak_rps)


VERTICAL_THEMIS = Policy(
    PolicyName.VERTICAL_THEMIS, propose, waits_for_batches=False, fixed_servers=True, prepared=_prepared, first_servers=_first_servers
)
