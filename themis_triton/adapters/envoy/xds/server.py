"""The aggregated discovery service (incremental) over gRPC: brings all connected Envoys to the newest routes, step by step."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import grpc
import structlog

from themis_triton.adapters.envoy.render import RenderInput
from themis_triton.adapters.envoy.xds.messages import message_class
from themis_triton.adapters.envoy.xds.resources import (
    CLUSTER,
    ENDPOINTS,
    ENVOYS,
    LISTENER,
    ROUTES,
    Node,
    Packer,
    Resource,
    Resources,
    envoys,
    listeners,
)
from themis_triton.adapters.envoy.xds.shares import Shares, with_shares
from themis_triton.adapters.envoy.xds.stream import EnvoyStream
from themis_triton.adapters.grpc_tls import client_context, server_credentials
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig, XdsConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError
from themis_triton.core.observation import ProxyConnection

log = structlog.get_logger()
SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
MAX_ENVOYS = 256
CLOSE_S = 1.0
"""For how long open streams may take to end."""
WARM_S = 1.0
"""For how long a new cluster may wait for its first health checks; routes to it follow then."""
ADDRESSES = ("grpc_listen", "http_listen", "stats")
"""The metadata of a node: where it listens for clients, and where its statistics can be read."""
_MESSAGES = "envoy.service.discovery.v3.DeltaDiscovery"
Listeners = dict[tuple[EnvoyConfig, Address, Address], dict[str, Resource]]


@dataclass(eq=False, slots=True)
class _Connection:
    """One connected Envoy. `changed`: there may be something to send, or the connection is to end."""

    node: Node
    peer: tuple[str, int]
    since_s: float
    stream: EnvoyStream = field(default_factory=EnvoyStream)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ends: bool = False


@dataclass(frozen=True, slots=True)
class _Target:
    """What the Envoys are brought to: the resources that all share, and the settings of the listeners.

    `routes`: of Envoys that have other parts of the limits than those whose requests are not known, by name.
    """

    common: Resources
    config: EnvoyConfig
    routes: Resources = field(default_factory=dict)


class XdsServer:
    """Serves Envoys until closed. Before the first `publish` they wait. Use it from one event loop.

    Args:
        config: where it listens.
        timeout_s: an Envoy that has not answered by then is disconnected; it comes back and gets what it lacks.
    """

    def __init__(self, config: XdsConfig, timeout_s: float = 15.0) -> None:
        self.config = config
        self._timeout_s = timeout_s
        self._packer = Packer()
        self._target: _Target | None = None
        self._listeners: Listeners = {}
        self._connections: list[_Connection] = []
        self._answered = asyncio.Condition()
        self._server: Any = None
        self.port = config.listen.port
        self.sent_bytes = 0

    @property
    def proxies(self) -> tuple[ProxyConnection, ...]:
        """The connected Envoys, by name."""
        return tuple(sorted(map(self._shown, self._connections), key=lambda each: each.name))

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The connected Envoys as their bootstraps name them."""
        return tuple(each.node for each in self._connections)

    def _shown(self, each: _Connection) -> ProxyConnection:
        refused = each.stream.refused
        in_step = self._target is not None and refused is None and each.stream.is_in_step(self._view(each.node))
        address = Address(*each.peer)
        return ProxyConnection(each.node.name, each.node.zone, str(address), in_step, refused)

    async def start(self) -> None:
        """Listen; does nothing when it listens already. EnvironmentCheckError where that cannot be done."""
        if self._server is not None:
            return
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)], maximum_concurrent_rpcs=MAX_ENVOYS)
        request, response = (message_class(f"{_MESSAGES}{kind}") for kind in ("Request", "Response"))
        method = grpc.stream_stream_rpc_method_handler(self._serve, request.FromString, response.SerializeToString)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"DeltaAggregatedResources": method}),))
        credentials = server_credentials(self.config.tls, "envoy.xds.tls") if self.config.tls is not None else None
        try:
            address = self.config.listen.authority
            self.port = server.add_secure_port(address, credentials) if credentials is not None else server.add_insecure_port(address)
        except RuntimeError as error:
            fix = "stop what listens there, or choose another port"
            raise EnvironmentCheckError(f"envoy.xds.listen: {self.config.listen} cannot be listened on. Fix: {fix}") from error
        await server.start()
        self._server = server

    async def close(self) -> None:
        """Stop listening. The Envoys go on with what they have, and come back."""
        for each in self._connections:
            each.ends = True
            each.changed.set()
        if self._server is not None:
            await self._server.stop(grace=CLOSE_S)
            self._server = None

    def client_context(self) -> ssl.SSLContext | None:
        """With which the statistics of the Envoys are read; None without TLS. Blocking."""
        return client_context(self.config.tls) if self.config.tls is not None else None

    async def publish(self, rendered: RenderInput, shares: Shares = MappingProxyType({}), otherwise: float = 1.0) -> None:
        """Bring every connected Envoy to these routes; returns once all have taken them.

        `shares`: the parts of the limits, by Envoy and model; `otherwise`: that of Envoys that are not named.

        A cluster comes before the routes to it and goes after them. An Envoy that is silent is disconnected; one that refuses something
        keeps what it had, and so do the others.

        Raises:
            ServerError: an Envoy refused a resource, with its reason; or a PEM file cannot be read.
        """
        before = self._target
        try:
            names = [each.node.name for each in self._connections]
            new = await asyncio.to_thread(self._packed, rendered, {name: shares[name] for name in names if name in shares}, otherwise)
        except OSError as error:
            raise ServerError(f"xDS: {error.filename} cannot be read ({error.strerror})") from error
        for step in _steps(before, new):
            added = _clusters(step) - _clusters(self._target)
            try:
                await self._reach(step)
            except ServerError:
                if before is not None:
                    self._set(before)
                raise
            if added and self._connections and before is not None:
                await asyncio.sleep(WARM_S)

    def _packed(self, rendered: RenderInput, shares: Shares, otherwise: float) -> _Target:
        common = self._packer.pack(replace(rendered, table=with_shares(rendered.table, {}, otherwise)))
        routes: dict[str, Mapping[str, Resource]] = {}
        made: dict[frozenset[tuple[str, float]], Mapping[str, Resource]] = {}
        for name, own in shares.items():
            if any(share != otherwise for share in own.values()):
                key = frozenset(own.items())
                if key not in made:
                    made[key] = self._packer.pack_routes(replace(rendered, table=with_shares(rendered.table, own, otherwise)))
                routes[name] = made[key]
        return _Target(common, rendered.config, routes)

    def _set(self, target: _Target) -> None:
        self._target = target
        for each in self._connections:
            each.changed.set()

    async def _reach(self, target: _Target) -> None:
        """Wait until the Envoys have taken the target. Those that refused something before are not waited for."""
        good = {each: each.stream.refusals for each in self._connections if each.stream.refused is None}
        self._set(target)
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        async with self._answered:
            while True:
                refusing = next((each for each, count in good.items() if each.stream.refusals > count), None)
                if refusing is not None:
                    raise ServerError(f"Envoy {refusing.node.name} refused new routes and keeps its last ones: {refusing.stream.refused}")
                late = [each for each in good if each in self._connections and not each.stream.is_in_step(self._view(each.node))]
                left_s = deadline_s - asyncio.get_running_loop().time()
                if not late or left_s <= 0:
                    break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._answered.wait(), left_s)
        for each in late:
            log.warning(
                "envoy_silent", envoy=each.node.name, message=f"it has not answered within {self._timeout_s:g} s; it is disconnected"
            )
            each.ends = True
            each.changed.set()

    def _view(self, node: Node) -> dict[str, Mapping[str, Resource]]:
        """The target of one Envoy."""
        if self._target is None:
            return {}
        key = (self._target.config, node.grpc_listen, node.http_listen)
        if key not in self._listeners:
            self._listeners[key] = listeners(self._target.config, node)
        common = self._target.common
        members = envoys((each.node.zone, *each.peer) for each in self._connections)
        routes = self._target.routes.get(node.name) or common.get(ROUTES, {})
        return {**common, ROUTES: routes, LISTENER: self._listeners[key], ENDPOINTS: {**common.get(ENDPOINTS, {}), ENVOYS: members}}

    async def _serve(self, requests: AsyncIterator[Any], context: Any) -> None:  # noqa: ANN401 - grpc has no types
        """One Envoy's stream, until it or the server ends it."""
        first = await anext(requests, None)
        if first is None:
            return
        try:
            connection = _Connection(node_of(first.node), _peer(context.peer()), asyncio.get_running_loop().time())
        except ValueError as error:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"Themis: {error}. Fix: write the bootstrap with `themis envoy-bootstrap`"
            )
            return
        self._enter(connection)
        reading = asyncio.create_task(self._read(connection, first, requests))
        try:
            while not connection.ends:
                await connection.changed.wait()
                connection.changed.clear()
                if self._target is not None:
                    before = connection.stream.sent_bytes
                    for response in connection.stream.responses(self._view(connection.node)):
                        await context.write(response)
                    self.sent_bytes += connection.stream.sent_bytes - before
                async with self._answered:
                    self._answered.notify_all()
        finally:
            reading.cancel()
            self._leave(connection)
            async with self._answered:
                self._answered.notify_all()

    async def _read(self, connection: _Connection, first: Any, requests: AsyncIterator[Any]) -> None:  # noqa: ANN401 - as above
        """Take in requests until Envoy is gone."""
        try:
            self._receive(connection, first)
            async for request in requests:
                self._receive(connection, request)
        except grpc.RpcError:
            pass  # It is gone.
        finally:
            connection.ends = True
            connection.changed.set()

    def _receive(self, connection: _Connection, request: Any) -> None:  # noqa: ANN401 - as above
        before = connection.stream.refusals
        connection.stream.receive(request)
        if connection.stream.refusals > before:
            log.error("envoy_refused", envoy=connection.node.name, type=request.type_url, reason=connection.stream.refused)
        connection.changed.set()

    def _enter(self, connection: _Connection) -> None:
        if any(each.node.name == connection.node.name for each in self._connections):
            log.warning("envoy_name_shared", envoy=connection.node.name, message="two Envoys have this name; give each its own")
        self._connections.append(connection)
        log.info("envoy_connected", envoy=connection.node.name, zone=connection.node.zone, address=str(Address(*connection.peer)))
        if connection.node.stats is None:
            message = "its requests are not counted: write its bootstrap with --stats"
            log.warning("envoy_without_statistics", envoy=connection.node.name, message=message)
        self._members_changed()

    def _leave(self, connection: _Connection) -> None:
        self._connections.remove(connection)
        log.warning("envoy_disconnected", envoy=connection.node.name, message="it goes on with the routes that it has")
        self._members_changed()

    def _members_changed(self) -> None:
        for each in self._connections:
            each.changed.set()


