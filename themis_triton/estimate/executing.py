"""Instances that a server executes while the call that adds or removes them has not returned.

The call returns only once the model's queue in that server has been empty, and a removed instance has been torn down. Added instances
serve one initialisation after the call all the same; removed ones take no more requests from the beginning of their teardown, unless
requests wait. So counts of an open call are what the executed batches show.
"""

from __future__ import annotations

from collections.abc import Mapping

from themis_triton.core.config import ThemisConfig
from themis_triton.core.fleet import ModelState, Server, first_added
from themis_triton.core.observation import OpenCall, Snapshot
from themis_triton.core.replacing import replaced
from themis_triton.estimate.served import ServedSeries

WINDOW_S = 1.0
MIN_WINDOW_S = 0.2
"""The mean number of busy instances is taken over this time, from the end of the initialisation on."""


def with_executing(snapshot: Snapshot, served: Mapping[str, ServedSeries], config: ThemisConfig) -> Snapshot:
    """The snapshot in which servers have the instances that their executed batches show, as far as open calls add them."""
    if not snapshot.open_calls:
        return snapshot
    calls = [(call, call.grows) for call in snapshot.open_calls]
    started = [(call, grows, _counts_from_s(call, snapshot.at_s, config, grows=grows)) for call, grows in calls]
    asked: dict[tuple[str, float], list[str]] = {}
    for call, _, start_s in started:
        asked.setdefault((call.server, start_s), []).append(call.model)
    busy = {
        (server, start_s): served[server].mean_busy(models, start_s, MIN_WINDOW_S) if server in served else {}
        for (server, start_s), models in asked.items()
    }
    changed: dict[str, dict[str, ModelState]] = {}
    for call, grows, start_s in started:
        changed.setdefault(call.server, {})[call.model] = _executing(call, busy[call.server, start_s].get(call.model), grows=grows)
    return replaced(snapshot, servers=tuple(_with_states(server, changed.get(server.name)) for server in snapshot.servers))


def _with_states(server: Server, states: Mapping[str, ModelState] | None) -> Server:
    if states is None:
        return server
    return replaced(server, models={name: states.get(name, state) for name, state in server.models.items()})


def _counts_from_s(call: OpenCall, now_s: float, config: ThemisConfig, *, grows: bool) -> float:
    """From when on what is busy counts: the last second, once added instances may serve."""
    init_s = config.models[call.model].profile.instance_init_s if grows else 0.0
    return max(call.since_s + init_s, now_s - WINDOW_S)


def _executing(call: OpenCall, busy: float | None, *, grows: bool) -> ModelState:
    """The fewer of the two states' instances, and so many of the others as are busy by Little's law: under a backlog every one is."""
    fewer, more = (call.before, call.after) if grows else (call.after, call.before)
    if busy is None or round(busy) <= fewer.instances:
        return fewer
    return fewer.plus(first_added(more.added(fewer), round(busy) - fewer.instances))
