"""The record of one tick, and the one function that turns it into a sentence."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from themis_triton.core.action import Action, ActionKind, Outcome, OutcomeKind, Plan
from themis_triton.core.construction import quick_init
from themis_triton.core.decision import Decision, PipelineEvidence, Reason
from themis_triton.core.estimate import DriftEvent, Estimate, LearntTimes, ModelEstimate, PipelineKnowledge
from themis_triton.core.observation import Snapshot
from themis_triton.core.service_times import ENOUGH_EXECUTIONS
from themis_triton.core.words import MOST_NAMED, first_of


@quick_init
@dataclass(frozen=True, slots=True)
class TickRecord:
    """One tick: what it read, estimated, decided and planned, and the outcomes since the tick before.

    An action of the plan that could not start has an outcome SKIPPED in the same record.
    """

    number: int
    snapshot: Snapshot
    estimate: Estimate
    decision: Decision
    plan: Plan
    outcomes: tuple[Outcome, ...] = ()
    advisory: bool = False

    @property
    def started(self) -> tuple[Action, ...]:
        """The actions of the plan that were started, or would be in advisory mode."""
        skipped = {outcome.action.id for outcome in self.outcomes if outcome.kind is OutcomeKind.SKIPPED}
        return tuple(action for action in self.plan.actions if action.id not in skipped)


def sentence(record: TickRecord) -> str:
    """The tick in one sentence, the same for the log, the status and the journal."""
    decision = record.decision
    parts = [_opening(decision, {each.pipeline for each in record.estimate.knowledge if not each.enough})]
    if decision.detail:
        parts.append(decision.detail)
    parts += [incident.sentence for incident in record.snapshot.incidents]
    if record.started:
        verb = "would " if record.advisory else ""
        parts.append(verb + first_of([describe(action) for action in record.started], ", ", "actions"))
    elif decision.clamps:
        parts.append(decision.clamps[-1].sentence)
    parts += [
        f"{describe(o.action)} {o.kind.value.replace('_', ' ')}: {o.detail}" for o in record.outcomes if o.kind is not OutcomeKind.DONE
    ]
    return "; ".join(parts)


def describe(action: Action) -> str:
    """One action, such as `grow video-detector on server-1 2→5`."""
    match action.kind:
        case ActionKind.LAUNCH:
            models = ", ".join(f"{name}×{state.instances}" for name, state in sorted(action.models.items()))
            return f"launch {action.server} on {action.slot} with {models}"
        case ActionKind.RETIRE:
            return f"retire {action.server}"
        case ActionKind.RELOAD:
            return f"load {action.model} on {action.server}"
        case ActionKind.KILL:
            return f"kill {action.server}"
        case ActionKind.REBATCH:
            before, after = action.before, action.after
            return f"rebatch {action.model} on {action.server} {before and before.max_batch}→{after and after.max_batch}"
        case ActionKind.GROW | ActionKind.SHRINK:
            before, after = action.before, action.after
            counts = f"{before and before.instances}→{after and after.instances}"
            return f"{action.kind.value} {action.model} on {action.server} {counts}{_where(action)}"


def _where(action: Action) -> str:
    """The devices that get or lose instances, such as ` (gpu:1 +2)`, on a server that may use several."""
    if action.before is None or action.after is None or not action.after.spread:
        return ""
    added, removed = action.after.added(action.before), action.before.added(action.after)
    changes = [f"{device} +{count}" for device, count in added.items()] + [f"{device} −{count}" for device, count in removed.items()]
    return f" ({', '.join(changes)})"


def drift_words(model: ModelEstimate) -> str:
    """One model's current drift; empty when there is none and plans use the profile as it is."""
    if not model.drifting:
        recovered = f"{model.model} takes its expected time again; plans still use a correction of {model.correction:.2f}"
        return recovered if model.correction != 1.0 else ""
    if model.drift_ratio is None:
        drift = "deviated from its expected time and now runs too rarely to measure"
    else:
        drift = f"takes {model.drift_ratio:.2f} times its expected time"
    return f"{model.model} {drift}" + (f"; plans use a correction of {model.correction:.2f}" if model.correction != 1.0 else "")


def drift_event_words(event: DriftEvent) -> str:
    """One event of a model's drift."""
    used = "the expected time" if event.correction == 1.0 else f"a correction of {event.correction:.2f}"
    if event.ratio is None:
        return f"drift {event.change.value}: {event.model} has executed too few batches for minutes to tell; plans use {used}"
    return f"drift {event.change.value}: {event.model} takes {event.ratio:.2f} times its expected time; plans use {used}"


