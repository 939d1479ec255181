"""What reaches a pipeline's models besides its own requests: those of pipelines that share a model with it, and direct calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from themis_triton.core.config import PipelineConfig
from themis_triton.core.construction import quick_init
from themis_triton.core.estimate import OtherDemand, PipelineEstimate
from themis_triton.core.replacing import replaced
from themis_triton.estimate.calls import SIGMAS, STEP, own_models

LONG_WINDOW_S = 30.0  # of direct calls, which differ from the noise of the pipelines' calls only in the long run
PASSES = 3  # pipelines whose first models call each other in turn

Arrivals = Callable[[float], Mapping[str, float]]
"""The mean rates of the models' arrivals at the proxy over a window up to now."""
PerRequest = tuple[tuple[float, ...], ...]
"""By pipeline, the requests of each stage per request."""


@quick_init
@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of the rates that plans use; the newest rate is the larger of two. `history_s`: what has been observed.

    `long_s`: that in which direct calls differ from noise; `observed_s`: the windows of direct calls that the history covers.
    """

    recent_s: tuple[float, float]
    stable_s: float
    history_s: float
    long_s: float = field(init=False)
    observed_s: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Find the windows of direct calls."""
        object.__setattr__(self, "long_s", min(LONG_WINDOW_S, self.history_s))
        each = dict.fromkeys((self.long_s, self.stable_s, *self.recent_s))
        object.__setattr__(self, "observed_s", tuple(window_s for window_s in each if 0.0 < window_s <= self.history_s))


@quick_init
@dataclass(frozen=True, slots=True)
class _Caller:
    """Pipelines with one front, and the requests that a request of theirs makes of one model. `inside`: they pass no proxy."""

    front: str
    pipeline: str
    calls: float
    inside: bool


@dataclass(frozen=True, slots=True)
class Callers:
    """The callers of each model, for these pipelines and numbers of requests; `fronts`: the pipelines of each.

    `single`: models of which one front's pipelines are the only callers, that of no other, with that front and the calls per request:
    direct calls are all that may reach them besides. `entangled`: the pipelines with other models that are no front of their own.
    """

    pipelines: Sequence[PipelineConfig]
    per_request: PerRequest
    of: Mapping[str, tuple[_Caller, ...]]
    fronts: Mapping[str, tuple[str, ...]]
    single: tuple[tuple[str, str, float], ...]
    entangled: frozenset[str]


