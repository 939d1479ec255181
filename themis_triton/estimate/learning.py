"""Service times of models without a profile, learnt from Triton's counters, and whether they suffice to act."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.estimate import LearntTimes, ModelEstimate, PipelineEstimate, PipelineKnowledge
from themis_triton.core.observation import BatchCounters, Snapshot
from themis_triton.core.service_times import ENOUGH_EXECUTIONS, executions_of, fitted

Batches = tuple[BatchCounters, ...]


@dataclass(frozen=True, slots=True)
class LearningHistory:
    """The executed batches of each model without a profile: of all servers so far, and at the last reading of each present server."""

    totals: dict[str, Batches] = field(default_factory=dict)
    last: dict[tuple[str, str], Batches] = field(default_factory=dict)


def observe_batches(history: LearningHistory, snapshot: Snapshot, config: ThemisConfig) -> LearningHistory:
    """The history with one more snapshot. A server's counters count from its start, so that what it did before is known too."""
    models = [name for name, model in config.models.items() if model.profile.learnt_from is not None]
    if not models:
        return history
    totals, last = dict(history.totals), dict(history.last)
    for reading in snapshot.readings:
        for model in models if reading.error is None and reading.batches_error is None else ():
            now, key = reading.models[model].batches if model in reading.models else (), (reading.server, model)
            if now and now != last.get(key):
                totals[model] = _sum(totals.get(model, ()), _increase(last.get(key, ()), now))
                last[key] = now
    present = {server.name for server in snapshot.servers}
    return LearningHistory(totals, {key: batches for key, batches in last.items() if key[0] in present})


def knowledge_of(
    history: LearningHistory, config: ThemisConfig, models: Mapping[str, ModelEstimate], pipelines: Mapping[str, PipelineEstimate]
) -> tuple[PipelineKnowledge, ...]:
    """What is known of each pipeline with models without a profile."""
    learnt = {name: _learnt(name, history) for name, model in config.models.items() if model.profile.learnt_from is not None}
    learning = [pipeline for pipeline in config.pipelines if any(stage in learnt for stage in pipeline.stages)] if learnt else []
    return tuple(_knowledge(pipeline, learnt, models, pipelines[pipeline.name].per_request) for pipeline in learning)


def _learnt(model: str, history: LearningHistory) -> LearntTimes:
    batches = history.totals.get(model, ())
    times = fitted(batches)
    return LearntTimes(model, executions_of(batches), times.per_request_ms, times.per_batch_ms)


def _knowledge(
    pipeline: PipelineConfig, learnt: Mapping[str, LearntTimes], models: Mapping[str, ModelEstimate], per_request: Sequence[float]
) -> PipelineKnowledge:
    calls = dict(zip(pipeline.stages, per_request or pipeline.per_request, strict=True))
    own = tuple(learnt[stage] for stage in pipeline.stages if stage in learnt)
    missing = [(each.model, ENOUGH_EXECUTIONS - each.executions) for each in own if not each.enough]
    batch = {model: models[model].mean_batch or 1.0 for model, _ in missing}
    requests = max((count * batch[model] / max(calls[model], 1e-9) for model, count in missing), default=0.0)
    rates = [(count, models[model].completion_rps / batch[model]) for model, count in missing]
    seconds = max((count / rate for count, rate in rates), default=0.0) if all(rate > 0.0 for _, rate in rates) else None
    return PipelineKnowledge(pipeline.name, not missing, own, requests, seconds)


def _increase(before: Batches, after: Batches) -> Batches:
    """What was executed between two readings; all of the newer one where a counter fell, because the server or the model restarted."""
    old = {batch.size: batch for batch in before}
    sizes = {batch.size for batch in after}
    fell = any(b.executions < old[b.size].executions or b.compute_us < old[b.size].compute_us for b in after if b.size in old)
    if fell or not old.keys() <= sizes:
        return after
    return tuple(
        BatchCounters(b.size, b.executions - old[b.size].executions, b.compute_us - old[b.size].compute_us) if b.size in old else b
        for b in after
    )


def _sum(one: Iterable[BatchCounters], other: Iterable[BatchCounters]) -> Batches:
    sums: dict[int, tuple[float, float]] = {}
    for batch in (*one, *other):
        executions, compute_us = sums.get(batch.size, (0.0, 0.0))
        sums[batch.size] = executions + batch.executions, compute_us + batch.compute_us
    return tuple(BatchCounters(size, *sums[size]) for size in sorted(sums))