def _clusters(target: _Target | None) -> frozenset[str]:
    return frozenset(target.common.get(CLUSTER, ())) if target is not None else frozenset()


def _steps(before: _Target | None, new: _Target) -> Iterator[_Target]:
    """New clusters and endpoints, then what leads to them, then without the obsolete ones; without steps that change nothing."""
    last = before
    for step in [new] if before is None else _between(before, new):
        if step != last:
            yield step
        last = step


def _between(before: _Target, new: _Target) -> list[_Target]:
    both = {kind: {**before.common.get(kind, {}), **new.common.get(kind, {})} for kind in (CLUSTER, ENDPOINTS)}
    first = _Target({**before.common, **both}, before.config, before.routes)
    return [first, _Target({**new.common, **both}, new.config, new.routes), new]


def node_of(node: Any) -> Node:  # noqa: ANN401 - protobuf has no types
    """The Envoy that a request's node describes. ValueError where it lacks its name or the addresses that it is to listen on."""
    metadata = dict(node.metadata.items()) if node.HasField("metadata") else {}
    if not node.id:
        raise ValueError("the Envoy has no `node.id`")
    addresses = {name: Address.parse(value) for name, value in metadata.items() if name in ADDRESSES and isinstance(value, str)}
    missing = [name for name in ADDRESSES[:2] if name not in addresses]
    if missing:
        raise ValueError(f"Envoy {node.id} has no {' and no '.join(missing)} in its node's metadata")
    return Node(node.id, node.locality.zone or None, addresses["grpc_listen"], addresses["http_listen"], addresses.get("stats"))


def _peer(text: str) -> tuple[str, int]:
    """Host and port of gRPC's name of a peer: `ipv4:127.0.0.1:1` or `ipv6:%5B::1%5D:1`."""
    host, _, port = unquote(text).partition(":")[2].rpartition(":")
    return host.strip("[]"), int(port)
