"""How many requests of each stage a request of its pipeline makes, measured: arrivals at the stage over those at the front door."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter

from themis_triton.core.config import PipelineConfig
from themis_triton.core.construction import quick_init

SAMPLE_S = 1.0
WINDOWS = (5, 8, 12, 20, 30, 60, 120)
"""In samples. Short ones show a large change within seconds, long ones a small difference, or that of a pipeline with few requests."""
INSIDE_S = 30.0
MIN_ENTERED = 15.0
SIGMAS = 3.0
STEP = 0.05
SMALLEST = 0.01
"""A measured number below this counts as this much."""
PRIOR_SAMPLES = 3
"""Few samples may look alike by chance: so many more are assumed in which the number of a request's calls varies as a geometric one."""

_AT_S = attrgetter("at_s")

CountArrivals = Callable[[str, float, float], float]
"""The arrivals of a model between two times."""


@quick_init
@dataclass(frozen=True, slots=True)
class CallSample:
    """What happened in the time up to `at_s`: requests that entered the pipeline, those of each stage, and the most that were inside.

    `before`: by stage, the requests that had not reached it yet at the end; `unsure`: how many more there may have been.
    """

    at_s: float
    entered: float
    calls: tuple[float, ...]
    inside: float
    before: tuple[float, ...]
    unsure: tuple[float, ...]


@quick_init
@dataclass(frozen=True, slots=True)
class CallHistory:
    """The numbers that plans use, by stage, and the samples behind them. `changed_s`: by stage, when what the number is from began."""

    per_request: tuple[float, ...]
    changed_s: tuple[float, ...]
    samples: tuple[CallSample, ...]
    inside: float = 0.0

    @property
    def since_s(self) -> float:
        """The end of the last sample."""
        return self.samples[-1].at_s

    @property
    def most_inside(self) -> float:
        """The most requests that were inside the pipeline lately."""
        lately = bisect_right(self.samples, self.since_s - INSIDE_S, key=_AT_S)
        return max([self.inside, *[sample.inside for sample in self.samples[lately:]]])


@dataclass(frozen=True, slots=True)
class Calls:
    """How calls are counted. `measurable`: models whose calls are all of this pipeline; `in_flight`: of a model, at the proxy now."""

    pipeline: PipelineConfig
    measurable: Container[str]
    count: CountArrivals
    in_flight: Callable[[str], float]


def observe_calls(history: CallHistory | None, calls: Calls, now_s: float) -> CallHistory:
    """The history with the arrivals until now. A number changes where the measured one differs by more than a step and its noise.

    Models that are not `measurable` keep the configured number.
    """
    pipeline = calls.pipeline
    inside = sum(map(calls.in_flight, pipeline.client_calls))
    if history is None:
        nothing = (0.0,) * len(pipeline.stages)
        start = CallSample(now_s, 0.0, nothing, inside, *_upstream(calls, pipeline.per_request))
        return CallHistory(pipeline.per_request, (now_s,) * len(pipeline.stages), (start,))
    inside = max(inside, history.inside)
    if now_s - history.since_s < SAMPLE_S:
        return CallHistory(history.per_request, history.changed_s, history.samples, inside)
    span = (history.since_s, now_s)
    counts = tuple(calls.count(stage, *span) for stage in pipeline.stages)
    sample = CallSample(now_s, calls.count(pipeline.front, *span), counts, inside, *_upstream(calls, history.per_request))
    samples = (*history.samples[-WINDOWS[-1] :], sample)
    used = [
        _updated(before, samples, s, changed_s) if stage in calls.measurable else (configured, changed_s)
        for s, (stage, before, configured, changed_s) in enumerate(
            zip(pipeline.stages, history.per_request, pipeline.per_request, history.changed_s, strict=True)
        )
    ]
    return CallHistory(tuple(number for number, _ in used), tuple(at_s for _, at_s in used), samples)


def own_models(pipelines: Iterable[PipelineConfig]) -> frozenset[str]:
    """The models whose calls are those of one pipeline, or of several with one front, and not its own arrivals."""
    users = Counter(model for _, model in {(each.front, model) for each in pipelines for model in (*each.stages, each.front)})
    return frozenset(model for model, count in users.items() if count == 1) - {each.front for each in pipelines}


def _upstream(calls: Calls, per_request: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """By stage, the requests that have entered and not reached it yet, and how many more there may be.

    Several calls in flight may be of one request or of as many. Inside a server the proxy does not see where a request is.
    """
    pipeline = calls.pipeline
    if pipeline.entry is not None:
        return (0.0,) * len(pipeline.stages), (calls.in_flight(pipeline.entry),) * len(pipeline.stages)
    before, unsure = [], []
    least, more = 0.0, 0.0
    for stage, each, turns in zip(pipeline.stages, per_request, pipeline.sequential, strict=True):
        in_flight = calls.in_flight(stage)
        before.append(least)
        unsure.append(more + in_flight if turns else more)
        own = in_flight if turns or each <= 1.0 else in_flight / each
        if stage != pipeline.front and stage not in calls.measurable:
            own = 0.0
        least, more = least + own, more + in_flight - own
    return tuple(before), tuple(unsure)


def _updated(used: float, samples: Sequence[CallSample], stage: int, changed_s: float) -> tuple[float, float]:
    """The measured number, to two digits, and when its window began, where it differs from the one in use beyond its noise.

    The shortest window that shows a difference counts, and later ones do not reach back behind it.
    """
    entered = calls = entered_squared = product = calls_squared = 0.0
    newest = samples[-1]
    for number, (after, start) in enumerate(pairwise(reversed(samples)), 1):
        if start.at_s < changed_s:
            break
        requests, made = after.entered - (after.before[stage] - start.before[stage]), after.calls[stage]
        entered, calls = entered + requests, calls + made
        entered_squared, product, calls_squared = entered_squared + requests**2, product + requests * made, calls_squared + made**2
        if number not in WINDOWS or entered < MIN_ENTERED:
            continue
        measured = calls / entered
        larger = max(measured, used)
        spread = max(0.0, calls_squared - 2.0 * measured * product + measured**2 * entered_squared)
        assumed = PRIOR_SAMPLES * larger * (1.0 + larger) * entered / number
        chance = SIGMAS * math.sqrt(number * (assumed + spread) / (PRIOR_SAMPLES + number))
        unsure = larger * max(newest.unsure[stage], start.unsure[stage])
        if abs(measured - used) > max(STEP * used, (chance + unsure) / entered):
            return max(SMALLEST, float(f"{measured:.2g}")), start.at_s
    return used, changed_s
