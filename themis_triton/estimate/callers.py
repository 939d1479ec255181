"""Models that call others inside the server (BLS): what of their time they wait for these, by the counters of one server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from themis_triton.core.config import ThemisConfig
from themis_triton.core.observation import ModelCounters, ServerReading


@dataclass(frozen=True, slots=True)
class Callee:
    """A model that a caller calls. `per_request`: its calls per request of the caller, as configured; None: all of its calls are these."""

    model: str
    per_request: float | None


@dataclass(frozen=True, slots=True)
class Work:
    """What ended of a model in an interval; the sums of queue and compute times are over requests."""

    requests: float
    queue_ms: float
    compute_ms: float


NO_WORK = Work(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Waits:
    """What the requests of a caller spent at its callees in an interval: in their queues, and being served."""

    queue_ms: float
    compute_ms: float

    def without_queues(self, ms: float) -> float:
        """What of a caller's time would be left if its callees had no queues, as a factor.

        Calls that are made at the same time wait together, so that the sum of their waits may be more than the caller's: of its time goes
        no larger a part than that of the queues in the time at the callees.
        """
        whole_ms = self.queue_ms + self.compute_ms
        return max(1.0 - self.queue_ms / ms, self.compute_ms / whole_ms) if whole_ms > 0.0 and ms > 0.0 else 1.0

    def without_calls(self, ms: float) -> float:
        """The time in which a caller works itself, and occupies its device."""
        return max(0.0, ms - self.queue_ms - self.compute_ms)


def callers_of(config: ThemisConfig) -> dict[str, tuple[Callee, ...]]:
    """By caller, what it calls."""
    if not config.callees:
        return {}
    callers = Counter(callee for callees in config.callees.values() for callee in set(callees))
    clients = {model for pipeline in config.pipelines for model in pipeline.client_calls}
    ensembles = {stage for pipeline in config.pipelines if pipeline.entry not in (None, *config.models) for stage in pipeline.stages}
    called = {caller for caller in config.callees if caller in config.models}

    def callee(caller: str, model: str) -> Callee:
        alone = callers[model] == 1 and model not in clients and (model not in ensembles or caller in ensembles)
        return Callee(model, None if alone else _per_request(config, caller, model))

    return {caller: tuple(callee(caller, model) for model in dict.fromkeys(config.callees[caller])) for caller in called}


def _per_request(config: ThemisConfig, caller: str, callee: str) -> float:
    for pipeline in config.pipelines:
        calls = dict(zip(pipeline.stages, pipeline.per_request, strict=True))
        if caller in calls and callee in calls:
            return calls[callee] / calls[caller]
    return 1.0


def waits_between(before: ServerReading | None, after: ServerReading, callers: Mapping[str, tuple[Callee, ...]]) -> dict[str, Waits]:
    """By caller, its waits between two readings of a server; `before` None: since the server's start."""

    def work(model: str) -> Work:
        old = before.models.get(model, _NOTHING) if before is not None else _NOTHING
        return _increase(old, after.models.get(model, _NOTHING))

    return waits_of(callers, work)


_NOTHING = ModelCounters()


def _increase(old: ModelCounters, new: ModelCounters) -> Work:
    """Nothing where a counter fell, because the server or the model restarted."""
    requests, queue_us, compute_us = new.success - old.success, new.queue_us - old.queue_us, _compute_us(new) - _compute_us(old)
    return Work(requests, queue_us / 1000.0, compute_us / 1000.0) if min(requests, queue_us, compute_us) >= 0.0 else NO_WORK


def _compute_us(counters: ModelCounters) -> float:
    return counters.compute_input_us + counters.compute_infer_us + counters.compute_output_us


def waits_of(callers: Mapping[str, tuple[Callee, ...]], work: Callable[[str], Work]) -> dict[str, Waits]:
    """By caller, its waits in an interval in which `work` of each model ended on a server."""
    return {caller: _waits(work(caller), callees, work) for caller, callees in callers.items()}


def _waits(own: Work, callees: tuple[Callee, ...], work: Callable[[str], Work]) -> Waits:
    queue_ms = compute_ms = 0.0
    for callee in callees:
        ended = work(callee.model)
        part = 1.0
        if callee.per_request is not None:
            part = min(1.0, own.requests * callee.per_request / ended.requests) if ended.requests > 0.0 else 0.0
        queue_ms, compute_ms = queue_ms + part * ended.queue_ms, compute_ms + part * ended.compute_ms
    return Waits(queue_ms, compute_ms)
