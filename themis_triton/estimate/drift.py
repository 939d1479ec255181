"""Drift: a model whose batches take another time than its profile says; when that is reported, and by how much plans are corrected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from themis_triton.core.config import ThemisConfig, ThroughputRule
from themis_triton.core.estimate import DriftChange, DriftEvent, ModelEstimate
from themis_triton.core.observation import Snapshot
from themis_triton.core.policy import PolicyConfig
from themis_triton.estimate.work import WorkHistory, WorkSample, observe

MIN_SAMPLES = 3
CERTAIN_ERRORS = 2.0
"""Standard errors that the ratio must lie beyond the bound for drift to begin."""
STILL_STEPS = 0.75
"""A correction stands until the ratio is so many steps away from it: the rounding must not flicker."""
AGREED_STEPS = 1.5
"""A correction falls once the largest that was wanted lately is less than so many steps above what is wanted now."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Measured over expected time of a model's batches, with its standard error."""

    ratio: float
    error: float


@dataclass(frozen=True, slots=True)
class DriftState:
    """What is held of one model. `wanted`: the corrections asked for lately, each with its time."""

    drifting: bool = False
    correction: float = 1.0
    wanted: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class DriftHistory:
    """What drift detection remembers."""

    work: WorkHistory = field(default_factory=WorkHistory)
    drift_states: dict[str, DriftState] = field(default_factory=dict)


def judged(
    history: DriftHistory, models: dict[str, ModelEstimate], snapshot: Snapshot, config: ThemisConfig
) -> tuple[DriftHistory, dict[str, ModelEstimate], tuple[DriftEvent, ...]]:
    """Take in a snapshot; the estimates with what it says about drift, and what changed.

    Profiles of replicas with cores are not compared: their busy instances mean something else.
    """
    if config.planning.throughput is not ThroughputRule.INSTANCES:
        return history, models, ()
    work = observe(history.work, snapshot, config)
    drift_states, estimates, events = {}, {}, []
    for name, estimate in models.items():
        before = history.drift_states.get(name, DriftState())
        ratio = ratio_of(work.samples.get(name, ()), snapshot.at_s, config.policy)
        exact = config.models[name].profile.mean_table is not None
        after = before if ratio is None else drift_state(before, ratio, snapshot.at_s, config.policy, exact=exact)
        drift_states[name] = after
        found = ratio.ratio if ratio is not None else None
        estimates[name] = replace(estimate, drift_ratio=found, drifting=after.drifting, correction=after.correction)
        events += [DriftEvent(name, change, found, after.correction) for change in _changes(before, after) if found is not None]
    return DriftHistory(work, drift_states), estimates, tuple(events)


def ratio_of(samples: Sequence[WorkSample], now_s: float, policy: PolicyConfig) -> Ratio | None:
    """Over the drift window, or as far back as the fewest batches reach; None when there are not so many in the last minute.

    The ratio of sums, and the standard error of a ratio estimator with the samples as its samples.
    """
    taken: list[WorkSample] = []
    executions = 0.0
    for sample in reversed(samples):
        if sample.end_s <= now_s - policy.drift.window_s and executions >= policy.drift.min_batches and len(taken) >= MIN_SAMPLES:
            break
        taken.append(sample)
        executions += sample.executions
    if executions < policy.drift.min_batches or len(taken) < MIN_SAMPLES:
        return None
    expected_ms = sum(sample.expected_ms for sample in taken)
    ratio = sum(sample.measured_ms for sample in taken) / expected_ms
    squares = sum((sample.measured_ms - ratio * sample.expected_ms) ** 2 for sample in taken)
    return Ratio(ratio, math.sqrt(squares * len(taken) / (len(taken) - 1)) / expected_ms)


def drift_state(before: DriftState, found: Ratio, now_s: float, policy: PolicyConfig, *, exact: bool) -> DriftState:
    """The next drift state. A correction rises at once; it falls once the corrections of `drift_stabilization_s` are all lower.

    `exact`: the profile holds means. Where it holds a percentile, batches that are faster than it are what is expected, and no drift.
    """
    drifting = _drifts(found, policy, exact=exact, already=before.drifting)
    wanted = _wanted(found.ratio, before.correction, policy) if drifting else 1.0
    older = [entry for entry in before.wanted if entry[0] <= now_s - policy.drift.stabilization_s]
    newer = [entry for entry in before.wanted if entry[0] > now_s - policy.drift.stabilization_s]
    remembered = (*older[-1:], *newer, (now_s, wanted))
    correction = max(before.correction, wanted)
    largest = max(value for _, value in remembered)
    if remembered[0][0] <= now_s - policy.drift.stabilization_s and largest - wanted < AGREED_STEPS * policy.drift.step_fraction:
        correction = largest
    return DriftState(drifting, correction, remembered)


def _drifts(found: Ratio, policy: PolicyConfig, *, exact: bool, already: bool) -> bool:
    """Beyond the bound for certain, or not yet back within half of it."""
    away = found.ratio - 1.0
    if not exact and away < 0.0:
        return False
    if already:
        return abs(away) >= policy.drift.report_fraction / 2.0
    return abs(away) - CERTAIN_ERRORS * found.error > policy.drift.report_fraction


def _wanted(ratio: float, present: float, policy: PolicyConfig) -> float:
    """The correction for a ratio, in whole steps and inside the bounds. Below 1 it leaves the report fraction as a margin."""
    bounded = ratio if ratio > 1.0 else min(1.0, ratio + policy.drift.report_fraction)
    bounded = min(max(bounded, 1.0 / policy.drift.max_factor), policy.drift.max_factor)
    step = policy.drift.step_fraction
    if abs(bounded - present) < STILL_STEPS * step:
        return present
    return min(max(round(round(bounded / step) * step, 6), 1.0 / policy.drift.max_factor), policy.drift.max_factor)


def _changes(before: DriftState, after: DriftState) -> Iterable[DriftChange]:
    if after.drifting and not before.drifting:
        yield DriftChange.BEGAN
    elif before.drifting and not after.drifting:
        yield DriftChange.ENDED
    elif after.correction != before.correction:
        yield DriftChange.CHANGED
