"""Service times that a tick has learnt become those of the settings, and are reported when they suffice to act."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import structlog

from themis_triton.core.config import LatencyTable, Mode, ModelConfig, ThemisConfig
from themis_triton.core.estimate import LearntTimes, PipelineKnowledge
from themis_triton.core.record import TickRecord, knowledge_words
from themis_triton.core.service_times import ENOUGH_EXECUTIONS, ServiceTimes, slowdown
from themis_triton.core.status import StatusEvent

log = structlog.get_logger()
REFIT_FACTOR = 2.0
"""Service times are fitted anew once so many times as many batches have been executed, or a new number of instances was busy."""
LEARNT = "service_times_learnt"


@dataclass(slots=True)
class Learning:
    """What was reported of each pipeline already."""

    reported: dict[str, bool] = field(default_factory=dict)

    def events(self, record: TickRecord, mode: Mode) -> tuple[StatusEvent, ...]:
        """One event for each pipeline that is known enough since this tick; the log also has those that are not yet."""
        events = []
        for knowledge in record.estimate.knowledge:
            if self.reported.get(knowledge.pipeline) is knowledge.enough:
                continue
            self.reported[knowledge.pipeline] = knowledge.enough
            words = knowledge_words(knowledge, advisory=mode is Mode.ADVISORY)
            log.info(LEARNT if knowledge.enough else "service_times_missing", pipeline=knowledge.pipeline, message=words)
            if knowledge.enough:
                events.append(StatusEvent(record.snapshot.at_s, f"{LEARNT}-{knowledge.pipeline}", (LEARNT,), words))
        return tuple(events)


def with_learnt_times(config: ThemisConfig, knowledge: tuple[PipelineKnowledge, ...]) -> ThemisConfig:
    """The settings with the service times that were learnt; the same settings where those that they have are as good."""
    learnt = {each.model: each for pipeline in knowledge for each in pipeline.models}
    better = {name: _with_times(config.models[name], each) for name, each in learnt.items() if _is_better(config.models[name], each)}
    return replace(config, models=config.models | better) if better else config


def keep_learnt_times(edited: ThemisConfig, before: ThemisConfig, planned: ThemisConfig) -> ThemisConfig:
    """Edited settings with the service times that `planned` has learnt, for models whose profile was not edited since `before`."""
    kept = {
        name: replace(model, profile=planned.models[name].profile)
        for name, model in edited.models.items()
        if name in before.models and model.profile == before.models[name].profile and planned.models[name].profile.learnt_from
    }
    return replace(edited, models=edited.models | kept) if kept else edited


def _is_better(model: ModelConfig, learnt: LearntTimes) -> bool:
    known = model.profile.learnt_from
    if known is None or learnt.executions < ENOUGH_EXECUTIONS:
        return False
    new = {busy for busy, _ in learnt.contention} - model.profile.learnt_at
    return learnt.executions >= REFIT_FACTOR * known or bool(new)


def _with_times(model: ModelConfig, learnt: LearntTimes) -> ModelConfig:
    table, times = model.profile.table, ServiceTimes(learnt.per_request_ms, learnt.per_batch_ms)
    factors = [slowdown(learnt.contention, busy) for busy in table.instances]
    rows = tuple(tuple(round(times.of(batch) * factor, 6) for factor in factors) for batch in table.batches)
    table = LatencyTable(table.batches, table.instances, rows)
    at = frozenset(busy for busy, _ in learnt.contention)
    return replace(model, profile=replace(model.profile, table=table, learnt_from=learnt.executions, learnt_at=at))
