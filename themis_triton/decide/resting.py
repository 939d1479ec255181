"""Pipelines of large fleets that rest: what was proposed to leave as it is stays so while nothing that matters to it changes.

With more than `SMALL_FLEET` pipelines a steady one is proposed anew once in about `ROUND_S`, and sooner the more its demand has risen. A
pipeline does not rest where its servers, its service times or what is free for it change, where requests wait, or where the demand with its
headroom exceeds what its servers carry: it is proposed at once, however many others are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest

from themis_triton.core.decision import Reason
from themis_triton.core.replacing import replaced
from themis_triton.decide.demand import Demand, backlog_of, fast_demand
from themis_triton.decide.proposal import PolicyResult, Proposal
from themis_triton.decide.slow_target import Circumstances
from themis_triton.decide.state import PipelineState, Resting
from themis_triton.decide.view import PipelineView

SMALL_FLEET = 100
"""Fleets of no more pipelines have none that rest."""
ROUND_S = 5.0
"""Ticks propose so many resting pipelines, the oldest proposals first, that each has its turn once in this time."""
RISE_FACTOR = 1.15
"""A demand that exceeds by this factor the one for which a pipeline came to rest gives it a turn before the others."""

FEW_IN_FLIGHT = 8.0
"""So many requests more are at the proxy at a time by chance."""


@dataclass(frozen=True, slots=True)
class Rest:
    """The result of a pipeline that may rest on, since when it does, and its demand over that for which it came to rest."""

    result: PolicyResult
    since_s: float
    rise: float


def resting(state: PipelineState, view: PipelineView) -> Rest | None:
    """The rest of a pipeline, with the numbers of this tick; None where it must be proposed now."""
    kept = state.resting
    if kept is None or view.in_turn or view.open_calls or view.crowded:
        return None
    fast = _demand(view)
    if fast.with_headroom_rps() > view.capacity_rps or backlog_of(view.estimate, view.rules.config.policy) > 0.0 or _is_late(view):
        return None
    now = _circumstances(view, fast)
    if now.equal != kept.since.equal:
        return None
    measured = view.estimate.p99_ms
    evidence = replaced(kept.evidence, demand_fast_rps=fast.total_rps, capacity_rps=view.capacity_rps, measured_p99_ms=measured)
    proposal = Proposal(
        servers=view.running,
        stage=kept.stage,
        reason=Reason.STEADY,
        evidence=evidence,
        launch=(0,) * len(view.groups),
        launch_models=kept.launch_models,
        detail=kept.detail,
    )
    rises = [_ratio(rps, before) for rps, before in zip(now.demands_rps, kept.since.demands_rps, strict=True)]
    return Rest(PolicyResult(state, proposal), kept.at_s, max(rises))


def due(rests: Sequence[Rest | None], tick_s: float) -> frozenset[int]:
    """The numbers of the pipelines that are proposed in this tick: all that do not rest, and of the others a part.

    Those that have rested for longest, so many that a round takes `ROUND_S`, and as many of those whose demand has risen most.
    """
    at_rest = [(number, rest) for number, rest in enumerate(rests) if rest is not None]
    count = math.ceil(len(rests) * tick_s / ROUND_S)
    oldest = nsmallest(count, at_rest, key=lambda each: each[1].since_s)
    risen = nsmallest(count, [each for each in at_rest if each[1].rise > RISE_FACTOR], key=lambda each: -each[1].rise)
    return frozenset(number for number, rest in enumerate(rests) if rest is None).union(number for number, _ in (*oldest, *risen))


def with_rest(result: PolicyResult, view: PipelineView) -> PolicyResult:
    """The result, and that the pipeline rests from now on where it is left as it is."""
    proposal = result.proposal
    changes = any(proposal.launch) or proposal.extend or proposal.retire or proposal.servers != view.running
    if changes or proposal.reason is not Reason.STEADY:
        return replaced(result, state=replaced(result.state, resting=None))
    since = _circumstances(view, _demand(view))
    rest = Resting(since, view.at_s, proposal.stage, proposal.evidence, proposal.launch_models, proposal.detail)
    return replaced(result, state=replaced(result.state, resting=rest))


def _is_late(view: PipelineView) -> bool:
    """Whether so many requests are at the proxy that, by Little's law, they take longer than the SLO: a server may hang."""
    own = [view.models[name].in_flight for name in view.pipeline.client_calls if name in view.models]
    return sum(own) > FEW_IN_FLIGHT + view.estimate.recent_rps * view.pipeline.slo_ms / 1000.0


def _demand(view: PipelineView) -> Demand:
    return fast_demand(view.estimate, view.rules.config.policy, view.rules.init_s(view.pipeline) + view.age_s)


def _circumstances(view: PipelineView, fast: Demand) -> Circumstances:
    free = (view.reachable, view.free_slots > 0, view.within_reach)
    equal = (view.layout, free, view.estimate.sizes, view.estimate.due_rise, view.jump_rps)
    return Circumstances(equal, (fast.with_headroom_rps(), sum(fast.other_rps)))


def _ratio(rps: float, before_rps: float) -> float:
    """How far a demand has risen."""
    return rps / before_rps if before_rps > 0.0 else math.inf if rps > 0.0 else 1.0
