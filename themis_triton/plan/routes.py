"""Which servers a model's requests go to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from themis_triton.core.fleet import Phase, Server
from themis_triton.core.routes import Endpoint, RouteTable


def route_table(servers: Iterable[Server], models: Sequence[str]) -> RouteTable:
    """Every SERVING server is an endpoint of each configured model that it holds, in the order of names."""
    serving = sorted((s for s in servers if s.phase is Phase.SERVING), key=lambda s: s.name)
    return RouteTable(
        models={model: tuple(_endpoint(s) for s in serving if model in s.models) for model in models},
        any=tuple(_endpoint(s) for s in serving),
    )


def _endpoint(server: Server) -> Endpoint:
    return Endpoint(server.name, server.grpc_address, server.http_address)
