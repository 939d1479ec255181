"""The front door of the decide stage: holds, the policy by name, the joint target over all pipelines, the guards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from themis_triton.core.config import PipelineConfig, PolicyName
from themis_triton.core.decision import Clamp, ClampKind, Decision, Reason, Stage, Target
from themis_triton.core.fleet import ModelState, Server
from themis_triton.decide import horizontal, themis, vertical
from themis_triton.decide.guards import guard
from themis_triton.decide.proposal import Judged, Proposal
from themis_triton.decide.rules import Rules
from themis_triton.decide.state import PipelineMemory, PolicyState, Situation
from themis_triton.decide.view import PipelineView, view_of

POLICIES: dict[PolicyName, Callable[[PipelineMemory, PipelineView], Judged]] = {
    PolicyName.THEMIS: themis.propose,
    PolicyName.HORIZONTAL: horizontal.propose,
    PolicyName.VERTICAL: vertical.propose,
}
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


@dataclass(frozen=True, slots=True)
class _Joined:
    """Proposals of all pipelines put together."""

    target: Target
    proposals: tuple[Proposal, ...]
    clamps: tuple[Clamp, ...]
    state: PolicyState


def decide(state: PolicyState, situation: Situation, rules: Rules) -> tuple[PolicyState, Decision]:
    """One tick's decision. No data, stale readings and short history hold what is; nothing here reads a clock or does I/O."""
    held = _hold(situation, rules)
    if held is not None:
        return state, held
    joined = _join(state, situation, rules)
    target, clamps = guard(joined.target, situation.snapshot, rules.config)
    lead = min(joined.proposals, key=lambda p: URGENCY.index(p.reason))
    reason = Reason.REPLACE if lead.reason is Reason.SCALE_OUT and situation.snapshot.lost else lead.reason
    return joined.state, Decision(
        id=decision_id(situation.snapshot.at_s),
        at_s=situation.snapshot.at_s,
        policy=rules.config.policy.name.value,
        stage=lead.stage,
        reason=reason,
        target=target,
        evidence=tuple(p.evidence for p in joined.proposals),
        clamps=(*joined.clamps, *clamps),
        detail="; ".join(p.detail for p in joined.proposals if p.detail),
    )


def decision_id(at_s: float) -> str:
    """A short id that sorts by time, unique for ticks at least a millisecond apart: milliseconds since the epoch in base 36."""
    number, digits = int(at_s * 1000), ""
    while number:
        number, rest = divmod(number, 36)
        digits = DIGITS[rest] + digits
    return digits or "0"


def _hold(situation: Situation, rules: Rules) -> Decision | None:
    estimate, policy = situation.estimate, rules.config.policy
    anything_serves = any(situation.ready(p) or situation.coming(p) for p in rules.config.pipelines)
    if not anything_serves:
        return (
            None if rules.config.launch is not None else _held(situation, rules, Reason.HOLD_NO_SERVER, "and there is no `launch` section")
        )
    if "envoy" in estimate.stale:
        return _held(situation, rules, Reason.HOLD_STALE, f"envoy: {estimate.stale['envoy']}")
    if estimate.history_s == 0.0:
        return _held(situation, rules, Reason.HOLD_NO_DATA, "Envoy has told of no model yet")
    if estimate.history_s < 2 * policy.rate_window_s:
        return _held(situation, rules, Reason.HOLD_WARMUP, f"{estimate.history_s:.1f} s of arrivals seen")
    return None


def _held(situation: Situation, rules: Rules, reason: Reason, detail: str) -> Decision:
    at_s = situation.snapshot.at_s
    return Decision(decision_id(at_s), at_s, rules.config.policy.name.value, Stage.HOLD, reason, None, detail=detail)


def _join(state: PolicyState, situation: Situation, rules: Rules) -> _Joined:
    """Pipelines are asked in the order of the settings; each takes its slots from what the ones before it left."""
    propose = POLICIES[rules.config.policy.name]
    servers: dict[str, dict[str, ModelState]] = {s.name: dict(s.models) for s in situation.snapshot.servers}
    launch: dict[str, dict[str, ModelState]] = {}
    retire: list[str] = []
    proposals, clamps, memories = [], [], {}
    for pipeline in rules.config.pipelines:
        free = tuple(slot for slot in free_slots(situation, rules) if slot not in launch)
        view = view_of(pipeline, situation, rules, free)
        judged = propose(state.pipelines.get(pipeline.name, PipelineMemory()), view)
        proposal = judged.proposal
        memories[pipeline.name] = judged.memory
        proposals.append(proposal)
        for server in view.ready:
            servers[server.name] |= _states(pipeline, proposal, server)
        chosen = free[: proposal.launch]
        launch |= {slot: _launched(view, proposal) for slot in chosen}
        clamps.extend(_out_of_slots(pipeline, proposal, len(chosen)))
        retire.extend(name for name in [proposal.retire] if name is not None and not _needed_elsewhere(name, pipeline, situation, rules))
    return _Joined(Target(servers, launch, tuple(retire)), tuple(proposals), tuple(clamps), replace(state, pipelines=memories))


def free_slots(situation: Situation, rules: Rules) -> tuple[str, ...]:
    """Slots with no server on them and not in back-off, in the order of the settings."""
    launch = rules.config.launch
    snapshot = situation.snapshot
    taken = {server.slot for server in snapshot.servers} | snapshot.busy | set(snapshot.held)
    return tuple(slot.name for slot in launch.slots if slot.name not in taken) if launch is not None else ()


def _states(pipeline: PipelineConfig, proposal: Proposal, server: Server) -> dict[str, ModelState]:
    """What a running server shall run; batch caps are never lowered, because that is a reload which wins nothing."""
    states = {}
    for stage, wanted, cap in zip(pipeline.stages, proposal.instances, proposal.batch_caps, strict=True):
        now = server.models[stage]
        instances = wanted if proposal.release else max(wanted, now.instances)
        states[stage] = ModelState(instances, max(cap, now.max_batch), now.max_queue_delay_us)
    return states


def _launched(view: PipelineView, proposal: Proposal) -> dict[str, ModelState]:
    """A new server forms batches up to the settings' bound from the start: a cap costs nothing until requests wait."""
    delays = {stage: view.rules.config.models[stage].max_queue_delay_us for stage in view.pipeline.stages}
    return {
        stage.name: ModelState(count, stage.max_batch, delays[stage.name])
        for stage, count in zip(view.problem.stages, proposal.launch_instances, strict=True)
    }


def _out_of_slots(pipeline: PipelineConfig, proposal: Proposal, chosen: int) -> list[Clamp]:
    short = proposal.launch - chosen
    if short <= 0:
        return []
    return [Clamp(ClampKind.DEVICES, f"{pipeline.name} wants {short} more server{'s' if short > 1 else ''} than there are free slots")]


def _needed_elsewhere(name: str, pipeline: PipelineConfig, situation: Situation, rules: Rules) -> bool:
    """A server that also carries another pipeline stays."""
    others = [p for p in rules.config.pipelines if p.name != pipeline.name]
    return any(server.name == name for other in others for server in situation.ready(other))
