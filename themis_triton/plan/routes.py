"""Which servers a model's requests go to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from themis_triton.core.fleet import ROUTED, Phase, Server
from themis_triton.core.price import device_count
from themis_triton.core.routes import Endpoint, ModelRoute, RouteLimit, RouteTable


def route_table(
    servers: Iterable[Server],
    models: Sequence[str],
    unrouted: Collection[tuple[str, str]] = (),
    limits: Mapping[str, RouteLimit] | None = None,
    drained: Collection[str] = (),
) -> RouteTable:
    """Every routed server is an endpoint of each model that it holds, servers in the order of their names.

    `models` are those of the settings. They come first and in their order: a proxy may be able to change the endpoints of the first ones
    at a lower cost.

    A model that keeps state between calls has just the server to which it is pinned.

    A model that no server holds goes to adopted servers too: one loaded there by hand answers at once, as without the proxy.

    A server without metrics stays in the routes: the proxy's health checks detect whether it answers requests. A model that no index
    lists goes to adopted servers, because a launched one holds only what it was launched with. `unrouted`: (server, model) pairs that
    get no requests, as long as another serving server holds the model. `limits`: admission by model. `drained`: servers that get no
    requests, but of models that no other server holds.
    """
    limits = limits or {}
    everyone = sorted((s for s in servers if s.phase in ROUTED), key=lambda s: s.name)
    serving = [s for s in everyone if s.name not in drained] or everyone
    adopted = [s for s in serving if not s.launched]
    others = {name for server in everyone for name in server.ready_models or ()}.difference(models)
    held = _holders(serving, frozenset(models))
    anywhere = _holders(everyone, frozenset(models)) if drained else held
    holders = {name: held.get(name) or anywhere.get(name) or adopted for name in (*models, *sorted(others))}
    return RouteTable(
        models={name: replace(_route(name, found, unrouted), limit=limits.get(name)) for name, found in holders.items()},
        any=_endpoints(serving),
        unlisted=_endpoints(adopted),
        index=_endpoints(s for s in adopted if s.model_control_key is None and s.ready_models is not None),
    )


def _route(model: str, holders: Sequence[Server], unrouted: Collection[tuple[str, str]]) -> ModelRoute:
    excluded = frozenset(server.name for server in holders if (server.name, model) in unrouted)
    others = any(server.phase is Phase.SERVING and server.name not in excluded for server in holders)
    weights = {server.name: places for server in holders if (places := _places(server, model)) > 1}
    return ModelRoute(_endpoints(holders), excluded if others else frozenset(), weights=weights)


def _places(server: Server, model: str) -> int:
    """The devices on which a server runs the model; for one without instances of its own, such as an ensemble, those that it uses at all.

    A device carries about the same load however many instances share it.
    """
    state = server.models.get(model)
    return max(1, len(state.spread)) if state is not None and state.instances else device_count(server.models)


def _holders(servers: Iterable[Server], models: Collection[str]) -> dict[str, list[Server]]:
    """The servers to which calls of each model come that any of them holds; of a model beyond `models`, by the servers' indices."""
    holders: dict[str, list[Server]] = {}
    for server in servers:
        listed = [name for name in server.models if name in models]
        unlisted = [name for name in dict.fromkeys(server.ready_models or ()) if name not in models]
        for name in (*listed, *unlisted):
            if server.takes_calls(name):
                holders.setdefault(name, []).append(server)
    return holders


def _endpoints(servers: Iterable[Server]) -> tuple[Endpoint, ...]:
    return tuple(map(_endpoint, servers))


def _endpoint(server: Server) -> Endpoint:
    return Endpoint(server.name, server.grpc_address, server.http_address, server.zone)
