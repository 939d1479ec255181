"""The entry point of the decide stage: holds, each pipeline's proposal, the joint target of all pipelines, the guards."""

from __future__ import annotations

from themis_triton.core.decision import Decision, Reason, Stage
from themis_triton.core.estimate import PROXY
from themis_triton.decide.allocation import PipelineProposal, allocate
from themis_triton.decide.devices import FreeDevices
from themis_triton.decide.guards import guard
from themis_triton.decide.planner import Planner
from themis_triton.decide.policy import Policy
from themis_triton.decide.rules import Rules
from themis_triton.decide.state import PipelineState, PolicyInput, PolicyState
from themis_triton.decide.view import view_of

URGENCY = (
    Reason.INFEASIBLE,
    Reason.REPLACE,
    Reason.SCALE_OUT,
    Reason.SURGE,
    Reason.SCALE_IN,
    Reason.SETTLE,
    Reason.STEADY,
)
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def decide(state: PolicyState, policy_input: PolicyInput, planner: Planner, policy: Policy) -> tuple[PolicyState, Decision]:
    """One tick's decision. Without data, with stale readings or a short history the fleet is held. Pure: no clock, no I/O."""
    rules = planner.rules
    hold = _hold(policy_input, rules)
    if hold is not None:
        return state.reset_windows(), hold
    proposals, devices = [], FreeDevices(policy_input.snapshot, rules.config)
    for pipeline in rules.config.pipelines:
        view = view_of(pipeline, policy_input, planner, devices)
        proposals.append(PipelineProposal(view, policy.propose(state.pipelines.get(pipeline.name, PipelineState()), view)))
    allocation = allocate(state, proposals, policy_input, rules, devices)
    target, clamps = guard(allocation.target, policy_input.snapshot, rules.config)
    outputs = [entry.result.proposal for entry in proposals]
    lead = min(outputs, key=lambda p: URGENCY.index(p.reason))
    reason = Reason.REPLACE if lead.reason is Reason.SCALE_OUT and policy_input.snapshot.recently_crashed else lead.reason
    return allocation.state, Decision(
        id=decision_id(policy_input.snapshot.at_s),
        at_s=policy_input.snapshot.at_s,
        policy=rules.config.policy.name.value,
        stage=lead.stage,
        reason=reason,
        target=target,
        evidence=tuple(p.evidence for p in outputs),
        clamps=(*allocation.clamps, *clamps),
        detail="; ".join(p.detail for p in outputs if p.detail),
    )


def decision_id(at_s: float) -> str:
    """An id that sorts by time: milliseconds since the epoch in base 36; unique for ticks at least a millisecond apart."""
    number, digits = int(at_s * 1000), ""
    while number:
        number, rest = divmod(number, 36)
        digits = DIGITS[rest] + digits
    return digits or "0"


def _hold(policy_input: PolicyInput, rules: Rules) -> Decision | None:
    estimate, policy = policy_input.estimate, rules.config.policy
    groups = [group for p in rules.config.pipelines for group in policy_input.groups(p, rules.config.planning.placement)]
    if not any(group.ready or group.coming for group in groups):
        return (
            None
            if rules.config.launch is not None
            else _hold_decision(policy_input, rules, Reason.HOLD_NO_SERVER, "and there is no `launch` section")
        )
    if PROXY in estimate.stale:
        return _hold_decision(policy_input, rules, Reason.HOLD_STALE, f"proxy: {estimate.stale[PROXY]}")
    if estimate.history_s == 0.0:
        return _hold_decision(policy_input, rules, Reason.HOLD_NO_DATA, "the proxy has no statistics of any model yet")
    if estimate.history_s < 2 * policy.demand.rate_window_s:
        return _hold_decision(policy_input, rules, Reason.HOLD_WARMUP, f"{estimate.history_s:.1f} s of arrivals observed")
    return None


def _hold_decision(policy_input: PolicyInput, rules: Rules, reason: Reason, detail: str) -> Decision:
    at_s = policy_input.snapshot.at_s
    return Decision(decision_id(at_s), at_s, rules.config.policy.name.value, Stage.HOLD, reason, None, detail=detail)
