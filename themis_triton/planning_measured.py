"""What-if plans from what a sidecar has measured: requests a stage, and what others bring to the pipeline's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from themis_triton.core.config import PipelineConfig, StageCalls, ThemisConfig
from themis_triton.core.estimate import Estimate, OtherDemand, PipelineEstimate
from themis_triton.core.observation import Snapshot
from themis_triton.core.status import Status
from themis_triton.decide.demand import stable_others
from themis_triton.decide.sharing import SharedModels
from themis_triton.decide.state import PolicyInput
from themis_triton.planning import WhatIf, selected_pipeline

OtherCalls = Mapping[str, Mapping[str, float]]
"""Requests/s of each stage by their source: another pipeline, or the stage itself where they are direct calls."""


def measured_start(config: ThemisConfig, status: Status, what_if: WhatIf) -> tuple[ThemisConfig, WhatIf]:
    """The settings and the question with what the sidecar has measured. SettingsError for an unknown pipeline."""
    measured = with_measured_calls(config, status)
    pipeline = selected_pipeline(measured, what_if)
    others = measured_others(status, pipeline)
    if not any(others.values()):
        return measured, what_if
    return measured, replace(what_if, others_at=others_at_places(status, pipeline, measured, others))


def with_measured_calls(config: ThemisConfig, status: Status) -> ThemisConfig:
    """The settings with the requests a stage, without those that a cache answers, and their rows, as the sidecar has measured them."""
    estimates = {each.name: each.estimate for each in status.pipelines if each.estimate is not None}
    known = [zip(each.stages, estimates[each.name].sizes, strict=False) for each in config.pipelines if each.name in estimates]
    rows = {stage: size.rows for stages in known for stage, size in stages}
    models = {name: replace(model, rows_per_request=rows.get(name, model.rows_per_request)) for name, model in config.models.items()}
    measured = {name: _executed(estimate) for name, estimate in estimates.items()}

    def changed(pipeline: PipelineConfig) -> PipelineConfig:
        numbers = measured.get(pipeline.name, ())
        if len(numbers) != len(pipeline.stages) or numbers == pipeline.per_request:
            return pipeline
        calls = zip(numbers, pipeline.calls or (StageCalls(),) * len(numbers), strict=True)
        return replace(pipeline, calls=tuple(replace(each, per_request=number) for number, each in calls))

    return replace(config, models=models, pipelines=tuple(map(changed, config.pipelines)))


def _executed(estimate: PipelineEstimate) -> tuple[float, ...]:
    """The executed requests of each stage per request of the pipeline."""
    if not estimate.sizes:
        return estimate.per_request
    return tuple(calls * size.executed for calls, size in zip(estimate.per_request, estimate.sizes, strict=True))


def measured_others(status: Status, pipeline: PipelineConfig) -> OtherCalls:
    """What others bring to the pipeline's models, as the sidecar has measured it."""
    estimate = next((each.estimate for each in status.pipelines if each.name == pipeline.name), None)
    if estimate is None or len(estimate.others) != len(pipeline.stages):
        return {stage: {} for stage in pipeline.stages}
    return {
        stage: {stage if part.pipeline is None else part.pipeline: part.stable_rps for part in parts if part.stable_rps > 0.0}
        for stage, parts in zip(pipeline.stages, estimate.others, strict=True)
    }


def others_at_places(
    status: Status, pipeline: PipelineConfig, config: ThemisConfig, calls: OtherCalls
) -> Callable[[float], tuple[float, ...]]:
    """What of these calls reaches the pipeline's own servers at a rate of its own, by stage: as the sidecar plans it."""
    others = tuple(
        tuple(OtherDemand(None if source == stage else source, rps, rps) for source, rps in calls[stage].items())
        for stage in pipeline.stages
    )

    def at(rate_rps: float) -> tuple[float, ...]:
        demand = PipelineEstimate(
            pipeline.name, rate_rps, rate_rps, rate_rps, 0.0, 0.0, None, per_request=pipeline.per_request, others=others
        )
        estimate = Estimate(status.at_s or 0.0, pipelines={pipeline.name: demand})
        policy_input = PolicyInput(Snapshot(estimate.at_s, status.servers), estimate)
        groups = policy_input.groups(pipeline, config.planning.placement)
        return stable_others(SharedModels(policy_input, config).at(pipeline, groups))

    return at
