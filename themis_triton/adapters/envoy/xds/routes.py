"""Routes for an Envoy that reads files, and for any number of others over xDS: one renderer, two transports."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.xds.server import XdsServer
from themis_triton.core.observation import ProxyConnection
from themis_triton.core.routes import RouteTable


class SharedRoutes:
    """Implements `RouteWriter`: the files first, then the Envoys that are connected. Calls are taken one at a time."""

    def __init__(self, files: EnvoyFiles, server: XdsServer) -> None:
        self._files = files
        self._server = server
        self._lock = asyncio.Lock()
        self.take_up_s: float | None = None

    @property
    def proxies(self) -> tuple[ProxyConnection, ...]:
        """The connected Envoys."""
        return self._server.proxies

    async def close(self) -> None:
        """Stop listening, and close the connection to the Envoy of the files."""
        await self._server.close()
        await self._files.close()

    async def write(self, table: RouteTable) -> None:
        """Put the table into place at all Envoys; returns once they have applied it. Each gets an equal part of each limit.

        Raises:
            ServerError: as `EnvoyFiles.write` and `XdsServer.publish`.
            EnvironmentCheckError: the discovery service cannot listen.
        """
        async with self._lock:
            started_s = asyncio.get_running_loop().time()
            await self._files.write(shared(table, 1 + len(self._server.nodes)))
            await self._server.start()
            await self._publish()
            self.take_up_s = asyncio.get_running_loop().time() - started_s

    async def renew_certificates(self) -> bool:
        """Have all Envoys read PEM files, API keys and JWKS again where they changed; returns whether they did. Raises as `write` does."""
        async with self._lock:
            renewed = await self._files.renew_certificates()
            if renewed:
                await self._publish()
            return renewed

    async def _publish(self) -> None:
        if self._files.rendered is not None:
            await self._server.publish(self._files.rendered)


def shared(table: RouteTable, parts: int) -> RouteTable:
    """The table with one part of each limit."""
    models = {
        model: replace(
            route, limit=replace(route.limit, requests_per_s=route.limit.requests_per_s / parts, burst=-(-route.limit.burst // parts))
        )
        if route.limit is not None
        else route
        for model, route in table.models.items()
    }
    return replace(table, models=models) if parts > 1 else table
