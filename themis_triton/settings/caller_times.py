"""Estimated service times of models that call others (BLS): never below those of the calls that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from themis_triton.core.config import LatencyTable, ModelConfig
from themis_triton.core.graph import longest, stages_of
from themis_triton.estimate.work import mean_ms
from themis_triton.settings.graph import expand, graph_of
from themis_triton.settings.loading import Loaded

Models = Mapping[str, ModelConfig]


def with_times_of_calls(loaded: Loaded, models: Models) -> dict[str, ModelConfig]:
    """The models, in which a caller's estimated `surface` is at least the time of its calls, one after the other for each request.

    A model that answers requests with blocking calls takes them for each request of a batch in turn, so that a batch of b takes b times
    as long; an estimate by the usual form makes large batches look cheap. What was measured, as a table or by learning, stays.
    """
    return {name: _raised(loaded, model, models) if _is_estimated(loaded, name) else model for name, model in models.items()}


def _is_estimated(loaded: Loaded, model: str) -> bool:
    return model in loaded.calls and loaded.models[model].profile.surface is not None


def _raised(loaded: Loaded, model: ModelConfig, models: Models) -> ModelConfig:
    table = model.profile.table
    calls_ms = [_calls_ms(loaded, model.name, busy, models) for busy in table.instances]
    rows = tuple(
        tuple(max(ms, batch * least_ms) for ms, least_ms in zip(row, calls_ms, strict=True))
        for batch, row in zip(table.batches, table.latency_ms, strict=True)
    )
    if rows == table.latency_ms:
        return model
    raised = LatencyTable(table.batches, table.instances, rows)
    return replace(model, profile=replace(model.profile, table=raised, raised_to_calls=True))


def _calls_ms(loaded: Loaded, caller: str, busy: int, models: Models) -> float:
    """What the calls of one request take while so many instances are busy; those of models whose times are not known take none."""
    total_ms = 0.0
    for callee in loaded.calls[caller]:
        inside = dict(expand(loaded, callee.model))
        turns = {name: max(1.0, calls.per_request) if calls.sequential else 1.0 for name, calls in inside.items()}
        graph = graph_of(loaded, callee.model).graph
        times = {name: turns.get(name, 1.0) * _lone_ms(name, busy, models) for name in stages_of(graph)}
        total_ms += (callee.per_request if callee.sequential else 1.0) * longest(graph, times)
    return total_ms


def _lone_ms(model: str, busy: int, models: Models) -> float:
    known = models[model].profile if model in models else None
    return mean_ms(known, 1, float(busy)) if known is not None and not known.is_guess else 0.0
