"""How many instances of each model are busy at a time, where models of several pipelines share a server: by Little's law."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from themis_triton.core.config import ThemisConfig
from themis_triton.core.fleet import Server
from themis_triton.core.observation import Snapshot
from themis_triton.estimate.callers import Callee, Work, callers_of, waits_of
from themis_triton.estimate.served import NO_SERVER, NOTHING, Served, ServedSeries

WINDOW_S = 2.0
MIN_WINDOW_S = 0.5


def busy_instances(snapshot: Snapshot, served: Mapping[str, ServedSeries], config: ThemisConfig) -> dict[str, dict[str, float]]:
    """Mean busy instances of the last seconds by server and model, of servers that hold more than one pipeline's models.

    A model without enough readings is left out: nothing is known of it. One that waits for models that it calls is not busy.
    """
    owners: dict[str, set[str]] = {}
    for pipeline in config.pipelines:
        for stage in pipeline.stages:
            owners.setdefault(stage, set()).add(pipeline.name)
    shared = [server for server in snapshot.servers if _is_shared(server, owners)]
    callers = callers_of(config)
    return {server.name: _busy(server, served.get(server.name, NO_SERVER), callers, snapshot.at_s) for server in shared}


def _is_shared(server: Server, owners: Mapping[str, set[str]]) -> bool:
    pipelines: set[str] = set()
    for model in server.models:
        pipelines |= owners.get(model, {""})
    return len(pipelines) > 1


def _busy(server: Server, series: ServedSeries, callers: Mapping[str, tuple[Callee, ...]], now_s: float) -> dict[str, float]:
    busy = series.mean_busy(server.models, now_s - WINDOW_S, MIN_WINDOW_S)
    for caller in callers.keys() & busy.keys():
        start_s, end_s = series.span_s(caller, now_s - WINDOW_S)
        work = partial(_work, series.increases(start_s, end_s), end_s - start_s)
        busy[caller] = _without_waits(busy[caller], caller, callers, work)
    return {model: busy[model] for model in server.models if model in busy}


def _without_waits(busy: float, caller: str, callers: Mapping[str, tuple[Callee, ...]], work: Callable[[str], Work]) -> float:
    """A caller's busy instances without those that wait for its callees; `work`: of a model, by second."""
    return waits_of({caller: callers[caller]}, work)[caller].without_calls(1000.0 * busy) / 1000.0


def _work(done: Mapping[str, Served], seconds: float, model: str) -> Work:
    work = done.get(model, NOTHING)
    return Work(work.succeeded / seconds, work.queue_us / 1000.0 / seconds, work.compute_us / 1000.0 / seconds)
