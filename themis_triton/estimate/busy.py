"""How many instances of each model are busy at a time, where models of several pipelines share a server: by Little's law."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from themis_triton.core.config import ThemisConfig
from themis_triton.core.fleet import Server
from themis_triton.core.observation import Snapshot
from themis_triton.estimate.callers import NO_WORK, Callee, Work, callers_of, waits_of
from themis_triton.estimate.served import ServedSeries

WINDOW_S = 2.0
MIN_WINDOW_S = 0.5

ServedByModel = Mapping[tuple[str, str], ServedSeries]


def busy_instances(snapshot: Snapshot, served: ServedByModel, config: ThemisConfig) -> dict[str, dict[str, float]]:
    """Mean busy instances of the last seconds by server and model, of servers that hold more than one pipeline's models.

    A model without enough readings is left out: nothing is known of it. One that waits for models that it calls is not busy.
    """
    owners = {stage: {p.name for p in config.pipelines if stage in p.stages} for p in config.pipelines for stage in p.stages}
    shared = [server for server in snapshot.servers if _is_shared(server, owners)]
    callers = callers_of(config)
    return {server.name: dict(_busy(server, served, callers, snapshot.at_s)) for server in shared}


def _is_shared(server: Server, owners: Mapping[str, set[str]]) -> bool:
    pipelines: set[str] = set()
    for model in server.models:
        pipelines |= owners.get(model, {""})
    return len(pipelines) > 1


def _busy(server: Server, served: ServedByModel, callers: Mapping[str, tuple[Callee, ...]], now_s: float) -> Iterable[tuple[str, float]]:
    for model in server.models:
        series = served.get((server.name, model))
        busy = series.mean_busy(now_s - WINDOW_S, MIN_WINDOW_S) if series is not None else None
        if series is not None and busy is not None:
            span = (max(now_s - WINDOW_S, series.times_s[0]), series.times_s[-1])
            yield model, _without_waits(busy, model, callers, partial(_work, served, server.name, span)) if model in callers else busy


def _without_waits(busy: float, caller: str, callers: Mapping[str, tuple[Callee, ...]], work: Callable[[str], Work]) -> float:
    """A caller's busy instances without those that wait for its callees; `work`: of a model, by second."""
    return waits_of({caller: callers[caller]}, work)[caller].without_calls(1000.0 * busy) / 1000.0


def _work(served: ServedByModel, server: str, span: tuple[float, float], model: str) -> Work:
    if (server, model) not in served:
        return NO_WORK
    work, seconds = served[server, model].increase(*span), span[1] - span[0]
    return Work(work.succeeded / seconds, work.queue_us / 1000.0 / seconds, work.compute_us / 1000.0 / seconds)
