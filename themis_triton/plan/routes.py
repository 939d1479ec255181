"""Which servers a model's requests go to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from themis_triton.core.fleet import Phase, Server
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable

ROUTED = frozenset({Phase.SERVING, Phase.UNREACHABLE})


def route_table(servers: Iterable[Server], models: Sequence[str]) -> RouteTable:
    """Every routed server is an endpoint of each configured model that it holds, in the order of names.

    A server without metrics stays in the routes: the proxy's health checks detect whether it answers requests.
    """
    serving = sorted((s for s in servers if s.phase in ROUTED), key=lambda s: s.name)
    return RouteTable(
        models={model: ModelRoute(tuple(_endpoint(s) for s in serving if model in s.models)) for model in models},
        any=tuple(_endpoint(s) for s in serving),
    )


def _endpoint(server: Server) -> Endpoint:
    return Endpoint(server.name, server.grpc_address, server.http_address)
