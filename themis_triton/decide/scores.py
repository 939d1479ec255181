"""Scores of predictions: what was observed of each pipeline in time in which nothing but a wrong prediction makes requests late."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from themis_triton.core.attainment import EndedRequests
from themis_triton.core.construction import quick_init
from themis_triton.core.prediction import PredictionScore
from themis_triton.core.replacing import replaced

SLICE_S = 10.0
"""Undisturbed time that is scored as a whole: two windows of the measured p99. A disturbed slice is dropped."""
MAX_SLICES = 6
"""A minute: predictions hold again once the objective was met over it."""
MIN_SLICES = 3
"""The worst slice is left out, because one stall of a machine is no wrong model; two remain."""
FAIL_FACTOR = 6.0
"""So many times as many late requests as were predicted: the burn rate from which the alert ThemisSloBurnSlow asks for an operator."""
MIN_LATE = 10.0
"""With fewer late requests, chance alone may make the fraction."""
MEMORY_S = 600.0
"""What was observed longer ago says nothing about now: the device, its neighbours or the requests may be others."""
SLOW_LAUNCH_FACTOR = 2.0
"""A launch is late beyond so many times its prediction, if that is longer than the time for which fewer servers must suffice anyway."""
SLOW_LAUNCHES = 2
"""The first launch of a model often takes longer; two in a row are no exception."""


@quick_init
@dataclass(frozen=True, slots=True)
class ScoreSlice:
    """Undisturbed time of one pipeline: sums over `seconds`, the largest rate and the smallest capacity.

    `p99_ratio_s`: the ratio of measured to predicted p99, times the `p99_s` seconds in which both were known.
    """

    start_s: float
    seconds: float = 0.0
    requests: float = 0.0
    late: float = 0.0
    rate_rps: float = 0.0
    capacity_rps: float = float("inf")
    p99_ratio_s: float = 0.0
    p99_s: float = 0.0

    def plus(self, seconds: float, ended: EndedRequests, rate_rps: float, capacity_rps: float, p99_ratio: float | None) -> ScoreSlice:
        """With one more tick."""
        return ScoreSlice(
            self.start_s,
            seconds=self.seconds + seconds,
            requests=self.requests + ended.requests,
            late=self.late + ended.late,
            rate_rps=max(self.rate_rps, rate_rps),
            capacity_rps=min(self.capacity_rps, capacity_rps),
            p99_ratio_s=self.p99_ratio_s + (seconds * p99_ratio if p99_ratio is not None else 0.0),
            p99_s=self.p99_s + (seconds if p99_ratio is not None else 0.0),
        )


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch whose server serves now: since when, its models, its predicted and observed duration (s).

    `keeps_until_s`: until when it speaks against giving servers up, because it was late; before `at_s` where it was not.
    """

    at_s: float
    models: frozenset[str]
    predicted_s: float
    observed_s: float
    keeps_until_s: float


@quick_init
@dataclass(frozen=True, slots=True)
class PipelineScores:
    """One pipeline's scored time, and whether its predictions fail.

    `current`: the slice under way. `last_s`: the tick before. `quiet_from_s`: when the next slice may begin. `exceeded_s`: when more
    arrived than the capacity, until what waited since then is served; None without. `corrections`: the factors of drift by stage.
    """

    slices: tuple[ScoreSlice, ...] = ()
    current: ScoreSlice | None = None
    last_s: float | None = None
    quiet_from_s: float = 0.0
    exceeded_s: float | None = None
    corrections: tuple[float, ...] = ()
    failing_since_s: float | None = None

    def with_slice(self, slice_: ScoreSlice, at_s: float, allowed: float) -> PipelineScores:
        """With a slice that has ended; the state changes here alone, or when all that was observed is forgotten."""
        slices = (*self.slices, slice_)[-MAX_SLICES:]
        failing = self.failing_since_s
        if failing is None and fails(slices, allowed):
            failing = at_s
        elif failing is not None and holds(slices, allowed):
            failing = None
        return replaced(self, slices=slices, current=None, failing_since_s=failing)

    def without_old(self, at_s: float) -> PipelineScores:
        """Without what was observed too long ago; predictions of which nothing is known are tried again."""
        if not self.slices or at_s - self.slices[0].start_s <= MEMORY_S:
            if self.slices or self.failing_since_s is None or at_s - self.failing_since_s <= MEMORY_S:
                return self
            return replaced(self, failing_since_s=None)
        return replaced(self, slices=tuple(each for each in self.slices if at_s - each.start_s <= MEMORY_S))


