"""Servers that get no new requests for a model until its queue there is empty, because a growth waits for that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from themis_triton.core.config import Placement
from themis_triton.core.decision import Clamp, ClampKind, Target
from themis_triton.core.fleet import Phase
from themis_triton.core.observation import OpenCall
from themis_triton.decide.combined_target import PipelineProposal
from themis_triton.decide.state import PolicyInput
from themis_triton.decide.view import PipelineView

HORIZON_FACTOR = 2.0
"""The wait is predicted for so many times the duration of an emptied queue and an initialisation."""
LATE_FACTOR = 1.5
"""Requests wait too long beyond this multiple of the SLO: for a moment, an emptied queue makes others twice as long."""
Emptied = tuple[tuple[tuple[str, str], ...], tuple[Clamp, ...]]


def queues_to_empty(proposals: Sequence[PipelineProposal], target: Target, policy_input: PolicyInput) -> Emptied:
    """(server, model) pairs to take out of the routes for now, one server a model at a time, with the reasons.

    Only where the target asks for more instances than an open call adds, where other servers take the requests meanwhile, and where
    requests would otherwise wait for longer than the SLO.
    """
    chosen: dict[str, OpenCall] = {}
    for each in proposals:
        if each.view.open_calls and each.view.rules.config.planning.placement is Placement.COLOCATED:
            for call in _calls_to_free(each.view, target, policy_input):
                chosen.setdefault(call.model, call)
    calls = [chosen[model] for model in sorted(chosen)]
    clamps = tuple(Clamp(ClampKind.OPEN_CALL, _sentence(call, target)) for call in calls)
    return tuple(sorted((call.server, call.model) for call in calls)), clamps


def _calls_to_free(view: PipelineView, target: Target, policy_input: PolicyInput) -> Iterator[OpenCall]:
    """The call of each model that the target exceeds, at the server with the fewest waiting requests: it stays that one meanwhile."""
    snapshot, models = policy_input.snapshot, policy_input.estimate.models
    exceeded: dict[str, list[OpenCall]] = {}
    for call in view.open_calls:
        if _exceeds(target, call):
            exceeded.setdefault(call.model, []).append(call)
    for model, calls in exceeded.items():
        serving = {server.name for server in snapshot.servers if server.phase is Phase.SERVING and model in server.models}
        pending = {reading.server: reading.models[model].pending for reading in snapshot.readings if model in reading.models}
        short = [call for call in calls if call.server in serving]
        if short and len(serving - set(target.retire)) > 1 and _will_be_late(view, sum(pending.values()), models[model].completion_rps):
            yield min(short, key=lambda call: (pending.get(call.server, 0.0), call.server))


def _will_be_late(view: PipelineView, waiting: float, completed_rps: float) -> bool:
    """Whether requests will wait for longer than the SLO with the instances that run or start. What is completed shows the capacity."""
    capacity_rps = max(completed_rps, view.committed_now_rps)
    if capacity_rps <= 0.0:
        return waiting > 0.0
    horizon_s = HORIZON_FACTOR * (waiting / capacity_rps + view.rules.init_s(view.pipeline))
    waiting_then = waiting + (view.estimate.recent_rps - capacity_rps) * horizon_s
    return waiting_then > LATE_FACTOR * capacity_rps * view.pipeline.slo_ms / 1000.0


def _exceeds(target: Target, call: OpenCall) -> bool:
    """Whether the target asks for more instances than the call adds, on a server that stays."""
    state = target.servers.get(call.server, {}).get(call.model)
    return state is not None and call.server not in target.retire and state.grows_from(call.after)


def _sentence(call: OpenCall, target: Target) -> str:
    desired = target.servers[call.server][call.model].instances
    asked = f"{call.model} on {call.server} {call.before.instances}→{call.after.instances}"
    return f"{asked}: call open; no new requests there until its queue is empty, so that it can grow to {desired}"
