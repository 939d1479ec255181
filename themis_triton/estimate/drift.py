"""Drift: service times that differ from the profile, when they are reported, and by how much plans are corrected."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter

from themis_triton.core.config import ThemisConfig, ThroughputRule
from themis_triton.core.construction import quick_init
from themis_triton.core.estimate import DriftChange, DriftEvent
from themis_triton.core.observation import Snapshot
from themis_triton.core.policy import PolicyConfig
from themis_triton.estimate.work import WorkHistory, WorkSample, observe

MIN_SAMPLES = 3
CERTAIN_ERRORS = 2.0
"""Drift begins when the ratio is this many standard errors beyond the bound."""
STILL_STEPS = 0.75
"""A correction stays until the ratio is this many steps deviation, so that rounding does not flicker."""
AGREED_STEPS = 1.5
"""A correction falls when the largest recent candidate is less than this many steps above the present one."""


FORGOTTEN_S = 600.0
"""Without enough batches for so long nothing is known of a model's drift any more: what slowed it may have ended with the traffic."""
COMPARED_A_TICK = 100
"""Of more models, those without news are compared in turn."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Measured over expected time of a model's batches, with its standard error."""

    ratio: float
    error: float


@quick_init
@dataclass(frozen=True, slots=True)
class DriftState:
    """One model's state. `candidates`: recent corrections by the ratio alone, with their times."""

    drifting: bool = False
    correction: float = 1.0
    candidates: tuple[tuple[float, float], ...] = ()


NO_DRIFT = DriftState()
_END_S = attrgetter("end_s")


@dataclass(frozen=True, slots=True)
class Drift:
    """One model's ratio of measured over expected time, None where too few batches were executed, and what follows from it."""

    ratio: float | None = None
    state: DriftState = NO_DRIFT


UNKNOWN = Drift()


@dataclass(frozen=True, slots=True)
class DriftHistory:
    """The state of drift detection."""

    work: WorkHistory = field(default_factory=WorkHistory)
    drift_states: dict[str, DriftState] = field(default_factory=dict)
    drifts: Mapping[str, Drift] = field(default_factory=dict)
    ticks: int = 0


