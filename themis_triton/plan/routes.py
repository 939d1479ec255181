"""Which servers a model's requests go to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from themis_triton.core.fleet import Phase, Server
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable

ROUTED = frozenset({Phase.SERVING, Phase.UNREACHABLE})


def route_table(servers: Iterable[Server], models: Sequence[str]) -> RouteTable:
    """Every routed server is an endpoint of each model that it holds, in the order of names; `models` are those of the settings.

    A server without metrics stays in the routes: the proxy's health checks detect whether it answers requests. A model that no index
    lists goes to adopted servers, because a launched one holds only what it was launched with.
    """
    serving = sorted((s for s in servers if s.phase in ROUTED), key=lambda s: s.name)
    adopted = [s for s in serving if not s.launched]
    names = {*models, *(name for server in serving for name in server.ready_models or ())}
    return RouteTable(
        models={name: ModelRoute(tuple(_endpoint(s) for s in serving if _holds(s, name, models))) for name in sorted(names)},
        any=_endpoints(serving),
        unlisted=_endpoints(adopted),
        index=_endpoints(s for s in adopted if s.model_control_key is None and s.ready_models is not None),
    )


def _holds(server: Server, name: str, models: Sequence[str]) -> bool:
    return name in (server.models if name in models else server.ready_models or ())


def _endpoints(servers: Iterable[Server]) -> tuple[Endpoint, ...]:
    return tuple(map(_endpoint, servers))


def _endpoint(server: Server) -> Endpoint:
    return Endpoint(server.name, server.grpc_address, server.http_address)