def knowledge_words(knowledge: PipelineKnowledge, *, advisory: bool) -> str:
    """What is known of a pipeline whose models have no profile, what is missing, and what to do."""
    models = ", ".join(map(_learnt_words, knowledge.models))
    if knowledge.enough:
        act = ". To act: set mode: active and run `themis reload`" if advisory else "; plans are carried out"
        return f"{knowledge.pipeline}: enough is known to act: {models}{act}"
    rate = f", {knowledge.seconds_missing:.0f} s at the present rate" if knowledge.seconds_missing is not None else "; there is no traffic"
    more = f"about {knowledge.requests_missing:.0f} more requests are needed{rate}"
    state = f"{knowledge.pipeline}: not enough is known to act, so it stays as it is"
    return f"{state}: {models}; {more}. Fix: send traffic, or run `themis profile`"


def _learnt_words(learnt: LearntTimes) -> str:
    if not learnt.enough:
        return f"{learnt.model} has {learnt.executions:.0f} of {ENOUGH_EXECUTIONS} executions"
    times = f"{learnt.per_batch_ms:.1f} ms a batch and {learnt.per_request_ms:.1f} ms a request"
    most = max((busy for busy, _ in learnt.contention), default=1)
    seen = f", with up to {most} busy instances" if most > 1 else ""
    return f"{learnt.model} takes {times} ({learnt.executions:.0f} executions{seen})"


_OPENINGS = {
    Reason.SURGE: "surge",
    Reason.SETTLE: "scaling down in place",
    Reason.STEADY: "steady",
    Reason.SCALE_OUT: "scaling out",
    Reason.SCALE_IN: "scaling in",
    Reason.REPLACE: "replacing a lost server",
    Reason.INFEASIBLE: "overload: the ready servers cannot carry the demand inside the SLO",
    Reason.HOLD_NO_DATA: "no change: no data",
    Reason.HOLD_STALE: "no change: readings are stale",
    Reason.HOLD_WARMUP: "no change: not enough history yet",
    Reason.HOLD_NO_SERVER: "no change: no server is ready",
}


def _opening(decision: Decision, learning: Collection[str]) -> str:
    """`learning`: the pipelines whose service times are not known yet; their capacity is a guess that says nothing."""
    opening = _OPENINGS[decision.reason]
    if decision.reason is Reason.STEADY and any(_is_overloaded(each) and each.pipeline not in learning for each in decision.evidence):
        opening = "overload, no further change"
    # The pipelines that explain the decision come first; sorting keeps the settings' order among equal ones.
    named = sorted(decision.evidence, key=_calmness)[:MOST_NAMED]
    words = [_unknown(each) if each.pipeline in learning else _numbers(each) for each in named]
    numbers = first_of(words, "; ", "pipelines", total=len(decision.evidence))
    return f"{opening}: {numbers}" if numbers else opening


def _calmness(evidence: PipelineEvidence) -> int:
    """0: it is overloaded, late or lacks servers. 1: something changes for it, or would but for a limit. 2: neither."""
    if _is_overloaded(evidence) or _misses_slo(evidence) or _will_miss_slo(evidence) or evidence.servers_missing:
        return 0
    return 1 if evidence.explains or evidence.servers_now != evidence.servers_desired else 2


def _will_miss_slo(evidence: PipelineEvidence) -> bool:
    return evidence.predicted_p99_ms is not None and evidence.predicted_p99_ms > evidence.slo_ms


def _misses_slo(evidence: PipelineEvidence) -> bool:
    return evidence.measured_p99_ms is not None and evidence.measured_p99_ms > evidence.slo_ms


def _is_overloaded(evidence: PipelineEvidence) -> bool:
    return round(evidence.demand_fast_rps) > round(evidence.capacity_rps)


def _unknown(evidence: PipelineEvidence) -> str:
    return f"{evidence.pipeline} demand {evidence.demand_fast_rps:.0f}/s, capacity not known yet, {evidence.unit}s {evidence.servers_words}"


def _numbers(evidence: PipelineEvidence) -> str:
    demand, capacity = f"demand {evidence.demand_fast_rps:.0f}/s", f"capacity {evidence.capacity_rps:.0f}/s"
    parts = [
        f"{evidence.pipeline} {demand} exceeds {capacity}" if _is_overloaded(evidence) else f"{evidence.pipeline} {demand}, {capacity}"
    ]
    parts.append(f"{evidence.unit}s {evidence.servers_words}")
    if evidence.limit_rps is not None and round(evidence.refused_rps):
        parts.append(f"refuses {evidence.refused_rps:.0f}/s beyond {evidence.limit_rps:.0f}/s")
    if evidence.holds_after_s:
        parts.append(f"SLO expected to hold in {evidence.holds_after_s:.1f} s")
    if _misses_slo(evidence) and not _is_overloaded(evidence):
        parts.append(f"SLO missed although capacity suffices: p99 {evidence.measured_p99_ms:.0f} ms exceeds {evidence.slo_ms:g} ms")
    elif _will_miss_slo(evidence) and not _is_overloaded(evidence):
        parts.append(f"predicted p99 {evidence.predicted_p99_ms:.0f} ms exceeds {evidence.slo_ms:g} ms")
    return ", ".join(parts)