def fails(slices: tuple[ScoreSlice, ...], allowed: float) -> bool:
    """Whether far more requests were late than predicted, in more than one slice."""
    if len(slices) < MIN_SLICES:
        return False
    worst = max(range(len(slices)), key=lambda number: slices[number].late)
    others = [each for number, each in enumerate(slices) if number != worst]
    requests, late = sum(each.requests for each in others), sum(each.late for each in others)
    return late >= MIN_LATE and late > requests * min(FAIL_FACTOR * allowed, (1.0 + allowed) / 2.0)


def holds(slices: tuple[ScoreSlice, ...], allowed: float) -> bool:
    """Whether no more requests were late than predicted, over the whole window; none are where none ended."""
    requests, late = sum(each.requests for each in slices), sum(each.late for each in slices)
    return len(slices) >= MIN_SLICES and late <= allowed * requests


@dataclass(frozen=True, slots=True)
class Predictions:
    """The scores of all pipelines; servers in launch with the time since when, and launches that ended."""

    pipelines: Mapping[str, PipelineScores] = field(default_factory=dict)
    launching: Mapping[str, float] = field(default_factory=dict)
    launches: tuple[Launch, ...] = ()

    def interrupted(self) -> Predictions:
        """After a time without observations: slices under way are dropped."""
        return replaced(self, pipelines={name: replaced(each, current=None, last_s=None) for name, each in self.pipelines.items()})

    def launches_of(self) -> Callable[[Iterable[str]], Sequence[Launch]]:
        """Finds the launches with one of some models, oldest first."""
        numbers: dict[str, list[int]] = {}
        for number, launch in enumerate(self.launches):
            for model in launch.models:
                numbers.setdefault(model, []).append(number)

        def found(models: Iterable[str]) -> Sequence[Launch]:
            known = [numbers[model] for model in models if model in numbers]
            return [self.launches[number] for number in sorted(set().union(*known))] if known else ()

        return found

    def score(self, pipeline: str, launches: Sequence[Launch], allowed: float, at_s: float) -> PredictionScore:
        """The score of one pipeline at a time, from its slices that have ended and the launches with its models."""
        scores, seconds, requests, late, rate_rps, capacity_rps, p99_ratio_s, p99_s = (
            self.pipelines.get(pipeline, PipelineScores()),
            *_NO_SUMS,
        )
        for each in scores.slices:
            seconds, requests, late = seconds + each.seconds, requests + each.requests, late + each.late
            rate_rps, capacity_rps = max(rate_rps, each.rate_rps), min(capacity_rps, each.capacity_rps)
            p99_ratio_s, p99_s = p99_ratio_s + each.p99_ratio_s, p99_s + each.p99_s
        slow = [each.keeps_until_s > each.at_s for each in launches[-SLOW_LAUNCHES:]]
        return PredictionScore(
            pipeline=pipeline,
            holds=scores.failing_since_s is None,
            allowed_fraction=allowed,
            failing_since_s=scores.failing_since_s,
            seconds=seconds,
            requests=requests,
            late=late,
            rate_rps=rate_rps,
            capacity_rps=capacity_rps if scores.slices else 0.0,
            p99_ratio=p99_ratio_s / p99_s if p99_s else None,
            launch_ratio=launches[-1].observed_s / launches[-1].predicted_s if launches else None,
            launches_late=len(slow) == SLOW_LAUNCHES and all(slow) and at_s <= launches[-1].keeps_until_s,
        )


_NO_SUMS = (0.0, 0.0, 0.0, 0.0, float("inf"), 0.0, 0.0)