@dataclass(frozen=True, slots=True)
class Sharing:
    """What reaches models besides. `inside`: the most requests that were inside a pipeline lately, which may come out at once."""

    calls: Callers
    inside: Callable[[str], float]
    arrivals: Arrivals
    windows: Windows
    _own_rps: dict[tuple[str, float], float] = field(default_factory=dict, repr=False, compare=False)

    def own_rps(self, front: str, window_s: float) -> float:
        """The arrivals of a front that are its pipelines' own requests, not another pipeline's calls of that model."""
        key = (front, window_s)
        if key not in self._own_rps:
            self._own_rps[key] = self._find_own_rps(front, window_s, PASSES)
        return self._own_rps[key]

    def _find_own_rps(self, front: str, window_s: float, passes: int) -> float:
        arrivals, others = self._arrived_rps(front, window_s), self._client_calls(front, but=front)
        if not others or passes == 0:
            return arrivals
        explained = sum(caller.calls * self._find_own_rps(caller.front, window_s, passes - 1) for caller in others)
        # What chance alone may explain counts as its own, so that its later stages are not planned too small.
        return max(0.0, arrivals - max(0.0, explained - math.sqrt(2.0 * explained / window_s)))

    def pipelines_with_others(self) -> frozenset[str]:
        """The pipelines whose models other requests may reach: all but those whose own explain the arrivals in every window."""
        single = self.calls.single
        beyond = np.zeros(len(single), dtype=np.bool_)
        calls = np.array([each for _, _, each in single])
        for window_s in self.windows.observed_s if single else ():
            rates = self.arrivals(window_s)
            arrived = np.array([rates.get(model, 0.0) for model, _, _ in single])
            explained = calls * np.array([rates.get(front, 0.0) for _, front, _ in single])
            beyond |= arrived - explained > STEP * explained
        fronts = {single[number][1] for number in np.flatnonzero(beyond).tolist()}
        return self.calls.entangled.union(*(self.calls.fronts[front] for front in fronts))

    def others(self, front: str, model: str) -> tuple[OtherDemand, ...]:
        """The demands that reach a stage of the pipelines of a front besides their own."""
        fronts, callers = self.calls.fronts, self.calls.of[model]
        if model in fronts and all(caller.front == front for caller in callers):
            return ()  # the usual case
        parts = [self._part(caller, front, model) for caller in callers if caller.front != front]
        direct_rps = self._direct_rps(model) if model not in fronts else (0.0, 0.0)
        return tuple(part for part in (*parts, OtherDemand(None, *direct_rps)) if part.recent_rps > 0.0 or part.stable_rps > 0.0)

    def scales(self, front: str) -> tuple[float, float]:
        """The shares (recent, stable) of a front's arrivals that are its pipelines' own."""
        windows = (self.windows.recent_s[-1], self.windows.stable_s)
        recent, stable = (_share(self.own_rps(front, window_s), self._arrived_rps(front, window_s)) for window_s in windows)
        return recent, stable

    def _arrived_rps(self, model: str, window_s: float) -> float:
        return self.arrivals(window_s).get(model, 0.0)

    def _client_calls(self, model: str, *, but: str | None = None) -> list[_Caller]:
        return [caller for caller in self.calls.of.get(model, ()) if caller.front != but and not caller.inside]

    def _part(self, caller: _Caller, front: str, model: str) -> OtherDemand:
        rates = [self._part_rps(caller, front, model, window_s) for window_s in (*self.windows.recent_s, self.windows.stable_s)]
        return OtherDemand(caller.pipeline, max(rates[:-1]), rates[-1])

    def _part_rps(self, caller: _Caller, front: str, model: str, window_s: float) -> float:
        """A pipeline's calls of a model; at another's front no more than what is not that one's own."""
        called_rps = caller.calls * self.own_rps(caller.front, window_s)
        if model != front or caller.inside:
            return called_rps
        explained = sum(each.calls * self.own_rps(each.front, window_s) for each in self._client_calls(front, but=front))
        return called_rps * _share(self._arrived_rps(front, window_s) - self.own_rps(front, window_s), explained)

    def _direct_rps(self, model: str) -> tuple[float, float]:
        callers, windows = self._client_calls(model), self.windows
        surplus_rps = {window_s: rps for window_s in windows.observed_s if (rps := self._surplus_rps(model, callers, window_s)) > 0.0}
        if not surplus_rps:
            return 0.0, 0.0
        return max(surplus_rps.values()), max(surplus_rps.get(windows.long_s, 0.0), surplus_rps.get(windows.stable_s, 0.0))

    def _surplus_rps(self, model: str, callers: Sequence[_Caller], window_s: float) -> float:
        """The arrivals of a model that its callers do not explain, beyond the noise and what was inside the pipelines before."""
        arrivals = self._arrived_rps(model, window_s)
        if arrivals == 0.0:
            return 0.0
        called_rps = [caller.calls * self.own_rps(caller.front, window_s) for caller in callers]
        explained = sum(called_rps)
        if arrivals - explained <= STEP * explained:
            return 0.0  # the usual case, whatever chance and those inside explain besides
        waiting = sum(caller.calls * max(map(self.inside, self.calls.fronts[caller.front])) for caller in callers)
        spread = sum(caller.calls * rps for caller, rps in zip(callers, called_rps, strict=True))
        chance = SIGMAS * math.sqrt((arrivals + spread) / window_s)
        return max(0.0, arrivals - explained - waiting / window_s - max(STEP * explained, chance))


