"""Instances that a server executes while the call that adds or removes them has not returned.

The call returns only once the model's queue in that server has been empty, and a removed instance has been torn down. Added instances
serve one initialisation after the call all the same; removed ones take no more requests from the beginning of their teardown, unless
requests wait. So counts of an open call are what the executed batches show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from themis_triton.core.config import ThemisConfig
from themis_triton.core.fleet import ModelState, Server, first_added
from themis_triton.core.observation import OpenCall, Snapshot
from themis_triton.estimate.served import ServedSeries

WINDOW_S = 1.0
MIN_WINDOW_S = 0.2
"""The mean number of busy instances is taken over this time, from the end of the initialisation on."""


def with_executing(snapshot: Snapshot, served: Mapping[str, ServedSeries], config: ThemisConfig) -> Snapshot:
    """The snapshot in which servers have the instances that their executed batches show, as far as open calls add them."""
    changed: dict[str, dict[str, ModelState]] = {}
    for call in snapshot.open_calls:
        changed.setdefault(call.server, {})[call.model] = _executing(call, served, snapshot.at_s, config)
    if not changed:
        return snapshot
    return replace(snapshot, servers=tuple(_with_states(server, changed.get(server.name)) for server in snapshot.servers))


def _with_states(server: Server, states: Mapping[str, ModelState] | None) -> Server:
    if states is None:
        return server
    return replace(server, models={name: states.get(name, state) for name, state in server.models.items()})


def _executing(call: OpenCall, served: Mapping[str, ServedSeries], now_s: float, config: ThemisConfig) -> ModelState:
    """The fewer of the two states' instances, and so many of the others as are busy by Little's law: under a backlog every one is."""
    series, init_s = served.get(call.server), config.models[call.model].profile.instance_init_s if call.grows else 0.0
    start_s = max(call.since_s + init_s, now_s - WINDOW_S)
    busy = series.mean_busy((call.model,), start_s, MIN_WINDOW_S).get(call.model) if series is not None else None
    fewer, more = (call.before, call.after) if call.grows else (call.after, call.before)
    if busy is None:
        return fewer
    return fewer.plus(first_added(more.added(fewer), round(busy) - fewer.instances))