def compared(
    history: DriftHistory, snapshot: Snapshot, config: ThemisConfig
) -> tuple[DriftHistory, dict[str, Drift], tuple[DriftEvent, ...]]:
    """The next history, each model's drift, and the changes of drift.

    Replicas with cores are not compared: a core is not an instance. Nor are models whose service times are not learnt yet. Of more than
    `COMPARED_A_TICK` models, those without newly counted batches are compared in turn.
    """
    if config.planning.throughput is not ThroughputRule.INSTANCES:
        return history, {}, ()
    work = observe(history.work, snapshot, config)
    rounds, events = -(-len(config.models) // COMPARED_A_TICK), []
    drifts = {name: history.drifts[name] for name in config.models if name in history.drifts} if rounds > 1 else {}
    drift_states = {name: history.drift_states[name] for name in drifts}
    for number, (name, model) in enumerate(config.models.items()):
        if (number + history.ticks) % rounds and name in drifts and not _has_news(name, history.work, work):
            continue
        before = history.drift_states.get(name, NO_DRIFT)
        ratio = ratio_of(work.samples.get(name, ()), snapshot.at_s, config.policy) if not model.profile.is_guess else None
        exact = model.profile.mean_table is not None
        known = before if ratio is None else drift_state(before, ratio, snapshot.at_s, config.policy, exact=exact)
        after = NO_DRIFT if _is_forgotten(known, snapshot.at_s) else known
        drift_states[name] = after
        drifts[name] = Drift(ratio.ratio if ratio is not None else None, after)
        seen = ratio.ratio if ratio is not None else None
        events += [DriftEvent(name, change, seen, after.correction) for change in _changes(before, after)]
    return DriftHistory(work, drift_states, drifts if rounds > 1 else {}, history.ticks + 1), drifts, tuple(events)


def _has_news(model: str, before: WorkHistory, work: WorkHistory) -> bool:
    """Whether batches of a model were counted since the last tick."""
    old, new = before.samples.get(model, ()), work.samples.get(model, ())
    if new is old:
        return False
    return bool(new) and (not old or new[-1] is not old[-1])


def ratio_of(samples: Sequence[WorkSample], now_s: float, policy: PolicyConfig) -> Ratio | None:
    """Ratio over the drift window, extended until it holds `min_batches`; None where the last minute holds fewer.

    The ratio of sums, with the standard error of the ratio estimator (Cochran, Sampling Techniques, chapter 6).
    """
    first = bisect_right(samples, now_s - policy.drift.window_s, key=_END_S)
    executions = sum([sample.executions for sample in samples[first:][::-1]])
    while first > 0 and (executions < policy.drift.min_batches or len(samples) - first < MIN_SAMPLES):
        first -= 1
        executions += samples[first].executions
    count = len(samples) - first
    if executions < policy.drift.min_batches or count < MIN_SAMPLES:
        return None
    newest = samples[first:][::-1]
    measured_ms, expected_ms = [sample.measured_ms for sample in newest], [sample.expected_ms for sample in newest]
    total_ms = sum(expected_ms)
    ratio = sum(measured_ms) / total_ms
    squares = sum([(measured - ratio * expected) ** 2 for measured, expected in zip(measured_ms, expected_ms, strict=True)])
    return Ratio(ratio, math.sqrt(squares * count / (count - 1)) / total_ms)


def drift_state(before: DriftState, measured: Ratio, now_s: float, policy: PolicyConfig, *, exact: bool) -> DriftState:
    """The next drift state. A correction rises at once; it falls once all candidates of `drift.stabilization_s` are lower.

    `exact`: the profile holds means. Where it holds a percentile, faster batches are expected and no drift.
    """
    drifting = _drifts(measured, policy, exact=exact, already=before.drifting)
    candidate = _candidate(measured.ratio, before.correction, policy) if drifting else 1.0
    older = bisect_right(before.candidates, now_s - policy.drift.stabilization_s, key=itemgetter(0))
    remembered = (*before.candidates[max(0, older - 1) :], (now_s, candidate))
    correction = max(before.correction, candidate)
    largest = max(map(itemgetter(1), remembered))
    if remembered[0][0] <= now_s - policy.drift.stabilization_s and largest - candidate < AGREED_STEPS * policy.drift.step_fraction:
        correction = largest
    return DriftState(drifting, correction, remembered)


def _drifts(measured: Ratio, policy: PolicyConfig, *, exact: bool, already: bool) -> bool:
    """Whether the ratio is beyond the bound with certainty, or not yet back within half of it."""
    deviation = measured.ratio - 1.0
    if not exact and deviation < 0.0:
        return False
    if already:
        return abs(deviation) >= policy.drift.report_fraction / 2.0
    return abs(deviation) - CERTAIN_ERRORS * measured.error > policy.drift.report_fraction


def _candidate(ratio: float, present: float, policy: PolicyConfig) -> float:
    """The correction for a ratio, in whole steps and inside the bounds. Below 1 it leaves the report fraction as a margin."""
    bounded = ratio if ratio > 1.0 else min(1.0, ratio + policy.drift.report_fraction)
    bounded = min(max(bounded, 1.0 / policy.drift.max_factor), policy.drift.max_factor)
    step = policy.drift.step_fraction
    if abs(bounded - present) < STILL_STEPS * step:
        return present
    return min(max(round(round(bounded / step) * step, 6), 1.0 / policy.drift.max_factor), policy.drift.max_factor)


def _is_forgotten(state: DriftState, now_s: float) -> bool:
    return bool(state.candidates) and now_s - state.candidates[-1][0] > FORGOTTEN_S


def _changes(before: DriftState, after: DriftState) -> Iterable[DriftChange]:
    if after.drifting and not before.drifting:
        yield DriftChange.BEGAN
    elif before.drifting and not after.drifting:
        yield DriftChange.ENDED
    elif after.correction != before.correction:
        yield DriftChange.CHANGED
