"""Models that several pipelines call: whose calls can be told apart, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from themis_triton.core.config import PipelineConfig


def sharing_notes(pipelines: Sequence[PipelineConfig]) -> Iterator[tuple[tuple[str, ...], str]]:
    """For each model of several pipelines their names, and how plans count its calls, in one sentence."""
    for front, group in groupby(sorted(pipelines, key=lambda p: p.front), key=lambda p: p.front):
        same = tuple(group)
        if len(same) > 1:
            yield tuple(p.name for p in same), _one_demand(front, same)
    models = dict.fromkeys(model for pipeline in pipelines for model in pipeline.stages)
    for model in models:
        callers = [pipeline for pipeline in pipelines if model in pipeline.stages]
        if len({pipeline.front for pipeline in callers}) > 1:
            yield tuple(p.name for p in callers), _sum(model, callers)


def _one_demand(front: str, pipelines: Sequence[PipelineConfig]) -> str:
    stricter = min(pipelines, key=lambda p: (p.slo_ms, -p.percentile))
    return (
        f"{front} is the first model of each, so that their calls cannot be told apart: they are one demand, and {front} is planned for "
        f"the stricter SLO, {stricter.slo_ms:g} ms at p{stricter.percentile:g} of {stricter.name}"
    )


def _sum(model: str, pipelines: Sequence[PipelineConfig]) -> str:
    apart = [f"those of {p.name} by the calls of {p.entry}" for p in pipelines if p.entry is not None]
    told = f"; they are told apart, {', '.join(apart)}" if apart and any(p.front == model for p in pipelines) else ""
    return f"{model} is planned for the sum of their calls{told}"
