"""The routes of the fleet: what the proxy shall route to, written off the loop, and whether it has taken that up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from themis_triton.act.fleet import Fleet
from themis_triton.core.errors import ThemisError
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.routes import RouteLimit, RouteTable
from themis_triton.plan.routes import route_table
from themis_triton.ports import RouteWriter


class FleetRoutes:
    """Writes the routes of the serving servers of a fleet.

    `unwritten`: why the proxy may have other routes than these; None: it has them. `limits`: of admission, by model. `drained`: servers
    that get no new requests.
    """

    def __init__(self, fleet: Fleet, writer: RouteWriter, models: tuple[str, ...]) -> None:
        self.limits: dict[str, RouteLimit] = {}
        self.drained: frozenset[str] = frozenset()
        self.unwritten: str | None = None
        self._fleet = fleet
        self._writer = writer
        self._models = models
        self._taken_up: RouteTable | None = None
        self._unrouted: frozenset[tuple[str, str]] = frozenset()
        self._reconciling: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop a write that is under way, and write what was out of the routes for a moment back into them."""
        if self._reconciling is not None:
            self._reconciling.cancel()
            await asyncio.gather(self._reconciling, return_exceptions=True)
        if self._unrouted:
            self._unrouted = frozenset()
            with contextlib.suppress(ThemisError, OSError):  # the next daemon writes the routes anew
                await self.write()

    def set_limits(self, limits: Mapping[str, RouteLimit]) -> None:
        """Put other admission limits into the routes, off the loop."""
        if limits != self.limits:
            self.limits = dict(limits)
            self.reconcile(changed=True)

    def set_drained(self, servers: frozenset[str]) -> None:
        """Take servers out of the routes and let the others return, off the loop."""
        if servers != self.drained:
            self.drained = servers
            self.reconcile(changed=True)

    def route_again(self, server: str, model: str) -> None:
        """Let a model of a server return to the routes, off the loop."""
        self.set_unrouted(self._unrouted - {(server, model)})

    def set_unrouted(self, pairs: frozenset[tuple[str, str]]) -> None:
        """Take (server, model) pairs out of the routes and let the others return, off the loop."""
        if pairs != self._unrouted:
            self._unrouted = pairs
            self.reconcile(changed=True)

    def reweigh(self) -> None:
        """Write the routes, off the loop, where servers that got or lost devices take other shares of the requests now."""
        if self._taken_up is not None and self._taken_up != self._table():
            self.reconcile(changed=True)

    @property
    def left(self) -> frozenset[str]:
        """The drained servers to which the proxy surely routes no more; none while the routes are not written."""
        return self.drained if self.unwritten is None else frozenset()

    async def write(self) -> None:
        """Write the routes of the serving servers. Raises the port's errors; `unwritten` has the reason until a write succeeds."""
        table = self._table()
        try:
            await self._writer.write(table)
        except Exception as error:
            self.unwritten = f"{error}"
            raise
        self._taken_up = table
        # The fleet may have changed while the proxy took the routes up: then the next tick writes again.
        current = table == self._table()
        self.unwritten = None if current else "the fleet changed during the last write"

    def as_routed(self, servers: Iterable[Server]) -> tuple[Server, ...]:
        """The servers, those as WARMING that serve and to which the proxy does not route yet: they are no capacity so far."""
        if self.unwritten is None or self._taken_up is None:
            return tuple(servers)
        routed = {endpoint.server for endpoint in self._taken_up.any}
        waiting = {endpoint.server for endpoint in self._table().any} - routed
        return tuple(
            replace(each, phase=Phase.WARMING) if each.phase is Phase.SERVING and each.launched and each.name in waiting else each
            for each in servers
        )

    def reconcile(self, *, changed: bool = False) -> None:
        """Start to write the routes, off the loop, if they changed or an earlier write failed."""
        if changed:
            self.unwritten = "a write is under way"
        if self.unwritten is not None and (self._reconciling is None or self._reconciling.done()):
            self._reconciling = asyncio.create_task(self._reconcile())

    async def _reconcile(self) -> None:
        with contextlib.suppress(ThemisError, OSError):  # `unwritten` has the reason, and the next tick tries again
            await self.write()

    def _table(self) -> RouteTable:
        return route_table(self._fleet.all(), self._models, self._unrouted, self.limits, self.drained)
