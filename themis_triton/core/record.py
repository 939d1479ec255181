"""One tick, whole; and the one function that turns it into a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from themis_triton.core.action import Action, ActionKind, Outcome, OutcomeKind, Plan
from themis_triton.core.decision import Decision, PipelineEvidence, Reason
from themis_triton.core.estimate import DriftEvent, Estimate, ModelEstimate
from themis_triton.core.observation import Snapshot


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
    """The tick in one sentence, for log line, status, journal and tests alike."""
    decision = record.decision
    parts = [_opening(decision)]
    if decision.detail:
        parts.append(decision.detail)
    if record.started:
        verb = "would " if record.advisory else ""
        parts.append(verb + ", ".join(describe(action) for action in record.started))
    elif decision.clamps:
        parts.append(decision.clamps[-1].sentence)
    parts += [
        f"{describe(o.action)} {o.kind.value.replace('_', ' ')}: {o.detail}" for o in record.outcomes if o.kind is not OutcomeKind.DONE
    ]
    return "; ".join(parts)


def describe(action: Action) -> str:
    """One action in a few words."""
    match action.kind:
        case ActionKind.LAUNCH:
            held = ", ".join(f"{name}×{state.instances}" for name, state in sorted(action.models.items()))
            return f"launch {action.server} on {action.slot} with {held}"
        case ActionKind.RETIRE:
            return f"retire {action.server}"
        case ActionKind.REBATCH:
            before, after = action.before, action.after
            return f"rebatch {action.model} on {action.server} {before and before.max_batch}→{after and after.max_batch}"
        case ActionKind.GROW | ActionKind.SHRINK:
            before, after = action.before, action.after
            return f"{action.kind.value} {action.model} on {action.server} {before and before.instances}→{after and after.instances}"


def drift_words(model: ModelEstimate) -> str:
    """What is to be said of one model's drift as it stands; empty when there is none and plans count with the profile."""
    if not model.drifting:
        still = f"{model.model} runs as its profile says again, plans still count with {model.correction:.2f}"
        return still if model.correction != 1.0 else ""
    if model.drift_ratio is None:
        runs = "ran otherwise than its profile says and runs too rarely now to tell"
    else:
        runs = f"runs {model.drift_ratio:.2f} times as long as its profile says"
    return f"{model.model} {runs}" + (f", plans count with {model.correction:.2f}" if model.correction != 1.0 else "")


def drift_event_words(event: DriftEvent) -> str:
    """What happened to one model's drift."""
    counted = "the profile" if event.correction == 1.0 else f"{event.correction:.2f}"
    runs = f"{event.model} runs {event.ratio:.2f} times as long as its profile says"
    return f"drift {event.change.value}: {runs}, plans count with {counted}"


_OPENINGS = {
    Reason.SURGE: "surge",
    Reason.SETTLE: "settling",
    Reason.STEADY: "steady",
    Reason.SCALE_OUT: "scaling out",
    Reason.SCALE_IN: "scaling in",
    Reason.REPLACE: "replacing a lost server",
    Reason.INFEASIBLE: "demand exceeds what the ready servers can carry inside the SLO",
    Reason.HOLD_NO_DATA: "holding: no data",
    Reason.HOLD_STALE: "holding: readings are stale",
    Reason.HOLD_WARMUP: "holding: not enough history yet",
    Reason.HOLD_NO_SERVER: "holding: no server is ready",
}


def _opening(decision: Decision) -> str:
    numbers = ", ".join(_numbers(evidence) for evidence in decision.evidence)
    opening = _OPENINGS[decision.reason]
    return f"{opening}: {numbers}" if numbers else opening


def _numbers(e: PipelineEvidence) -> str:
    after = f", inside the SLO again in {e.holds_after_s:.1f} s" if e.holds_after_s else ""
    return f"{e.pipeline} needs {e.demand_fast_rps:.0f}/s of {e.capacity_rps:.0f}/s ({e.servers_now}→{e.servers_wanted} servers){after}"
