"""How many instances of each model are busy at a time, where models of several pipelines share a server: by Little's law."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from themis_triton.core.config import ThemisConfig
from themis_triton.core.fleet import Server
from themis_triton.core.observation import Snapshot
from themis_triton.estimate.served import ServedSeries

WINDOW_S = 2.0
MIN_WINDOW_S = 0.5

ServedByModel = Mapping[tuple[str, str], ServedSeries]


def busy_instances(snapshot: Snapshot, served: ServedByModel, config: ThemisConfig) -> dict[str, dict[str, float]]:
    """Mean busy instances of the last seconds by server and model, of servers that hold more than one pipeline's models.

    A model without enough readings is left out: nothing is known of it.
    """
    owners = {stage: {p.name for p in config.pipelines if stage in p.stages} for p in config.pipelines for stage in p.stages}
    shared = [server for server in snapshot.servers if _is_shared(server, owners)]
    return {server.name: dict(_busy(server, served, snapshot.at_s)) for server in shared}


def _is_shared(server: Server, owners: Mapping[str, set[str]]) -> bool:
    pipelines: set[str] = set()
    for model in server.models:
        pipelines |= owners.get(model, {""})
    return len(pipelines) > 1


def _busy(server: Server, served: ServedByModel, now_s: float) -> Iterable[tuple[str, float]]:
    for model in server.models:
        series = served.get((server.name, model))
        busy = series.mean_busy(now_s - WINDOW_S, MIN_WINDOW_S) if series is not None else None
        if busy is not None:
            yield model, busy
