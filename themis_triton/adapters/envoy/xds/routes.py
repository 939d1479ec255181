"""Routes for an Envoy that reads files, and for any number of others over xDS: one renderer, two transports."""

from __future__ import annotations

import asyncio

from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.xds.server import XdsServer
from themis_triton.adapters.envoy.xds.shares import OWN, ArrivalShares, Shares, steady, with_shares
from themis_triton.core.observation import ProxyConnection
from themis_triton.core.routes import RouteTable


class SharedRoutes:
    """Implements `RouteWriter`: the files first, then the Envoys that are connected. Calls are taken one at a time.

    `arrivals`: by which each Envoy gets its part of the limits.
    """

    def __init__(self, files: EnvoyFiles, server: XdsServer, arrivals: ArrivalShares) -> None:
        self._files = files
        self._server = server
        self._arrivals = arrivals
        self._lock = asyncio.Lock()
        self._table: RouteTable | None = None
        self._parts: dict[str, dict[str, float]] = {}
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
        """Put the table into place at all Envoys; returns once they have applied it. Each gets its part of each limit.

        Raises:
            ServerError: as `EnvoyFiles.write` and `XdsServer.publish`.
            EnvironmentCheckError: the discovery service cannot listen.
        """
        async with self._lock:
            started_s = asyncio.get_running_loop().time()
            self._table = table
            self._split(table)
            await self._write(table)
            self.take_up_s = asyncio.get_running_loop().time() - started_s

    async def share_limits(self) -> bool:
        """Give each Envoy its part of the limits by the newest arrivals; returns whether a part changed. Raises as `write` does."""
        async with self._lock:
            if self._table is None or not self._split(self._table):
                return False
            await self._write(self._table)
            return True

    def _split(self, table: RouteTable) -> bool:
        """Take in the parts of now, by model; whether those of a model have changed by enough to be sent."""
        envoys = [OWN, *(node.name for node in self._server.nodes)]
        limits = {model: route.limit for model, route in table.models.items() if route.limit is not None}
        now = {model: self._arrivals.split(model, limit.requests_per_s, envoys) for model, limit in limits.items()}
        tolerances = {model: self._arrivals.tolerance(model, envoys) for model in now}
        kept = {model: before for model, parts in now.items() if steady(before := self._parts.get(model, {}), parts, tolerances[model])}
        self._parts = now | kept
        return len(kept) < len(now)

    async def _write(self, table: RouteTable) -> None:
        try:
            await self._files.write(with_shares(table, self._shares().get(OWN, {}), self._equal))
            await self._server.start()
            await self._publish()
        except BaseException:
            self._parts = {}  # They are not in place everywhere.
            raise

    async def renew_certificates(self) -> bool:
        """Have all Envoys read PEM files, API keys and JWKS again where they changed; returns whether they did. Raises as `write` does."""
        async with self._lock:
            renewed = await self._files.renew_certificates()
            if renewed:
                await self._publish()
            return renewed

    async def _publish(self) -> None:
        if self._files.rendered is not None:
            await self._server.publish(self._files.rendered, self._shares(), self._equal)

    @property
    def _equal(self) -> float:
        """The part of an Envoy whose requests are not known."""
        return 1.0 / (1 + len(self._server.nodes))

    def _shares(self) -> Shares:
        shares: dict[str, dict[str, float]] = {}
        for model, parts in self._parts.items():
            for envoy, part in parts.items():
                shares.setdefault(envoy, {})[model] = part
        return shares
