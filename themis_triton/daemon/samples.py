"""Samples of each pipeline for the journal: the ticks of a few seconds as one row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from themis_triton.core.attainment import NOTHING_ENDED, Ended, EndedRequests
from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.estimate import Estimate
from themis_triton.core.history import PipelineSample
from themis_triton.core.record import TickRecord

SAMPLE_S = 5
"""The width of a sample; the journal joins old ones into wider ones."""
MAX_TICK_S = 10.0
"""A longer time between two ticks was not observed."""


@dataclass(slots=True)
class _Sums:
    """One pipeline within a sample; all but the maxima are sums of values times seconds."""

    seconds: float = 0.0
    rate: float = 0.0
    peak_rps: float = 0.0
    demand: float = 0.0
    capacity: float = 0.0
    refused: float = 0.0
    servers: float = 0.0
    instances: float = 0.0
    traffic_s: float = 0.0
    late_s: float = 0.0
    p50: float = 0.0
    p50_s: float = 0.0
    p99_ms: float | None = None
    requests: EndedRequests = field(default_factory=EndedRequests)


class Samples:
    """Joins ticks into samples; each tick counts for the seconds since the one before it."""

    def __init__(self) -> None:
        self._start_s: float | None = None
        self._last_s: float | None = None
        self._sums: dict[str, _Sums] = {}

    def take(self, record: TickRecord, config: ThemisConfig, ended: Ended = NOTHING_ENDED) -> tuple[PipelineSample, ...]:
        """Add a tick and the requests that ended; returns the samples that it completes, one a pipeline, or none."""
        at_s = record.snapshot.at_s
        start_s = at_s // SAMPLE_S * SAMPLE_S
        complete: tuple[PipelineSample, ...] = ()
        if start_s != self._start_s:
            complete = tuple(self._ended())
            # Requests of a sample in which no time was observed count in the next one.
            carried = {name: _Sums(requests=sums.requests) for name, sums in self._sums.items() if not sums.seconds}
            self._start_s, self._sums = start_s, carried
        elapsed_s = at_s - self._last_s if self._last_s is not None else 0.0
        self._last_s = at_s
        observed = _Observed(record)
        for pipeline in config.pipelines:
            sums = self._sums.get(pipeline.name)
            if sums is None:
                sums = self._sums[pipeline.name] = _Sums()
            requests = ended.get(pipeline.name)
            if requests is not None:
                sums.requests += requests
            if 0.0 < elapsed_s <= MAX_TICK_S:
                _add(sums, observed, pipeline, elapsed_s)
        return complete

    def _ended(self) -> Iterator[PipelineSample]:
        for name, sums in self._sums.items():
            if sums.seconds:
                yield _sample(name, self._start_s or 0.0, sums)


class _Observed:
    """A tick's record, with its evidence by pipeline and its instances by model."""

    def __init__(self, record: TickRecord) -> None:
        self.estimate = record.estimate
        self.evidence = {each.pipeline: each for each in record.decision.evidence}
        self.instances: Counter[str] = Counter()
        for server in record.snapshot.servers:
            for model, state in server.models.items():
                self.instances[model] += state.instances


def _add(sums: _Sums, observed: _Observed, pipeline: PipelineConfig, seconds: float) -> None:
    estimate, evidence = observed.estimate.pipelines.get(pipeline.name), observed.evidence.get(pipeline.name)
    sums.seconds += seconds
    if evidence is not None:
        sums.demand += seconds * evidence.demand_fast_rps
        sums.capacity += seconds * evidence.capacity_rps
        sums.refused += seconds * evidence.refused_rps
        sums.servers += seconds * evidence.servers_now
    sums.instances += seconds * sum(observed.instances[stage] for stage in pipeline.stages)
    if estimate is None:
        return
    sums.rate += seconds * estimate.recent_rps
    sums.peak_rps = max(sums.peak_rps, estimate.recent_rps)
    if estimate.p99_ms is not None:
        sums.traffic_s += seconds
        sums.late_s += seconds if estimate.p99_ms > pipeline.slo_ms else 0.0
        sums.p99_ms = max(sums.p99_ms or 0.0, estimate.p99_ms)
    middle_ms = p50_ms(observed.estimate, pipeline)
    if middle_ms is not None:
        sums.p50 += seconds * middle_ms
        sums.p50_s += seconds


def _sample(name: str, start_s: float, sums: _Sums) -> PipelineSample:
    seconds = sums.seconds
    return PipelineSample(
        pipeline=name,
        at_s=start_s,
        width_s=SAMPLE_S,
        seconds=seconds,
        rate_rps=sums.rate / seconds,
        peak_rps=sums.peak_rps,
        demand_rps=sums.demand / seconds,
        capacity_rps=sums.capacity / seconds,
        refused_rps=sums.refused / seconds,
        servers=sums.servers / seconds,
        instances=sums.instances / seconds,
        traffic_s=sums.traffic_s,
        late_s=sums.late_s,
        p50_ms=sums.p50 / sums.p50_s if sums.p50_s else None,
        p99_ms=sums.p99_ms,
        requests=sums.requests.requests,
        late_requests=sums.requests.late,
    )


def p50_ms(estimate: Estimate, pipeline: PipelineConfig) -> float | None:
    """The median latency of a request, from those of the models that clients call; None without traffic in all of them."""
    if pipeline.entry is not None:
        front = estimate.models.get(pipeline.entry)
        return front.p50_ms if front is not None else None
    stages_ms = []
    for stage, calls, sequential in zip(pipeline.stages, pipeline.per_request, pipeline.sequential, strict=True):
        model = estimate.models.get(stage)
        if model is None or model.p50_ms is None:
            return None
        stages_ms.append(model.p50_ms * (calls if sequential else 1.0))
    return pipeline.total_ms(stages_ms)