def callers_of(known: Callers | None, pipelines: Sequence[PipelineConfig], per_request: PerRequest) -> Callers:
    """Who calls which model; what is known already for the same pipelines and numbers stays.

    Pipelines with one front are one demand: of their calls of a model, the most a request count.
    """
    if known is not None and known.pipelines is pipelines and known.per_request == per_request:
        return known
    callers: dict[str, dict[str, _Caller]] = {}
    for pipeline, counts in zip(pipelines, per_request, strict=True):
        for model, calls in zip(pipeline.stages, counts, strict=True):
            before = callers.setdefault(model, {}).get(pipeline.front)
            if before is None or before.calls < calls:
                callers[model][pipeline.front] = _Caller(pipeline.front, pipeline.name, calls, pipeline.entry is not None)
    fronts: dict[str, tuple[str, ...]] = {}
    for pipeline in pipelines:
        fronts[pipeline.front] = (*fronts.get(pipeline.front, ()), pipeline.name)
    own = {model: next(iter(each.values())) for model, each in callers.items() if len(each) == 1}
    pure = {front for front in fronts if front not in callers or (front in own and own[front].front == front)}
    single = {model: each for model, each in own.items() if model not in fronts and each.front in pure and not each.inside}
    plain = single.keys() | (pure & own.keys())
    entangled = frozenset(pipeline.name for pipeline in pipelines if not plain.issuperset(pipeline.stages))
    return Callers(
        pipelines,
        per_request,
        {model: tuple(each.values()) for model, each in callers.items()},
        fronts,
        tuple((model, each.front, each.calls) for model, each in single.items()),
        entangled,
    )


def with_others(estimate: PipelineEstimate, pipeline: PipelineConfig, sharing: Sharing) -> PipelineEstimate:
    """The estimate with its own requests alone, and what else reaches its stages."""
    others = tuple(sharing.others(pipeline.front, model) for model in pipeline.stages)
    if not any(others):
        return estimate
    recent, stable = sharing.scales(pipeline.front)
    return replaced(
        estimate,
        recent_rps=recent * estimate.recent_rps,
        newest_rps=recent * estimate.newest_rps,
        burst_rps=recent * estimate.burst_rps,
        growth_rps_per_s=recent * estimate.growth_rps_per_s,
        stable_rps=stable * estimate.stable_rps,
        trend_rps_per_s=stable * estimate.trend_rps_per_s,
        trend_base_rps=stable * estimate.trend_base_rps,
        per_second=tuple(stable * count for count in estimate.per_second),
        others=others,
    )


def other_calls(pipelines: Sequence[PipelineConfig]) -> Mapping[str, Collection[tuple[PipelineConfig, int]]]:
    """By front, the pipelines whose clients call it as one of their stages, with the stage; fronts without any are left out."""
    fronts, called = {pipeline.front for pipeline in pipelines}, dict[str, dict[str, tuple[PipelineConfig, int]]]()
    for pipeline in pipelines:
        for model in fronts.intersection(pipeline.stages) if pipeline.entry is None else ():
            if model != pipeline.front:
                called.setdefault(model, {}).setdefault(pipeline.front, (pipeline, pipeline.stages.index(model)))
    return {front: tuple(calls.values()) for front, calls in called.items()}


@dataclass(frozen=True, slots=True)
class Relations:
    """Of these pipelines, the models that `own_models` finds, and `other_calls`."""

    pipelines: Sequence[PipelineConfig]
    own: frozenset[str]
    others: Mapping[str, Collection[tuple[PipelineConfig, int]]]


def relations_of(known: Relations | None, pipelines: Sequence[PipelineConfig]) -> Relations:
    """The relations of pipelines; those that are known already for the same ones stay."""
    if known is not None and known.pipelines is pipelines:
        return known
    return Relations(pipelines, own_models(pipelines), other_calls(pipelines))


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else 1.0
