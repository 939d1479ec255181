"""Service times of models without a profile, learnt from Triton's counters, and whether they suffice to act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.estimate import LearntTimes, ModelEstimate, PipelineEstimate, PipelineKnowledge
from themis_triton.core.observation import BatchCounters, ServerReading, Snapshot
from themis_triton.core.service_times import ENOUGH_EXECUTIONS, executions_of, learnt, merged
from themis_triton.estimate.callers import Callee, callers_of, waits_between
from themis_triton.estimate.work import busy_levels

Batches = tuple[BatchCounters, ...]
ALONE = 1


@dataclass(frozen=True, slots=True)
class LearningHistory:
    """The executed batches of each model without a profile, by the number of busy instances that they met on their server.

    `opened`: by present server, the reading at which its interval began.
    """

    totals: dict[str, dict[int, Batches]] = field(default_factory=dict)
    opened: dict[str, ServerReading] = field(default_factory=dict)


def observe_batches(history: LearningHistory, snapshot: Snapshot, config: ThemisConfig) -> LearningHistory:
    """The history with one more snapshot. A server's counters count from its start, so that what it did before is known too.

    Of that, and of batches around a restart, it is not known how many instances were busy: they count as alone. A caller's times are
    learnt without its callees' queues.
    """
    models = [name for name, model in config.models.items() if model.profile.learnt_from is not None]
    if not models:
        return history
    servers, callers = {server.name: server for server in snapshot.servers}, callers_of(config)
    totals = {model: dict(levels) for model, levels in history.totals.items()}
    opened = {name: reading for name, reading in history.opened.items() if name in servers}
    for reading in snapshot.readings:
        if not reading.has_batches or reading.server not in servers:
            continue
        before = opened.get(reading.server)
        levels = busy_levels(before, reading, servers[reading.server], callers) if before is not None else {}
        if levels is None:
            continue  # The interval goes on.
        opened[reading.server] = reading
        for model in models:
            executed = _without_queues(_executed(model, before, reading), model, before, reading, callers)
            if executed:
                known, level = totals.setdefault(model, {}), max(ALONE, round(levels.get(model, ALONE)))
                known[level] = merged((known.get(level, ()), executed))
    return LearningHistory(totals, opened)


def knowledge_of(
    history: LearningHistory, config: ThemisConfig, models: Mapping[str, ModelEstimate], pipelines: Mapping[str, PipelineEstimate]
) -> tuple[PipelineKnowledge, ...]:
    """What is known of each pipeline with models without a profile."""
    times = {name: _learnt(name, history) for name, model in config.models.items() if model.profile.learnt_from is not None}
    learning = [pipeline for pipeline in config.pipelines if any(stage in times for stage in pipeline.stages)] if times else []
    return tuple(_knowledge(pipeline, times, models, pipelines[pipeline.name].per_request) for pipeline in learning)


def _learnt(model: str, history: LearningHistory) -> LearntTimes:
    levels = history.totals.get(model, {})
    times, contention = learnt(levels)
    return LearntTimes(model, sum(map(executions_of, levels.values())), times.per_request_ms, times.per_batch_ms, contention)


def _knowledge(
    pipeline: PipelineConfig, times: Mapping[str, LearntTimes], models: Mapping[str, ModelEstimate], per_request: Sequence[float]
) -> PipelineKnowledge:
    calls = dict(zip(pipeline.stages, per_request or pipeline.per_request, strict=True))
    own = tuple(times[stage] for stage in pipeline.stages if stage in times)
    missing = [(each.model, ENOUGH_EXECUTIONS - each.executions) for each in own if not each.enough]
    batch = {model: models[model].mean_batch or 1.0 for model, _ in missing}
    requests = max((count * batch[model] / max(calls[model], 1e-9) for model, count in missing), default=0.0)
    rates = [(count, models[model].completion_rps / batch[model]) for model, count in missing]
    seconds = max((count / rate for count, rate in rates), default=0.0) if all(rate > 0.0 for _, rate in rates) else None
    return PipelineKnowledge(pipeline.name, not missing, own, requests, seconds)


def _executed(model: str, before: ServerReading | None, after: ServerReading) -> Batches:
    old = before.models[model].batches if before is not None and model in before.models else ()
    return _increase(old, after.models[model].batches) if model in after.models else ()


def _without_queues(
    executed: Batches, model: str, before: ServerReading | None, after: ServerReading, callers: Mapping[str, tuple[Callee, ...]]
) -> Batches:
    if model not in callers:
        return executed
    waits = waits_between(before, after, {model: callers[model]})[model]
    factor = waits.without_queues(sum(batch.compute_us for batch in executed) / 1000.0)
    return tuple(BatchCounters(batch.size, batch.executions, factor * batch.compute_us) for batch in executed)


def _increase(before: Batches, after: Batches) -> Batches:
    """What was executed between two readings; all of the newer one where a counter fell, because the server or the model restarted."""
    old = {batch.size: batch for batch in before}
    sizes = {batch.size for batch in after}
    fell = any(b.executions < old[b.size].executions or b.compute_us < old[b.size].compute_us for b in after if b.size in old)
    if fell or not old.keys() <= sizes:
        return after
    increase = (
        BatchCounters(b.size, b.executions - old[b.size].executions, b.compute_us - old[b.size].compute_us) if b.size in old else b
        for b in after
    )
    return tuple(batch for batch in increase if batch.executions > 0.0)
